"""`cryoscan scan` with every kind of worker: processes, shares, a scheduler, jobs of a batch system."""

import json
import os
import signal
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import distributed
import numpy as np
import pandas as pd
import pytest
import scan_worker
import starfile
import yaml
from scan_worker import results

import cryoscan.datedb.build
import cryoscan.scan.executors
from cryoscan import Volume
from cryoscan.cli import main
from cryoscan.io import open_volume, write_volume
from cryoscan.scan import open_scan
from cryoscan.scan.cluster import ClusterConfig
from cryoscan.workflows import export_scan


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a volume, a mask, a database of toys and settings."""
    folder = tmp_path_factory.mktemp("bench")
    volume = scan_worker.scene()
    write_volume(volume, folder / "v.zarr")
    inside = np.zeros(volume.shape, np.float32)
    inside[:, :, 34:] = 1
    write_volume(Volume(inside, volume.voxel_size, volume.origin), folder / "mask.mrc")
    write_volume(Volume(inside[1:], volume.voxel_size, volume.origin), folder / "thin.mrc")
    scan_worker.database(scan_worker.toy()).write(folder / "toy.datedb")
    (folder / "scan.yaml").write_text(yaml.safe_dump(scan_worker.SETTINGS))
    cluster = {"kind": "slurm", "jobs": 1, "cores": 1, "memory": "1GB", "walltime": "00:07:00", "queue": "short"}
    cluster |= {"job_options": ["--gres=gpu:1"], "prologue": ["module load cuda"], "account": "lab", "interface": "lo"}
    (folder / "cluster.yaml").write_text(yaml.safe_dump(cluster))
    (folder / "cluster_here.yaml").write_text(yaml.safe_dump({**cluster, "prologue": []}))
    return folder


@pytest.fixture
def scan(bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Any:
    """Run `cryoscan scan` in this process: exit code, what it answers, what else it says."""
    monkeypatch.setattr(cryoscan.datedb.build, "embedder_for", lambda db, **_: scan_worker.toy())

    def run(*words: object) -> tuple[int, Any, str]:
        line = ["cryoscan", "scan", bench / "v.zarr", "-o", tmp_path / "a.scan", "--datedb", bench / "toy.datedb"]
        line += ["--config", bench / "scan.yaml", "--json", *words]
        monkeypatch.setattr(sys, "argv", [str(word) for word in line])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        return int(end.value.code or 0), json.loads(out) if out else None, err

    return run


@pytest.fixture(scope="module")
def plain(bench: Path) -> Iterator[dict[str, str]]:
    """What a scan by one process gives."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cryoscan.datedb.build, "embedder_for", lambda db, **_: scan_worker.toy())
        line = ["cryoscan", "scan", bench / "v.zarr", "-o", bench / "plain.scan", "--datedb", bench / "toy.datedb"]
        patch.setattr(sys, "argv", [str(word) for word in [*line, "--config", bench / "scan.yaml"]])
        with pytest.raises(SystemExit, match="0"):
            main()
    return results(bench / "plain.scan")


@pytest.fixture
def batch_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Stand-ins for Slurm's commands: a job is a process here. Gives the folder of submitted scripts."""
    bin_, jobs = tmp_path / "bin", tmp_path / "jobs"
    bin_.mkdir()
    jobs.mkdir()
    submit = f"""#!/bin/bash
number=$(( $(ls {jobs}/*.sh 2>/dev/null | wc -l) + 1 ))
cp "$1" {jobs}/$number.sh
setsid nohup bash {jobs}/$number.sh > {jobs}/$number.log 2>&1 < /dev/null &
echo $! > {jobs}/$number.pid
echo "Submitted batch job $number"
"""
    cancel = f'#!/bin/bash\nfor job in "$@"; do kill -- -$(cat {jobs}/$job.pid) 2>/dev/null; done; true\n'
    for name, script in (("sbatch", submit), ("scancel", cancel), ("squeue", "#!/bin/bash\n")):
        (bin_ / name).write_text(script)
        (bin_ / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{bin_}{os.pathsep}{os.environ['PATH']}")
    yield jobs
    for pid in jobs.glob("*.pid"):
        end_group(int(pid.read_text()))


def end_group(pid: int) -> None:
    """Wait a little for the processes of a job to end; else end them."""
    for _ in range(50):
        try:
            os.killpg(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    os.killpg(pid, signal.SIGKILL)


# ---------------------------------------------------------------- who does the work


@pytest.mark.slow
def test_processes_of_this_machine(scan: Any, plain: dict[str, str], tmp_path: Path) -> None:
    code, answer, _ = scan("--workers", 2)
    assert (code, answer["hits"]) == (0, 6)
    assert results(tmp_path / "a.scan") == plain


def test_shares_one_after_the_other(scan: Any, plain: dict[str, str], tmp_path: Path) -> None:
    code, answer, _ = scan("--shard", "2/2")
    assert code == 0
    assert answer["tiles_left"] == len(list((tmp_path / "a.scan" / "tiles").iterdir())) == 12
    code, answer, _ = scan("--shard", "1/2")
    assert (code, answer["hits"]) == (0, 6)
    assert results(tmp_path / "a.scan") == plain


@pytest.mark.slow
def test_workers_of_a_scheduler(scan: Any, plain: dict[str, str], tmp_path: Path) -> None:
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, protocol="tcp", dashboard_address=None
    ) as cluster:
        code, answer, _ = scan("--scheduler", cluster.scheduler_address)
    assert (code, answer["hits"]) == (0, 6)
    assert results(tmp_path / "a.scan") == plain


@pytest.mark.slow
def test_jobs_of_a_batch_system(
    scan: Any, plain: dict[str, str], bench: Path, tmp_path: Path, batch_system: Path
) -> None:
    code, answer, err = scan("--cluster", bench / "cluster_here.yaml")
    assert (code, answer["hits"]) == (0, 6), err
    assert results(tmp_path / "a.scan") == plain
    (script,) = batch_system.glob("*.sh")
    assert "#SBATCH -p short" in script.read_text()
    assert (batch_system / "1.log").exists()


# ---------------------------------------------------------------- what is scanned


def test_planes(scan: Any, tmp_path: Path) -> None:
    code, _, _ = scan("--z-range", "9:41")
    assert code == 0
    labels = open_scan(tmp_path / "a.scan").labels()
    assert labels.volume.shape == (32, 52, 63)
    assert labels.volume.origin[0] == pytest.approx(scan_worker.ORIGIN[0] + 9 * scan_worker.VOXEL_SIZE)


def test_planes_are_exported_as_places_in_the_whole_volume(scan: Any, bench: Path, tmp_path: Path) -> None:
    assert scan("--z-range", "9:41")[0] == 0
    result, whole = open_scan(tmp_path / "a.scan"), open_volume(bench / "v.zarr")
    export_scan(result, hits=tmp_path / "h.star")
    export_scan(result, hits=tmp_path / "h.csv")
    star = starfile.read(tmp_path / "h.star")  # RELION counts from the centre of the tomogram
    centred = result.hits.positions - whole.origin - np.array(whole.shape) / 2 * whole.voxel_size
    for axis, wanted in zip("ZYX", centred.T, strict=True):
        np.testing.assert_allclose(star[f"rlnCenteredCoordinate{axis}Angst"], wanted, atol=1e-3)
    voxels = pd.read_csv(tmp_path / "h.csv")["z_voxel"]
    np.testing.assert_allclose(voxels, whole.to_index(result.hits.positions)[:, 0], atol=1e-3)


def test_mask(scan: Any, bench: Path, tmp_path: Path) -> None:
    code, answer, _ = scan("--mask", bench / "mask.mrc")
    assert code == 0
    assert 0 < answer["hits"] < 6
    assert (open_scan(tmp_path / "a.scan").hits.positions[:, 2] - scan_worker.ORIGIN[2] > 100).all()


def test_tiles_that_fail_end_in_exit_code_1_and_the_same_command_mends_them(
    scan: Any, bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    switch = tmp_path / "on"
    switch.touch()
    write_volume(scan_worker.bright_scene(), bench / "bright.zarr", overwrite=True)
    moody = scan_worker.Moody(switch, "raise", needs_mask=True)
    monkeypatch.setattr(cryoscan.datedb.build, "embedder_for", lambda db, **_: moody)
    monkeypatch.setattr(sys, "argv", [])
    (bench / "v.zarr").rename(bench / "dull.zarr")
    (bench / "bright.zarr").rename(bench / "v.zarr")
    try:
        code, answer, err = scan()
        assert code == 1
        assert len(answer["failed"]) > 0
        assert "warning: a tile failed: ValueError: it is too bright here" in err
        assert "tiles failed; the same command tries them again" in err
        switch.unlink()
        code, answer, _ = scan()
        assert (code, answer["failed"]) == (0, [])
    finally:
        (bench / "v.zarr").rename(bench / "bright.zarr")
        (bench / "dull.zarr").rename(bench / "v.zarr")


# ---------------------------------------------------------------- what would be done


def test_dry_run_says_what_is_needed_and_writes_nothing(scan: Any, tmp_path: Path) -> None:
    code, answer, err = scan("--dry-run", "--workers", 2)
    assert code == 0
    assert 10**8 < answer["memory_bytes"] < 10**11
    assert 10**4 < answer["disk_bytes"] < 10**8
    assert 0 < answer["seconds"] < 1000
    for start in ("memory     about ", "disk       at most ", "time       about ", "windows    8,000 of 48 Å"):
        assert f"\n{start}" in f"\n{err}"
    assert "for 2 workers" in err
    assert list(tmp_path.iterdir()) == []


def test_dry_run_shows_the_job_script(scan: Any, bench: Path) -> None:
    code, answer, err = scan("--dry-run", "--cluster", bench / "cluster.yaml")
    assert code == 0
    for line in (
        "#SBATCH -p short",
        "#SBATCH -A lab",
        "#SBATCH -t 00:07:00",
        "#SBATCH --gres=gpu:1",
        "#SBATCH --cpus-per-task=1",
        "module load cuda",
    ):
        assert f"\n{line}\n" in answer["job_script"]
    assert answer["job_script"] in err


def test_the_example_of_a_cluster_can_be_read() -> None:
    folder = Path(__file__).resolve().parents[2] / "configs" / "cluster"
    configs = [ClusterConfig.read(path) for path in folder.glob("*.yaml")]
    assert configs
    assert {config.kind for config in configs} == {"slurm"}


# ---------------------------------------------------------------- what cannot be done


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--shard 4/3", "expected a share such as 3/16; got '4/3'. Write --shard i/n with i from 1 to n"),
        ("--shard 0/3", "got '0/3'"),
        ("--shard 3", "got '3'"),
        ("--shard 1/2 --overwrite", "expected --shard without --overwrite; got both. Remove the earlier scan"),
        ("--z-range x", "expected planes such as 40:200; got 'x'. Write --z-range first:stop"),
        ("--z-range 9:3", "expected planes between 0 and 41; got 9:3. Give the first plane"),
        ("--z-range 9:42", "got 9:42"),
        ("--workers 2 --shard 1/2", "got --workers and --shard. Give one of them"),
        ("--mask thin.mrc", "got (40, 52, 63). Make it on the map it belongs to"),
        ("--mask nope.mrc", "nope.mrc"),
        ("--cluster nope.yaml", "nope.yaml"),
        ("--cluster scan.yaml", "Known keys"),
        ("--scheduler nonsense", "expected a dask scheduler at nonsense; got "),
        ("--scheduler foo://127.0.0.1:1", "expected a dask scheduler at foo://127.0.0.1:1; got "),
        ("--scheduler tcp://127.0.0.1:1", "expected a dask scheduler at tcp://127.0.0.1:1; got "),
    ],
)
def test_mistakes_end_in_a_sentence(
    scan: Any, bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, message: str
) -> None:
    monkeypatch.setattr(cryoscan.scan.executors, "_ANSWER", 1.0)
    monkeypatch.chdir(bench)
    code, answer, err = scan(*words.split())
    assert (code, answer) == (1, None)
    last = [line for line in err.splitlines() if line.startswith("cryoscan: ")]
    assert len(last) == 1
    assert message in last[0]
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_a_batch_system_that_is_not_there_is_said_in_a_sentence(
    scan: Any, bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, err = scan("--cluster", bench / "cluster_here.yaml")
    assert code == 1
    assert "cryoscan: expected to submit jobs with slurm; got [Errno 2] No such file or directory: 'sbatch'. Run" in err
    assert "Traceback" not in err


def test_a_batch_system_that_refuses_jobs_is_quoted(scan: Any, bench: Path, tmp_path: Path, batch_system: Path) -> None:
    (tmp_path / "bin" / "sbatch").write_text("#!/bin/bash\necho 'sbatch: error: invalid partition' >&2\nexit 1\n")
    code, _, err = scan("--cluster", bench / "cluster_here.yaml")
    assert code == 1
    assert "expected to submit jobs with slurm; got sbatch: error: invalid partition. Run this on a login node" in err
    assert "Traceback" not in err

"""`cryoscan batch`: one line for many volumes, given again until all are done."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import starfile
import torch

from cryoscan import Volume
from cryoscan.cli import main
from cryoscan.io import write_volume
from cryoscan.models.checkpoint import save_network
from cryoscan.models.cryosamu import CryoSamu, CryoSamuConfig
from cryoscan.provenance import Provenance
from cryoscan.scan import open_scan

DATA = Path(__file__).resolve().parents[1] / "data"


@pytest.fixture
def cryoscan(monkeypatch, capsys):
    """Run a command in this process: exit code, stdout, stderr."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["cryoscan", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        return end.value.code, out, err

    return run


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """A small database, and three volumes with something as large as a domain in noise."""
    folder = tmp_path_factory.mktemp("bench")
    words = ["datedb", "build", folder / "small.datedb", DATA / "ugly.pdb", DATA / "ugly.cif"]
    python(*words, "--labels", DATA / "domains.tsv")
    (folder / "in").mkdir()
    for number, name in enumerate("abc"):
        data = np.random.default_rng(number).normal(scale=0.02, size=(28, 31, 34)).astype(np.float32)
        z, y, x = np.indices(data.shape) - np.reshape((13, 14 + number, 17), (3, 1, 1, 1))
        data += 1 / (1 + np.exp(2 * (np.sqrt(z**2 + (y / 1.2) ** 2 + (x / 1.4) ** 2) - 6)))
        write_volume(Volume(data, 2.0, (10.0, -20.0, 300.0)), folder / "in" / f"{name}.mrc")
    (folder / "batch.yaml").write_text("scan: {tile_points: 3, min_score: 0.0, stride_voxels: 3, skip_flat: false}\n")
    return folder


def python(*words):
    done = subprocess.run(
        [sys.executable, "-m", "cryoscan", *map(str, words)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def words_for(bench, output, *more):
    common = ["--datedb", bench / "small.datedb", "--config", bench / "batch.yaml", "--resolution", "6"]
    return ["batch", bench / "in", "-o", output, *common, *more]


def test_one_line_scans_all_and_again_does_nothing(bench, cryoscan, tmp_path):
    output = tmp_path / "out"
    code, out, err = cryoscan(*words_for(bench, output, "--hits", tmp_path / "all.star", "--json"))
    assert code == 0, err
    said = json.loads(out)
    assert said["counts"] == {"done": 3}
    assert [row["name"] for row in said["volumes"]] == ["a", "b", "c"]
    assert said["hits"] == sum(row["hits"] for row in said["volumes"]) > 0
    assert len(starfile.read(tmp_path / "all.star", always_dict=True)["particles"]) == said["hits"]
    assert "a: 1 of 3" in err
    code, out, err = cryoscan(*words_for(bench, output, "--hits", tmp_path / "all.star"))
    assert code == 0, err
    assert "1 of" not in err
    assert "3 done" in out
    assert max(map(len, out.split("\n\n")[0].splitlines())) <= 100


def test_a_failed_volume_is_named_at_the_end_and_mended_by_the_same_line(bench, cryoscan, tmp_path):
    inputs = tmp_path / "in"
    inputs.mkdir()
    good = (bench / "in" / "a.mrc").read_bytes()
    (inputs / "a.mrc").write_bytes(good)
    (inputs / "cut.mrc").write_bytes(good[:5000])
    words = words_for(bench, tmp_path / "out")
    words[1] = inputs
    code, out, err = cryoscan(*words)
    assert code == 1
    assert "failed: cut: expected" in err
    assert "cut off: copy or download it again" in err.splitlines()[-1]
    assert "1 done, 1 failed" in out
    (inputs / "cut.mrc").write_bytes(good)
    code, out, err = cryoscan(*words)
    assert code == 0, err
    assert "2 done" in out


def test_a_dry_run_says_what_is_left_and_writes_nothing(bench, cryoscan, tmp_path):
    output = tmp_path / "out"
    code, out, err = cryoscan(*words_for(bench, output, "--dry-run", "--json"))
    assert code == 0, err
    said = json.loads(out)
    assert (said["counts"], said["totals"]["volumes"]) == ({"new": 3}, 3)
    assert said["totals"]["disk_bytes"] == sum(row["disk_bytes"] for row in said["volumes"]) > 0
    assert said["totals"]["seconds"] is None
    assert not output.exists()
    code, _, err = cryoscan(*words_for(bench, output, "--shard", "1/3"))
    assert code == 0, err
    code, out, err = cryoscan(*words_for(bench, output, "--dry-run"))
    assert code == 0, err
    assert "1 done, 2 new" in out
    assert "judged by the volumes that are done" in out


def test_ctrl_c_stops_and_the_same_line_goes_on(bench, cryoscan, tmp_path):
    output = tmp_path / "out"
    words = words_for(bench, output)
    with subprocess.Popen(
        [sys.executable, "-m", "cryoscan", *map(str, words)], stderr=subprocess.PIPE, text=True
    ) as run:
        until = time.monotonic() + 120
        while not list(output.glob("*.scan/tiles/*")) and run.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
        run.send_signal(signal.SIGINT)
        _, err = run.communicate(timeout=120)
    assert run.returncode == 130, err
    assert "give the same command again" in err
    assert "Traceback" not in err
    table = (output / "summary.csv").read_text()
    assert "unfinished" in table or "new" in table
    code, out, err = cryoscan(*words)
    assert code == 0, err
    assert "3 done" in out
    assert all(open_scan(path).is_complete for path in output.glob("*.scan"))


def test_a_batch_sharpens_if_it_is_told_to(bench, cryoscan, tmp_path):
    torch.manual_seed(0)
    network = CryoSamu(CryoSamuConfig(channels=(4, 8), residues=16, width=8, heads=2))
    save_network(network, tmp_path / "own.safetensors", provenance=Provenance("test"))
    words = words_for(bench, tmp_path / "out", "--enhancer", tmp_path / "own.safetensors")
    words[1] = bench / "in" / "a.mrc"
    code, _, err = cryoscan(*words)
    assert code == 1
    assert "--enhance as well" in err
    code, _, err = cryoscan(*words, "--enhance", "--dry-run")
    assert code == 0, err
    assert not (tmp_path / "out").exists()
    code, out, err = cryoscan(*words, "--enhance", "--json")
    assert code == 0, err
    assert json.loads(out)["counts"] == {"done": 1}
    assert open_scan(tmp_path / "out" / "a.scan").provenance.config["enhance"] is True


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["in", "-o", "out", "--enhance", "--enhancer", "none.safetensors"], "none.safetensors"),
        (["nowhere/*.mrc", "-o", "out"], "Check the pattern"),
        (["in", "-o", "out", "--shard", "4/3"], "from 1 to n"),
        (["in", "-o", "out", "--shard", "one"], "Write --shard i/n"),
        (["in", "-o", "out", "--naming", "{nr}"], "{stem}"),
        (["in", "-o", "out", "--hits", "hits.txt"], ".star or .csv"),
        (["in", "-o", "in/a.mrc"], "expected a folder"),
        (["in", "-o", "out", "--config", "wrong.yaml"], "Did you mean 'naming'"),
        (["in", "-o", "out", "--config", "wrong_scan.yaml"], "Did you mean 'stride_voxels'"),
    ],
)
def test_mistakes_end_in_a_sentence_before_anything_is_scanned(bench, cryoscan, monkeypatch, words, message):
    monkeypatch.chdir(bench)
    Path("wrong.yaml").write_text("namin: '{stem}'\n")
    Path("wrong_scan.yaml").write_text("scan: {stride_voxel: 3}\n")
    code, _, err = cryoscan("batch", *words, "--datedb", "small.datedb")
    assert code == 1
    assert message in err
    assert not Path("out").exists()

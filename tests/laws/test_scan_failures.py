"""Laws of failure: whatever is killed, full or changed, the scan says so, and its answer is the same in the end."""

import errno
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import distributed.protocol.pickle
import numpy as np
import pytest
import scan_worker
from scan_worker import Moody, bright_scene, moody_plan, plan_of, results

import cryoscan.preflight
import cryoscan.scan.executors
import cryoscan.scan.plan
import cryoscan.scan.tile
from cryoscan import Volume
from cryoscan.errors import ExistingOutputError, MismatchError, MissingFileError, ResourceError
from cryoscan.io import VolumeFile, write_volume
from cryoscan.scan import (
    PlacesNamed,
    ScanConfig,
    ScanFinished,
    TileDone,
    local_workers,
    open_scan,
    plan_scan,
    run_scan,
)
from cryoscan.scan.executors import Dask
from cryoscan.scan.folder import finished_tiles
from cryoscan.scan.tile import SCAN_TILE


@pytest.fixture(scope="module")
def volume() -> Volume:
    return scan_worker.scene()


@pytest.fixture(scope="module")
def undisturbed(volume: Volume, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """What scans give to which nothing happens."""
    folder = tmp_path_factory.mktemp("undisturbed")
    for kind in ("masked", "windows"):
        finished(run_scan(plan_of(kind, volume), folder / f"{kind}.scan"))
        finished(run_scan(plan_of(kind, bright_scene()), folder / f"bright {kind}.scan"))
    return {path.stem: results(path) for path in folder.iterdir()}


@pytest.fixture(scope="module")
def dask() -> Iterator[Dask]:
    with local_workers(2) as executor:
        yield executor


def finished(events) -> Path:
    *_, last = events
    assert isinstance(last, ScanFinished)
    return last.result.path


def failed_tiles(path: Path) -> set[int]:
    return {entry["tile"] for entry in open_scan(path).summary["failed"]}


# ---------------------------------------------------------------- tiles that fail


@pytest.mark.parametrize("kind", ["masked", "windows"])
def test_tiles_that_fail_are_reported_the_rest_is_done_and_the_next_run_tries_them_again(
    undisturbed: dict[str, dict[str, str]], tmp_path: Path, kind: str
) -> None:
    volume, switch = bright_scene(), tmp_path / "on"
    switch.touch()
    plan = moody_plan(volume, Moody(switch, "raise", needs_mask=kind == "masked"))
    *events, last = run_scan(plan, tmp_path / "a.scan")
    assert isinstance(last, ScanFinished)
    tiles = [event for event in events if isinstance(event, TileDone)]
    assert [event.done for event in tiles] == list(range(1, len(plan.tiling) + 1))
    errors = [event.error for event in tiles if event.error is not None]
    assert set(errors) == {"ValueError: it is too bright here"}
    failed = last.result.summary["failed"]
    assert 0 < len(failed) == len(errors) < len(plan.tiling) / 2
    assert {entry["reason"] for entry in failed} == set(errors)
    low, high = np.moveaxis(np.array([entry["centres_zyx_A"] for entry in failed]), -1, 0)
    bright = np.add(scan_worker.BRIGHT, volume.origin)
    assert ((low - 16 <= bright) & (bright <= high + 16)).all(axis=1).any()
    assert set(last.result.hits.names) == {"solid", "shell", "small"}

    switch.unlink()
    *events, last = run_scan(plan, tmp_path / "a.scan")
    assert sum(isinstance(event, TileDone) for event in events) == len(failed)
    assert isinstance(last, ScanFinished)
    assert last.result.summary["failed"] == []
    assert results(tmp_path / "a.scan") == undisturbed[f"bright {kind}"]


def test_nan_that_the_first_look_missed_fails_its_tiles_alone(
    volume: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cryoscan.preflight, "_SAMPLE", cryoscan.preflight._BLOCK**3)
    data = volume.load().copy()
    data[-3, -4, -2] = np.nan
    broken = Volume(data, volume.voxel_size, volume.origin)
    settings = {"contour": None, "tile_points": 4}  # the contour is found in what holds the NaN
    plan = plan_of("windows", broken, **settings)
    assert plan.contour == pytest.approx(plan_of("windows", volume, **settings).contour, rel=0.05)
    path = finished(run_scan(plan, tmp_path / "a.scan"))
    failed = open_scan(path).summary["failed"]
    assert 0 < len(failed) < len(plan.tiling) / 4
    assert all("NaN or infinity between" in entry["reason"] for entry in failed)
    assert len(open_scan(path).hits) >= 5  # one is close to it


@pytest.mark.parametrize("kind", ["masked", "windows"])
def test_places_that_fail_are_found_by_the_next_run(
    undisturbed: dict[str, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    calls = []

    def broken(*_):
        calls.append(1)
        raise RuntimeError("no place is found today")

    plan = plan_of(kind, bright_scene())
    with monkeypatch.context() as patch:
        patch.setattr(cryoscan.scan.finish, "find_places", broken)
        *events, last = run_scan(plan, tmp_path / "a.scan")
        assert sum(isinstance(event, PlacesNamed) for event in events) == len(calls) > 0
        assert isinstance(last, ScanFinished)
        assert len(last.result.summary["failed"]) == len(calls)
    finished(run_scan(plan, tmp_path / "a.scan"))
    assert results(tmp_path / "a.scan") == undisturbed[f"bright {kind}"]


def test_too_little_memory_for_a_tile_stops_the_scan_with_a_sentence(tmp_path: Path) -> None:
    switch = tmp_path / "on"
    switch.touch()
    plan = moody_plan(bright_scene(), Moody(switch, "memory"))
    with pytest.raises(ResourceError, match=r"enough memory for a tile; got no more of it\. Use smaller tiles"):
        list(run_scan(plan, tmp_path / "a.scan"))


# ---------------------------------------------------------------- workers that fail


def test_a_finished_tile_that_is_done_again_stays_as_it_is(volume: Volume, tmp_path: Path) -> None:
    plan = plan_of("windows", volume)
    path = finished(run_scan(plan, tmp_path / "a.scan"))
    number, report = next((n, r) for n, r in finished_tiles(plan, path).items() if r.windows)
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.is_file()}
    assert SCAN_TILE(plan, path, number) == report
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.is_file()} == before
    (path / "candidates" / f"{number}.npz").unlink()
    assert SCAN_TILE(plan, path, number).sizes == report.sizes  # one that is not whole is done again
    assert (path / "candidates" / f"{number}.npz").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mood", "reason"), [("memory", "MemoryError: no more of it"), ("die", "its worker died every time it was tried")]
)
def test_a_piece_that_takes_all_memory_is_tried_again_and_then_reported(
    dask: Dask, undisturbed: dict[str, dict[str, str]], tmp_path: Path, mood: str, reason: str
) -> None:
    switch = tmp_path / "on"
    switch.touch()
    plan = moody_plan(bright_scene(), Moody(switch, mood), tile_points=13)
    *_events, last = run_scan(plan, tmp_path / "a.scan", executor=dask)
    assert isinstance(last, ScanFinished)
    failed = last.result.summary["failed"]
    assert 0 < len(failed) < len(plan.tiling)
    assert all(entry["reason"].startswith(reason) for entry in failed)
    alone = {entry["tile"] for entry in failed}
    switch.unlink()
    (tmp_path / "on").touch()
    other = moody_plan(bright_scene(), Moody(switch, "raise"), tile_points=13)
    assert alone == failed_tiles(finished(run_scan(other, tmp_path / "b.scan")))  # those that are to blame, no others


@pytest.mark.slow
@pytest.mark.parametrize("mood", ["die", "hang"])
def test_a_worker_that_dies_or_hangs_costs_only_time(
    dask: Dask,
    undisturbed: dict[str, dict[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mood: str,
) -> None:
    monkeypatch.setattr(cryoscan.scan.executors, "_PATIENCE_FACTOR", 1.0)
    switch = tmp_path / "on"
    switch.touch()
    plan = moody_plan(bright_scene(), Moody(switch, mood, once=True))
    executor = Dask(dask._client, here=2, patience=20.0)
    path = finished(run_scan(plan, tmp_path / "a.scan", executor=executor))
    assert not switch.exists()
    assert results(path) == undisturbed["bright windows"]


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_only_time(
    volume: Volume, dask: Dask, undisturbed: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    events = run_scan(plan_of("masked", volume), tmp_path / "a.scan", executor=dask)
    list(islice(events, 2))
    os.kill(min(dask._client.run(os.getpid).values()), signal.SIGKILL)
    assert results(finished(events)) == undisturbed["masked"]


@pytest.mark.slow
def test_a_scan_whose_workers_have_all_gone_says_so(volume: Volume, tmp_path: Path) -> None:
    with (
        distributed.LocalCluster(n_workers=1, processes=False, dashboard_address=":0") as cluster,
        distributed.Client(cluster) as client,
    ):
        events = run_scan(plan_of("masked", volume), tmp_path / "a.scan", executor=Dask(client, patience=1.0))
        next(events)
        cluster.scale(0)
        with pytest.raises(ResourceError, match=r"expected workers until .*; got none any more\. See in their logs"):
            list(events)


# ---------------------------------------------------------------- the scan itself is killed


@pytest.mark.slow
def test_a_scan_that_is_killed_again_and_again_gives_the_same_answer(
    undisturbed: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 (shown where the test fails)
    rng = random.Random(seed)
    killed = 0
    while killed < 5:
        process = scan_worker.start("masked", tmp_path / "a.scan")
        begun = time.monotonic()
        progress = len(list(tmp_path.glob("a.scan/tiles/*")))
        while len(list(tmp_path.glob("a.scan/tiles/*"))) <= progress and process.is_alive():
            if time.monotonic() - begun > rng.uniform(0, 20):
                break
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
        if scan_worker.end(process) == 0:  # it was faster
            assert killed > 0
            break
        killed += 1
    else:
        assert scan_worker.end(scan_worker.start("masked", tmp_path / "a.scan")) == 0
    assert results(tmp_path / "a.scan") == undisturbed["masked"]


class Killed(BaseException):
    """In place of a signal that no process survives."""


@pytest.mark.parametrize("kind", ["masked", "windows"])
def test_a_scan_that_is_killed_before_any_of_its_last_steps_gives_the_same_answer(
    volume: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Each time it is killed just before the next of the calls that change what stands where."""
    plan = plan_of(kind, volume, tile_points=64)
    path, before = tmp_path / "a.scan", tmp_path / "before.scan"
    events = run_scan(plan, path)
    for event in events:
        if isinstance(event, PlacesNamed) and event.done == event.total:
            break
    events.close()  # type: ignore[attr-defined]
    shutil.copytree(path, before)
    answers, steps, killed = [], 0, True
    while killed:
        shutil.rmtree(path)
        shutil.copytree(before, path)
        with monkeypatch.context() as patch:
            die_after(steps, patch)
            try:
                killed = finished(run_scan(plan, path)) is None
            except Killed:
                steps += 1
        if not open_scan(path).is_complete:
            finished(run_scan(plan, path))
        answers.append(results(path))
    assert steps > 10
    assert [step for step, answer in enumerate(answers) if answer != answers[-1]] == []


def die_after(steps: int, patch: pytest.MonkeyPatch) -> None:
    """Let only so many renames and removals happen; the next one, and all that follow, do not."""
    count = [steps]

    def until_then(function):
        def call(*args, **kwargs):
            if str(args[0]).endswith(".partial"):  # chunks of arrays, of which there are many
                return function(*args, **kwargs)
            count[0] -= 1
            if count[0] < 0:
                raise Killed
            return function(*args, **kwargs)

        return call

    for owner, name in ((Path, "rename"), (Path, "replace"), (Path, "touch"), (shutil, "rmtree"), (Path, "unlink")):
        patch.setattr(owner, name, until_then(getattr(owner, name)))


# ---------------------------------------------------------------- the disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path | None]:
    """A disk of 4 MiB; None where nobody may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "cryoscan-test", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        yield None
        return
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def until_then(calls: int, error: OSError, function):
    """The function, until it has been called so often; then the error."""
    count = [calls]

    def call(*args, **kwargs):
        count[0] -= 1
        if count[0] < 0:
            raise error
        return function(*args, **kwargs)

    return call


def test_a_full_disk_stops_the_scan_and_with_space_again_it_goes_on(
    volume: Volume,
    undisturbed: dict[str, dict[str, str]],
    disk: Path | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = (disk or tmp_path) / "a.scan"
    plan = plan_of("masked", volume)
    events = run_scan(plan, path)
    list(islice(events, 3))
    if disk is None:
        full = until_then(0, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), cryoscan.scan.tile.write_lattice)
        monkeypatch.setattr(cryoscan.scan.tile, "write_lattice", full)
    else:
        (disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free))
    with pytest.raises(ResourceError, match=r"expected to write .*a\.scan; got No space left on device\. Free some"):
        list(events)
    assert not open_scan(path).is_complete
    monkeypatch.undo()
    (path.parent / "filler").unlink(missing_ok=True)
    assert results(finished(run_scan(plan, path))) == undisturbed["masked"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize(
    ("module", "name", "calls"), [("tile", "write_lattice", 3), ("finish", "write_places", 2), ("finish", "_paint", 0)]
)
def test_what_no_tile_can_mend_stops_the_scan_in_any_stage(
    volume: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, module: str, name: str, calls: int
) -> None:
    module = getattr(cryoscan.scan, module)
    broken = until_then(calls, OSError(code, os.strerror(code)), getattr(module, name))
    monkeypatch.setattr(module, name, broken)
    if name == "_paint":
        monkeypatch.setattr(module, "PAINT", replace(module.PAINT, process=broken))
    with pytest.raises(ResourceError, match=rf"expected to write .*; got {os.strerror(code)}\. Free some space"):
        list(run_scan(plan_of("masked", volume, tile_points=13), tmp_path / "a.scan"))
    assert not open_scan(tmp_path / "a.scan").is_complete


def test_a_disk_that_is_full_at_the_last_moment_is_said_too(
    volume: Volume, undisturbed: dict[str, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of("masked", volume)
    full = until_then(1, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), cryoscan.scan.finish.write_atomically)
    with monkeypatch.context() as patch:
        patch.setattr(cryoscan.scan.finish, "write_atomically", full)
        with pytest.raises(ResourceError, match="No space left on device"):
            list(run_scan(plan, tmp_path / "a.scan"))
    assert results(finished(run_scan(plan, tmp_path / "a.scan"))) == undisturbed["masked"]


def test_a_folder_that_cannot_be_made_is_said_in_a_sentence(volume: Volume, disk: Path | None, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    outputs = [tmp_path / "file" / "a.scan"]
    if disk is not None:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        outputs.append(disk / "a.scan")
    for output in outputs:
        with pytest.raises(ResourceError, match=r"expected to create the folder .*; got .*\. Check permissions"):
            list(run_scan(plan_of("masked", volume), output))


@pytest.mark.parametrize("stage", [TileDone, PlacesNamed])
def test_a_folder_that_vanishes_is_said_in_a_sentence(
    volume: Volume, undisturbed: dict[str, dict[str, str]], tmp_path: Path, stage: type
) -> None:
    plan = plan_of("masked", volume)
    events = run_scan(plan, tmp_path / "a.scan")
    assert any(isinstance(event, stage) for event in events)
    shutil.rmtree(tmp_path / "a.scan")
    with pytest.raises(ResourceError, match=r"a\.scan.* to stay .*; got none: somebody removed or renamed it"):
        list(events)
    assert not (tmp_path / "a.scan").exists()
    assert results(finished(run_scan(plan, tmp_path / "a.scan"))) == undisturbed["masked"]


# ---------------------------------------------------------------- two at once


@pytest.mark.parametrize(
    ("first", "second"), [(None, None), (None, (1, 2)), ((1, 2), None), (None, "overwrite"), ((2, 2), "overwrite")]
)
def test_a_second_scan_is_refused_and_the_first_unharmed(
    volume: Volume, undisturbed: dict[str, dict[str, str]], tmp_path: Path, first: object, second: object
) -> None:
    plan = plan_of("masked", volume)
    (tmp_path / "a.scan").mkdir()
    events = run_scan(plan, tmp_path / "a.scan", shard=first)  # type: ignore[arg-type]
    next(events)
    how = {"overwrite": True} if second == "overwrite" else {"shard": second}
    before = sorted(path for path in (tmp_path / "a.scan").rglob("*"))
    who = f"at work there \\(process {os.getpid()} on {socket.gethostname()}" + ("" if first is None else ", share")
    with pytest.raises(ExistingOutputError, match=f"{who}.*Wait for it, stop it, or choose another name"):
        list(run_scan(plan, tmp_path / "a.scan", **how))  # type: ignore[arg-type]
    assert sorted(path for path in (tmp_path / "a.scan").rglob("*")) == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.scan"]
    list(events)
    if first is not None:
        list(run_scan(plan, tmp_path / "a.scan", shard=(3 - first[0], 2)))  # type: ignore[index]
    assert results(tmp_path / "a.scan") == undisturbed["masked"]


def test_overwriting_starts_anew_but_replaces_nothing_else_than_scans(volume: Volume, tmp_path: Path) -> None:
    path = finished(run_scan(plan_of("masked", volume), tmp_path / "a.scan"))
    (path / "tiles" / "0").write_text("not looked at")
    again = plan_of("windows", volume)
    *events, last = run_scan(again, path, overwrite=True)
    assert isinstance(last, ScanFinished)
    assert sum(isinstance(event, TileDone) for event in events) == len(again.tiling)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.scan"]
    for manifest in (json.dumps({"format": "cryoscan datedb"}), "half a man", json.dumps([1])):
        (tmp_path / "b").mkdir(exist_ok=True)
        (tmp_path / "b" / "manifest.json").write_text(manifest)
        for overwrite in (True, False):
            with pytest.raises(ExistingOutputError, match="something else"):
                list(run_scan(again, tmp_path / "b", overwrite=overwrite))
        assert (tmp_path / "b" / "manifest.json").read_text() == manifest


# ---------------------------------------------------------------- what is broken on disk


def shorten(file: Path) -> None:
    content = file.read_bytes()
    assert content
    file.write_bytes(content[: len(content) // 2])


def of_another_scan(file: Path) -> None:
    with np.load(file) as stored:
        content = dict(stored)
    content["signature"] = content["signature"][::-1]
    content["vector"] = content["vector"][:, ::-1]
    np.savez(file, **content)


def damages(path: Path) -> list:
    """Ways in which a file of a scan, given by a pattern, may be damaged."""
    other = {"signature": "of another scan", "windows": 3, "seconds": 1.0, "sizes": [-1, -1, -1, -1]}
    marker = json.loads((path / "tiles" / "0").read_text())
    beyond = {**marker, "sizes": [1, 2, 3, 4]}
    return [
        *[(f"{array}/**/c/**/0", shorten) for array in ("score.zarr", "margin.zarr", "topk.zarr/scores")],
        ("score.zarr/**/c/**/1", lambda file: file.unlink()),
        ("topk.zarr/types/**/c/**/1", lambda file: file.write_bytes(b"")),
        ("tiles/3", shorten),
        ("tiles/4", lambda file: file.write_bytes(b"\xff\x00garbage")),
        ("tiles/5", lambda file: file.write_text("[1, 2]")),
        ("tiles/6", lambda file: file.write_text(json.dumps(other))),
        ("tiles/7", lambda file: file.write_text("")),
        ("tiles/8", lambda file: (file.parent / "999999").write_text(json.dumps(beyond))),
        ("tiles/8", lambda file: (file.parent / ".8.4711.part").write_text("{")),
        ("tiles/8", lambda file: (file.parent / "notes.txt").write_text("mine")),
        ("places/*.npz", shorten),
        ("places/?.npz", lambda file: file.write_bytes(b"")),
        ("places/??.npz", lambda file: file.write_bytes(b"PK\x03\x04" + bytes(100))),
        ("places/null.npz", of_another_scan),
        ("candidates/*.npz", shorten),
    ]


@pytest.mark.parametrize("kind", ["masked", "windows"])
def test_what_is_damaged_is_made_again(
    volume: Volume, undisturbed: dict[str, dict[str, str]], tmp_path: Path, kind: str
) -> None:
    plan = plan_of(kind, volume, min_score=None)
    whole = results(finished(run_scan(plan, tmp_path / "whole.scan")))
    path = tmp_path / "a.scan"
    shutil.copytree(tmp_path / "whole.scan", path)
    (path / "summary.json").unlink()
    damaged = 0
    for pattern, damage in damages(path):
        files = sorted(file for file in path.glob(pattern) if file.is_file())
        for file in files[:2]:
            damage(file)
            damaged += 1
    assert damaged > 20
    *events, _ = run_scan(plan, path)
    tiles = sum(isinstance(event, TileDone) for event in events)
    assert 5 < tiles < len(plan.tiling)
    again = results(path)
    assert {name for name in whole if whole[name] != again.get(name)} == set()


# ---------------------------------------------------------------- what changes meanwhile


def test_a_volume_that_changes_meanwhile_is_noticed_and_what_may_be_wrong_is_taken_back(
    volume: Volume, undisturbed: dict[str, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_volume(volume, tmp_path / "v.mrc")
    source = VolumeFile(tmp_path / "v.mrc")
    content = source.path.read_bytes()
    plan = plan_of("masked", source.open(), source=source)
    clock = [0.0]
    watch = cryoscan.scan.engine._Watch
    monkeypatch.setattr(
        cryoscan.scan.engine, "_Watch", lambda plan, result: watch(plan, result, clock=lambda: clock[0])
    )
    events = run_scan(plan, tmp_path / "a.scan")
    list(islice(events, 3))
    clock[0] += 60
    next(events)  # the volume was still the same
    source.path.write_bytes(content[:-4] + b"\x00\x00\x80\x3f")
    list(islice(events, 3))
    assert len(list((tmp_path / "a.scan" / "tiles").iterdir())) == 7
    clock[0] += 60
    with pytest.raises(MismatchError, match=r"v\.mrc to stay as it is while it is scanned; got a file that changed"):
        next(events)
    assert len(list((tmp_path / "a.scan" / "tiles").iterdir())) == 4
    source.path.write_bytes(content)
    *events, _ = run_scan(plan, tmp_path / "a.scan")
    assert sum(isinstance(event, TileDone) for event in events) == len(plan.tiling) - 4
    answer, wanted = results(tmp_path / "a.scan"), undisturbed["masked"]
    differ = {name for name in wanted if answer[name] != wanted[name]}
    assert all(name.startswith("places/") for name in differ)  # which say what they were made from


@pytest.mark.parametrize("stage", [TileDone, PlacesNamed])
def test_a_change_is_noticed_at_the_end_of_a_stage_at_the_latest(volume: Volume, tmp_path: Path, stage: type) -> None:
    write_volume(volume, tmp_path / "v.mrc")
    source = VolumeFile(tmp_path / "v.mrc")
    plan = plan_of("masked", source.open(), source=source)
    events = run_scan(plan, tmp_path / "a.scan")
    assert any(isinstance(event, stage) for event in events)
    source.path.write_bytes(source.path.read_bytes()[:-4] + b"\x00\x00\x80\x3f")
    with pytest.raises(MismatchError, match="got a file that changed"):
        list(events)
    folder = "tiles" if stage is TileDone else "places"
    assert list((tmp_path / "a.scan" / folder).iterdir()) == []


def test_a_datedb_that_was_replaced_is_not_opened(volume: Volume, tmp_path: Path) -> None:
    embedder = scan_worker.toy()
    db = scan_worker.database(embedder)
    config = ScanConfig.build(**scan_worker.SETTINGS)
    plan = plan_scan(volume, datedb=db.write(tmp_path / "a.datedb"), embedder=embedder, config=config)
    sent = distributed.protocol.pickle.dumps(plan)
    assert distributed.protocol.pickle.loads(sent).signature == plan.signature
    db.without_entries(["small"]).write(tmp_path / "a.datedb", overwrite=True)
    with pytest.raises(MismatchError, match=r"the DateDB with which the scan was planned; got another one in .*a\.dat"):
        distributed.protocol.pickle.loads(sent)


@pytest.mark.slow
def test_workers_that_open_something_else_stop_the_scan(volume: Volume, dask: Dask, tmp_path: Path) -> None:
    embedder = scan_worker.toy()
    db = scan_worker.database(embedder)
    config = ScanConfig.build(**scan_worker.SETTINGS)
    plan = plan_scan(volume, datedb=db.write(tmp_path / "a.datedb"), embedder=embedder, config=config)
    (tmp_path / "a.datedb").rename(tmp_path / "b.datedb")
    with pytest.raises(MissingFileError, match=r"a\.datedb"):
        list(run_scan(plan, tmp_path / "a.scan", executor=dask))
    db.without_entries(["small"]).write(tmp_path / "a.datedb")
    with pytest.raises(MismatchError, match="another one in"):
        list(run_scan(plan, tmp_path / "a.scan", executor=dask))


@pytest.mark.slow
@pytest.mark.parametrize("which", [slice(1), slice(1, 2), slice(2)])
def test_workers_of_another_version_stop_the_scan(volume: Volume, dask: Dask, tmp_path: Path, which: slice) -> None:
    """Whichever of the two has it, and whichever is asked first."""
    dask._client.wait_for_workers(2, timeout=60)
    workers = sorted(dask._client.run(os.getpid))[which]
    dask._client.run(scan_worker.pretend_version, "0.0.1", workers=workers)
    try:
        for number in range(3):
            plan = plan_of("masked", volume, min_score=0.5 + random.random() / 3)  # not one that a worker knows
            with pytest.raises(MismatchError, match=r"on every worker; got version 0\.0\.1\. Install the same version"):
                list(run_scan(plan, tmp_path / f"{number}.scan", executor=dask))
    finally:
        dask._client.run(scan_worker.pretend_version, None)

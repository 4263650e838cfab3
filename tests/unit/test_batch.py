"""Many volumes: which are meant, what is left of them, and that no failure, stop or second process loses anything."""

import csv
import json
from collections.abc import Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import starfile
import torch
from raw_mrc import raw_mrc

from cryoscan import Volume
from cryoscan.batch import (
    BatchConfig,
    BatchFinished,
    VolumeBusy,
    VolumeDone,
    VolumeFailed,
    VolumePlanned,
    VolumeProgress,
    VolumeSettings,
    VolumeStarted,
    find_volumes,
    plan_batch,
    preview_batch,
    read_rows,
    run_batch,
    seconds_per_A3,
    write_all_hits,
    write_summary,
)
from cryoscan.batch.record import read_record
from cryoscan.errors import ConfigError, ExistingOutputError, FormatError, MismatchError, MissingFileError
from cryoscan.io import open_volume, read_project, write_volume
from cryoscan.models.checkpoint import save_network
from cryoscan.models.cryosamu import CryoSamu, CryoSamuConfig
from cryoscan.provenance import Provenance
from cryoscan.scan import Journal, open_scan
from cryoscan.scan.folder import exclusive
from cryoscan.testing import ToyEmbedder, toy_datedb

ORIGIN = (-31.5, 12.25, 407.125)
SHAPE = (27, 33, 41)
VOXEL = 3.7
SETTINGS = {
    "stride_voxels": 2,
    "candidates": 2,
    "min_score": 0.5,
    "contour": 0.3,
    "resolution_A": 9.0,
    "tile_points": 9,
    "skip_flat": False,
}
EMBEDDER = ToyEmbedder(window=8, voxel_size=4.0)


def ball(shape: tuple[int, int, int], centre: Sequence[float], radius: float) -> np.ndarray:
    """A smooth ball, all in voxels."""
    grid = np.indices(shape) - np.reshape(centre, (3, 1, 1, 1))
    return (1 / (1 + np.exp(np.sqrt((grid**2).sum(axis=0)) - radius))).astype(np.float32)


DB = toy_datedb(
    EMBEDDER,
    {"ball": Volume(ball((8, 8, 8), (3.5, 3.5, 3.5), 2.5), 4.0), "grain": Volume(ball((8,) * 3, (3.5,) * 3, 0.5), 4.0)},
    bank=9.0,
)


def make(path: Path, *, seed: int = 0, voxel_size: float = VOXEL, negate: bool = False) -> Path:
    """A volume with two balls in noise, one near each end in z."""
    data = np.random.default_rng(seed).normal(scale=0.02, size=SHAPE).astype(np.float32)
    data += ball(SHAPE, (6, 10, 12 + seed), 2.7) + ball(SHAPE, (20, 22, 28), 2.7)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_volume(Volume(-data if negate else data, voxel_size, ORIGIN), path)
    return path


def config(**settings: object) -> BatchConfig:
    return BatchConfig.build(**{"scan": SETTINGS, **settings})


def plan(inputs, output: Path, **settings: object):
    inputs = inputs if isinstance(inputs, list) else [inputs]
    return plan_batch(inputs, output, datedb=DB, embedder=EMBEDDER, config=config(**settings))


def run(items, **options: object) -> BatchFinished:
    *_, last = run_batch(items, datedb=DB, embedder=EMBEDDER, **options)
    assert isinstance(last, BatchFinished)
    return last


def statuses(items) -> dict[str, str]:
    return {item.name: str(item.status) for item in items}


def names(inputs, **settings: object) -> list[str]:
    return [volume.name for volume in find_volumes(inputs, config=config(**settings))]


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.fixture
def three(tmp_path: Path) -> Path:
    for number, name in enumerate(("a", "b", "c")):
        make(tmp_path / "in" / f"{name}.mrc", seed=number)
    return tmp_path / "in"


# ---------------------------------------------------------------- which volumes


def test_files_patterns_and_folders_name_the_same_volumes_once(three):
    (three / "notes.txt").write_text("no volume")
    (three / ".hidden.mrc").write_text("")
    (three / "series.st").write_text("a tilt series")
    make(three / "d.zarr")
    assert names([three]) == ["a", "b", "c", "d"]
    assert names([three / "*.mrc"]) == ["a", "b", "c"]
    assert names([three.parent / "**" / "[ab].mrc"]) == ["a", "b"]
    assert names([three / "b.mrc", three, three.parent / "in" / ".." / "in" / "a.mrc"]) == ["b", "a", "c", "d"]


def test_patterns_do_not_look_into_scans_and_stores(three):
    make(three / "d.zarr")
    (three / "old.scan" / "score.zarr").mkdir(parents=True)
    (three / "d.zarr" / "inner.zarr").mkdir()
    assert names([three / "**" / "*.zarr"]) == ["d"]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (["in/*.rec"], r"in/\*.rec"),
        (["empty"], "For folders within folders give a pattern"),
        (["nowhere.yaml"], "nowhere.yaml"),
        ([], "no input"),
    ],
)
def test_finding_nothing_is_an_error(three, monkeypatch, inputs, message):
    monkeypatch.chdir(three.parent)
    (three.parent / "empty").mkdir()
    with pytest.raises(MissingFileError, match=message):
        names(inputs)


def test_a_text_list_has_paths_relative_to_itself(three):
    (three / "list.txt").write_text("# two of them\nc.mrc\n\n  ../in/a.mrc  \n# b.mrc\n")
    assert names([three / "list.txt"]) == ["c", "a"]


YAML_LIST = """
- path: a.mrc
  name: first
  voxel_size: 4.5
  contrast: dark
  resolution: 11
  z_range: [2, 20]
  mask: masks/{stem}.mrc
  scan: {min_score: 0.7}
- b.mrc
"""
CSV_LIST = (
    "path,name,voxel_size,contrast,resolution,z_range,mask\n"
    "a.mrc,first,4.5,dark,11,2:20,masks/{stem}.mrc\n# no\nb.mrc,,,,,,\n"
)


@pytest.mark.parametrize(
    ("ending", "text"), [("yaml", YAML_LIST), ("csv", CSV_LIST), ("tsv", CSV_LIST.replace(",", "\t"))]
)
def test_a_list_says_what_is_special_about_each_volume(three, ending, text):
    (three / f"list.{ending}").write_text(text)
    first, second = find_volumes([three / f"list.{ending}"], config=config(voxel_size=9.9))
    assert first.name == "first"
    assert first.settings == VolumeSettings(
        name="first",
        voxel_size=4.5,
        contrast="dark",
        resolution=11,
        z_range=(2, 20),
        mask=str(three / "masks" / "a.mrc"),
        scan={"min_score": 0.7} if ending == "yaml" else {},
    )
    assert (second.name, second.settings.voxel_size, second.settings.contrast) == ("b", 9.9, "bright")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.csv", "file,name\na.mrc,x\n", "column 'path'"),
        ("l.csv", "path,voxel_sise\na.mrc,3\n", r"line 2; got 'voxel_sise'. Did you mean 'voxel_size'"),
        ("l.csv", "path,voxel_size\na.mrc,three\n", "line 2; got 'three'"),
        ("l.csv", "path,name\na.mrc\n", "expected 2 values"),
        ("l.yaml", "scan: {}\n", "--config"),
        ("l.yaml", "- name: x\n", "entry 1"),
        ("l.yaml", "- path: a.mrc\n  scan: {min_scor: 1}\n", "Did you mean 'min_score'"),
        ("l.yaml", "- [", "syntax"),
        ("l.txt", "# nothing\n", "one path per line"),
    ],
)
def test_a_list_that_cannot_be_read_says_where(three, name, text, message):
    (three / name).write_text(text)
    with pytest.raises((FormatError, ConfigError), match=message):
        names([three / name])


def test_overrides_apply_to_what_their_pattern_fits_and_later_ones_win(three):
    overrides = {"*": {"resolution": 20, "scan": {"candidates": 3}}, "b*": {"resolution": 12, "contrast": "dark"}}
    a, b, _ = plan(three, three / "out", overrides=overrides)
    assert (a.config.resolution_A, a.config.candidates, a.file.contrast) == (20, 3, "bright")
    assert (b.config.resolution_A, b.config.candidates, b.file.contrast) == (12, 3, "dark")
    assert b.config.min_score == SETTINGS["min_score"]


def test_a_pattern_that_fits_nothing_is_refused(three):
    with pytest.raises(ConfigError, match=r"'x\*'"):
        plan(three, three / "out", overrides={"x*": {"contrast": "dark"}})


def test_two_volumes_of_one_name_are_refused_with_a_way_out(three):
    make(three / "more" / "a.mrc", seed=5)
    both = [three / "a.mrc", three / "more"]
    with pytest.raises(ConfigError, match=r"'a' for .*--naming"):
        names(both)
    assert names(both, naming="{folder}_{stem}") == ["in_a", "more_a"]
    with pytest.raises(ConfigError, match=r"\{stem\}, \{folder\}"):
        names(both, naming="{number}")
    (three / "slabs.yaml").write_text("- {path: a.mrc, z_range: '0:9'}\n- {path: a.mrc, z_range: '9:20'}\n")
    with pytest.raises(ConfigError, match="with other settings"):
        names([three / "slabs.yaml"])


def test_names_hold_no_blanks(three):
    make(three / "tomo 1 (rec).mrc")
    assert names([three / "tomo 1 (rec).mrc"]) == ["tomo_1_rec_"]


# ---------------------------------------------------------------- projects


@pytest.fixture
def copick(tmp_path: Path) -> Path:
    """Two roots; run 1 has two types and two spacings, run 2 one tomogram in the static root, run 3 none."""
    static, overlay = tmp_path / "static" / "ExperimentRuns", tmp_path / "overlay" / "ExperimentRuns"
    make(overlay / "TS_1" / "VoxelSpacing3.700" / "wbp.zarr", seed=1)
    make(overlay / "TS_1" / "VoxelSpacing3.700" / "denoised.zarr", seed=2)
    make(overlay / "TS_1" / "VoxelSpacing7.400" / "wbp.zarr", seed=3, voxel_size=7.4)
    (overlay / "TS_1" / "VoxelSpacing3.700" / "wbp_embedding_features.zarr").mkdir()
    (overlay / "TS_1" / "Picks").mkdir()
    make(static / "TS_1" / "VoxelSpacing3.700" / "wbp.zarr", seed=9)
    make(static / "TS_2" / "VoxelSpacing3.700" / "wbp.zarr", seed=4)
    (static / "TS_3").mkdir()
    roots = {"overlay_root": f"local://{tmp_path}/overlay/", "static_root": f"local://{tmp_path}/static"}
    (tmp_path / "config.json").write_text(json.dumps({"config_type": "filesystem", **roots}))
    return tmp_path / "config.json"


def test_a_copick_project_gives_one_tomogram_per_run(copick, tmp_path):
    first, second, none = find_volumes([copick], config=config(voxel_spacing=3.7, tomogram="wbp"))
    assert [first.name, second.name, none.name] == ["TS_1", "TS_2", "TS_3"]
    assert first.path == tmp_path / "overlay/ExperimentRuns/TS_1/VoxelSpacing3.700/wbp.zarr"  # not the static one
    assert "static" in second.path.parts
    assert (first.folder_voxel_size, none.missing != "") == (3.7, True)
    assert names([tmp_path / "overlay"], tomogram="den*") == ["TS_1"]
    assert {t.tomogram for t in read_project(copick).tomograms} == {"wbp", "denoised"}


@pytest.mark.parametrize("chosen", [{}, {"tomogram": "wbp"}, {"voxel_spacing": 3.7}])
def test_several_tomograms_of_a_run_must_be_chosen_from(copick, chosen):
    with pytest.raises(ConfigError, match=r"wbp at 3.7 Å.* in run TS_1 .*--voxel-spacing and --tomogram"):
        names([copick], **chosen)


@pytest.mark.parametrize("chosen", [{"tomogram": "sirt"}, {"voxel_spacing": 3.8}])
def test_a_tomogram_that_no_run_has_is_refused_with_those_there_are(copick, chosen):
    with pytest.raises(ConfigError, match=r"denoised at 3\.7 Å, wbp at 3\.7 Å, wbp at 7\.4 Å"):
        names([copick], **chosen)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"overlay_root": "s3://bucket/x"}', "Mount or download"),
        ('{"overlay_root": "local:///no/such/place"}', "no such folder"),
        ('{"config_type": "filesystem"}', "without 'overlay_root'"),
        ("[", "no JSON"),
    ],
)
def test_a_copick_configuration_that_cannot_be_used_says_why(tmp_path, text, message):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises((FormatError, MissingFileError), match=message):
        names([tmp_path / "c.json"])


def test_a_run_without_tomogram_is_in_the_table_and_is_no_failure(copick, tmp_path):
    items = plan(copick, tmp_path / "out", voxel_spacing=3.7, tomogram="wbp")
    assert statuses(items) == {"TS_1": "new", "TS_2": "new", "TS_3": "missing"}
    end = run(items)
    assert end.failed == {}
    assert [(row.name, row.status) for row in end.rows] == [("TS_1", "done"), ("TS_2", "done"), ("TS_3", "missing")]


@pytest.mark.parametrize("depth", ["", "10000", "10000/TS_1"])
def test_the_portal_layout_is_read_from_any_of_its_folders(tmp_path, depth):
    root = tmp_path / "portal"
    for dataset, run_ in (("10000", "TS_1"), ("10000", "TS_2"), ("10001", "TS_1")):
        place = root / dataset / run_ / "Reconstructions" / "VoxelSpacing3.700"
        make(place / "Tomograms" / "100" / f"{run_}.mrc")
        make(place / "Tomograms" / "100" / f"{run_}.zarr")
        make(place / "Annotations" / "101" / "ribosome_segmentationmask.mrc")
    make(root / "10000" / "TS_1" / "Reconstructions" / "VoxelSpacing3.700" / "Tomograms" / "200" / "TS_1.mrc")
    found = find_volumes([root / depth], config=config(tomogram="100", naming="{dataset}_{run}"))
    expected = {"": ["10000_TS_1", "10000_TS_2", "10001_TS_1"], "10000": ["10000_TS_1", "10000_TS_2"]}
    assert [volume.name for volume in found] == expected.get(depth, ["10000_TS_1"])
    assert all(volume.path.suffix == ".zarr" for volume in found)


# ---------------------------------------------------------------- headers


def test_the_folder_gives_a_voxel_size_where_the_header_has_none(tmp_path):
    place = tmp_path / "TS_1" / "Reconstructions" / "VoxelSpacing3.700" / "Tomograms" / "100"
    place.mkdir(parents=True)
    (place / "TS_1.mrc").write_bytes(raw_mrc(np.ones((5, 6, 7), np.float32), voxel_size=0))
    (item,) = plan(tmp_path / "TS_1", tmp_path / "out")
    assert (item.grid.voxel_size, item.file.open().voxel_size) == (3.7, 3.7)
    assert "3.7 Å of the folder's name are used" in item.warnings[0]


@pytest.mark.parametrize(("header", "warned"), [(3.7, False), (3.73, False), (3.75, True), (7.4, True)])
def test_a_header_that_disagrees_with_its_folder_by_more_than_a_hundredth_is_pointed_out(tmp_path, header, warned):
    place = tmp_path / "TS_1" / "Reconstructions" / "VoxelSpacing3.700" / "Tomograms" / "100"
    make(place / "TS_1.mrc", voxel_size=header)
    (item,) = plan(tmp_path / "TS_1", tmp_path / "out")
    assert item.grid.voxel_size == pytest.approx(header)
    assert [f"{header:g} Å is used" in warning for warning in item.warnings] == [True] * warned


def test_a_volume_that_cannot_be_opened_is_told_from_the_plan(three, tmp_path):
    (three / "text.mrc").write_text("This is no map." * 100)
    (three / "unset.mrc").write_bytes(raw_mrc(np.ones((5, 6, 7), np.float32), voxel_size=0))
    (three / "list.txt").write_text("a.mrc\ntext.mrc\nunset.mrc\ngone.mrc\nb.mrc\n")
    items = plan(three / "list.txt", tmp_path / "out")
    assert statuses(items) == {"a": "new", "text": "failed", "unset": "failed", "gone": "failed", "b": "new"}
    reasons = {item.name: item.reason for item in items}
    assert "make no sense as a header" in reasons["text"]
    assert "--voxel-size" in reasons["unset"]
    assert "no such file" in reasons["gone"]
    assert not (tmp_path / "out").exists()


def test_planes_outside_of_the_volume_are_a_failure_of_that_volume(three, tmp_path):
    items = plan(three, tmp_path / "out", overrides={"a": {"z_range": [20, 99]}})
    assert statuses(items) == {"a": "failed", "b": "new", "c": "new"}
    assert "between 0 and 27" in items[0].reason


def test_another_embedder_is_refused_once_and_not_for_every_volume(three, tmp_path):
    with pytest.raises(MismatchError, match="matching embedder"):
        plan_batch([three], tmp_path / "out", datedb=DB, embedder=ToyEmbedder(window=10), config=config())


# ---------------------------------------------------------------- running


def test_every_volume_is_scanned_once_and_the_same_call_then_does_nothing(three, tmp_path):
    output = tmp_path / "deep" / "out"
    events = list(run_batch(plan(three, output), datedb=DB, embedder=EMBEDDER))
    assert [e.name for e in events if isinstance(e, VolumeStarted)] == ["a", "b", "c"]
    assert [e.name for e in events if isinstance(e, VolumePlanned)] == ["a", "b", "c"]
    progress = [e for e in events if isinstance(e, VolumeProgress)]
    assert {e.name for e in progress} == {"a", "b", "c"}
    assert all(0 <= e.done <= e.total and e.stage.startswith(f"{e.name}: ") for e in progress)
    assert all(e.result.is_complete for e in events if isinstance(e, VolumeDone))
    stamps = {path: path.stat().st_mtime_ns for path in output.glob("*.scan/summary.json")}
    assert len(stamps) == 3
    again = plan(three, output)
    assert set(statuses(again).values()) == {"done"}
    assert [type(e) for e in run_batch(again, datedb=DB, embedder=EMBEDDER)] == [BatchFinished]
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}


def test_the_scans_of_a_batch_are_those_of_single_scans(three, tmp_path):
    from cryoscan.workflows import scan_tomogram

    (item, *_) = items = plan(three, tmp_path / "out")
    run(items)
    *_, end = scan_tomogram(
        open_volume(three / "a.mrc"), tmp_path / "one.scan", datedb=DB, embedder=EMBEDDER, config=item.config
    )
    batch, single = open_scan(item.output).hits, end.result.hits
    assert len(single) == 2
    assert np.array_equal(batch.positions, single.positions)
    assert batch.types == single.types


def test_one_bad_volume_does_not_stop_the_others_and_is_tried_again(three, tmp_path):
    output = tmp_path / "out"
    good = (three / "b.mrc").read_bytes()
    data = open_volume(three / "b.mrc").load().copy()
    data[3, 4, 5] = np.nan
    (three / "b.mrc").write_bytes(raw_mrc(data, voxel_size=VOXEL))
    (three / "a.mrc").write_bytes(good[:2000])
    end = run(plan(three, output))
    assert {row.name: row.status for row in end.rows} == {"a": "failed", "b": "failed", "c": "done"}
    assert set(end.failed) == {"a", "b"}
    assert "cut off" in end.failed["a"]
    assert "NaN" in end.failed["b"]
    (three / "b.mrc").write_bytes(good)
    end = run(plan(three, output))
    assert {row.name: row.status for row in end.rows} == {"a": "failed", "b": "done", "c": "done"}
    assert [row.error == "" for row in end.rows] == [False, True, True]


def test_a_volume_of_which_a_part_failed_is_not_done(three, tmp_path, monkeypatch):
    from cryoscan.datedb import DateDB

    search, calls = DateDB.assign, []

    def failing_once(self, *words, **options):
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("a hiccup of the disk")
        return search(self, *words, **options)

    monkeypatch.setattr(DateDB, "assign", failing_once)
    end = run(plan(three / "a.mrc", tmp_path / "out"))
    assert end.rows[0].status == "failed"
    assert "a hiccup of the disk" in end.failed["a"]
    assert statuses(plan(three / "a.mrc", tmp_path / "out")) == {"a": "failed"}
    end = run(plan(three / "a.mrc", tmp_path / "out"))
    assert (end.failed, end.rows[0].status) == ({}, "done")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), MemoryError(), IndexError("list index")])
def test_no_error_of_one_volume_stops_the_batch(three, tmp_path, monkeypatch, error):
    from cryoscan.batch import run as module

    def failing(volume, path, **options):
        if path.name == "b.scan":
            raise error
        return module_scan(volume, path, **options)

    module_scan = module.scan_tomogram
    monkeypatch.setattr(module, "scan_tomogram", failing)
    end = run(plan(three, tmp_path / "out"))
    assert {row.name: row.status for row in end.rows} == {"a": "done", "b": "failed", "c": "done"}
    assert end.failed["b"]


def test_a_stopped_batch_goes_on_and_ends_like_an_uninterrupted_one(three, tmp_path):
    run(plan(three, tmp_path / "whole"))
    with closing(run_batch(plan(three, tmp_path / "part"), datedb=DB, embedder=EMBEDDER)) as events:
        next(event for event in events if isinstance(event, VolumeProgress) and event.name == "b")
    rows = {row["name"]: row for row in table(tmp_path / "part" / "summary.csv")}
    assert [rows[name]["status"] for name in "abc"] == ["done", "unfinished", "new"]
    assert read_record(tmp_path / "part" / "b.scan").seconds > 0
    left = plan(three, tmp_path / "part")
    assert statuses(left) == {"a": "done", "b": "unfinished", "c": "new"}
    rest = list(run_batch(left, datedb=DB, embedder=EMBEDDER))
    assert [e.name for e in rest if isinstance(e, VolumeStarted)] == ["b", "c"]
    for name in "abc":
        one, two = (open_scan(tmp_path / folder / f"{name}.scan").hits for folder in ("whole", "part"))
        assert np.array_equal(one.positions, two.positions)


def test_ctrl_c_leaves_a_table_and_reaches_the_caller(three, tmp_path, monkeypatch):
    from cryoscan.batch import run as module

    def interrupted(volume, path, **options):
        events = module_scan(volume, path, **options)
        yield from islice(events, 2)
        if path.name == "b.scan":
            raise KeyboardInterrupt
        yield from events

    module_scan = module.scan_tomogram
    monkeypatch.setattr(module, "scan_tomogram", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(plan(three, tmp_path / "out"))
    rows = read_rows(tmp_path / "out", plan(three, tmp_path / "out"))
    assert [row.status for row in rows] == ["done", "unfinished", "new"]
    written = table(tmp_path / "out" / "summary.csv")
    assert [row["status"] for row in written] == ["done", "unfinished", "new"]


# ---------------------------------------------------------------- what has changed


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"scan": {**SETTINGS, "stride_voxels": 3}}, "'stride_voxels': 2 before, 3 now"),
        ({"contrast": "dark"}, "'contrast': 'bright' before, 'dark' now"),
        ({"voxel_size": 3.9}, "'voxel_size': 3.7 before, 3.9 now"),
        ({"overrides": {"*": {"z_range": [0, 20]}}}, "'z_range'"),
    ],
)
def test_changed_settings_are_told_and_nothing_is_lost_unless_asked_for(three, tmp_path, settings, reason):
    run(plan(three / "a.mrc", tmp_path / "out"))
    before = open_scan(tmp_path / "out" / "a.scan").hits.positions
    (item,) = plan(three / "a.mrc", tmp_path / "out", **settings)
    assert item.status == "changed"
    assert reason in item.reason
    end = run([item])
    assert "--overwrite" in end.failed["a"]
    assert end.rows[0].status == "changed"
    assert np.array_equal(open_scan(tmp_path / "out" / "a.scan").hits.positions, before)
    end = run([item], overwrite=True)
    assert (end.failed, end.rows[0].status) == ({}, "done")
    assert statuses(plan(three / "a.mrc", tmp_path / "out", **settings)) == {"a": "done"}


def network(path: Path, *, seed: int) -> Path:
    """A small network that sharpens."""
    torch.manual_seed(seed)
    small = CryoSamu(CryoSamuConfig(channels=(4, 8), residues=16, width=8, heads=2, voxel_size_A=4.3))
    torch.nn.init.normal_(small.head.weight, std=0.06)
    save_network(small, path, provenance=Provenance("test"))
    return path


def test_volumes_are_sharpened_with_the_network_that_was_given_and_no_other_goes_on(three, tmp_path):
    """By an override only one of two volumes is sharpened; the other does not mind which network."""
    first, other = (network(tmp_path / f"{seed}.safetensors", seed=seed) for seed in (1, 2))
    wanted = [three / "a.mrc", three / "b.mrc"]

    def planned(enhancer, **settings):
        how = config(**{"overrides": {"a": {"scan": {"enhance": True}}}, **settings})
        return plan_batch(wanted, tmp_path / "out", datedb=DB, embedder=EMBEDDER, config=how, enhancer=enhancer)

    assert [item.enhancer for item in planned(first)] == [first, None]
    assert run(planned(first)).failed == {}
    made_by = [open_scan(tmp_path / "out" / f"{name}.scan").provenance.inputs for name in "ab"]
    assert [made.get("enhancer") is not None for made in made_by] == [True, False]
    assert "changed the label of" in open_scan(tmp_path / "out" / "a.scan").summary["verdict"]
    assert statuses(planned(first)) == {"a": "done", "b": "done"}
    again = first.rename(tmp_path / "renamed.safetensors")
    assert statuses(planned(again)) == {"a": "done", "b": "done"}
    items = planned(other)
    assert statuses(items) == {"a": "changed", "b": "done"}
    assert "'enhancer' is not the same" in items[0].reason
    assert "--overwrite" in run(items).failed["a"]
    assert run(items, overwrite=True).failed == {}
    now = open_scan(tmp_path / "out" / "a.scan").provenance.inputs["enhancer"]
    assert now not in (None, made_by[0]["enhancer"])


def test_a_stopped_batch_goes_on_only_with_the_same_network(three, tmp_path):
    first, other = (network(tmp_path / f"{seed}.safetensors", seed=seed) for seed in (1, 2))

    def planned(enhancer):
        how = config(scan={**SETTINGS, "enhance": True})
        given = {"datedb": DB, "embedder": EMBEDDER, "config": how}
        return plan_batch([three / "a.mrc"], tmp_path / "out", enhancer=enhancer, **given)

    stop_at(planned(first), VolumeProgress)
    assert statuses(planned(first)) == {"a": "unfinished"}
    assert "enhancer" in run(planned(other)).failed["a"]
    assert run(planned(first)).failed == {}


def test_a_network_without_anything_to_sharpen_or_that_is_not_there_is_refused_at_once(three, tmp_path):
    given = {"datedb": DB, "embedder": EMBEDDER}
    with pytest.raises(ConfigError, match="--enhance as well"):
        plan_batch(
            [three], tmp_path / "out", config=config(), enhancer=network(tmp_path / "n.safetensors", seed=1), **given
        )
    sharpened = config(scan={**SETTINGS, "enhance": True})
    with pytest.raises(MissingFileError):
        plan_batch([three], tmp_path / "out", config=sharpened, enhancer=tmp_path / "gone.safetensors", **given)


def test_overwrite_leaves_alone_what_has_not_changed(three, tmp_path):
    run(plan(three, tmp_path / "out"))
    stamp = (tmp_path / "out" / "a.scan" / "summary.json").stat().st_mtime_ns
    items = plan(three, tmp_path / "out", overrides={"b": {"scan": {"stride_voxels": 3}}})
    assert statuses(items) == {"a": "done", "b": "changed", "c": "done"}
    assert run(items, overwrite=True).failed == {}
    assert (tmp_path / "out" / "a.scan" / "summary.json").stat().st_mtime_ns == stamp
    assert open_scan(tmp_path / "out" / "b.scan").provenance.config["stride_voxels"] == 3


def stop_at(items, kind: type, **options: object) -> None:
    """Run until the first event of a kind, and stop there."""
    with closing(run_batch(items, datedb=DB, embedder=EMBEDDER, **options)) as events:
        for event in events:
            if isinstance(event, kind):
                return
    raise AssertionError(f"no {kind.__name__}")


def test_a_stopped_overwrite_goes_on_and_does_not_start_anew_again(three, tmp_path):
    run(plan(three / "a.mrc", tmp_path / "out"))
    again = {"scan": {**SETTINGS, "stride_voxels": 3}}
    stop_at(plan(three / "a.mrc", tmp_path / "out", **again), VolumeProgress, overwrite=True)
    tiles = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "a.scan" / "tiles").iterdir()}
    (item,) = plan(three / "a.mrc", tmp_path / "out", **again)
    assert (item.status, len(tiles)) == ("unfinished", 1)
    run([item], overwrite=True)
    assert tiles == {path: path.stat().st_mtime_ns for path in tiles}


def test_what_was_stopped_before_it_replaced_the_old_scan_is_not_taken_for_done(three, tmp_path):
    run(plan(three / "a.mrc", tmp_path / "out"))
    again = {"scan": {**SETTINGS, "stride_voxels": 3}}
    stop_at(plan(three / "a.mrc", tmp_path / "out", **again), VolumePlanned, overwrite=True)
    assert statuses(plan(three / "a.mrc", tmp_path / "out", **again)) == {"a": "changed"}
    assert statuses(plan(three / "a.mrc", tmp_path / "out")) == {"a": "done"}


def test_a_volume_that_was_replaced_has_changed_and_one_that_is_gone_stays_done(three, tmp_path):
    run(plan(three, tmp_path / "out"))
    make(three / "new.mrc", seed=7).replace(three / "a.mrc")
    (three / "b.mrc").unlink()
    (three / "list.txt").write_text("a.mrc\nb.mrc\nc.mrc\n")
    items = plan(three / "list.txt", tmp_path / "out")
    assert statuses(items) == {"a": "changed", "b": "done", "c": "done"}
    assert "input 'volume'" in items[0].reason


# ---------------------------------------------------------------- single volumes


def test_a_slab_finds_what_is_in_it_where_the_whole_volume_has_it(three, tmp_path):
    items = plan(three / "a.mrc", tmp_path / "out")
    whole = run(items) and open_scan(items[0].output).hits
    (item,) = plan(three / "a.mrc", tmp_path / "slab", overrides={"a": {"z_range": "12:27"}})
    end = run([item])
    slab = open_scan(item.output).hits
    assert (len(whole), len(slab)) == (2, 1)
    assert end.rows[0].shape_zyx == (15, *SHAPE[1:])
    nearest = np.abs(whole.positions - slab.positions[0]).max(axis=1).min()
    assert nearest < VOXEL
    assert slab.positions[0] == pytest.approx(np.array(ORIGIN) + np.array((20, 22, 28)) * VOXEL, abs=2 * VOXEL)


def test_nothing_is_found_outside_of_a_mask(three, tmp_path):
    mask = np.zeros(SHAPE, np.float32)
    mask[13:] = 1
    (three / "masks").mkdir()
    write_volume(Volume(mask, VOXEL, ORIGIN), three / "masks" / "a_mask.mrc")
    masked = {"a": {"mask": str(three / "masks" / "{stem}_mask.mrc")}}
    for settings, expected in (({}, 2), ({"overrides": masked}, 1)):
        (item,) = plan(three / "a.mrc", tmp_path / f"out{expected}", **settings)
        assert run([item]).failed == {}
        assert len(open_scan(item.output).hits) == expected
    assert open_scan(item.output).hits.positions[0, 0] > ORIGIN[0] + 13 * VOXEL


def test_dark_volumes_are_found_with_the_right_contrast(tmp_path):
    make(tmp_path / "dark.mrc", negate=True)
    (item,) = plan(tmp_path / "dark.mrc", tmp_path / "out", contrast="dark")
    assert run([item]).rows[0].hits == 2


# ---------------------------------------------------------------- several processes


def test_shards_share_the_volumes_and_add_up_to_one_table(three, tmp_path):
    make(three / "d.mrc", seed=3)
    for shard, mine in (((1, 2), ["a", "c"]), ((2, 2), ["b", "d"])):
        events = list(run_batch(plan(three, tmp_path / "out"), datedb=DB, embedder=EMBEDDER, shard=shard))
        assert [e.name for e in events if isinstance(e, VolumeDone)] == mine
    assert [row.status for row in read_rows(tmp_path / "out")] == ["done"] * 4
    written = table(tmp_path / "out" / "summary.csv")
    assert [row["name"] for row in written] == ["a", "b", "c", "d"]


@pytest.mark.parametrize("shard", [(0, 2), (3, 2), (1, 0)])
def test_a_shard_that_does_not_exist_is_refused(three, tmp_path, shard):
    with pytest.raises(ConfigError, match="from 1 to n"):
        run(plan(three, tmp_path / "out"), shard=shard)


def test_a_volume_that_another_process_scans_is_left_to_it(three, tmp_path):
    items = plan(three, tmp_path / "out")
    stop_at(items[1:2], VolumeProgress)
    with exclusive(tmp_path / "out" / "b.scan"):
        found = list(run_batch(plan(three, tmp_path / "out"), datedb=DB, embedder=EMBEDDER))
    assert [e.name for e in found if isinstance(e, VolumeBusy)] == ["b"]
    assert not [e for e in found if isinstance(e, VolumeFailed)]
    assert [row.status for row in found[-1].rows] == ["done", "unfinished", "done"]


def test_what_another_process_has_done_since_the_plan_is_not_done_again(three, tmp_path):
    early = plan(three, tmp_path / "out")
    run(plan(three, tmp_path / "out"))
    events = list(run_batch(early, datedb=DB, embedder=EMBEDDER))
    assert not [e for e in events if isinstance(e, VolumePlanned)]
    assert [e.name for e in events if isinstance(e, VolumeDone)] == ["a", "b", "c"]


# ---------------------------------------------------------------- table, hits, preview


def test_the_table_says_what_the_scans_say(three, tmp_path):
    output = tmp_path / "out"
    run(plan(three / "a.mrc", output))
    end = run(plan(three / "b.mrc", output))  # the first one stays in the table
    assert {row.name for row in end.rows} == {"a", "b"}
    for row in table(output / "summary.csv"):
        result = open_scan(output / f"{row['name']}.scan")
        assert int(row["hits"]) == len(result.hits) == 2
        assert int(row["types"]) == len(set(result.hits.types))
        assert int(row["windows"]) == result.summary["windows"] > 0
        assert row["shape_zyx"] == "27 33 41"
        assert float(row["voxel_size_A"]) == VOXEL
        assert Path(row["path"]) == three / f"{row['name']}.mrc"
        assert float(row["seconds"]) > 0
        assert row["warnings"] == " | ".join(result.summary["warnings"])
        assert row["error"] == ""
    assert seconds_per_A3(end.rows) == pytest.approx(
        sum(row.seconds for row in end.rows) / (2 * np.prod(SHAPE) * VOXEL**3)
    )


def test_the_last_table_has_seen_what_others_wrote_while_it_was_made(three, tmp_path, monkeypatch):
    from cryoscan.batch import table as module

    items = plan(three, tmp_path / "out")
    run(items[:1])
    write, others = module.write_atomically, [items[1:2]]

    def slowly(path: Path, text: str) -> None:
        while others:
            run(others.pop())
        write(path, text)

    monkeypatch.setattr(module, "write_atomically", slowly)
    write_summary(tmp_path / "out", items)
    assert [row["status"] for row in table(tmp_path / "out" / "summary.csv")] == ["done", "done", "new"]


def test_scans_made_by_themselves_or_damaged_or_of_another_version_are_rows_too(three, tmp_path):
    output = tmp_path / "out"
    run(plan(three, output))
    (output / "batch" / "a.json").unlink()
    (output / "b.scan" / "manifest.json").write_text("{")
    (output / "c.scan" / "manifest.json").write_text('{"format": "cryoscan scan", "format_version": 1}')
    items = plan(three, output)
    assert statuses(items) == {"a": "done", "b": "changed", "c": "changed"}
    end = run(items, overwrite=True)
    assert [row.status for row in end.rows] == ["done", "failed", "done"]
    assert "something else" in end.failed["b"]  # what is no scan is never replaced
    assert (output / "b.scan" / "summary.json").is_file()
    assert "no readable manifest" in end.rows[1].error


def test_all_hits_are_in_one_file_with_the_names_of_their_volumes(three, tmp_path):
    output = tmp_path / "out"
    items = plan([three / "a.mrc", three / "b.mrc"], output, overrides={"b": {"z_range": [12, 27]}})
    run(items)
    results = {name: open_scan(output / f"{name}.scan").hits for name in "ab"}
    assert write_all_hits(output, tmp_path / "all.csv") == 3
    rows = table(tmp_path / "all.csv")
    assert [row["tomogram"] for row in rows] == ["a", "a", "b"]
    assert float(rows[2]["z_angstrom"]) == results["b"].positions[0, 0]
    assert float(rows[2]["z_voxel"]) == pytest.approx((results["b"].positions[0, 0] - ORIGIN[0]) / VOXEL)
    write_all_hits(output, tmp_path / "all.star")
    star = starfile.read(tmp_path / "all.star")
    assert list(star["rlnTomoName"]) == ["a", "a", "b"]
    # RELION counts from the centre of the whole volume, also where only planes were scanned
    centred = results["b"].positions[0] - ORIGIN - np.array(SHAPE) / 2 * VOXEL
    last = [star[f"rlnCenteredCoordinate{axis}Angst"].iloc[2] for axis in "ZYX"]
    assert last == pytest.approx(centred, abs=1e-4)
    assert write_all_hits(output, tmp_path / "all.star") == 3  # an earlier one is replaced
    rejected = results["a"].positions[1]
    Journal(output / "a.scan" / "journal.jsonl").add("reject", [tuple(rejected)])
    assert write_all_hits(output, tmp_path / "all.csv") == 2
    assert float(table(tmp_path / "all.csv")[0]["z_angstrom"]) == results["a"].positions[0, 0]
    (tmp_path / "other.star").write_text("data_particles\n")
    with pytest.raises(ExistingOutputError, match="earlier batch"):
        write_all_hits(output, tmp_path / "other.star")
    with pytest.raises(FormatError, match=r"\.star or \.csv"):
        write_all_hits(output, tmp_path / "all.txt")


def test_a_preview_looks_at_every_volume_and_writes_nothing(three, tmp_path):
    data = np.full(SHAPE, np.nan, np.float32)
    (three / "b.mrc").write_bytes(raw_mrc(data, voxel_size=VOXEL))
    items = plan(three, tmp_path / "out")
    before = sorted(tmp_path.rglob("*"))
    a, b, c = preview_batch(items, datedb=DB, embedder=EMBEDDER)
    assert (a.name, c.name) == ("a", "c")
    assert a.plan.disk_bytes() > 0
    assert isinstance(b, VolumeFailed)
    assert "NaN" in b.reason
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_in_place_of_the_output_folder_is_refused(three, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(FormatError, match="expected a folder"):
        plan(three, tmp_path / "out")

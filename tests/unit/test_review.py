"""Looking at a scan again: which places are named, what people changed, and what is exported of it."""

import csv
import importlib.util
import json
import shutil

import numpy as np
import pytest
from scan_worker import EMBEDDERS, PLANTED, database, plan_of, scene, toy

from cryoscan import LabelClass, Volume
from cryoscan.batch import BatchConfig, read_recipe, write_recipe
from cryoscan.errors import ConfigError, CryoscanError, ExistingOutputError, FormatError, GeometryError, ResourceError
from cryoscan.io import VolumeFile, open_labels, write_volume
from cryoscan.scan import (
    Journal,
    ScanConfig,
    corrected_labels,
    corrected_result,
    discard_unfinished,
    likeness,
    likeness_at,
    open_scan,
    paint_places,
    place_numbers,
    project,
    read_found,
    relabel,
    run_scan,
)
from cryoscan.scan.places import read_places
from cryoscan.scan.relabel import plan_again
from cryoscan.workflows import export_scan


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A scan of six places of three types, all of which are named."""
    path = tmp_path_factory.mktemp("scan") / "a.scan"
    for _ in run_scan(plan_of("masked", scene()), path):
        pass
    return path


@pytest.fixture
def scan(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "a.scan")
    return open_scan(tmp_path / "a.scan")


def painted(result):
    for _ in paint_places(result, datedb=database(toy()), embedder=toy()):
        pass
    return result


# ---------------------------------------------------------------- thresholds


@pytest.mark.parametrize(
    "settings",
    [
        {"min_score": 0.985},
        {"min_margin": 0.02},
        {"min_volume_A3": 12000.0},
        {"per_type": {"1.10.1.10": {"min_score": 0.9999}}},
        {"per_type": {"1.10.2.10": {"min_volume_A3": 1e6}}, "min_score": 0.5},
    ],
)
def test_live_counts_are_those_of_relabelling(scan, tmp_path, settings):
    found = read_found(scan)
    named = found.named(ScanConfig.build(**{**scan.provenance.config, **settings}))
    for _ in relabel(
        scan.path, datedb=database(toy()), embedder=toy(), settings=settings, output=tmp_path / "again.scan"
    ):
        pass
    again = open_scan(tmp_path / "again.scan")
    np.testing.assert_array_equal(again.hits.positions, found.hits.positions[named])
    assert len(again.hits) > 0


@pytest.mark.parametrize(
    ("setting", "values"),
    [
        ("min_score", lambda found: found.hits.scores),
        ("min_margin", lambda found: found.hits.margins),
        ("min_volume_A3", lambda found: found.volume_A3),
    ],
)
def test_a_threshold_keeps_what_reaches_it(scan, setting, values):
    found = read_found(scan)
    middle = float(np.median(values(found)))
    named = found.named(ScanConfig.build(**{**scan.provenance.config, setting: middle}))
    np.testing.assert_array_equal(named, values(found) >= middle)
    assert 0 < named.sum() < len(found)


def test_thresholds_of_one_type_leave_the_others(scan):
    found = read_found(scan)
    strict = ScanConfig.build(**{**scan.provenance.config, "per_type": {"1.10.1.10": {"min_score": 1.0}}})
    named = found.named(strict)
    mine = np.array(found.hits.types) == "1.10.1.10"
    assert mine.any()
    assert not named[mine].any()
    np.testing.assert_array_equal(named[~mine], found.named()[~mine])


def test_places_without_a_name_are_kept_too(scan, tmp_path):
    everything = len(read_found(scan))
    for _ in relabel(
        scan.path, datedb=database(toy()), embedder=toy(), settings={"min_score": 0.999}, output=tmp_path / "b.scan"
    ):
        pass
    strict = open_scan(tmp_path / "b.scan")
    assert len(read_found(strict)) == everything > len(strict.hits)


def test_a_scan_that_kept_no_places_says_what_to_do(scan):
    (scan.path / "found.json").unlink()
    with pytest.raises(FormatError, match="cryoscan relabel"):
        read_found(scan)


def test_a_recipe_is_what_batch_and_relabel_take(tmp_path):
    config = ScanConfig.build(min_score=0.9, per_type={"1.10.1.10": {"min_margin": 0.1}}, stride_voxels=3)
    write_recipe(config, tmp_path / "recipe.yaml")
    assert BatchConfig.read(tmp_path / "recipe.yaml").scan == config
    thresholds = read_recipe(tmp_path / "recipe.yaml")
    assert thresholds["min_score"] == 0.9
    assert thresholds["per_type"]["1.10.1.10"]["min_margin"] == 0.1
    assert "stride_voxels" not in thresholds
    assert thresholds["min_confidence"] == 0.5  # as by default, but another scan may have been tuned otherwise
    assert thresholds["min_margin"] is None  # the same
    with pytest.raises(ExistingOutputError):
        write_recipe(config, tmp_path / "recipe.yaml")


# ---------------------------------------------------------------- regions of places


def test_every_place_has_its_region(scan):
    assert place_numbers(scan) is None
    numbers = place_numbers(painted(scan))
    np.testing.assert_array_equal(np.asarray(numbers.data[:, :, :]), scan.instances().load())
    found = read_found(scan)
    for place in range(len(found)):
        voxels = np.argwhere(np.asarray(numbers.data[:, :, :]) == place + 1)
        middle = numbers.to_position(voxels).mean(axis=0)
        assert np.linalg.norm(middle - found.hits.positions[place]) < 6
        assert len(voxels) * numbers.voxel_size**3 == pytest.approx(found.volume_A3[place], rel=0.25)


def test_regions_of_other_places_are_not_shown(scan):
    painted(scan)
    content = json.loads((scan.path / "found.json").read_text())
    content["digest"] = "another"
    (scan.path / "found.json").write_text(json.dumps(content))
    assert place_numbers(scan) is None


def test_a_scan_without_regions_says_so(tmp_path):
    path = tmp_path / "w.scan"
    for _ in run_scan(plan_of("windows", scene()), path):
        pass
    with pytest.raises(FormatError, match="relabel"):
        list(paint_places(open_scan(path), datedb=database(toy(needs_mask=False)), embedder=toy(needs_mask=False)))


def test_places_of_a_type_are_alike(scan):
    found = read_found(scan)
    similarity = likeness(scan, range(len(found)), datedb=database(toy()), embedder=toy())
    assert similarity.shape == (len(found), len(found))
    types = np.array(found.hits.types)
    for place in range(len(found)):
        other = np.flatnonzero((types == types[place]) & (np.arange(len(found)) != place))
        assert similarity[place, other].max() > similarity[place, types != types[place]].max()


@pytest.fixture(scope="module", params=["masked", "windows"])
def partial(request, tmp_path_factory):
    """A scan of a volume on disk, its embedder, and the middle of a shape in Å that it was told to pass over."""
    folder = tmp_path_factory.mktemp("partial")
    write_volume(scene(), folder / "scene.mrc")
    source = VolumeFile(folder / "scene.mrc")
    volume = source.open()
    passed_over = np.asarray(PLANTED["shell"][0]) + volume.origin
    there = np.moveaxis(np.indices(volume.shape), 0, -1) * volume.voxel_size + volume.origin
    mask = (np.linalg.norm(there - passed_over, axis=-1) > 40).astype(np.int8)
    mask = Volume(mask, volume.voxel_size, volume.origin)
    for _ in run_scan(plan_of(request.param, volume, source=source, mask=mask), folder / "a.scan"):
        pass
    return open_scan(folder / "a.scan"), EMBEDDERS[request.param](), tuple(passed_over)


def test_any_place_is_embedded_as_the_scan_embedded_its_own(partial):
    result, embedder, _ = partial
    datedb, found = database(embedder), read_found(result)
    plan = plan_again(result, datedb=datedb, embedder=embedder)
    stored = likeness(result, range(len(found)), datedb=datedb, embedder=embedder)
    for place in range(len(found)):
        point = read_places(plan, result.path, int(found.tile[place])).point[found.region[place]]
        position = plan.grid.centres(point) * embedder.voxel_size + plan.volume.origin
        alike = likeness_at(result, tuple(position), datedb=datedb, embedder=embedder)
        np.testing.assert_allclose(alike, stored[place], atol=1e-6)


def test_what_the_scan_passed_over_is_like_its_like(partial):
    result, embedder, passed_over = partial
    found = read_found(result)
    assert np.linalg.norm(found.hits.positions - passed_over, axis=1).min() > 20
    alike = likeness_at(result, passed_over, datedb=database(embedder), embedder=embedder)
    assert alike.shape == (len(found),)
    assert found.hits.entries[int(alike.argmax())] == "shell"
    for nothing in ((-31.5, 12.25, 407.125), (-1e4, 0.0, 0.0)):
        with pytest.raises(GeometryError, match="Click into a protein"):
            likeness_at(result, nothing, datedb=database(embedder), embedder=embedder)


def test_density_that_is_no_group_of_a_proteins_size_is_compared_as_it_lies(partial, monkeypatch):
    result, embedder, passed_over = partial
    monkeypatch.setattr("cryoscan.scan.places._RESIDUES", (1e6, 1e7))
    alike = likeness_at(result, passed_over, datedb=database(embedder), embedder=embedder)
    assert read_found(result).hits.entries[int(alike.argmax())] == "shell"


def test_another_place_needs_the_volume(scan):
    with pytest.raises(FormatError, match="select a hit"):
        likeness_at(scan, (0.0, 0.0, 0.0), datedb=database(toy()), embedder=toy())


def test_projection_keeps_what_is_alike_together(rng):
    directions = np.eye(8)[[0] * 5 + [1] * 5 + [2] * 5] + rng.normal(scale=0.05, size=(15, 8))
    rows = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    plane = project(rows @ rows.T)
    groups = plane.reshape(3, 5, 2)
    within = groups.std(axis=1).max()
    between = min(np.linalg.norm(groups[a].mean(0) - groups[b].mean(0)) for a, b in ((0, 1), (0, 2), (1, 2)))
    assert between > 5 * within
    assert project(np.ones((1, 1))).shape == (1, 2)


def test_umap_is_asked_for_by_name_where_it_is_missing():
    if importlib.util.find_spec("umap") is None:
        with pytest.raises(ConfigError, match="umap-learn"):
            project(np.eye(5), method="umap")
    else:
        near = np.kron(np.eye(3), np.ones((15, 15))) * 0.9 + 0.1 * np.eye(45)
        groups = project(near, method="umap").reshape(3, 15, 2)
        middles = groups.mean(axis=1)
        apart = min(np.linalg.norm(middles[a] - middles[b]) for a, b in ((0, 1), (0, 2), (1, 2)))
        assert apart > 3 * groups.std(axis=1).max()


# ---------------------------------------------------------------- corrections


def test_corrections_change_the_answer_and_can_be_undone(scan):
    journal, found = Journal(scan.path / "journal.jsonl"), read_found(scan)
    before = corrected_result(scan).answer
    journal.add("reject", [found.hits.positions[0]])
    journal.add("retype", [found.hits.positions[1]], scheme="CATH", type="9.9.9.9", name="Mine")
    answer = corrected_result(scan)
    assert answer.status[:2] == ("rejected", "accepted")
    assert len(answer.answer) == len(before) - 1
    assert answer.hits.types[1] == "9.9.9.9"
    assert Journal(journal.path).undo().what == "retype"
    assert corrected_result(scan).hits.types[1] == found.hits.types[1]
    assert Journal(journal.path).undo().what == "reject"
    assert len(corrected_result(scan).answer) == len(before)
    assert Journal(journal.path).undo() is None
    said = Journal(journal.path).changes
    assert [change.what for change in said] == ["reject", "retype", "undo", "undo"]  # nothing is forgotten
    assert all(change.who and change.time for change in said)


def test_accepted_places_are_hits_below_the_threshold(scan, tmp_path):
    for _ in relabel(
        scan.path, datedb=database(toy()), embedder=toy(), settings={"min_score": 0.999}, output=tmp_path / "b.scan"
    ):
        pass
    strict = open_scan(tmp_path / "b.scan")
    found = read_found(strict)
    place = int(np.flatnonzero(~found.named())[0])
    Journal(strict.path / "journal.jsonl").add("accept", [found.hits.positions[place]])
    assert len(corrected_result(strict).answer) == len(strict.hits) + 1


def test_corrections_survive_another_naming_and_stay_out_of_the_first_scan(scan, tmp_path):
    journal, found = Journal(scan.path / "journal.jsonl"), read_found(scan)
    journal.add("reject", [found.hits.positions[2]])
    for _ in relabel(
        scan.path, datedb=database(toy()), embedder=toy(), settings={"min_score": 0.5}, output=tmp_path / "b.scan"
    ):
        pass
    again = open_scan(tmp_path / "b.scan")
    Journal(again.path / "journal.jsonl").add("reject", [found.hits.positions[0]])
    assert corrected_result(again).status.count("rejected") == 2
    assert corrected_result(scan).status.count("rejected") == 1


def test_labels_follow_the_corrections(scan):
    painted(scan)
    journal, found = Journal(scan.path / "journal.jsonl"), read_found(scan)
    before = scan.labels().labels()
    journal.add("reject", [found.hits.positions[0]])
    journal.add("retype", [found.hits.positions[1]], scheme="mine", type="x", name="Mine")
    labels = corrected_labels(scan)
    numbers, data = place_numbers(scan).load(), labels.labels()
    assert not data[numbers == 1].any()
    (new,) = np.unique(data[numbers == 2])
    assert labels.classes[int(new)] == LabelClass("Mine", "x", "mine")
    np.testing.assert_array_equal(data[numbers > 2], before[numbers > 2])


def test_a_damaged_journal_and_a_folder_without_permission_say_so(scan, monkeypatch):
    (scan.path / "journal.jsonl").write_text('{"number": 1}\n')
    with pytest.raises(FormatError, match="line 1"):
        Journal(scan.path / "journal.jsonl")
    (scan.path / "journal.jsonl").unlink()

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("cryoscan.scan.journal.write_atomically", refuse)
    journal = Journal(scan.path / "journal.jsonl")
    with pytest.raises(ResourceError, match="Copy the scan"):
        journal.add("accept", [(0, 0, 0)])
    assert len(journal) == 0


# ---------------------------------------------------------------- export


def test_export_writes_what_people_decided(scan, tmp_path):
    painted(scan)
    journal, found = Journal(scan.path / "journal.jsonl"), read_found(scan)
    journal.add("reject", [found.hits.positions[0]])
    files = {"hits": tmp_path / "h.csv", "labels": tmp_path / "l.mrc", "journal": tmp_path / "j.csv"}
    done = export_scan(scan, **files)
    assert done.hits == len(scan.hits) - 1
    with files["hits"].open() as stream:
        assert len(list(csv.DictReader(stream))) == len(scan.hits) - 1
    with files["journal"].open() as stream:
        (line,) = csv.DictReader(stream)
    assert line["what"] == "reject"
    assert float(line["x_angstrom"]) == pytest.approx(found.hits.positions[0][2])
    assert not open_labels(files["labels"]).labels()[place_numbers(scan).load() == 1].any()
    plain = export_scan(scan, hits=tmp_path / "all.csv", as_scanned=True)
    assert plain.hits == len(scan.hits)


def test_export_writes_nothing_if_one_file_is_there(scan, tmp_path):
    (tmp_path / "l.mrc").write_text("precious")
    with pytest.raises(ExistingOutputError):
        export_scan(scan, hits=tmp_path / "h.csv", labels=tmp_path / "l.mrc")
    assert not (tmp_path / "h.csv").exists()
    with pytest.raises(CryoscanError, match=r"\.csv"):
        export_scan(scan, journal=tmp_path / "j.txt")


def test_only_an_unfinished_scan_is_discarded(scan, tmp_path):
    with pytest.raises(ExistingOutputError, match="complete"):
        discard_unfinished(scan.path)
    assert scan.path.is_dir()
    (scan.path / "summary.json").unlink()
    discard_unfinished(scan.path)
    assert not scan.path.exists()
    (tmp_path / "other").mkdir()
    with pytest.raises(ExistingOutputError):
        discard_unfinished(tmp_path / "other")
    assert (tmp_path / "other").is_dir()

"""Regions that people draw anew: what becomes of the answer, and what does not change."""

import csv
import shutil

import numpy as np
import pytest
import zarr
from scan_worker import database, plan_of, scene, toy

from cryoscan import LabelClass
from cryoscan.errors import FormatError
from cryoscan.io import VolumeFile, open_labels, write_volume
from cryoscan.redrawn import last_redrawing, review, reviewed
from cryoscan.scan import Journal, open_scan, paint_places, place_numbers, read_found, relabel, run_scan
from cryoscan.workflows import Redrawn, RegionsScored, export_scan, redraw_regions

MINE = LabelClass("Mine", "x", "mine")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A scan of six places of three types, painted, and its volume."""
    folder = tmp_path_factory.mktemp("scan")
    write_volume(scene(), folder / "scene.mrc")
    source = VolumeFile(folder / "scene.mrc")
    for _ in run_scan(plan_of("masked", source.open(), source=source), folder / "a.scan"):
        pass
    for _ in paint_places(open_scan(folder / "a.scan"), datedb=database(toy()), embedder=toy()):
        pass
    return folder / "a.scan"


@pytest.fixture
def scan(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "a.scan")
    return open_scan(tmp_path / "a.scan")


def numbers_of(scan):
    return np.asarray(reviewed(scan).numbers.data[:, :, :]).astype(int)


def draw(scan, data, **how):
    """Turn the numbers of the places into others, and write it down as the viewer does."""
    changed = np.flatnonzero(data != numbers_of(scan))
    events = list(redraw_regions(scan, changed, data.flat[changed], datedb=database(toy()), embedder=toy(), **how))
    assert all(isinstance(event, RegionsScored) for event in events[:-1])
    last = events[-1]
    assert isinstance(last, Redrawn)
    Journal(scan.path / "journal.jsonl").add("labels", last.positions, note=last.note)
    return events


def halves(data, number):
    """A region of which the right half belongs to the next number that is free."""
    where = np.argwhere(data == number)
    right = where[where[:, 2] > np.median(where[:, 2])]
    data = data.copy()
    data[tuple(right.T)] = data.max() + 1
    return data


def test_merged_split_erased_and_painted_regions_are_the_answer(scan, tmp_path):
    before = reviewed(scan)
    data = numbers_of(scan)
    data[data == 2] = 1  # merged
    data[data == 3] = 0  # erased
    data = halves(data, 4)
    data[1:4, 2:5, 2:6] = 8  # painted in solvent
    assert [event.total for event in draw(scan, data)[:-1]] == [4] * 4  # 1, 4, 7 and 8
    now = reviewed(scan)
    np.testing.assert_array_equal(numbers_of(scan), data)
    assert now.places.kept.tolist() == [True, False, False, True, True, True, True, True]
    assert now.places.status == ("accepted", "", "", "accepted", "", "", "accepted", "accepted")
    grid = now.numbers
    for place in np.flatnonzero(now.places.kept):
        voxels = np.argwhere(data == place + 1)
        assert np.linalg.norm(grid.to_position(voxels).mean(axis=0) - now.found.hits.positions[place]) < 6
        assert len(voxels) * grid.voxel_size**3 == pytest.approx(now.found.volume_A3[place], rel=0.25)
    np.testing.assert_array_equal(now.found.hits.positions[4:6], before.found.hits.positions[4:6])
    hits, alternatives = now.places.hits, now.found.alternatives
    assert alternatives[6][0][1] == hits.types[6]  # what the half looks like, not what the whole was called
    assert hits.scores[6] == alternatives[6][0][3]
    files = {"hits": tmp_path / "h.csv", "labels": tmp_path / "l.zarr"}
    assert export_scan(scan, **files).hits == 6
    with files["hits"].open() as stream:
        assert len(list(csv.DictReader(stream))) == 6
    labels = open_labels(files["labels"])
    written = labels.labels()
    np.testing.assert_array_equal(written > 0, data > 0)
    assert len(np.unique(written[data == 1])) == 1
    assert labels.classes[int(written[2, 3, 3])].type == hits.types[7]
    assert export_scan(scan, hits=tmp_path / "s.csv", as_scanned=True).hits == 6
    assert len(scan.hits) == 6


def test_undo_takes_a_drawing_back(scan):
    before, kept = numbers_of(scan), reviewed(scan).places.kept
    draw(scan, np.where(before == 1, 0, before))
    draw(scan, np.where(np.isin(before, (1, 2)), 0, before))
    journal = Journal(scan.path / "journal.jsonl")
    assert len(reviewed(scan).places.answer) == 4
    journal.undo()
    assert len(reviewed(scan).places.answer) == 5
    journal.undo()
    np.testing.assert_array_equal(numbers_of(scan), before)
    np.testing.assert_array_equal(reviewed(scan).places.kept, kept)


def test_a_region_keeps_its_name_and_a_new_one_gets_its_best_or_a_given_one(scan):
    data = numbers_of(scan)
    hits = reviewed(scan).places.hits
    number = 1 + hits.types.index("1.10.2.10")
    moved = np.where(data == number, 7, data)  # the same voxels under a new number
    draw(scan, moved)
    now = reviewed(scan)
    assert now.places.hits.types[6] == "1.10.2.10"
    assert now.places.hits.scores[6] == pytest.approx(hits.scores[number - 1], abs=0.05)
    assert not now.places.kept[number - 1]
    other = 2 if number == 1 else 1
    draw(scan, halves(moved, other), names={8: MINE})
    now = reviewed(scan)
    assert now.places.hits.names[7] == "Mine"
    assert now.places.hits.scores[7] == 0
    assert now.places.hits.types[other - 1] == hits.types[other - 1]
    assert now.places.hits.types[6] == "1.10.2.10"


def test_corrections_go_on_after_a_drawing_and_count_in_the_next(scan):
    journal = scan.path / "journal.jsonl"
    Journal(journal).add("retype", [read_found(scan).hits.positions[0]], scheme="mine", type="x", name="Mine")
    data = halves(numbers_of(scan), 1)
    draw(scan, data, names={7: MINE})
    now = reviewed(scan)
    assert now.places.hits.names[0] == now.places.hits.names[6] == "Mine"
    assert len(set(now.places.hits.labels[[0, 6]].tolist())) == 1
    positions = now.found.hits.positions
    Journal(journal).add("retype", [positions[0]], scheme="mine", type="y", name="Yours")
    Journal(journal).add("reject", [positions[6]])
    now = reviewed(scan)
    assert now.places.hits.names[0] == "Yours"
    assert not now.places.kept[6]
    assert len(set(now.places.hits.labels.tolist())) == len(set(zip(now.places.hits.schemes, now.places.hits.types)))
    draw(scan, np.where(data == 2, 0, data))
    now = reviewed(scan)
    assert now.places.hits.names[0] == "Yours"
    assert now.places.kept.tolist() == [True, False, True, True, True, True, False]


def test_thresholds_drop_what_nobody_touched_and_keep_what_was_drawn(scan):
    data = numbers_of(scan)
    draw(scan, np.where((data == 6) & (np.indices(data.shape)[0] % 2 == 0), 0, data))
    found, redrawing = read_found(scan), reviewed(scan).redrawing
    strict = found.config.model_copy(update={"min_score": 1.0})
    _, places = review(found, Journal(scan.path / "journal.jsonl").standing(), redrawing, strict)
    assert np.flatnonzero(places.kept).tolist() == [5]
    for _ in relabel(scan.path, datedb=database(toy()), embedder=toy(), settings={"min_score": 1.0}):
        pass
    assert np.flatnonzero(reviewed(open_scan(scan.path)).places.kept).tolist() == [5]


def test_a_hit_of_other_thresholds_is_one_once_it_was_drawn(scan):
    for _ in relabel(scan.path, datedb=database(toy()), embedder=toy(), settings={"min_score": 1.0}):
        pass
    scan = open_scan(scan.path)
    data = numbers_of(scan)
    smaller = np.where((data > 0) & (np.indices(data.shape)[0] % 2 == 0), 0, data)
    draw(scan, smaller, hits=[2, 5])
    assert np.flatnonzero(reviewed(scan).places.kept).tolist() == [1, 4]


def test_without_the_volume_regions_keep_their_names_and_new_ones_are_unknown(scan):
    manifest = scan.path / "manifest.json"
    manifest.write_text(manifest.read_text().replace("scene.mrc", "gone.mrc"))
    scan = open_scan(scan.path)
    draw(scan, halves(numbers_of(scan), 2))
    hits = reviewed(scan).places.hits
    assert hits.types[1] == read_found(scan).hits.types[1]
    assert hits.names[6] == "unknown"


def test_labels_that_were_saved_elsewhere_are_no_drawing(scan):
    Journal(scan.path / "journal.jsonl").add("labels", note="/somewhere/edited.zarr")
    assert reviewed(scan).redrawing is None
    np.testing.assert_array_equal(numbers_of(scan), place_numbers(scan).load())


def test_a_drawing_that_is_lost_or_of_other_places_is_said(scan, tmp_path):
    data = numbers_of(scan)
    draw(scan, np.where(data == 1, 0, data))
    standing = Journal(scan.path / "journal.jsonl").standing()
    group = zarr.open_group(scan.path / "edited" / "1.zarr", mode="r+")
    group.attrs["redrawn"] = {**group.attrs["redrawn"], "places": "others"}
    with pytest.raises(FormatError, match="upon which"):
        last_redrawing(scan, standing)
    shutil.rmtree(scan.path / "edited")
    with pytest.raises(FormatError, match="Put the folder back"):
        export_scan(scan, hits=tmp_path / "h.csv")
    assert export_scan(scan, hits=tmp_path / "h.csv", as_scanned=True).hits == 6


def test_places_that_nobody_painted_cannot_be_redrawn(scan):
    shutil.rmtree(scan.path / "found.zarr")
    with pytest.raises(FormatError, match="painted"):
        list(redraw_regions(scan, np.array([0]), np.array([1]), datedb=database(toy()), embedder=toy()))

"""Labels of scans whose places are not cut out: under other thresholds, and after corrections."""

import shutil

import numpy as np
import pytest
from scan_worker import database, plan_of, scene, toy

from cryoscan import LabelClass
from cryoscan.errors import FormatError
from cryoscan.io import VolumeFile, open_labels, write_volume
from cryoscan.lattice import open_points, paint_points, sample_lattice
from cryoscan.redrawn import reviewed
from cryoscan.scan import Journal, open_scan, relabel, run_scan
from cryoscan.workflows import export_scan

WITH = {"datedb": database(toy(needs_mask=False)), "embedder": toy(needs_mask=False)}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A scan with windows that are not masked."""
    folder = tmp_path_factory.mktemp("scan")
    write_volume(scene(), folder / "scene.mrc")
    source = VolumeFile(folder / "scene.mrc")
    for _ in run_scan(plan_of("windows", source.open(), source=source, min_score=0.97), folder / "a.scan"):
        pass
    for _ in paint_points(open_scan(folder / "a.scan"), **WITH):
        pass
    return folder / "a.scan"


@pytest.fixture
def scan(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "a.scan")
    return open_scan(tmp_path / "a.scan")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"min_score": 0.99},
        {"min_score": 0.9, "min_margin": 0.05},
        {"min_score": 0.9, "per_type": {"1.10.1.10": {"min_score": 1.0}}},
    ],
)
def test_the_table_gives_the_labels_that_naming_again_writes(scan, settings):
    now, points = reviewed(scan), open_points(scan)
    config = now.found.config.model_validate({**now.found.config.model_dump(), **settings})
    live = points.labels(scan, points.table(now.found, now.places, config), now.places).labels()
    for _ in relabel(scan.path, settings=settings, **WITH):
        pass
    written = open_scan(scan.path).labels().labels()
    assert written.any()
    np.testing.assert_array_equal(live, written)


def test_corrections_count_for_the_piece_of_a_place_and_are_exported(scan, tmp_path):
    before, now, points = scan.labels().labels(), reviewed(scan), open_points(scan)
    hits = now.found.hits
    first, second = np.flatnonzero(now.places.kept)[:2]
    journal = Journal(scan.path / "journal.jsonl")
    journal.add("reject", [hits.positions[first]])
    journal.add("retype", [hits.positions[second]], scheme="mine", type="x", name="Mine")
    export_scan(scan, labels=tmp_path / "l.zarr", hits=tmp_path / "h.csv")
    labels = open_labels(tmp_path / "l.zarr")
    after, owner = labels.labels(), np.concatenate([[-1], points.place])[points.numbers.load().astype(int)]
    z, y, x = np.rint(points.numbers.to_index(hits.positions[first])).astype(int)
    assert before[z, y, x]
    assert not after[owner == first].any()
    assert (before[owner == first] > 0).any()
    (new,) = np.unique(after[(owner == second) & (before > 0)])
    assert labels.classes[int(new)] == LabelClass("Mine", "x", "mine")
    others = ~np.isin(owner, (first, second))
    np.testing.assert_array_equal(after[others], before[others])
    assert len((tmp_path / "h.csv").read_text().splitlines()) == 1 + now.places.kept.sum() - 1


def test_an_accepted_place_below_the_thresholds_is_painted_whole(scan):
    now, points = reviewed(scan), open_points(scan)
    strict = now.found.config.model_copy(update={"min_score": 1.0})
    assert not points.table(now.found, now.places, strict).any()
    Journal(scan.path / "journal.jsonl").add("accept", [now.found.hits.positions[0]])
    now = reviewed(scan)
    table = points.table(now.found, now.places, strict)
    np.testing.assert_array_equal(table[1:] > 0, points.place == 0)
    assert table.max() == now.found.hits.labels[0]


def test_points_of_another_naming_are_not_taken_and_masks_are_refused(scan):
    import zarr

    zarr.open_group(scan.path / "points.zarr", mode="r+").attrs["places"] = "others"
    assert open_points(scan) is None
    with pytest.raises(FormatError, match="cuts places out"):
        list(paint_points(scan, datedb=database(toy()), embedder=toy()))
    (scan.path / "manifest.json").write_text((scan.path / "manifest.json").read_text().replace("scene.mrc", "g.mrc"))
    with pytest.raises(FormatError, match="where it was"):
        list(paint_points(open_scan(scan.path), **WITH))


def test_a_sample_of_the_lattice_is_what_the_scan_saw_there(scan):
    sample = sample_lattice(scan, 40, **WITH)
    lattice = scan.score
    index = np.rint(lattice.to_index(sample.positions)).astype(int)
    scores = lattice.load()[tuple(index.T)]
    assert len(np.unique(index, axis=0)) == 40
    assert (scores > 0).all()
    again = WITH["datedb"].assign(sample.vectors, top=1, resolution=9.0, representatives=False)
    np.testing.assert_allclose(again.scores[:, 0], scores, atol=1e-4)
    types = WITH["datedb"].types
    assert [meaning.type for meaning in sample.meanings] == [types[t][1] for t in again.types[:, 0]]
    everything = sample_lattice(scan, 10**6, **WITH)
    assert len(everything.positions) == (lattice.load() > 0).sum() == len(everything.vectors)

"""State and actions without Qt: scanning, asking, reviewing."""

import dataclasses
import json
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from scan_worker import PLANTED, database, toy

from cryoscan import Candidate
from cryoscan.batch import BatchConfig
from cryoscan.datedb import open_datedb
from cryoscan.errors import ExistingOutputError, GeometryError
from cryoscan.io import VolumeFile, open_labels
from cryoscan.models import InvariantEmbedder
from cryoscan.scan import Journal, open_scan, read_found
from cryoscan.scan.places import read_places
from cryoscan.scan.relabel import plan_again
from napari_plugin import _tasks
from napari_plugin._asking import links
from napari_plugin._controller import Controller
from napari_plugin._sources import mask_of


@pytest.fixture
def controller(processes):
    made = Controller(*processes)
    made.heard = []
    made.said.connect(lambda kind, text: made.heard.append((kind, text)))
    return made


@pytest.fixture
def reviewing(controller, folder):
    controller.open_scan(folder / "scene.scan")
    assert controller.review.result is not None, controller.heard
    controller.asking.datedb = folder / "toy.datedb"
    return controller


# ---------------------------------------------------------------- scanning


def test_a_scan_is_looked_at_run_and_opened(controller, request_for, until):
    looks, steps, hits = [], [], []
    controller.scanning.looked.connect(looks.append)
    controller.scanning.progressed.connect(steps.append)
    controller.scanning.found.connect(hits.append)
    request = request_for()
    controller.scanning.look(request)
    until(controller, lambda: looks)
    facts = dict(looks[0].facts)
    assert {"volume", "contrast", "resolution", "memory", "disk", "time"} <= facts.keys()
    assert looks[0].possible
    assert not request.output.exists()
    controller.scanning.start(request)
    until(controller, lambda: controller.scanning.state == "done")
    assert [step.step for step in steps] == sorted(step.step for step in steps)
    assert {step.step for step in steps} == {1, 2, 3}
    until(controller, lambda: controller.review.numbers is not None)
    assert len(controller.review.places.answer) == len(hits[-1]) == 6


class Drawn:
    """A labels layer of its own grid, as `mask_of` sees it."""

    name, ndim, multiscale = "drawn", 3, False

    def __init__(self, data, scale, translate):
        self.data, self.scale, self.translate = data, (scale,) * 3, translate


def test_only_what_is_painted_is_scanned_also_where_the_layer_is_gone(controller, request_for, until):
    whole = request_for()
    volume = whole.file.open()
    coarse = np.zeros([-(-size // 2) for size in volume.shape], np.uint16)
    coarse[:, :, : coarse.shape[2] // 2] = 9
    translate = volume.to_position((0.4, 0.4, 0.4))  # every voxel of it holds eight of the volume's
    painted = mask_of(Drawn(coarse, 2 * volume.voxel_size, translate))
    request = dataclasses.replace(whole, mask=painted)
    looks = []
    controller.scanning.looked.connect(looks.append)
    controller.scanning.look(request)
    until(controller, lambda: looks)
    facts = dict(looks[0].facts)
    assert facts["mask"] == f"{2 * (coarse.shape[2] // 2) / volume.shape[2]:.1%} of the volume is looked at"
    assert "ShapeEmbedder" in facts["embedder"] or "InvariantEmbedder" in facts["embedder"]
    controller.scanning.start(request)
    until(controller, lambda: controller.scanning.state == "done")
    border = volume.to_position((0, 0, 2 * (coarse.shape[2] // 2)))[2] + 20  # a shape may reach in
    found = open_scan(request.output).hits.positions
    everything = [middle[2] + volume.origin[2] for middles in PLANTED.values() for middle in middles]
    assert len(found) == sum(x < border for x in everything) == 4
    assert (found[:, 2] < border).all()
    again = dataclasses.replace(whole, mask=_tasks.mask_path(request.output))
    with pytest.raises(ExistingOutputError, match="complete"):  # the same scan, so there is nothing left to do
        list(_tasks.scan(again))


def test_a_paused_scan_goes_on_where_it_was(controller, request_for, until):
    done = []
    controller.scanning.progressed.connect(lambda p: done.append((p.step, p.done)))
    controller.scanning.progressed.connect(lambda p: controller.scanning.pause() if len(done) == 2 else None)
    request = request_for(tile_points=4)
    controller.scanning.start(request)
    until(controller, lambda: controller.scanning.state == "paused")
    assert not open_scan(request.output).is_complete
    before = len(list((request.output / "tiles").iterdir()))
    assert before >= 2
    seen = len(done)
    controller.scanning.resume()
    until(controller, lambda: controller.scanning.state == "done")
    assert done[seen][1] > before - 1
    assert len(open_scan(request.output).hits) == 6


def test_a_cancelled_scan_leaves_nothing(controller, request_for, until):
    request = request_for(tile_points=4)
    controller.scanning.tile_done.connect(lambda: controller.scanning.cancel())
    controller.scanning.start(request)
    until(controller, lambda: controller.scanning.state == "idle")
    assert not request.output.exists()


def test_closing_in_the_middle_leaves_a_scan_that_goes_on(controller, request_for, until):
    closing = Controller()
    request = request_for(tile_points=4)
    tiles = []
    closing.scanning.tile_done.connect(lambda: tiles.append(1))
    closing.scanning.start(request)
    until(closing, lambda: tiles)
    closing.close()
    assert not open_scan(request.output).is_complete
    controller.scanning.start(request)
    until(controller, lambda: controller.scanning.state == "done")
    assert open_scan(request.output).is_complete


def test_what_goes_wrong_is_said_in_plain_words(controller, request_for, until, tmp_path):
    request = dataclasses.replace(request_for(), output=tmp_path / "file" / "a.scan")
    (tmp_path / "file").write_text("in the way")
    controller.scanning.start(request)
    until(controller, lambda: controller.scanning.state == "failed")
    kind, text = controller.heard[-1]
    assert kind == "error"
    assert text.startswith("Expected")
    assert "Traceback" not in text


def test_a_datedb_of_another_embedder_is_refused(controller, request_for, until, tmp_path):
    database(toy()).write(tmp_path / "other.datedb")
    controller.scanning.look(dataclasses.replace(request_for(), datedb=tmp_path / "other.datedb"))
    until(controller, lambda: controller.heard)
    assert "embedder that wrote the DateDB" in controller.heard[-1][1]
    assert controller.scanning.state == "idle"


def test_sharpening_says_what_it_costs_and_when_it_is_not_made_for_the_volume(controller, request_for, until):
    looks = []
    controller.scanning.looked.connect(looks.append)
    for settings in ({}, {"enhance": True}, {"enhance": True, "resolution_A": 9.0}):
        controller.scanning.look(request_for(**settings))
        before = len(looks)
        until(controller, lambda: len(looks) > before)  # noqa: B023
    plain, sharp, coarse = looks
    assert "sharpened" not in dict(plain.facts)
    for what in ("of the time", "GiB of the memory", "MiB of the disk"):
        assert what in dict(sharp.facts)["sharpened"]
    assert "sharpening is included" in dict(sharp.facts)["time"]
    assert not any("4 to 8" in warning for warning in (*plain.warnings, *sharp.warnings))
    assert any("4 to 8" in warning for warning in coarse.warnings)
    request = request_for(enhance=True)
    controller.scanning.start(request)
    until(controller, lambda: controller.scanning.state == "done")
    assert open_scan(request.output).provenance.config["enhance"]
    assert controller.review.sharpened
    assert not controller.review.unsafe.any()
    assert controller.review.without_sharpening(0) == "Without sharpening the label is the same."


# ---------------------------------------------------------------- asking


def test_a_place_is_named_with_what_it_is_and_where(reviewing, toy_folder, until):
    hits = reviewing.review.places.hits
    reviewing.asking.what_is(VolumeFile(toy_folder / "scene.mrc"), tuple(hits.positions[0]), resolution=6.2)
    until(reviewing, lambda: reviewing.asking.answer is not None)
    answer = reviewing.asking.answer
    assert answer.region.candidates[0].type == hits.types[0]
    assert answer.mask.shape == tuple(part.stop - part.start for part in answer.box)
    np.testing.assert_allclose(answer.region.centre, hits.positions[0], atol=6)


def test_more_like_this_is_about_what_was_pointed_at_last(reviewing, toy_folder, until):
    found, hits, asking = [], reviewing.review.places.hits, reviewing.asking
    asking.alike.connect(found.append)
    reviewing.find_alike()
    assert "Ask about a place first" in reviewing.heard[-1][1]
    reviewing.review.select([0])
    assert asking.this == 0
    reviewing.find_alike()
    until(reviewing, lambda: found)
    order = np.argsort(-found[0])
    assert order[0] == 0
    assert hits.types[order[1]] == hits.types[0]
    beside = tuple(hits.positions[3] + (4.0, -3.0, 2.0))  # a click into a place, not in its middle
    asking.what_is(VolumeFile(toy_folder / "scene.mrc"), beside, resolution=6.2)
    reviewing.find_alike()
    until(reviewing, lambda: len(found) == 2)
    order = np.argsort(-found[1])
    assert order[0] == 3
    assert hits.types[order[1]] == hits.types[3]
    assert found[1][3] < 1  # it is the click's own vector
    reviewing.review.select([])
    assert asking.this == beside
    asking.this = (-31.5, 12.25, 407.125)
    reviewing.find_alike()
    until(reviewing, lambda: "Click into a protein" in reviewing.heard[-1][1])


def test_more_like_this_looks_at_what_the_scan_looked_at(sharpened_scan, toy_folder):
    datedb, result = toy_folder / "toy.datedb", open_scan(sharpened_scan)
    plan = plan_again(result, datedb=open_datedb(datedb), embedder=InvariantEmbedder(4.0))
    found = read_found(result)
    point = read_places(plan, result.path, int(found.tile[2])).point[found.region[2]]
    position = plan.grid.centres(point) * plan.embedder.voxel_size + plan.volume.origin
    stored = _tasks.alike(sharpened_scan, datedb, [2])[0]
    np.testing.assert_allclose(_tasks.alike_at(sharpened_scan, datedb, tuple(position)), stored, atol=1e-5)


def test_solvent_is_an_answer_too(reviewing, toy_folder, until):
    reviewing.asking.what_is(VolumeFile(toy_folder / "scene.mrc"), (-31.5, 12.25, 407.125))
    until(reviewing, lambda: reviewing.heard)
    assert "Click into a protein" in reviewing.heard[-1][1]


def test_a_map_is_segmented_and_its_parts_are_named(reviewing, toy_folder, until):
    groups, answers = [], []
    reviewing.asking.segmented.connect(lambda labels, level: groups.append((labels, level)))
    reviewing.asking.mapped.connect(answers.append)
    file = VolumeFile(toy_folder / "scene.mrc")
    reviewing.asking.segment(file, threshold=None, step=None, steps=12, resolution=6.2)
    until(reviewing, lambda: groups)
    level = groups[0][1]
    reviewing.asking.segment(file, threshold=level * 1.5, step=None, steps=12, resolution=6.2)
    until(reviewing, lambda: len(groups) == 2)
    sizes = [np.count_nonzero(labels.labels()) for labels, _ in groups]
    assert sizes[1] < sizes[0]
    reviewing.asking.name_map(file, threshold=level, step=None, steps=12, resolution=6.2)
    until(reviewing, lambda: answers)
    assert {region.candidates[0].entry for region in answers[0].regions} == {"solid", "shell", "small"}


def test_links_lead_to_the_entry_and_the_type(reviewing, toy_folder):
    cath = links(Candidate(1, "1.10.8.10", "CATH", "x", "1p3qQ00", 0.9, pdb="1p3q"))
    assert cath["PDB"].endswith("/1p3q")
    assert cath["CATH"].endswith("/1.10.8.10")
    assert "a.5.2.1" in links(Candidate(1, "a.5.2.1", "SCOPe", "x", "d1p3qq_", 0.9))["SCOPe"]
    assert links(Candidate(1, "mine", "own", "x", "e", 0.9)) == {}


# ---------------------------------------------------------------- reviewing


def test_legend_counts_what_is_named_and_hides_what_is_not_wanted(reviewing):
    review = reviewing.review
    rows = review.legend()
    assert [row.count for row in rows] == [2, 2, 2]
    shown = [number for number, colour in review.colours().items() if number and colour[3]]
    assert len(shown) == 6
    review.show_type(rows[0].scheme, rows[0].type, False)
    assert review.shown.sum() == 4
    assert not review.legend()[0].visible or review.legend()[0].type != rows[0].type
    review.show_only([(rows[0].scheme, rows[0].type)])
    assert review.shown.sum() == 2
    review.show_only(None)
    assert review.shown.all()


def test_colours_are_the_fainter_the_less_sure(reviewing):
    review = reviewing.review
    alphas = [review.colours()[place + 1][3] for place in range(6)]
    order = np.argsort(review.sureness())
    assert (np.diff(np.array(alphas)[order]) >= 0).all()
    review.set_fade(False)
    assert {review.colours()[place + 1][3] for place in range(6)} == {1.0}


def test_thresholds_change_the_picture_at_once_and_the_scan_when_applied(reviewing, until, tmp_path):
    review = reviewing.review
    changed = []
    review.changed.connect(lambda: changed.append(1))
    middle = float(np.sort(review.found.hits.scores)[2:4].mean())
    review.tune(min_score=middle)
    assert changed
    assert len(review.places.answer) == 3
    assert review.tuned == {"min_score": middle}
    review.save_recipe(tmp_path / "recipe.yaml")
    assert BatchConfig.read(tmp_path / "recipe.yaml").scan.min_score == middle
    reviewing.apply_thresholds(tmp_path / "strict.scan")
    until(reviewing, lambda: (tmp_path / "strict.scan").exists() and not reviewing.busy)
    assert len(open_scan(tmp_path / "strict.scan").hits) == 3
    assert reviewing.review.result.path.name == "strict.scan"


def test_thresholds_applied_to_the_scan_itself_keep_its_journal_and_regions(reviewing, until, folder):
    review = reviewing.review
    review.select([5])
    review.accept()
    review.tune(min_score=float(np.sort(review.found.hits.scores)[2:4].mean()))
    answer = review.places.answer.positions
    reviewing.apply_thresholds()
    until(reviewing, lambda: not reviewing.busy)
    assert review.result.path == folder / "scene.scan"
    assert len(review.result.hits) == 3
    assert review.tuned == {}
    np.testing.assert_array_equal(review.places.answer.positions, answer)  # three, and the one that was accepted
    assert review.numbers is not None
    assert [change.what for change in review.journal.changes] == ["accept"]


def test_a_type_can_have_a_threshold_of_its_own(reviewing):
    review = reviewing.review
    type_ = review.legend()[0].type
    review.tune(type_, min_score=1.0)
    assert sorted(row.count for row in review.legend()) == [2, 2]
    review.tune(type_, min_score=None)
    assert review.config.per_type is None
    assert len(review.legend()) == 3
    review.tune(min_margin=1.9)
    assert review.legend() == []
    review.untune()
    assert len(review.legend()) == 3


def test_corrections_are_written_down_and_undone(reviewing):
    review = reviewing.review
    review.reject()
    assert not review.journal.changes  # nothing is selected
    review.select_next()
    assert review.selection == (0,)
    review.reject()
    assert not review.shown[0]
    review.select_next()
    assert review.selection == (1,)
    review.retype("mine", "x", "Mine")
    assert review.places.hits.names[1] == "Mine"
    assert ("mine", "x") in {(row.scheme, row.type) for row in review.legend()}
    path = review.result.path / "journal.jsonl"
    assert [change.what for change in Journal(path).changes] == ["reject", "retype"]
    review.undo()
    review.undo()
    assert review.shown.all()
    review.select_next(-1)
    assert review.selection == (0,)


class Edited:
    """The layer that is described by `Editing.copied`, as napari makes it."""

    editable, multiscale, colormap = True, False, None

    def __init__(self, described):
        self.data, self.settings, _ = described
        self.name, self.metadata, self.features = (self.settings[k] for k in ("name", "metadata", "features"))
        self.steps = 0

    def data_setitem(self, voxels, value):
        assert not self.editable
        self.data[voxels] = value
        self.steps += 1

    def as_layer_data_tuple(self):
        return self.data, {**self.settings, "features": self.features}, "labels"

    def world_to_data(self, position):
        return (np.asarray(position) - self.settings["translate"]) / self.settings["scale"]


class Points:
    """A points layer in Å."""

    def __init__(self, data):
        self.data = data

    def data_to_world(self, point):
        return point


class Density:
    """An image layer that was opened from a file."""

    name, ndim, metadata = "density", 3, {}

    def __init__(self, path, scale):
        self.source, self.scale = type("Source", (), {"path": path}), (scale,) * 3


@pytest.fixture
def copied(until):
    """A copy to edit of the scan that a controller has open."""

    def make(controller):
        made = []
        controller.editing.copied.connect(made.append)
        controller.editing.copy()
        until(controller, lambda: made or controller.heard)
        return Edited(made[0])

    return make


@pytest.fixture
def followed(until):
    """Let the open scan follow a layer; gives what was said."""

    def follow(controller, layer):
        before = len(controller.heard)
        controller.editing.follow(layer)
        assert not layer.editable
        until(controller, lambda: not controller.busy)
        assert layer.editable
        assert not controller.editing.busy
        return [text for _, text in controller.heard[before:]]

    return follow


def test_the_answer_follows_what_was_drawn_until_it_is_undone(reviewing, copied, followed, until, tmp_path):
    review, opened = reviewing.review, []
    review.select([1])
    review.reject()  # place 2 is not in the copy, and what is painted there is new
    layer = copied(reviewing)
    review.opened.connect(lambda: opened.append(1))
    before = np.asarray(review.numbers.data[:, :, :])
    np.testing.assert_array_equal(layer.data, np.where(before == 2, 0, before))
    assert "nothing was changed" in followed(reviewing, layer)[-1]
    layer.data[layer.data == 3] = 1
    layer.data[before == 2] = 2  # another region, for all that the layer knows
    steps = []
    reviewing.editing.progressed.connect(lambda *step: steps.append(step))
    followed(reviewing, layer)
    assert review.redrawing is not None
    assert steps == [(41, 41, "planes compared"), (1, 2, "regions named"), (2, 2, "regions named")]
    assert opened
    assert set(np.unique(layer.data)) == {0, 1, 4, 5, 6, 7}
    assert review.places.kept.tolist() == [True, False, False, True, True, True, True]
    assert review.shown.sum() == sum(row.count for row in review.legend()) == 5
    assert review.colours()[7][3] > 0
    assert review.places.hits.types[6] == review._scanned.hits.types[1]  # it looks like what it is
    np.testing.assert_array_equal(np.asarray(review.numbers.data[:, :, :]) > 0, before > 0)
    assert "nothing was changed" in followed(reviewing, layer)[-1]
    reviewing.export(hits=tmp_path / "h.csv", labels=tmp_path / "l.zarr")
    until(reviewing, lambda: any("Written" in text for _, text in reviewing.heard))
    assert len((tmp_path / "h.csv").read_text().splitlines()) == 6
    np.testing.assert_array_equal(open_labels(tmp_path / "l.zarr").labels() > 0, layer.data > 0)
    review.select([6])
    review.reject()
    assert review.places.kept.sum() == 4
    assert [change.what for change in review.journal.changes] == ["reject", "labels", "reject"]
    assert len(review.journal.changes[1].positions) == 2
    review.undo()
    review.undo()
    assert review.redrawing is None
    assert len(review.places.hits) == 6
    assert review.selection == ()
    np.testing.assert_array_equal(review.numbers.data[:, :, :], before)
    layer.data = np.where(layer.data == 4, 0, layer.data)  # as another plug-in may do: an array of its own
    followed(reviewing, layer)
    assert review.places.kept.tolist() == [True, False, False, False, True, True, True]
    review.tune(min_score=1.0)
    assert np.flatnonzero(review.places.kept).tolist() == [0, 6]


def test_what_sharpening_changed_is_said_also_after_a_drawing(
    controller, sharpened_scan, toy_folder, copied, followed, tmp_path
):
    review = controller.review
    shutil.copytree(sharpened_scan, tmp_path / "sharp.scan")
    controller.open_scan(toy_folder / "scene.scan")
    assert not review.sharpened
    assert review.without_sharpening(1) == ""
    assert [row.unsafe for row in review.legend()] == [0, 0, 0]
    controller.open_scan(tmp_path / "sharp.scan")
    assert np.flatnonzero(review.unsafe).tolist() == [1]
    own = review.places.hits.types[1]
    assert {row.type: row.unsafe for row in review.legend()}[own] == sum(row.unsafe for row in review.legend()) == 1
    assert "1.10.2.10 shell (cosine 0.875). Neither answer is safe" in review.without_sharpening(1)
    layer = copied(controller)
    layer.data[layer.data == 3] = 7
    layer.data[layer.data == 4] = 0
    followed(controller, layer)
    assert review.unsafe.tolist() == [False, True, False, False, False, False, False]
    assert review.without_sharpening(6) == "Without sharpening the label is the same."
    assert "Neither" in review.without_sharpening(1)
    layer.data[layer.data == 2] = 1
    followed(controller, layer)
    assert not review.unsafe.any()
    assert review.without_sharpening(0) == "Without sharpening the label is the same."
    folder, file = tmp_path / "sharp.scan", tmp_path / "sharp.scan" / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["planned"]["sharpening"]["weights"] = str(tmp_path / "gone.safetensors")
    file.write_text(json.dumps(manifest))
    controller.open_scan(folder)
    layer.data[layer.data == 5] = 1
    followed(controller, layer)
    assert "looked at without sharpening only, as the network" in review.without_sharpening(0)
    assert review.without_sharpening(6) == "Without sharpening the label is the same."  # as it was found then


def test_only_a_copy_of_the_open_scan_is_taken_over(reviewing, copied):
    layer = copied(reviewing)
    layer.metadata["cryoscan edited"]["scan"] = "another.scan"
    with pytest.raises(GeometryError, match="Make a copy"):
        reviewing.editing.follow(layer)
    assert layer.editable


def test_a_comparison_can_be_stopped_and_leaves_the_scan_as_it_was(reviewing, copied, until):
    layer = copied(reviewing)
    layer.data[layer.data == 3] = 1
    busy = []
    reviewing.editing.busy_changed.connect(busy.append)
    reviewing.editing.follow(layer)
    with pytest.raises(GeometryError, match="one copy at a time"):
        reviewing.editing.copy()
    reviewing.editing.stop()
    until(reviewing, lambda: not reviewing.editing.busy)
    assert busy == [True, False]
    assert layer.editable
    assert "as it was" in reviewing.heard[-1][1]
    assert reviewing.review.redrawing is None
    assert not reviewing.review.journal.changes


def waits(controller, until):
    """Until the editing is done; gives what was said."""
    before = len(controller.heard)
    assert controller.editing.busy
    until(controller, lambda: not controller.editing.busy)
    return [text for _, text in controller.heard[before:]]


def is_left_alone(controller, until):
    """What was being done is stopped, and said to be."""
    until(controller, lambda: not controller.editing.busy)
    return controller.heard[-1] == ("info", "Stopped: everything is as it was.")


@pytest.mark.parametrize("shared", [True, False])
def test_regions_are_merged_split_and_saved_beside_the_window(reviewing, copied, until, folder, tmp_path, shared):
    editing, layer = reviewing.editing, copied(reviewing)
    if not shared:
        layer.data = np.asarray(layer.data).astype(np.int16)  # in memory only, as another plug-in may leave it
    before, steps = np.array(layer.data), []
    editing.progressed.connect(lambda *step: steps.append(step))
    editing.merge(layer, [1, 2])
    assert not layer.editable
    with pytest.raises(GeometryError, match="one copy at a time"):
        editing.split(layer, Points(np.zeros((2, 3))), None)
    assert waits(reviewing, until) == ["Regions 1, 2 are one now, number 1."]
    np.testing.assert_array_equal(layer.data, np.where(before == 2, 1, before))
    assert steps == [(41, 41, "planes searched")]
    assert layer.steps == 1
    grid = reviewing.review.numbers
    where = np.argwhere(before == 3)
    ends = where[[where[:, 2].argmin(), where[:, 2].argmax()]]
    editing.split(layer, Points(grid.to_position(ends)), Density(folder / "scene.mrc", grid.voxel_size))
    assert waits(reviewing, until) == ["Region 3 is split; the new parts are 7."]
    assert layer.steps == 2
    np.testing.assert_array_equal(layer.data > 0, before > 0)
    assert (layer.data[before == 3] == 7).any()
    editing.save(layer, tmp_path / "edited.zarr")
    assert waits(reviewing, until) == [f"Written: {tmp_path / 'edited.zarr'}"]
    saved = open_labels(tmp_path / "edited.zarr")
    np.testing.assert_array_equal(saved.labels(), layer.data)
    assert saved.classes[7] == saved.classes[3]
    assert saved.volume.voxel_size == pytest.approx(grid.voxel_size)
    np.testing.assert_allclose(saved.volume.origin, grid.origin, atol=1e-6)
    assert reviewing.review.journal.changes[-1].note == str(tmp_path / "edited.zarr")
    assert layer.editable
    assert len(list(editing._folder.iterdir())) == 1  # what was handed over for a while is gone
    editing.merge(layer, [3, 99])
    (said,) = waits(reviewing, until)
    assert "Expected two regions or more; got 3" in said
    assert layer.editable


def test_a_merge_is_stopped_while_it_is_handed_over_and_while_it_is_done(reviewing, copied, until):
    editing, layer = reviewing.editing, copied(reviewing)
    before = np.array(layer.data)
    beside = editing._background._process
    beside.send_signal(signal.SIGSTOP)  # or it may be done before it hears that it should stop
    editing.merge(layer, [1, 2])
    editing.stop()
    beside.send_signal(signal.SIGCONT)
    assert is_left_alone(reviewing, until)
    layer.data = before.copy()
    editing.merge(layer, [1, 2])
    assert reviewing.turns.busy
    editing.stop()
    assert not reviewing.busy
    assert is_left_alone(reviewing, until)
    np.testing.assert_array_equal(layer.data, before)
    assert layer.steps == 0
    assert layer.editable
    assert len(list(editing._folder.iterdir())) == 1


def test_what_was_undone_during_a_merge_stays_undone(reviewing, copied, until):
    editing, layer = reviewing.editing, copied(reviewing)
    layer.data = np.asarray(layer.data).copy()  # in memory only: the other process sees what was handed over
    editing.merge(layer, [1, 2])
    until(reviewing, lambda: not reviewing.turns.busy)
    undone = np.argwhere(layer.data == 2)[::2]
    layer.data[tuple(undone.T)] = 5
    before = layer.data.copy()
    waits(reviewing, until)
    np.testing.assert_array_equal(layer.data, np.where(before == 2, 1, before))
    assert (layer.data[tuple(undone.T)] == 5).all()


@pytest.mark.parametrize("wait", [0, 0.5])
def test_a_copy_that_is_removed_leaves_nothing_on_the_disk_and_can_come_back(reviewing, copied, until, wait):
    editing, layer = reviewing.editing, copied(reviewing)
    other, before = copied(reviewing), np.array(layer.data)
    editing.forget(other)
    assert [path.name for path in editing._folder.iterdir()] == [Path(layer.data.filename).name]
    editing.merge(layer, [1, 2])
    time.sleep(wait)  # the merge may be done already, but nobody has heard of it
    editing.forget(layer)  # which ends what is done with it
    assert is_left_alone(reviewing, until)
    assert not list(editing._folder.iterdir())
    np.testing.assert_array_equal(layer.data, before)
    editing.merge(layer, [1, 2])  # somebody kept it, and added it again
    assert waits(reviewing, until) == ["Regions 1, 2 are one now, number 1."]
    np.testing.assert_array_equal(layer.data, np.where(before == 2, 1, before))
    editing.follow(layer)
    waits(reviewing, until)
    np.testing.assert_array_equal(reviewing.review.numbers.data[:, :, :], layer.data)


def test_a_layer_that_is_read_from_a_file_is_not_edited(reviewing, copied):
    layer = copied(reviewing)
    layer.data, layer.multiscale = [layer.data, layer.data], True
    with pytest.raises(GeometryError, match="Make a copy to edit"):
        reviewing.editing.merge(layer, [1, 2])
    assert layer.editable
    assert not reviewing.editing.busy


def test_closing_ends_a_comparison_and_removes_the_copies(folder, copied):
    closing = Controller()
    closing.heard = []
    closing.open_scan(folder / "scene.scan")
    layer = copied(closing)
    copy = Path(layer.data.filename)
    assert copy.stat().st_size == 4 * layer.data.size
    layer.data[layer.data == 3] = 1
    closing.editing.follow(layer)
    closing.close()
    assert not copy.parent.exists()
    assert not Journal(folder / "scene.scan" / "journal.jsonl").changes


def test_no_room_for_a_copy_is_said(reviewing, monkeypatch, until, folder):
    file = folder / "gone" / "1.raw"
    monkeypatch.setattr(reviewing.editing, "_new_file", lambda: file)
    reviewing.editing.copy()
    until(reviewing, lambda: reviewing.heard)
    assert "TMPDIR" in reviewing.heard[-1][1]
    assert not reviewing.editing.busy


def test_a_drawing_that_is_lost_leaves_the_scans_own_regions_and_is_said_once(reviewing, folder):
    review = reviewing.review
    Journal(folder / "scene.scan" / "journal.jsonl").add("labels", note="edited/1.zarr")
    reviewing.open_scan(folder / "scene.scan")
    review.tune(min_score=0.9)
    assert [kind for kind, _ in reviewing.heard] == ["error"]
    assert "Put the folder back" in reviewing.heard[0][1]
    assert len(review.places.hits) == 6
    review.undo()
    assert [kind for kind, _ in reviewing.heard] == ["error"]


def test_exported_is_what_is_shown(reviewing, until, tmp_path):
    reviewing.review.select([0])
    reviewing.review.reject()
    reviewing.export(labels=tmp_path / "l.zarr", hits=tmp_path / "h.star")
    until(reviewing, lambda: reviewing.heard)
    assert reviewing.heard[-1][0] == "info"
    data = open_labels(tmp_path / "l.zarr").labels()
    numbers = np.asarray(reviewing.review.numbers.data[:, :, :])
    np.testing.assert_array_equal(data > 0, numbers > 1)


def test_accepted_hits_become_a_database(reviewing, until, tmp_path):
    reviewing.add_to_datedb(tmp_path / "own.datedb")
    assert "accept" in reviewing.heard[-1][1]
    reviewing.review.select([0, 3])
    reviewing.review.accept()
    reviewing.add_to_datedb(tmp_path / "own.datedb")
    until(reviewing, lambda: len(reviewing.heard) > 1)
    assert reviewing.heard[-1][0] == "info", reviewing.heard
    db = open_datedb(tmp_path / "own.datedb")
    assert len(db) == 5
    hits = reviewing.review.places.hits
    assert db.entry("scene-1").type == hits.types[0]


def test_what_is_no_finished_scan_is_said_and_leaves_the_last_one(reviewing, folder):
    before = reviewing.review.result
    (folder / "scene.scan" / "found.json").unlink()
    reviewing.open_scan(folder / "scene.scan")
    reviewing.open_scan(folder / "nowhere.scan")
    assert [kind for kind, _ in reviewing.heard] == ["error", "error"]
    assert reviewing.review.result is before


def test_a_read_only_scan_says_so_and_changes_nothing(reviewing, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("cryoscan.scan.journal.write_atomically", refuse)
    reviewing.review.select([0])
    reviewing.review.reject()
    assert reviewing.review.shown[0]
    assert "Copy the scan" in reviewing.heard[-1][1]


def test_what_the_system_refuses_is_said_without_its_jargon(controller):
    controller.complain(PermissionError(13, "Permission denied", "/archive/a.scan/edited"))
    controller.complain(OSError(30, "Read-only file system", "/archive/a.scan"))
    controller.complain(OSError(28, "No space left on device"))
    closed, read_only, full = (text for _, text in controller.heard)
    assert closed.startswith("/archive/a.scan/edited: Permission denied. Choose a folder that you may write to")
    assert "may write to" in read_only
    assert full == "A file: No space left on device."


def test_regions_are_painted_where_they_were_not_yet(controller, folder, until):
    shutil.rmtree(folder / "scene.scan" / "found.zarr")
    controller.open_scan(folder / "scene.scan")
    assert controller.review.numbers is None
    until(controller, lambda: controller.review.numbers is not None)
    assert int(np.asarray(controller.review.numbers.data[:, :, :]).max()) == len(read_found(controller.review.result))

"""An annotator's day in the real window, from opening a volume to opening what was exported; see test_viewer.py."""

import functools
import json
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from qtpy.QtCore import QEventLoop, QPointF, Qt, QTimer
from qtpy.QtWidgets import QApplication

from cryoscan.io import VolumeFile, open_labels
from napari_plugin._controller import Controller
from napari_plugin._session import session_of
from napari_plugin._sources import file_of, region_of_labels, region_of_outline
from napari_plugin._widgets import AnnotateWidget

_STALL = 0.1  # seconds: what a person begins to notice; reported, as the machine may have other work


class Clock:
    """Runs the event loop until something is true, and notes the longest time that it did not turn."""

    def __init__(self):
        self.longest = 0.0

    def until(self, condition, *, seconds=90):
        if condition():
            return self.longest
        loop, timer = QEventLoop(), QTimer()
        begin = self._last = time.monotonic()

        def turn():
            now = time.monotonic()
            self.longest, self._last = max(self.longest, now - self._last), now
            if condition() or now - begin > seconds:
                loop.quit()

        timer.timeout.connect(turn)
        timer.start(4)
        loop.exec()
        timer.stop()
        assert condition(), "it did not happen in time"
        return self.longest

    def rest(self, controller):
        """Until no layer waits for its turn."""
        return self.until(lambda: not controller.turns.busy)

    def wait(self, seconds):
        end = time.monotonic() + seconds
        self.until(lambda: time.monotonic() > end)


@pytest.fixture
def window(make_napari_viewer, monkeypatch, processes):
    monkeypatch.setattr("napari_plugin._asking.Asking.warm_up", lambda _: None)  # the toy database needs no minute
    monkeypatch.setattr("napari_plugin._session.Controller", functools.partial(Controller, *processes))
    viewer = make_napari_viewer(show=True)
    viewer.window._qt_window.resize(1280, 800)
    pages = AnnotateWidget(viewer)
    viewer.window.add_dock_widget(pages, name="cryoscan", area="right")
    session = session_of(viewer)
    heard = []
    session.controller.said.connect(lambda kind, text: heard.append((kind, text)))
    yield viewer, pages, session, heard
    session.controller.close()


def fill_in(page, toy_folder, output):
    page.datedb.set_path(toy_folder / "toy.datedb")
    page.output.set_path(output)
    page.stride.setValue(3)
    page.resolution.setText("6.2")


def test_a_day(window, toy_folder, tmp_path, capsys):
    viewer, pages, session, heard = window
    controller, canvas, clock = session.controller, session.canvas, Clock()
    viewer.open(toy_folder / "scene.mrc", plugin="cryoscan")

    # before the start
    scan = pages.pages["Scan"]
    fill_in(scan, toy_folder, tmp_path / "day.scan")
    assert scan.volume.layer.name == "scene"
    scan.look.click()
    clock.until(lambda: scan.facts.rowCount())
    assert "41 × 52 × 63" in scan.facts.item(0, 1).text()

    # the scan, whose tiles appear
    scan.start.click()
    clock.until(lambda: scan.bar.value() > 0)
    assert canvas.layer("score so far") is not None
    quiet, stalls = Clock(), []
    controller.scanning.progressed.connect(lambda _: stalls.append(quiet.longest))
    quiet.until(lambda: controller.scanning.state == "done")
    assert "Finished" in scan.said.text()
    clock.until(lambda: controller.review.numbers is not None)
    arriving = Clock()
    arriving.rest(controller)
    names = [layer.name for layer in viewer.layers]
    assert names == ["scene", "day score", "day margin", "day domains", "day hits"]
    hits = controller.review.places.hits
    assert len(controller.review.places.answer) >= 6

    # overlay and density lie on each other
    domains, density = canvas.layer("places"), scan.volume.layer
    numbers = np.asarray(controller.review.numbers.data[:, :, :])
    index = np.argwhere(numbers == 1)[0]
    np.testing.assert_allclose(domains.data_to_world(index), density.data_to_world(index), atol=1e-3)
    viewer.dims.set_point(0, density.data_to_world(index)[0])
    assert domains.get_value(density.data_to_world(index), world=True) == 1

    # a click asks what is there
    pages.show_page("Ask")
    pages.pages["Ask"].click.click()
    z, y, x = (float(value) for value in hits.positions[0])
    viewer.dims.set_point(0, z)
    click(viewer, canvas, (z, y, x))
    clock.until(lambda: controller.asking.answer is not None)
    table = pages.pages["Ask"].candidates
    assert table.item(0, 1).text() == hits.types[0]
    assert controller.review.selection == (0,)
    assert canvas.layer("asked") is not None

    # what is like it
    pages.pages["Ask"].more.click()
    clock.until(lambda: pages.pages["Ask"].alike.rowCount())
    assert pages.pages["Ask"].alike.item(0, 0).text() == "1"

    # a threshold is dragged: counts and colours follow at once
    pages.show_page("Tune")
    tune = pages.pages["Tune"]
    score = tune.histograms["min_score"]
    before = len(controller.review.places.answer)
    middle = float(np.median(controller.review.found.hits.scores))
    drag(score, next(share for share in np.linspace(0, 1, 2000) if score.value_at(share * score.width()) > middle))
    assert 0 < len(controller.review.places.answer) < before
    assert f"<b>{int(controller.review.found.named(controller.review.config).sum())}</b>" in tune.counts.text()
    hidden = [n for n, colour in domains.colormap.color_dict.items() if n and colour[3] == 0]
    dropped = set(np.flatnonzero(~controller.review.places.kept) + 1) - {1}  # what is selected stays visible
    assert dropped == set(hidden) - {1}
    controller.review.untune()

    # accepted, rejected, undone with keys
    controller.review.select([1])
    press(viewer, "Y")
    controller.review.select([2])
    press(viewer, "N")
    assert controller.review.places.status[1:3] == ("accepted", "rejected")
    assert canvas.layer("hits").shown.tolist() == controller.review.shown.tolist()
    assert not canvas.layer("hits").shown[2]
    assert canvas.layer("hits").face_color[2, 3] == 0
    press(viewer, "U")
    assert controller.review.places.status[2] == ""
    press(viewer, "N")
    assert pages.pages["Correct"].journal.rowCount() == 4

    # exported, and opened again
    pages.show_page("Export")
    export = pages.pages["Export"]
    export.labels.set_path(tmp_path / "domains.zarr")
    export.hits.set_path(tmp_path / "hits.star")
    export.journal.set_path(tmp_path / "journal.csv")
    export.go.click()
    clock.until(lambda: any("Written" in text for _, text in heard))
    data = open_labels(tmp_path / "domains.zarr").labels()
    np.testing.assert_array_equal(data > 0, (numbers > 0) & (numbers != 3))
    (layer,) = viewer.open(tmp_path / "domains.zarr", plugin="cryoscan")
    np.testing.assert_allclose(layer.data_to_world(index), density.data_to_world(index), atol=1e-3)
    assert "rejected" not in (tmp_path / "hits.star").read_text()
    assert len((tmp_path / "journal.csv").read_text().splitlines()) == 5
    assert not [text for kind, text in heard if kind == "error"]
    with capsys.disabled():
        over = "" if stalls[-1] < _STALL else f" (more than {_STALL:g} s)"
        sys.stdout.write(
            f"\nlongest stall: {stalls[-1]:.3f} s while scanning{over}, {arriving.longest:.3f} s while the layers "
            f"of the finished scan came, {clock.longest:.3f} s at other times\n"
        )


def test_overlay_lies_on_a_pyramid_in_three_dimensions(make_napari_viewer, tmp_path):
    """In three dimensions the coarsest level is drawn; what it shows must be where the finest has it."""
    from cryoscan import Volume
    from cryoscan.io import write_volume

    shape = (150, 131, 137)
    places = np.moveaxis(np.indices(shape), 0, -1)
    middle = np.array([90, 40, 100])
    data = np.exp(-((places - middle) ** 2).sum(-1) / 200).astype(np.float32)
    write_volume(Volume(data, 1.37, (-31.5, 12.25, 407.125)), tmp_path / "a.zarr")
    viewer = make_napari_viewer(show=True)
    (layer,) = viewer.open(tmp_path / "a.zarr", plugin="cryoscan")
    viewer.dims.ndisplay = 3
    Clock().wait(0.2)
    drawn = np.asarray(layer._data_view, np.float64)
    factor = np.array(shape) / drawn.shape
    assert factor.max() > 1.5
    weights = np.clip(drawn - 0.3, 0, None)
    seen = [
        (weights.sum(axis=tuple({0, 1, 2} - {a})) @ np.arange(n)) / weights.sum() for a, n in enumerate(drawn.shape)
    ]
    np.testing.assert_allclose(seen * factor, middle, atol=0.5)


def test_a_volume_that_is_none_is_refused_in_plain_words(window, tmp_path, toy_folder):
    viewer, pages, _, heard = window
    scan = pages.pages["Scan"]
    rng = np.random.default_rng(0)
    flat = viewer.add_image(rng.normal(size=(20, 30)), name="flat")
    colour = viewer.add_image(rng.integers(0, 255, (20, 30, 3), np.uint8), rgb=True, name="colour")
    memory = viewer.add_image(rng.normal(size=(8, 20, 30)), name="memory")
    for layer, words in ((flat, "2 dimensions"), (colour, "colour picture"), (memory, "in memory only")):
        scan.volume.setCurrentIndex(scan.volume.findData(layer.name))
        scan.look.click()
        assert heard[-1][0] == "error"
        assert words in heard[-1][1]
    import mrcfile

    with mrcfile.new(tmp_path / "unset.mrc") as file:
        file.set_data(rng.normal(size=(5, 7, 9)).astype(np.float32))
    layer = viewer.add_image(mrcfile.open(tmp_path / "unset.mrc").data, name="unset")
    layer.metadata["cryoscan"] = {"file": VolumeFile(tmp_path / "unset.mrc").to_json()}
    scan.volume.setCurrentIndex(scan.volume.findData("unset"))
    scan.look.click()
    assert "voxel size" in heard[-1][1]
    layer.scale = (5.0, 5.0, 5.0)
    assert file_of(layer).voxel_size == 5.0
    layer.scale = (5.0, 5.0, 7.0)
    scan.look.click()
    assert "cubic" in heard[-1][1]
    scan.resolution.setText("six")
    scan.look.click()
    (opened,) = viewer.open(toy_folder / "scene.mrc", plugin="cryoscan")
    scan.volume.setCurrentIndex(scan.volume.findData(opened.name))
    scan.look.click()
    assert "a number" in heard[-1][1]


def test_a_scan_whose_volume_moved_says_so_until_the_volume_is_open(window, toy_folder, tmp_path):
    viewer, _, session, heard = window
    path = tmp_path / "scene.scan"
    shutil.copytree(toy_folder / "scene.scan", path)
    content = json.loads((path / "manifest.json").read_text())
    content["source"]["path"] = str(tmp_path / "moved.mrc")
    (path / "manifest.json").write_text(json.dumps(content))
    viewer.add_image(np.zeros((5, 6, 7), np.float32), name="another volume")
    viewer.open(path, plugin="cryoscan")
    assert session.canvas.layer("hits") is not None
    Clock().rest(session.controller)
    (said,) = [text for kind, text in heard if kind == "warning"]
    assert "not where it was" in said
    assert "Open it from where it is now" in said
    viewer.open(toy_folder / "scene.mrc", plugin="cryoscan")
    session.controller.open_scan(path)
    Clock().rest(session.controller)
    assert len([kind for kind, _ in heard if kind == "warning"]) == 1


def test_what_fails_does_not_look_busy_for_ever(window, toy_folder, tmp_path):
    viewer, pages, session, heard = window
    shutil.copy(toy_folder / "scene.mrc", tmp_path / "scene.mrc")
    viewer.open(tmp_path / "scene.mrc", plugin="cryoscan")
    identify = pages.pages["Identify"]
    session.controller.asking.datedb = tmp_path / "nowhere.datedb"
    identify._name_map()
    assert identify.bar.maximum() == 0
    Clock().until(lambda: heard)
    assert heard[-1][0] == "error"
    assert identify.bar.maximum() == 1
    assert "did not work" in identify.said.text()


def test_regions_that_are_drawn_are_where_they_were_drawn(make_napari_viewer, toy_folder):
    viewer = make_napari_viewer()
    (layer,) = viewer.open(toy_folder / "scene.mrc", plugin="cryoscan")
    volume = file_of(layer).open()
    low, high = volume.to_position((20, 9.6, 14.6)), volume.to_position((20, 20.4, 31.4))
    corners = [[low[0], a, b] for a, b in ((low[1], low[2]), (low[1], high[2]), (high[1], high[2]), (high[1], low[2]))]
    shapes = viewer.add_shapes([np.array(corners)], shape_type="polygon", units=layer.units)
    box, mask = region_of_outline(shapes, volume)
    voxels = np.argwhere(mask) + [part.start for part in box]
    assert voxels[:, 1].min() == 10
    assert voxels[:, 1].max() == 20
    assert voxels[:, 2].min() == 15
    assert voxels[:, 2].max() == 31
    assert 14 <= voxels[:, 0].min() < 20 < voxels[:, 0].max() <= 26
    labels = np.zeros(volume.shape, np.uint8)
    labels[5:9, 7:12, 20:30] = 4
    drawn = viewer.add_labels(labels, scale=layer.scale, translate=layer.translate, units=layer.units)
    box, mask = region_of_labels(drawn, 4, volume)
    assert mask.sum() == 4 * 5 * 10


def test_a_region_an_outline_or_a_file_says_where_to_scan(window, toy_folder, tmp_path):
    viewer, pages, _, heard = window
    (layer,) = viewer.open(toy_folder / "scene.mrc", plugin="cryoscan")
    scan = pages.pages["Scan"]
    labels = viewer.add_labels(np.zeros(layer.data.shape, np.uint8), scale=layer.scale, translate=layer.translate)
    scan.region.setCurrentIndex(scan.region.findData(labels.name))
    scan.look.click()
    assert "painted" in heard[-1][1]
    labels.data[3:6, 7, 11:20] = 2
    request = scan.request()
    mask = request.mask.on_grid_of(request.file.open())
    np.testing.assert_array_equal(mask.load(), labels.data > 0)
    assert request.outline is None
    scan.mask.set_path(tmp_path / "mask.mrc")
    scan.look.click()
    assert "both" in heard[-1][1]
    scan.region.setCurrentIndex(0)
    assert scan.request().mask == tmp_path / "mask.mrc"
    scan.scheme.setCurrentText("SCOPe")
    assert scan.request().config.scheme == "SCOPe"


def test_sharpening_is_asked_for_and_what_it_changed_is_seen(window, toy_folder, sharpened_scan, tmp_path):
    viewer, pages, session, heard = window
    clock, scan = Clock(), pages.pages["Scan"]
    shutil.copy(toy_folder / "scene.mrc", tmp_path / "scene.mrc")
    viewer.open(tmp_path / "scene.mrc", plugin="cryoscan")
    fill_in(scan, toy_folder, "")
    assert not scan.enhance.isChecked()
    assert not scan.request().config.enhance
    assert scan.request().output == tmp_path / "scene.scan"
    assert "naming does not gain" in scan.enhance.toolTip()
    scan.enhance.click()
    assert scan.request().config.enhance
    assert scan.request().output == tmp_path / "scene-sharpened.scan"
    scan.look.click()
    clock.until(lambda: scan.facts.rowCount())
    facts = {scan.facts.item(row, 0).text(): scan.facts.item(row, 1).text() for row in range(scan.facts.rowCount())}
    assert "of the time" in facts["sharpened"]
    scan.resolution.setText("9")
    scan.look.click()
    clock.until(lambda: "4 to 8" in scan.warnings.text())

    # a scan of the volume as it is does not pass for one of the sharpened volume
    scan.resolution.setText("6.2")
    scan.output.set_path(toy_folder / "scene.scan")
    scan.start.click()
    clock.until(lambda: session.controller.scanning.state == "failed")
    assert "enhance" in heard[-1][1]
    scan.enhance.click()
    scan.start.click()
    assert "finished already" in heard[-1][1]

    viewer.open(sharpened_scan, plugin="cryoscan")
    review, hits = session.controller.review, session.canvas.layer("hits")
    assert [str(symbol) for symbol in hits.symbol] == ["disc", "diamond", *["disc"] * 4]
    assert hits.features["changed_by_sharpening"].tolist() == [False, True, False, False, False, False]
    assert hits.features["without_sharpening"][1] == "1.10.2.10 shell"
    domains, correct, ask = (pages.pages[name] for name in ("Domains", "Correct", "Ask"))
    assert "changed the labels of 1 of them" in domains.summary.text()
    counts = [domains.legend.item(row, 2).text() for row in range(domains.legend.rowCount())]
    assert sorted(counts) == ["2", "2", "2 (1 ◆)"]
    review.select([1])
    assert "Neither answer is safe" in correct.selected.text()
    session.controller.asking.datedb = toy_folder / "toy.datedb"
    session.canvas.ask(tuple(hits.data[1]))
    clock.until(lambda: session.controller.asking.answer is not None)
    assert "Neither answer is safe" in ask.verdict.text()
    review.select([0])
    assert "the label is the same" in correct.selected.text()


def test_edited_regions_merge_split_and_undo(window, toy_folder, tmp_path):
    viewer, pages, session, heard = window
    session.controller.asking.datedb = toy_folder / "toy.datedb"
    viewer.open(toy_folder / "scene.scan", plugin="cryoscan")
    assert session.controller.review.result is not None
    Clock().rest(session.controller)
    assert [layer.name for layer in viewer.layers] == OF_A_SCAN  # the reader adds them, and nobody else
    correct = pages.pages["Correct"]
    assert not correct.stop.isEnabled()
    session.controller.editing.copy()
    assert correct.stop.isEnabled()
    assert not correct.take_over.isEnabled()
    clock = Clock()
    clock.until(lambda: correct.edited.layer is not None)
    layer = correct.edited.layer
    assert isinstance(layer.data, np.memmap)  # what the other process sees, too
    assert [one.name for one in viewer.layers].count(layer.name) == 1
    before = np.asarray(layer.data).copy()
    assert set(np.unique(before)) == set(range(7))
    correct.merged.setText("1, 2")
    correct._merge()
    assert not correct.saving.isEnabled()
    clock.until(lambda: not session.controller.editing.busy)
    assert not (np.asarray(layer.data) == 2).any()
    plane = round(layer.world_to_data(viewer.dims.point)[0])
    np.testing.assert_array_equal(layer._slice.image.raw, np.asarray(layer.data)[plane])  # what is on the screen
    layer.undo()
    np.testing.assert_array_equal(layer.data, before)
    where = np.argwhere(before == 3)
    ends = where[[where[:, 2].argmin(), where[:, 2].argmax()]]
    points = viewer.add_points(np.array([layer.data_to_world(end) for end in ends]), name="seeds", units=layer.units)
    correct.points.setCurrentIndex(correct.points.findData(points.name))
    viewer.layers.selection.active = viewer.layers["scene"]
    correct._split()
    clock.until(lambda: not session.controller.editing.busy)
    assert (np.asarray(layer.data) == 7).any()
    assert ((np.asarray(layer.data) > 0) == (before > 0)).all()
    split = np.asarray(layer.data).copy()
    layer.undo()
    np.testing.assert_array_equal(layer.data, before)  # one step, however many parts
    layer.redo()
    np.testing.assert_array_equal(layer.data, split)
    correct.save(tmp_path / "edited.zarr")
    clock.until(lambda: not session.controller.editing.busy)
    saved = open_labels(tmp_path / "edited.zarr")
    assert saved.classes[7] == saved.classes[3]
    assert session.controller.review.journal.changes[-1].what == "labels"

    # hits and points follow the layer, and the key for undoing brings the old ones back
    review = session.controller.review
    edited = np.asarray(layer.data).copy()
    assert layer.selected_label == 7
    correct.take_over.click()
    assert not layer.editable
    clock.until(lambda: review.redrawing is not None)
    clock.rest(session.controller)
    places, hits = session.canvas.layer("places"), session.canvas.layer("hits")
    np.testing.assert_array_equal(np.asarray(places.data[0] if places.multiscale else places.data), edited)
    assert len(hits.data) == 7
    assert hits.shown.tolist() == review.shown.tolist() == [True] * 7
    middle = places.world_to_data(hits.data[6])
    assert np.linalg.norm(middle - np.argwhere(edited == 7).mean(axis=0)) < 1
    assert [layer.name for layer in viewer.layers].count("scene domains") == 1
    assert correct.journal.item(0, 2).text() == "2 regions drawn by hand"
    pages.show_page("Correct")
    press(viewer, "U")
    clock.rest(session.controller)
    assert len(session.canvas.layer("hits").data) == 6
    copy = Path(layer.data.filename)
    assert copy.exists()
    viewer.layers.remove(layer)
    assert not copy.exists()
    assert not [text for kind, text in heard if kind == "error"]


OF_A_SCAN = ["scene", "scene score", "scene margin", "scene domains", "scene hits"]


def test_layers_of_a_scan_come_one_per_turn_and_go_with_it(window, toy_folder, tmp_path):
    viewer, _, session, heard = window
    controller, canvas, clock = session.controller, session.canvas, Clock()
    other = tmp_path / "other.scan"
    shutil.copytree(toy_folder / "scene.scan", other)
    turns, many = [], []
    viewer.layers.events.inserted.connect(lambda _: turns.append(len(many)))
    viewer.layers.events.removed.connect(lambda _: turns.append(len(many)))
    controller.turns.step = lambda step=controller.turns.step: (many.append(1), step())
    for path in (toy_folder / "scene.scan", other, toy_folder / "scene.scan"):
        controller.open_scan(path)
        controller.review.select([1])  # before there is a layer to select it in
        clock.rest(controller)
        clock.wait(0.2)  # drawn
        names = [layer.name for layer in viewer.layers]
        assert names == ["scene", *(f"{path.stem} {role}" for role in ("score", "margin", "domains", "hits"))]
        hits = canvas.layer("hits")
        assert hits.selected_data == {1}
        assert hits.metadata["cryoscan"]["scan"] == str(path)
        np.testing.assert_allclose(hits.face_color[:, 3], controller.review.shown)
        assert canvas.layer("places").colormap.color_dict[2][3] == controller.review.colours()[2][3]
        hits.opacity = 0.3
    assert len(turns) == len(set(turns)) == 5 + 2 * 8
    assert canvas.layer("hits").opacity == 0.3

    # another scan is opened before the first has all its layers, and the user removes one that is about to go
    controller.open_scan(other)
    clock.until(lambda: any(layer.name == "other score" for layer in viewer.layers))
    controller.open_scan(toy_folder / "scene.scan")
    clock.rest(controller)
    assert [layer.name for layer in viewer.layers] == OF_A_SCAN
    controller.open_scan(other)
    viewer.layers.remove("scene score")
    clock.rest(controller)
    assert [layer.name for layer in viewer.layers][1:] == [f"other {name.split()[1]}" for name in OF_A_SCAN[1:]]
    assert not [text for kind, text in heard if kind == "error"]


def test_a_window_that_is_closed_gets_no_more_layers(make_napari_viewer, toy_folder, monkeypatch):
    monkeypatch.setattr("napari_plugin._asking.Asking.warm_up", lambda _: None)
    viewer = make_napari_viewer(show=True)
    session = session_of(viewer)
    session.controller.open_scan(toy_folder / "scene.scan")
    assert session.controller.turns.busy
    viewer.close()
    Clock().wait(0.3)
    assert not len(viewer.layers)
    assert not session.controller.turns.busy


def test_labels_of_lattice_points_follow_thresholds_and_corrections_too(window, lattice_scan, tmp_path):
    viewer, pages, session, heard = window
    review, clock = session.controller.review, Clock()
    copied = tmp_path / "windows.scan"
    shutil.copytree(lattice_scan, copied)
    viewer.open(copied, plugin="cryoscan")
    places = session.canvas.layer("places")
    scanned = review.result.labels().labels()

    def drawn():
        return np.asarray(places.data)

    np.testing.assert_array_equal(drawn(), scanned)
    before = len(np.unique(scanned))
    review.tune(min_score=0.97)
    assert 0 < (drawn() > 0).sum() < (scanned > 0).sum()
    z = int(np.argwhere(scanned)[0, 0])
    viewer.dims.set_point(0, places.data_to_world((z, 0, 0))[0])
    np.testing.assert_array_equal(places._slice.image.raw, drawn()[z])  # what is on the screen, not what was
    review.untune()
    np.testing.assert_array_equal(drawn(), scanned)
    position = review.found.hits.positions[0]
    assert review.place_at(position) == 0
    row = review.legend()[0]
    review.show_type(row.scheme, row.type, False)
    hidden = {label for label, colour in places.colormap.color_dict.items() if label and colour[3] == 0}
    assert len(hidden) == 1 < before
    review.show_only(None)
    review.select([0])
    press(viewer, "N")
    assert ((scanned > 0) & (drawn() == 0)).any()
    pages.show_page("Export")
    export = pages.pages["Export"]
    export.labels.set_path(tmp_path / "l.zarr")
    export.go.click()
    clock.until(lambda: any("Written" in text for _, text in heard))
    np.testing.assert_array_equal(open_labels(tmp_path / "l.zarr").labels(), drawn())
    assert not [text for kind, text in heard if kind == "error"]
    pages.pages["Correct"].doing(session.controller.editing.copy)()
    assert "points of its lattice" in heard[-1][1]


def test_lasso_and_volume_select_each_other(window, toy_folder):
    viewer, pages, session, _ = window
    review = session.controller.review
    viewer.open(toy_folder / "scene.scan", plugin="cryoscan")
    explore = pages.pages["Explore"]
    explore._compute()
    Clock().until(lambda: len(explore.plane.pixels()))
    pixels = explore.plane.pixels()
    assert len(pixels) == len(review.places.answer)
    left, top = pixels.min(axis=0) - 9
    right, bottom = pixels.max(axis=0) + 9
    lasso(explore.plane, [(left, top), (right, top), (right, bottom), (left, bottom)])
    assert len(review.selection) == len(pixels)
    assert session.canvas.layer("hits").selected_data == set(review.selection)
    lasso(explore.plane, [pixels[2]])
    assert review.selection == (explore._places[2],)
    session.canvas.layer("hits").selected_data = {1}
    assert review.selection == (1,)

    # the same with points of the lattice, wherever there is density
    asking, hits = session.controller.asking, len(pixels)
    explore.what.setCurrentIndex(1)
    explore._compute()
    Clock().until(lambda: asking.sample is not None)
    pixels, layer = explore.plane.pixels(), session.canvas.layer("sample")
    assert len(pixels) == len(layer.data) == len(asking.sample.positions) > hits
    np.testing.assert_allclose(layer.data, asking.sample.positions)
    left, top = np.percentile(pixels, 30, axis=0)
    right, bottom = np.percentile(pixels, 95, axis=0)
    caught = np.flatnonzero(((pixels > (left, top)) & (pixels < (right, bottom))).all(axis=1))
    lasso(explore.plane, [(left, top), (right, top), (right, bottom), (left, bottom)])
    assert set(asking.sample_selection) == set(caught.tolist()) == set(layer.selected_data)
    assert 0 < len(caught) < len(pixels)
    np.testing.assert_array_equal(np.flatnonzero(layer.shown), caught)
    assert review.selection == (1,)  # hits are another matter
    layer.selected_data = {2}
    assert asking.sample_selection == (2,)
    assert explore.plane._marked == {2}
    lasso(explore.plane, [(0, 0), (1, 0), (0, 30)])
    assert layer.shown.all()
    explore.what.setCurrentIndex(0)
    explore._compute()
    Clock().until(lambda: asking.sample is None)
    assert session.canvas.layer("sample") is None
    assert len(explore.plane.pixels()) == hits


def test_points_are_told_from_the_ground_in_both_themes(make_napari_viewer):
    from napari_plugin._widgets.parts import theme_colours
    from napari_plugin._widgets.plane import Plane

    viewer = make_napari_viewer()
    for theme in ("dark", "light"):
        viewer.theme = theme
        plane = Plane(viewer)
        plane.resize(240, 260)
        ground = theme_colours(viewer)[2].darker(115)
        own = (ground.red(), ground.green(), ground.blue())
        plane.show_points(np.array([[0.0, 0.0], [1.0, 1.0]]), [own, own])  # the worst colour that a type can have
        picture = plane.grab().toImage()
        x, y = plane.pixels()[0]
        around = [picture.pixelColor(int(x + dx), int(y)) for dx in range(-7, 8)]
        assert max(abs(colour.lightness() - ground.lightness()) for colour in around) > 40


def test_widgets_leave_nothing_behind(make_napari_viewer, toy_folder):
    from napari_plugin import _widgets

    viewer = make_napari_viewer()
    controller = session_of(viewer).controller
    before = len(controller.review.changed)
    for name in _widgets.__all__:
        widget = getattr(_widgets, name)(viewer)
        dock = viewer.window.add_dock_widget(widget)
        viewer.window.remove_dock_widget(dock)
        widget.close()
        widget.deleteLater()
    QApplication.sendPostedEvents(None, 52)  # DeferredDelete
    Clock().wait(0.1)
    assert len(controller.review.changed) == before
    controller.open_scan(toy_folder / "scene.scan")
    controller.close()


# ---------------------------------------------------------------- hands


def click(viewer, canvas, position):
    """A click at a place of the slice, as the canvas hands it on."""

    class Event:
        type = "mouse_press"
        pos = (100.0, 100.0)

    event = Event()
    event.position = position
    steps = canvas._on_mouse(viewer, event)
    next(steps)
    event.type = "mouse_release"
    for _ in steps:
        pass


def press(viewer, key):
    """A key over the canvas."""
    (action,) = (action for known, action in viewer.keymap.items() if str(known) == key)
    action(viewer)


def drag(histogram, share):
    """The line of a histogram to a share of its width."""

    class Event:
        def position(self):
            return QPointF(histogram.width() * share, 5)

    histogram.mousePressEvent(Event())
    histogram.mouseMoveEvent(Event())


def lasso(plane, corners):
    class Event:
        def __init__(self, corner):
            self._corner = QPointF(*map(float, corner))

        def position(self):
            return self._corner

        def button(self):
            return Qt.MouseButton.LeftButton

    plane.mousePressEvent(Event(corners[0]))
    for corner in corners:
        plane.mouseMoveEvent(Event(corner))
    plane.mouseReleaseEvent(Event(corners[-1]))

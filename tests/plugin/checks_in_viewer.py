"""What a real viewer shows; collected by test_viewer.py only, in a process with a display."""

import numpy as np
import pytest
from npe2 import PluginManifest

from cryoscan import LabelClass, LabelMap, Volume
from cryoscan.io import write_labels, write_volume
from napari_plugin._session import session_of

VOXEL = (3, 11, 6)
VOXEL_SIZE, ORIGIN = 1.37, (-31.5, 12.25, 407.125)
PLACE = [o + i * VOXEL_SIZE for o, i in zip(ORIGIN, VOXEL, strict=True)]


@pytest.fixture
def bright_voxel(tmp_path):
    """One bright voxel off every symmetry of an odd, non-cubic grid."""
    data = np.random.default_rng(1).normal(size=(11, 17, 23)).astype(np.float32)
    data[VOXEL] = 100
    return Volume(data, VOXEL_SIZE, ORIGIN)


@pytest.mark.parametrize("name", ["ugly.mrc", "ugly.zarr"])
def test_bright_voxel_is_at_its_position(make_napari_viewer, bright_voxel, tmp_path, name):
    write_volume(bright_voxel, tmp_path / name)
    viewer = make_napari_viewer()
    (layer,) = viewer.open(tmp_path / name, plugin="cryoscan")
    index = np.unravel_index(np.argmax(np.asarray(layer.data)), layer.data.shape)
    np.testing.assert_allclose(layer.data_to_world(index), PLACE, atol=1e-3)
    assert {str(unit) for unit in layer.units} == {"angstrom"}
    assert viewer.screenshot(canvas_only=True, flash=False).shape[2] == 4


@pytest.mark.parametrize("name", ["labels.mrc", "labels.zarr"])
def test_labels_lie_on_the_density_and_say_what_they_are(make_napari_viewer, bright_voxel, tmp_path, name):
    data = np.zeros(bright_voxel.shape, np.uint16)
    data[VOXEL] = 7
    meaning = LabelClass("Globin-like", "1.10.490.10", "CATH")
    labels = LabelMap(Volume(data, VOXEL_SIZE, ORIGIN), {7: meaning})
    write_labels(labels, tmp_path / name)
    write_volume(bright_voxel, tmp_path / "ugly.mrc")
    viewer = make_napari_viewer()
    (image,) = viewer.open(tmp_path / "ugly.mrc", plugin="cryoscan")
    (layer,) = viewer.open(tmp_path / name, plugin="cryoscan")
    assert type(layer).__name__ == "Labels"
    index = np.argwhere(np.asarray(layer.data) == 7)[0]
    np.testing.assert_allclose(layer.data_to_world(index), PLACE, atol=1e-3)
    np.testing.assert_allclose(layer.data_to_world(index), image.data_to_world(VOXEL), atol=1e-3)
    np.testing.assert_allclose(np.asarray(layer.get_color(7)) * 255, [*meaning.colour, 255], atol=1)
    np.testing.assert_allclose(np.asarray(layer.colormap.map(0))[3], 0)
    assert "Globin-like" in " ".join(layer.features["name"])


def test_every_widget_opens_from_the_menu_and_samples_open(make_napari_viewer, monkeypatch, tmp_path):
    monkeypatch.setattr("napari_plugin._asking.Asking.warm_up", lambda _: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    viewer = make_napari_viewer()
    for widget in PluginManifest.from_distribution("cryoscan").contributions.widgets:
        _, opened = viewer.window.add_plugin_dock_widget("cryoscan", widget.display_name)
        assert opened.isVisibleTo(viewer.window._qt_window)
    (layer,) = viewer.open_sample("cryoscan", "demo-volume")
    assert layer.name == "demo"
    assert session_of(viewer).canvas.volume() is layer
    session_of(viewer).controller.close()

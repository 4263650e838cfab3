"""Layer data without napari or Qt: places, colours and names."""

import numpy as np
import pytest

from cryoscan import Hits, LabelClass, LabelMap, Volume
from napari_plugin._layers import hits_layer, label_layer, volume_layer

GLOBIN = LabelClass("Globin-like", "1.10.490.10", "CATH")


@pytest.fixture
def ugly_labels(ugly_volume):
    data = np.zeros(ugly_volume.shape, np.uint16)
    data[2:5, 3:9, 11:20] = 7
    data[6, 1, 4] = 3
    return LabelMap(Volume(data, ugly_volume.voxel_size, ugly_volume.origin), {7: GLOBIN})


@pytest.fixture
def hits():
    return Hits(
        positions=np.array([[-3.5, 20.25, 410.0], [5.0, 13.0, 409.5]]),
        labels=np.array([7, 3]),
        types=["1.10.490.10", "3.40.50.720"],
        schemes=["CATH", "CATH"],
        names=["Globin-like", "Rossmann"],
        entries=["1abcA00", "2xyzB01"],
        scores=np.array([0.9, 0.7]),
        margins=np.array([0.2, 0.1]),
    )


@pytest.mark.parametrize("index", [(0, 0, 0), (10, 16, 22), (3, 0, 7)])
def test_layer_puts_each_voxel_at_its_position(ugly_volume, index):
    data, settings, kind = volume_layer(ugly_volume, name="map")
    assert kind == "image"
    assert data is ugly_volume.data
    place = np.array(settings["translate"]) + np.array(settings["scale"]) * index
    np.testing.assert_allclose(place, ugly_volume.to_position(index), rtol=1e-12)
    assert settings["units"] == ("angstrom",) * 3


@pytest.mark.parametrize("value", [0.0, -2.5])
def test_flat_volume_still_has_contrast(value):
    _, settings, _ = volume_layer(Volume(np.full((3, 5, 4), value, np.float32), 2.0), name="flat")
    low, high = settings["contrast_limits"]
    assert low < high


def test_contrast_ignores_a_single_hot_voxel(ugly_volume):
    data = ugly_volume.load()
    data[0, 1, 2] = 1e6
    _, settings, _ = volume_layer(Volume(data, 1.37), name="hot")
    assert settings["contrast_limits"][1] < 10


def test_contrast_reads_few_slices_of_a_lazy_volume():
    class Counting:
        shape, dtype, slices = (500, 3, 4), np.dtype(np.float32), []

        def __getitem__(self, key):
            self.slices.append(key)
            return np.arange(12, dtype=np.float32).reshape(3, 4)

    volume_layer(Volume(Counting(), 2.0), name="lazy")
    assert 1 <= len(Counting.slices) <= 10


def test_label_layer_carries_meanings_and_colours(ugly_labels):
    data, settings, kind = label_layer(ugly_labels, name="domains")
    assert kind == "labels"
    assert np.issubdtype(data.dtype, np.integer)
    features = settings["features"].set_index("index")
    assert features.loc[7, "name"] == "Globin-like"
    assert features.loc[7, "type"] == "1.10.490.10"
    np.testing.assert_allclose(np.array(settings["colormap"][7]) * 255, [*GLOBIN.colour, 255])
    assert settings["colormap"][0][3] == 0
    assert settings["translate"] == ugly_labels.volume.origin


def test_labels_without_meaning_keep_the_viewers_colours(ugly_labels):
    _, settings, _ = label_layer(LabelMap(ugly_labels.volume, {}), name="regions")
    assert "colormap" not in settings
    assert "features" not in settings


def test_hits_stay_at_their_positions_and_wear_the_colour_of_their_type(hits):
    data, settings, kind = hits_layer(hits, name="hits")
    assert kind == "points"
    assert data.dtype == np.float64
    np.testing.assert_array_equal(data, hits.positions)
    np.testing.assert_allclose(settings["face_color"][0] * 255, GLOBIN.colour, rtol=1e-6)
    assert list(settings["features"]["entry"]) == hits.entries
    assert list(settings["features"]["score"]) == [0.9, 0.7]
    assert settings["units"] == ("angstrom",) * 3


def test_no_hits_make_an_empty_layer():
    empty = Hits(np.empty((0, 3)), np.empty(0, int))
    data, settings, _ = hits_layer(empty, name="none")
    assert data.shape == (0, 3)
    assert settings["face_color"].shape == (0, 3)

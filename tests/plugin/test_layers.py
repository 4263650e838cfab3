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


# ---------------------------------------------------------------- pyramids


@pytest.mark.parametrize("shape", [(64, 48, 80), (67, 51, 83)])
def test_coarse_levels_lie_on_the_fine_one_to_the_voxel(shape, rng):
    plane = rng.normal(size=3)
    z, y, x = np.indices(shape)
    volume = Volume((plane[0] * z + plane[1] * y + plane[2] * x).astype(np.float32), 1.37, (-31.5, 12.25, 407.125))
    levels = [Volume(volume.load(), 1.37, volume.origin), *halves(volume)]
    data, settings, _ = volume_layer(levels[0], name="map", coarser=levels[1:])
    assert len(data) == 3
    for level in data[1:]:
        factor = np.array(shape) / level.shape  # where napari believes its voxels to be
        inner = np.array(level.shape) - 2
        seen = np.asarray(level)[tuple(inner)]
        assert float(seen) == pytest.approx(float(plane @ (inner * factor)), abs=1e-3)
        np.testing.assert_array_equal(np.asarray(level[3]), np.asarray(level)[3])
        np.testing.assert_array_equal(np.asarray(level[2:4, :, 5]), np.asarray(level)[2:4, :, 5])
    assert settings["translate"] == volume.origin


def halves(volume):
    """Two coarser levels, averaged as stores do."""
    levels, data = [], volume.load()
    for number in (1, 2):
        data = np.pad(data, [(0, n % 2) for n in data.shape], mode="edge")
        data = data.reshape(data.shape[0] // 2, 2, data.shape[1] // 2, 2, data.shape[2] // 2, 2).mean(axis=(1, 3, 5))
        factor = 2**number
        shift = (factor - 1) / 2 * volume.voxel_size
        levels.append(Volume(data, volume.voxel_size * factor, tuple(o + shift for o in volume.origin)))
    return levels


def test_coarse_labels_are_labels_of_the_fine_one():
    data = np.zeros((40, 44, 48), np.uint16)
    data[8:20, 10:30, 12:40] = 7
    fine = LabelMap(Volume(data, 2.5, (1.0, 2.0, 3.0)), {7: GLOBIN})
    coarse = Volume(data[::4, ::4, ::4], 10.0, (1.0, 2.0, 3.0))
    levels, _, kind = label_layer(fine, name="domains", coarser=[coarse])
    assert kind == "labels"
    np.testing.assert_array_equal(np.asarray(levels[1]), data[::4, ::4, ::4])
    assert levels[1].dtype == np.uint16

"""What is saved from the viewer reads back the same: values, places, names."""

import numpy as np
import pandas as pd
import pytest

from cryoscan import LabelClass, LabelMap, Volume
from cryoscan.errors import GeometryError
from cryoscan.io import open_labels, open_volume
from napari_plugin._layers import label_layer, volume_layer
from napari_plugin._writer import classes_of, write_image, write_label_layer

MEANING = LabelClass("Globin-like", "1.10.490.10", "CATH")


@pytest.mark.parametrize("name", ["a.mrc", "a.zarr"])
def test_a_density_comes_back_where_it_was(ugly_volume, tmp_path, name):
    data, settings, _ = volume_layer(ugly_volume, name="map")
    (path,) = write_image(str(tmp_path / name), data, settings)
    again = open_volume(path)
    np.testing.assert_array_equal(again.load(), ugly_volume.load())
    np.testing.assert_allclose(again.origin, ugly_volume.origin, atol=1e-4)
    assert again.voxel_size == pytest.approx(1.37)


@pytest.mark.parametrize("name", ["a.mrc", "a.zarr"])
def test_edited_labels_keep_their_names(ugly_volume, tmp_path, name):
    data = np.zeros(ugly_volume.shape, np.uint16)
    data[3, 11, 6], data[4, 2, 9] = 7, 9
    labels = LabelMap(Volume(data, 1.37, ugly_volume.origin), {7: MEANING})
    edited, settings, _ = label_layer(labels, name="domains")
    edited = edited.copy()
    edited[5, 5, 5] = 7
    (path,) = write_label_layer(str(tmp_path / name), edited, settings)
    again = open_labels(path)
    assert again.classes == {7: MEANING}
    np.testing.assert_array_equal(again.labels(), edited)
    np.testing.assert_allclose(again.volume.origin, ugly_volume.origin, atol=1e-4)


def test_of_a_pyramid_the_finest_level_is_saved(ugly_volume, tmp_path):
    coarse = Volume(np.zeros((5, 8, 11), np.float32), 2.74, ugly_volume.origin)
    data, settings, _ = volume_layer(ugly_volume, name="map", coarser=[coarse])
    (path,) = write_image(str(tmp_path / "a.mrc"), data, {**settings, "multiscale": True})
    np.testing.assert_array_equal(open_volume(path).load(), ugly_volume.load())


@pytest.mark.parametrize(
    ("data", "change", "message"),
    [
        (np.zeros((4, 5, 3)), {"rgb": True}, "colour picture"),
        (np.zeros((4, 5)), {"scale": (1.0, 1.0), "translate": (0, 0)}, "2 dimensions"),
        (np.zeros((4, 5, 6)), {"scale": (1.0, 1.0, 2.0)}, "cubic"),
    ],
)
def test_what_is_no_volume_is_refused(data, change, message, tmp_path):
    settings = {"scale": (1.0, 1.0, 1.0), "translate": (0.0, 0.0, 0.0), **change}
    with pytest.raises(GeometryError, match=message):
        write_image(str(tmp_path / "a.mrc"), data, settings)
    assert not (tmp_path / "a.mrc").exists()


def test_features_without_names_are_no_meanings():
    assert classes_of(None) == {}
    assert classes_of(pd.DataFrame({"area": [1, 2]})) == {}
    partial = pd.DataFrame({"index": [0, 3], "name": ["background", "Mine"], "type": [None, np.nan]})
    assert classes_of(partial) == {3: LabelClass("Mine")}

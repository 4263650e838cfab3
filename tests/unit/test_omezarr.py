import json
import shutil

import numpy as np
import ome_zarr_models
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cryoscan import CryoscanError, LabelClass, LabelMap, Volume
from cryoscan.errors import ExistingOutputError, FormatError, GeometryError, MissingFileError, ResourceError
from cryoscan.io import (
    create_zarr,
    describe,
    open_labels,
    open_volume,
    open_zarr_array,
    write_labels,
    write_volume,
)

VERSIONS = ["0.4", "0.5"]

SHAPE = (5, 7, 9)

ORIGIN = (-31.5, 12.25, 407.125)

AXES = [{"name": name, "type": "space", "unit": "angstrom"} for name in "zyx"]


def foreign(path, arrays, *, axes=AXES, transforms=None, above=None, version="0.4", **attributes):
    """A store as another program might write it; `transforms` has one list per level."""
    group = zarr.create_group(path, zarr_format=2 if version == "0.4" else 3)
    for number, data in enumerate(arrays):
        group.create_array(str(number), data=np.asarray(data))
    if transforms is None:
        transforms = [[{"type": "scale", "scale": [2.5 * 2**n] * len(axes)}] for n in range(len(arrays))]
    multiscale = {
        "version": version,
        "axes": axes,
        "datasets": [{"path": str(n), "coordinateTransformations": t} for n, t in enumerate(transforms)],
    }
    if above is not None:
        multiscale["coordinateTransformations"] = above
    attributes = {"multiscales": [multiscale], **attributes}
    group.attrs.update(attributes if version == "0.4" else {"ome": {"version": version, **attributes}})
    return path


@pytest.fixture
def data(rng):
    return rng.normal(size=SHAPE).astype(np.float32)


# Round trips


@pytest.mark.parametrize("ngff", VERSIONS)
def test_what_is_written_comes_back(tmp_path, ugly_volume, ngff):
    path = write_volume(ugly_volume, tmp_path / "a.ome.zarr", ngff=ngff)
    volume = open_volume(path)
    np.testing.assert_array_equal(volume.load(), ugly_volume.data)
    assert (volume.voxel_size, volume.origin) == (ugly_volume.voxel_size, ugly_volume.origin)
    info = describe(path)
    assert info.format == f"OME-Zarr {ngff}"
    assert (info.shape, info.dtype, info.voxel_size, info.origin) == (ugly_volume.shape, "float32", 1.37, ORIGIN)
    assert (info.axis_order, info.levels, info.warnings) == ("z, y, x", (ugly_volume.shape,), ())
    assert info.file_size > 1000
    assert [file.name for file in tmp_path.iterdir()] == ["a.ome.zarr"]


@settings(max_examples=20, deadline=None)
@given(
    data=hnp.arrays(
        st.sampled_from(["u1", "i1", "i2", "u2", "u4", "f2", "f4", "f8"]),
        hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=7),
        elements=st.integers(0, 100),
    ),
    ngff=st.sampled_from(VERSIONS),
)
def test_any_shape_and_type_comes_back(tmp_path_factory, data, ngff):
    path = tmp_path_factory.mktemp("any") / "a.zarr"
    write_volume(Volume(data, 1.37, ORIGIN), path, ngff=ngff, dtype=data.dtype)
    np.testing.assert_array_equal(open_volume(path).load(), data)
    assert describe(path).dtype == data.dtype.name
    assert isinstance(open_volume(path).data[0, 0, 0].item(), float)


@pytest.mark.parametrize("ngff", VERSIONS)
def test_a_volume_larger_than_a_shard_comes_back(tmp_path, rng, ngff):
    data = rng.integers(-100, 100, (70, 259, 301)).astype(np.int8)
    path = write_volume(Volume(data, 10.0, ORIGIN), tmp_path / "a.zarr", ngff=ngff, dtype="int8")
    array = zarr.open_array(path / "0", mode="r")
    assert any(size > edge for size, edge in zip(data.shape, array.shards or array.chunks))
    np.testing.assert_array_equal(array[...], data)


# Other programs


@pytest.mark.parametrize("ngff", VERSIONS)
def test_zarr_and_the_models_of_the_specification_accept_our_stores(tmp_path, ugly_volume, ngff):
    path = write_volume(ugly_volume, tmp_path / "a.zarr", ngff=ngff)
    group = zarr.open_group(path, mode="r")
    np.testing.assert_array_equal(group["0"][...], ugly_volume.data)
    image = ome_zarr_models.open_ome_zarr(group)
    assert image.ome_zarr_version == ngff
    assert group.metadata.zarr_format == (2 if ngff == "0.4" else 3)
    if ngff == "0.5":
        assert group["0"].shards is not None
        assert "blosc" in str(group["0"].compressors).lower()
        assert "zstd" in str(group["0"].compressors).lower()
    else:
        assert (path / "0" / "0" / "0" / "0").is_file()  # chunk keys with '/'


@pytest.mark.parametrize("ngff", VERSIONS)
@pytest.mark.parametrize("classes", [{}, {3: LabelClass("Globin-like", "1.10.490.10", "CATH")}])
def test_the_models_of_the_specification_accept_our_labels(tmp_path, rng, ngff, classes):
    labels = LabelMap(Volume(rng.integers(0, 4, (130, 6, 7)), 2.5), classes)
    path = write_labels(labels, tmp_path / "a.zarr", ngff=ngff)
    found = ome_zarr_models.open_ome_zarr(zarr.open_group(path, mode="r"))
    assert type(found).__name__ == "ImageLabel"
    metadata = zarr.open_group(path, mode="r").attrs.asdict()
    colours = metadata.get("ome", metadata)["image-label"]["colors"]
    assert [entry["rgba"] for entry in colours] == [[*meaning.colour, 255] for meaning in classes.values()]


# The pyramid


@pytest.mark.parametrize("ngff", VERSIONS)
def test_levels_are_means_that_lie_where_their_voxels_lie(tmp_path, rng, ngff):
    data = rng.normal(size=(6, 131, 257)).astype(np.float32)
    volume = Volume(data, 1.37, ORIGIN)
    path = write_volume(volume, tmp_path / "a.zarr", ngff=ngff)
    assert describe(path).levels == ((6, 131, 257), (3, 66, 129), (2, 33, 65))
    second = open_volume(path, near_voxel_size=2.74)
    assert second.voxel_size == pytest.approx(2.74)
    np.testing.assert_allclose(second.load()[2, 5, 7], data[4:6, 10:12, 14:16].mean(), rtol=1e-5)
    centre = volume.to_position([[4.5, 10.5, 14.5]])
    np.testing.assert_allclose(second.to_position([[2, 5, 7]]), centre)
    third = open_volume(path, near_voxel_size=1000)
    np.testing.assert_allclose(third.to_position([0, 0, 0]), volume.to_position([1.5, 1.5, 1.5]))
    np.testing.assert_allclose(third.load()[0, 3, 4], data[:4, 12:16, 16:20].mean(), rtol=1e-4)
    np.testing.assert_allclose(third.load()[0, 32, 4], second.load()[:2, 64:66, 8:10].mean(), rtol=1e-4)


def test_every_voxel_of_a_level_is_the_mean_of_eight(tmp_path, rng):
    data = rng.normal(size=(70, 128, 6)).astype(np.float32)  # more planes than are averaged at once
    path = write_volume(Volume(data, 2.0), tmp_path / "a.zarr")
    expected = data.reshape(35, 2, 64, 2, 3, 2).mean(axis=(1, 3, 5))
    np.testing.assert_allclose(open_volume(path, near_voxel_size=4).load(), expected, atol=1e-6)


def test_levels_of_labels_hold_no_invented_labels_and_stay_in_place(tmp_path, rng):
    data = rng.choice([0, 7, 300], (70, 131, 33))
    path = write_labels(LabelMap(Volume(data, 1.37, ORIGIN), {}), tmp_path / "a.zarr")
    level = open_volume(path, near_voxel_size=1000)
    assert level.shape == (35, 66, 17)
    np.testing.assert_array_equal(level.load(), data[::2, ::2, ::2])
    assert level.origin == ORIGIN


def test_an_odd_edge_is_not_darkened(tmp_path):
    path = write_volume(Volume(np.ones((129, 5, 5)), 2.0), tmp_path / "a.zarr")
    assert (open_volume(path, near_voxel_size=4).load() == 1).all()


@pytest.mark.parametrize(
    ("near", "expected"),
    [(None, 2.5), (1.0, 2.5), (2.5, 2.5), (4.9, 2.5), (4.96, 5.0), (5.0, 5.0), (9.0, 5.0), (10.0, 10.0), (99, 10.0)],
)
def test_the_coarsest_level_that_is_fine_enough_is_taken(tmp_path, near, expected):
    path = foreign(tmp_path / "a.zarr", [np.zeros((8, 8, 8)), np.zeros((4, 4, 4)), np.zeros((2, 2, 2))])
    assert open_volume(path, near_voxel_size=near).voxel_size == expected


def test_coarse_levels_with_long_voxels_are_not_taken(tmp_path):
    transforms = [[{"type": "scale", "scale": s}] for s in ([2.5] * 3, [2.5, 5, 5], [5, 5, 5])]
    path = foreign(
        tmp_path / "a.zarr", [np.zeros((8, 8, 8)), np.zeros((8, 4, 4)), np.zeros((4, 4, 4))], transforms=transforms
    )
    assert open_volume(path, near_voxel_size=4).voxel_size == 2.5
    assert open_volume(path, near_voxel_size=5).shape == (4, 4, 4)


# Reading what others write


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("unit", "factor"), [("angstrom", 1), ("nanometer", 10), ("micrometer", 1e4)])
def test_units_are_converted(tmp_path, data, version, unit, factor):
    path = foreign(
        tmp_path / "a.zarr",
        [data],
        axes=[{**axis, "unit": unit} for axis in AXES],
        transforms=[[{"type": "scale", "scale": [0.5] * 3}, {"type": "translation", "translation": [1, 2, 3]}]],
        version=version,
    )
    volume = open_volume(path)
    np.testing.assert_array_equal(volume.load(), data)
    assert volume.voxel_size == pytest.approx(0.5 * factor)
    np.testing.assert_allclose(volume.origin, np.array([1, 2, 3]) * factor)


def test_transformations_of_the_image_follow_those_of_the_level(tmp_path, data):
    path = foreign(
        tmp_path / "a.zarr",
        [data],
        transforms=[[{"type": "scale", "scale": [2, 2, 2]}, {"type": "translation", "translation": [1, 2, 3]}]],
        above=[{"type": "scale", "scale": [3, 3, 3]}, {"type": "translation", "translation": [10, 0, 0]}],
    )
    volume = open_volume(path)
    assert volume.voxel_size == 6
    assert volume.origin == (13, 6, 9)


def test_channel_and_time_of_length_one_are_dropped(tmp_path, data):
    axes = [{"name": "t", "type": "time"}, {"name": "c", "type": "channel"}, *AXES]
    path = foreign(
        tmp_path / "a.zarr",
        [data[None, None]],
        axes=axes,
        transforms=[[{"type": "scale", "scale": [1, 1, 3, 3, 3]}]],
    )
    volume = open_volume(path)
    assert (volume.shape, volume.voxel_size) == (SHAPE, 3)
    np.testing.assert_array_equal(volume.load(), data)
    np.testing.assert_array_equal(volume.data[1], data[1])
    np.testing.assert_array_equal(volume.data[..., 2], data[..., 2])
    np.testing.assert_array_equal(np.asarray(volume.data), data)
    assert any("t, c" in warning for warning in describe(path).warnings)


@pytest.mark.parametrize("unit", [None, "pixel"])
def test_a_scale_without_a_unit_of_length_asks(tmp_path, data, unit):
    axes = [{"name": axis["name"], "type": "space", **({"unit": unit} if unit else {})} for axis in AXES]
    transforms = [
        [{"type": "scale", "scale": [n] * 3}, {"type": "translation", "translation": [2 + (n - 1) / 2] * 3}]
        for n in (1, 2)
    ]
    path = foreign(tmp_path / "a.zarr", [data, data[::2, ::2, ::2]], axes=axes, transforms=transforms)
    with pytest.raises(GeometryError, match="--voxel-size"):
        open_volume(path)
    assert describe(path).voxel_size is None
    assert any("unset" in warning for warning in describe(path).warnings)
    volume = open_volume(path, voxel_size=10)
    assert (volume.voxel_size, volume.origin) == (10, (20, 20, 20))
    coarse = open_volume(path, voxel_size=10, near_voxel_size=20)
    assert (coarse.voxel_size, coarse.origin) == (20, (25, 25, 25))


def test_a_voxel_size_replaces_that_of_the_finest_level(tmp_path, ugly_volume):
    big = Volume(np.zeros((3, 3, 130), np.float32), 1.0, ORIGIN)
    path = write_volume(big, tmp_path / "a.zarr")
    assert open_volume(path).voxel_size == 1.0  # with a unit, 1 Å is meant
    assert open_volume(path, voxel_size=8).origin == ORIGIN
    coarse = open_volume(path, voxel_size=8, near_voxel_size=16)
    assert coarse.voxel_size == 16
    np.testing.assert_allclose(coarse.origin, np.array(ORIGIN) + 4)
    assert describe(path).disagreement(8) is not None


def test_labels_inside_an_image_are_found(tmp_path, data):
    path = foreign(tmp_path / "a.zarr", [data])
    group = zarr.open_group(path / "labels", mode="w", zarr_format=2)
    group.attrs["labels"] = ["cells"]
    marks = np.arange(data.size).reshape(SHAPE).astype(np.int16)
    properties = [{"label-value": 3, "name": "Globin-like", "type": "1.10", "scheme": "CATH"}, {"label-value": 4}]
    inner = foreign(path / "labels" / "cells", [marks], **{"image-label": {"properties": properties}})
    for place in (path, inner):
        labels = open_labels(place)
        np.testing.assert_array_equal(labels.labels(), marks)
        assert labels.classes == {3: LabelClass("Globin-like", "1.10", "CATH")}
    np.testing.assert_array_equal(open_volume(path).load(), data)
    with pytest.raises(FormatError, match="one of the images inside: cells"):
        open_volume(path / "labels")
    foreign(path / "labels" / "nuclei", [marks])
    group.attrs["labels"] = ["cells", "nuclei"]
    with pytest.raises(FormatError, match="nuclei"):
        open_labels(path)


def test_integers_without_declaration_are_labels_and_densities_are_not(tmp_path, data):
    assert open_labels(foreign(tmp_path / "a.zarr", [(data > 0).astype(np.uint8)])).classes == {}
    with pytest.raises(FormatError, match="threshold it first"):
        open_labels(foreign(tmp_path / "b.zarr", [data]))


# Refusals


def edit(path, change):
    """Change the metadata file of a 0.4 store as text."""
    attributes = json.loads((path / ".zattrs").read_text())
    change(attributes)
    (path / ".zattrs").write_text(json.dumps(attributes))


BAD_METADATA = {
    "version": (lambda a: a["multiscales"][0].update(version="0.9"), "Convert the store"),
    "no axes": (lambda a: a["multiscales"][0].pop("axes"), "metadata is damaged"),
    "no levels": (lambda a: a["multiscales"][0].update(datasets=[]), "metadata is damaged"),
    "empty": (lambda a: a.update(multiscales=[]), "metadata is damaged"),
    "text": (lambda a: a.update(multiscales="none"), "metadata is damaged"),
    "no image": (lambda a: a.pop("multiscales"), "Write it as OME-Zarr"),
    "axis order": (lambda a: a["multiscales"][0]["axes"].reverse(), "in the order z, y, x"),
    "lost level": (lambda a: a["multiscales"][0]["datasets"][0].update(path="7"), "copy or write it again"),
    "other transformation": (
        lambda a: a["multiscales"][0]["datasets"][0].update(coordinateTransformations=[{"type": "affine"}]),
        "lists of numbers",
    ),
    "short scale": (
        lambda a: a["multiscales"][0]["datasets"][0].update(
            coordinateTransformations=[{"type": "scale", "scale": [1]}]
        ),
        "lists of numbers",
    ),
    "zero scale": (
        lambda a: a["multiscales"][0]["datasets"][0].update(
            coordinateTransformations=[{"type": "scale", "scale": [0, 1, 1]}]
        ),
        "Mend the metadata",
    ),
    "anisotropic": (
        lambda a: a["multiscales"][0]["datasets"][0].update(
            coordinateTransformations=[{"type": "scale", "scale": [5, 2.5, 2.5]}]
        ),
        "Resample it to equal voxels",
    ),
    "damaged labels": (lambda a: a.update({"image-label": {"properties": [{"name": "x"}]}}), "metadata is damaged"),
}


@pytest.mark.parametrize("case", BAD_METADATA)
def test_bad_metadata_is_refused_with_advice(tmp_path, data, case):
    change, hint = BAD_METADATA[case]
    path = foreign(tmp_path / "a.zarr", [data])
    edit(path, change)
    with pytest.raises(CryoscanError, match=hint):
        open_volume(path)


def test_anisotropic_voxels_can_be_overridden_and_are_described(tmp_path, data):
    path = foreign(tmp_path / "a.zarr", [data], transforms=[[{"type": "scale", "scale": [5, 2.5, 2.5]}]])
    assert open_volume(path, voxel_size=2.5).voxel_size == 2.5
    assert describe(path).voxel_size is None
    assert any("5 × 2.5 × 2.5" in warning for warning in describe(path).warnings)


def test_several_channels_are_refused(tmp_path, data):
    axes = [{"name": "c", "type": "channel"}, *AXES]
    with pytest.raises(FormatError, match="one time point"):
        open_volume(foreign(tmp_path / "a.zarr", [np.stack([data, data])], axes=axes))


def test_an_image_of_two_axes_is_refused(tmp_path, data):
    with pytest.raises(FormatError, match="in the order z, y, x"):
        open_volume(foreign(tmp_path / "a.zarr", [data[0]], axes=AXES[1:]))


def test_complex_numbers_are_refused(tmp_path, data):
    with pytest.raises(FormatError, match="real numbers"):
        open_volume(foreign(tmp_path / "a.zarr", [data.astype(np.complex64)]))


def test_metadata_that_is_no_json_is_refused(tmp_path, data):
    path = foreign(tmp_path / "a.zarr", [data])
    (path / ".zattrs").write_text("{")
    with pytest.raises(FormatError, match="metadata is damaged"):
        open_volume(path)


@pytest.mark.parametrize("ngff", VERSIONS)
def test_garbled_chunks_are_refused_when_read(tmp_path, ugly_volume, ngff):
    path = write_volume(ugly_volume, tmp_path / "a.zarr", ngff=ngff)
    chunk = next(file for file in sorted(path.rglob("*")) if file.is_file() and file.name == "0")
    chunk.write_bytes(b"junk" * 100)
    volume = open_volume(path)
    with pytest.raises(FormatError, match="fetch or write it again"):
        volume.load()


def test_a_level_instead_of_the_image_is_refused(tmp_path, ugly_volume):
    path = write_volume(ugly_volume, tmp_path / "a.zarr")
    with pytest.raises(FormatError, match="folder above it"):
        open_volume(path / "0")


def test_folders_without_zarr_are_refused(tmp_path):
    with pytest.raises(FormatError, match=r"holds 'zarr\.json'"):
        open_volume(tmp_path)
    with pytest.raises(MissingFileError, match="spelling"):
        open_volume(tmp_path / "a.zarr")
    (tmp_path / "b.zarr").write_text("a file")
    with pytest.raises(FormatError, match=r"holds 'zarr\.json'"):
        open_volume(tmp_path / "b.zarr")


# Outputs


@pytest.mark.parametrize("ngff", VERSIONS)
def test_existing_output_is_kept_unless_told(tmp_path, ugly_volume, ngff):
    path = write_volume(ugly_volume, tmp_path / "a.zarr", ngff=ngff)
    with pytest.raises(ExistingOutputError, match="--overwrite"):
        write_volume(Volume(np.zeros(SHAPE), 3.0), path, ngff=ngff)
    with pytest.raises(ExistingOutputError, match="--overwrite"):
        create_zarr(path, shape=SHAPE, dtype="f4", voxel_size=2, origin=(0, 0, 0))
    assert open_volume(path).shape == ugly_volume.shape
    write_volume(Volume(np.zeros(SHAPE), 3.0), path, ngff=ngff, overwrite=True)
    assert open_volume(path).shape == SHAPE
    assert [file.name for file in tmp_path.iterdir()] == ["a.zarr"]


def test_a_store_can_be_written_over_itself(tmp_path, ugly_volume):
    path = write_volume(ugly_volume, tmp_path / "a.zarr")
    write_volume(open_volume(path, contrast="dark"), path, overwrite=True)
    np.testing.assert_array_equal(open_volume(path).load(), -ugly_volume.data)


def test_a_folder_of_other_files_is_never_replaced(tmp_path, ugly_volume):
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr" / "thesis.txt").write_text("precious")
    with pytest.raises(FormatError, match="never replaced"):
        write_volume(ugly_volume, tmp_path / "a.zarr", overwrite=True)
    assert (tmp_path / "a.zarr" / "thesis.txt").is_file()


def test_a_write_that_fails_leaves_the_old_store_and_nothing_else(tmp_path, ugly_volume):
    class Breaking:
        shape, dtype = SHAPE, np.dtype(np.float32)

        def __getitem__(self, key):
            raise OSError(28, "No space left on device")

    path = write_volume(ugly_volume, tmp_path / "a.zarr")
    with pytest.raises(ResourceError, match="Free some disk space"):
        write_volume(Volume(Breaking(), 2.0), path, overwrite=True)
    np.testing.assert_array_equal(open_volume(path).load(), ugly_volume.data)
    assert [file.name for file in tmp_path.iterdir()] == ["a.zarr"]


@pytest.mark.parametrize(
    ("dtype", "hint"), [("complex64", "Choose e.g. float32"), ("int8", "Write them as float32"), ("U3", "Choose e.g.")]
)
def test_types_that_cannot_hold_the_values_are_refused(tmp_path, dtype, hint):
    volume = Volume(np.linspace(0, 1000, 60).reshape(3, 4, 5), 2.0)
    with pytest.raises(CryoscanError, match=hint):
        write_volume(volume, tmp_path / "a.zarr", dtype=dtype)
    assert not list(tmp_path.iterdir())


# Region writes


@pytest.mark.parametrize("ngff", VERSIONS)
def test_regions_written_in_any_order_make_a_volume(tmp_path, rng, ngff):
    data = rng.normal(size=(9, 130, 20)).astype(np.float32)
    shards = None if ngff == "0.4" else (8, 64, 32)
    array = create_zarr(
        tmp_path / "a.zarr",
        shape=data.shape,
        dtype=np.float32,
        voxel_size=10.5,
        origin=ORIGIN,
        chunks=(4, 32, 16),
        shards=shards,
        ngff=ngff,
        fill=-1,
    )
    assert array.chunks == (4, 32, 16)
    assert array.shards == shards
    assert (open_zarr_array(tmp_path / "a.zarr")[...] == -1).all()
    boxes = [np.s_[z : z + 8, y : y + 64, 0:20] for z in (8, 0) for y in (128, 0, 64)]
    for box in boxes[:3]:
        array[box] = data[box]
    again = open_zarr_array(tmp_path / "a.zarr", writable=True)
    for box in boxes[3:]:
        again[box] = data[box]
    volume = open_volume(tmp_path / "a.zarr")
    np.testing.assert_array_equal(volume.load(), data)
    assert (volume.voxel_size, volume.origin) == (10.5, ORIGIN)
    assert describe(tmp_path / "a.zarr").levels == (data.shape,)
    ome_zarr_models.open_ome_zarr(zarr.open_group(tmp_path / "a.zarr", mode="r"))


def test_an_array_opened_for_reading_cannot_be_written(tmp_path):
    create_zarr(tmp_path / "a.zarr", shape=SHAPE, dtype="u1", voxel_size=2, origin=(0, 0, 0))
    with pytest.raises(ValueError, match="read-only"):
        open_zarr_array(tmp_path / "a.zarr")[0, 0, 0] = 1


@pytest.mark.parametrize("options", [{"shards": (3, 7, 9), "chunks": (2, 7, 9)}, {"shards": SHAPE, "ngff": "0.4"}])
def test_shards_that_do_not_fit_are_refused(tmp_path, options):
    with pytest.raises(FormatError, match="multiples of the chunk"):
        create_zarr(tmp_path / "a.zarr", shape=SHAPE, dtype="u1", voxel_size=2, origin=(0, 0, 0), **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"voxel_size": 0}, "pass the voxel size explicitly"),
        ({"origin": (0, np.nan, 0)}, "Mend the header"),
        ({"shape": (5, 7)}, "Give one volume"),
        ({"ngff": "0.6"}, "0.5 is the default"),
        ({"dtype": "complex64"}, "Choose e.g. float32"),
    ],
)
def test_impossible_stores_are_not_created(tmp_path, options, hint):
    usual = {"shape": SHAPE, "dtype": "u1", "voxel_size": 2, "origin": (0, 0, 0)}
    with pytest.raises(CryoscanError, match=hint):
        create_zarr(tmp_path / "a.zarr", **{**usual, **options})
    assert not list(tmp_path.iterdir())


# Labels


@pytest.mark.parametrize("ngff", VERSIONS)
@pytest.mark.parametrize(("highest", "dtype"), [(255, "uint8"), (256, "uint16"), (70000, "uint32")])
def test_labels_come_back_exactly(tmp_path, rng, ngff, highest, dtype):
    data = rng.choice([0, 3, 7], SHAPE)
    data[1, 2, 3] = highest
    classes = {
        3: LabelClass("Globin-like", "1.10.490.10", "CATH"),
        highest: LabelClass("β-Lactamase; AmpC", "e.3.1.1", "SCOPe"),
        7: LabelClass("a region"),
    }
    path = write_labels(LabelMap(Volume(data, 3.3, ORIGIN), classes), tmp_path / "a.zarr", ngff=ngff)
    found = open_labels(path)
    np.testing.assert_array_equal(found.labels(), data)
    assert found.classes == classes
    assert (found.voxel_size, found.volume.origin) == (3.3, ORIGIN)
    info = describe(path)
    assert info.dtype == dtype
    assert info.format == f"OME-Zarr {ngff}, labels"
    assert set(info.labels) == {meaning.name for meaning in classes.values()}


def test_negative_labels_are_refused(tmp_path):
    with pytest.raises(GeometryError, match="Number the labels from 1"):
        write_labels(LabelMap(Volume(np.full(SHAPE, -1), 3.3), {}), tmp_path / "a.zarr")


def test_a_copied_store_is_the_same_volume(tmp_path, ugly_volume):
    path = write_volume(ugly_volume, tmp_path / "a.zarr")
    shutil.copytree(path, tmp_path / "renamed")  # the folder's name carries no meaning
    np.testing.assert_array_equal(open_volume(tmp_path / "renamed").load(), ugly_volume.data)

"""Law L3: one bright voxel, off every symmetry, comes back at the same Å through every format."""

import bz2
import gzip
from itertools import permutations

import mrcfile
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_mrc import raw_mrc

from cryoscan import LabelClass, LabelMap, Volume
from cryoscan.io import open_labels, open_volume, write_labels, write_volume

SHAPE = (11, 17, 23)
INDEX = (2, 5, 19)
VOXEL_SIZE = 3.5
ORIGIN = (-31.5, 12.25, 407.125)
POSITION = (-31.5 + 2 * 3.5, 12.25 + 5 * 3.5, 407.125 + 19 * 3.5)


@pytest.fixture
def bright():
    data = np.zeros(SHAPE, np.float32)
    data[INDEX] = 9.0
    return Volume(data, VOXEL_SIZE, ORIGIN)


def brightest(volume):
    data = volume.load()
    return volume.to_position(np.unravel_index(np.argmax(data), data.shape))


def through_write(suffix, **options):
    def travel(volume, folder):
        return open_volume(write_volume(volume, folder / f"a{suffix}", **options))

    return travel


def through_bytes(name="a.mrc", squeeze=bytes, **options):
    """A file of another program: made of bytes, with ORIGIN in x, y, z."""

    def travel(volume, folder):
        (folder / name).write_bytes(
            squeeze(raw_mrc(volume.data, voxel_size=VOXEL_SIZE, origin_xyz=volume.origin[::-1], **options))
        )
        return open_volume(folder / name)

    return travel


def through_dark(volume, folder):
    (folder / "a.rec").write_bytes(raw_mrc(-volume.data, voxel_size=VOXEL_SIZE, origin_xyz=volume.origin[::-1]))
    return open_volume(folder / "a.rec", contrast="dark")


def through_labels(suffix, **options):
    def travel(volume, folder):
        labels = LabelMap(
            Volume((volume.data > 0).astype(np.int32) * 4, volume.voxel_size, volume.origin), {4: LabelClass("one")}
        )
        return open_labels(write_labels(labels, folder / f"a{suffix}", **options)).volume

    return travel


WAYS = {
    "mrc": through_write(".mrc"),
    "mrc half": through_write(".map", dtype="float16"),
    "mrc bytes": through_write(".rec", dtype="int8"),
    "zarr 0.4": through_write(".zarr", ngff="0.4"),
    "zarr 0.5": through_write(".ome.zarr", ngff="0.5"),
    "foreign mrc": through_bytes(),
    "mrc.gz": through_bytes("a.mrc.gz", gzip.compress),
    "mrc.bz2": through_bytes("a.mrc.bz2", bz2.compress),
    "big-endian mrc": through_bytes(order=">"),
    "big-endian mrc with a wrong stamp": through_bytes(order=">", stamp=b"\x44\x44\0\0"),
    "mrc with an extended header": through_bytes(extended=bytes(768), exttyp=b"FEI1"),
    "dark mrc": through_dark,
    "labels in mrc": through_labels(".mrc"),
    "labels in zarr 0.4": through_labels(".zarr", ngff="0.4"),
    "labels in zarr 0.5": through_labels(".zarr", ngff="0.5"),
    **{f"mrc with axes {axes}": through_bytes(axes=axes) for axes in permutations((1, 2, 3))},
    **{
        f"big-endian mrc.gz with axes {axes}": through_bytes("a.map.gz", gzip.compress, axes=axes, order=">")
        for axes in permutations((1, 2, 3))
    },
}


@pytest.mark.parametrize("way", WAYS)
def test_a_voxel_keeps_its_place_through_every_format(tmp_path, bright, way):
    volume = WAYS[way](bright, tmp_path)
    assert volume.shape == SHAPE
    assert volume.voxel_size == VOXEL_SIZE
    np.testing.assert_allclose(brightest(volume), POSITION, atol=1e-4)
    assert volume.load()[INDEX] > 0


@pytest.mark.parametrize("axes", list(permutations((1, 2, 3))))
def test_a_voxel_keeps_its_place_where_only_nstart_says_it(tmp_path, bright, axes):
    starts = {3: -9, 2: 4, 1: 116}  # voxels along z, y, x
    columns, rows, sections = axes
    (tmp_path / "a.mrc").write_bytes(
        raw_mrc(
            bright.data,
            voxel_size=VOXEL_SIZE,
            axes=axes,
            nxstart=starts[columns],
            nystart=starts[rows],
            nzstart=starts[sections],
        )
    )
    volume = open_volume(tmp_path / "a.mrc")
    np.testing.assert_allclose(brightest(volume), [(-9 + 2) * 3.5, (4 + 5) * 3.5, (116 + 19) * 3.5])


def test_a_chain_of_all_formats_moves_nothing(tmp_path, bright):
    volume = bright
    for number, (suffix, options) in enumerate(
        [(".mrc", {}), (".zarr", {"ngff": "0.4"}), (".map", {}), (".zarr", {"ngff": "0.5"}), (".ccp4", {})]
    ):
        volume = open_volume(write_volume(volume, tmp_path / f"{number}{suffix}", **options))
    np.testing.assert_allclose(brightest(volume), POSITION, atol=1e-4)
    np.testing.assert_array_equal(volume.load(), bright.data)


def test_mrcfile_writes_what_we_read_and_reads_what_we_write(tmp_path, bright):
    with mrcfile.new(tmp_path / "theirs.mrc", bright.data) as mrc:
        mrc.voxel_size = VOXEL_SIZE
        mrc.header.origin.x, mrc.header.origin.y, mrc.header.origin.z = ORIGIN[::-1]
    np.testing.assert_allclose(brightest(open_volume(tmp_path / "theirs.mrc")), POSITION, atol=1e-4)
    with mrcfile.open(write_volume(bright, tmp_path / "ours.mrc")) as mrc:
        assert mrc.data[INDEX] == 9
        origin = mrc.header.origin
        assert (float(origin.z), float(origin.y), float(origin.x)) == ORIGIN


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(*[st.integers(2, 9)] * 3),
    origin=st.tuples(*[st.floats(-5000, 5000)] * 3),
    voxel_size=st.floats(0.2, 50),
    suffix=st.sampled_from([".mrc", ".zarr"]),
    data=st.data(),
)
def test_any_voxel_of_any_volume_keeps_its_place(tmp_path_factory, shape, origin, voxel_size, suffix, data):
    index = data.draw(st.tuples(*[st.integers(0, size - 1) for size in shape]))
    values = np.zeros(shape, np.float32)
    values[index] = 1
    volume = Volume(values, voxel_size, origin)
    found = open_volume(write_volume(volume, tmp_path_factory.mktemp("any") / f"a{suffix}"))
    np.testing.assert_allclose(brightest(found), volume.to_position(index), rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_writing_leaves_the_input_as_it_was(tmp_path, bright, way):
    before = bright.data.tobytes()
    WAYS[way](bright, tmp_path)
    assert bright.data.tobytes() == before

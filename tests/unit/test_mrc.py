import bz2
import contextlib
import gzip
import io
import os

import gemmi
import mrcfile
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from raw_mrc import raw_mrc

from cryoscan import CryoscanError, LabelClass, LabelMap, Volume
from cryoscan.errors import (
    ConfigError,
    ExistingOutputError,
    FormatError,
    GeometryError,
    MissingFileError,
    ResourceError,
)
from cryoscan.io import describe, open_labels, open_volume, require_usable, write_labels, write_volume

SHAPE = (5, 7, 9)


@pytest.fixture
def data(rng):
    return rng.normal(size=SHAPE).astype(np.float32)


def save(path, content):
    path.write_bytes(content)
    return path


# Reading what is right


@pytest.mark.parametrize("kind", ["i1", "i2", "u2", "f2", "f4"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_real_mode_and_byte_order_is_read(tmp_path, rng, kind, order):
    data = rng.integers(0, 100, SHAPE).astype(kind)
    volume = open_volume(save(tmp_path / "a.mrc", raw_mrc(data, order=order)))
    assert volume.data.dtype == np.float32
    assert volume.data.dtype.isnative
    np.testing.assert_array_equal(volume.load(), data)
    np.testing.assert_array_equal(volume.data[1, 2:4, ::3], data[1, 2:4, ::3])


@pytest.mark.parametrize("name", ["a.mrc", "a.map", "a.rec", "a.ccp4", "a.st", "a.ali", "A.MRC"])
def test_suffixes_of_mrc_are_known(tmp_path, data, name):
    assert open_volume(save(tmp_path / name, raw_mrc(data))).shape == SHAPE


@pytest.mark.parametrize(("name", "squeeze"), [("a.mrc.gz", gzip.compress), ("a.map.bz2", bz2.compress)])
def test_compressed_files_are_read(tmp_path, data, name, squeeze):
    path = save(tmp_path / name, squeeze(raw_mrc(data, origin_xyz=(1, 2, 3))))
    volume = open_volume(path)
    np.testing.assert_array_equal(volume.load(), data)
    assert volume.origin == (3, 2, 1)
    assert "zip" in describe(path).format


def test_compression_is_seen_from_the_content_not_the_name(tmp_path, data):
    np.testing.assert_array_equal(
        open_volume(save(tmp_path / "a.mrc", gzip.compress(raw_mrc(data)))).load(),
        open_volume(save(tmp_path / "b.mrc.gz", raw_mrc(data))).load(),
    )


def test_reading_is_lazy(tmp_path, data):
    assert isinstance(open_volume(save(tmp_path / "a.mrc", raw_mrc(data))).data, np.memmap)


def test_voxel_at_the_far_end_of_a_file_above_two_gibibytes(tmp_path):
    path = tmp_path / "huge.mrc"
    shape = (640, 1024, 1024)  # float32: 2.5 GiB, sparse on disk
    head = raw_mrc(np.zeros((1, 1, 1), np.float32), nz=640, ny=1024, nx=1024, mz=640, my=1024, mx=1024)[:1024]
    cell = np.frombuffer(np.array([1024 * 3.0, 1024 * 3.0, 640 * 3.0], "<f4").tobytes(), "u1").tobytes()
    with path.open("wb") as stream:
        stream.write(head[:40] + cell + head[52:])
        stream.truncate(1024 + 4 * int(np.prod(shape)))
        stream.seek(-4, os.SEEK_END)
        stream.write(np.float32(7.5).tobytes())
    volume = open_volume(path, contrast="dark")
    assert volume.shape == shape
    assert volume.voxel_size == 3.0
    assert volume.data[-1, -1, -1] == -7.5
    assert volume.read((slice(638, 641), slice(1022, 1025), slice(1022, 1025)))[1, 1, 1] == 7.5 * -1


@pytest.mark.parametrize("exttyp", [b"FEI1", b"SERI", b"CCP4", b""])
@pytest.mark.parametrize("order", ["<", ">"])
def test_extended_headers_are_skipped(tmp_path, data, exttyp, order):
    content = raw_mrc(data, extended=bytes(range(256)) * 3, exttyp=exttyp, order=order)
    np.testing.assert_array_equal(open_volume(save(tmp_path / "a.mrc", content)).load(), data)


@pytest.mark.parametrize("kind", ["i1", "u2", "f4"])
def test_dark_contrast_changes_the_sign(tmp_path, rng, kind):
    data = rng.integers(-128 if kind == "i1" else 0, 127, SHAPE).astype(kind)
    data[0, 0, 0] = -128 if kind == "i1" else 0  # −128 has no int8 counterpart
    path = save(tmp_path / "a.mrc", raw_mrc(data))
    np.testing.assert_array_equal(open_volume(path, contrast="dark").load(), -data.astype(np.float32))


def test_unknown_contrast_is_refused(tmp_path, data):
    with pytest.raises(ConfigError, match="'dark' if protein is darker"):
        open_volume(save(tmp_path / "a.mrc", raw_mrc(data)), contrast="white")


def test_voxel_size_is_cell_by_sampling(tmp_path, data):
    path = save(tmp_path / "a.mrc", raw_mrc(data, mx=18, my=14, mz=10))
    assert open_volume(path).voxel_size == 1.25
    assert any("sampled" in warning for warning in describe(path).warnings)


@pytest.mark.parametrize(
    ("options", "signed"),
    [
        ({}, True),
        ({"imod_flags": 0}, False),
        ({"imod_flags": 1}, True),
        ({"dmin": 0, "dmax": 255}, False),
        ({"dmin": -128, "dmax": 127}, True),
    ],
)
@pytest.mark.parametrize("order", ["<", ">"])
def test_signedness_of_bytes(tmp_path, options, signed, order):
    data = np.full(SHAPE, 200, np.uint8)
    path = save(tmp_path / "a.mrc", raw_mrc(data, order=order, **options))
    assert open_volume(path).data[0, 0, 0] == (-56 if signed else 200)
    assert describe(path).dtype == ("int8" if signed else "uint8")


# Reading what is odd but tolerable


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("stamp", [b"\0\0\0\0", b"\x44\x44\0\0", b"\x11\x11\0\0", b"junk"])
def test_wrong_machine_stamp_is_tolerated_and_reported(tmp_path, data, order, stamp):
    path = save(tmp_path / "a.mrc", raw_mrc(data, order=order, stamp=stamp))
    np.testing.assert_array_equal(open_volume(path).load(), data)
    info = describe(path)
    right = {"<": b"\x44\x44\0\0", ">": b"\x11\x11\0\0"}[order] == stamp
    assert info.machine_stamp.startswith("little" if order == "<" else "big")
    assert ("wrong" in info.machine_stamp) == (not right)
    assert any("machine stamp" in warning for warning in info.warnings) == (not right)


def test_missing_map_word_is_tolerated_and_reported(tmp_path, data):
    path = save(tmp_path / "a.mrc", raw_mrc(data, map=b""))
    assert open_volume(path).shape == SHAPE
    assert any("'MAP'" in warning for warning in describe(path).warnings)


def test_trailing_bytes_are_tolerated_and_reported(tmp_path, data):
    path = save(tmp_path / "a.mrc", raw_mrc(data) + b"123")
    np.testing.assert_array_equal(open_volume(path).load(), data)
    assert any(warning.startswith("3 bytes follow") for warning in describe(path).warnings)


def test_unset_axes_mean_the_usual_order(tmp_path, data):
    content = raw_mrc(data, mapc=0, mapr=0, maps=0)
    np.testing.assert_array_equal(open_volume(save(tmp_path / "a.mrc", content)).load(), data)


def test_nstart_follows_the_axes_of_the_file(tmp_path, data):
    # Columns run along z, rows along x, sections along y: NXSTART counts voxels along z.
    path = save(tmp_path / "a.mrc", raw_mrc(data, axes=(3, 1, 2), nxstart=-4, nystart=6, nzstart=10))
    volume = open_volume(path)
    np.testing.assert_array_equal(volume.load(), data)
    assert volume.origin == (-4 * 2.5, 10 * 2.5, 6 * 2.5)
    info = describe(path)
    assert info.nstart == (-4, 10, 6)
    assert info.axis_order == "y, x, z"
    assert any("used as origin" in warning for warning in info.warnings)


def test_nstart_counts_only_where_origin_is_zero(tmp_path, data):
    path = save(tmp_path / "a.mrc", raw_mrc(data, origin_xyz=(0, 0, 8), nxstart=5))
    assert open_volume(path).origin == (8, 0, 0)
    assert any("ignored" in warning for warning in describe(path).warnings)


def test_nstart_is_scaled_by_the_voxel_size_that_was_passed(tmp_path, data):
    path = save(tmp_path / "a.mrc", raw_mrc(data, nxstart=5))
    assert open_volume(path, voxel_size=4.0).origin == (0, 0, 20)


def test_imod_origin_is_reported(tmp_path, data):
    path = save(tmp_path / "a.mrc", raw_mrc(data, origin_xyz=(1, 0, 0), imod_flags=1))
    assert any("IMOD means ORIGIN" in warning for warning in describe(path).warnings)


def test_a_plain_file_raises_no_warning(tmp_path, data):
    info = describe(save(tmp_path / "a.mrc", raw_mrc(data, labels=["from the scope"])))
    assert info.warnings == ()
    assert info.labels == ("from the scope",)
    assert (info.format, info.mode, info.dtype, info.shape) == ("MRC", 2, "float32", SHAPE)
    assert (info.voxel_size, info.axis_order, info.levels) == (2.5, "z, y, x", (SHAPE,))
    assert info.file_size == 1024 + 4 * np.prod(SHAPE)


# Voxel size


@pytest.mark.parametrize(
    "options",
    [
        {"voxel_size": 0},
        {"voxel_size": 1.0},
        {"voxel_size": 1.0, "labels": ["Created by mrcfile.py"]},
        {"voxel_size": 1.0, "origin_xyz": (3, 4, 5)},
        {"voxel_size": np.nan},
        {"voxel_size": -2.0},
        {"mx": 0},
    ],
)
def test_unset_voxel_size_asks(tmp_path, data, options):
    path = save(tmp_path / "a.mrc", raw_mrc(data, **options))
    with pytest.raises(GeometryError, match="--voxel-size"):
        open_volume(path)
    assert open_volume(path, voxel_size=13.48).voxel_size == 13.48
    info = describe(path)
    assert info.voxel_size is None
    assert any("unset" in warning for warning in info.warnings)


@pytest.mark.parametrize("label", ["EMD-1044 receptor", "::::EMDATABANK.org::::EMD-3001::::"])
def test_one_angstrom_of_the_archive_is_meant(tmp_path, data, label):
    path = save(tmp_path / "a.mrc", raw_mrc(data, voxel_size=1.0, labels=["x", label]))
    assert open_volume(path).voxel_size == 1.0
    assert any(label in warning for warning in describe(path).warnings)


def test_one_angstrom_that_we_wrote_is_meant(tmp_path, data):
    path = write_volume(Volume(data, 1.0), tmp_path / "a.mrc")
    assert open_volume(path).voxel_size == 1.0


@pytest.mark.parametrize("name", ["emd_1044_1oed_box.mrc.gz", "emd_6272_3j9s_chainA_1A.mrc.gz"])
def test_real_maps_of_one_angstrom_open(data_folder, name):
    assert open_volume(data_folder / "maps" / name).voxel_size == 1.0


def test_anisotropic_voxels_are_refused_unless_overridden(tmp_path, data):
    path = save(tmp_path / "a.mrc", raw_mrc(data, voxel_size=(2.5, 2.5, 2.51)))
    with pytest.raises(GeometryError, match="Resample it to equal voxels"):
        open_volume(path)
    assert open_volume(path, voxel_size=2.5).voxel_size == 2.5
    info = describe(path)
    assert info.voxel_size is None
    assert any("2.51 × 2.5 × 2.5 Å" in warning for warning in info.warnings)


def test_slightly_anisotropic_voxels_are_accepted(tmp_path, data):
    path = save(tmp_path / "a.mrc", raw_mrc(data, voxel_size=(2.5, 2.5, 2.502)))
    assert open_volume(path).voxel_size == pytest.approx(2.5, rel=1e-3)


@pytest.mark.parametrize(("given", "speaks"), [(2.5, False), (2.7, False), (2.8, True), (2.2, True)])
def test_a_voxel_size_that_disagrees_with_the_header_is_reported(tmp_path, data, given, speaks):
    info = describe(save(tmp_path / "a.mrc", raw_mrc(data)))
    sentence = info.disagreement(given)
    assert (sentence is not None) == speaks
    if sentence:
        assert "2.5 Å" in sentence
        assert f"{given:g} Å" in sentence


def test_nonsense_voxel_size_is_refused(tmp_path, data):
    with pytest.raises(GeometryError, match="pass the voxel size explicitly"):
        open_volume(save(tmp_path / "a.mrc", raw_mrc(data)), voxel_size=-1)


# Refusals


def bad_files(data):
    good = raw_mrc(data)
    return {
        "truncated": (good[:-1], "cut off"),
        "header only": (good[:1024], "cut off"),
        "half a header": (good[:700], "empty or cut off"),
        "empty": (b"", "empty or cut off"),
        "text": (b"# a table, not a map\n" * 100, "Check that the name's ending fits"),
        "zeros": (bytes(4096), "Check that the name's ending fits"),
        "cut in the extended header": (raw_mrc(data, extended=bytes(2048))[:1500], "cut off"),
        "complex 3": (raw_mrc(data, mode=3), "Fourier transform"),
        "complex 4": (raw_mrc(data, mode=4), "Fourier transform"),
        "four bits": (raw_mrc(data, mode=101), "newstack -mode 2"),
        "colours": (raw_mrc(data, mode=16), "newstack -mode 2"),
        "four bits by flag": (raw_mrc(data.astype("i1"), imod_flags=17), "newstack -mode 2"),
        "image": (raw_mrc(data[:1]), "Give a tomogram or a map"),
        "stack of volumes": (raw_mrc(np.concatenate([data, data]), ispg=401, mz=5), "file of its own"),
        "axes": (raw_mrc(data, mapc=1, mapr=1, maps=3), "MAPC, MAPR, MAPS"),
        "skewed cell": (raw_mrc(data, cellb=(90, 101, 90)), "rectangular grid"),
        "origin": (raw_mrc(data, origin_xyz=(np.nan, 0, 0)), "Mend the header"),
        "damaged gzip": (gzip.compress(good)[:-20], "damaged or cut off"),
        "garbled gzip": (gzip.compress(good)[:40] + bytes(100), "damaged or cut off"),
        "damaged bzip2": (bz2.compress(good)[:-20], "damaged or cut off"),
        "garbled bzip2": (bz2.compress(good)[:40] + bytes(100), "damaged or cut off"),
    }


@pytest.mark.parametrize("case", bad_files(np.zeros(SHAPE, np.float32)))
def test_bad_files_are_refused_with_advice(tmp_path, data, case):
    content, hint = bad_files(data)[case]
    with pytest.raises(CryoscanError, match=hint):
        open_volume(save(tmp_path / "a.mrc", content))


@given(st.binary(min_size=0, max_size=1400))
@settings(max_examples=80, deadline=None)
def test_random_bytes_never_end_in_a_foreign_error(tmp_path_factory, content):
    path = save(tmp_path_factory.mktemp("noise") / "a.mrc", content)
    with pytest.raises(CryoscanError):
        open_volume(path)


@given(st.integers(0, 1023), st.binary(min_size=1, max_size=4))
@settings(max_examples=150, deadline=None)
def test_damaged_headers_open_or_are_refused_with_our_errors(tmp_path_factory, place, junk):
    content = bytearray(raw_mrc(np.ones(SHAPE, np.float32)))
    content[place : place + len(junk)] = junk
    path = save(tmp_path_factory.mktemp("damage") / "a.mrc", bytes(content))
    with contextlib.suppress(CryoscanError):
        open_volume(path).load()
        describe(path)


def test_folder_instead_of_a_file_is_refused(tmp_path):
    (tmp_path / "a.mrc").mkdir()
    with pytest.raises(FormatError, match="Give the path of a file"):
        open_volume(tmp_path / "a.mrc")


def test_missing_file_is_a_file_not_found_error(tmp_path):
    with pytest.raises(MissingFileError, match="spelling"):
        open_volume(tmp_path / "a.mrc")
    with pytest.raises(FileNotFoundError):
        open_volume(tmp_path / "a.txt")


def test_unknown_suffix_is_refused(tmp_path, data):
    with pytest.raises(FormatError, match="right ending"):
        open_volume(save(tmp_path / "a.tif", raw_mrc(data)))


@pytest.mark.parametrize(
    ("values", "hint"),
    [
        ([1.0, np.nan, 2.0], "Replace them"),
        ([1.0, np.inf, 2.0], "Replace them"),
        ([np.nan, np.nan], "Replace them"),
        ([3.0, 3.0, 3.0], "ended without an error"),
        ([], "ended without an error"),
    ],
)
def test_useless_values_are_refused_not_mended(values, hint):
    with pytest.raises(FormatError, match=hint):
        require_usable(np.array(values, np.float32), "a.mrc")


def test_usable_values_pass_untouched(data):
    assert require_usable(data, "a.mrc") is data


# Writing


def test_what_is_written_comes_back(tmp_path, ugly_volume):
    path = write_volume(ugly_volume, tmp_path / "a.mrc")
    volume = open_volume(path)
    np.testing.assert_array_equal(volume.load(), ugly_volume.data)
    assert volume.voxel_size == ugly_volume.voxel_size
    assert volume.origin == ugly_volume.origin
    assert describe(path).warnings == ()
    assert describe(path).nstart == (0, 0, 0)
    assert [file.name for file in tmp_path.iterdir()] == ["a.mrc"]


@settings(max_examples=25, deadline=None)
@given(
    data=hnp.arrays(
        st.sampled_from(["i1", "i2", "u2", "f2", "f4"]),
        hnp.array_shapes(min_dims=3, max_dims=3, min_side=2, max_side=6),
        elements=st.integers(0, 100),
    ),
    voxel_size=st.floats(0.1, 100).map(lambda size: float(f"{size:.6g}")),
)
def test_any_shape_and_type_comes_back(tmp_path_factory, data, voxel_size):
    path = tmp_path_factory.mktemp("any") / "a.map"
    write_volume(Volume(data, voxel_size), path, dtype=data.dtype)
    volume = open_volume(path)
    np.testing.assert_array_equal(volume.load(), data)
    assert volume.voxel_size == pytest.approx(voxel_size, rel=1e-6)
    assert describe(path).dtype == data.dtype.name


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "int16", "uint16"])
def test_mrcfile_finds_our_files_valid(tmp_path, rng, dtype):
    # Larger than a block, mean far from zero: the statistics in the header are checked too.
    shape = SHAPE if dtype == "float16" else (67, 261, 11)  # the validator itself sums in float16
    data = rng.integers(50, 70, shape).astype(np.float32)
    data[-1, -1, -2:] = 5, 110
    path = write_volume(Volume(data, 1.37, (5.0, 6.0, 7.0)), tmp_path / "a.mrc", dtype=dtype)
    report = io.StringIO()
    assert mrcfile.validate(path, print_file=report), report.getvalue()


def test_gemmi_finds_a_voxel_where_we_put_it(tmp_path, ugly_volume):
    path = write_volume(ugly_volume, tmp_path / "a.ccp4")
    grid = gemmi.read_ccp4_map(str(path)).grid
    z, y, x = 3, 5, 8
    assert grid.get_value(x, y, z) == ugly_volume.data[z, y, x]
    position = grid.get_position(x, y, z)  # gemmi ignores ORIGIN
    found = np.array([position.z, position.y, position.x]) + ugly_volume.origin
    np.testing.assert_allclose(found, ugly_volume.to_position([z, y, x]), rtol=1e-6)


def test_existing_output_is_kept_unless_told(tmp_path, ugly_volume):
    path = save(tmp_path / "a.mrc", b"precious")
    with pytest.raises(ExistingOutputError, match="--overwrite"):
        write_volume(ugly_volume, path)
    assert path.read_bytes() == b"precious"
    write_volume(ugly_volume, path, overwrite=True)
    assert open_volume(path).shape == ugly_volume.shape


class Breaking:
    """Data that can be read once."""

    shape, dtype = (130, 8, 8), np.dtype(np.float32)

    def __init__(self, error):
        self.error, self.reads = error, 0

    def __getitem__(self, key):
        self.reads += 1
        if self.reads > 1:
            raise self.error
        return np.ones((64, 8, 8), np.float32)


@pytest.mark.parametrize(
    ("error", "seen"), [(OSError(28, "No space left on device"), ResourceError), (KeyboardInterrupt(), BaseException)]
)
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, error, seen):
    path = save(tmp_path / "a.mrc", b"precious")
    with pytest.raises(seen):
        write_volume(Volume(Breaking(error), 2.0), path, overwrite=True)
    assert path.read_bytes() == b"precious"
    assert [file.name for file in tmp_path.iterdir()] == ["a.mrc"]


def test_a_volume_can_be_written_over_the_file_it_is_read_from(tmp_path, data):
    path = save(tmp_path / "a.mrc", raw_mrc(data))
    write_volume(open_volume(path, contrast="dark"), path, overwrite=True)
    np.testing.assert_array_equal(open_volume(path).load(), -data)


@pytest.mark.parametrize(
    ("name", "options", "hint"),
    [
        ("a.png", {}, "ending chooses the format"),
        ("a.mrc.gz", {}, "ending chooses the format"),
        ("no/such/a.mrc", {}, "Create the folder"),
        ("a.mrc", {"dtype": "float64"}, "Choose one of float32"),
        ("a.mrc", {"dtype": "complex64"}, "Choose one of float32"),
        ("a.mrc", {"dtype": "int8"}, "Write them as float32"),
    ],
)
def test_outputs_that_cannot_be_are_refused(tmp_path, name, options, hint):
    volume = Volume(np.linspace(0, 1000, 60).reshape(3, 4, 5), 2.0)
    with pytest.raises(CryoscanError, match=hint):
        write_volume(volume, tmp_path / name, **options)
    assert not list(tmp_path.iterdir())


def test_nan_is_refused_for_integers_and_kept_for_floats(tmp_path):
    data = np.full(SHAPE, np.nan, np.float32)
    with pytest.raises(GeometryError, match="float32"):
        write_volume(Volume(data, 2.0), tmp_path / "a.mrc", dtype="int16")
    path = write_volume(Volume(data, 2.0), tmp_path / "a.mrc")
    assert np.isnan(open_volume(path).load()).all()


def test_a_single_section_is_refused_for_mrc(tmp_path, data):
    with pytest.raises(FormatError, match="write OME-Zarr instead"):
        write_volume(Volume(data[:1], 2.0), tmp_path / "a.mrc")


def test_more_than_the_free_disk_is_refused_before_writing(tmp_path):
    class Endless:
        shape, dtype = (2**20, 2**12, 2**12), np.dtype(np.float32)

    with pytest.raises(ResourceError, match="Free some disk space"):
        write_volume(Volume(Endless(), 2.0), tmp_path / "a.mrc")


# Labels


CLASSES = {
    3: LabelClass("Globin-like", "1.10.490.10", "CATH"),
    120: LabelClass("β-Lactamase; AmpC", "e.3.1.1", "SCOPe"),
    7: LabelClass("a region"),
}


@pytest.fixture
def labels(rng):
    data = rng.choice([0, 3, 7, 120], SHAPE).astype(np.int64)
    return LabelMap(Volume(data, 3.3, (-7.0, 8.5, 9.25)), CLASSES)


@pytest.mark.parametrize(("highest", "dtype"), [(127, "int8"), (128, "uint16"), (65535, "uint16")])
def test_labels_come_back_exactly(tmp_path, labels, highest, dtype):
    data = labels.labels()
    data[0, 0, 0] = highest
    path = write_labels(LabelMap(Volume(data, 3.3, labels.volume.origin), CLASSES), tmp_path / "a.mrc")
    found = open_labels(path)
    np.testing.assert_array_equal(found.labels(), data)
    assert found.classes == CLASSES
    assert (found.voxel_size, found.volume.origin) == (3.3, labels.volume.origin)
    assert describe(path).dtype == dtype
    assert (tmp_path / "a.labels.json").is_file()


def test_labels_of_compressed_and_foreign_files(tmp_path, labels):
    data = labels.labels().astype(np.int16)
    write_labels(labels, tmp_path / "a.mrc")
    found = open_labels(save(tmp_path / "a.mrc.gz", gzip.compress(raw_mrc(data, order=">"))))
    np.testing.assert_array_equal(found.labels(), data)
    assert found.volume.data.dtype.isnative
    assert found.classes == CLASSES
    assert open_labels(save(tmp_path / "b.mrc", raw_mrc(data))).classes == {}


def test_masks_kept_as_whole_floats_are_labels(tmp_path):
    data = np.zeros(SHAPE, np.float32)
    data[1, 2, 3] = 1
    found = open_labels(save(tmp_path / "a.mrc", raw_mrc(data)))
    assert np.issubdtype(found.volume.data.dtype, np.integer)
    assert found.mask(1).sum() == 1


def test_a_density_is_no_label_volume(tmp_path, data):
    with pytest.raises(FormatError, match="threshold it first"):
        open_labels(save(tmp_path / "a.mrc", raw_mrc(data)))


@pytest.mark.parametrize(("label", "hint"), [(65536, "Write OME-Zarr"), (-1, "Number the labels from 1")])
def test_labels_that_mrc_cannot_hold_are_refused(tmp_path, labels, label, hint):
    data = labels.labels()
    data[-1, -1, -1] = label
    with pytest.raises(GeometryError, match=hint):
        write_labels(LabelMap(Volume(data, 3.3), {}), tmp_path / "a.mrc")
    assert not list(tmp_path.iterdir())


def test_existing_names_are_kept_unless_told(tmp_path, labels):
    save(tmp_path / "a.labels.json", b"precious")
    with pytest.raises(ExistingOutputError, match="--overwrite"):
        write_labels(labels, tmp_path / "a.mrc")
    assert [file.name for file in tmp_path.iterdir()] == ["a.labels.json"]


def test_names_of_earlier_labels_do_not_survive(tmp_path, labels):
    path = write_labels(labels, tmp_path / "a.mrc")
    write_labels(LabelMap(labels.volume, {}), path, overwrite=True)
    assert open_labels(path).classes == {}


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("{", "move the file away"),
        ("[]", "move the file away"),
        ('{"format": "cryoscan-labels", "version": 1}', "move the file away"),
        ('{"format": "cryoscan-labels", "version": 2, "classes": []}', "update cryoscan"),
    ],
)
def test_damaged_or_newer_names_are_refused(tmp_path, labels, text, hint):
    path = write_labels(labels, tmp_path / "a.mrc")
    (tmp_path / "a.labels.json").write_text(text)
    with pytest.raises(FormatError, match=hint):
        open_labels(path)

"""What the 1024 bytes of an MRC header mean, the wrong ones in circulation included."""

import bz2
import gzip
import re
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mrcfile
import mrcfile.utils
import numpy as np
from mrcfile.dtypes import HEADER_DTYPE

from cryoscan.errors import FormatError, GeometryError, ResourceError, require_file
from cryoscan.io.lazy import fit
from cryoscan.io.replacing import replacing
from cryoscan.provenance import cryoscan_version
from cryoscan.tiles import Tiling
from cryoscan.units import Angstrom, Shape, Vector
from cryoscan.volume import Volume

MRC_SUFFIXES = (".mrc", ".map", ".rec", ".ccp4", ".st", ".ali")
"""Names of files that are read as MRC, also with ``.gz`` or ``.bz2`` behind them."""

MRC_OUTPUT_SUFFIXES = (".mrc", ".map", ".rec", ".ccp4")
"""Names of files that are written as MRC."""


@dataclass(frozen=True, slots=True, eq=False)
class MrcHeader:
    """A header, decoded; triples are z, y, x unless their name says otherwise.

    Parameters
    ----------
    path : Path
    file_size : int
        Bytes on disk.
    compression : str
        ``gzip``, ``bzip2`` or empty.
    stored_shape : tuple of int
        Sections, rows, columns.
    stored_axes : tuple of int
        Which axis (1 x, 2 y, 3 z) the sections, rows and columns run along.
    mode : int
    dtype : numpy.dtype
        With the byte order of the file.
    offset : int
        First byte of the data.
    spacing : Vector, optional
        Voxel size in Å per axis; None if the header does not say it.
    origin : Vector
        Å; the ORIGIN field.
    starts : tuple of int
        Voxels; the NSTART fields, brought from the file's axes to z, y, x.
    labels : tuple of str
    stamp : str
        Byte order, and whether the machine stamp says the same.
    notes : tuple of str
        What is odd, as sentences.
    content : bytes, optional
        The whole file, where it was compressed.
    """

    path: Path
    file_size: int
    compression: str
    stored_shape: tuple[int, int, int]
    stored_axes: tuple[int, int, int]
    mode: int
    dtype: np.dtype
    offset: int
    spacing: Vector | None
    origin: Vector
    starts: tuple[int, int, int]
    labels: tuple[str, ...]
    stamp: str
    notes: tuple[str, ...]
    content: bytes | None = field(default=None, repr=False)

    @property
    def transposition(self) -> tuple[int, int, int]:
        """Axes of the stored array that become z, y, x."""
        z, y, x = (self.stored_axes.index(axis) for axis in (3, 2, 1))
        return z, y, x

    @property
    def shape(self) -> Shape:
        """Size in voxels, z, y, x."""
        z, y, x = (self.stored_shape[axis] for axis in self.transposition)
        return z, y, x

    @property
    def voxel_size(self) -> Angstrom | None:
        """Edge of a voxel; None if it is unset or not the same on every axis."""
        if self.spacing is None or not _is_isotropic(self.spacing):
            return None
        return _seven_digits(sorted(self.spacing)[1])

    def origin_for(self, voxel_size: Angstrom) -> Vector:
        """Position of the centre of voxel (0, 0, 0); NSTART counts only where ORIGIN is all zero."""
        if any(self.origin):
            return self.origin
        z, y, x = (start * voxel_size for start in self.starts)
        return z, y, x


def read_header(path: Path) -> MrcHeader:
    """Read the header of an MRC file and check that the file holds what it promises.

    Raises
    ------
    FormatError
        If the file is no MRC file, is cut off, or holds what is no real-space volume.
    """
    path = require_file(path, what="an MRC file")
    start, size, compression, content = _contents(path)
    if size < HEADER_DTYPE.itemsize:
        raise FormatError(
            f"expected an MRC file with a header of {HEADER_DTYPE.itemsize} bytes",
            got=f"{path} with {size} bytes" if size else f"the empty file {path}",
            hint="The file is empty or cut off: copy or download it again.",
        )
    header, stamp, notes = _decode(start[: HEADER_DTYPE.itemsize], path)
    labels = _labels(header)
    dtype, about_type = _data_type(header, path)
    axes = _axes(header, path)
    shape = (int(header["nz"]), int(header["ny"]), int(header["nx"]))
    offset = HEADER_DTYPE.itemsize + int(header["nsymbt"])
    _check_kind(header, path)
    about_size = _check_length(path, size, offset + dtype.itemsize * shape[0] * shape[1] * shape[2])
    with np.errstate(invalid="ignore"):  # a damaged header may hold a signalling NaN
        spacing, about_spacing = _spacing(header, labels)
        origin, starts, about_origin = _place(header, axes)
    return MrcHeader(
        path=path,
        file_size=path.stat().st_size,
        compression=compression,
        stored_shape=shape,
        stored_axes=axes,
        mode=int(header["mode"]),
        dtype=dtype,
        offset=offset,
        spacing=spacing,
        origin=origin,
        starts=starts,
        labels=labels,
        stamp=stamp,
        notes=(*notes, *about_type, *about_size, *about_spacing, *about_origin, *_about_axes(header, axes)),
        content=content,
    )


def open_mrc(path: Path, *, voxel_size: Angstrom | None = None) -> Volume:
    """Open an MRC file lazily, with the values and the type of the file.

    Raises
    ------
    FormatError
        If the file is not a readable MRC volume.
    GeometryError
        If the voxel size is unset or not the same on every axis, and none is given.
    """
    header = read_header(path)
    if header.stored_shape[0] == 1:
        raise FormatError(
            "expected a volume", got=f"a single image: {path} has one section", hint="Give a tomogram or a map."
        )
    voxel_size = _require_voxel_size(header, voxel_size)
    if header.content is None:
        try:
            stored: np.ndarray = np.memmap(
                path, header.dtype, mode="r", offset=header.offset, shape=header.stored_shape
            )
        except OSError as error:
            raise _unreadable(path, error) from error
    else:
        count = int(np.prod(header.stored_shape))
        stored = np.frombuffer(header.content, header.dtype, count, header.offset).reshape(header.stored_shape)
    return Volume(stored.transpose(header.transposition), voxel_size, header.origin_for(voxel_size))


def write_mrc(volume: Volume, path: Path, *, dtype: np.dtype, overwrite: bool = False) -> Path:
    """Write a volume block by block; the origin goes into ORIGIN, NSTART is 0.

    Raises
    ------
    FormatError
        If MRC cannot hold the type or a single section.
    """
    if dtype == np.uint8:  # MRC has no unsigned bytes
        dtype = np.dtype(np.uint16)
    mode = next((mode for mode, kind in _MODES.items() if kind == dtype), None)
    if mode is None:
        raise FormatError(
            "expected a type that MRC can hold",
            got=str(dtype),
            hint="Choose one of float32, float16, int8, int16, uint16, or write OME-Zarr.",
        )
    if volume.shape[0] < 2:
        raise FormatError(
            "expected a volume of at least two sections for MRC",
            got=f"shape {volume.shape}",
            hint="Programs read an MRC file of one section as an image: write OME-Zarr instead.",
        )
    label = f"cryoscan {cryoscan_version()[:24]}: voxel size is {volume.voxel_size:.6g} A"
    needed = HEADER_DTYPE.itemsize + dtype.itemsize * int(np.prod(volume.shape))
    with (
        replacing(path, overwrite=overwrite, needed=needed) as beside,
        mrcfile.new_mmap(beside, volume.shape, mode) as mrc,
    ):
        statistics = _Statistics()
        for box in Tiling(volume.shape, _BLOCK):
            values = fit(np.asarray(volume.data[box]), dtype)
            mrc.data[box] = values
            statistics.add(values)
        mrc.voxel_size = volume.voxel_size
        mrc.header.origin.z, mrc.header.origin.y, mrc.header.origin.x = volume.origin
        statistics.write(mrc.header)
        mrc.header.label[1] = label.encode("ascii")
        mrc.header.nlabl = 2
    return path


_BLOCK: Shape = (64, 256, 1024)
"""64 MiB of float32; whole shards of our own OME-Zarr stores, long rows for MRC."""

_MODES = {0: np.int8, 1: np.int16, 2: np.float32, 6: np.uint16, 12: np.float16}

_IMOD_STAMP = 1146047817

_MEANT_ONE = re.compile(r"EMD-\d{4,6}|EMDATABANK|^cryoscan .*voxel size", re.IGNORECASE)
"""Labels that show that a voxel size of exactly 1 Å was meant: of the EMDB, which checks it, and our own."""


@dataclass(slots=True)
class _Statistics:
    """Minimum, maximum, mean and spread of values that come in blocks."""

    count: int = 0
    low: float = np.inf
    high: float = -np.inf
    shift: float = 0.0
    total: float = 0.0
    squares: float = 0.0

    def add(self, values: np.ndarray) -> None:
        wide = values.astype(np.float64)
        if self.count == 0:  # sums about a value near the mean lose no digits
            self.shift = float(wide.mean())
        wide -= self.shift
        self.count += wide.size
        self.total += float(wide.sum())
        self.squares += float(np.square(wide, out=wide).sum())
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))

    def write(self, header: Any) -> None:
        """Set the header's statistics, or mark them undetermined (MRC2014) if a value is not finite."""
        if not np.isfinite(self.squares):
            header.dmin, header.dmax, header.dmean, header.rms = 0, -1, -2, -1
            return
        mean = self.total / self.count
        header.dmin, header.dmax, header.dmean = self.low, self.high, self.shift + mean
        header.rms = max(self.squares / self.count - mean**2, 0.0) ** 0.5


def _contents(path: Path) -> tuple[bytes, int, str, bytes | None]:
    """First bytes, size when decompressed, compression, and the whole content where it was compressed.

    The first bytes decide, not the name: both kinds of mislabelled file are common.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(HEADER_DTYPE.itemsize)
        if start[:2] == b"\x1f\x8b":
            content, compression = gzip.decompress(path.read_bytes()), "gzip"
        elif start[:3] == b"BZh":
            content, compression = bz2.decompress(path.read_bytes()), "bzip2"
        else:
            return start, path.stat().st_size, "", None
    except (EOFError, zlib.error, gzip.BadGzipFile, ValueError) as error:
        raise _damaged(path, error) from error
    except OSError as error:
        if error.errno is None:  # bz2 reports damaged data so
            raise _damaged(path, error) from error
        raise _unreadable(path, error) from error
    return content, len(content), compression, content


def _damaged(path: Path, error: Exception) -> FormatError:
    return FormatError(
        f"expected whole compressed data in {path}",
        got=str(error),
        hint="The file is damaged or cut off: copy or download it again.",
    )


def _unreadable(path: Path, error: OSError) -> ResourceError:
    return ResourceError(
        f"expected to read {path}", got=error.strerror or str(error), hint="Check the permissions of the file."
    )


def _decode(raw: bytes, path: Path) -> tuple[Any, str, list[str]]:
    """The header in the byte order in which it makes sense, the state of the stamp, and notes."""
    stamp_bytes = list(raw[212:216])
    try:
        said = mrcfile.utils.byte_order_from_machine_stamp(np.array(stamp_bytes, np.uint8))
    except ValueError:
        said = None
    for order in ("<", ">") if said in (None, "<") else (">", "<"):
        header = np.frombuffer(raw, HEADER_DTYPE.newbyteorder(order))[0]
        if not _makes_sense(header):
            continue
        name = "little-endian" if order == "<" else "big-endian"
        notes = []
        if said == order:
            stamp = name
        else:
            stamp = f"{name}, wrong machine stamp"
            notes.append(f"The machine stamp ({bytes(stamp_bytes).hex(' ')}) is wrong; the header reads as {name}.")
        if bytes(header["map"])[:3] != b"MAP":
            notes.append("The word 'MAP' is missing from the header, as in files of before 2000.")
        return header, stamp, notes
    raise FormatError(
        "expected an MRC file",
        got=f"{path}, whose first 1024 bytes make no sense as a header",
        hint="Check that the name's ending fits the content: text, images and HDF5 files cannot be read as MRC.",
    )


def _makes_sense(header: Any) -> bool:
    sizes = [int(header[name]) for name in ("nx", "ny", "nz")]
    return all(0 < size < 1 << 20 for size in sizes) and int(header["mode"]) in _KNOWN_MODES and header["nsymbt"] >= 0


_KNOWN_MODES = {*_MODES, 3, 4, 16, 101}


def _labels(header: Any) -> tuple[str, ...]:
    count = min(max(int(header["nlabl"]), 0), 10)
    texts = (mrcfile.utils.printable_string_from_bytes(bytes(label)).strip() for label in header["label"][:count])
    return tuple(text for text in texts if text)


def _data_type(header: Any, path: Path) -> tuple[np.dtype, list[str]]:
    """Type of the values; bytes are signed since MRC2014, and unsigned where IMOD or the maximum says so."""
    mode, imod = int(header["mode"]), _imod_flags(header)
    if mode in (3, 4):
        raise FormatError(
            "expected a volume of real numbers",
            got=f"complex numbers (mode {mode}) in {path}",
            hint="The file holds a Fourier transform: give the volume itself.",
        )
    if mode not in _MODES or (mode == 0 and imod is not None and imod & 16):
        raise FormatError(
            "expected one number of 8, 16 or 32 bits per voxel",
            got=f"mode {mode} ({'colours' if mode == 16 else '4 bits per voxel'}) in {path}",
            hint="Convert the file first, e.g. with IMOD: newstack -mode 2 in.mrc out.mrc.",
        )
    if mode == 0 and imod is not None and not imod & 1:
        return np.dtype(np.uint8), ["Bytes are unsigned, as IMOD's flags say."]
    if mode == 0 and imod is None and header["dmin"] >= 0 and header["dmax"] > 127:
        return np.dtype(np.uint8), [f"Bytes are taken as unsigned: the header's maximum is {header['dmax']:g}."]
    return np.dtype(_MODES[mode]).newbyteorder(header.dtype["mode"].byteorder), []


def _imod_flags(header: Any) -> int | None:
    """Flags of IMOD: 1 signed bytes, 4 ORIGIN as others mean it, 16 two values per byte; None if not by IMOD."""
    order = header.dtype["mode"].byteorder
    stamp, flags = np.frombuffer(bytes(header["extra2"])[40:48], np.dtype(np.int32).newbyteorder(order))
    return int(flags) if stamp == _IMOD_STAMP else None


def _axes(header: Any, path: Path) -> tuple[int, int, int]:
    """The axes of sections, rows, columns; all zero, as in old files, is the usual order."""
    sections, rows, columns = (int(header[name]) for name in ("maps", "mapr", "mapc"))
    if (sections, rows, columns) == (0, 0, 0):
        return 3, 2, 1
    if {sections, rows, columns} != {1, 2, 3}:
        raise FormatError(
            "expected the axes 1, 2, 3 in some order in MAPC, MAPR, MAPS",
            got=f"{columns}, {rows}, {sections} in {path}",
            hint="The header is damaged: set MAPC, MAPR, MAPS to 1, 2, 3, or write the file again.",
        )
    return sections, rows, columns


def _check_kind(header: Any, path: Path) -> None:
    nz, mz = int(header["nz"]), int(header["mz"])
    if mrcfile.utils.spacegroup_is_volume_stack(int(header["ispg"])) and 0 < mz < nz:
        raise FormatError(
            "expected one volume",
            got=f"a stack of {nz // mz} volumes in {path}",
            hint="Write each volume into a file of its own.",
        )
    angles = [float(header["cellb"][name]) for name in ("alpha", "beta", "gamma")]
    if any(angles) and not np.allclose(angles, 90, atol=0.1):
        raise GeometryError(
            "expected right angles between the axes",
            got=f"cell angles of {', '.join(f'{angle:g}' for angle in angles)}° in {path}",
            hint="Resample the map to a rectangular grid, e.g. with ChimeraX: volume resample.",
        )


def _check_length(path: Path, size: int, needed: int) -> list[str]:
    if size < needed:
        raise FormatError(
            f"expected {needed} bytes in {path}, as its header says",
            got=f"{size} bytes",
            hint="The file is cut off: copy or download it again.",
        )
    return [f"{size - needed} bytes follow the data and are ignored."] if size > needed else []


def _spacing(header: Any, labels: tuple[str, ...]) -> tuple[Vector | None, list[str]]:
    """Voxel size per axis (cell by sampling), or None where the header leaves it unset."""
    cell = np.array([header["cella"][axis] for axis in "zyx"], np.float64)
    sampling = np.array([header[name] for name in ("mz", "my", "mx")], np.float64)
    if not (np.isfinite(cell).all() and (cell > 0).all() and (sampling > 0).all()):
        return None, ["The voxel size is unset: the header has no cell or no sampling."]
    z, y, x = (float(size) for size in cell / sampling)
    if max(abs(size - 1) for size in (z, y, x)) < 1e-6:
        evidence = next((label for label in labels if _MEANT_ONE.search(label)), None)
        if evidence is None:
            return None, ["The voxel size is taken as unset: 1 Å is what many programs write when they do not know."]
        return (1.0, 1.0, 1.0), [f"The voxel size of 1 Å is taken as meant because of the label '{evidence}'."]
    notes = []
    if not _is_isotropic((z, y, x)):
        notes.append(f"Voxels are not cubes: {z:g} × {y:g} × {x:g} Å (z, y, x).")
    return (z, y, x), notes


def _place(header: Any, axes: tuple[int, int, int]) -> tuple[Vector, tuple[int, int, int], list[str]]:
    """ORIGIN (stored x, y, z) and NSTART (stored in the order of columns, rows, sections) as z, y, x."""
    z, y, x = (_seven_digits(float(header["origin"][axis])) for axis in "zyx")
    by_axis = dict(zip(axes, (int(header[name]) for name in ("nzstart", "nystart", "nxstart")), strict=True))
    starts = (by_axis[3], by_axis[2], by_axis[1])
    notes = []
    if any(starts):
        used = "ignored, because ORIGIN is set" if any((z, y, x)) else "used as origin, because ORIGIN is zero"
        notes.append(f"NSTART is {starts} voxels (z, y, x); it is {used}.")
    imod = _imod_flags(header)
    if imod is not None and not imod & 4 and any((z, y, x)):
        notes.append("IMOD means ORIGIN with the opposite sign; it is taken as ChimeraX and MRC2014 take it.")
    return (z, y, x), starts, notes


def _about_axes(header: Any, axes: tuple[int, int, int]) -> list[str]:
    notes = []
    if axes != (3, 2, 1):
        order = ", ".join(" xyz"[axis] for axis in axes)
        notes.append(f"Sections, rows and columns run along {order}; the volume is turned to z, y, x.")
    by_axis = dict(zip(axes, (int(header[name]) for name in ("nz", "ny", "nx")), strict=True))
    sizes = tuple(by_axis[axis] for axis in (3, 2, 1))
    sampling = tuple(int(header[name]) for name in ("mz", "my", "mx"))
    if sampling != sizes and min(sampling) > 0:
        notes.append(f"The cell is sampled {sampling} times (z, y, x), the file holds {sizes} voxels.")
    if int(header["nz"]) == 1:
        notes.append("The file holds a single image, no volume.")
    return notes


def _require_voxel_size(header: MrcHeader, given: Angstrom | None) -> Angstrom:
    if given is not None:
        return given
    if header.spacing is None:
        raise GeometryError(
            "expected a voxel size in the header",
            got=f"an unset one (0 or 1 Å) in {header.path}",
            hint="Pass the true voxel size in Å with --voxel-size (voxel_size=…).",
        )
    if header.voxel_size is None:
        sizes = " × ".join(f"{size:g}" for size in header.spacing)
        raise GeometryError(
            "expected cubic voxels",
            got=f"voxels of {sizes} Å (z, y, x) in {header.path}",
            hint="Resample it to equal voxels; if only the header is wrong, pass the true size with --voxel-size.",
        )
    return header.voxel_size


def _is_isotropic(spacing: Vector) -> bool:
    return max(spacing) <= min(spacing) * (1 + 1e-3)


def _seven_digits(value: float) -> float:
    """Round to the digits that a float32 holds, so that 1.37 comes back as 1.37."""
    return float(f"{value:.7g}")

"""Which file is read and written how: the one place where format, contrast and voxel size are settled."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import numpy.typing as npt

from cryoscan.errors import ConfigError, FormatError, GeometryError, require_file
from cryoscan.io.lazy import LazyArray, LazyPlanes
from cryoscan.units import Angstrom, Shape, Vector
from cryoscan.volume import Volume

if TYPE_CHECKING:
    from cryoscan.io.omezarr import Ngff

# The readers are imported inside the functions: Zarr alone takes most of a second, and an
# MRC file does not need it.


@dataclass(frozen=True, slots=True)
class VolumeInfo:
    """What a header says, without a look at the data.

    Parameters
    ----------
    path : Path
    format : str
        E.g. ``MRC``, ``MRC, gzip`` or ``OME-Zarr 0.5``.
    shape : (z, y, x) of Voxels
        Of the finest level.
    dtype : str
        As stored, e.g. ``int8`` or ``float32``.
    mode : int, optional
        MRC mode.
    voxel_size : Angstrom, optional
        None if it is unset or the voxels are not cubes; `warnings` says which.
    origin : (z, y, x) in Å
        Position of the centre of voxel (0, 0, 0).
    axis_order : str
        As stored, slowest first.
    levels : tuple of shapes
        Finest first; one for MRC.
    nstart : (z, y, x) of Voxels, optional
        MRC's NSTART.
    labels : tuple of str
        Texts in an MRC header, or names of the label classes of OME-Zarr.
    machine_stamp : str
        Byte order of an MRC file and whether its stamp is right.
    file_size : int
        Bytes on disk.
    warnings : tuple of str
        What is odd, in plain sentences.
    """

    path: Path
    format: str
    shape: Shape
    dtype: str
    mode: int | None
    voxel_size: Angstrom | None
    origin: Vector
    axis_order: str
    levels: tuple[Shape, ...]
    nstart: tuple[int, int, int] | None
    labels: tuple[str, ...]
    machine_stamp: str
    file_size: int
    warnings: tuple[str, ...]

    def disagreement(self, voxel_size: Angstrom) -> str | None:
        """A sentence for the user if `voxel_size` (Å) is more than 10 % off the header's."""
        if self.voxel_size is None or 0.9 <= voxel_size / self.voxel_size <= 1.1:
            return None
        return f"The header says {self.voxel_size:g} Å per voxel; the given {voxel_size:g} Å is used instead."


@dataclass(frozen=True, slots=True)
class VolumeFile:
    """Which file a volume comes from and how it is read, so that another process can open the same.

    Parameters
    ----------
    path : Path
    voxel_size : Angstrom, optional
        In place of the file's own.
    contrast : {"bright", "dark"}
        What protein is in the file.
    z_range : (first, last + 1), optional
        Planes that are taken.
    """

    path: Path
    voxel_size: Angstrom | None = None
    contrast: Literal["bright", "dark"] = "bright"
    z_range: tuple[int, int] | None = None

    def open(self) -> Volume:
        """Open the volume lazily; see `open_volume`."""
        volume = open_volume(self.path, voxel_size=self.voxel_size, contrast=self.contrast)
        return volume if self.z_range is None else planes(volume, self.z_range)

    def to_json(self) -> dict[str, Any]:
        """JSON-able, the path absolute."""
        return {
            "path": str(self.path.resolve()),
            "voxel_size_A": self.voxel_size,
            "contrast": self.contrast,
            "z_range": None if self.z_range is None else list(self.z_range),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        z_range = values["z_range"]
        return cls(
            Path(values["path"]),
            values["voxel_size_A"],
            values["contrast"],
            None if z_range is None else (int(z_range[0]), int(z_range[1])),
        )


def planes(volume: Volume, z_range: tuple[int, int]) -> Volume:
    """Some planes of a volume, lazily.

    Raises
    ------
    GeometryError
        If they are not in the volume.
    """
    first, stop = z_range
    depth = volume.shape[0]
    if not 0 <= first < stop <= depth:
        raise GeometryError(
            f"expected planes between 0 and {depth}",
            got=f"{first}:{stop}",
            hint="Give the first plane and the one after the last, counted from 0 in z.",
        )
    z, y, x = volume.to_position([first, 0, 0])
    return Volume(LazyPlanes(volume.data, first, stop), volume.voxel_size, (float(z), float(y), float(x)))


def open_volume(
    path: Path | str,
    *,
    voxel_size: Angstrom | None = None,
    contrast: Literal["bright", "dark"] = "bright",
    near_voxel_size: Angstrom | None = None,
) -> Volume:
    """Open a map or tomogram lazily; values are read as float32, protein positive.

    Parameters
    ----------
    path : Path or str
        MRC (``.mrc .map .rec .ccp4 .st .ali``; also ``.gz`` and ``.bz2``, which are read
        into memory) or a folder of OME-Zarr 0.4 or 0.5.
    voxel_size : Angstrom, optional
        In place of the file's own (of the finest level).
    contrast : {"bright", "dark"}
        What protein is in the file; raw tomograms are mostly dark, their sign is changed.
    near_voxel_size : Angstrom, optional
        Of a pyramid, take the coarsest level of at most this voxel size (1 % tolerance), else the finest.

    Raises
    ------
    MissingFileError, FormatError
        If there is no such file, or it is no volume, or it is damaged.
    GeometryError
        If the voxel size is unset or not the same on every axis, and none is given.
    """
    if contrast not in ("bright", "dark"):
        raise ConfigError(
            "expected a contrast of 'bright' or 'dark'",
            got=repr(contrast),
            hint="'dark' if protein is darker than its surroundings, as in raw tomograms.",
        )
    volume = open_stored(Path(path), voxel_size=voxel_size, near_voxel_size=near_voxel_size)
    float32 = np.dtype(np.float32)
    if contrast == "bright" and volume.data.dtype == float32:
        return volume
    data = LazyArray(volume.data, float32, negate=contrast == "dark")
    return Volume(data, volume.voxel_size, volume.origin)


def open_stored(path: Path, *, voxel_size: Angstrom | None = None, near_voxel_size: Angstrom | None = None) -> Volume:
    """Open a volume lazily with the values and the type of its file; see `open_volume`."""
    if _is_omezarr(path):
        from cryoscan.io.omezarr import open_omezarr

        return open_omezarr(path, voxel_size=voxel_size, near_voxel_size=near_voxel_size)
    from cryoscan.io.mrc import open_mrc

    return open_mrc(path, voxel_size=voxel_size)


def open_levels(path: Path | str, *, voxel_size: Angstrom | None = None) -> list[Volume]:
    """Open every resolution in which a volume is stored, finest first, with the values of the file; lazily.

    An MRC file has one. Levels whose voxels are no cubes are left out.

    Parameters
    ----------
    path : Path or str
    voxel_size : Angstrom, optional
        Of the finest level, in place of the file's own.

    Raises
    ------
    MissingFileError, FormatError, GeometryError
        As `open_volume`.
    """
    finest = open_stored(Path(path), voxel_size=voxel_size)
    if not _is_omezarr(Path(path)):
        return [finest]
    from cryoscan.io.omezarr import read_image

    first, *coarser = read_image(Path(path)).levels
    volumes = [finest]
    for level in coarser:
        if level.is_isotropic:
            unit = finest.voxel_size / first.edge
            z, y, x = (
                o + (c - f) * unit for o, c, f in zip(finest.origin, level.translation, first.translation, strict=True)
            )
            data = LazyArray(level.array, np.dtype(level.array.dtype))
            volumes.append(Volume(data, level.edge * unit, (z, y, x)))
    return volumes


def write_volume(
    volume: Volume,
    path: Path | str,
    *,
    overwrite: bool = False,
    ngff: "Ngff" = "0.5",
    dtype: npt.DTypeLike | None = None,
) -> Path:
    """Write a volume block by block, as its name says: MRC, or OME-Zarr with a pyramid.

    Parameters
    ----------
    volume : Volume
        Protein positive; stays so in the file.
    path : Path or str
        ``.mrc .map .rec .ccp4`` or ``.zarr``.
    overwrite : bool
        Replace an existing output, once the new one is complete.
    ngff : {"0.5", "0.4"}
        Version of OME-Zarr.
    dtype : optional
        Default float32.

    Raises
    ------
    ExistingOutputError
        If the output exists and `overwrite` is false.
    FormatError, GeometryError
        If the format cannot hold the type, or the type the values.
    """
    path = Path(path)
    wanted = np.dtype(np.float32 if dtype is None else dtype)
    if is_zarr_output(path):
        from cryoscan.io.omezarr import write_omezarr

        return write_omezarr(volume, path, dtype=wanted, ngff=ngff, overwrite=overwrite)
    from cryoscan.io.mrc import write_mrc

    return write_mrc(volume, path, dtype=wanted, overwrite=overwrite)


def describe(path: Path | str) -> VolumeInfo:
    """Read what the header of a volume says, the wrong and the missing included.

    Raises
    ------
    MissingFileError, FormatError
        If there is no such file, or it cannot be read as a volume.
    """
    path = Path(path)
    return _describe_omezarr(path) if _is_omezarr(path) else _describe_mrc(path)


def require_usable(values: np.ndarray, path: Path | str) -> np.ndarray:
    """Return loaded values if a program can find something in them; nothing is mended silently.

    Raises
    ------
    FormatError
        If a value is NaN or infinite, or all values are the same.
    """
    broken = int(values.size - np.count_nonzero(np.isfinite(values)))
    if broken:
        raise FormatError(
            f"expected finite values in {path}",
            got=f"{broken} of {values.size} voxels that are NaN or infinite",
            hint="Replace them by the mean of the volume in the program that made it, and write it again.",
        )
    if values.size == 0 or values.min() == values.max():
        raise FormatError(
            f"expected a volume with contrast in {path}",
            got="no voxels" if values.size == 0 else f"{values.flat[0]:g} in every voxel",
            hint="The volume is empty: check that the program that wrote it ended without an error.",
        )
    return values


def is_zarr_output(path: Path) -> bool:
    """Whether an output of this name is OME-Zarr (else MRC); other names are refused."""
    from cryoscan.io.mrc import MRC_OUTPUT_SUFFIXES

    if path.suffix.lower() == ".zarr":
        return True
    if path.suffix.lower() in MRC_OUTPUT_SUFFIXES:
        return False
    raise FormatError(
        f"expected an output named {', '.join(MRC_OUTPUT_SUFFIXES)} or .zarr",
        got=path.name,
        hint="The name's ending chooses the format.",
    )


def _is_omezarr(path: Path) -> bool:
    """Whether a path is read as OME-Zarr (else as MRC); other names are refused."""
    from cryoscan.io.mrc import MRC_SUFFIXES

    name = path.name.lower().removesuffix(".gz").removesuffix(".bz2")
    if path.is_dir() or name.endswith(".zarr"):
        from cryoscan.io.replacing import is_zarr

        if path.is_dir() and name.endswith(MRC_SUFFIXES) and not is_zarr(path):
            require_file(path, what="an MRC file")
        return True
    if not name.endswith(MRC_SUFFIXES):
        require_file(path, what="a volume")
        raise FormatError(
            f"expected a volume named {', '.join(MRC_SUFFIXES)} (also .gz, .bz2), or a .zarr folder",
            got=str(path),
            hint="Convert the volume to MRC or OME-Zarr, or give the file its right ending.",
        )
    return False


def _describe_mrc(path: Path) -> VolumeInfo:
    from cryoscan.io.mrc import read_header

    header = read_header(path)
    return VolumeInfo(
        path=path,
        format=f"MRC, {header.compression}" if header.compression else "MRC",
        shape=header.shape,
        dtype=header.dtype.newbyteorder("=").name,
        mode=header.mode,
        voxel_size=header.voxel_size,
        origin=header.origin_for(header.voxel_size or 1.0),
        axis_order=", ".join(" xyz"[axis] for axis in header.stored_axes),
        levels=(header.shape,),
        nstart=header.starts,
        labels=header.labels,
        machine_stamp=header.stamp,
        file_size=header.file_size,
        warnings=header.notes,
    )


def _describe_omezarr(path: Path) -> VolumeInfo:
    from cryoscan.io.omezarr import read_image

    image = read_image(path)
    labels = tuple(meaning.name for meaning in (image.classes or {}).values())
    return VolumeInfo(
        path=path,
        format=f"OME-Zarr {image.version}" + ("" if image.classes is None else ", labels"),
        shape=image.levels[0].shape,
        dtype=np.dtype(image.levels[0].array.dtype).name,
        mode=None,
        voxel_size=image.voxel_size,
        origin=image.origin,
        axis_order=", ".join(image.axes),
        levels=tuple(level.shape for level in image.levels),
        nstart=None,
        labels=labels,
        machine_stamp="",
        file_size=sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
        warnings=image.notes,
    )

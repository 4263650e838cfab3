"""How OME-Zarr 0.4 and 0.5 say where a volume is, in which resolutions it exists, and what its labels mean.

A label volume is an ordinary image store: its root holds the pyramid of integers and the
``image-label`` metadata (colours as `rgba`, properties `name`, `type`, `scheme`). So one
path names one thing, and viewers open it as labels. Stores that keep labels the other way, in
``labels/<name>`` inside an image, are read too.
"""

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import zarr
import zarr.codecs
import zarr.storage
from numcodecs import Blosc
from ome_zarr_models.v05.axes import Axis
from ome_zarr_models.v05.multiscales import Dataset, Multiscale

from cryoscan.errors import (
    ConfigError,
    CryoscanError,
    FormatError,
    GeometryError,
    MissingFileError,
    ResourceError,
    refuse_existing,
)
from cryoscan.io.lazy import LazyArray, fit
from cryoscan.io.replacing import is_zarr, replacing
from cryoscan.labels import LabelClass
from cryoscan.tiles import Tiling
from cryoscan.units import Angstrom, Box, Shape, Vector
from cryoscan.volume import ArrayLike, Volume

Ngff: TypeAlias = Literal["0.4", "0.5"]
"""Version of OME-Zarr: 0.5 is Zarr 3 with shards, 0.4 is Zarr 2 with one file per chunk."""


@dataclass(frozen=True, slots=True, eq=False)
class Level:
    """One resolution of a pyramid; `spacing` and `translation` are z, y, x in the store's own units."""

    array: zarr.Array
    spacing: Vector
    translation: Vector

    @property
    def shape(self) -> Shape:
        """Size in voxels, z, y, x."""
        z, y, x = self.array.shape[-3:]
        return int(z), int(y), int(x)

    @property
    def edge(self) -> float:
        """Edge of a voxel; the middle of three numbers that are nearly equal, for a mean would not be exact."""
        return sorted(self.spacing)[1]

    @property
    def is_isotropic(self) -> bool:
        """Whether voxels are cubes, to one part in a thousand."""
        return max(self.spacing) <= min(self.spacing) * (1 + 1e-3)


@dataclass(frozen=True, slots=True, eq=False)
class OmeZarrImage:
    """An opened pyramid.

    Parameters
    ----------
    path : Path
    version : str
        Of the OME-Zarr metadata.
    levels : tuple of Level
        Finest first.
    unit : float, optional
        Å per unit of the store; None if the axes carry no unit.
    axes : tuple of str
    classes : mapping, optional
        Label → meaning; None if the image is not declared to hold labels.
    notes : tuple of str
        What is odd, as sentences.
    """

    path: Path
    version: str
    levels: tuple[Level, ...]
    unit: float | None
    axes: tuple[str, ...]
    classes: Mapping[int, LabelClass] | None
    notes: tuple[str, ...]

    @property
    def voxel_size(self) -> Angstrom | None:
        """Voxel size of the finest level; None if it is unset or not the same on every axis."""
        finest = self.levels[0]
        return finest.edge * self.unit if self.unit is not None and finest.is_isotropic else None

    @property
    def origin(self) -> Vector:
        """Position of the first voxel of the finest level, Å (in the store's units where there is no unit)."""
        z, y, x = (shift * (self.unit or 1.0) for shift in self.levels[0].translation)
        return z, y, x


def read_image(path: Path) -> OmeZarrImage:
    """Read the metadata of an OME-Zarr image and open its levels.

    Raises
    ------
    MissingFileError
        If there is no such folder.
    FormatError
        If the folder is no OME-Zarr image, of another version, or has other axes than a volume.
    """
    group = _open_group(path)
    attributes = group.attrs.asdict()
    metadata = attributes["ome"] if isinstance(attributes.get("ome"), dict) else attributes
    if "multiscales" not in metadata:
        raise _no_image(path, group, metadata)
    try:
        multiscale = metadata["multiscales"][0]
        version = str(metadata.get("version") or multiscale.get("version") or "0.4")
        if version not in ("0.4", "0.5"):
            raise FormatError(
                f"expected OME-Zarr 0.4 or 0.5 in {path}",
                got=f"version {version}",
                hint="Convert the store to OME-Zarr 0.4 or 0.5.",
            )
        names = tuple(str(axis["name"]) for axis in multiscale["axes"])
        levels = tuple(_levels(group, multiscale, names, path))
        unit = _unit([axis.get("unit") for axis in multiscale["axes"]][-3:])
        notes = tuple(_notes(levels, unit, names))
        classes = _read_classes(metadata.get("image-label"))
    except CryoscanError:
        raise
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise FormatError(
            f"expected complete OME-Zarr metadata in {path}",
            got=f"{type(error).__name__}: {error}",
            hint="The metadata is damaged: write the store again.",
        ) from error
    return OmeZarrImage(path, version, levels, unit, names, classes, notes)


def open_omezarr(path: Path, *, voxel_size: Angstrom | None = None, near_voxel_size: Angstrom | None = None) -> Volume:
    """Open one level of an OME-Zarr image lazily, with the values and the type of the store.

    `voxel_size` replaces that of the finest level; the others keep their ratio to it.

    Raises
    ------
    FormatError
        If the folder is no OME-Zarr volume.
    GeometryError
        If the voxel size is unset or not the same on every axis, and none is given.
    """
    return as_volume(read_image(path), voxel_size=voxel_size, near_voxel_size=near_voxel_size)


def as_volume(
    image: OmeZarrImage, *, voxel_size: Angstrom | None = None, near_voxel_size: Angstrom | None = None
) -> Volume:
    """The level of an image that is coarsest without being coarser than `near_voxel_size` (by 1 %), else the finest."""
    finest = image.levels[0]
    stored, unit = finest.edge, image.unit
    if voxel_size is None:
        if unit is None:
            raise GeometryError(
                "expected a unit of length on the axes",
                got=f"none in {image.path}, so the voxel size is unset",
                hint="Pass the voxel size in Å with --voxel-size (voxel_size=…).",
            )
        if not finest.is_isotropic:
            sizes = " × ".join(f"{size * unit:g}" for size in finest.spacing)
            raise GeometryError(
                "expected cubic voxels",
                got=f"voxels of {sizes} Å (z, y, x) in {image.path}",
                hint="Resample it to equal voxels; if only the header is wrong, pass the true size with --voxel-size.",
            )
        voxel_size = stored * unit
    scale = voxel_size / stored
    level = finest
    for candidate in image.levels[1:]:
        fine_enough = near_voxel_size is not None and candidate.edge * scale <= near_voxel_size * 1.01
        if fine_enough and candidate.is_isotropic:
            level = candidate
    # Without a unit the given voxel size fixes the scale of everything; with one, the origin stands in Å.
    start = np.array(finest.translation) * (scale if unit is None else unit)
    z, y, x = start + (np.array(level.translation) - finest.translation) * scale
    size = voxel_size if level is finest else level.edge * scale
    array = LazyArray(level.array, np.dtype(level.array.dtype))
    return Volume(array, size, (float(z), float(y), float(x)))


def write_omezarr(
    volume: Volume,
    path: Path,
    *,
    dtype: np.dtype,
    ngff: Ngff = "0.5",
    classes: Mapping[int, LabelClass] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a volume and its pyramid, one shard at a time.

    Coarser levels average 2³ voxels, and lie half a voxel further in. Labels (`classes`
    given) cannot be averaged: every second voxel is taken, which stays where it was.
    """
    _check_type(dtype)
    labels = classes is not None
    shapes = list(_pyramid(volume.shape))
    with replacing(path, overwrite=overwrite) as beside:
        group = _create_group(beside, ngff)
        for number, shape in enumerate(shapes):
            array = _create_array(group, str(number), shape=shape, dtype=dtype, ngff=ngff)
            source: ArrayLike = volume.data if number == 0 else group[str(number - 1)]
            for box in Tiling(shape, array.shards or array.chunks):
                if number == 0:
                    array[box] = fit(np.asarray(source[box]), dtype)
                else:
                    array[box] = _halved(source, box, dtype, average=not labels)
        _describe(
            group,
            name=path.name.removesuffix(".zarr").removesuffix(".ome"),
            count=len(shapes),
            voxel_size=volume.voxel_size,
            origin=volume.origin,
            ngff=ngff,
            classes=classes,
        )
    return path


def create_zarr(  # noqa: PLR0913
    path: Path | str,
    *,
    shape: Shape,
    dtype: np.dtype | type | str,
    voxel_size: Angstrom,
    origin: Vector,
    chunks: Shape | None = None,
    shards: Shape | None = None,
    ngff: Ngff = "0.5",
    fill: float = 0,
    classes: Mapping[int, LabelClass] | None = None,
    pyramid: bool = False,
) -> zarr.Array:
    """Create an OME-Zarr image, to be filled with ``array[box] = values``; gives its finest level.

    Write whole shards (0.5) or chunks (0.4) at a time: two writers in one shard lose data.

    Parameters
    ----------
    path : Path or str
        The new folder, best named ``….zarr``.
    shape : (z, y, x) of Voxels
        Size of the array.
    dtype : numpy type
        Of the values.
    voxel_size : Angstrom
        Edge of a voxel.
    origin : (z, y, x) in Å
        Position of the centre of voxel (0, 0, 0).
    chunks : (z, y, x) of Voxels, optional
        What is compressed as one.
    shards : (z, y, x) of Voxels, optional
        What is one file in 0.5; multiples of the chunks.
    ngff : {"0.5", "0.4"}
        Version of OME-Zarr.
    fill : float
        Value of what has not been written.
    classes : mapping, optional
        Makes it a label image.
    pyramid : bool
        Create the coarser levels as well; `build_pyramid` fills them.

    Raises
    ------
    ExistingOutputError
        If `path` exists.
    """
    path, dtype = Path(path), np.dtype(dtype)
    refuse_existing(path, overwrite=False)
    _check_type(dtype)
    Volume(np.broadcast_to(np.zeros((), dtype), shape), voxel_size, origin)  # refuses impossible geometry; no memory
    if shards is not None and (ngff == "0.4" or any(s % c for s, c in zip(shards, chunks or _chunks(shape, ngff)))):
        raise FormatError(
            "expected shards that are multiples of the chunks, in OME-Zarr 0.5",
            got=f"shards {shards}, chunks {chunks}, version {ngff}",
            hint="Give shards whose edges are multiples of the chunk's edges, or none.",
        )
    group = _create_group(path, ngff)
    array = _create_array(group, "0", shape=shape, dtype=dtype, ngff=ngff, chunks=chunks, shards=shards, fill=fill)
    coarser = list(_pyramid(shape))[1:] if pyramid else []
    for number, size in enumerate(coarser, start=1):
        _create_array(group, str(number), shape=size, dtype=dtype, ngff=ngff, fill=fill)
    _describe(
        group,
        name=path.name.removesuffix(".zarr").removesuffix(".ome"),
        count=1 + len(coarser),
        voxel_size=voxel_size,
        origin=origin,
        ngff=ngff,
        classes=classes,
    )
    return array


def build_pyramid(path: Path | str, *, average: bool) -> None:
    """Fill the coarser levels of an image from its finest; what is not stored there is skipped.

    Parameters
    ----------
    path : Path or str
        An image made by `create_zarr`.
    average : bool
        Mean of 2³ voxels; otherwise every second voxel, as labels need it.
    """
    image = read_image(Path(path))
    for fine, coarse in itertools.pairwise(image.levels):
        target = zarr.open_array(image.path / coarse.array.path, mode="r+")
        stored = stored_parts(fine.array)
        for box in Tiling(coarse.shape, target.shards or target.chunks):
            if stored is None or stored.touch([slice(2 * part.start, 2 * part.stop) for part in box]):
                target[box] = _halved(fine.array, box, target.dtype, average=average)


@dataclass(frozen=True, slots=True, eq=False)
class StoredParts:
    """Which parts of a sparse array are on disk.

    Parameters
    ----------
    present : bool array, `z y x`
        One value per shard, or per chunk where there are no shards.
    size : (z, y, x) of Voxels
        Edges of a part.
    """

    present: np.ndarray
    size: Shape

    def touch(self, box: Sequence[slice]) -> bool:
        """Whether anything of a box is stored."""
        parts = tuple(slice(b.start // size, -(-b.stop // size)) for b, size in zip(box, self.size, strict=True))
        return bool(self.present[parts].any())


def stored_parts(array: Any) -> StoredParts | None:
    """Which shards or chunks of a Zarr array are files on disk: what has none holds the fill value.

    None for what is no Zarr array on a local disk.
    """
    while isinstance(array, LazyArray):
        array = array.source
    if not isinstance(array, zarr.Array) or not isinstance(array.store, zarr.storage.LocalStore):
        return None
    sizes = array.shards or array.chunks
    grid = np.zeros([-(-n // size) for n, size in zip(array.shape, sizes, strict=True)], bool)
    folder = Path(array.store.root) / array.path
    for parent, _, files in os.walk(folder):
        below = Path(parent).relative_to(folder).parts
        for file in files:
            names = [name for name in (*below, *file.split(".")) if name != "c"]
            place = [int(name) for name in names if name.isdigit()]
            if len(place) == len(names) == grid.ndim:  # else metadata, or what a killed writer left
                grid[tuple(place)] = True
    z, y, x = sizes[-3:]
    return StoredParts(grid[(0,) * (grid.ndim - 3)], (z, y, x))


def open_zarr_array(path: Path | str, *, writable: bool = False) -> zarr.Array:
    """Open the finest level of an OME-Zarr image for reading, or for writing of regions.

    Raises
    ------
    FormatError
        If the folder is no OME-Zarr volume.
    """
    image = read_image(Path(path))
    if not writable:
        return image.levels[0].array
    return zarr.open_array(image.path / image.levels[0].array.path, mode="r+")


def labels_inside(path: Path) -> list[str]:
    """Names of the label volumes in the ``labels`` group of an image store; none is usual."""
    if not is_zarr(path / "labels"):
        return []
    attributes = _open_group(path / "labels").attrs.asdict()
    metadata = attributes["ome"] if isinstance(attributes.get("ome"), dict) else attributes
    names = metadata.get("labels")
    return [str(name) for name in names] if isinstance(names, list) else []


_EDGE_OF_SMALLEST = 128
"""The pyramid ends at the first level whose largest edge is below this."""

_UNITS = {"angstrom": 1.0, "nanometer": 10.0, "micrometer": 1e4, "picometer": 0.01}


def _open_group(path: Path) -> zarr.Group:
    if not path.exists():
        raise MissingFileError(
            "expected an OME-Zarr folder", got=f"no such folder: {path}", hint="Check the spelling of the path."
        )
    if not path.is_dir() or not is_zarr(path):
        raise FormatError(
            "expected an OME-Zarr folder",
            got=f"{path}, which holds no Zarr metadata",
            hint="Give the folder that holds 'zarr.json' (0.5) or '.zattrs' (0.4).",
        )
    try:
        node = zarr.open(store=path, mode="r")
    except (OSError, ValueError, KeyError, TypeError) as error:  # json errors are ValueErrors
        raise FormatError(
            f"expected readable Zarr metadata in {path}",
            got=f"{type(error).__name__}: {error}",
            hint="The metadata is damaged: write the store again.",
        ) from error
    if isinstance(node, zarr.Array):
        raise FormatError(
            "expected an OME-Zarr image",
            got=f"a single Zarr array: {path}",
            hint="Give the folder above it, which says the voxel size.",
        )
    return node


def _no_image(path: Path, group: zarr.Group, metadata: Mapping[str, Any]) -> FormatError:
    inside = metadata.get("labels") or sorted(name for name, _ in group.groups())
    hint = f"Give one of the images inside: {', '.join(map(str, inside[:10]))}." if inside else "Write it as OME-Zarr."
    return FormatError("expected an OME-Zarr image", got=f"a group without 'multiscales': {path}", hint=hint)


def _levels(group: zarr.Group, multiscale: Mapping[str, Any], names: tuple[str, ...], path: Path) -> Iterator[Level]:
    if names[-3:] != ("z", "y", "x"):
        raise FormatError(
            "expected the axes z, y, x, in this order, as the last ones",
            got=f"{', '.join(names)} in {path}",
            hint="Write the store again with the axes in the order z, y, x.",
        )
    for dataset in multiscale["datasets"]:
        array = group.get(str(dataset["path"]))
        if not isinstance(array, zarr.Array) or array.ndim != len(names):
            raise FormatError(
                f"expected an array of {len(names)} axes at '{dataset['path']}' in {path}",
                got="none" if array is None else repr(array),
                hint="The store is incomplete or damaged: copy or write it again.",
            )
        if any(size != 1 for size in array.shape[:-3]):
            raise FormatError(
                "expected one volume",
                got=f"shape {array.shape} for the axes {', '.join(names)} in {path}",
                hint="Write one channel and one time point into a store of its own.",
            )
        if np.dtype(array.dtype).kind not in "biuf":
            raise FormatError(
                "expected numbers", got=f"type {array.dtype} in {path}", hint="Write real numbers or integers."
            )
        transforms = [*dataset["coordinateTransformations"], *(multiscale.get("coordinateTransformations") or ())]
        spacing, translation = _composed(transforms, len(names), path)
        yield Level(array, spacing, translation)


def _composed(transforms: Sequence[Mapping[str, Any]], count: int, path: Path) -> tuple[Vector, Vector]:
    """Scale and translation of z, y, x after all transformations, in the order in which they are listed."""
    scale, translation = np.ones(count), np.zeros(count)
    for transform in transforms:
        kind = transform["type"]
        values = np.array(transform.get(kind, np.nan), np.float64)
        if kind == "identity":
            continue
        if kind not in ("scale", "translation") or values.shape != (count,):
            raise FormatError(
                f"expected scales and translations of {count} numbers in {path}",
                got=str(dict(transform)),
                hint="Write the transformations as lists of numbers in the metadata.",
            )
        if kind == "scale":
            scale, translation = scale * values, translation * values
        else:
            translation = translation + values
    if not (np.isfinite(scale[-3:]).all() and (scale[-3:] > 0).all()):
        raise GeometryError(
            "expected positive scales", got=f"{scale[-3:].tolist()} in {path}", hint="Mend the metadata of the store."
        )
    (z, y, x), (tz, ty, tx) = scale[-3:].tolist(), translation[-3:].tolist()
    return (z, y, x), (tz, ty, tx)


def _unit(names: list[str | None]) -> float | None:
    """Å per unit; None if there is none, it is unknown, or the axes differ."""
    if len(set(names)) != 1:
        return None
    return _UNITS.get(str(names[0]).lower())


def _notes(levels: tuple[Level, ...], unit: float | None, names: tuple[str, ...]) -> Iterator[str]:
    if unit is None:
        yield "The voxel size is unset: the axes have no common unit of length."
    if not levels[0].is_isotropic:
        z, y, x = (size * (unit or 1.0) for size in levels[0].spacing)
        yield f"Voxels are not cubes: {z:g} × {y:g} × {x:g} (z, y, x)."
    if len(names) > 3:
        yield f"The axes {', '.join(names[:-3])} have length 1 and are dropped."


def _read_classes(image_label: Mapping[str, Any] | None) -> Mapping[int, LabelClass] | None:
    if image_label is None:
        return None
    return {
        int(entry["label-value"]): LabelClass(
            str(entry["name"]), str(entry.get("type") or ""), str(entry.get("scheme") or "")
        )
        for entry in image_label.get("properties") or ()
        if entry.get("name") and int(entry["label-value"]) != 0
    }


def _check_type(dtype: np.dtype) -> None:
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise FormatError(
            "expected a type of real numbers", got=str(dtype), hint="Choose e.g. float32, int16 or uint8."
        )


def _pyramid(shape: Shape) -> Iterator[Shape]:
    yield shape
    while max(shape) >= _EDGE_OF_SMALLEST:
        z, y, x = (-(-size // 2) for size in shape)
        shape = (z, y, x)
        yield shape


def _halved(source: ArrayLike, box: Box, dtype: np.dtype, *, average: bool) -> np.ndarray:
    """Values of a box of the next coarser level; an odd last plane counts twice in the mean."""
    out = np.empty([part.stop - part.start for part in box], dtype)
    slab = 32  # planes: four times as many voxels as written are in memory, not eight times a shard
    for start in range(box[0].start, box[0].stop, slab):
        z = slice(start, min(start + slab, box[0].stop))
        fine = np.asarray(source[tuple(slice(2 * part.start, 2 * part.stop) for part in (z, *box[1:]))])
        planes = slice(z.start - box[0].start, z.stop - box[0].start)
        if not average:
            out[planes] = fine[::2, ::2, ::2]
            continue
        fine = np.pad(
            fine.astype(np.float64 if dtype.itemsize == 8 else np.float32),
            [(0, n % 2) for n in fine.shape],
            mode="edge",
        )
        blocks = fine.reshape(*(part for n in fine.shape for part in (n // 2, 2)))
        out[planes] = fit(blocks.mean(axis=(1, 3, 5)), dtype)
    return out


def _create_group(path: Path, ngff: Ngff) -> zarr.Group:
    if ngff not in ("0.4", "0.5"):
        raise ConfigError("expected OME-Zarr version 0.4 or 0.5", got=repr(ngff), hint="0.5 is the default.")
    try:
        return zarr.create_group(path, zarr_format=2 if ngff == "0.4" else 3)
    except OSError as error:
        raise ResourceError(
            f"expected to write {path}",
            got=error.strerror or str(error),
            hint="Free some disk space, or write to a folder where you may write.",
        ) from error


def _chunks(shape: Shape, ngff: Ngff) -> Shape:
    edge = 128 if ngff == "0.4" else 64
    z, y, x = (min(edge, size) for size in shape)
    return z, y, x


def _create_array(
    group: zarr.Group,
    name: str,
    *,
    shape: Shape,
    dtype: np.dtype,
    ngff: Ngff,
    chunks: Shape | None = None,
    shards: Shape | None = None,
    fill: float = 0,
) -> zarr.Array:
    chunks = chunks or _chunks(shape, ngff)
    common = {"name": name, "shape": shape, "dtype": dtype, "chunks": chunks, "fill_value": fill}
    if ngff == "0.4":
        return group.create_array(
            **common,
            compressors=Blosc(cname="zstd", clevel=5, shuffle=Blosc.SHUFFLE),
            chunk_key_encoding={"name": "v2", "separator": "/"},
        )
    # Four chunks per edge of a shard, about 64 MiB of float32; fewer where the array is smaller.
    shards = shards or tuple(min(4, -(-size // chunk)) * chunk for size, chunk in zip(shape, chunks))  # type: ignore[assignment]
    return group.create_array(
        **common,
        shards=shards,
        compressors=zarr.codecs.BloscCodec(cname="zstd", clevel=5, shuffle="shuffle"),
        dimension_names=("z", "y", "x"),
    )


def _describe(
    group: zarr.Group,
    *,
    name: str,
    count: int,
    voxel_size: Angstrom,
    origin: Vector,
    ngff: Ngff,
    classes: Mapping[int, LabelClass] | None = None,
) -> None:
    """Write the metadata of `count` levels, each twice as coarse as the one before."""
    datasets = []
    for level in range(count):
        # The mean of 2^n voxels lies at their centre; a voxel that was picked lies where it was.
        shift = 0.0 if classes is not None else (2**level - 1) / 2 * voxel_size
        datasets.append(
            Dataset.build(
                path=str(level), scale=[2**level * voxel_size] * 3, translation=[start + shift for start in origin]
            )
        )
    multiscale: Any = Multiscale(
        axes=tuple(Axis(name=axis, type="space", unit="angstrom") for axis in "zyx"),
        datasets=tuple(datasets),
        name=name,
        type="mean" if classes is None else "nearest",
    )
    if ngff == "0.4":
        multiscale = multiscale.to_version("0.4")
    metadata: dict[str, Any] = {"multiscales": [multiscale.model_dump(mode="json", exclude_none=True)]}
    if classes is not None:
        metadata["image-label"] = _image_label(classes, ngff)
    group.attrs.update(metadata if ngff == "0.4" else {"ome": {"version": ngff, **metadata}})


def _image_label(classes: Mapping[int, LabelClass], ngff: Ngff) -> dict[str, Any]:
    return {
        "version": ngff,
        "colors": [{"label-value": int(label), "rgba": [*meaning.colour, 255]} for label, meaning in classes.items()],
        "properties": [
            {"label-value": int(label), "name": meaning.name, "type": meaning.type, "scheme": meaning.scheme}
            for label, meaning in classes.items()
        ],
    }

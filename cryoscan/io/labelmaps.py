"""How label volumes keep their integers exact and their names beside them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cryoscan.errors import FormatError, GeometryError
from cryoscan.io.lazy import LazyArray
from cryoscan.io.replacing import replacing
from cryoscan.io.volumes import is_zarr_output, open_stored
from cryoscan.labels import LabelClass, LabelMap
from cryoscan.tiles import Tiling
from cryoscan.units import Angstrom, Shape
from cryoscan.volume import Volume

if TYPE_CHECKING:
    from cryoscan.io.omezarr import Ngff


def open_labels(path: Path | str, *, voxel_size: Angstrom | None = None) -> LabelMap:
    """Open a label volume lazily, with the meanings of its integers where they are known.

    Parameters
    ----------
    path : Path or str
        MRC, with names in ``<name>.labels.json`` beside it, or OME-Zarr: a store of labels,
        or an image store with one label volume in its ``labels`` group.
    voxel_size : Angstrom, optional
        In place of the file's own.

    Raises
    ------
    MissingFileError, FormatError
        If there is no such file, it holds fractions, or its names are damaged.
    GeometryError
        If the voxel size is unset or not the same on every axis, and none is given.
    """
    path = Path(path)
    if path.is_dir():
        return _open_omezarr_labels(path, voxel_size)
    return LabelMap(_whole_numbers(open_stored(path, voxel_size=voxel_size), path), _read_names(_names_path(path)))


def write_labels(labels: LabelMap, path: Path | str, *, overwrite: bool = False, ngff: "Ngff" = "0.5") -> Path:
    """Write a label volume as its name says: MRC and a JSON file of names, or OME-Zarr with both.

    MRC gets signed bytes for labels up to 127 and 16 bits for more; OME-Zarr the smallest
    unsigned type.

    Raises
    ------
    ExistingOutputError
        If an output exists and `overwrite` is false.
    GeometryError
        If a label is negative, or too large for the format.
    """
    path = Path(path)
    highest = _highest(labels)
    if is_zarr_output(path):
        from cryoscan.io.omezarr import write_omezarr

        dtype = np.min_scalar_type(highest)
        return write_omezarr(labels.volume, path, dtype=dtype, ngff=ngff, classes=labels.classes, overwrite=overwrite)
    from cryoscan.io.mrc import write_mrc

    if highest > _HIGHEST_IN_MRC:
        raise GeometryError(
            f"expected labels of at most {_HIGHEST_IN_MRC} for MRC",
            got=str(highest),
            hint="Write OME-Zarr (.zarr) instead, or number the labels anew.",
        )
    dtype = np.dtype(np.int8 if highest <= 127 else np.uint16)
    names = _names_path(path)
    with replacing(names, overwrite=overwrite) as beside:  # both are complete before the first is renamed
        beside.write_text(json.dumps(_to_json(labels.classes), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        write_mrc(labels.volume, path, dtype=dtype, overwrite=overwrite)
    return path


_HIGHEST_IN_MRC = 65535

_FORMAT, _VERSION = "cryoscan-labels", 1

_BLOCK: Shape = (64, 256, 1024)


def _open_omezarr_labels(path: Path, voxel_size: Angstrom | None) -> LabelMap:
    from cryoscan.io.omezarr import as_volume, labels_inside, read_image

    inside = labels_inside(path)
    image = read_image(path)
    if image.classes is None and len(inside) == 1:
        path = path / "labels" / inside[0]
        image = read_image(path)
    elif image.classes is None and len(inside) > 1:
        raise FormatError(
            "expected one label volume",
            got=f"{len(inside)} in {path}",
            hint=f"Give one of: {', '.join(str(path / 'labels' / name) for name in inside[:10])}.",
        )
    return LabelMap(_whole_numbers(as_volume(image, voxel_size=voxel_size), path), image.classes or {})


def _whole_numbers(volume: Volume, path: Path) -> Volume:
    """Integers stay lazy, in the machine's byte order; masks kept as floats are read, and must be whole."""
    dtype = np.dtype(volume.data.dtype)
    if np.issubdtype(dtype, np.integer):
        if dtype.isnative:
            return volume
        return Volume(LazyArray(volume.data, dtype.newbyteorder("=")), volume.voxel_size, volume.origin)
    values = np.asarray(volume.data[:, :, :])
    if dtype != np.bool_ and not (np.isfinite(values).all() and (values == np.rint(values)).all()):
        raise FormatError(
            f"expected whole numbers as labels in {path}",
            got=f"fractions ({dtype})",
            hint="This looks like a density: give a label volume, or threshold it first.",
        )
    return Volume(values.astype(np.int32), volume.voxel_size, volume.origin)


def _highest(labels: LabelMap) -> int:
    """The largest label in the data or the names, found block by block."""
    lowest, highest = 0, max([0, *map(int, labels.classes)])
    for box in Tiling(labels.volume.shape, _BLOCK):
        values = np.asarray(labels.volume.data[box])
        lowest, highest = min(lowest, int(values.min())), max(highest, int(values.max()))
    if min([lowest, *map(int, labels.classes)]) < 0:
        raise GeometryError("expected labels of 0 and more", got=str(lowest), hint="Number the labels from 1.")
    return highest


def _names_path(path: Path) -> Path:
    """``a.labels.json`` for ``a.mrc`` and ``a.mrc.gz``."""
    bare = path.with_suffix("") if path.suffix.lower() in (".gz", ".bz2") else path
    return bare.with_suffix(".labels.json")


def _to_json(classes: Mapping[int, LabelClass]) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "version": _VERSION,
        "classes": [
            {
                "label": int(label),
                "name": meaning.name,
                "type": meaning.type,
                "scheme": meaning.scheme,
                "colour": meaning.colour,
            }
            for label, meaning in sorted(classes.items())
        ],
    }


def _read_names(path: Path) -> dict[int, LabelClass]:
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if (content["format"], content["version"]) != (_FORMAT, _VERSION):
            raise FormatError(
                f"expected {_FORMAT} of version {_VERSION} in {path}",
                got=f"{content['format']} of version {content['version']}",
                hint="The file is of a newer cryoscan: update cryoscan, or move the file away to open without names.",
            )
        return {
            int(entry["label"]): LabelClass(str(entry["name"]), str(entry["type"]), str(entry["scheme"]))
            for entry in content["classes"]
        }
    except FormatError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(
            f"expected names of labels in {path}",
            got=f"{type(error).__name__}: {error}",
            hint="The file is damaged: write the labels again, or move the file away to open them without names.",
        ) from error

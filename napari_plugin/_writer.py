"""How layers are saved: densities and labels at their place in Å, with the meaning of each label."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cryoscan.errors import GeometryError
from cryoscan.labels import LabelClass, LabelMap
from cryoscan.volume import Volume


def write_image(path: str, data: Any, settings: dict[str, Any]) -> list[str]:
    """Save a density as MRC or OME-Zarr.

    Raises
    ------
    CryoscanError
        If the layer is no volume of cubic voxels, or the file cannot be written.
    """
    from cryoscan.io import write_volume

    return [str(write_volume(placed(data, settings), Path(path), overwrite=True))]


def write_label_layer(path: str, data: Any, settings: dict[str, Any]) -> list[str]:
    """Save labels as MRC (with a file of names beside it) or OME-Zarr.

    Raises
    ------
    CryoscanError
        If the layer is no volume of cubic voxels, or the format cannot hold its labels.
    """
    from cryoscan.io import write_labels

    labels = LabelMap(placed(data, settings), classes_of(settings.get("features")))
    return [str(write_labels(labels, Path(path), overwrite=True))]


def classes_of(features: Any) -> dict[int, LabelClass]:
    """The meanings of labels that a layer carries as features; empty if it carries none."""
    if features is None or "index" not in features or "name" not in features:
        return {}
    return {
        int(row["index"]): LabelClass(str(row["name"]), _text(row.get("type")), _text(row.get("scheme")))
        for _, row in features.iterrows()
        if int(row["index"]) > 0 and _text(row["name"])
    }


def placed(data: Any, settings: Mapping[str, Any]) -> Volume:
    """A layer as a volume at its place in Å; nothing of its data is read.

    Parameters
    ----------
    data, settings
        Of the layer, as napari gives them to writers.

    Raises
    ------
    GeometryError
        If it is a colour picture, is not three-dimensional, or its voxels are not cubic.
    """
    finest = data[0] if isinstance(data, list | tuple) or settings.get("multiscale") else data
    if settings.get("rgb") or len(finest.shape) != 3:
        raise GeometryError(
            "expected a volume (z, y, x)",
            got="a colour picture" if settings.get("rgb") else f"{len(finest.shape)} dimensions",
            hint="Save it with another writer.",
        )
    scale = np.asarray(settings["scale"], np.float64)
    if scale.max() > scale.min() * 1.001:
        raise GeometryError(
            "expected cubic voxels", got=f"a scale of {scale.tolist()}", hint="Resample the layer, then save it."
        )
    z, y, x = (float(value) for value in settings["translate"])
    return Volume(finest, float(scale[0]), (z, y, x))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""

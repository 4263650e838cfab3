"""How cryoscan's values look as napari layers: the one place that knows napari's `scale`, `translate` and `units`.

napari puts the centre of voxel 0 at `translate`, as `Volume.origin` does, so both numbers pass unchanged; axes are
z y x on both sides. Nothing here needs napari or Qt: a layer is described by the tuple (data, settings, type).
"""

from typing import Any

import numpy as np
import pandas as pd

from cryoscan import Hits, LabelClass, LabelMap, Volume
from cryoscan.units import Angstrom

LayerData = tuple[Any, dict[str, Any], str]
"""Data, settings and type of a layer, as napari's readers give them."""

_UNITS = ("angstrom",) * 3
_AXES = ("z", "y", "x")
_GREY = (0.6, 0.6, 0.6, 1.0)
_CLEAR = (0.0, 0.0, 0.0, 0.0)


def volume_layer(volume: Volume, *, name: str) -> LayerData:
    """Describe a density as an image layer.

    Parameters
    ----------
    volume : Volume
        Read slice by slice where its data is lazy; a few slices are read here to set the contrast.
    name : str
        Of the layer.
    """
    settings = {"name": name, "contrast_limits": _contrast_limits(volume), "colormap": "gray", **_place(volume)}
    return volume.data, settings, "image"


def label_layer(labels: LabelMap, *, name: str) -> LayerData:
    """Describe a label map as a labels layer, with the meaning of each label as features and its colour.

    Labels without a meaning are grey; where no label has one, napari's own colours stay.

    Parameters
    ----------
    labels : LabelMap
        Its integers pass unchanged.
    name : str
        Of the layer.
    """
    settings: dict[str, Any] = {"name": name, **_place(labels.volume)}
    if labels.classes:
        numbers = sorted(labels.classes)
        meanings = [labels.classes[number] for number in numbers]
        settings["features"] = pd.DataFrame(
            {
                "index": [0, *numbers],
                "name": ["background", *(meaning.name for meaning in meanings)],
                "type": ["", *(meaning.type for meaning in meanings)],
                "scheme": ["", *(meaning.scheme for meaning in meanings)],
            }
        )
        colours = {number: (*_unit(meaning.colour), 1.0) for number, meaning in zip(numbers, meanings, strict=True)}
        settings["colormap"] = {None: _GREY, 0: _CLEAR, **colours}
    return labels.volume.data, settings, "labels"


def hits_layer(hits: Hits, *, name: str, diameter: Angstrom = 50.0) -> LayerData:
    """Describe hits as a points layer, coloured by type as the label maps are.

    Parameters
    ----------
    hits : Hits
        Every column becomes a feature of the points.
    name : str
        Of the layer.
    diameter : Angstrom
        Of a point.
    """
    features = pd.DataFrame(
        {
            "type": hits.types,
            "scheme": hits.schemes,
            "name": hits.names,
            "entry": hits.entries,
            "score": hits.scores,
            "margin": hits.margins,
        }
    )
    colours = [
        _unit(LabelClass(label_name, label_type, scheme).colour)
        for label_name, label_type, scheme in zip(hits.names, hits.types, hits.schemes, strict=True)
    ]
    settings = {
        "name": name,
        "size": diameter,
        "face_color": np.array(colours or np.empty((0, 3)), dtype=np.float32),
        "features": features,
        "units": _UNITS,
        "axis_labels": _AXES,
    }
    return np.asarray(hits.positions, np.float64), settings, "points"


def _place(volume: Volume) -> dict[str, Any]:
    return {"scale": (volume.voxel_size,) * 3, "translate": volume.origin, "units": _UNITS, "axis_labels": _AXES}


def _unit(colour: tuple[int, int, int]) -> tuple[float, float, float]:
    red, green, blue = colour
    return red / 255, green / 255, blue / 255


def _contrast_limits(volume: Volume) -> tuple[float, float]:
    # napari would read a lazy volume whole to find its range, and single hot voxels would make all else black.
    slices = np.unique(np.linspace(0, volume.shape[0] - 1, 5).round().astype(int))
    values = np.concatenate([np.asarray(volume.data[int(z), :, :], np.float32).ravel() for z in slices])
    low, high = (float(limit) for limit in np.percentile(values, (0.5, 99.8)))
    return (low, high) if high > low else (low, low + 1)

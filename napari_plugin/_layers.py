"""How cryoscan's values look as napari layers: the one place that knows napari's `scale`, `translate` and `units`.

napari puts the centre of voxel 0 at `translate`, as `Volume.origin` does, so both numbers pass unchanged; axes are
z y x on both sides. Nothing here needs napari or Qt: a layer is described by the tuple (data, settings, type).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from cryoscan import Hits, LabelClass, LabelMap, Volume
from cryoscan.units import Angstrom
from napari_plugin._slabs import ByPlanes, LookedUp, slabbed

LayerData = tuple[Any, dict[str, Any], str]
"""Data, settings and type of a layer, as napari's readers give them."""

_UNITS = ("angstrom",) * 3
_AXES = ("z", "y", "x")
_GREY = (0.6, 0.6, 0.6, 1.0)
_CLEAR = (0.0, 0.0, 0.0, 0.0)


def volume_layer(volume: Volume, *, name: str, coarser: Sequence[Volume] = ()) -> LayerData:
    """Describe a density as an image layer.

    Parameters
    ----------
    volume : Volume
        Read slice by slice where its data is lazy; a few slices are read here to set the contrast.
    name : str
        Of the layer.
    coarser : sequence of Volume
        The same at lower resolutions, for zooming out and for three dimensions.
    """
    smallest = coarser[-1] if coarser else volume
    settings = {"name": name, "contrast_limits": _contrast_limits(smallest), "colormap": "gray", **_place(volume)}
    return _levels(volume, coarser, blend=True), settings, "image"


def label_layer(labels: LabelMap, *, name: str, coarser: Sequence[Volume] = ()) -> LayerData:
    """Describe a label map as a labels layer, with the meaning of each label as features and its colour.

    Labels without a meaning are grey; where no label has one, napari's own colours stay.

    Parameters
    ----------
    labels : LabelMap
        Its integers pass unchanged.
    name : str
        Of the layer.
    coarser : sequence of Volume
        The same at lower resolutions.
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
    return _levels(labels.volume, coarser, blend=False), settings, "labels"


def looked_up_layer(labels: LabelMap, table: np.ndarray, *, name: str, coarser: Sequence[Volume] = ()) -> LayerData:
    """Describe integers that are read as labels: with the table the layer changes, with nothing written.

    Parameters
    ----------
    labels : LabelMap
        Of the integers; its classes are those of the labels.
    table : int array
        Integer → label.
    name : str
        Of the layer.
    coarser : sequence of Volume
        The integers at lower resolutions.
    """
    data, settings, kind = label_layer(labels, name=name, coarser=coarser)
    levels = data if isinstance(data, list) else [data]
    looked = [LookedUp(level, table) for level in levels]
    return looked if isinstance(data, list) else looked[0], settings, kind


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


def score_layer(lattice: Volume, *, name: str, limits: tuple[float, float] = (0.4, 1.0), visible: bool) -> LayerData:
    """Describe scores of a lattice as an image layer that lies over the density.

    Parameters
    ----------
    lattice : Volume
    name : str
        Of the layer.
    limits : (float, float)
        Values drawn darkest and brightest.
    visible : bool
    """
    settings = {
        "name": name,
        "colormap": "inferno",
        "blending": "additive",
        "contrast_limits": limits,
        "opacity": 0.5,
        "visible": visible,
        **_place(lattice),
    }
    return lattice.data, settings, "image"


@dataclass(frozen=True, slots=True, eq=False)
class LevelOnGrid(ByPlanes):
    """A coarse level, sampled where napari draws its voxels.

    napari puts voxel i of a coarse level at i × (fine size / coarse size) voxels of the finest one.
    Averaged levels lie half a voxel further in, so everything drawn over them would be off.

    Parameters
    ----------
    source : array-like, `z y x`
    below, share : per axis
        For each voxel the lower of its two neighbours in `source`, and the weight of the upper one.
    """

    source: Any
    below: tuple[np.ndarray, np.ndarray, np.ndarray]
    share: tuple[np.ndarray, np.ndarray, np.ndarray]

    @classmethod
    def of(cls, level: Volume, finest: Volume, *, blend: bool) -> "LevelOnGrid":
        """A level on the grid that napari gives it; labels take the nearest voxel, densities blend two."""
        below, share = [], []
        for axis in range(3):
            fine = np.arange(level.shape[axis]) * (finest.shape[axis] / level.shape[axis])
            place = (fine * finest.voxel_size + finest.origin[axis] - level.origin[axis]) / level.voxel_size
            place = np.clip(place, 0, level.shape[axis] - 1)
            lower = np.floor(place + 1e-6) if blend else np.floor(place + 0.5)
            below.append(lower.astype(int))
            share.append(np.clip(place - lower, 0, 1) if blend else np.zeros_like(place))
        return cls(level.data, (below[0], below[1], below[2]), (share[0], share[1], share[2]))

    def _values(self, key: tuple[Any, Any, Any]) -> np.ndarray:
        below = [np.atleast_1d(b[k]) for b, k in zip(self.below, key, strict=True)]
        share = [np.atleast_1d(s[k]) for s, k in zip(self.share, key, strict=True)]
        if any(b.size == 0 for b in below):
            return np.zeros([b.size for b, k in zip(below, key) if isinstance(k, slice)], self.dtype)
        blends = [bool(s.any()) for s in share]
        box = tuple(
            slice(int(b.min()), min(int(b.max()) + 1 + more, n))
            for b, more, n in zip(below, blends, self.shape, strict=True)
        )
        values = np.asarray(self.source[box])
        for axis, (b, s, more) in enumerate(zip(below, share, blends, strict=True)):
            lower = np.take(values, b - box[axis].start, axis)
            if more:
                upper = np.take(values, np.minimum(b + 1, self.shape[axis] - 1) - box[axis].start, axis)
                weight = s.astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
                lower = lower * (1 - weight) + upper * weight
            values = lower
        picked = tuple(slice(None) if isinstance(k, slice) else 0 for k in key)
        return values[picked].astype(self.dtype, copy=False)


def _levels(volume: Volume, coarser: Sequence[Volume], *, blend: bool) -> Any:
    finest = slabbed(volume.data)
    if not coarser:
        return finest
    return [finest, *(LevelOnGrid.of(level, volume, blend=blend) for level in coarser)]


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

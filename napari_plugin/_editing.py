"""Regions edited by hand: painted with napari's own tools, merged and split here; every step can be undone.

The edited layer is a copy. What differs between it and the regions of the scan (`drawn_in`) is what the scan's
answer follows once the user says so.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from cryoscan.errors import GeometryError, ResourceError
from cryoscan.labels import LabelClass, LabelMap
from cryoscan.segment import split_region
from cryoscan.volume import Volume
from napari_plugin._layers import LayerData, label_layer
from napari_plugin._review import Review
from napari_plugin._sources import file_of
from napari_plugin._writer import classes_of

_MOST_VOXELS = 512 * 2**20
_SLAB = 64  # planes that are compared at once: the chunks of a scan
_KEY = "cryoscan edited"  # of a layer's metadata: which scan it is of, and which numbers were in it


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """What is other in a layer than in the regions of a scan.

    Parameters
    ----------
    voxels : int64 array, `n`
        Flat indices.
    numbers : uint32 array, `n`
        The region that each belongs to now, 0 for none.
    hits : frozenset of int
        Regions that were copied into the layer.
    names : dict
        Number of a new region → what the layer calls it.
    """

    voxels: np.ndarray
    numbers: np.ndarray
    hits: frozenset[int]
    names: dict[int, LabelClass]


def editable_layer(review: Review) -> LayerData:
    """A copy, in memory, of the regions that are hits now: one number per region, with the name of its type.

    Raises
    ------
    ResourceError
        If the volume is too large to edit as a whole.
    GeometryError
        If there is no scan whose regions are painted.
    """
    if review.lattice is not None:
        raise GeometryError(
            "expected a scan whose places are cut out, to edit them",
            got="one whose labels belong to the points of its lattice",
            hint="Export the labels (page Export), open the file, and paint in that layer.",
        )
    if review.numbers is None or review.result is None:
        raise GeometryError(
            "expected a scan with painted regions", got="none", hint="Open a .scan folder, and wait a moment."
        )
    if int(np.prod(review.numbers.shape)) > _MOST_VOXELS:
        raise ResourceError(
            f"expected at most {_MOST_VOXELS / 2**20:.0f} million voxels to edit",
            got=f"{np.prod(review.numbers.shape) / 2**20:.0f} million",
            hint="Scan and edit a part of the volume (z-range).",
        )
    places = review.places
    kept = np.concatenate([[False], places.kept])
    data = np.asarray(review.numbers.data[:, :, :])
    data = np.where(kept[data], data, 0).astype(np.uint32)
    hits = places.hits
    classes = {
        place + 1: LabelClass(hits.names[place], hits.types[place], hits.schemes[place])
        for place in np.flatnonzero(places.kept).tolist()
    }
    labels = LabelMap(Volume(data, review.numbers.voxel_size, review.numbers.origin), classes)
    layer, settings, kind = label_layer(labels, name=f"{review.result.path.stem} edited")
    about = {"scan": str(review.result.path), "numbers": set(classes)}
    return layer, {**settings, "metadata": {_KEY: about}}, kind


def drawn_in(layer: Any, review: Review) -> Drawn:
    """What was painted, erased, merged and split in a layer since the scan's regions were copied into it.

    Regions that are new get the numbers after those of all places, in the layer too: places
    without a name, which the copy leaves out, have numbers of their own.

    Raises
    ------
    GeometryError
        If the layer is no copy of the regions of the scan that is open.
    """
    about = layer.metadata.get(_KEY)
    if review.result is None or review.numbers is None or about is None or about["scan"] != str(review.result.path):
        raise GeometryError(
            "expected an edited copy of the regions of the scan that is open",
            got=f"layer '{layer.name}'",
            hint="Make a copy to edit, and draw in that.",
        )
    assert review.found is not None
    places, data = len(review.found), np.asarray(layer.data)
    new = [n for n in np.unique(data).tolist() if n and (n > places or n not in about["numbers"])]
    moves = {old: places + 1 + index for index, old in enumerate(new)}
    where = {old: np.nonzero(data == old) for old, number in moves.items() if old != number}
    for old, here in where.items():
        layer.data_setitem(here, moves[old])
        _name_like(layer, old, [moves[old]])
    about["numbers"] |= set(moves.values())
    shown = np.zeros(places + 1, bool)
    shown[[number for number in about["numbers"] if number <= places]] = True
    plane = int(np.prod(data.shape[1:]))
    voxels: list[np.ndarray] = []
    numbers: list[np.ndarray] = []
    for first in range(0, len(data), _SLAB):
        before = np.asarray(review.numbers.data[first : first + _SLAB, :, :])
        now = data[first : first + _SLAB].ravel()
        other = np.flatnonzero(now != np.where(shown[before], before, 0).ravel())
        voxels.append(other + first * plane)
        numbers.append(now[other].astype(np.uint32))
    named = classes_of(layer.features)
    return Drawn(
        np.concatenate(voxels),
        np.concatenate(numbers),
        frozenset(about["numbers"]),
        {number: named[number] for number in moves.values() if number in named},
    )


def merge(layer: Any, labels: list[int]) -> str:
    """Make several regions of a layer one; it keeps the first one's number and name.

    Raises
    ------
    GeometryError
        If fewer than two of them occur.
    """
    data = np.asarray(layer.data)
    there = [label for label in dict.fromkeys(labels) if label and (data == label).any()]
    if len(there) < 2:
        raise GeometryError(
            "expected two regions or more",
            got=", ".join(map(str, there)) or "none",
            hint="Give the numbers of regions that touch, such as 3, 17.",
        )
    voxels = np.nonzero(np.isin(data, there[1:]))
    layer.data_setitem(voxels, there[0])
    return f"Regions {', '.join(map(str, there))} are one now, number {there[0]}."


def split(layer: Any, points: Any, density: Any) -> str:
    """Split a region of a layer along its thinnest density, between points that were put into its parts.

    Parameters
    ----------
    layer : Labels layer
    points : Points layer
        Two or more in the same region.
    density : Image layer
        Of the same grid.

    Raises
    ------
    GeometryError
        If the points do not lie in one region.
    """
    data = np.asarray(layer.data)
    seeds = np.array([layer.world_to_data(points.data_to_world(point)) for point in points.data]).reshape(-1, 3)
    seeds = np.rint(seeds).astype(int)
    inside = ((seeds >= 0) & (seeds < data.shape)).all(axis=1)
    labels = {int(data[tuple(seed)]) for seed in seeds[inside]} - {0}
    if len(labels) != 1:
        raise GeometryError(
            "expected points in one region", got=f"{len(labels)} regions", hint="Put one point into each of its parts."
        )
    (label,) = labels
    volume = file_of(density).open()
    where = np.argwhere(data == label)
    box = tuple(slice(int(a), int(b) + 1) for a, b in zip(where.min(axis=0), where.max(axis=0), strict=True))
    z, y, x = box
    parts = split_region(volume.read((z, y, x)), data[box] == label, seeds - [side.start for side in box])
    highest = int(data.max())
    new = []
    for part in range(2, int(parts.max()) + 1):
        voxels = np.nonzero(parts == part)
        new.append(highest + part - 1)
        moved = tuple(index + side.start for index, side in zip(voxels, box, strict=True))
        layer.data_setitem(moved, new[-1])
    _name_like(layer, label, new)
    return f"Region {label} is split; the new parts are {', '.join(map(str, new))}."


def _name_like(layer: Any, label: int, new: list[int]) -> None:
    """New regions get the name and the colour of the one they came from."""
    from napari.utils.colormaps import DirectLabelColormap

    features = layer.features
    if "index" in features:
        row = features[features["index"] == label]
        layer.features = pd.concat([features, *(row.assign(index=number) for number in new)], ignore_index=True)
    colours = getattr(layer.colormap, "color_dict", None)
    if colours is not None:
        shade = colours.get(label, colours[None])
        layer.colormap = DirectLabelColormap(color_dict={**colours, **dict.fromkeys(new, shade)})

"""Regions edited by hand: painted with napari's own tools, merged and split here; every step can be undone.

The edited layer is a copy, in a file that the viewer and the process beside it both map into their memory, so that
nothing of it is sent. What differs between it and the regions of the scan is what the scan's answer follows once the
user says so.
"""

import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from psygnal import Signal

from cryoscan.errors import CryoscanError, GeometryError, ResourceError
from cryoscan.labels import LabelClass, LabelMap
from cryoscan.scan import Journal
from cryoscan.segment import split_region
from cryoscan.volume import Volume
from cryoscan.workflows import Redrawn, RegionsScored
from napari_plugin import _tasks
from napari_plugin._background import Background, Job, StoppedError
from napari_plugin._copies import PlanesCompared, Renumbered, mapped
from napari_plugin._layers import label_layer
from napari_plugin._review import Review
from napari_plugin._sources import file_of
from napari_plugin._writer import classes_of

_MOST_VOXELS = 512 * 2**20
_KEY = "cryoscan edited"  # of a layer's metadata: which scan it is of, which numbers were in it, and its file


class Editing:
    """A copy of the regions of a scan, and the scan's answer that follows it.

    Parameters
    ----------
    background : Background
        Which copies and compares: a large volume takes seconds.
    review : Review
    """

    copied = Signal(object)
    """Data, settings and type of a layer that may be edited."""
    progressed = Signal(int, int, str)
    """Pieces done of all pieces, and what is done with them."""
    busy_changed = Signal(bool)
    said = Signal(str, str)
    failed = Signal(object)

    def __init__(self, background: Background, review: Review) -> None:
        self._background, self._review = background, review
        self._job: Job | None = None
        self._remove: weakref.finalize[..., Any] | None = None
        self._folder = Path()
        self._copies = 0

    @property
    def busy(self) -> bool:
        """Whether a layer is being copied or compared."""
        return self._job is not None

    def copy(self) -> None:
        """Ask for a copy of the regions that are hits now: one number per region, with the name of its type.

        Raises
        ------
        ResourceError
            If the volume is too large to edit as a whole.
        GeometryError
            If there is no scan whose regions are painted, or another copy is at work.
        """
        self._require_rest()
        review = self._review
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
        path, numbers, places, file = review.result.path, review.numbers, review.places, self._new_file()

        def done(_: Any) -> None:
            self._end()
            hits = places.hits
            classes = {
                place + 1: LabelClass(hits.names[place], hits.types[place], hits.schemes[place])
                for place in np.flatnonzero(places.kept).tolist()
            }
            data = mapped(file, numbers.shape, writable=True)
            labels = LabelMap(Volume(data, numbers.voxel_size, numbers.origin), classes)
            layer, settings, kind = label_layer(labels, name=f"{path.stem} edited")
            about = {"scan": str(path), "numbers": set(classes), "file": str(file)}
            self.copied.emit((layer, {**settings, "metadata": {_KEY: about}}, kind))

        self._begin(_tasks.copy_regions, path, places.kept, file, done=done)

    def follow(self, layer: Any) -> None:
        """Let the answer of the scan follow what was painted, erased, merged and split in a copy.

        Regions that are new get the numbers after those of all places, in the layer too: places
        without a name, which the copy leaves out, have numbers of their own. Nobody can paint meanwhile.

        Raises
        ------
        GeometryError
            If the layer is no copy of the regions of the scan that is open, or another copy is at work.
        """
        self._require_rest()
        review, about = self._review, layer.metadata.get(_KEY)
        if review.result is None or review.numbers is None or about is None or about["scan"] != str(review.result.path):
            raise GeometryError(
                "expected an edited copy of the regions of the scan that is open",
                got=f"layer '{layer.name}'",
                hint="Make a copy to edit, and draw in that.",
            )
        path, was_editable = review.result.path, layer.editable

        def event(what: Any) -> None:
            if isinstance(what, PlanesCompared):
                self.progressed.emit(what.done, what.total, "planes compared")
            elif isinstance(what, RegionsScored):
                self.progressed.emit(what.done, what.total, "regions named")
            elif isinstance(what, Renumbered):
                _renumber(layer, what)
                if not what.changed:
                    self.said.emit(
                        "info", "The regions are those of the scan already: nothing was changed in the layer."
                    )
            elif isinstance(what, Redrawn):
                self._note(path, what)

        def end(_: Any = None) -> None:
            layer.editable = was_editable
            self._end()

        file = Path(about["file"])
        if getattr(layer.data, "filename", None) != file:  # somebody gave the layer another array
            mapped(file, review.numbers.shape, writable=True)[:] = layer.data
        layer.editable = False
        arguments = (file, frozenset(about["numbers"]), classes_of(layer.features))
        self._begin(_tasks.redraw, path, review.datedb, *arguments, event=event, done=end, after_error=end)

    def stop(self) -> None:
        """Put down what is being done; the scan and its answer stay as they were."""
        if self._job is not None:
            self._background.stop(self._job)

    def close(self) -> None:
        """Remove the copies."""
        if self._remove is not None:
            self._remove()
            self._remove = None

    def _note(self, path: Path, what: Redrawn) -> None:
        result = self._review.result
        if result is None or result.path != path:  # another scan was opened meanwhile
            try:
                Journal(path / "journal.jsonl").add("labels", what.positions, note=what.note)
            except CryoscanError as error:
                self.failed.emit(error)
        elif self._review.note_labels(what.note, what.positions):
            self.said.emit("info", "Hits, counts and exports follow the edited regions now; U undoes it.")

    def _new_file(self) -> Path:
        if self._remove is None:
            self._folder = Path(tempfile.mkdtemp(prefix="cryoscan-"))
            self._remove = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._copies += 1
        return self._folder / f"{self._copies}.raw"

    def _require_rest(self) -> None:
        if self._job is not None:
            raise GeometryError(
                "expected one copy at a time", got="another one at work", hint="Wait until it is done, or stop it."
            )

    def _begin(
        self, function: Any, *arguments: Any, done: Any, event: Any = lambda _: None, after_error: Any = None
    ) -> None:
        def failed(error: BaseException) -> None:
            (after_error or self._end)()
            if isinstance(error, StoppedError):
                self.said.emit("info", "Stopped: the scan is as it was.")
            else:
                self.failed.emit(error)

        self._job = self._background.run(
            function, *arguments, on_event=event, on_done=done, on_error=failed, kind="editing"
        )
        self.busy_changed.emit(True)

    def _end(self) -> None:
        self._job = None
        self.busy_changed.emit(False)


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


def _renumber(layer: Any, what: Renumbered) -> None:
    for number, (old, voxels) in sorted(what.new.items(), reverse=True):  # the old number may be another's new one
        if old != number:
            layer.data_setitem(np.unravel_index(voxels, np.shape(layer.data)), number)
            _name_like(layer, old, [number])
    layer.metadata[_KEY]["numbers"] |= set(what.new)


def _name_like(layer: Any, label: int, new: list[int]) -> None:
    """New regions get the name and the colour of the one they came from."""
    from napari.utils.colormaps import DirectLabelColormap

    features = layer.features
    if "index" in features:
        row = features[features["index"] == label]
        others = features[~features["index"].isin(new)]
        layer.features = pd.concat([others, *(row.assign(index=number) for number in new)], ignore_index=True)
    colours = getattr(layer.colormap, "color_dict", None)
    if colours is not None:
        shade = colours.get(label, colours[None])
        layer.colormap = DirectLabelColormap(color_dict={**colours, **dict.fromkeys(new, shade)})

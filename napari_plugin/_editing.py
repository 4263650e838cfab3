"""Regions edited by hand: painted with napari's own tools, merged and split here; every step can be undone.

The edited layer is a copy, in a file that the viewer and the process beside it both map into their memory, so that
nothing of it is sent: the process looks for what is to be changed, and the window changes it. What differs between the
copy and the regions of the scan is what the scan's answer follows once the user says so.
"""

import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from psygnal import Signal

from cryoscan.errors import CryoscanError, GeometryError, ResourceError
from cryoscan.labels import LabelClass, LabelMap
from cryoscan.scan import Journal
from cryoscan.units import Vector
from cryoscan.volume import Volume
from cryoscan.workflows import Redrawn, RegionsScored
from napari_plugin import _tasks
from napari_plugin._background import Background, Job, StoppedError
from napari_plugin._copies import PlanesCompared, Regrouped, Renumbered, Shared, hand_over
from napari_plugin._layers import label_layer
from napari_plugin._review import Review
from napari_plugin._sources import file_of
from napari_plugin._turns import Turns
from napari_plugin._writer import classes_of, placed

_MOST_VOXELS = 512 * 2**20
_KEY = "cryoscan edited"  # of a layer's metadata: which scan it is of, and which numbers were in it
_HANDED_OVER = "labels handed over"  # work of the window's thread


class Editing:
    """Labels that are edited, and the scan's answer that follows a copy of its regions.

    Parameters
    ----------
    background : Background
        Which copies, searches, compares and saves: a large volume takes seconds.
    review : Review
    turns : Turns
        Layers that are in no file yet are handed to the other process a few planes per turn.
    """

    copied = Signal(object)
    """Data, settings and type of a layer that may be edited."""
    progressed = Signal(int, int, str)
    """Pieces done of all pieces, and what is done with them."""
    busy_changed = Signal(bool)
    said = Signal(str, str)
    failed = Signal(object)

    def __init__(self, background: Background, review: Review, turns: Turns) -> None:
        self._background, self._review, self._turns = background, review, turns
        self._busy = False
        self._job: Job | None = None
        self._layer: Any = None  # what is being worked on
        self._unlock: Callable[[], None] = lambda: None
        self._remove: weakref.finalize[..., Any] | None = None
        self._folder = Path()
        self._copies = 0

    @property
    def busy(self) -> bool:
        """Whether a layer is being copied, compared, changed or saved."""
        return self._busy

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
            hits = places.hits
            classes = {
                place + 1: LabelClass(hits.names[place], hits.types[place], hits.schemes[place])
                for place in np.flatnonzero(places.kept).tolist()
            }
            data = Shared(file, numbers.shape).mapped(writable=True)
            labels = LabelMap(Volume(data, numbers.voxel_size, numbers.origin), classes)
            layer, settings, kind = label_layer(labels, name=f"{path.stem} edited")
            about = {"scan": str(path), "numbers": set(classes)}
            self.copied.emit((layer, {**settings, "metadata": {_KEY: about}}, kind))

        self._begin(None)
        self._run(_tasks.copy_regions, path, places.kept, file, done=done)

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
        path, datedb = review.result.path, review.datedb

        def event(what: Any) -> None:
            if isinstance(what, RegionsScored):
                self.progressed.emit(what.done, what.total, "regions named")
            elif isinstance(what, Renumbered):
                _renumber(layer, what)
                if not what.changed:
                    self.said.emit(
                        "info", "The regions are those of the scan already: nothing was changed in the layer."
                    )
            elif isinstance(what, Redrawn):
                self._note_drawn(path, what)
            else:
                self._show_planes(what, "compared")

        known, names = frozenset(about["numbers"]), classes_of(layer.features)
        self._lend(layer, lambda drawn: self._run(_tasks.redraw, path, datedb, drawn, known, names, event=event))

    def merge(self, layer: Any, labels: Sequence[int]) -> None:
        """Make several regions of a layer one; it keeps the first one's number and name. One step to undo.

        Raises
        ------
        GeometryError
            If the layer cannot be edited, or another one is at work.
        """
        self._require_rest()
        _require_editable(layer)

        def merged(what: Regrouped) -> None:
            _renumber_voxels(layer, what.voxels, was=what.regions, numbers=what.numbers)
            one = ", ".join(map(str, (what.from_region, *what.regions)))
            self.said.emit("info", f"Regions {one} are one now, number {what.from_region}.")

        self._lend(layer, lambda shared: self._regroup(_tasks.merge_regions, shared, list(labels), then=merged))

    def split(self, layer: Any, points: Any, density: Any) -> None:
        """Split a region of a layer along its thinnest density, between points that were put into its parts.

        One step to undo.

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
            If the layer cannot be edited, or another one is at work.
        """
        self._require_rest()
        _require_editable(layer)
        file = file_of(density)
        seeds = np.array([layer.world_to_data(points.data_to_world(point)) for point in points.data]).reshape(-1, 3)
        seeds = np.rint(seeds).astype(int)

        def divided(what: Regrouped) -> None:
            _renumber_voxels(layer, what.voxels, was=[what.from_region], numbers=what.numbers)
            _name_like(layer, what.from_region, list(what.regions))
            new = ", ".join(map(str, what.regions))
            self.said.emit("info", f"Region {what.from_region} is split; the new parts are {new}.")

        self._lend(layer, lambda shared: self._regroup(_tasks.divide_region, shared, seeds, file, then=divided))

    def save(self, layer: Any, path: Path) -> None:
        """Write a layer to a file of its own, and a line in the journal of the scan that is open.

        Raises
        ------
        GeometryError
            If the layer is no volume of cubic voxels, or another one is at work.
        """
        self._require_rest()
        data, settings, _ = layer.as_layer_data_tuple()
        volume, classes = placed(data, settings), classes_of(settings.get("features"))
        scan = None if self._review.result is None else self._review.result.path

        def done(_: Any) -> None:
            if scan is not None:
                self._note(scan, str(path))
            self.said.emit("info", f"Written: {path}")

        about = volume.voxel_size, volume.origin, classes, path
        self._lend(layer, lambda shared: self._run(_tasks.save_labels, shared, *about, done=done, lasting=True))

    def forget(self, layer: Any) -> None:
        """A layer is not in the viewer any more: what is done with it ends, and a copy's file goes.

        The labels in memory stay good as long as anybody refers to the layer; if it comes back to a viewer, they are
        handed over like those of any other layer.
        """
        if self._layer is layer:
            self.stop()
        shared = Shared.of(layer.data) if _KEY in layer.metadata else None
        if shared is not None and self._remove is not None and shared.file.parent == self._folder:
            shared.file.unlink(missing_ok=True)

    def stop(self) -> None:
        """Put down what is being done; the scan, its answer and the layer stay as they were."""
        if self._job is not None:
            self._background.stop(self._job)
        elif self._busy:  # it is still being handed over
            self._turns.drop(_HANDED_OVER)
            self._end()
            self._say_stopped()

    def close(self) -> None:
        """Remove the copies."""
        if self._remove is not None:
            self._remove()
            self._remove = None

    def _note_drawn(self, path: Path, what: Redrawn) -> None:
        if self._note(path, what.note, what.positions):
            self.said.emit("info", "Hits, counts and exports follow the edited regions now; U undoes it.")

    def _note(self, path: Path, note: str, positions: Sequence[Vector] = ()) -> bool:
        """Write a line about labels into the journal of a scan; gives whether it is the one that is open."""
        if self._review.result is not None and self._review.result.path == path:
            return self._review.note_labels(note, positions)
        try:  # another scan was opened meanwhile
            Journal(path / "journal.jsonl").add("labels", positions, note=note)
        except CryoscanError as error:
            self.failed.emit(error)
        return False

    def _show_planes(self, what: PlanesCompared, done: str) -> None:
        self.progressed.emit(what.done, what.total, f"planes {done}")

    def _new_file(self) -> Path:
        if self._remove is None:
            self._folder = Path(tempfile.mkdtemp(prefix="cryoscan-"))
            self._remove = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._copies += 1
        return self._folder / f"{self._copies}.raw"

    def _require_rest(self) -> None:
        if self._busy:
            raise GeometryError(
                "expected one copy at a time", got="another one at work", hint="Wait until it is done, or stop it."
            )

    def _lend(self, layer: Any, begin: Callable[[Shared], None]) -> None:
        """Lock a layer, and begin once the other process can see what is in it.

        A copy is seen at once. What is in memory, or in a file of another form, is put into one first.
        """
        self._begin(layer)
        data = layer.data[0] if layer.multiscale else layer.data
        shared = Shared.of(data)
        if shared is not None:
            begin(shared)
        else:
            self._turns.take(_HANDED_OVER, self._handed_over(data, begin))

    def _handed_over(self, data: Any, begin: Callable[[Shared], None]) -> Iterator[None]:
        z, y, x = data.shape
        shared = Shared(self._new_file(), (z, y, x), str(np.dtype(data.dtype)))
        begun = False
        try:
            yield from hand_over(data, shared.file)
            self._unlock = _after(self._unlock, lambda: shared.file.unlink(missing_ok=True))
            begun = True
            begin(shared)
        except Exception as error:  # whatever goes wrong, the layer must not stay locked
            self._end()
            self.failed.emit(error)
        finally:
            if not begun:
                shared.file.unlink(missing_ok=True)

    def _begin(self, layer: Any) -> None:
        self._busy, self._layer = True, layer
        if layer is not None:
            was_editable, layer.editable = layer.editable, False
            self._unlock = lambda: setattr(layer, "editable", was_editable)
        self.busy_changed.emit(True)

    def _end(self) -> None:
        self._job, self._layer, self._busy = None, None, False
        unlock, self._unlock = self._unlock, lambda: None
        unlock()
        self.busy_changed.emit(False)

    def _regroup(self, function: Any, *arguments: Any, then: Callable[[Regrouped], None]) -> None:
        """Let the other process find which voxels get another number, and change the layer once it is done."""
        found: list[Regrouped] = []

        def event(what: Any) -> None:
            if isinstance(what, Regrouped):
                found.append(what)
            else:
                self._show_planes(what, "searched")

        self._run(function, *arguments, event=event, done=lambda _: then(found[0]))

    def _run(
        self,
        function: Any,
        *arguments: Any,
        event: Callable[[Any], None] = lambda _: None,
        done: Callable[[Any], None] = lambda _: None,
        lasting: bool = False,
    ) -> None:
        """Let the other process work, and do with its answer what `done` does.

        A stop may come when the work is already done, or has failed because its file is gone. Then its answer is put
        down all the same, as whoever stopped it must find everything as it was; unless it is `lasting`: has its effect
        there, as a file that is written.
        """

        def finished(result: Any) -> None:
            try:
                if job.stopped and not lasting:
                    self._say_stopped()
                else:
                    done(result)  # the layer is still locked
            finally:
                self._end()

        def failed(error: BaseException) -> None:
            stopped = job.stopped or isinstance(error, StoppedError)
            self._end()
            if stopped:
                self._say_stopped()
            else:
                self.failed.emit(error)

        self._job = job = self._background.run(
            function, *arguments, on_event=event, on_done=finished, on_error=failed, kind="editing"
        )

    def _say_stopped(self) -> None:
        self.said.emit("info", "Stopped: everything is as it was.")


def _after(first: Callable[[], None], then: Callable[[], None]) -> Callable[[], None]:
    def both() -> None:
        first()
        then()

    return both


def _require_editable(layer: Any) -> None:
    if layer.multiscale or not isinstance(layer.data, np.ndarray):
        raise GeometryError(
            "expected labels that can be edited",
            got=f"layer '{layer.name}', which is read from a file",
            hint="Make a copy to edit, and choose that.",
        )


def _renumber(layer: Any, what: Renumbered) -> None:
    for number, (old, voxels) in sorted(what.new.items(), reverse=True):  # the old number may be another's new one
        if old != number:
            _renumber_voxels(layer, voxels, was=[old], numbers=np.full(len(voxels), number))
            _name_like(layer, old, [number])
    layer.metadata[_KEY]["numbers"] |= set(what.new)


def _renumber_voxels(layer: Any, voxels: np.ndarray, *, was: Sequence[int], numbers: np.ndarray) -> None:
    """One step that can be undone. What a region has lost since it was looked at stays: napari's undo knows no lock."""
    where = np.unravel_index(voxels, np.shape(layer.data))
    still = np.isin(layer.data[where], was)
    layer.data_setitem(tuple(axis[still] for axis in where), numbers[still])


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

"""What the controller knows, drawn as layers of a viewer; clicks and keys in the canvas, handed to the controller."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cryoscan.errors import CryoscanError
from cryoscan.hits import Hits
from cryoscan.io import open_volume
from cryoscan.labels import LabelClass, LabelMap
from cryoscan.units import Vector
from cryoscan.volume import Volume
from cryoscan.workflows import Identification
from napari_plugin._asking import Answer
from napari_plugin._controller import Controller
from napari_plugin._layers import LayerData, hits_layer, label_layer, score_layer, volume_layer
from napari_plugin._reader import missing_source, scan_layers
from napari_plugin._sources import file_of
from napari_plugin._tasks import Sample

_CLICK = 3.0  # pixels: a mouse that moved farther was dragged
_OF_A_SCAN = ("volume", "score", "margin", "places", "hits")  # from the bottom to the top

KEYS: dict[str, str] = {
    "Q": "ask what is under the cursor",
    "K": "select the next hit",
    "J": "select the hit before",
    "Y": "accept the selected hits",
    "N": "reject the selected hits",
    "U": "undo the last correction",
}
"""Keys in the canvas and what they do."""


class Canvas:
    """The layers of one viewer that belong to cryoscan.

    Parameters
    ----------
    viewer : napari.Viewer or ViewerModel
    controller : Controller
    """

    def __init__(self, viewer: Any, controller: Controller) -> None:
        self.viewer, self.controller = viewer, controller
        self.clicks_ask = False
        self.edited: Any = None
        """The last layer in which regions can be edited; it is the user's."""
        self._own: dict[str, Any] = {}
        self._seen: dict[str, tuple[bool, float]] = {}  # of layers that come again: whether visible, and how opaque
        self._leaving: list[Any] = []
        self._quiet = False
        review, scanning, asking = controller.review, controller.scanning, controller.asking
        scanning.begun.connect(self._show_lattice)
        scanning.tile_done.connect(self._refresh_lattice)
        scanning.found.connect(self._show_hits_so_far)
        scanning.finished.connect(lambda _: self._retire("score so far", "hits so far"))
        review.opened.connect(self._show_scan)
        review.changed.connect(self._recolour)
        review.selected.connect(self._show_selection)
        asking.answered.connect(self._show_answer)
        asking.previewed.connect(lambda volume, _: self._show_preview(volume))
        asking.segmented.connect(lambda labels, _: self._show_segments(labels))
        asking.mapped.connect(self._show_map)
        asking.sampled.connect(self._show_sample)
        asking.sample_selected.connect(self._mark_sample)
        controller.editing.copied.connect(self._show_copy)
        viewer.mouse_drag_callbacks.append(self._on_mouse)
        viewer.layers.events.removed.connect(self._on_removed)
        viewer.layers.events.inserted.connect(self._on_inserted)
        self._bind_keys()

    # ------------------------------------------------------------ what is there

    def volumes(self) -> list[Any]:
        """Image layers that may be scanned or asked about."""
        mine = [*self._leaving, *(layer for key, layer in self._own.items() if key != "volume")]
        return [layer for layer in self.viewer.layers if type(layer).__name__ == "Image" and not _among(layer, mine)]

    def volume(self) -> Any | None:
        """The image layer that questions are about: the active one, or the last visible."""
        images = self.volumes()
        active = self.viewer.layers.selection.active
        if active is not None and _among(active, images):
            return active
        return next((layer for layer in reversed(images) if layer.visible), images[-1] if images else None)

    def layer(self, key: str) -> Any | None:
        """A layer of cryoscan's own."""
        return self._own.get(key)

    def ask(self, position: Vector) -> None:
        """Ask what is at a place in Å, and select the place of the scan that is there."""
        layer = self.volume()
        if layer is None:
            self.controller.said.emit("warning", "There is no volume to ask about: open one first.")
            return
        try:
            file = file_of(layer)
        except CryoscanError as error:
            self.controller.complain(error)
            return
        place = self.controller.review.place_at(position)
        if place is not None:
            self.controller.review.select([place])
        self.controller.asking.what_is(file, position)

    def look_at(self, position: Vector) -> None:
        """Turn to the slice of a place, and move the view if the place lies outside of it."""
        camera = self.viewer.camera
        if self.viewer.dims.ndisplay == 2:
            self.viewer.dims.set_point(0, position[0])
        away = np.abs(np.subtract(position, camera.center))[1:] * camera.zoom
        if (away > 0.45 * np.asarray(self.viewer.canvas.size)).any():
            camera.center = position

    # ------------------------------------------------------------ a scan

    def _show_scan(self) -> None:
        """Begin to show the scan that is open: what is not of it goes, what is missing comes, one layer per turn."""
        if self.controller.review.found is None:
            return
        for role in _OF_A_SCAN[1:]:
            layer = self._own.get(role)
            if layer is not None and not self._is_current(role, layer):
                self._seen[role] = layer.visible, layer.opacity  # as the user has set them
                self._retire(role)
        self._retire("score so far", "hits so far")
        self.controller.turns.take("layers that come", self._scan_pieces())

    def _scan_pieces(self) -> Iterator[None]:
        """Add the layers that are missing, one per turn."""
        review = self.controller.review
        assert review.result is not None
        for role in _OF_A_SCAN[1:]:
            self._take_over(role)
        for role in _OF_A_SCAN:
            if role in self._own or (role == "volume" and self.volumes()):
                continue
            others = {other for other in _OF_A_SCAN if other != role}
            for described in scan_layers(review.result, review.reviewed, besides=others).values():
                layer = self._add(role, described)
                layer.visible, layer.opacity = self._seen.pop(role, (layer.visible, layer.opacity))
                if role == "volume":
                    self.viewer.layers.move(self.viewer.layers.index(layer), 0)
                yield
        missing = missing_source(review.result)
        shape = tuple(review.result.manifest["volume"]["shape"])
        if missing is not None and not any(_shape(layer) == shape for layer in self.volumes()):
            self.controller.said.emit("warning", missing)
        if "hits" in self._own:
            self.viewer.layers.move(self.viewer.layers.index(self._own["hits"]), len(self.viewer.layers))

    def _is_current(self, role: str, layer: Any) -> bool:
        """Whether a layer shows the scan that is open, as it is painted and drawn now."""
        review, about = self.controller.review, layer.metadata.get("cryoscan", {})
        if review.result is None or (about.get("scan"), about.get("role")) != (str(review.result.path), role):
            return False
        if role == "places" and review.painted and not about.get("numbers"):
            return False  # painted by now
        drawn = None if review.redrawing is None else review.redrawing.path.name
        return role not in ("places", "hits") or about.get("drawn") == drawn  # drawn anew by now, or that was undone

    def _take_over(self, role: str) -> None:
        """Let a layer of the viewer be the one of its role, if there is none yet; the reader may have added it."""
        there = (layer for layer in self.viewer.layers if not _among(layer, self._leaving))
        layer = next((layer for layer in there if self._is_current(role, layer)), None)
        if layer is None or role in self._own:
            return
        self._own[role] = layer
        if role == "places":
            self._colour_places()
        if role == "hits":
            layer.selected_data.events.items_changed.connect(self._on_points_selected)
            self._colour_hits()
            self._mark_hits()

    def _recolour(self) -> None:
        if self.controller.review.found is not None:
            self._colour_places()
            self._colour_hits()

    def _colour_places(self) -> None:
        from napari.utils.colormaps import DirectLabelColormap

        review, places = self.controller.review, self._own.get("places")
        if places is None:
            return
        if review.lattice is not None:
            finest = places.data[0] if places.multiscale else places.data
            finest.table[:] = review.labels_of_points()  # which the coarser levels share
            places.colormap = DirectLabelColormap(color_dict=review.colours_of_labels())
            places.refresh()
        elif review.numbers is not None:
            places.colormap = DirectLabelColormap(color_dict=review.colours())

    def _colour_hits(self) -> None:
        review, hits = self.controller.review, self._own.get("hits")
        if hits is None:
            return
        now = review.places.hits
        classes = (LabelClass(n, t, s) for n, t, s in zip(now.names, now.types, now.schemes, strict=True))
        colour = np.array([[*(c / 255 for c in meaning.colour), 1.0] for meaning in classes]).reshape(-1, 4)
        rim = np.full((len(colour), 4), 0.3)
        colour[~review.shown, 3] = 0  # napari 0.9.2 draws points that are not shown in three dimensions
        rim[:, 3] = review.shown
        with _silence(self):
            hits.shown = review.shown
            if len(colour):
                hits.face_color, hits.border_color = colour, rim
            hits.features = hits.features.assign(
                type=now.types, scheme=now.schemes, name=now.names, status=list(review.places.status)
            )

    def _mark_hits(self) -> None:
        hits = self._own.get("hits")
        if hits is not None:
            with _silence(self):
                hits.selected_data = set(self.controller.review.selection)

    def _show_selection(self) -> None:
        review = self.controller.review
        self._recolour()
        self._mark_hits()
        if review.found is not None and len(review.selection) == 1:
            z, y, x = review.found.hits.positions[review.selection[0]]
            self.look_at((float(z), float(y), float(x)))

    def _show_copy(self, described: LayerData) -> None:
        from napari.layers import Layer

        self.edited = self.viewer.add_layer(Layer.create(*described))
        self.edited.selected_label = len(self.controller.review.places.hits) + 1  # the brush makes a new region

    # ------------------------------------------------------------ a running scan

    def _show_lattice(self, path: Path) -> None:
        self._drop("score so far", "hits so far")
        lattice = open_volume(path / "score.zarr")
        self._add("score so far", score_layer(lattice, name=f"{path.stem} score so far", visible=True))

    def _refresh_lattice(self) -> None:
        layer = self._own.get("score so far")
        if layer is not None:
            layer.refresh()

    def _show_hits_so_far(self, hits: Hits) -> None:
        self._drop("hits so far")
        if len(hits):
            self._add("hits so far", hits_layer(hits, name="hits so far", diameter=12.0))

    # ------------------------------------------------------------ answers

    def _show_answer(self, answer: Answer) -> None:
        self._drop("preview")
        place = answer.file.open().crop(answer.box)
        labels = LabelMap(Volume(answer.mask.astype(np.uint8), place.voxel_size, place.origin), {})
        data, settings, kind = label_layer(labels, name="what was asked")
        colours = {None: (0.0, 0.0, 0.0, 0.0), 0: (0.0, 0.0, 0.0, 0.0), 1: (1.0, 0.85, 0.1, 1.0)}
        self._drop("asked")
        layer = self._add("asked", (data, {**settings, "colormap": colours, "opacity": 0.8}, kind))
        layer.contour = 1

    def _show_preview(self, volume: Volume | None) -> None:
        self._drop("preview")
        if volume is None:
            return
        data, settings, kind = volume_layer(volume, name="candidate")
        top = float(np.asarray(volume.load()).max())
        settings |= {
            "colormap": "magenta",
            "blending": "additive",
            "contrast_limits": (0.05 * top, top),
            "rendering": "attenuated_mip",
        }
        self._add("preview", (data, settings, kind))

    def _show_segments(self, labels: LabelMap) -> None:
        self._drop("segments")
        data, settings, kind = label_layer(labels, name="segmentation")
        self._add("segments", (data, {**settings, "opacity": 0.5}, kind))

    def _show_map(self, answer: Identification) -> None:
        assert answer.labels is not None
        self._drop("segments")
        self._add("segments", label_layer(answer.labels, name="named regions"))

    def _show_sample(self, sample: Sample | None) -> None:
        self._drop("sample")
        if sample is None:
            return
        colours = [[*(part / 255 for part in meaning.colour), 1.0] for meaning in sample.meanings]
        settings = {
            "name": "lattice sample",
            "size": 8.0,
            "face_color": np.array(colours).reshape(-1, 4),
            "border_width": 0.1,
            "features": {"type": [m.type for m in sample.meanings], "name": [m.name for m in sample.meanings]},
            "units": ("angstrom",) * 3,
        }
        layer = self._add("sample", (sample.positions, settings, "points"))
        layer.selected_data.events.items_changed.connect(self._on_sample_selected)

    def _mark_sample(self) -> None:
        asking, layer = self.controller.asking, self._own.get("sample")
        if layer is None or asking.sample is None:
            return
        chosen = np.zeros(len(asking.sample.positions), bool)
        chosen[list(asking.sample_selection)] = True
        with _silence(self):
            layer.shown = chosen | ~chosen.any()  # the rest would hide those that were caught
            layer.selected_data = set(asking.sample_selection)
        if chosen.sum() == 1:
            z, y, x = asking.sample.positions[chosen][0]
            self.look_at((float(z), float(y), float(x)))

    def _on_sample_selected(self, *_: object) -> None:
        layer = self._own.get("sample")
        if not self._quiet and layer is not None:
            self.controller.asking.select_sample(sorted(layer.selected_data))

    # ------------------------------------------------------------ mouse and keys

    def _on_mouse(self, viewer: Any, event: Any) -> Iterator[None]:
        start = np.asarray(event.pos, np.float64)
        yield
        while event.type == "mouse_move":
            yield
        moved = np.linalg.norm(np.asarray(event.pos, np.float64) - start) > _CLICK
        if self.clicks_ask and not moved:
            position = self._under(event)
            if position is not None:
                self.ask(position)

    def _under(self, event: Any) -> Vector | None:
        """What a click means: a voxel of the slice, or in three dimensions the first place on the line of sight."""
        if self.viewer.dims.ndisplay == 2:
            z, y, x = event.position[-3:]
            return float(z), float(y), float(x)
        layer, found = self._own.get("places"), self.controller.review.found
        if layer is None or found is None or self.controller.review.numbers is None:
            self.controller.said.emit("info", "In three dimensions click on a coloured region, or turn to slices.")
            return None
        number = layer.get_value(
            event.position,
            view_direction=event.view_direction,
            dims_displayed=list(event.dims_displayed),
            world=True,
        )
        number = number[1] if isinstance(number, tuple) else number
        if not number or number > len(found):
            return None
        z, y, x = found.hits.positions[int(number) - 1]
        return float(z), float(y), float(x)

    def _bind_keys(self) -> None:
        review = self.controller.review

        def under_cursor() -> None:
            z, y, x = self.viewer.cursor.position[-3:]
            self.ask((float(z), float(y), float(x)))

        actions: dict[str, Callable[[], Any]] = {
            "Q": under_cursor,
            "K": lambda: review.select_next(1),
            "J": lambda: review.select_next(-1),
            "Y": review.accept,
            "N": review.reject,
            "U": review.undo,
        }
        for key, action in actions.items():
            self.viewer.bind_key(key, _handler(action), overwrite=True)

    # ------------------------------------------------------------ layers

    def _add(self, key: str, layer_data: LayerData) -> Any:
        from napari.layers import Layer

        data, settings, kind = layer_data
        active = self.viewer.layers.selection.active
        layer = self.viewer.add_layer(Layer.create(data, settings, kind))
        self._own[key] = layer
        if kind == "points":
            with warnings.catch_warnings():  # its successor would average all images over a slab
                warnings.simplefilter("ignore", FutureWarning)
                layer.out_of_slice_display = True
        if active is not None and _among(active, self.viewer.layers):
            self.viewer.layers.selection.active = active  # the user's choice stays
        return layer

    def _drop(self, *keys: str) -> None:
        for key in keys:
            layer = self._own.pop(key, None)
            if layer is not None and _among(layer, self.viewer.layers):
                self.viewer.layers.remove(layer)

    def _retire(self, *keys: str) -> None:
        """Remove layers that are nobody's any more, one per turn.

        Where several that were drawn go at once and others come, the drawing of napari 0.9.2 ends the process.
        """
        self._leaving += [layer for key in keys if (layer := self._own.pop(key, None)) is not None]
        self.controller.turns.take("layers that go", self._removals())

    def _removals(self) -> Iterator[None]:
        while self._leaving:
            layer = self._leaving.pop()
            if _among(layer, self.viewer.layers):
                self.viewer.layers.remove(layer)
                yield

    def _on_removed(self, event: Any) -> None:
        self._own = {key: layer for key, layer in self._own.items() if layer is not event.value}
        if self.edited is event.value:
            self.edited = None
        if type(event.value).__name__ == "Labels":
            self.controller.editing.forget(event.value)

    def _on_inserted(self, event: Any) -> None:
        """A scan that the reader opened is looked at, and its layers are the canvas's own."""
        about, review = event.value.metadata.get("cryoscan", {}), self.controller.review
        if "scan" not in about:
            return
        if review.result is None or review.result.path != Path(about["scan"]):
            self.controller.open_scan(Path(about["scan"]))
        self._take_over(about["role"])

    def _on_points_selected(self, *_: object) -> None:
        hits = self._own.get("hits")
        if not self._quiet and hits is not None:
            self.controller.review.select(sorted(hits.selected_data))


class _silence:  # noqa: N801 - reads as a statement
    """While the canvas changes the points itself, their events say nothing new."""

    def __init__(self, canvas: Canvas) -> None:
        self._canvas = canvas

    def __enter__(self) -> None:
        self._canvas._quiet = True

    def __exit__(self, *_: object) -> None:
        self._canvas._quiet = False


def _handler(action: Callable[[], Any]) -> Callable[[Any], None]:
    def handle(_: Any) -> None:
        action()

    return handle


def _shape(layer: Any) -> tuple[int, ...]:
    return tuple((layer.data[0] if layer.multiscale else layer.data).shape)


def _among(layer: Any, layers: Any) -> bool:
    return any(layer is other for other in layers)

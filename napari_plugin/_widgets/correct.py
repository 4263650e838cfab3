"""Corrections: accepted, rejected, renamed, edited by hand; all of it written down, all of it undone with a key."""

from pathlib import Path
from typing import Any

from qtpy.QtWidgets import QFileDialog, QLineEdit

from cryoscan.errors import ConfigError
from napari_plugin._canvas import KEYS
from napari_plugin._widgets.parts import LayerChoice, Panel, fill, form, heading, note, table

_BEFORE = "Until then hits, counts and exports are those of the regions before. U takes it back."


class CorrectWidget(Panel):
    """Say which hits are right.

    Parameters
    ----------
    napari_viewer : napari.Viewer
    """

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__(napari_viewer)
        review = self.controller.review
        self.selected = note("No hit is selected.")
        self.column.addWidget(self.selected)
        self.row(
            self.button("◀ J", "Select the hit before", lambda: review.select_next(-1)),
            self.button("K ▶", "Select the next hit", lambda: review.select_next(1)),
            self.button("Accept Y", "The selected hits are right", review.accept),
            self.button("Reject N", "The selected hits are wrong", review.reject),
            self.button("Undo U", "Take back the last correction", review.undo),
        )
        self.alternatives = table(["type", "what else it looks like", "cosine"], stretch=1)
        self.alternatives.setMaximumHeight(150)
        self.column.addWidget(self.alternatives)
        self.row(self.button("Rename to the selected type", "The selected hits are of that type", self._rename))
        self.column.addWidget(heading("Journal"))
        self.journal = table(["#", "what", "about", "who", "when"], stretch=2)
        self.journal.setMinimumHeight(110)
        self.column.addWidget(self.journal)
        self.row(
            self.button(
                "Accepted hits into a DateDB …", "Make them entries of a database of your own", self._ask_datedb
            )
        )
        self.column.addWidget(heading("Edit regions by hand"))
        self.edited = LayerChoice(napari_viewer, lambda: _layers(napari_viewer, "Labels"), none="no layer")
        self.points = LayerChoice(napari_viewer, lambda: _layers(napari_viewer, "Points"), none="no layer")
        self.merged = QLineEdit()
        self.merged.setPlaceholderText("numbers of regions, e.g. 3, 17")
        fields = form()
        fields.addRow("Edited labels", self.edited)
        fields.addRow("Merge", self.merged)
        fields.addRow("Split between", self.points)
        copy = self.button(
            "Make a copy to edit", "Paint and erase in it with napari's brush", self.controller.editing.copy
        )
        self.row(copy)
        self.column.addLayout(fields)
        self.saving = self.button(
            "Save …", "Write the layer to a file of its own, and a line in the journal", self._ask_save
        )
        self.row(
            merging := self.button("Merge", "Make these regions one (Ctrl+Z undoes)", self._merge),
            splitting := self.button("Split", "Split the region that holds the points (Ctrl+Z undoes)", self._split),
            self.saving,
        )
        self.take_over = self.button(
            "Let hits and exports follow the layer", "Take the edited regions over", self._follow
        )
        self.stop = self.button(
            "Stop", "Leave the scan, its hits and the layer as they are", self.controller.editing.stop
        )
        self.row(self.take_over, self.stop)
        self._at_rest = (copy, merging, splitting, self.saving, self.take_over)
        self.progress = note(_BEFORE)
        self.column.addWidget(self.progress)
        keys = ", ".join(f"<b>{key}</b> {what}" for key, what in KEYS.items())
        self.column.addWidget(note(f"Keys over the canvas: {keys}."))
        self.column.addStretch()
        editing = self.controller.editing
        self.hear(editing.copied, self._choose_copy)
        self.hear(editing.progressed, lambda done, total, what: self.progress.setText(f"{done} of {total} {what} …"))
        self.hear(editing.busy_changed, self._show_busy)
        self._show_busy(editing.busy)
        self.hear(review.selected, self._show)
        self.hear(review.changed, self._show)
        self._show()

    def save(self, path: Path) -> None:
        """Write the edited labels."""
        self.controller.editing.save(self._edited(), path)

    def _show(self) -> None:
        review = self.controller.review
        if review.found is None or review.journal is None:
            return
        hits, chosen = review.places.hits, review.selection
        if len(chosen) == 1:
            (place,) = chosen
            z, y, x = hits.positions[place]
            status = review.places.status[place] or ("a hit" if review.places.kept[place] else "below the thresholds")
            without = review.without_sharpening(place)
            self.selected.setText(
                f"<b>{hits.types[place]} {hits.names[place]}</b>, {status}<br>place {place + 1} at x {x:.0f}, "
                f"y {y:.0f}, z {z:.0f} Å; cosine {hits.scores[place]:.3f}, margin {hits.margins[place]:.3f}"
                + (f"<br>{without}" if without else "")
            )
            fill(self.alternatives, ((t, n, c) for _, t, n, c in review.found.alternatives[place]))
        else:
            self.selected.setText(f"{len(chosen)} hits are selected." if chosen else "No hit is selected.")
            fill(self.alternatives, ())
        newest = reversed(review.journal.changes)
        fill(self.journal, ((c.number, c.what, _about(c), c.who, c.time[:19].replace("T", " ")) for c in newest))

    def _rename(self) -> None:
        review, row = self.controller.review, self.alternatives.currentRow()
        if review.found is None or not review.selection or row < 0:
            self.controller.said.emit("warning", "Select one hit, and in the table the type that it is.")
            return
        scheme, type_, name, _ = review.found.alternatives[review.selection[0]][row]
        review.retype(scheme, type_, name)

    def _ask_datedb(self) -> None:
        chosen = QFileDialog.getSaveFileName(self, "DateDB", "my.datedb", "DateDB (*.datedb)")[0]
        if chosen:
            self.controller.add_to_datedb(Path(chosen))

    def _choose_copy(self, _: object) -> None:
        self.edited.setCurrentIndex(self.edited.findData(self.canvas.edited.name))

    def _show_busy(self, busy: bool) -> None:
        for button in self._at_rest:
            button.setEnabled(not busy)
        self.stop.setEnabled(busy)
        self.progress.setText("Working …" if busy else _BEFORE)

    def _edited(self) -> Any:
        layer = self.edited.layer
        if layer is None:
            raise ConfigError("expected a layer of edited labels", got="none", hint="Make a copy to edit first.")
        return layer

    def _merge(self) -> None:
        text = self.merged.text().replace(",", " ").split()
        if not all(word.isdecimal() for word in text):
            raise ConfigError("expected numbers of regions", got=self.merged.text(), hint="Write them like 3, 17.")
        self.controller.editing.merge(self._edited(), [int(word) for word in text])

    def _split(self) -> None:
        points, density = self.points.layer, self.canvas.volume()
        if points is None or density is None:
            raise ConfigError(
                "expected a points layer, and the volume",
                got="none",
                hint="Add a points layer, put a point into each part of the region, and choose it here.",
            )
        self.controller.editing.split(self._edited(), points, density)

    def _follow(self) -> None:
        self.controller.editing.follow(self._edited())

    def _ask_save(self) -> None:
        chosen = QFileDialog.getSaveFileName(self, "Save labels", "edited.zarr", "Labels (*.zarr *.mrc)")[0]
        if chosen:
            self.save(Path(chosen))


def _about(change: Any) -> str:
    if change.what == "undo":
        return f"change {change.undoes}"
    if change.what == "labels":
        return f"{len(change.positions)} regions drawn by hand" if change.positions else str(change.note)
    places = ", ".join(f"x {x:.0f} y {y:.0f} z {z:.0f}" for z, y, x in change.positions)
    return f"{places} → {change.type} {change.name}" if change.type else places


def _layers(viewer: Any, kind: str) -> list[Any]:
    """Layers of the user's own: those of the scan are not edited."""
    return [
        layer
        for layer in viewer.layers
        if type(layer).__name__ == kind and "cryoscan" not in layer.metadata and layer.name != "what was asked"
    ]

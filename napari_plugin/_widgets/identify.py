"""Naming a region that was drawn or labelled (Mode 1), or all parts of a map (Mode 2)."""

from typing import Any

from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QDoubleSpinBox, QLineEdit, QProgressBar, QSpinBox

from cryoscan.errors import ConfigError
from cryoscan.io import VolumeFile
from cryoscan.labels import LabelMap
from cryoscan.workflows import Identification
from napari_plugin._sources import file_of, region_of_labels, region_of_outline
from napari_plugin._widgets.parts import LayerChoice, Panel, fill, form, heading, note, number, table

_SETTLED = 300  # milliseconds without a change, before the map is segmented again


class IdentifyWidget(Panel):
    """Name regions of a map.

    Parameters
    ----------
    napari_viewer : napari.Viewer
    """

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__(napari_viewer)
        self.volume = LayerChoice(napari_viewer, self.canvas.volumes)
        self.resolution = QLineEdit()
        self.resolution.setPlaceholderText("several are tried")
        self.resolution.setToolTip("Resolution of the map in Å, if you know it")
        top = form()
        top.addRow("Map", self.volume)
        top.addRow("Resolution (Å)", self.resolution)
        self.column.addLayout(top)
        self.column.addWidget(heading("One region"))
        self.region = LayerChoice(napari_viewer, self._regions, none="choose labels or shapes")
        self.region.setToolTip("A labels layer on the map, or a shapes layer with an outline")
        self.label = QSpinBox()
        self.label.setRange(1, 2**31 - 1)
        self.label.setToolTip("Which label, for a labels layer")
        one = form()
        one.addRow("Region", self.region)
        one.addRow("Label", self.label)
        self.column.addLayout(one)
        self.row(self.button("What is it?", "Name this region; the answer is on the page Ask", self._identify))
        self.column.addWidget(heading("Every part of the map"))
        self.threshold = QDoubleSpinBox()
        self.threshold.setDecimals(4)
        self.threshold.setRange(-1e6, 1e6)
        self.threshold.setToolTip("Density from which on the map is segmented")
        self.steps = QSpinBox()
        self.steps.setRange(0, 40)
        self.steps.setValue(12)
        self.steps.setToolTip("Steps of the grouping: more steps make larger groups")
        parts = form()
        parts.addRow("Threshold", self.threshold)
        parts.addRow("Steps", self.steps)
        self.column.addLayout(parts)
        self.row(
            self.button("Segment", "Show the groups; changes follow at once", self._segment_fresh),
            self.button("Name all parts", "Compare every plausible region with the database", self._name_map),
        )
        self.bar = QProgressBar()
        self.said = note()
        self.parts = table(["label", "kDa", "type", "name", "cosine"], stretch=3)
        self.parts.setMinimumHeight(140)
        self.parts.cellClicked.connect(self._go)
        self.column.addWidget(self.bar)
        self.column.addWidget(self.said)
        self.column.addWidget(self.parts)
        self.column.addStretch()
        self._settled = QTimer(self)
        self._settled.setSingleShot(True)
        self._settled.setInterval(_SETTLED)
        self._settled.timeout.connect(self.doing(self._segment))
        self.threshold.valueChanged.connect(self._on_changed)
        self.steps.valueChanged.connect(self._on_changed)
        self._live = False
        self._answer: Identification | None = None
        asking = self.controller.asking
        self.hear(asking.segmented, self._show_segments)
        self.hear(asking.progressed, self._show_progress)
        self.hear(asking.mapped, self._show_map)
        self.hear(asking.failed, self._show_failure)

    def _regions(self) -> list[Any]:
        return [layer for layer in self.viewer.layers if type(layer).__name__ in ("Labels", "Shapes")]

    def _file(self) -> VolumeFile:
        if self.volume.layer is None:
            raise ConfigError("expected a map", got="none", hint="Open one: File → Open.")
        return file_of(self.volume.layer)

    def _identify(self) -> None:
        layer, file = self.region.layer, self._file()
        if layer is None:
            raise ConfigError("expected a region", got="none", hint="Choose labels, or an outline in a shapes layer.")
        volume = file.open()
        if type(layer).__name__ == "Labels":
            box, mask = region_of_labels(layer, self.label.value(), volume)
        else:
            box, mask = region_of_outline(layer, volume)
        self.said.setText("Looking what the region is; the answer is on the page Ask.")
        self.controller.asking.what_is_region(file, box, mask, resolution=number(self.resolution))

    def _segment_fresh(self) -> None:
        """With the threshold that the map itself suggests."""
        self._live = False
        file, resolution = self._file(), number(self.resolution)
        self.said.setText("Segmenting …")
        self.controller.asking.segment(file, threshold=None, step=None, steps=self.steps.value(), resolution=resolution)

    def _on_changed(self, *_: object) -> None:
        if self._live:
            self._settled.start()

    def _segment(self) -> None:
        self.said.setText("Segmenting …")
        self.controller.asking.segment(
            self._file(),
            threshold=self.threshold.value(),
            step=None,
            steps=self.steps.value(),
            resolution=number(self.resolution),
        )

    def _show_segments(self, labels: LabelMap, level: float) -> None:
        self._live = False
        self.threshold.setSingleStep(abs(level) / 20 or 0.01)
        self.threshold.setValue(level)
        self._live = True
        count = int(labels.labels().max())
        self.said.setText(f"{count} groups above {level:.4g}.")

    def _name_map(self) -> None:
        threshold = self.threshold.value() if self._live else None
        file = self._file()
        self.bar.setRange(0, 0)
        self.said.setText("Naming the parts of the map …")
        self.controller.asking.name_map(
            file, threshold=threshold, step=None, steps=self.steps.value(), resolution=number(self.resolution)
        )

    def _show_progress(self, done: int, total: int) -> None:
        self.bar.setRange(0, total)
        self.bar.setValue(done)
        self.said.setText(f"{done} of {total} regions compared.")

    def _show_map(self, answer: Identification) -> None:
        self._answer = answer
        named = sum(region.verdict == "named" for region in answer.regions)
        self.said.setText(f"{len(answer.regions)} regions, {named} of them named. Click one to go there.")
        rows = []
        for region in answer.regions:
            best = region.candidates[0] if region.candidates else None
            name = "unknown" if region.verdict == "unknown" or best is None else best.name
            type_, cosine = (best.type, best.cosine) if best else ("", 0.0)
            rows.append((region.id, round(region.mass_kDa), type_, name, cosine))
        fill(self.parts, rows)

    def _show_failure(self, _: object) -> None:
        if self.bar.maximum() == 0:  # busy
            self.bar.setRange(0, 1)
        if self.said.text().endswith("…"):
            self.said.setText("It did not work; see the message.")

    def _go(self, row: int, _: int) -> None:
        if self._answer is not None:
            self.canvas.look_at(self._answer.regions[row].centre)

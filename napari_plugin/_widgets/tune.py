"""Thresholds: dragged in histograms, with counts at once, for all types or for one."""

from pathlib import Path
from typing import Any

import numpy as np
from qtpy.QtWidgets import QComboBox, QFileDialog

from cryoscan.scan import TypeThresholds
from napari_plugin._widgets.histogram import Histogram
from napari_plugin._widgets.parts import Panel, heading, note

_ALL = "all types"


class TuneWidget(Panel):
    """Change thresholds of a finished scan, without scanning again.

    Parameters
    ----------
    napari_viewer : napari.Viewer
    """

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__(napari_viewer)
        self.counts = note("No scan is open.")
        self.type = QComboBox()
        self.type.setToolTip("Thresholds of all types, or different ones for one type")
        self.type.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.type.setMinimumContentsLength(14)
        self.type.currentIndexChanged.connect(self._show)
        self.column.addWidget(self.counts)
        self.column.addWidget(self.type)
        self.histograms: dict[str, Histogram] = {}
        titles = {
            "min_score": "Score: cosine to the representative",
            "min_margin": "Margin: lead over the next type",
            "min_volume_A3": "Volume of the region (Å³)",
            "min_confidence": "Confidence: probability that the name is right",
        }
        for key, title in titles.items():
            histogram = Histogram(napari_viewer)
            histogram.setToolTip("Drag the line: what lies right of it is named")
            histogram.moved.connect(lambda value, key=key: self._tune(key, value))
            self.histograms[key] = histogram
            self.column.addWidget(heading(title))
            self.column.addWidget(histogram)
        self.row(
            self.button("Reset", "Back to the thresholds of the scan", self.controller.review.untune),
            self.button("Apply", "Write the labels and hits of the scan anew", self._apply),
            self.button("Save recipe …", "A file that `cryoscan batch --config` takes", self._ask_recipe),
        )
        self.column.addStretch()
        self.hear(self.controller.review.opened, self._fill_types)
        self.hear(self.controller.review.changed, self._show)
        self._fill_types()

    def save_recipe(self, path: Path) -> None:
        """Write the thresholds as a file for other volumes."""
        self.controller.review.save_recipe(path, overwrite=True)
        self.controller.said.emit("info", f"Recipe written: cryoscan batch VOLUMES -o FOLDER --config {path}")

    @property
    def _chosen(self) -> str | None:
        return self.type.currentData()

    def _fill_types(self) -> None:
        found = self.controller.review.found
        self.type.blockSignals(True)
        self.type.clear()
        self.type.addItem(_ALL, None)
        if found is not None:
            names = dict(zip(found.hits.types, found.hits.names, strict=True))
            for type_ in sorted(names):
                self.type.addItem(f"{type_}  {names[type_]}", type_)
        self.type.blockSignals(False)
        self._show()

    def _show(self, *_: object) -> None:
        review = self.controller.review
        found = review.found
        if found is None:
            return
        chosen = self._chosen
        mine = np.ones(len(found), bool) if chosen is None else np.array([t == chosen for t in found.hits.types], bool)
        config = review.config
        own = (config.per_type or {}).get(chosen or "", TypeThresholds())
        values = {
            "min_score": (found.hits.scores, review.threshold, own.min_score),
            "min_margin": (found.hits.margins, config.min_margin or 0.0, own.min_margin),
            "min_volume_A3": (found.volume_A3, config.min_volume_A3 or 0.0, own.min_volume_A3),
            "min_confidence": (found.confidence, config.min_confidence, None),
        }
        for key, (data, general, special) in values.items():
            shown = np.zeros(0) if data is None else data[mine]
            self.histograms[key].show_values(shown, general if special is None else special)
        self.histograms["min_confidence"].setEnabled(chosen is None and found.confidence is not None)
        named, before = found.named(config), found.named()
        words = f"<b>{int((named & mine).sum())}</b> of {int(mine.sum())} places named"
        words += f" (the scan: {int((before & mine).sum())}); {len(review.legend())} types in all."
        self.counts.setText(words)

    def _tune(self, key: str, value: float) -> None:
        if self.controller.review.found is not None:
            limits = {"min_score": (-1.0, 1.0), "min_confidence": (0.0, 1.0), "min_margin": (0.0, 2.0)}
            low, high = limits.get(key, (0.0, np.inf))
            self.controller.review.tune(self._chosen, **{key: float(np.clip(round(value, 4), low, high))})

    def _apply(self) -> None:
        if not self.controller.review.tuned:
            self.controller.said.emit("info", "The thresholds are those of the scan: there is nothing to apply.")
            return
        self.controller.apply_thresholds()

    def _ask_recipe(self) -> None:
        chosen = QFileDialog.getSaveFileName(self, "Save recipe", "recipe.yaml", "YAML (*.yaml)")[0]
        if chosen:
            self.save_recipe(Path(chosen))

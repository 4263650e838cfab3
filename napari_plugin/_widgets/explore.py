"""Hits in a plane where those that are alike lie close together; a lasso there selects them in the volume."""

from typing import Any

import numpy as np
from qtpy.QtWidgets import QComboBox

from cryoscan.labels import LabelClass
from napari_plugin._widgets.parts import Panel, note
from napari_plugin._widgets.plane import Plane

_MOST = 400  # places that are compared, each with each


class ExploreWidget(Panel):
    """See which hits are alike.

    Parameters
    ----------
    napari_viewer : napari.Viewer
    """

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__(napari_viewer)
        self.method = QComboBox()
        self.method.addItem("PCA of likeness", "pca")
        self.method.addItem("UMAP (if installed)", "umap")
        self.method.setToolTip("How the plane is made")
        self.plane = Plane(napari_viewer)
        self.plane.caught.connect(self._on_caught)
        self.said = note("Every hit is compared with every other one; alike ones lie close together.")
        self.row(self.method, self.button("Show", "Compare all hits, and draw them", self._compute))
        self.column.addWidget(self.plane, stretch=1)
        self.column.addWidget(self.said)
        self._places: list[int] = []
        self.hear(self.controller.asking.projected, self._show)
        self.hear(self.controller.review.selected, self._mark)
        self.hear(self.controller.review.opened, self._clear)

    def _compute(self) -> None:
        review = self.controller.review
        if review.result is None or review.found is None:
            self.controller.said.emit("warning", "There is no scan to explore: scan a volume, or open a .scan folder.")
            return
        self._places = np.flatnonzero(review.places.kept & review.compared)[:_MOST].tolist()
        self.said.setText(f"Comparing {len(self._places)} hits …")
        self.controller.asking.project(review.result.path, self._places, self.method.currentData())

    def _show(self, points: np.ndarray) -> None:
        review = self.controller.review
        if review.found is None or len(points) != len(self._places):
            return
        hits = review.places.hits
        colours = [LabelClass(hits.names[i], hits.types[i], hits.schemes[i]).colour for i in self._places]
        self.plane.show_points(points, colours)
        left = int((review.places.kept & review.compared).sum()) - len(self._places)
        rest = f" The best {len(self._places)}; {left} more are left out." if left > 0 else ""
        self.said.setText(f"{len(self._places)} hits in the colours of their types.{rest} Draw around some to select.")
        self._mark()

    def _clear(self) -> None:
        self._places = []
        self.plane.show_points(np.zeros((0, 2)), ())

    def _mark(self) -> None:
        chosen = set(self.controller.review.selection)
        self.plane.mark(number for number, place in enumerate(self._places) if place in chosen)

    def _on_caught(self, numbers: list[int]) -> None:
        self.controller.review.select([self._places[number] for number in numbers])
        hits = self.controller.review.places.hits if self._places else None
        if hits is not None and numbers:
            types = {f"{hits.types[self._places[n]]} {hits.names[self._places[n]]}" for n in numbers}
            more = " …" if len(types) > 4 else ""
            self.said.setText(f"{len(numbers)} hits selected: {', '.join(sorted(types)[:4])}{more}")

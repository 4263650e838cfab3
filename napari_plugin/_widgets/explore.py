"""Hits, or points of the lattice, in a plane where those that are alike lie close together, with a lasso."""

from typing import Any

import numpy as np
from qtpy.QtWidgets import QComboBox

from cryoscan.labels import LabelClass
from napari_plugin._tasks import Sample
from napari_plugin._widgets.parts import Panel, note
from napari_plugin._widgets.plane import Plane

_MOST = 400  # things that are compared, each with each


class ExploreWidget(Panel):
    """See what is alike.

    Parameters
    ----------
    napari_viewer : napari.Viewer
    """

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__(napari_viewer)
        self.what = QComboBox()
        self.what.addItem("hits", "hits")
        self.what.addItem("sample of the lattice", "lattice")
        self.what.setToolTip("Hits as they were cut out, or windows of the volume wherever there is density")
        self.method = QComboBox()
        self.method.addItem("PCA of likeness", "pca")
        self.method.addItem("UMAP (if installed)", "umap")
        self.method.setToolTip("How the plane is made")
        self.plane = Plane(napari_viewer)
        self.plane.caught.connect(self._on_caught)
        self.said = note("Everything is compared with everything else; what is alike lies close together.")
        self.row(self.what, self.method, self.button("Show", "Compare them, and draw them", self._compute))
        self.column.addWidget(self.plane, stretch=1)
        self.column.addWidget(self.said)
        self._places: list[int] = []
        self._sample: Sample | None = None
        self.hear(self.controller.asking.projected, self._show)
        self.hear(self.controller.asking.sampled, self._show_sample)
        self.hear(self.controller.asking.sample_selected, self._mark)
        self.hear(self.controller.review.selected, self._mark)
        self.hear(self.controller.review.opened, self._clear)
        self.hear(self.controller.asking.failed, self._show_failure)

    def _compute(self) -> None:
        review, asking = self.controller.review, self.controller.asking
        if review.result is None or review.found is None:
            self.controller.said.emit("warning", "There is no scan to explore: scan a volume, or open a .scan folder.")
            return
        if self.what.currentData() == "lattice":
            self.said.setText("Looking at points of the lattice …")
            asking.sample_lattice(review.result.path, _MOST, self.method.currentData())
            return
        self._places = np.flatnonzero(review.places.kept & review.compared)[:_MOST].tolist()
        self.said.setText(f"Comparing {len(self._places)} hits …")
        asking.project(review.result.path, self._places, self.method.currentData())

    def _show(self, points: np.ndarray) -> None:
        review = self.controller.review
        if review.found is None or len(points) != len(self._places):
            return
        self.controller.asking.forget_sample()
        hits = review.places.hits
        meanings = [LabelClass(hits.names[i], hits.types[i], hits.schemes[i]) for i in self._places]
        self.plane.show_points(points, (meaning.colour for meaning in meanings))
        left = int((review.places.kept & review.compared).sum()) - len(self._places)
        rest = f" The best {len(self._places)}; {left} more are left out." if left > 0 else ""
        self.said.setText(f"{len(self._places)} hits in the colours of their types.{rest} Draw around some to select.")
        self._mark()

    def _show_sample(self, sample: Sample | None) -> None:
        self._sample = sample
        if sample is None:
            return
        self._places = []
        self.plane.show_points(sample.plane, (meaning.colour for meaning in sample.meanings))
        self.said.setText(
            f"{len(sample.plane)} points of the lattice, chosen at random, in the colours of what they look like most. "
            "Draw around some to see them alone, around none to see all."
        )

    def _show_failure(self, _: object) -> None:
        if self.said.text().startswith(("Comparing", "Looking")):
            self.said.setText("It did not work; see the message.")

    def _clear(self) -> None:
        self.controller.asking.forget_sample()
        self._places = []
        self.plane.show_points(np.zeros((0, 2)), ())

    def _mark(self) -> None:
        if self._sample is not None:
            self.plane.mark(self.controller.asking.sample_selection)
            return
        chosen = set(self.controller.review.selection)
        self.plane.mark(number for number, place in enumerate(self._places) if place in chosen)

    def _on_caught(self, numbers: list[int]) -> None:
        if self._sample is not None:
            meanings = [self._sample.meanings[number] for number in numbers]
            self.controller.asking.select_sample(numbers)
        else:
            hits = self.controller.review.places.hits if self._places else None
            places = [self._places[number] for number in numbers]
            meanings = [LabelClass(hits.names[i], hits.types[i], hits.schemes[i]) for i in places] if hits else []
            self.controller.review.select(places)
        if meanings:
            types = sorted({f"{meaning.type} {meaning.name}" for meaning in meanings})
            more = " …" if len(types) > 4 else ""
            self.said.setText(f"{len(numbers)} selected: {', '.join(types[:4])}{more}")

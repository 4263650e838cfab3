"""What is this: ranked candidates for a place, their densities beside it, and where more of it is."""

from typing import Any

import numpy as np
from qtpy.QtWidgets import QCheckBox

from cryoscan.hits import Candidate, Region
from napari_plugin._asking import Answer, links
from napari_plugin._widgets.parts import Panel, fill, heading, note, table, theme_colours

_SHOWN = 20  # look-alikes


class AskWidget(Panel):
    """Ask what is at a place.

    Parameters
    ----------
    napari_viewer : napari.Viewer
    """

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__(napari_viewer)
        self.click = self.button(
            "Ask by clicking",
            "While this is on, a click into the volume asks what is there (or press Q over it)",
            self._toggle,
            checkable=True,
        )
        self.verdict = note("Press Q over a protein, or turn on asking by clicking.")
        self.candidates = table(["#", "type", "name", "cosine", "from"], stretch=2)
        self.candidates.setMinimumHeight(210)
        self.candidates.itemSelectionChanged.connect(self._on_candidate)
        self.about = note()
        self.docked = QCheckBox("docked")
        self.docked.setToolTip("Turn and move the density to fit (takes a few seconds)")
        self.compare = self.button("Compare", "Show the density of the candidate at this place", self._preview)
        self.rename = self.button("Rename hit", "The selected hit is of this type", self._rename)
        self.more = self.button(
            "Find more like this", "Which places of the scan look like what was clicked", self.controller.find_alike
        )
        self.alike = table(["place", "type", "name", "alike"], stretch=2)
        self.alike.setMinimumHeight(130)
        self.alike.cellClicked.connect(self._go)
        self.column.addWidget(self.click)
        self.column.addWidget(self.verdict)
        self.column.addWidget(self.candidates)
        self.column.addWidget(self.about)
        self.row(self.compare, self.docked, self.rename)
        self.column.addWidget(heading("More of it"))
        self.column.addWidget(self.more)
        self.column.addWidget(self.alike)
        self.column.addStretch()
        asking = self.controller.asking
        self.hear(asking.asked, lambda text: self.verdict.setText(text))
        self.hear(asking.answered, self._show)
        self.hear(asking.previewed, self._show_previewed)
        self.hear(asking.alike, self._show_alike)
        self.hear(asking.failed, lambda error: self.verdict.setText(str(error)))
        self._likeness: list[int] = []
        if asking.answer is not None:
            self._show(asking.answer)

    @property
    def candidate(self) -> Candidate | None:
        """The candidate that is selected, the first if none is."""
        answer = self.controller.asking.answer
        if answer is None or not answer.region.candidates:
            return None
        row = max(self.candidates.currentRow(), 0)
        return answer.region.candidates[min(row, len(answer.region.candidates) - 1)]

    def _toggle(self) -> None:
        self.canvas.clicks_ask = self.click.isChecked()

    def _show(self, answer: Answer) -> None:
        region, review = answer.region, self.controller.review
        place, scan = review.place_at(region.centre), ""
        if place is not None and review.sharpened:  # what is asked here is the volume as it is
            name = review.places.hits.names[place]
            scan = f"<br>The scan, of the sharpened volume: {name}. {review.without_sharpening(place)}"
        self.verdict.setText(f"{_verdict(region)}{scan}")
        fill(self.candidates, ((c.rank, c.type, c.name, c.cosine, c.pdb or c.entry) for c in region.candidates))
        self.candidates.selectRow(0)

    def _on_candidate(self) -> None:
        candidate = self.candidate
        if candidate is None:
            return
        ink = theme_colours(self.viewer)[0].name()  # underlined; a blue is pale on one of the two grounds
        web = " · ".join(
            f'<a style="color: {ink}" href="{address}">{name}</a>' for name, address in links(candidate).items()
        )
        tree = " › ".join(candidate.hierarchy)
        self.about.setText(f"{tree}<br>Representative {candidate.entry} ({candidate.length} residues) {web}")

    def _preview(self) -> None:
        if self.candidate is not None:
            self.controller.asking.preview(self.candidate, docked=self.docked.isChecked())

    def _rename(self) -> None:
        candidate = self.candidate
        if candidate is not None:
            if not self.controller.review.selection:
                self.controller.said.emit("warning", "No hit is selected: click one, or step to it with K and J.")
            self.controller.review.retype(candidate.scheme, candidate.type, candidate.name)

    def _show_previewed(self, _: object, words: str) -> None:
        answer = self.controller.asking.answer
        self.verdict.setText(f"{_verdict(answer.region)}<br>{words}" if answer is not None else words)

    def _show_alike(self, similarity: np.ndarray) -> None:
        review = self.controller.review
        if review.found is None or len(similarity) != review.compared.sum():
            return
        hits = review.places.hits  # what was drawn by hand comes last, and is not compared
        self._likeness = np.argsort(-similarity)[:_SHOWN].tolist()
        rows = ((i + 1, hits.types[i], hits.names[i], float(similarity[i])) for i in self._likeness)
        fill(self.alike, rows)
        self.verdict.setText("Places of the scan, the most alike first; click one to go there.")

    def _go(self, row: int, _: int) -> None:
        self.controller.review.select([self._likeness[row]])


def _verdict(region: Region) -> str:
    if not region.candidates:
        return "The database has nothing to compare this with."
    best = region.candidates[0]
    facts = f"cosine {best.cosine:.3f}, {region.margin:.3f} above the next type, {region.mass_kDa:.0f} kDa"
    sure = "" if region.confidence is None else f", right with a probability of {min(region.confidence, 0.99):.0%}"
    if region.verdict == "unknown":
        why = "the volume is too coarse to tell domains apart" if not region.resolved else f"{facts}{sure}"
        return f"<b>Unknown.</b> The best candidate is {best.name} ({why})."
    return f"<b>{best.name}</b>{sure} ({facts})."

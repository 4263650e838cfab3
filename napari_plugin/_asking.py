"""Questions about places: what is this, where is more of it, and what are the parts of this map."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from psygnal import Signal

from cryoscan.hits import Candidate, Region
from cryoscan.io import VolumeFile
from cryoscan.labels import LabelMap
from cryoscan.units import Angstrom, Box, Vector
from cryoscan.volume import Volume
from napari_plugin import _tasks
from napari_plugin._background import Background, StoppedError
from napari_plugin._tasks import Sample


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What is at a place.

    Parameters
    ----------
    file : VolumeFile
        Of the volume that was asked about.
    region : Region
    mask : bool array, `z y x`
        The voxels that were compared, within `box`.
    box : Box
        Of the volume.
    """

    file: VolumeFile
    region: Region
    mask: np.ndarray
    box: Box


class Asking:
    """Questions go to a process that keeps the database open; of several that wait the last counts.

    Parameters
    ----------
    background : Background
    """

    asked = Signal(str)
    """A sentence about what is being looked for."""
    answered = Signal(object)
    """An `Answer`."""
    previewed = Signal(object, str)
    """Density of a candidate (None where there is none), and what to say about it."""
    alike = Signal(object)
    """Similarity of every place of the scan to what was asked about, `n`."""
    projected = Signal(object)
    """Places in a plane, `n 2`."""
    sampled = Signal(object)
    """A `Sample` of the lattice in a plane, or None where that of another scan goes."""
    sample_selected = Signal()
    segmented = Signal(object, float)
    """`LabelMap` of the groups of a map, and the threshold taken."""
    progressed = Signal(int, int)
    mapped = Signal(object)
    """`Identification` of a whole map."""
    ready = Signal(str)
    failed = Signal(object)

    def __init__(self, background: Background) -> None:
        self._background = background
        self.answer: Answer | None = None
        self.this: int | Vector | None = None
        """What was pointed at last: a place of the scan by its index, or any position in Å."""
        self.datedb: Path | None = None
        self.sample: Sample | None = None
        self.sample_selection: tuple[int, ...] = ()

    def warm_up(self) -> None:
        """Open the database, so that the first question is answered as fast as the others."""
        self._run(_tasks.warm_up, self.datedb, done=self.ready.emit, kind="warm up")

    def what_is(
        self, file: VolumeFile, position: Vector, *, resolution: Angstrom | None = None, scheme: str | None = None
    ) -> None:
        """Ask what is at a place of a volume."""
        self.this = position
        self.asked.emit("Looking what is there …")

        def done(place: Any) -> None:
            self._answer(Answer(file, place.region, place.mask, place.box))

        self._run(_tasks.name_at, file, position, self.datedb, resolution, scheme, done=done, kind="ask")

    def what_is_region(
        self, file: VolumeFile, box: Box, mask: np.ndarray, *, resolution: Angstrom | None = None
    ) -> None:
        """Ask what a region is (Mode 1): its mask within a box of the volume."""
        self.asked.emit("Looking what the region is …")

        def done(region: Region) -> None:
            self.this = region.centre
            self._answer(Answer(file, region, mask, box))

        self._run(_tasks.name_region, file, box, mask, self.datedb, resolution, done=done, kind="ask")

    def preview(self, candidate: Candidate, *, docked: bool) -> None:
        """Ask for the density of a candidate at the place of the last answer."""
        answer = self.answer
        if answer is None:
            return
        if not docked:
            at = answer.region.centre
            self._run(
                _tasks.preview, candidate, self.datedb, at, done=lambda v: self._previewed(candidate, v), kind="preview"
            )
            return
        self.asked.emit("Docking …")
        self._run(
            _tasks.docked_preview,
            candidate,
            self.datedb,
            answer.file,
            answer.box,
            answer.mask,
            answer.region.resolution,
            done=lambda found: self._docked(candidate, found),
            kind="preview",
        )

    def find_alike(self, scan: Path, this: int | Vector) -> None:
        """Ask how alike all places of a scan are to one of them, or to what is at a position in Å."""
        self.asked.emit("Comparing all places with this one …")

        def done(similarity: np.ndarray) -> None:
            self.alike.emit(similarity.reshape(-1))

        what, query = (_tasks.alike, [this]) if isinstance(this, int) else (_tasks.alike_at, this)
        self._run(what, scan, self.datedb, query, done=done, kind="alike")

    def project(self, scan: Path, places: list[int], method: str) -> None:
        """Ask for a plane in which places that are alike lie close together."""
        self.asked.emit("Comparing all places with each other …")
        self._run(_tasks.projected, scan, self.datedb, places, method, done=self.projected.emit, kind="project")

    def sample_lattice(self, scan: Path, count: int, method: str) -> None:
        """Ask for a plane in which points of the lattice that are alike lie close together."""
        self.asked.emit("Comparing points of the lattice with each other …")
        self._run(_tasks.sampled, scan, self.datedb, count, method, done=self._sampled, kind="project")

    def select_sample(self, numbers: Iterable[int]) -> None:
        """Point out some points of the sample."""
        self.sample_selection = tuple(int(number) for number in numbers)
        self.sample_selected.emit()

    def forget_sample(self) -> None:
        """There is another scan now."""
        if self.sample is not None:
            self._sampled(None)

    def segment(
        self, file: VolumeFile, *, threshold: float | None, step: float | None, steps: int, resolution: float | None
    ) -> None:
        """Ask into which groups a map falls."""

        def done(found: tuple[LabelMap, float]) -> None:
            self.segmented.emit(*found)

        self._run(_tasks.segmented, file, threshold, step, steps, resolution, done=done, kind="segment")

    def name_map(
        self, file: VolumeFile, *, threshold: float | None, step: float | None, steps: int, resolution: float | None
    ) -> None:
        """Ask what the parts of a whole map are (Mode 2)."""
        from cryoscan.workflows import Identification

        self.asked.emit("Naming the parts of the map …")

        def event(what: Any) -> None:
            if isinstance(what, Identification):
                self.mapped.emit(what)
            else:
                self.progressed.emit(what.done, what.total)

        self._run(_tasks.name_map, file, self.datedb, resolution, threshold, step, steps, event=event, kind="map")

    def _run(self, function: Any, *arguments: Any, done: Any = lambda _: None, event: Any = None, kind: str) -> None:
        self._background.run(
            function,
            *arguments,
            on_done=done,
            on_event=event or (lambda _: None),
            on_error=self._on_error,
            kind=kind,
        )

    def _sampled(self, sample: Sample | None) -> None:
        self.sample, self.sample_selection = sample, ()
        self.sampled.emit(sample)

    def _answer(self, answer: Answer) -> None:
        self.answer = answer
        self.answered.emit(answer)

    def _previewed(self, candidate: Candidate, volume: Volume | None) -> None:
        words = f"{candidate.name}, as it lies in the database" if volume is not None else _no_preview(candidate)
        self.previewed.emit(volume, words)

    def _docked(self, candidate: Candidate, found: tuple[Volume, float] | None) -> None:
        if found is None:
            self.previewed.emit(None, _no_preview(candidate))
        else:
            self.previewed.emit(found[0], f"{candidate.name}, docked: correlation {found[1]:.2f} inside its envelope")

    def _on_error(self, error: BaseException) -> None:
        if not isinstance(error, StoppedError):
            self.failed.emit(error)


def _no_preview(candidate: Candidate) -> str:
    return f"The database keeps no density of {candidate.type} {candidate.name}; only its largest types have one."


def links(candidate: Candidate) -> dict[str, str]:
    """Where the web says more about a candidate: name → address."""
    found = {}
    if candidate.pdb:
        found["PDB"] = f"https://www.rcsb.org/structure/{candidate.pdb}"
    if candidate.scheme == "CATH":
        found["CATH"] = f"https://www.cathdb.info/version/latest/superfamily/{candidate.type}"
    elif candidate.scheme == "SCOPe":
        found["SCOPe"] = f"https://scop.berkeley.edu/sccs={candidate.type}"
    return found

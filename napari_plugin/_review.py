"""A finished scan as people look at it: which places are shown and named, what was changed, what is selected."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from psygnal import Signal

from cryoscan.batch import write_recipe
from cryoscan.errors import CryoscanError, FormatError
from cryoscan.labels import LabelClass
from cryoscan.lattice import LatticePoints, open_points
from cryoscan.redrawn import Redrawing, Reviewed, last_redrawing, review
from cryoscan.scan import (
    Change,
    Corrected,
    FoundPlaces,
    Journal,
    ScanConfig,
    ScanResult,
    TypeThresholds,
    open_scan,
    place_numbers,
    read_found,
)
from cryoscan.units import Vector
from cryoscan.volume import Volume

_NOTHING: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
_PALER = 0.55
"""How much white the colour of a selected place gets."""


@dataclass(frozen=True, slots=True)
class TypeRow:
    """A line of the legend; hits are unsafe where sharpening changed their label."""

    scheme: str
    type: str
    name: str
    colour: tuple[int, int, int]
    count: int
    visible: bool
    unsafe: int


class Review:
    """The state of a scan under review; every change of it ends in `changed`."""

    opened = Signal()
    """Another scan, or other regions; `changed` follows."""
    changed = Signal()
    """Thresholds, corrections, or what is visible."""
    selected = Signal()
    failed = Signal(object)

    def __init__(self) -> None:
        self.result: ScanResult | None = None
        self.found: FoundPlaces | None = None
        """All places, those that were drawn by hand too."""
        self.journal: Journal | None = None
        self.redrawing: Redrawing | None = None
        self.numbers: Volume | None = None
        """Number of the place of every voxel, where places were cut out and are painted."""
        self.lattice: LatticePoints | None = None
        """Which lattice point speaks for every voxel, where places are not cut out and that is painted."""
        self.config = ScanConfig()
        self.hidden: set[tuple[str, str]] = set()
        self.fade = True
        self.selection: tuple[int, ...] = ()
        self._scanned: FoundPlaces | None = None
        self._painted: Volume | None = None
        self._said = ""
        self._corrected: Corrected | None = None

    # ------------------------------------------------------------ open

    def open(self, path: Path) -> bool:
        """Open a finished scan; says through `failed` what is wrong if it cannot be."""
        try:
            result = open_scan(path)
            found = read_found(result)
            journal = Journal(path / "journal.jsonl")
            painted, lattice = place_numbers(result), open_points(result)
        except (CryoscanError, OSError) as error:
            self.failed.emit(error)
            return False
        self.result, self._scanned, self.journal = result, found, journal
        self._painted, self.lattice = painted, lattice
        self.config, self.hidden, self.selection = found.config, set(), ()
        self._draw(self._last_redrawing())
        self._update()
        self.opened.emit()
        self.changed.emit()
        return True

    def repainted(self) -> None:
        """The regions of the places are painted now."""
        if self.result is not None:
            self._painted, self.lattice = place_numbers(self.result), open_points(self.result)
            self._draw(self.redrawing)
            self.opened.emit()
            self.changed.emit()

    @property
    def places(self) -> Corrected:
        """All places after thresholds and corrections."""
        if self._corrected is None:
            raise FormatError("expected an open scan", got="none", hint="Scan a volume, or open a .scan folder.")
        return self._corrected

    @property
    def painted(self) -> bool:
        """Whether the regions can be shown under any thresholds."""
        return self.numbers is not None or self.lattice is not None

    @property
    def reviewed(self) -> Reviewed | None:
        """The scan after all that people did to it, as exports have it; None if none is open."""
        if self.result is None or self.found is None:
            return None
        return Reviewed(self.result, self.found, self.places, self.redrawing, self.lattice)

    @property
    def datedb(self) -> Path | None:
        """The database of the scan."""
        own = None if self.result is None else self.result.manifest.get("datedb")
        return None if own is None else Path(own)

    # ------------------------------------------------------------ thresholds

    def tune(self, type_: str | None = None, **values: Any) -> None:
        """Change thresholds, of all types or of one; None = the scan's own."""
        if self.found is None:
            return
        settings = self.config.model_dump(mode="json")
        if type_ is None:
            settings |= values
        else:
            own = {**((settings["per_type"] or {}).get(type_) or {}), **values}
            per_type = {**(settings["per_type"] or {}), type_: TypeThresholds.build(**own).model_dump()}
            settings["per_type"] = {key: v for key, v in per_type.items() if any(x is not None for x in v.values())}
            settings["per_type"] = settings["per_type"] or None
        self.config = ScanConfig.build(**settings)
        self._changed()

    def untune(self) -> None:
        """Back to the scan's own thresholds."""
        if self.found is not None:
            self.config = self.found.config
            self._changed()

    @property
    def tuned(self) -> dict[str, Any]:
        """Thresholds that differ from the scan's own, as `relabel` takes them."""
        if self.found is None:
            return {}
        now, before = self.config.model_dump(mode="json"), self.found.config.model_dump(mode="json")
        return {key: now[key] for key in now if now[key] != before[key]}

    @property
    def threshold(self) -> float:
        """The cosine from which on places are named."""
        assert self.found is not None
        return self.found.threshold if self.config.min_score is None else self.config.min_score

    def save_recipe(self, path: Path, *, overwrite: bool = False) -> None:
        """Write settings and thresholds as a file for other volumes."""
        write_recipe(self.config, path, overwrite=overwrite)

    # ------------------------------------------------------------ what is shown

    def legend(self) -> list[TypeRow]:
        """A line per type that is named, most frequent first."""
        hits = self.places.answer
        counts: dict[tuple[str, str], int] = {}
        names: dict[tuple[str, str], str] = {}
        for scheme, type_, name in zip(hits.schemes, hits.types, hits.names, strict=True):
            counts[scheme, type_] = counts.get((scheme, type_), 0) + 1
            names[scheme, type_] = name
        unsafe = self.places.hits.select(self.places.kept & self.unsafe)
        doubted = Counter(zip(unsafe.schemes, unsafe.types, strict=True))
        rows = [
            TypeRow(
                s, t, names[s, t], LabelClass(names[s, t], t, s).colour, n, (s, t) not in self.hidden, doubted[s, t]
            )
            for (s, t), n in counts.items()
        ]
        return sorted(rows, key=lambda row: (-row.count, row.type))

    def show_type(self, scheme: str, type_: str, visible: bool) -> None:
        """Show or hide a type."""
        (self.hidden.discard if visible else self.hidden.add)((scheme, type_))
        self.changed.emit()

    def show_only(self, keys: Iterable[tuple[str, str]] | None) -> None:
        """Show some types only; None = all."""
        shown = None if keys is None else set(keys)
        every = {(row.scheme, row.type) for row in self.legend()}
        self.hidden = set() if shown is None else every - shown
        self.changed.emit()

    def set_fade(self, fade: bool) -> None:
        """Whether a place is the fainter the less sure its name is."""
        self.fade = fade
        self.changed.emit()

    @property
    def shown(self) -> np.ndarray:
        """Which places are hits and of a visible type, `n` bool."""
        places = self.places
        keys = zip(places.hits.schemes, places.hits.types, strict=True)
        return places.kept & np.array([key not in self.hidden for key in keys], bool).reshape(len(places.hits))

    @property
    def compared(self) -> np.ndarray:
        """Which places have a vector in the scan, `n` bool; new regions that were drawn by hand have none."""
        assert self.found is not None
        return np.asarray(self.found.tile >= 0)

    @property
    def sharpened(self) -> bool:
        """Whether the scan sharpened its volume."""
        return self.found is not None and self.found.changed is not None

    @property
    def unsafe(self) -> np.ndarray:
        """Which places have another label, or one or none only, because the scan sharpened; `n` bool."""
        assert self.found is not None
        return np.zeros(len(self.found), bool) if self.found.changed is None else self.found.changed

    def without_sharpening(self, place: int) -> str:
        """A sentence about what a place is called in the volume as it is; empty where the scan did not ask."""
        if self.found is None or self.found.plain is None:
            return ""
        drawn = () if self.redrawing is None else self.redrawing.regions
        if any(region.number == place + 1 and not region.sharpened for region in drawn):
            return (
                "This region was drawn by hand and looked at without sharpening only, as the network with which the "
                "scan sharpened, or the volume, was not at hand."
            )
        if not self.unsafe[place]:
            return "Without sharpening the label is the same."
        plain = self.found.plain[place]
        like = "nothing" if plain is None else f"{plain[1]} {plain[2]} (cosine {plain[3]:.3f})"
        return f"⚠ Sharpening changed this label: without it the place looks most like {like}. Neither answer is safe."

    def sureness(self) -> np.ndarray:
        """How sure the names are, 0 … 1, `n`: their confidence, or else their cosine."""
        assert self.found is not None
        sure = self.found.hits.scores if self.found.confidence is None else self.found.confidence
        said = np.array(self.places.status, dtype="U8")
        return np.where(said == "accepted", 1.0, np.clip(sure, 0, 1))

    def colours(self) -> dict[int | None, tuple[float, float, float, float]]:
        """Colour of every place by its number, counted from 1; places that are not shown have none."""
        colours: dict[int | None, tuple[float, float, float, float]] = {None: _NOTHING, 0: _NOTHING}
        hits, sure = self.places.hits, self.sureness()
        for place, shown in enumerate(self.shown):
            chosen = place in self.selection
            if shown or chosen:
                paler = _PALER if chosen else 0.0
                meaning = LabelClass(hits.names[place], hits.types[place], hits.schemes[place])
                red, green, blue = (paler + (1 - paler) * part / 255 for part in meaning.colour)
                alpha = 0.25 + 0.75 * float(sure[place]) if self.fade and not chosen else 1.0
                colours[place + 1] = (red, green, blue, alpha)
            else:
                colours[place + 1] = _NOTHING
        return colours

    def labels_of_points(self) -> np.ndarray:
        """Label of every lattice point now, by its number."""
        assert self.lattice is not None
        assert self.found is not None
        return self.lattice.table(self.found, self.places, self.config)

    def colours_of_labels(self) -> dict[int | None, tuple[float, float, float, float]]:
        """Colour of every label of lattice points; types that are hidden have none."""
        assert self.lattice is not None
        assert self.result is not None
        colours: dict[int | None, tuple[float, float, float, float]] = {None: _NOTHING, 0: _NOTHING}
        for label, meaning in self.lattice.classes(self.result, self.places).items():
            red, green, blue = (part / 255 for part in meaning.colour)
            shown = (meaning.scheme, meaning.type) not in self.hidden
            colours[label] = (red, green, blue, 1.0) if shown else _NOTHING
        return colours

    def place_at(self, position: Vector) -> int | None:
        """Index of the place, if it is shown, to which a position in Å belongs."""
        numbers = self.numbers if self.lattice is None else self.lattice.numbers
        if numbers is None:
            return None
        index = np.rint(numbers.to_index(position)).astype(int)
        if (index < 0).any() or (index >= numbers.shape).any():
            return None
        z, y, x = index.tolist()
        number = int(np.asarray(numbers.data[z : z + 1, y : y + 1, x : x + 1]).item())
        place = number - 1 if number == 0 or self.lattice is None else int(self.lattice.place[number - 1])
        return place if place >= 0 and self.shown[place] else None

    # ------------------------------------------------------------ selection

    def select(self, places: Sequence[int]) -> None:
        """Select some places by their index; it is what accept and reject are about."""
        self.selection = tuple(int(place) for place in places)
        self.selected.emit()

    def select_next(self, step: int = 1) -> None:
        """Select the next place that is shown, or the one before."""
        shown = np.flatnonzero(self.shown)
        if len(shown):
            now = self.selection[-1] if self.selection else (-1 if step > 0 else len(self.shown))
            later = shown[shown > now] if step > 0 else shown[shown < now][::-1]
            self.select([later[0] if len(later) else (shown[0] if step > 0 else shown[-1])])

    # ------------------------------------------------------------ corrections

    def accept(self) -> None:
        """The selected places are what they are named."""
        self._note("accept")

    def reject(self) -> None:
        """The selected places are not what they are named, and no hits."""
        self._note("reject")

    def retype(self, scheme: str, type_: str, name: str) -> None:
        """The selected places are of another type."""
        self._note("retype", scheme=scheme, type=type_, name=name)

    def undo(self) -> Change | None:
        """Take back the last change."""
        if self.journal is None:
            return None
        try:
            undone = self.journal.undo()
        except CryoscanError as error:
            self.failed.emit(error)
            return None
        self._changed()
        return undone

    def note_labels(self, note: str, positions: Iterable[Vector] = ()) -> bool:
        """Write down that labels were drawn by hand and saved; in the scan's own folder they count from now on.

        Gives whether it could be written.
        """
        if self.journal is None:
            return False
        try:
            self.journal.add("labels", positions, note=note)
        except CryoscanError as error:
            self.failed.emit(error)
            return False
        self._changed()
        return True

    def _note(self, what: Any, **about: str) -> None:
        if self.journal is None or self.found is None or not self.selection:
            return
        positions = self.found.hits.positions[list(self.selection)]
        try:
            self.journal.add(what, [tuple(place) for place in positions], **about)
        except CryoscanError as error:
            self.failed.emit(error)
            return
        self._changed()

    def _last_redrawing(self) -> Redrawing | None:
        """What was drawn and stands; where it cannot be read, that is said once and the scan's regions stay."""
        assert self.result is not None
        assert self.journal is not None
        try:
            return last_redrawing(self.result, self.journal.standing(), self.redrawing)
        except CryoscanError as error:
            if str(error) != self._said:
                self._said = str(error)
                self.failed.emit(error)
            return None

    def _draw(self, redrawing: Redrawing | None) -> None:
        """What the regions are from now on."""
        self.redrawing = redrawing
        self.numbers = self._painted if redrawing is None else redrawing.numbers

    def _update(self) -> None:
        assert self._scanned is not None
        assert self.journal is not None
        self.found, self._corrected = review(self._scanned, self.journal.standing(), self.redrawing, self.config)

    def _changed(self) -> None:
        """Thresholds or the journal are others now; the regions too, if something was drawn or undone."""
        redrawing = self._last_redrawing()
        drawn = redrawing is not self.redrawing
        self._draw(redrawing)
        self._update()
        if drawn:
            self.selection = tuple(place for place in self.selection if place < len(self.places.hits))
            self.opened.emit()
        self.changed.emit()

"""What people changed about a scan: who, when and what, and what the answer is after it.

Nothing in the journal is ever removed: to undo is one more line. A change names the place it is about
by its position, so it stays right when the scan is named again under other thresholds.
"""

import csv
import getpass
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from scipy.spatial import cKDTree

from cryoscan.errors import FormatError, ResourceError, refuse_existing
from cryoscan.hits import Hits
from cryoscan.io import open_labels
from cryoscan.labels import LabelClass, LabelMap, looked_up
from cryoscan.provenance import write_atomically
from cryoscan.scan.found import FoundPlaces, read_found
from cryoscan.scan.result import ScanResult
from cryoscan.scan.review import place_numbers
from cryoscan.units import Angstrom, Vector

What: TypeAlias = Literal["accept", "reject", "retype", "labels", "undo"]
"""Kinds of changes: `labels` is a label volume that was drawn by hand and saved."""

_SAME_PLACE: Angstrom = 2.0


@dataclass(frozen=True, slots=True)
class Change:
    """One line of the journal.

    Parameters
    ----------
    number : int
        From 1.
    what : str
    positions : tuple of (z, y, x) in Å
        Of the places that it is about.
    type, scheme, name : str
        What they are from now on (`retype`).
    undoes : int
        Number of the change that this one takes back (`undo`).
    note : str
        E.g. the file of `labels`.
    who, time : str
    """

    number: int
    what: What
    positions: tuple[Vector, ...] = ()
    type: str = ""
    scheme: str = ""
    name: str = ""
    undoes: int = 0
    note: str = ""
    who: str = ""
    time: str = ""


class Journal:
    """The changes that were made to a scan, kept in its folder.

    Parameters
    ----------
    path : Path
        ``name.scan/journal.jsonl``; need not exist.

    Raises
    ------
    FormatError
        If the file is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._changes = _read(path)

    def __len__(self) -> int:
        return len(self._changes)

    def __repr__(self) -> str:
        return f"Journal({len(self)} changes, {len(self.standing())} of them stand)"

    @property
    def changes(self) -> tuple[Change, ...]:
        """All changes, oldest first."""
        return tuple(self._changes)

    def standing(self) -> tuple[Change, ...]:
        """Changes that were not undone, oldest first."""
        gone = {change.undoes for change in self._changes if change.what == "undo"}
        return tuple(c for c in self._changes if c.what != "undo" and c.number not in gone)

    def add(self, what: What, positions: Iterable[Sequence[float]] = (), **about: Any) -> Change:
        """Write down a change.

        Raises
        ------
        ResourceError
            If the scan's folder cannot be written.
        """
        places = tuple((float(z), float(y), float(x)) for z, y, x in positions)
        time = datetime.now(UTC).isoformat(timespec="seconds")
        change = Change(len(self) + 1, what, places, who=_user(), time=time, **about)
        lines = [json.dumps(asdict(c), ensure_ascii=False) for c in (*self._changes, change)]
        try:
            write_atomically(self.path, "\n".join(lines) + "\n")
        except OSError as error:
            raise ResourceError(
                f"expected to write the journal {self.path}",
                got=error.strerror or str(error),
                hint="Copy the scan to a folder where you may write, and correct it there.",
            ) from error
        self._changes.append(change)
        return change

    def undo(self) -> Change | None:
        """Take back the last change that stands, and return it; None if there is none."""
        standing = self.standing()
        if not standing:
            return None
        self.add("undo", standing[-1].positions, undoes=standing[-1].number)
        return standing[-1]


@dataclass(frozen=True, slots=True, eq=False)
class Corrected:
    """Places of a scan after what people said of them.

    Parameters
    ----------
    hits : Hits
        All places, in the order of `FoundPlaces`, with the types that they have now.
    kept : bool array, `n`
        Which of them are hits: those that the thresholds name and nobody rejected, and those that were accepted.
    status : tuple of str, `n`
        ``accepted``, ``rejected``, or empty.
    """

    hits: Hits
    kept: np.ndarray
    status: tuple[str, ...]

    @property
    def answer(self) -> Hits:
        """The hits alone, best first."""
        return self.hits.select(self.kept)


def corrected(found: FoundPlaces, named: np.ndarray, changes: Iterable[Change]) -> Corrected:
    """What the places of a scan are after some changes.

    Parameters
    ----------
    found : FoundPlaces
    named : bool array, `n`
        Which of them the thresholds name.
    changes : iterable of Change
        That stand (`Journal.standing`), oldest first.
    """
    hits, status = found.hits, [""] * len(found)
    labels, types, schemes, names = hits.labels.copy(), list(hits.types), list(hits.schemes), list(hits.names)
    known = {key: number for number, key in enumerate(found.types, start=1)}
    tree = cKDTree(hits.positions) if len(found) else None
    for change in changes:
        for place in _places_of(change, tree):
            if change.what == "accept":
                status[place] = "accepted"
            elif change.what == "reject":
                status[place] = "rejected"
            elif change.what == "retype":
                key = change.scheme, change.type
                labels[place] = known.setdefault(key, len(known) + 1)
                schemes[place], types[place], names[place] = change.scheme, change.type, change.name
                status[place] = "accepted"
    said = np.array(status, dtype="U8")
    kept = (named | (said == "accepted")) & (said != "rejected")
    changed = replace(hits, labels=labels, types=types, schemes=schemes, names=names)
    return Corrected(changed, kept, tuple(status))


def corrected_result(result: ScanResult) -> Corrected:
    """The places of a scan after its thresholds and its journal."""
    found = read_found(result)
    return corrected(found, found.named(), Journal(result.path / "journal.jsonl").standing())


def corrected_labels(result: ScanResult) -> LabelMap:
    """Domain type per voxel after the journal, lazily.

    Raises
    ------
    FormatError
        If the regions of the places were not painted yet.
    """
    answer, numbers = corrected_result(result), place_numbers(result)
    if numbers is None:
        raise FormatError(
            f"expected the regions of all places of {result.path}",
            got="a scan that nobody has looked at in the viewer yet",
            hint="Open it in napari once, or export without corrections.",
        )
    known = open_labels(result.path / "labels.zarr").classes
    table, classes = np.zeros(len(answer.hits) + 1, np.uint16), dict(known)
    for place in np.flatnonzero(answer.kept):
        hits = answer.hits
        meaning = LabelClass(hits.names[place], hits.types[place], hits.schemes[place])
        label = int(hits.labels[place])
        classes[label] = meaning
        table[place + 1] = label
    return LabelMap(looked_up(numbers, table), classes)


def write_changes_csv(changes: Iterable[Change], path: Path, *, overwrite: bool = False) -> None:
    """Write changes as comma-separated values, one line per change and place; positions in Å."""
    if path.suffix.lower() != ".csv":
        raise FormatError("expected the journal to end in .csv", got=path.name, hint="Give it the name journal.csv.")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    about = ("number", "time", "who", "what", "scheme", "type", "name", "undoes", "note")
    writer.writerow([*about, "x_angstrom", "y_angstrom", "z_angstrom"])
    for change in changes:
        for place in change.positions or ((None, None, None),):
            writer.writerow([*(getattr(change, key) or "" for key in about), *reversed(place)])
    write_atomically(refuse_existing(path, overwrite=overwrite), text.getvalue())


def _places_of(change: Change, tree: cKDTree | None) -> list[int]:
    """Indices of the places that a change is about; a scan that was made anew may lack some."""
    if tree is None or not change.positions:
        return []
    distance, index = tree.query(np.array(change.positions))
    return [int(i) for d, i in zip(distance, index, strict=True) if d <= _SAME_PLACE]


def _read(path: Path) -> list[Change]:
    if not path.is_file():
        return []
    changes = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            values = json.loads(line)
            values["positions"] = tuple((float(z), float(y), float(x)) for z, y, x in values["positions"])
            changes.append(Change(**values))
        except (ValueError, TypeError, KeyError) as error:
            raise FormatError(
                f"expected one change per line in {path}",
                got=f"line {number}: {type(error).__name__}",
                hint="Move the file away to start a new journal; the scan itself is not touched by it.",
            ) from error
    return changes


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # nobody: a container without users
        return "unknown"

"""Regions of a finished scan that people drew anew, and the scan's answer with them.

A redrawing is a line of the journal (`labels`) that names a volume in the scan's folder: the number of the
place that each voxel belongs to, as `place_numbers` gives it, with all that was painted, erased, merged
and split. The last one that stands counts, so to undo the line is to undo the drawing. What nobody
touched stays as it was, for thresholds and corrections too; a region that somebody drew is a hit,
because somebody said so, until it is rejected.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from cryoscan.errors import FormatError
from cryoscan.hits import Hits
from cryoscan.io import open_labels, write_labels
from cryoscan.labels import LabelClass, LabelMap, looked_up
from cryoscan.lattice import LatticePoints, open_points
from cryoscan.scan import (
    Change,
    Corrected,
    FoundPlaces,
    Journal,
    ScanConfig,
    ScanResult,
    corrected,
    corrected_labels,
    place_numbers,
    read_found,
)
from cryoscan.units import Vector
from cryoscan.volume import Volume

_FOLDER = "edited"


@dataclass(frozen=True, slots=True)
class DrawnRegion:
    """A region as somebody drew it.

    Parameters
    ----------
    number : int
        Of its place, from 1: those of the scan come first, then those that are new.
    position : (z, y, x) in Å
    volume_A3 : float
    name, type, scheme, entry : str
        What it is called; a type of its own where it looks like nothing that is known.
    score, margin : float
        As of `Hits`; 0 where the volume could not be asked.
    confidence : float, optional
    alternatives : tuple
        Scheme, type, name and cosine of what it looks like most, best first.
    sharpened : bool
        Whether it was looked at as the scan looks at its places where it sharpens: named in the sharpened volume, and
        asked about once more in the volume as it is.
    plain : tuple, optional
        Scheme, type, name and cosine of what it then looks like as it is; None for nothing.
    changed : bool
        Whether the two answers differ; neither is safe then.
    """

    number: int
    position: Vector
    volume_A3: float
    name: str
    type: str = ""
    scheme: str = ""
    entry: str = ""
    score: float = 0.0
    margin: float = 0.0
    confidence: float | None = None
    alternatives: tuple[tuple[str, str, str, float], ...] = ()
    sharpened: bool = False
    plain: tuple[str, str, str, float] | None = None
    changed: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Redrawing:
    """What was drawn anew, all in all.

    Parameters
    ----------
    path : Path
        Label image with its coarser levels.
    change : int
        Number of its line in the journal.
    numbers : Volume
        Number of the place of every voxel.
    regions : tuple of DrawnRegion
        Those that are not as the scan cut them out.
    erased : frozenset of int
        Numbers of places that are gone.
    """

    path: Path
    change: int
    numbers: Volume
    regions: tuple[DrawnRegion, ...]
    erased: frozenset[int]


@dataclass(frozen=True, slots=True, eq=False)
class Reviewed:
    """A finished scan after all that people did to it.

    Parameters
    ----------
    result : ScanResult
    found : FoundPlaces
        What there is to choose from: the places of the scan, then regions that are new.
    places : Corrected
        The same after thresholds and corrections.
    redrawing : Redrawing, optional
    lattice : LatticePoints, optional
        Whose labels these are, where the embedder cuts no places out.
    """

    result: ScanResult
    found: FoundPlaces
    places: Corrected
    redrawing: Redrawing | None = None
    lattice: LatticePoints | None = None

    @property
    def numbers(self) -> Volume | None:
        """Number of the place, from 1, of every voxel; None if nobody has painted them yet."""
        return place_numbers(self.result) if self.redrawing is None else self.redrawing.numbers

    def labels(self) -> LabelMap:
        """Domain type per voxel, lazily.

        Raises
        ------
        FormatError
            If the regions of the places were not painted yet.
        """
        if self.lattice is not None:
            return self.lattice.labels(self.result, self.lattice.table(self.found, self.places), self.places)
        if self.redrawing is None:
            return corrected_labels(self.result)
        hits, kept = self.places.hits, np.flatnonzero(self.places.kept)
        classes = dict(self.result.labels().classes)
        table = np.zeros(len(hits) + 1, np.uint16)
        for place in kept.tolist():
            label = int(hits.labels[place])
            classes[label] = LabelClass(hits.names[place], hits.types[place], hits.schemes[place])
            table[place + 1] = label
        return LabelMap(looked_up(self.redrawing.numbers, table), classes)


def reviewed(result: ScanResult) -> Reviewed:
    """A finished scan after its thresholds, its journal, and what was drawn.

    Raises
    ------
    FormatError
        If the scan is unfinished, or what was drawn belongs to other places.
    """
    changes = Journal(result.path / "journal.jsonl").standing()
    found, redrawing = read_found(result), last_redrawing(result, changes)
    return Reviewed(result, *review(found, changes, redrawing), redrawing, open_points(result))


def changed(result: ScanResult) -> Reviewed | None:
    """A finished scan that somebody has corrected; None if all is as it was scanned. Raises as `reviewed` does."""
    return reviewed(result) if Journal(result.path / "journal.jsonl").standing() else None


def last_redrawing(result: ScanResult, changes: Sequence[Change], known: Redrawing | None = None) -> Redrawing | None:
    """The drawing that counts after some changes that stand; None if there is none.

    Parameters
    ----------
    result : ScanResult
    changes : sequence of Change
    known : Redrawing, optional
        One that was opened before; it is given back if it is the one.

    Raises
    ------
    FormatError
        If it is missing or damaged, or was made upon other places than the scan has now.
    """
    change = _last(result, changes)
    if change is None:
        return None
    path = result.path / change.note
    if known is not None and (known.path, known.change) == (path, change.number):
        return known
    try:
        about: Any = zarr.open_group(path, mode="r").attrs["redrawn"]
        regions = tuple(_region(values) for values in about["regions"])
        erased, digest = frozenset(int(number) for number in about["erased"]), about["places"]
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise FormatError(
            f"expected regions that were drawn in {path}",
            got=f"nothing readable ({type(error).__name__})",
            hint=f"Put the folder back, or export the scan without corrections ({change.note} is change "
            f"{change.number} of its journal).",
        ) from error
    if digest != read_found(result).digest:
        raise FormatError(
            f"expected the places upon which {path} was drawn",
            got="others: the scan was named anew with another DateDB or distance of hits",
            hint="Name it again as it was, or export it without corrections.",
        )
    return Redrawing(path, change.number, open_labels(path).volume, regions, erased)


def review(
    found: FoundPlaces, changes: Iterable[Change], redrawing: Redrawing | None, config: ScanConfig | None = None
) -> tuple[FoundPlaces, Corrected]:
    """Places of a scan with those that were drawn, and all of them after thresholds and changes.

    Parameters
    ----------
    found : FoundPlaces
        Of the scan.
    changes : iterable of Change
        That stand, oldest first; those before the drawing are about the scan's places, later ones about the drawn.
    redrawing : Redrawing, optional
    config : ScanConfig, optional
        Thresholds in place of the scan's own.
    """
    changes, named = list(changes), found.named(config)
    if redrawing is None:
        return found, corrected(found, named, changes)
    first = corrected(found, named, [c for c in changes if c.number < redrawing.change])
    everything, called = _extended(found, redrawing, found.hits), _extended(found, redrawing, first.hits)
    more = len(everything) - len(found)
    drawn = np.zeros(len(everything), bool)
    drawn[[region.number - 1 for region in redrawing.regions]] = True
    erased = np.zeros(len(everything), bool)
    erased[[number - 1 for number in redrawing.erased]] = True
    named = np.concatenate([named, np.zeros(more, bool)])
    last = corrected(called, named, [c for c in changes if c.number > redrawing.change])
    status = tuple(
        said or ("accepted" if mine else before)
        for said, mine, before in zip(last.status, drawn, (*first.status, *[""] * more), strict=True)
    )
    said = np.array(status, dtype="U8")
    kept = (named | (said == "accepted")) & (said != "rejected") & ~erased
    return everything, Corrected(last.hits, kept, status)


def write_redrawing(
    result: ScanResult, numbers: Volume, regions: Sequence[DrawnRegion], erased: Iterable[int]
) -> tuple[str, tuple[Vector, ...]]:
    """Keep a drawing in the folder of its scan; it counts from the line in the journal on that names it.

    Parameters
    ----------
    result : ScanResult
    numbers : Volume
        Number of the place of every voxel of the scanned volume.
    regions : sequence of DrawnRegion
    erased : iterable of int

    Returns
    -------
    str, tuple of positions
        What that line says: its note, and where the regions are.
    """
    folder = result.path / _FOLDER
    folder.mkdir(exist_ok=True)
    number = 1 + max((int(p.stem) for p in folder.glob("*.zarr") if p.stem.isdecimal()), default=0)
    path = write_labels(LabelMap(numbers, {}), folder / f"{number}.zarr")
    about = {
        "places": read_found(result).digest,
        "regions": [asdict(region) for region in regions],
        "erased": sorted(erased),
    }
    zarr.open_group(path, mode="r+").attrs["redrawn"] = about
    return f"{_FOLDER}/{path.name}", tuple(region.position for region in regions)


# ---------------------------------------------------------------- private


def _last(result: ScanResult, changes: Sequence[Change]) -> Change | None:
    """The last change that names a drawing; labels that were saved elsewhere are none."""
    mine = [c for c in changes if c.what == "labels" and Path(c.note).parent == Path(_FOLDER)]
    return mine[-1] if mine else None


def _region(values: Mapping[str, Any]) -> DrawnRegion:
    z, y, x = values["position"]
    alternatives = tuple(_candidate(one) for one in values["alternatives"])
    plain = (
        None if values.get("plain") is None else _candidate(values["plain"])
    )  # drawings of earlier versions say none
    position = float(z), float(y), float(x)
    return DrawnRegion(**{**values, "position": position, "alternatives": alternatives, "plain": plain})


def _candidate(values: Sequence[Any]) -> tuple[str, str, str, float]:
    scheme, type_, name, cosine = values
    return str(scheme), str(type_), str(name), float(cosine)


def _extended(found: FoundPlaces, redrawing: Redrawing, hits: Hits) -> FoundPlaces:
    """Places of a scan, called as in `hits`, with what was drawn: some are others now, some are new."""
    drawn = {region.number: region for region in redrawing.regions}
    more = max([len(found), *drawn, *redrawing.erased]) - len(found)
    called = [LabelClass(n, t, s) for n, t, s in zip(hits.names, hits.types, hits.schemes, strict=True)]
    called += [LabelClass("erased")] * more
    entries, alternatives = [*hits.entries, *[""] * more], [*found.alternatives, *[()] * more]
    sure = np.zeros(len(found)) if found.confidence is None else found.confidence
    position, volume, confidence, score, margin = (
        np.concatenate([values, np.zeros((more, *values.shape[1:]))])
        for values in (hits.positions, found.volume_A3, sure, hits.scores, hits.margins)
    )
    for number, region in drawn.items():
        row = number - 1
        position[row], volume[row], confidence[row] = region.position, region.volume_A3, region.confidence or 0.0
        score[row], margin[row], alternatives[row] = region.score, region.margin, region.alternatives
        called[row], entries[row] = LabelClass(region.name, region.type, region.scheme), region.entry
    plain = None if found.plain is None else [*found.plain, *[None] * more]
    changed = None if found.changed is None else np.concatenate([found.changed, np.zeros(more, bool)])
    if plain is not None and changed is not None:
        for number in redrawing.erased:
            plain[number - 1], changed[number - 1] = None, False
        for number, region in drawn.items():
            plain[number - 1], changed[number - 1] = region.plain, region.changed
    labels = {key: label for label, key in enumerate(found.types, start=1)}
    keys = [(meaning.scheme, meaning.type or meaning.name) for meaning in called]
    numbers = [labels.setdefault(key, len(labels) + 1) for key in keys]
    wider = Hits(
        position,
        np.array(numbers, hits.labels.dtype),
        [meaning.type for meaning in called],
        [meaning.scheme for meaning in called],
        [meaning.name for meaning in called],
        entries,
        score,
        margin,
    )
    nowhere = np.full(more, -1)
    return replace(
        found,
        hits=wider,
        volume_A3=volume,
        confidence=None if found.confidence is None else confidence,
        alternatives=tuple(alternatives),
        plain=None if plain is None else tuple(plain),
        changed=changed,
        types=tuple(labels),
        tile=np.concatenate([found.tile, nowhere]),
        region=np.concatenate([found.region, nowhere]),
    )

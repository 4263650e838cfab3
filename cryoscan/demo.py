"""The demo: a crowded volume of known content, scanned, exported and compared with what was put in."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cryoscan.datedb import DateDB, open_datedb
from cryoscan.datedb.build import embedder_for
from cryoscan.datedb.previews import read_previews
from cryoscan.errors import FormatError, ResourceError
from cryoscan.export import Section, Table, hits_table, slices_figure, write_hits_csv, write_report, write_star
from cryoscan.hits import Hits
from cryoscan.io import VolumeFile, open_volume, write_labels, write_volume
from cryoscan.metrics import match_points, precision_recall_f1
from cryoscan.scan import (
    LabelsPainted,
    PlacesNamed,
    ScanConfig,
    ScanFinished,
    ScanResult,
    TileDone,
    plan_scan,
    run_scan,
)
from cryoscan.testing import crowded_volume
from cryoscan.units import Angstrom, Vector

RIGHT_WITHIN: Angstrom = 15.0
"""A hit closer than this to a planted place has found it."""

CAVEAT = (
    "What is planted are entries of the database itself, at its own resolution, in mild noise: an easy case. "
    "It shows how cryoscan works, not how well."
)
"""What must be said beside the numbers."""

_N, _SHAPE = 24, (64, 88, 104)  # planted; voxels, neither cubic nor at the origin, as real volumes
_VOXEL_SIZE, _ORIGIN = 2.7, (-40.0, 120.0, 35.5)
_NOISE = 0.2  # of the density's own standard deviation
_LARGEST = 40  # types to choose from: the well-populated ones


@dataclass(frozen=True, slots=True)
class StepDone:
    """Event: a step of the journey and what came of it."""

    name: str
    seconds: float
    text: str


@dataclass(frozen=True, slots=True)
class PlantedDomain:
    """One domain that was put in (position z, y, x in Å), and what was found there."""

    type: str
    scheme: str
    name: str
    entry: str
    position: Vector
    found: str = "nothing"


@dataclass(frozen=True, slots=True)
class DemoResult:
    """Event: the end; `placed` hits lie at a planted place, `named` ones have its type as well."""

    planted: tuple[PlantedDomain, ...]
    found: Hits
    placed: int
    named: int
    seconds: dict[str, float]
    outputs: tuple[str, ...]

    @property
    def scores(self) -> tuple[float, float, float]:
        """Precision, recall and F1 of place and name together."""
        return precision_recall_f1(len(self.found), len(self.planted), self.named)

    def to_json(self) -> dict[str, Any]:
        """JSON-able, positions x, y, z; the keys are fixed."""
        precision, recall, f1 = self.scores
        hits = self.found
        found = zip(hits.types, hits.schemes, hits.names, hits.entries, hits.positions, strict=True)
        return {
            "planted": len(self.planted),
            "found": len(hits),
            "recall": round(recall, 4),
            "precision": round(precision, 4),
            "f1": round(f1, 4),
            "found_regardless_of_name": self.placed,
            "seconds": round(sum(self.seconds.values()), 2),
            "seconds_per_step": {name: round(value, 2) for name, value in self.seconds.items()},
            "outputs": list(self.outputs),
            "planted_domains": [
                {**_domain(item.type, item.scheme, item.name, item.entry, item.position), "found": item.found}
                for item in self.planted
            ],
            "found_domains": [
                {**_domain(*item), "score": round(float(score), 4)}
                for item, score in zip(found, hits.scores, strict=True)
            ],
            "caveat": CAVEAT,
        }


def run_demo(
    folder: Path, *, seed: int = 0
) -> Iterator[StepDone | TileDone | PlacesNamed | LabelsPainted | DemoResult]:
    """Walk the journey; everything is written into `folder`, earlier outputs there are replaced."""
    clock = _Clock()
    _make(folder)
    db = open_datedb(None)
    planted = _plant(db, folder / "volume.mrc", seed)
    yield clock.done("volume", f"{len(planted)} domains of known type in {folder / 'volume.mrc'}")
    source = VolumeFile(folder / "volume.mrc")
    config = ScanConfig.build(resolution_A=read_previews(db)[0].resolution)
    plan = plan_scan(source.open(), datedb=db, embedder=embedder_for(db), config=config, source=source)
    yield clock.done("preflight", " ".join(plan.preflight.warnings) or "the volume can be scanned")
    for event in run_scan(plan, folder / "demo.scan", overwrite=True):
        if isinstance(event, TileDone | PlacesNamed | LabelsPainted):
            yield event
        elif isinstance(event, ScanFinished):
            result = event.result
    yield clock.done("scan", f"{len(result.hits)} hits")
    outputs = [*_export(result, folder), str(folder / "report.html")]
    yield clock.done("export", "labels as MRC and OME-Zarr, hits as STAR and CSV")
    planted, placed, named = compare(planted, result.hits)
    answer = DemoResult(tuple(planted), result.hits, placed, named, clock.seconds, tuple(outputs))
    _report(answer, result, folder)
    yield clock.done("report", str(folder / "report.html"))
    yield answer


def demo_volume(path: Path, *, seed: int = 0) -> list[PlantedDomain]:
    """Write the demo's volume, and say what is in it.

    Raises
    ------
    FormatError
        If the shipped DateDB has no previews.
    """
    return _plant(open_datedb(None), path, seed)


def compare(planted: Sequence[PlantedDomain], hits: Hits) -> tuple[list[PlantedDomain], int, int]:
    """What was found at each planted place, the hits at a planted place, and those of its type as well."""
    places = np.array([item.position for item in planted]).reshape(-1, 3)
    pairs = match_points(hits.positions, places, RIGHT_WITHIN)
    there = {int(j): f"{hits.types[i]} {hits.names[i]}" for i, j in pairs}
    named = 0
    for key in {(item.scheme, item.type) for item in planted}:
        mine = [i for i in range(len(hits)) if (hits.schemes[i], hits.types[i]) == key]
        same = [j for j, item in enumerate(planted) if (item.scheme, item.type) == key]
        named += len(match_points(hits.positions[mine], places[same], RIGHT_WITHIN))
    return [replace(item, found=there.get(j, "nothing")) for j, item in enumerate(planted)], len(pairs), named


def _plant(db: DateDB, path: Path, seed: int) -> list[PlantedDomain]:
    """Plant some of the database's previews, chosen by the seed, and write the volume."""
    previews = read_previews(db)
    if not previews:
        raise FormatError(
            "expected a DateDB with previews", got=f"none in {db.path}", hint="Install cryoscan again: data is missing."
        )
    chosen = np.random.default_rng(seed).permutation(min(len(previews), _LARGEST))[:_N]
    densities = [previews[i].volume for i in chosen]
    volume, places = crowded_volume(
        densities, n=_N, shape=_SHAPE, voxel_size=_VOXEL_SIZE, origin=_ORIGIN, noise=_NOISE, seed=seed
    )
    write_volume(volume, path, overwrite=True)
    entries = [previews[chosen[place.index]].entry for place in places]
    return [
        PlantedDomain(entry.type, entry.scheme, db.name(entry.scheme, entry.type), entry.id, place.position)
        for entry, place in zip(entries, places, strict=True)
    ]


def _export(result: ScanResult, folder: Path) -> list[str]:
    labels = result.labels()
    for name in ("labels.mrc", "labels.zarr"):
        write_labels(labels, folder / name, overwrite=True)
    write_star(result.hits, folder / "hits.star", volume=result.grid, tomogram_name="demo", overwrite=True)
    write_hits_csv(result.hits, folder / "hits.csv", volume=result.grid, overwrite=True)
    return [
        str(folder / name) for name in ("volume.mrc", "demo.scan", "labels.mrc", "labels.zarr", "hits.star", "hits.csv")
    ]


def _report(answer: DemoResult, result: ScanResult, folder: Path) -> None:
    volume = open_volume(folder / "volume.mrc")
    precision, recall, f1 = answer.scores
    rows = tuple(
        (item.type, item.name, *(f"{value:.0f}" for value in reversed(item.position)), item.found)
        for item in answer.planted
    )
    compared = Table(("type", "name", "x (Å)", "y (Å)", "z (Å)", "found there"), rows)
    picture = slices_figure(volume, result.labels(), result.hits, caption="Slices, labels in colour, hits as circles.")
    write_report(
        folder / "report.html",
        title="cryoscan demo",
        summary={
            "planted": len(answer.planted),
            "found": len(answer.found),
            f"found within {RIGHT_WITHIN:g} Å, whatever the name": answer.placed,
            "of these with the right type": answer.named,
            "recall, precision, F1 (place and type)": f"{recall:.2f}, {precision:.2f}, {f1:.2f}",
        },
        sections=[
            Section("Slices", (CAVEAT, picture)),
            Section("Planted, and what was found there", (compared,)),
            Section("Hits", (hits_table(result.hits),)),
        ],
        overwrite=True,
    )


def _domain(type_: str, scheme: str, name: str, entry: str, position: Iterable[float]) -> dict[str, Any]:
    position_xyz = [round(float(value), 2) for value in position][::-1]
    return {"type": type_, "scheme": scheme, "name": name, "entry": entry, "position_xyz": position_xyz}


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(
            f"expected to make the folder {folder}",
            got=error.strerror or str(error),
            hint="Give a folder where you may write: -o FOLDER.",
        ) from error


class _Clock:
    """Seconds of each step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def done(self, name: str, text: str) -> StepDone:
        now = time.monotonic()
        self.seconds[name], self._last = now - self._last, now
        return StepDone(name, self.seconds[name], text)

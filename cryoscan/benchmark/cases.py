"""A few domains of experimental maps, from density to docked candidates: cases to look at, and no statistics."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import replace as replaced
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from cryoscan.benchmark.config import BenchmarkConfig, Case
from cryoscan.benchmark.folders import ModelledMap, modelled_maps
from cryoscan.benchmark.real_maps import soft_weights
from cryoscan.benchmark.result import BenchmarkProgress, BenchmarkResult, Table, decimals
from cryoscan.datedb import DateDB
from cryoscan.datedb.sources import structures_of_folder
from cryoscan.dock import Docking
from cryoscan.embedding import Embedder
from cryoscan.errors import ConfigError, MissingFileError
from cryoscan.filters import lowpass_gaussian
from cryoscan.hits import Candidate
from cryoscan.io import open_volume, parse_ranges, read_structure
from cryoscan.simulate import density
from cryoscan.structure import Domain, Structure
from cryoscan.units import SIGMA_PER_RESOLUTION, Angstrom
from cryoscan.volume import Volume
from cryoscan.workflows import RegionMask, dock_candidates, identify

RADIUS: Angstrom = 3.0
"""Around the domain's atoms, within which density is kept."""

_LISTED = 100  # candidates among which the true type is looked for
_DOCKED = 3  # first candidates that are docked, beside the best one of the true type
_MARGIN: Angstrom = 12.0  # of map around the domain


@dataclass(frozen=True, slots=True, eq=False)
class CaseSeen:
    """A case as it can be drawn.

    Parameters
    ----------
    name, truth : str
    part : Volume
        The map about the domain, outside the mask 0.
    docked : tuple of (str, Volume)
        Densities of what was docked, on the same grid: what it is, and how well it correlates.
    """

    name: str
    truth: str
    part: Volume
    docked: tuple[tuple[str, Volume], ...]


def run_cases(
    config: BenchmarkConfig, asked: Path, *, data: Path | None, datedb: DateDB, embedder: Embedder
) -> Iterator[BenchmarkProgress | BenchmarkResult]:
    """Name domains cut out of experimental maps, dock what is proposed, and draw it; see `run_benchmark`."""
    if not config.cases:
        raise ConfigError("expected cases", got="none", hint="Name them under `cases:`, as configs/benchmark does.")
    sources, _ = modelled_maps(asked)
    structure_of = structures_of_folder(data or asked)
    details, seen = [], []
    for done, case in enumerate(config.cases, start=1):
        part, mask, model = _cut_out(case, sources)
        source = next(source for source in sources if source.name == case.map)
        resolution = case.resolution_A or source.resolution
        answer = identify(
            part,
            [RegionMask(1, mask)],
            datedb=datedb,
            embedder=embedder,
            resolution=resolution,
            top=_LISTED,
            schemes=[case.type.split(" ")[0]],
        )
        region = answer.regions[0]
        rank = next((one.rank for one in region.candidates if _is(one, case.type)), None)
        wanted = [one for one in region.candidates if one.rank <= _DOCKED or one.rank == rank]
        records, pictures = [], []
        for event in dock_candidates(part, mask, replaced(region, candidates=tuple(wanted)), structure_of=structure_of):
            records.append(_record(event.candidate, event.docking, right=_is(event.candidate, case.type)))
            if event.docking is not None:
                label = f"{event.candidate.rank}. {event.candidate.type}, {event.docking.cc_box:.2f}"
                pictures.append((label, _density(event.docking.structure, part, region.resolution)))
        own = _density(model, part, region.resolution).load()
        name = f"{case.map} {case.residues or 'all'}:{case.chain}"
        details.append(
            {
                "case": name,
                "type": case.type,
                "resolution": resolution,
                "rank": rank,
                "confidence": region.confidence,
                "named": region.verdict == "named",
                "cc_box_deposited": float(np.corrcoef(own.ravel(), (part.load() * mask).ravel())[0, 1]),
                "candidates": records,
            }
        )
        masked = Volume(part.load() * mask, part.voxel_size, part.origin)
        seen.append(CaseSeen(name, f"{case.type}, {resolution or 0:g} Å", masked, tuple(pictures)))
        yield BenchmarkProgress("cases", done, len(config.cases))
    if config.pictures is not None:
        draw_cases(seen, config.pictures / "cases.png")
    first = [detail["rank"] == 1 for detail in details]
    numbers: dict[str, Any] = {"cases.n": len(details), "cases.first": sum(first), "cases.details": details}
    yield BenchmarkResult(numbers, (_table(details),), ("Cases were chosen beforehand, to be looked at.",))


def draw_cases(cases: Sequence[CaseSeen], picture: Path) -> None:
    """One row for each case: the map summed along z, then what was docked into it."""
    from matplotlib.figure import Figure

    columns = 1 + max(len(case.docked) for case in cases)
    figure = Figure(figsize=(2.3 * columns, 2.5 * len(cases)), layout="constrained")
    grid = figure.subplots(len(cases), columns, squeeze=False)
    for row, case in zip(grid, cases, strict=True):
        shown = [(f"{case.name}\n{case.truth}", case.part), *case.docked]
        for axes, (title, volume) in zip(row, shown, strict=False):
            values = np.clip(volume.load(), 0, None).sum(axis=0)
            axes.imshow(values, cmap="gray_r", origin="lower", vmin=0, vmax=max(float(values.max()), 1e-12))
            axes.set_title(title, fontsize=6)
        for axes in row:
            axes.axis("off")
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=110)


# ---------------------------------------------------------------- private


def _cut_out(case: Case, sources: Sequence[ModelledMap]) -> tuple[Volume, np.ndarray, Structure]:
    """The map about a domain, its mask there, and the domain's model."""
    source = next((source for source in sources if source.name == case.map), None)
    if source is None:
        raise MissingFileError(
            f"expected the map {case.map} with its model",
            got=", ".join(source.name for source in sources),
            hint="Mend `cases:`, or give the data that they are of.",
        )
    volume = open_volume(source.map_path, voxel_size=source.voxel_size).loaded()
    model = read_structure(source.model_path).protein()
    if case.residues:
        scheme, _, type_ = case.type.partition(" ")
        segments = parse_ranges(",".join(f"{part}:{case.chain}" for part in case.residues.split(",")))
        model = model.select(model.atoms_of(Domain(case.map, scheme, type_, segments)))
    else:
        model = model.select(model.chains == case.chain)
    reach = np.abs(model.positions - model.positions.mean(axis=0)).max() + _MARGIN
    centre = model.positions.mean(axis=0)
    low = np.clip(np.floor(volume.to_index(centre - reach)), 0, volume.shape).astype(int)
    high = np.clip(np.ceil(volume.to_index(centre + reach)) + 1, 0, volume.shape).astype(int)
    z, y, x = (slice(int(start), int(stop)) for start, stop in zip(low, high, strict=True))
    part = volume.crop((z, y, x)).loaded()
    if case.resolution_A is not None:
        finest = source.resolution or 0.0
        sigma = SIGMA_PER_RESOLUTION * float(np.sqrt(max(0.0, case.resolution_A**2 - finest**2)))
        part = Volume(
            lowpass_gaussian(part.load(), voxel_size=part.voxel_size, sigma=sigma), part.voxel_size, part.origin
        )
    places = part.to_position(np.indices(part.shape).reshape(3, -1).T)
    near, _ = cKDTree(model.positions).query(places, distance_upper_bound=10.0)
    return part, soft_weights(near.reshape(part.shape), RADIUS), model


def _density(structure: Structure, part: Volume, resolution: Angstrom) -> Volume:
    grid = {"voxel_size": part.voxel_size, "shape": part.shape, "origin": part.origin}
    return density(structure, resolution=max(resolution, 1.8 * part.voxel_size), **grid)  # type: ignore[arg-type]


def _is(candidate: Candidate, type_: str) -> bool:
    return f"{candidate.scheme} {candidate.type}" == type_


def _record(candidate: Candidate, docking: Docking | None, *, right: bool) -> dict[str, Any]:
    return {
        "rank": candidate.rank,
        "type": f"{candidate.scheme} {candidate.type}",
        "name": candidate.name,
        "entry": candidate.entry,
        "right": right,
        "cc_mask": float("nan") if docking is None else docking.cc_mask,
        "cc_box": float("nan") if docking is None else docking.cc_box,
    }


def _table(details: Sequence[Mapping[str, Any]]) -> Table:
    rows = []
    for detail in details:
        about = (detail["case"], f"{detail['resolution'] or 0:g}", detail["type"], str(detail["rank"] or "–"))
        for record in detail["candidates"]:
            right = " ✓" if record["right"] else ""
            said = f"{record['rank']}. {record['type']} ({record['name']}, {record['entry']}){right}"
            rows.append((*about, said, decimals(record["cc_mask"]), decimals(record["cc_box"])))
            about = ("", "", "", "")
    columns = ("case", "Å", "is", "rank", "docked", "CC_mask", "CC_box")
    return Table("Domains of experimental maps, and the candidates docked into them", columns, tuple(rows))

"""What the process beside the viewer does: opens files, calls the workflows, gives back small values.

Nothing here is science. Each function is one call of the library, with its inputs opened from the
paths that crossed the process border; databases stay open between calls.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cryoscan.hits import Candidate, Hits, Region
from cryoscan.io import VolumeFile
from cryoscan.labels import LabelClass, LabelMap
from cryoscan.units import Angstrom, Box, Vector
from cryoscan.volume import Volume
from napari_plugin._copies import (
    PlanesCompared,
    Regrouped,
    Renumbered,
    Shared,
    differences,
    merging,
    splitting,
    write_copy,
)
from napari_plugin._sources import Painted

if TYPE_CHECKING:
    from cryoscan.datedb import DateDB, Entry
    from cryoscan.embedding import Embedder
    from cryoscan.scan import LabelsPainted, ScanConfig, ScanEvent, ScanPlan, ScanResult
    from cryoscan.workflows import Identification, IdentifiedPlace, Redrawn, RegionsScored

_HITS_EVERY = 2.0  # seconds between looks at what an unfinished scan has found


@dataclass(frozen=True, slots=True)
class ScanRequest:
    """A scan as the user wants it.

    Parameters
    ----------
    file : VolumeFile
    output : Path
        ``name.scan``.
    datedb : Path, optional
        The shipped one otherwise.
    config : ScanConfig
    outline : float array, `n 2`, optional
        Corners of what is to be scanned, y and x in Å, over all planes.
    mask : Path or Painted, optional
        Where to look: a file on the same grid, above 0 there, or what is painted in the viewer.
    overwrite : bool
    """

    file: VolumeFile
    output: Path
    config: "ScanConfig"
    datedb: Path | None = None
    outline: np.ndarray | None = None
    mask: Path | Painted | None = None
    overwrite: bool = False


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a scan will do and need.

    Parameters
    ----------
    facts : tuple of (str, str)
        Name and value.
    warnings : tuple of str
    possible : bool
        Whether the volume resolves what the database needs.
    """

    facts: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]
    possible: bool


@dataclass(frozen=True, slots=True, eq=False)
class Planned:
    """Event: a scan begins or goes on; the lattice of its scores exists from now on."""

    output: Path


@dataclass(frozen=True, slots=True, eq=False)
class SoFar:
    """Event: what an unfinished scan has found until now."""

    hits: Hits


def mask_path(output: Path) -> Path:
    """Where the mask of a scan is kept that was painted in the viewer."""
    return output.with_name(f"{output.stem}.mask.zarr")


def warm_up(datedb: Path | None) -> str:
    """Open a database and search it once, so that the first question is answered as fast as the others."""
    from cryoscan.datedb.build import closer_look

    db, embedder = _database(datedb)
    db, embedder = closer_look(db, embedder)
    edge = embedder.window
    db.similarities(embedder.embed(np.random.default_rng(0).random((1, edge, edge, edge), np.float32)))
    return repr(db)


def outlook(request: ScanRequest) -> Outlook:
    """Look at a volume and try a few tiles, without writing anything."""
    from cryoscan.io import describe
    from cryoscan.scan.tile import probe_speed

    plan = _plan(request)
    speed = probe_speed(plan, seconds=2.0) if plan.scannable and len(plan.active) else None
    look = plan.preflight
    lines = [line for line in plan.lines(speed=speed) if not line.startswith("warning")]
    facts = [(line[:11].strip(), line[11:]) for line in lines]
    sign = "protein bright" if look.skewness > 0 else "skewed to the dark side"
    facts.insert(1, ("contrast", f"{sign} (skewness {look.skewness:+.2f})"))
    facts.insert(
        2, ("resolution", f"{look.finest:.1f} Å, {'given' if look.resolution_known else 'from the voxel size'}")
    )
    facts.insert(3, ("embedder", type(plan.embedder).__name__ + _closer(plan)))
    if plan.mask is not None:
        facts.insert(4, ("mask", f"{_share(plan.mask):.1%} of the volume is looked at"))
    odd = describe(request.file.path).disagreement(request.file.voxel_size) if request.file.voxel_size else None
    return Outlook(tuple(facts), (*([odd] if odd else []), *look.warnings), plan.scannable)


def scan(request: ScanRequest) -> Iterator["Planned | SoFar | ScanEvent"]:
    """Scan a volume, or go on with it; at the end the regions of all places are painted for the viewer.

    What was painted as a mask is kept beside the scan, so that the scan can go on where the layer is gone.
    """
    from cryoscan.io import write_labels
    from cryoscan.scan import PlacesNamed, ScanFinished, hits_so_far, run_scan

    if isinstance(request.mask, Painted):
        kept = mask_path(request.output)
        write_labels(LabelMap(request.mask.on_grid_of(_whole(request.file)), {}), kept, overwrite=True)
        request = replace(request, mask=kept)
    plan = _plan(request)
    last = time.monotonic()
    begun = False
    for event in run_scan(plan, request.output, overwrite=request.overwrite):
        if not begun:
            yield Planned(request.output)
            begun = True
        if isinstance(event, ScanFinished):
            yield from paint(request.output, request.datedb)
        yield event
        if isinstance(event, PlacesNamed) and (event.done == event.total or time.monotonic() - last > _HITS_EVERY):
            yield SoFar(hits_so_far(plan, request.output))
            last = time.monotonic()


def relabel(path: Path, datedb: Path | None, settings: Mapping[str, Any], output: Path | None) -> Iterator["ScanEvent"]:
    """Name a finished scan again under other thresholds."""
    from cryoscan.scan import relabel as again

    db, embedder = _database(datedb)
    yield from again(path, datedb=db, embedder=embedder, settings=settings, output=output)


def paint(path: Path, datedb: Path | None) -> Iterator["LabelsPainted"]:
    """Paint the regions of all places of a scan, or where places are not cut out which lattice point speaks where."""
    from cryoscan.lattice import paint_points
    from cryoscan.scan import open_scan, paint_places

    db, embedder = _database(datedb)
    if embedder.needs_mask:
        yield from paint_places(open_scan(path), datedb=db, embedder=embedder)
    else:
        yield from paint_points(open_scan(path), datedb=db, embedder=embedder)


def alike(path: Path, datedb: Path | None, places: Sequence[int]) -> np.ndarray:
    """How alike some places of a scan are to all of them, `q n`."""
    from cryoscan.scan import likeness, open_scan

    db, embedder = _database(datedb)
    return likeness(open_scan(path), places, datedb=db, embedder=embedder)


def alike_at(path: Path, datedb: Path | None, position: Vector) -> np.ndarray:
    """How alike what is at a position is to all places of a scan, `n`."""
    from cryoscan.scan import likeness_at, open_scan

    db, embedder = _database(datedb)
    return likeness_at(open_scan(path), position, datedb=db, embedder=embedder)


def projected(path: Path, datedb: Path | None, places: Sequence[int], method: str) -> np.ndarray:
    """Places of a scan in a plane where those that are alike lie close together, `n 2`."""
    from cryoscan.scan import project

    similarity = alike(path, datedb, places)[:, list(places)]
    return project(similarity, method="umap" if method == "umap" else "pca")


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Some points of a scan's lattice, and where they lie in a plane.

    Parameters
    ----------
    positions : float array, `n 3`
        z, y, x in Å.
    meanings : tuple of LabelClass, `n`
    plane : float array, `n 2`
    """

    positions: np.ndarray
    meanings: tuple[LabelClass, ...]
    plane: np.ndarray


def sampled(path: Path, datedb: Path | None, count: int, method: str) -> Sample:
    """Some points of a scan's lattice in a plane where those that are alike lie close together."""
    from cryoscan.lattice import sample_lattice
    from cryoscan.scan import open_scan, project

    db, embedder = _database(datedb)
    sample = sample_lattice(open_scan(path), count, datedb=db, embedder=embedder)
    plane = project(sample.vectors @ sample.vectors.T, method="umap" if method == "umap" else "pca")
    return Sample(sample.positions, sample.meanings, plane)


def name_at(
    file: VolumeFile, position: Vector, datedb: Path | None, resolution: Angstrom | None, scheme: str | None
) -> "IdentifiedPlace":
    """Name what is at a place of a volume."""
    from cryoscan.workflows import identify_at

    db, embedder = _database(datedb)
    schemes = None if scheme is None else [scheme]
    return identify_at(file.open(), position, datedb=db, embedder=embedder, resolution=resolution, schemes=schemes)


def name_region(
    file: VolumeFile, box: Box, mask: np.ndarray, datedb: Path | None, resolution: Angstrom | None
) -> Region:
    """Name a region that was drawn or labelled: its mask within a box of the volume."""
    from cryoscan.workflows import RegionMask, identify

    db, embedder = _database(datedb)
    volume = file.open().crop(box)
    return identify(volume, [RegionMask(1, mask)], datedb=db, embedder=embedder, resolution=resolution).regions[0]


def segmented(
    file: VolumeFile, threshold: float | None, step: float | None, steps: int, resolution: Angstrom | None
) -> tuple[LabelMap, float]:
    """The groups into which a map falls at the last level, and the threshold that was taken."""
    from cryoscan.segment import contour_level, grouping_step, segment_map
    from cryoscan.windows import blurred

    volume = file.open().loaded()
    smooth = blurred(volume, resolution=resolution or 2 * volume.voxel_size, target=6.0).load()
    level = contour_level(smooth) if threshold is None else threshold
    tree = segment_map(smooth, threshold=level, step=step or grouping_step(volume.voxel_size), steps=steps)
    _, numbers = np.unique(tree.labels_at(-1), return_inverse=True)
    labels = numbers.reshape(volume.shape).astype(np.uint16)
    return LabelMap(Volume(labels, volume.voxel_size, volume.origin), {}), level


def name_map(
    file: VolumeFile,
    datedb: Path | None,
    resolution: Angstrom | None,
    threshold: float | None,
    step: float | None,
    steps: int,
) -> Iterator["RegionsScored | Identification"]:
    """Segment a whole map and name its parts."""
    from cryoscan.workflows import identify_map

    db, embedder = _database(datedb)
    yield from identify_map(
        file.open(),
        datedb=db,
        embedder=embedder,
        resolution=resolution,
        threshold=threshold,
        step=step,
        steps=steps,
    )


def preview(candidate: Candidate, datedb: Path | None, at: Vector) -> Volume | None:
    """The density of a candidate, its middle at a place; None where the database keeps none of its type."""
    found = _preview_of(candidate, datedb)
    if found is None:
        return None
    z, y, x = (o + p for o, p in zip(found.volume.origin, at, strict=True))
    return Volume(found.volume.load(), found.volume.voxel_size, (z, y, x))


def docked_preview(
    candidate: Candidate,
    datedb: Path | None,
    file: VolumeFile,
    box: Box,
    mask: np.ndarray,
    resolution: Angstrom,
) -> "tuple[Volume, float] | None":
    """The density of a candidate, turned and moved to fit a region, and its correlation there."""
    from cryoscan.dock import dock_density
    from cryoscan.segment import soft_mask
    from cryoscan.windows import blurred

    found = _preview_of(candidate, datedb)
    if found is None:
        return None
    target = max(found.resolution, resolution)
    part = blurred(file.open().crop(box).loaded(), resolution=resolution, target=target)
    weights = soft_mask(mask, voxel_size=part.voxel_size, width=3.0)
    placed = dock_density(part, found.volume, resolution=target, region_mask=weights)
    return placed.volume, placed.cc_mask


def export(path: Path, what: Mapping[str, Any]) -> list[str]:
    """Write the answer of a scan; see `export_scan`."""
    from cryoscan.scan import open_scan
    from cryoscan.workflows import export_scan

    return [str(file) for file in export_scan(open_scan(path), **what).files]


def copy_regions(path: Path, kept: np.ndarray, file: Path) -> None:
    """Copy the regions of some places of a scan to a file, for the viewer to edit."""
    from cryoscan.redrawn import reviewed
    from cryoscan.scan import open_scan

    numbers = reviewed(open_scan(path)).numbers
    assert numbers is not None
    write_copy(numbers, kept, file)


def redraw(
    path: Path, datedb: Path | None, drawn: Shared, known: frozenset[int], names: Mapping[int, LabelClass]
) -> "Iterator[PlanesCompared | Renumbered | RegionsScored | Redrawn]":
    """Let a scan follow an edited copy of its regions, and name those that changed; see `redraw_regions`."""
    from cryoscan.redrawn import reviewed
    from cryoscan.scan import open_scan
    from cryoscan.workflows import redraw_regions

    result = open_scan(path)
    now = reviewed(result)
    assert now.numbers is not None
    for event in differences(drawn.mapped(), now.numbers, len(now.found), known):
        if isinstance(event, PlanesCompared):
            yield event
            continue
        yield Renumbered.of(event)
        if len(event.voxels):
            db, embedder = _database(datedb)
            hits, called = known | set(event.new), {n: names[old] for n, old in event.new.items() if old in names}
            yield from redraw_regions(
                result, event.voxels, event.numbers, datedb=db, embedder=embedder, hits=hits, names=called
            )


def merge_regions(labels: Shared, wanted: Sequence[int]) -> "Iterator[PlanesCompared | Regrouped]":
    """What changes if regions of an edited layer become one."""
    yield from merging(labels.mapped(), wanted)


def divide_region(labels: Shared, seeds: np.ndarray, density: VolumeFile) -> "Iterator[PlanesCompared | Regrouped]":
    """What changes if a region of an edited layer is split between some voxels."""
    yield from splitting(labels.mapped(), seeds, density.open())


def save_labels(
    labels: Shared, voxel_size: Angstrom, origin: Vector, classes: Mapping[int, LabelClass], path: Path
) -> None:
    """Write an edited layer to a file of its own."""
    from cryoscan.io import write_labels

    write_labels(LabelMap(Volume(labels.mapped(), voxel_size, origin), dict(classes)), path, overwrite=True)


def add_to_datedb(path: Path, datedb: Path | None, regions: "Sequence[tuple[Entry, int]]", target: Path) -> str:
    """Write a database with regions of a scan (place numbers, from 1) as entries beside its own."""
    from cryoscan.datedb.own import add_regions
    from cryoscan.scan import open_scan

    db, _ = _database(datedb)
    result = open_scan(path)
    return repr(add_regions(db, _source(result), list(_masks(result, regions)), target, resolution=_resolution(result)))


# ---------------------------------------------------------------- private


def _database(path: Path | None) -> "tuple[DateDB, Embedder]":
    """A database and its embedder; the shipped one is the same by its path and by none."""
    from cryoscan.datedb.files import default_path

    return _opened((default_path() if path is None else path).resolve())


@lru_cache(maxsize=2)
def _opened(path: Path) -> "tuple[DateDB, Embedder]":
    from cryoscan.datedb import open_datedb
    from cryoscan.datedb.build import embedder_for

    db = open_datedb(path)
    return db, embedder_for(db)


def _plan(request: ScanRequest) -> "ScanPlan":
    from cryoscan.scan import plan_scan
    from cryoscan.segment import region_from_outline

    db, embedder = _database(request.datedb)
    volume, mask = request.file.open(), None
    if isinstance(request.mask, Painted):
        mask = request.mask.on_grid_of(volume)
    elif request.mask is not None:
        mask = VolumeFile(request.mask, request.file.voxel_size, "bright", request.file.z_range).open()
    elif request.outline is not None:
        inside = region_from_outline(volume, request.outline).astype(np.int8)
        mask = Volume(inside, volume.voxel_size, volume.origin)
    begun = None if request.overwrite else request.output
    return plan_scan(
        volume, datedb=db, embedder=embedder, config=request.config, source=request.file, mask=mask, folder=begun
    )


def _whole(file: VolumeFile) -> Volume:
    """The volume with all its planes: a mask is kept for all of them."""
    return replace(file, z_range=None).open()


def _closer(plan: "ScanPlan") -> str:
    """How places are named, where that is not by what searches."""
    naming = plan.naming[1]
    return "" if naming is plan.embedder else f", then {type(naming).__name__}"


def _share(mask: Volume) -> float:
    """Share of the voxels that are above 0."""
    return sum(int((np.asarray(mask.data[z, :, :]) > 0).sum()) for z in range(mask.shape[0])) / np.prod(mask.shape)


def _preview_of(candidate: Candidate, datedb: Path | None) -> Any:
    """The preview of an entry, or of another one of its type."""
    from cryoscan.datedb.previews import read_previews

    all_ = read_previews(_database(datedb)[0])
    mine = [p for p in all_ if (p.entry.scheme, p.entry.type) == (candidate.scheme, candidate.type)]
    return next((p for p in mine if p.entry.id == candidate.entry), mine[0] if mine else None)


def _source(result: "ScanResult") -> Volume:
    return VolumeFile.from_json(result.manifest["source"]).open()


def _resolution(result: "ScanResult") -> Angstrom:
    return float(result.manifest["planned"]["preflight"]["finest"])


def _masks(result: "ScanResult", regions: "Sequence[tuple[Entry, int]]") -> "Iterator[tuple[Entry, np.ndarray]]":
    from cryoscan.redrawn import reviewed

    numbers = reviewed(result).numbers
    assert numbers is not None
    data = np.asarray(numbers.data[:, :, :])
    for entry, number in regions:
        yield entry, data == number

"""The journeys a user makes, each a straight line through the packages: read this file first.

Build a DateDB     structures → simulated densities → embeddings → DateDB
Identify           region of a map → window → embedding → ranked domain types
Identify a map     map → watershed and grouping → every plausible region → best disjoint set
Ask again          map → sharpened map → the same regions → where the answer changes
Check              region and candidates → simulated densities → rigid docking → correlations
Identify at        place in a volume → the group of density that holds it → ranked domain types
Scan               volume → plan → blocks of windows → label volume and hits
Redraw             finished scan, and voxels that people gave to other regions → named regions → the scan's answer
Export             finished scan, and what people changed about it → files for other programs
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import scipy.ndimage

from cryoscan.datedb import LEVEL_NAMES, DateDB
from cryoscan.datedb.build import (
    DomainEmbedded,
    build_datedb,
    built_by,
    closer_look,
    structure_window,
    towers_of,
    with_strangers_reach,
)
from cryoscan.datedb.config import DateDBConfig
from cryoscan.datedb.previews import choose_representatives, write_previews
from cryoscan.datedb.sources import domains_of_store, names_of_store
from cryoscan.dock import Docking, dock
from cryoscan.embedding import Embedder
from cryoscan.enhance import enhanced
from cryoscan.errors import CryoscanError, FormatError, GeometryError, refuse_existing
from cryoscan.export import Convention, write_hits
from cryoscan.hits import Candidate, Region
from cryoscan.io import VolumeFile, write_labels
from cryoscan.labels import LabelClass, LabelMap
from cryoscan.models import InvariantEmbedder
from cryoscan.models.cryosamu import CryoSamu
from cryoscan.preflight import Preflight, inspect
from cryoscan.redrawn import DrawnRegion, Reviewed, changed, reviewed, write_redrawing
from cryoscan.scan import (
    Executor,
    Journal,
    ScanConfig,
    ScanEvent,
    ScanPlan,
    ScanResult,
    plan_scan,
    run_scan,
    write_changes_csv,
)
from cryoscan.scan.sharpening import Sharpening
from cryoscan.segment import STEPS, GroupingTree, best_disjoint, contour_level, grouping_step, segment_map, soft_mask
from cryoscan.simulate import atoms_from_trace, density, is_trace
from cryoscan.structure import Structure
from cryoscan.units import A3_PER_RESIDUE, Angstrom, Box, Vector
from cryoscan.volume import Volume
from cryoscan.windows import blurred, centre_of_mass, region_window, region_windows

RESIDUES = (40, 600)
"""Sizes of regions that may be one domain or one chain, in residues."""

_DOCKED_AT = 5.0  # Å; finer detail costs time and tells shapes apart no better
_SUPPORT = 50  # candidates that the margin and the roll-up look at
_EDGE = 3.0  # Å over which masks fall off
_ROOM = 20.0  # Å about a region that is asked about, for its soft edge and for blurring
_ALTERNATIVES = 5  # of a region that was drawn: as many as a scan keeps
_NEAR = 6.0  # Å from density that a pointing hand may be off
_ASSUMED = (3.5, 5.0, 6.5, 8.0)  # Å, tried where a map's resolution is not known


@dataclass(frozen=True, slots=True)
class RegionMask:
    """A region to identify: its label and its weights on the map's grid (`z y x`, bool or 0 … 1)."""

    id: int
    mask: np.ndarray


@dataclass(frozen=True, slots=True)
class RegionsScored:
    """Event: so many regions are embedded."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Identification:
    """Event: the end of an identification.

    Parameters
    ----------
    regions : tuple of Region
        Largest first for a whole map, in the order asked for otherwise.
    preflight : Preflight
    labels : LabelMap, optional
        The regions on the map's grid (whole map only).
    tree : GroupingTree, optional
        What the regions were chosen from (whole map only).
    nodes : tuple of int
        The node of `tree` that each region is.
    """

    regions: tuple[Region, ...]
    preflight: Preflight
    labels: LabelMap | None = None
    tree: GroupingTree | None = None
    nodes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class CandidateDocked:
    """Event: a candidate is docked; `docking` is None where its structure is not at hand."""

    done: int
    total: int
    candidate: Candidate
    docking: Docking | None


def identify(
    volume: Volume,
    regions: Sequence[RegionMask],
    *,
    datedb: DateDB,
    embedder: Embedder,
    resolution: Angstrom | None = None,
    top: int = 10,
    schemes: Sequence[str] | None = None,
    crowded: bool = False,
) -> Identification:
    """Name given regions of a map (CryoDomain's Mode 1).

    Parameters
    ----------
    volume : Volume
        Protein positive.
    regions : sequence of RegionMask
    datedb, embedder
        Must belong together.
    resolution : Angstrom, optional
        Of the map; several are tried where it is not known.
    top : int
        Number of candidates per region.
    schemes : sequence of str, optional
        Answer with types of these schemes only.
    crowded : bool
        Whether a region holds neighbours in contact that no mask cuts off: then it is compared with entries within
        their own envelopes too (`DateDB.seen`).

    Raises
    ------
    MismatchError
        If the DateDB was written by another embedder.
    GeometryError
        If a region holds no density.
    """
    datedb.require(embedder)
    datedb, embedder = closer_look(datedb, embedder)
    preflight = inspect(volume, resolution=resolution, coarsest=datedb.levels[-1])
    loaded = volume.loaded()
    answers = []
    dense: dict[float, np.ndarray] = {}  # resolution → what is density once the map is blurred to its bank
    cut_out = region_windows if datedb.matched else _one_window  # other vectors do not mind the middle
    for region in regions:
        soft = (
            soft_mask(region.mask, voxel_size=loaded.voxel_size, width=_EDGE)
            if region.mask.dtype == bool
            else region.mask
        )
        answer = _best_answer(
            loaded, region.id, soft, preflight, datedb, embedder, top, schemes, cut_out=cut_out, crowded=crowded
        )
        if answer.resolution not in dense:
            bank = datedb.bank_for(answer.resolution)
            smooth = blurred(loaded, resolution=answer.resolution, target=bank).load()
            dense[answer.resolution] = smooth > contour_level(smooth)
        inside = float(((soft > 0.5) & dense[answer.resolution]).sum())
        answers.append(replace(answer, volume_A3=inside * loaded.voxel_size**3))
    return Identification(tuple(answers), preflight)


def identify_map(
    volume: Volume,
    *,
    datedb: DateDB,
    embedder: Embedder,
    resolution: Angstrom | None = None,
    threshold: float | None = None,
    step: float | None = None,
    steps: int = STEPS,
    top: int = 10,
    schemes: Sequence[str] | None = None,
) -> Iterator[RegionsScored | Identification]:
    """Segment a whole map and name its parts (CryoDomain's Mode 2).

    The map is segmented by watershed and scale-space grouping (Segger; Pintilie et al.
    2010). Every node of the grouping tree of the volume of 40 to 600 residues is a
    candidate region, and the non-overlapping set with the highest volume-weighted cosine is
    kept.

    Parameters
    ----------
    threshold : float, optional
        Density from which on the map is segmented. Default: `contour_level` of the map,
        blurred to the database's resolution.
    step, steps
        Of the grouping: width of the Gaussian added per level in voxels, number of levels.
        Default: 12 levels of `grouping_step`, 1 Å each.
    """
    datedb.require(embedder)
    datedb, embedder = closer_look(datedb, embedder)
    preflight = inspect(volume, resolution=resolution, coarsest=datedb.levels[-1])
    loaded = volume.loaded()
    smooth = blurred(loaded, resolution=preflight.finest, target=min(datedb.banks)).load()
    level = contour_level(smooth) if threshold is None else threshold
    step = grouping_step(loaded.voxel_size) if step is None else step
    tree = segment_map(smooth, threshold=level, step=step, steps=steps)
    voxel_A3 = loaded.voxel_size**3
    low, high = (residues * A3_PER_RESIDUE / voxel_A3 for residues in RESIDUES)
    nodes = [node for node in range(1, tree.n_nodes + 1) if low <= tree.counts[node] <= high]
    if not nodes:
        raise GeometryError(
            f"expected regions of {RESIDUES[0]} to {RESIDUES[1]} residues above the threshold {level:.4g}",
            got=f"{int((smooth > level).sum() * voxel_A3)} Å³ in {len(np.unique(tree.leaves)) - 1} watershed regions",
            hint="Give another --threshold, more --steps, or check voxel size and contrast.",
        )
    answers: dict[int, Region] = {}
    boxes, reach = tree.node_boxes(), _EDGE + max(datedb.banks) + 3 * loaded.voxel_size

    def asked(node: int, cut_out: Callable[..., np.ndarray] = _one_window) -> Region:
        box = _grown(boxes[node], loaded, reach)
        soft = soft_mask(tree.node_mask(node, box), voxel_size=loaded.voxel_size, width=_EDGE)
        part = loaded.crop(box)
        answer = _best_answer(part, node, soft, preflight, datedb, embedder, top, schemes, cut_out=cut_out)
        return replace(answer, volume_A3=float(tree.counts[node] * voxel_A3))

    for done, node in enumerate(nodes, start=1):
        answers[node] = asked(node)
        yield RegionsScored(done, len(nodes))
    # weighted by volume, so that a group wins over its parts only if it fits better than they do on average
    scores = {
        node: float(tree.counts[node]) * answer.candidates[0].cosine
        for node, answer in answers.items()
        if answer.candidates
    }
    kept = sorted(best_disjoint(tree, scores), key=lambda node: -tree.counts[node])
    if datedb.matched:  # what stays is asked about both middles, as a region is that somebody points at
        answers |= {node: asked(node, region_windows) for node in kept}
    regions = tuple(replace(answers[node], id=label) for label, node in enumerate(kept, start=1))
    labels = LabelMap(
        Volume(tree.labels_of(kept), loaded.voxel_size, loaded.origin),
        {region.id: _label_class(region) for region in regions},
    )
    yield Identification(regions, preflight, labels, tree, tuple(kept))


def ask_again(
    volume: Volume,
    answer: Identification,
    network: CryoSamu,
    *,
    datedb: DateDB,
    embedder: Embedder,
    resolution: Angstrom | None = None,
    top: int = 10,
    schemes: Sequence[str] | None = None,
    crowded: bool = False,
) -> dict[int, Region]:
    """Name the regions of an answer once more in the sharpened map: region → what it is called there.

    Sharpening adds what proteins usually look like, which may help or mislead: where the two
    answers differ, neither is safe.

    Parameters
    ----------
    answer : Identification
        With its labels.
    network : CryoSamu
    datedb, embedder, resolution, top, schemes, crowded
        As of `identify`.
    """
    if answer.labels is None:
        raise GeometryError(
            "expected an answer with its regions", got="one without", hint="Make it with region_labels or identify_map."
        )
    sharp = enhanced(volume, network, resolution=resolution)
    found = {}
    for region in answer.regions:
        mask = RegionMask(region.id, answer.labels.mask(region.id))
        try:
            again = identify(
                sharp,
                [mask],
                datedb=datedb,
                embedder=embedder,
                resolution=resolution,
                top=top,
                schemes=schemes,
                crowded=crowded,
            )
            found[region.id] = again.regions[0]
        except GeometryError:  # sharpening left no density there, so there is nothing to name
            found[region.id] = replace(region, candidates=(), support=(), margin=0.0, confidence=None)
    return found


@dataclass(frozen=True, slots=True, eq=False)
class IdentifiedPlace:
    """What is at a place, and which density that is.

    Parameters
    ----------
    region : Region
    mask : bool array, `z y x`
        Its voxels within `box`.
    box : Box
        Of the volume.
    """

    region: Region
    mask: np.ndarray
    box: Box


def identify_at(
    volume: Volume,
    position: Vector,
    *,
    datedb: DateDB,
    embedder: Embedder,
    resolution: Angstrom | None = None,
    top: int = 10,
    schemes: Sequence[str] | None = None,
) -> IdentifiedPlace:
    """Name what is at a place: of the groups of a protein's size that hold it, the one with the best cosine.

    Only the surroundings of the place are read, so it takes as long in a map as in a tomogram.

    Parameters
    ----------
    volume : Volume
        Protein positive.
    position : (z, y, x) in Å
    datedb, embedder, resolution, top, schemes
        See `identify`.

    Raises
    ------
    GeometryError
        If the place is outside the volume, or no density of a protein's size is there.
    """
    datedb.require(embedder)
    datedb, embedder = closer_look(datedb, embedder)
    index = np.rint(volume.to_index(position)).astype(int)
    if (index < 0).any() or (index >= volume.shape).any():
        raise GeometryError(
            f"expected a place inside the volume of {volume.shape} voxels (z, y, x)",
            got=", ".join(map(str, index.tolist())),
            hint="Click on the volume that is to be asked about.",
        )
    preflight = inspect(volume, resolution=resolution, coarsest=datedb.levels[-1])
    one = (slice(index[0], index[0] + 1), slice(index[1], index[1] + 1), slice(index[2], index[2] + 1))
    box = _grown(one, volume, embedder.window * embedder.voxel_size * 0.75)
    part = volume.crop(box).loaded()
    smooth = blurred(part, resolution=preflight.finest, target=min(datedb.banks)).load()
    here = index - [side.start for side in box]
    tree = segment_map(smooth, threshold=contour_level(smooth), step=grouping_step(part.voxel_size), steps=STEPS)
    low, high = (residues * A3_PER_RESIDUE / part.voxel_size**3 for residues in RESIDUES)
    leaf = _leaf_near(tree.leaves, here, reach=_NEAR / part.voxel_size)
    nodes = [] if leaf is None else list(dict.fromkeys(int(level[leaf]) for level in tree.levels))
    nodes = [node for node in nodes if low <= tree.counts[node] <= high]
    if not nodes:
        raise GeometryError(
            f"expected density of {RESIDUES[0]} to {RESIDUES[1]} residues at the place",
            got="less, or more that does not fall apart",
            hint="Click into a protein; where it touches others, draw a region and identify that.",
        )
    masks = {node: tree.node_mask(node) for node in nodes}
    answers = {
        node: _best_answer(
            part,
            1,
            soft_mask(mask, voxel_size=part.voxel_size, width=_EDGE),
            preflight,
            datedb,
            embedder,
            top,
            schemes,
            cut_out=region_windows if datedb.matched else _one_window,
        )
        for node, mask in masks.items()
    }
    best = max(nodes, key=lambda node: answers[node].candidates[0].cosine if answers[node].candidates else -1.0)
    volume_A3 = float(tree.counts[best] * part.voxel_size**3)
    return IdentifiedPlace(replace(answers[best], volume_A3=volume_A3), masks[best], box)


def _leaf_near(leaves: np.ndarray, index: np.ndarray, *, reach: float) -> int | None:
    """The watershed region at a voxel, or the nearest one within reach (voxels)."""
    above = np.argwhere(leaves > 0)
    if not len(above):
        return None
    distance = ((above - index) ** 2).sum(axis=1)
    nearest = int(distance.argmin())
    return int(leaves[tuple(above[nearest])]) if distance[nearest] <= reach**2 else None


def whole_map_region(
    volume: Volume, *, resolution: Angstrom | None, target: Angstrom, threshold: float | None = None
) -> RegionMask | None:
    """A map's density as one region, if it is no more than that of one chain; else None.

    Parameters
    ----------
    volume : Volume
        Protein positive.
    resolution : Angstrom, optional
        Of the map.
    target : Angstrom
        Resolution of the finest bank of the DateDB.
    threshold : float, optional
        Density from which on the map counts, after blurring to `target`. Default: `contour_level`.
    """
    finest = inspect(volume, resolution=resolution, coarsest=target).finest
    smooth = blurred(volume, resolution=finest, target=target).load()
    mask = smooth > (contour_level(smooth) if threshold is None else threshold)
    fits = 0 < mask.sum() * volume.voxel_size**3 <= RESIDUES[1] * A3_PER_RESIDUE
    return RegionMask(1, mask) if fits else None


def region_labels(volume: Volume, regions: Sequence[RegionMask], answer: Identification) -> LabelMap:
    """Given regions as a label map on the map's grid, named as they were identified; later ones lie on top."""
    data = np.zeros(volume.shape, np.int32)
    for region in regions:
        data[region.mask > 0.5] = region.id
    classes = {region.id: _label_class(region) for region in answer.regions}
    return LabelMap(Volume(data, volume.voxel_size, volume.origin), classes)


def dock_candidates(
    volume: Volume,
    mask: np.ndarray,
    region: Region,
    *,
    structure_of: Callable[[Candidate], Structure | None],
) -> Iterator[CandidateDocked]:
    """Check the candidates of a region by rigid docking, which knows nothing of embeddings.

    Parameters
    ----------
    volume : Volume
        Protein positive.
    mask : array, `z y x`
        The region on the map's grid, bool or 0 … 1.
    region : Region
    structure_of : function
        Candidate → its representative's atoms, or None (see `structures_of_folder`).

    Yields
    ------
    CandidateDocked
        One per candidate, best candidate first.
    """
    resolution = max(region.resolution, _DOCKED_AT)
    box = scipy.ndimage.find_objects((mask > 0).astype(np.uint8))[0]
    place = _grown(box, volume, resolution + volume.voxel_size)
    part = blurred(volume.crop(place).loaded(), resolution=region.resolution, target=resolution)
    weights = mask[place]
    if weights.dtype == bool:
        weights = soft_mask(weights, voxel_size=part.voxel_size, width=_EDGE)
    for done, candidate in enumerate(region.candidates, start=1):
        structure = structure_of(candidate)
        docking = None
        if structure is not None:
            atoms = atoms_from_trace(structure) if is_trace(structure) else structure
            probe = density(atoms, voxel_size=part.voxel_size, resolution=resolution)
            docking = dock(part, probe, structure, resolution=resolution, region_mask=weights)
        yield CandidateDocked(done, len(region.candidates), candidate, docking)


def _grown(box: Box, volume: Volume, reach: Angstrom) -> Box:
    """A box and all voxels of the volume within `reach` Å of it along the axes."""
    voxels = int(np.ceil(reach / volume.voxel_size))
    z, y, x = (slice(max(0, b.start - voxels), min(n, b.stop + voxels)) for b, n in zip(box, volume.shape, strict=True))
    return z, y, x


def _one_window(
    volume: Volume, mask: np.ndarray, embedder: Embedder, *, resolution: Angstrom, bank: Angstrom
) -> np.ndarray:
    return region_window(volume, mask, embedder, resolution=resolution, bank=bank)[None]


def _best_answer(  # noqa: PLR0913
    volume: Volume,
    id_: int,
    soft: np.ndarray,
    preflight: Preflight,
    datedb: DateDB,
    embedder: Embedder,
    top: int,
    schemes: Sequence[str] | None,
    *,
    cut_out: Callable[..., np.ndarray] = _one_window,
    crowded: bool = False,
) -> Region:
    """Answer for one region: at the known resolution, or at that of a few whose best cosine is the highest."""
    tried = (
        [preflight.finest]
        if preflight.resolution_known
        else [r for r in _ASSUMED if r >= preflight.nyquist] or [preflight.finest]
    )
    ranked = []
    for resolution in tried:
        views = embedder.embed(cut_out(volume, soft, embedder, resolution=resolution, bank=datedb.blur_for(resolution)))
        similarity = datedb.seen(views, resolution=datedb.bank_for(resolution), crowded=crowded)
        ranked.append(datedb.ranked(similarity, top=max(top, _SUPPORT), schemes=schemes))
    best = max(range(len(tried)), key=lambda i: ranked[i][0].cosine if ranked[i] else -1.0)
    centre: Vector = centre_of_mass(Volume(volume.load() * soft, volume.voxel_size, volume.origin))
    support = tuple(ranked[best])
    rival = _rival(support) if support else None
    margin = support[0].cosine - rival.cosine if rival else 0.0
    return Region(
        id_,
        centre,
        float((soft > 0.5).sum()) * volume.voxel_size**3,
        support[:top],
        support=support,
        margin=margin,
        confidence=datedb.confidence(support[0], margin, bank=datedb.bank_for(tried[best])) if rival else None,
        resolution=tried[best],
        resolved=preflight.can_identify,
    )


def _rival(ranked: Sequence[Candidate]) -> Candidate | None:
    """The best other type that is a different answer.

    A type of the other published scheme is none: CATH and SCOPe classify many of the same domains.
    """
    best, *others = ranked
    return next((c for c in others if c.scheme == best.scheme or not {c.scheme, best.scheme} <= set(LEVEL_NAMES)), None)


def _label_class(region: Region) -> LabelClass:
    if region.verdict == "unknown":
        return LabelClass(f"unknown {region.id}")
    best = region.candidates[0]
    return LabelClass(best.name, best.type, best.scheme)


def build_from_store(folder: Path, path: Path, *, config: DateDBConfig, overwrite: bool) -> Iterator[DomainEmbedded]:
    """Build a DateDB of all labelled domains of a data folder, with previews, and write it.

    Parameters
    ----------
    folder : Path
        Holds `structures/` and `labels/`.
    path : Path
        The new database; written once everything is embedded.
    config : DateDBConfig
    overwrite : bool

    Yields
    ------
    DomainEmbedded
        The last one carries the database as written.
    """
    refuse_existing(path, overwrite=overwrite)
    towers = towers_of(config)
    embedder = InvariantEmbedder(config.voxel_size_A, contour=0.0) if towers is None else towers.asks
    sources = domains_of_store(folder, ca_only=config.ca_only)
    last = None
    for last in build_datedb(
        sources,
        embedder,
        resolutions=config.resolutions_A,
        names=names_of_store(folder),
        provenance=built_by(config, towers),
        atoms=None if towers is None else towers.atoms,
    ):
        if last.result is None:
            yield last
    assert last is not None
    assert last.result is not None
    db = replace(last.result, calibration=config.calibration, shape_calibration=config.shape_calibration)
    db = with_strangers_reach(db).write(path, overwrite=overwrite, dtype=config.dtype)
    if towers is not None:
        towers.put_into(path)
    read = {entry.id: reader for entry, reader in sources}
    finest = min(config.resolutions_A)
    chosen = choose_representatives(db, config.previews)
    windows = {e.id: structure_window(read[e.id](), embedder, resolution=finest) for e in chosen}
    if windows:
        write_previews(path, windows, voxel_size=embedder.voxel_size, resolution=finest)
    yield replace(last, result=db)


def scan_tomogram(  # noqa: PLR0913
    volume: Volume,
    path: Path,
    *,
    datedb: DateDB,
    embedder: Embedder,
    config: ScanConfig,
    source: VolumeFile | None = None,
    mask: Volume | None = None,
    overwrite: bool = False,
    executor: Executor | None = None,
    shard: tuple[int, int] | None = None,
    enhancer: Path | None = None,
) -> Iterator[ScanPlan | ScanEvent]:
    """Scan a volume into a folder; an interrupted scan continues where it was.

    Parameters
    ----------
    volume, datedb, embedder, config, source, mask, enhancer
        See `cryoscan.scan.plan_scan`.
    path : Path
        Folder of the scan.
    overwrite, executor, shard
        See `cryoscan.scan.run_scan`.

    Yields
    ------
    ScanPlan, TileDone …, PlacesNamed …, LabelsPainted …, ScanFinished (or ShardDone)
    """
    begun = None if overwrite else Path(path)
    plan = plan_scan(
        volume,
        datedb=datedb,
        embedder=embedder,
        config=config,
        source=source,
        mask=mask,
        folder=begun,
        enhancer=enhancer,
    )
    yield plan
    yield from run_scan(plan, path, overwrite=overwrite, executor=executor, shard=shard)


@dataclass(frozen=True, slots=True)
class Redrawn:
    """Event: what was drawn is kept; it counts once the journal says so (`Journal.add("labels", …)`).

    Parameters
    ----------
    note : str
    positions : tuple of (z, y, x) in Å
        Of the regions that are not as the scan has them.
    """

    note: str
    positions: tuple[Vector, ...]


def redraw_regions(
    result: ScanResult,
    voxels: np.ndarray,
    numbers: np.ndarray,
    *,
    datedb: DateDB,
    embedder: Embedder,
    hits: Iterable[int] | None = None,
    names: Mapping[int, LabelClass] | None = None,
) -> Iterator[RegionsScored | Redrawn]:
    """Give voxels of a scanned volume to other regions, and ask what the regions look like now.

    A region keeps its name; a new one without a name gets that of its best candidate, or is unknown. Where the scan
    sharpened, regions are named in the sharpened volume, and asked about in the volume as it is too, as the scan does
    with its places; if the network is not at hand any more, in the volume as it is only (`DrawnRegion.sharpened`).

    Parameters
    ----------
    result : ScanResult
        Finished, with painted places (`paint_places`).
    voxels : int array, `n`
        Flat indices of voxels of the scanned volume.
    numbers : int array, `n`
        Region to which each belongs from now on: an earlier one, the next numbers after these, or 0 for none.
    datedb, embedder
        Those of the scan.
    hits : iterable of int, optional
        Earlier regions that were looked at as hits, under whatever thresholds: where one of them was touched, it is a
        hit from now on. Default: those of the answer as it stands.
    names : mapping, optional
        Number of a new region → what it is called.

    Raises
    ------
    FormatError
        If the regions of the places were not painted yet.
    """
    now, names = reviewed(result), names or {}
    if now.numbers is None:
        raise FormatError(
            f"expected the regions of all places of {result.path}",
            got="a scan whose places nobody has painted yet",
            hint="Open it in napari once.",
        )
    painted = np.asarray(now.numbers.data[:, :, :]).astype(np.uint32)
    touched = {int(n) for n in np.unique(np.concatenate([painted.flat[voxels], numbers]))} - {0}
    painted.flat[voxels] = numbers
    boxes = scipy.ndimage.find_objects(painted, max_label=max([len(now.found), *touched]))
    before = () if now.redrawing is None else now.redrawing.regions
    gone = set() if now.redrawing is None else set(now.redrawing.erased)
    gone |= {number for number in touched if boxes[number - 1] is None}
    gone |= {region.number for region in before if not now.places.kept[region.number - 1]}
    looked_at = set((np.flatnonzero(now.places.kept) + 1).tolist() if hits is None else hits)
    mine = [n for n in sorted(touched - gone) if n > len(now.found) or n in looked_at]
    regions = {region.number: _called_now(region, now) for region in before if region.number not in gone}
    volume = _volume_of(result)
    sharp = None if volume is None else _sharpened(volume, result, device=str(embedder.device))
    for done, number in enumerate(mine, start=1):
        grid = Volume(painted, now.numbers.voxel_size, now.numbers.origin)
        box = _grown(boxes[number - 1], grid, _ROOM)
        part = grid.crop(box)
        mask = np.asarray(part.data) == number
        meaning = names.get(number) if number > len(now.found) else _meaning(now, number)
        plain, answer = (
            None if one is None else _asked(one.crop(box).loaded(), number, mask, now, datedb, embedder)
            for one in (volume, sharp)
        )
        region = _drawn(number, part, mask, meaning, plain if sharp is None else answer)
        regions[number] = region if sharp is None else _with_plain(region, answer, plain)
        yield RegionsScored(done, len(mine))
    drawn = [regions[number] for number in sorted(regions)]
    yield Redrawn(*write_redrawing(result, Volume(painted, now.numbers.voxel_size, now.numbers.origin), drawn, gone))


def _meaning(now: Reviewed, number: int) -> LabelClass:
    hits = now.places.hits
    return LabelClass(hits.names[number - 1], hits.types[number - 1], hits.schemes[number - 1])


def _called_now(region: DrawnRegion, now: Reviewed) -> DrawnRegion:
    """A region that was drawn earlier, with the name that it has by now."""
    meaning = _meaning(now, region.number)
    return replace(region, name=meaning.name, type=meaning.type, scheme=meaning.scheme)


def _volume_of(result: ScanResult) -> Volume | None:
    """The scanned volume; None if its file is not there any more."""
    source = result.manifest["source"]
    file = None if source is None else VolumeFile.from_json(source)
    return None if file is None or not file.path.exists() else file.open()


def _sharpened(volume: Volume, result: ScanResult, *, device: str) -> Volume | None:
    """The volume as a scan that sharpened saw it, computed where it is read; None if it did not, or cannot any more."""
    stored = result.manifest["planned"]["sharpening"]
    if stored is None:
        return None
    sharpening = Sharpening.from_json(stored, device=device)
    try:
        sharpening.network()
    except CryoscanError:  # its file is gone, or is another's
        return None
    return sharpening.of(volume)


def _asked(
    part: Volume, number: int, mask: np.ndarray, now: Reviewed, datedb: DateDB, embedder: Embedder
) -> Region | None:
    """What a region looks like; None where it holds no density."""
    resolution = float(now.result.manifest["planned"]["preflight"]["finest"])
    datedb = datedb.in_scheme(now.found.config.scheme)
    try:
        regions = [RegionMask(number, mask)]
        return identify(part, regions, datedb=datedb, embedder=embedder, resolution=resolution).regions[0]
    except GeometryError:
        return None


def _drawn(
    number: int, part: Volume, mask: np.ndarray, meaning: LabelClass | None, answer: Region | None
) -> DrawnRegion:
    """A region as it was drawn, called as its author wants it or else as it looks."""
    support = () if answer is None else answer.support
    if meaning is None:
        known = answer is not None and answer.verdict == "named"
        meaning = LabelClass(support[0].name, support[0].type, support[0].scheme) if known else LabelClass("unknown")
    like = next((c for c in support if (c.scheme, c.type) == (meaning.scheme, meaning.type)), None)
    rival = next((c for c in support if (c.scheme, c.type) != (meaning.scheme, meaning.type)), None)
    z, y, x = part.to_position(np.argwhere(mask).mean(axis=0))
    return DrawnRegion(
        number,
        (float(z), float(y), float(x)),
        float(mask.sum()) * part.voxel_size**3,
        meaning.name,
        meaning.type,
        meaning.scheme,
        entry="" if like is None else like.entry,
        score=0.0 if like is None else like.cosine,
        margin=0.0 if like is None or rival is None else like.cosine - rival.cosine,
        confidence=answer.confidence if answer is not None and like is not None and like.rank == 1 else None,
        alternatives=tuple((c.scheme, c.type, c.name, c.cosine) for c in support[:_ALTERNATIVES]),
    )


def _with_plain(region: DrawnRegion, answer: Region | None, plain: Region | None) -> DrawnRegion:
    """A region that was named in the sharpened volume, with what it looks like as it is."""
    best = plain.candidates[0] if plain is not None and plain.candidates else None
    return replace(
        region,
        sharpened=True,
        plain=None if best is None else (best.scheme, best.type, best.name, best.cosine),
        changed=_named(answer) != _named(plain),
    )


def _named(answer: Region | None) -> tuple[str, str] | None:
    """Scheme and type that an answer dares to name."""
    if answer is None or answer.verdict != "named":
        return None
    return answer.candidates[0].scheme, answer.candidates[0].type


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written, and the number of hits of the answer."""

    files: tuple[Path, ...]
    hits: int


def export_scan(
    result: ScanResult,
    *,
    labels: Path | None = None,
    hits: Path | None = None,
    journal: Path | None = None,
    convention: Convention = "relion5",
    tomogram_name: str | None = None,
    ngff: Literal["0.5", "0.4"] = "0.5",
    as_scanned: bool = False,
    overwrite: bool = False,
) -> Exported:
    """Write the answer of a scan for other programs, after what people changed about it.

    Parameters
    ----------
    result : ScanResult
        Finished.
    labels : Path, optional
        ``.mrc`` or ``.zarr``.
    hits : Path, optional
        ``.star`` or ``.csv``.
    journal : Path, optional
        Every change, as ``.csv``.
    convention : {"relion5", "relion3"}
        How a STAR file counts positions.
    tomogram_name : str, optional
        Of a STAR file; the scan's name otherwise.
    ngff : {"0.5", "0.4"}
        Version of OME-Zarr.
    as_scanned : bool
        Leave the changes out.
    overwrite : bool
        Replace files that exist.

    Raises
    ------
    ExistingOutputError
        If one of them is there already; then nothing is written.
    FormatError
        If the scan is unfinished, or an ending is unknown.
    """
    wanted = [path for path in (hits, labels, journal) if path is not None]
    for path in wanted:
        refuse_existing(path, overwrite=overwrite)
    written = Journal(result.path / "journal.jsonl")
    now = None if as_scanned else changed(result)
    found = result.hits if now is None else now.places.answer
    if hits is not None:
        name = tomogram_name or result.path.resolve().stem
        write_hits(
            found, hits, volume=result.whole_grid, convention=convention, tomogram_name=name, overwrite=overwrite
        )
    if labels is not None:
        write_labels(result.labels() if now is None else now.labels(), labels, ngff=ngff, overwrite=overwrite)
    if journal is not None:
        write_changes_csv(written.changes, journal, overwrite=overwrite)
    return Exported(tuple(wanted), len(found))

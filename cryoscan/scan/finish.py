"""After the lattice: threshold, hits by one global non-maximum suppression, label and instance volumes.

Nothing here holds a whole volume: places are read tile by tile, labels are painted block by
block, and what crosses a border is merged by number, so the answer does not depend on tiles.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from cryoscan.errors import ResourceError
from cryoscan.hits import Hits
from cryoscan.io import build_pyramid, create_zarr, open_zarr_array
from cryoscan.labels import LabelClass
from cryoscan.provenance import write_atomically
from cryoscan.scan.executors import Executor, Work
from cryoscan.scan.folder import finished_tiles, read_lattice
from cryoscan.scan.found import PlaceTable, apart, hits_of, plain_answers, table_of, write_found
from cryoscan.scan.places import (
    NULL,
    find_places,
    mask_edge,
    null_threshold,
    read_places,
    write_places,
)
from cryoscan.scan.plan import ScanPlan
from cryoscan.scan.result import hits_to_json
from cryoscan.scan.thresholds import is_named
from cryoscan.segment import join_blocks, label_block
from cryoscan.tiles import Tiling
from cryoscan.units import Box, Shape

_SHARD = 256  # voxels of the volume, edge of the blocks in which labels are painted
_CHUNK = 64


@dataclass(frozen=True, slots=True)
class PlacesNamed:
    """Event: the places that a tile of the lattice proposed have been looked at again.

    Parameters
    ----------
    done, total : int
        Tiles.
    seconds_left : float
    places : int
        Regions found so far in this run.
    """

    done: int
    total: int
    seconds_left: float
    places: int
    stage: str = "tiles searched for places"


@dataclass(frozen=True, slots=True)
class LabelsPainted:
    """Event: a block of the label volume is written."""

    done: int
    total: int
    seconds_left: float
    stage: str = "label blocks written"


# ---------------------------------------------------------------- places


def _nothing(plan: ScanPlan, path: Path, number: int) -> None:
    return None


def _find(plan: ScanPlan, path: Path, number: int, _: None) -> int:
    places = find_places(plan, path, number)
    write_places(plan, path, number, places)
    return len(places)


FIND_PLACES = Work("tiles searched for places", _nothing, _find)


def places_to_find(plan: ScanPlan, path: Path) -> tuple[list[int], int]:
    """Tiles whose places are not known yet, and the number of those whose places are."""
    if not plan.scannable:
        return [], 0
    tiles = [NULL] * (plan.config.min_score is None)
    tiles += [index for index, report in sorted(finished_tiles(plan, path).items()) if report.windows]
    waiting = [index for index in tiles if read_places(plan, path, index) is None]
    return waiting, len(tiles) - len(waiting)


# ---------------------------------------------------------------- names


def finish(
    plan: ScanPlan, path: Path, *, executor: Executor, failed: Mapping[int, Mapping[str, object]]
) -> Iterator[LabelsPainted]:
    """Turn the places of a scanned volume into hits and labels, and write the summary last."""
    threshold: float | None = None
    places = named = table_of(plan, path, ())
    is_hit = np.zeros(0, bool)
    changed = None if plan.sharpening is None else is_hit
    reports = finished_tiles(plan, path)
    if plan.scannable:
        threshold = _threshold(plan, path)
        places = apart(table_of(plan, path, sorted(i for i, r in reports.items() if r.windows)), plan)
        is_hit = _is_named(plan, places.score, places.margin, places.type, threshold, places.voxels)
        named = places.take(is_hit)
        if plan.sharpening is not None:
            changed = _changed(plan, places, is_hit, threshold)
    hits = hits_of(plan, named)
    (path / "summary.json").unlink(missing_ok=True)  # of an earlier run, whose labels go
    yield from _paint_all(plan, path, named, threshold, executor)
    write_atomically(path / "hits.json", hits_to_json(hits))
    least = 1.0 if threshold is None else threshold
    write_found(plan, path, places, threshold=least, changed=changed)
    windows = sum(report.windows for report in reports.values())
    summary = _summary(plan, threshold, hits, unnamed=len(places) - len(named), windows=windows)
    if changed is not None:
        summary["verdict"] += f"; sharpening changed the label of {changed.sum()} of {len(places)} places"
        summary["changed_by_sharpening"] = _differences(plan, places.take(changed), is_hit[changed], least)
    summary["failed"] = [{"tile": index, **reason} for index, reason in failed.items()]
    write_atomically(path / "summary.json", json.dumps(summary, indent=1))


def hits_so_far(plan: ScanPlan, path: Path) -> Hits:
    """What an unfinished scan would name; its last places may still drop some of them."""
    if not plan.scannable or (plan.config.min_score is None and read_places(plan, path, NULL) is None):
        return hits_of(plan, table_of(plan, path, ()))
    places = apart(table_of(plan, path, sorted(finished_tiles(plan, path))), plan)
    threshold = _threshold(plan, path)
    return hits_of(
        plan, places.take(_is_named(plan, places.score, places.margin, places.type, threshold, places.voxels))
    )


def _threshold(plan: ScanPlan, path: Path) -> float:
    if plan.config.min_score is not None:
        return plan.config.min_score
    noise = read_places(plan, path, NULL)
    return null_threshold(plan, noise if noise is not None else find_places(plan, path, NULL))


def _is_named(
    plan: ScanPlan,
    score: np.ndarray,
    margin: np.ndarray,
    type_: np.ndarray,
    threshold: float,
    voxels: np.ndarray | None = None,
) -> np.ndarray:
    """Whether places, or lattice points, get their name."""
    return is_named(
        plan.config,
        threshold=threshold,
        types=[name for _, name in plan.datedb.types],
        type_=type_,
        score=score,
        margin=margin,
        confidence=plan.naming[0].confidences(score, margin, type_, bank=plan.level),
        volume_A3=voxels * plan.embedder.voxel_size**3 if voxels is not None and plan.embedder.needs_mask else None,
    )


def _changed(plan: ScanPlan, places: PlaceTable, is_hit: np.ndarray, threshold: float) -> np.ndarray:
    """Which places would have another label, or none, or one at last, in the volume as it is; `n` bool."""
    was_hit = _was_hit(plan, places, threshold)
    return np.asarray((is_hit != was_hit) | (is_hit & (places.type != places.plain_type)))


def _was_hit(plan: ScanPlan, places: PlaceTable, threshold: float) -> np.ndarray:
    """Which places would get a name in the volume as it is."""
    type_ = places.plain_type
    said = _is_named(plan, places.plain_score, places.plain_margin, type_.clip(0), threshold, places.voxels)
    return np.asarray(said & (type_ >= 0))


def _differences(plan: ScanPlan, places: PlaceTable, is_hit: np.ndarray, threshold: float) -> list[dict[str, Any]]:
    """For people: what each place is called after and before sharpening; None for no name."""
    hits, plain, was_hit = hits_of(plan, places), plain_answers(plan, places), _was_hit(plan, places, threshold)
    return [
        {
            "position_zyx_A": np.round(hits.positions[row], 2).tolist(),
            "sharpened": f"{hits.schemes[row]} {hits.types[row]}" if is_hit[row] else None,
            "as_it_is": " ".join(before[:2]) if before is not None and was_hit[row] else None,
        }
        for row, before in enumerate(plain)
    ]


# ---------------------------------------------------------------- labels


def _paint_all(
    plan: ScanPlan, path: Path, named: PlaceTable, threshold: float | None, executor: Executor
) -> Iterator[LabelsPainted]:
    """Write the label and the instance volume on the volume's own grid, beside; then put them in place.

    With an embedder that needs masks a voxel carries the type of the hit whose region it
    belongs to, and the number of that hit. The types of lattice points beside the hits are
    not used: their windows hold parts of several molecules, and most are wrong
    (docs/decisions/0008). With other embedders every lattice point speaks for the density
    around it, and instances are what touches.
    """
    part = path / f"labels.{_digest(plan, named, threshold)}.part"
    if not part.is_dir():
        _create_labels(plan, path, part, named, threshold)
    blocks = Tiling(plan.volume.shape, shard_of(plan.volume.shape))
    touched = _touched(plan, path, named, blocks, threshold)
    waiting = [number for number in touched if not (part / "done" / str(number)).exists()]
    before, start = len(touched) - len(waiting), time.monotonic()
    for count, outcome in enumerate(executor.run(PAINT, plan, part, waiting), start=1):
        if outcome.error is not None:
            raise ResourceError(
                f"expected to write block {outcome.number} of the labels",
                got=outcome.error,
                hint="Give the same command again: only this step is left to do.",
            )
        left = (time.monotonic() - start) / count * (len(waiting) - count)
        yield LabelsPainted(before + count, len(touched), left)
    if not plan.embedder.needs_mask and (part / "labels.zarr").exists():
        join_blocks(
            open_zarr_array(part / "labels.zarr"),
            open_zarr_array(part / "pieces.zarr"),
            open_zarr_array(part / "instances.zarr", writable=True),
            [blocks.box(number) for number in touched],
        )
    for name in ("labels.zarr", "instances.zarr"):
        if (part / name).exists():  # else it was put in place before this step was stopped
            build_pyramid(part / name, average=False)
            if (path / name).exists():
                (path / name).rename(part / f"old-{name}")
            (part / name).rename(path / name)
    gone = part.with_suffix(".done")  # half a folder must not look like work to go on with
    shutil.rmtree(gone, ignore_errors=True)
    part.rename(gone)
    for stale in path.glob("labels.*.*"):
        shutil.rmtree(stale)


def _digest(plan: ScanPlan, named: PlaceTable, threshold: float | None) -> str:
    choosing = plan.config.model_dump(mode="json", include=set(plan.config.labelling))
    settings = [plan.signature, named.digest, threshold, choosing, plan.embedder.needs_mask]
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]


def _create_labels(plan: ScanPlan, path: Path, part: Path, named: PlaceTable, threshold: float | None) -> None:
    beside = part.with_suffix(".new")
    shutil.rmtree(beside, ignore_errors=True)
    (beside / "done").mkdir(parents=True)
    keys = plan.datedb.types
    used = np.unique(named.type) if plan.embedder.needs_mask else np.arange(len(keys))
    classes = {int(n) + 1: LabelClass(plan.datedb.name(*keys[n]), keys[n][1], keys[n][0]) for n in used}
    shards = shard_of(plan.volume.shape)
    chunks = chunk_of(shards)
    kinds = {"labels": (np.uint16, classes), "instances": (np.uint32, {})}
    if not plan.embedder.needs_mask:
        kinds["pieces"] = (np.uint32, {})  # of instances, numbered block by block
    for name, (dtype, meanings) in kinds.items():
        create_zarr(
            beside / f"{name}.zarr",
            shape=plan.volume.shape,
            dtype=dtype,
            voxel_size=plan.volume.voxel_size,
            origin=plan.volume.origin,
            chunks=chunks,
            shards=shards,
            classes=meanings,
            pyramid=True,
        )
    content = {name: getattr(named, name) for name in named.__slots__}
    content["threshold"] = np.array(np.nan if threshold is None else threshold)
    np.savez(beside / "named.npz", allow_pickle=False, **content)
    beside.rename(part)


def create_numbers(path: Path, plan: ScanPlan) -> Tiling:
    """Create an empty volume of numbers on the grid of the scanned one, with a pyramid; gives the blocks to fill."""
    shards = shard_of(plan.volume.shape)
    create_zarr(
        path,
        shape=plan.volume.shape,
        dtype=np.uint32,
        voxel_size=plan.volume.voxel_size,
        origin=plan.volume.origin,
        chunks=chunk_of(shards),
        shards=shards,
        classes={},
        pyramid=True,
    )
    return Tiling(plan.volume.shape, shards)


def shard_of(shape: Shape) -> Shape:
    """Blocks in which labels of a volume are painted."""
    z, y, x = (min(_SHARD, -(-size // _CHUNK) * _CHUNK) for size in shape)
    return z, y, x


def chunk_of(shards: Shape) -> Shape:
    """Chunks of these blocks."""
    return (_CHUNK, _CHUNK, _CHUNK) if min(shards) >= _CHUNK else shards


def _touched(plan: ScanPlan, path: Path, named: PlaceTable, blocks: Tiling, threshold: float | None) -> list[int]:
    """Blocks of the label volume that may get a label."""
    if threshold is None:
        return []
    if plan.embedder.needs_mask:
        return touched_blocks(plan, named, blocks)
    tiles = [plan.tiling.box(i) for i, report in finished_tiles(plan, path).items() if report.windows]
    corners = [[[b.start for b in box], [b.stop for b in box]] for box in tiles]
    points = np.array(corners, np.float64).reshape(-1, 2, 3)
    centres = plan.grid.centres(points)
    return _blocks_between(
        centres[:, 0] - plan.config.stride_voxels, centres[:, 1] + plan.config.stride_voxels, plan, blocks
    )


def touched_blocks(plan: ScanPlan, places: PlaceTable, blocks: Tiling) -> list[int]:
    """Blocks of the volume into which the masks of places may reach."""
    return _blocks_between(places.start - 1, places.start + mask_edge(plan) + 1, plan, blocks)


def _blocks_between(low: np.ndarray, high: np.ndarray, plan: ScanPlan, blocks: Tiling) -> list[int]:
    """Blocks that boxes on the embedder's grid meet."""
    ratio = plan.embedder.voxel_size / plan.volume.voxel_size
    first = np.floor(low * ratio / blocks.core).astype(int).clip(0)
    last = np.minimum(np.floor(high * ratio / blocks.core).astype(int), np.array(blocks.counts) - 1)
    found: set[int] = set()
    for (z0, y0, x0), (z1, y1, x1) in zip(first, last, strict=True):
        for z in range(z0, z1 + 1):
            for y in range(y0, y1 + 1):
                found.update(int(np.ravel_multi_index((z, y, x), blocks.counts)) for x in range(x0, x1 + 1))
    return sorted(found)


def _paint(plan: ScanPlan, part: Path, number: int, _: None) -> int:
    """Write a block of labels and instances; returns the number of labelled voxels."""
    box = Tiling(plan.volume.shape, shard_of(plan.volume.shape)).box(number)
    named, threshold = _read_named(part)
    if plan.embedder.needs_mask:
        name, (labels, numbers) = "instances", paint_regions(plan, part.parent, box, named)
    else:
        labels = _paint_lattice(plan, part.parent, box, threshold)
        name, numbers = "pieces", label_block(labels)
    if labels.any():
        open_zarr_array(part / "labels.zarr", writable=True)[box] = labels
        open_zarr_array(part / f"{name}.zarr", writable=True)[box] = numbers
    (part / "done" / str(number)).touch()
    return int(np.count_nonzero(labels))


PAINT = Work("label blocks written", _nothing, _paint)


@lru_cache(maxsize=1)
def _read_named(part: Path) -> tuple[PlaceTable, float]:
    with np.load(part / "named.npz", allow_pickle=False) as stored:
        return PlaceTable(*(stored[name] for name in PlaceTable.__slots__)), float(stored["threshold"])


def paint_regions(plan: ScanPlan, path: Path, box: Box, named: PlaceTable) -> tuple[np.ndarray, np.ndarray]:
    """Types and hit numbers of a box of the volume, from the masks of the hits that reach into it."""
    ratio = plan.volume.voxel_size / plan.embedder.voxel_size
    working = [np.rint(np.arange(part.start, part.stop) * ratio).astype(int) for part in box]
    shape = [len(index) for index in working]
    labels, instances = np.zeros(shape, np.uint16), np.zeros(shape, np.uint32)
    edge = mask_edge(plan)
    low, high = np.array([w[0] for w in working]), np.array([w[-1] for w in working])
    near = np.flatnonzero(((named.start <= high) & (named.start + edge > low)).all(axis=1))
    masks: dict[int, np.ndarray] = {}
    for row in near[::-1]:  # the best is painted last
        tile = int(named.tile[row])
        if tile not in masks:
            places = read_places(plan, path, tile)
            assert places is not None
            masks[tile] = places.mask
        mask = masks[tile][named.region[row]]
        local = [index - start for index, start in zip(working, named.start[row], strict=True)]
        inside = [np.flatnonzero((i >= 0) & (i < size)) for i, size in zip(local, mask.shape, strict=True)]
        if all(len(index) for index in inside):
            here = np.ix_(*inside)
            set_ = mask[np.ix_(*(index[i] for index, i in zip(local, inside, strict=True)))]
            labels[here] = np.where(set_, named.type[row] + 1, labels[here])
            instances[here] = np.where(set_, row + 1, instances[here])
    return labels, instances


def _paint_lattice(plan: ScanPlan, path: Path, box: Box, threshold: float) -> np.ndarray:
    """Types of a box of the volume: where there is density, that of the nearest lattice point, if it has a name."""
    import zarr

    ratio = plan.volume.voxel_size / plan.embedder.voxel_size
    first = plan.grid.centres(np.zeros(3))
    nearest = [
        np.clip(np.rint((np.arange(b.start, b.stop) * ratio - f) / plan.config.stride_voxels), 0, n - 1).astype(int)
        for b, f, n in zip(box, first, plan.grid.shape, strict=True)
    ]
    lattice = tuple(slice(int(index[0]), int(index[-1]) + 1) for index in nearest)
    score, margin = (read_lattice(path, name, lattice).astype(np.float64) for name in ("score", "margin"))
    group = zarr.open_group(path / "topk.zarr", mode="r")
    best = np.asarray(group["types"][(0, *lattice)])
    named = _is_named(plan, score, margin, best, threshold) & (score > 0)
    types = np.where(named, best + 1, 0).astype(np.uint16)
    if not types.any():
        return np.zeros([len(index) for index in nearest], np.uint16)
    spread = types[np.ix_(*(index - index[0] for index in nearest))]
    return np.where(plan.seen.read(box) - plan.background > plan.contour, spread, 0).astype(np.uint16)


# ---------------------------------------------------------------- summary


def _summary(plan: ScanPlan, threshold: float | None, hits: Hits, *, unnamed: int, windows: int) -> dict[str, Any]:
    counts: dict[str, int] = {}
    for scheme, type_ in zip(hits.schemes, hits.types, strict=True):
        counts[f"{scheme} {type_}"] = counts.get(f"{scheme} {type_}", 0) + 1
    if threshold is None:
        verdict = "nothing can be named: the volume does not resolve domains; every voxel stays unknown"
    elif len(hits) == 0:
        verdict = "nothing can be named with confidence"
    else:
        verdict = f"{len(hits)} places named as {len(counts)} domain types"
    if unnamed:
        verdict += f"; {unnamed} other region{' has' if unnamed == 1 else 's have'} a protein's size but no name"
    return {
        "verdict": verdict,
        "hits": len(hits),
        "unnamed_places": unnamed,
        "hits_per_type": dict(sorted(counts.items(), key=lambda item: -item[1])),
        "label_classes": len(counts),
        "threshold": None if threshold is None else round(threshold, 4),
        "lattice_points": int(np.prod(plan.grid.shape)),
        "windows": windows,
        "bank_A": plan.bank,
        "contour": plan.contour + plan.background,
        "labelled_with": plan.config.model_dump(mode="json", include=set(plan.config.labelling)),
        "warnings": list(plan.preflight.warnings),
    }

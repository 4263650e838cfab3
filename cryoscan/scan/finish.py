"""After the last tile: threshold, hits by one global non-maximum suppression, regions, label volume."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.ndimage
from scipy.spatial import cKDTree

from cryoscan.hits import PROTEIN_DENSITY_DA_PER_A3, Hits
from cryoscan.io import create_zarr, open_zarr_array, write_labels
from cryoscan.labels import LabelClass, LabelMap
from cryoscan.provenance import write_atomically
from cryoscan.scan.plan import ScanPlan, probe_blocks
from cryoscan.scan.result import hits_to_json
from cryoscan.segment import segment_map, soft_mask
from cryoscan.structure import AVERAGE_RESIDUE_MASS_KDA
from cryoscan.tiles import Tiling
from cryoscan.units import Box
from cryoscan.volume import Volume

_A3_PER_RESIDUE = AVERAGE_RESIDUE_MASS_KDA * 1000 / PROTEIN_DENSITY_DA_PER_A3
_RESIDUES = (30, 600)
_NULL_WINDOWS = 1500
_EDGE = 3.0  # Å
_BLOCK = 128  # voxels of the volume, edge of the blocks in which labels are written


@dataclass(frozen=True, slots=True, eq=False)
class _Found:
    """A place that survived: its answer and the voxels (of the working grid) that belong to it."""

    position: np.ndarray  # z y x, Å
    type: int
    score: float
    margin: float
    entry: int
    box: Box
    mask: np.ndarray


def finish(plan: ScanPlan, path: Path, *, scannable: bool) -> None:
    """Turn the lattice of a scanned volume into hits and labels, and write the summary last."""
    score = np.asarray(open_zarr_array(path / "score.zarr")[:, :, :])
    threshold, found = 2.0, []
    if scannable:
        threshold = plan.config.min_score if plan.config.min_score is not None else null_threshold(plan)
        peaks = _peaks(plan, score, threshold)
        found = _without_neighbours([_at_region(plan, peak, threshold) for peak in peaks], plan.config.min_distance_A)
    hits = _hits(plan, found)
    write_atomically(path / "hits.json", hits_to_json(hits))
    used = _write_labels(plan, path, found)
    summary = _summary(plan, score, threshold, hits, used, scannable)
    write_atomically(path / "summary.json", json.dumps(summary, indent=1))


def null_threshold(plan: ScanPlan) -> float:
    """Cosine that the given share of windows of the volume's own noise reaches.

    The noise is the volume with its phases scrambled: the same power spectrum, no molecules.
    Only windows with density above the contour at their centre count, as in the scan.
    """
    from cryoscan.scan.engine import embed_points, occupied_points

    rng = np.random.default_rng(0)
    best: list[np.ndarray] = []
    for block in probe_blocks(plan, per_axis=2):
        data = _scrambled(block.load(), rng)
        shape = tuple(
            (max(size, plan.embedder.window) - plan.embedder.window)
            // plan.config.stride_voxels
            * plan.config.stride_voxels
            + plan.embedder.window
            for size in data.shape
        )
        data = np.pad(data, [(0, max(0, want - size)) for want, size in zip(shape, data.shape, strict=True)])
        data = data[: shape[0], : shape[1], : shape[2]]
        points = occupied_points(data, plan)
        places = np.flatnonzero(points)
        if len(places) > _NULL_WINDOWS:
            kept = rng.choice(places, _NULL_WINDOWS, replace=False)
            points = np.zeros(points.size, bool)
            points[kept] = True
            points = points.reshape([(size - plan.embedder.window) // plan.config.stride_voxels + 1 for size in shape])
        if points.any():
            vectors = embed_points(data, points, plan)
            best.append(plan.datedb.assign(vectors, top=2, resolution=plan.bank).scores[:, 0])
    if not best:
        return 0.0
    return float(np.quantile(np.concatenate(best), 1 - plan.config.false_positive_rate))


def _scrambled(data: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    spectrum = np.abs(np.fft.rfftn(data))
    noise = np.fft.rfftn(rng.normal(size=data.shape))
    noise /= np.maximum(np.abs(noise), 1e-20)
    noise.flat[0] = np.sign(data.sum()) or 1.0  # the mean stays
    z, y, x = data.shape
    return np.fft.irfftn(spectrum * noise, s=(z, y, x), axes=(0, 1, 2)).astype(np.float32)


def _peaks(plan: ScanPlan, score: np.ndarray, threshold: float) -> np.ndarray:
    """Lattice points that are the best within the smallest distance of hits, best first, `n 3`."""
    step, _ = plan.lattice_geometry
    size = 2 * max(1, int(plan.config.min_distance_A / step / 2)) + 1
    top = (score == scipy.ndimage.maximum_filter(score, size=size)) & (score >= threshold) & (score > 0)
    places = np.argwhere(top)
    values = score[top]
    return places[np.lexsort((places[:, 2], places[:, 1], places[:, 0], -values))]


def _at_region(plan: ScanPlan, peak: np.ndarray, threshold: float) -> _Found | None:
    """Cut out the region of density around a peak and ask again, now without the neighbours."""
    edge = plan.embedder.window + 16
    centre = np.rint(plan.grid.centres(peak)).astype(int)
    start = centre - edge // 2
    box = (
        slice(int(start[0]), int(start[0]) + edge),
        slice(int(start[1]), int(start[1]) + edge),
        slice(int(start[2]), int(start[2]) + edge),
    )
    block = plan.read_working(box)
    data = block.load()
    if not (data > plan.contour).any():
        return None
    tree = segment_map(data, threshold=plan.contour)
    above = np.argwhere(tree.leaves > 0)
    nearest = above[np.argmin(((above - edge // 2) ** 2).sum(axis=1))]
    if ((nearest - edge // 2) ** 2).sum() > (2 * plan.config.stride_voxels) ** 2:
        return None
    chain = list(dict.fromkeys(int(level[tree.leaves[tuple(nearest)]]) for level in tree.levels))
    voxel = block.voxel_size
    low, high = (residues * _A3_PER_RESIDUE / voxel**3 for residues in _RESIDUES)
    nodes = [node for node in chain if low <= tree.counts[node] <= high]
    if not nodes:
        return None
    masks = [tree.node_mask(node) for node in nodes]
    windows = np.stack([_window(block, data, mask, plan) for mask in masks])
    vectors = plan.embedder.embed(windows)
    answer = plan.datedb.assign(vectors, top=plan.config.candidates, resolution=plan.bank)
    best = int(np.argmax(answer.scores[:, 0]))
    if answer.scores[best, 0] < threshold:
        return None
    weight = np.where(masks[best], data - plan.contour, 0).clip(min=0)
    position = block.to_position(scipy.ndimage.center_of_mass(weight))
    return _Found(
        position,
        int(answer.types[best, 0]),
        float(answer.scores[best, 0]),
        _margin(plan, answer.types[best], answer.scores[best]),
        int(answer.entries[best]),
        box,
        masks[best],
    )


def _window(block: Volume, data: np.ndarray, mask: np.ndarray, plan: ScanPlan) -> np.ndarray:
    """The region alone, its centre of mass in the middle of a window."""
    soft = soft_mask(mask, voxel_size=block.voxel_size, width=_EDGE)
    masked = data * soft
    centre = scipy.ndimage.center_of_mass(np.clip(masked - 0.5 * masked.std(), 0, None))
    edge = plan.embedder.window
    start = [round(c - (edge - 1) / 2) for c in centre]
    return Volume(masked, 1.0).read(tuple(slice(s, s + edge) for s in start))  # type: ignore[arg-type]


def _margin(plan: ScanPlan, types: np.ndarray, scores: np.ndarray) -> float:
    """Best score minus that of the best other type of the same scheme."""
    scheme = plan.datedb.types[types[0]][0]
    others = [s for t, s in zip(types[1:], scores[1:], strict=True) if plan.datedb.types[t][0] == scheme]
    return float(scores[0] - (others[0] if others else scores[-1]))


def _without_neighbours(found: list[_Found | None], distance: float) -> list[_Found]:
    """One global non-maximum suppression over all places, best first."""
    alive = sorted((f for f in found if f is not None), key=lambda f: (-f.score, *f.position))
    kept: list[_Found] = []
    if not alive:
        return kept
    tree = cKDTree([f.position for f in alive])
    gone = np.zeros(len(alive), bool)
    for i, place in enumerate(alive):
        if not gone[i]:
            kept.append(place)
            gone[tree.query_ball_point(place.position, distance)] = True
    return kept


def _hits(plan: ScanPlan, found: list[_Found]) -> Hits:
    keys = [plan.datedb.types[f.type] for f in found]
    return Hits(
        np.array([f.position for f in found], np.float64).reshape(-1, 3),
        np.array([f.type + 1 for f in found], np.int64),
        [type_ for _, type_ in keys],
        [scheme for scheme, _ in keys],
        [plan.datedb.name(*key) for key in keys],
        [plan.datedb.entries[f.entry].id for f in found],
        np.array([f.score for f in found]),
        np.array([f.margin for f in found]),
    )


def _write_labels(plan: ScanPlan, path: Path, found: list[_Found]) -> dict[int, LabelClass]:
    """Write the label volume on the volume's own grid; returns the classes that occur.

    A voxel carries the type of the hit whose region it belongs to; all others are 0, unknown.
    The types of lattice points beside the hits are not used: their windows hold parts of
    several molecules, and most are wrong (docs/decisions/0008).
    """
    part = path / "labels.part.zarr"
    shutil.rmtree(part, ignore_errors=True)
    volume = plan.volume
    edge = tuple(min(_BLOCK, size) for size in volume.shape)
    array = create_zarr(
        part, shape=volume.shape, dtype=np.uint16, voxel_size=volume.voxel_size, origin=volume.origin, chunks=edge
    )
    present: set[int] = set()
    for box in Tiling(volume.shape, edge) if found else ():
        block = _label_block(plan, box, found)
        present.update(int(label) for label in np.unique(block) if label)
        array[box] = block
    keys = plan.datedb.types
    classes = {n: LabelClass(plan.datedb.name(*keys[n - 1]), keys[n - 1][1], keys[n - 1][0]) for n in sorted(present)}
    write_labels(
        LabelMap(Volume(array, volume.voxel_size, volume.origin), classes), path / "labels.zarr", overwrite=True
    )
    shutil.rmtree(part)
    return classes


def _label_block(plan: ScanPlan, box: Box, found: list[_Found]) -> np.ndarray:
    """Labels of a box of the volume, `z y x` uint16."""
    ratio = plan.volume.voxel_size / plan.embedder.voxel_size
    working = [np.rint(np.arange(part.start, part.stop) * ratio).astype(int) for part in box]
    labels = np.zeros([len(index) for index in working], np.uint16)
    for place in reversed(found):  # the best is painted last
        inside = [
            np.flatnonzero((index >= part.start) & (index < part.stop))
            for index, part in zip(working, place.box, strict=True)
        ]
        if all(len(index) for index in inside):
            mask = place.mask[
                np.ix_(*(index[i] - part.start for index, i, part in zip(working, inside, place.box, strict=True)))
            ]
            view = labels[np.ix_(*inside)]
            labels[np.ix_(*inside)] = np.where(mask, place.type + 1, view)
    return labels


def _summary(
    plan: ScanPlan,
    score: np.ndarray,
    threshold: float,
    hits: Hits,
    classes: dict[int, LabelClass],
    scannable: bool,
) -> dict[str, Any]:
    counts: dict[str, int] = {}
    for scheme, type_ in zip(hits.schemes, hits.types, strict=True):
        counts[f"{scheme} {type_}"] = counts.get(f"{scheme} {type_}", 0) + 1
    if not scannable:
        verdict = "nothing can be named: the volume does not resolve domains; every voxel stays unknown"
    elif len(hits) == 0:
        verdict = "nothing found: no place is more similar to a domain than the volume's own noise"
    else:
        verdict = f"{len(hits)} places named as {len(counts)} domain types"
    return {
        "verdict": verdict,
        "hits": len(hits),
        "hits_per_type": dict(sorted(counts.items(), key=lambda item: -item[1])),
        "label_classes": len(classes),
        "threshold": round(threshold, 4) if scannable else None,
        "lattice_points": int(score.size),
        "windows": int((score > 0).sum()),
        "bank_A": plan.bank,
        "contour": plan.contour,
        "warnings": list(plan.preflight.warnings),
    }

"""After the last tile: threshold, hits by one global non-maximum suppression, regions, label volume."""

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.ndimage
from scipy.spatial import cKDTree

from cryoscan.hits import Hits
from cryoscan.io import create_zarr, open_zarr_array, write_labels
from cryoscan.labels import LabelClass, LabelMap
from cryoscan.provenance import write_atomically
from cryoscan.scan.plan import ScanPlan
from cryoscan.scan.regions import Found, is_named, name_region, null_threshold, region_block
from cryoscan.scan.result import hits_to_json
from cryoscan.tiles import Tiling
from cryoscan.units import Box
from cryoscan.volume import Volume

_BLOCK = 128  # voxels of the volume, edge of the blocks in which labels are written


@dataclass(frozen=True, slots=True)
class RegionNamed:
    """Event: a place that the lattice proposed has been looked at again.

    Parameters
    ----------
    done, total : int
        Places.
    seconds_left : float
    """

    done: int
    total: int
    seconds_left: float
    stage: str = "regions named"


def finish(plan: ScanPlan, path: Path, *, scannable: bool) -> Iterator[RegionNamed]:
    """Turn the lattice of a scanned volume into hits and labels, and write the summary last."""
    score = np.asarray(open_zarr_array(path / "score.zarr")[:, :, :])
    threshold: float | None = None
    places: list[Found] = []
    found: list[Found] = []
    if scannable:
        threshold = plan.config.min_score if plan.config.min_score is not None else null_threshold(plan)
        peaks = _peaks(plan, score)
        regions: list[Found | None] = []
        start = time.monotonic()
        for done, peak in enumerate(peaks, start=1):
            regions.append(name_region(plan, region_block(plan, peak)))
            left = (time.monotonic() - start) / done * (len(peaks) - done)
            yield RegionNamed(done, len(peaks), left)
        places = _without_neighbours(regions, plan.config.min_distance_A)
        found = [place for place in places if is_named(plan, place, threshold)]
    hits = _hits(plan, found)
    write_atomically(path / "hits.json", hits_to_json(hits))
    used = _write_labels(plan, path, found)
    summary = _summary(plan, score, threshold, hits, len(used), len(places) - len(found))
    write_atomically(path / "summary.json", json.dumps(summary, indent=1))


def _peaks(plan: ScanPlan, score: np.ndarray) -> np.ndarray:
    """Lattice points that are the best within the smallest distance of hits, best first, `n 3`.

    They only propose places: the neighbours in a window lower its cosine, so the threshold is
    for the regions that are cut out around them.
    """
    step, _ = plan.lattice_geometry
    size = 2 * max(1, int(plan.config.min_distance_A / step / 2)) + 1
    top = (score == scipy.ndimage.maximum_filter(score, size=size)) & (score > 0)
    places = np.argwhere(top)
    values = score[top]
    return places[np.lexsort((places[:, 2], places[:, 1], places[:, 0], -values))]


def _without_neighbours(found: list[Found | None], distance: float) -> list[Found]:
    """One global non-maximum suppression over all places, best first."""
    alive = sorted((f for f in found if f is not None), key=lambda f: (-f.score, *f.position))
    kept: list[Found] = []
    if not alive:
        return kept
    tree = cKDTree([f.position for f in alive])
    gone = np.zeros(len(alive), bool)
    for i, place in enumerate(alive):
        if not gone[i]:
            kept.append(place)
            gone[tree.query_ball_point(place.position, distance)] = True
    return kept


def _hits(plan: ScanPlan, found: list[Found]) -> Hits:
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


def _write_labels(plan: ScanPlan, path: Path, found: list[Found]) -> dict[int, LabelClass]:
    """Write the label volume on the volume's own grid; returns the classes that occur.

    A voxel carries the type of the hit whose region it belongs to; all others are 0, unknown.
    The types of lattice points beside the hits are not used: their windows hold parts of
    several molecules, and most are wrong (docs/decisions/0008).
    """
    part = path / "labels.part.zarr"
    shutil.rmtree(part, ignore_errors=True)
    volume = plan.volume
    z, y, x = (min(_BLOCK, size) for size in volume.shape)
    edge = (z, y, x)
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


def _label_block(plan: ScanPlan, box: Box, found: list[Found]) -> np.ndarray:
    """Labels of a box of the volume, `z y x` uint16."""
    ratio = plan.volume.voxel_size / plan.embedder.voxel_size
    working = [np.rint(np.arange(part.start, part.stop) * ratio).astype(int) for part in box]
    labels = np.zeros([len(index) for index in working], np.uint16)
    for place in reversed(found):  # the best is painted last
        local = [index - start for index, start in zip(working, place.start, strict=True)]
        inside = [
            np.flatnonzero((index >= 0) & (index < size)) for index, size in zip(local, place.mask.shape, strict=True)
        ]
        if all(len(index) for index in inside):
            mask = place.mask[np.ix_(*(index[i] for index, i in zip(local, inside, strict=True)))]
            here = np.ix_(*inside)
            labels[here] = np.where(mask, place.type + 1, labels[here])
    return labels


def _summary(
    plan: ScanPlan, score: np.ndarray, threshold: float | None, hits: Hits, classes: int, unnamed: int
) -> dict[str, Any]:
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
        "label_classes": classes,
        "threshold": None if threshold is None else round(threshold, 4),
        "lattice_points": int(score.size),
        "windows": int((score > 0).sum()),
        "bank_A": plan.bank,
        "contour": plan.contour,
        "warnings": list(plan.preflight.warnings),
    }

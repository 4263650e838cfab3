"""Labels of scans whose embedder cuts no places out: every lattice point speaks for the density around it.

Which point speaks for a voxel does not depend on thresholds, so it is painted once (`paint_points`). What a
point is called, under any thresholds and after corrections, is then a table (`LatticePoints.table`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from scipy.spatial import cKDTree

from cryoscan.datedb import DateDB
from cryoscan.embedding import Embedder, unit_rows
from cryoscan.errors import FormatError
from cryoscan.io import build_pyramid, open_labels, open_zarr_array
from cryoscan.io.replacing import replacing
from cryoscan.labels import LabelClass, LabelMap, looked_up
from cryoscan.scan import Corrected, FoundPlaces, LabelsPainted, ScanConfig, ScanPlan, ScanResult, read_found
from cryoscan.scan.finish import create_numbers
from cryoscan.scan.relabel import plan_again
from cryoscan.scan.thresholds import is_named
from cryoscan.segment import label_block
from cryoscan.volume import Volume

POINTS = "points.zarr"


@dataclass(frozen=True, slots=True, eq=False)
class LatticePoints:
    """Points of the lattice that hold something, numbered from 1, and which voxels each speaks for.

    Parameters
    ----------
    numbers : Volume
        Number of the point that speaks for each voxel of the scanned volume; 0 where there is no density.
    type : int array, `m`
        What each point looks like most: index into `FoundPlaces.types`.
    score, margin : float64 array, `m`
    confidence : float64 array, `m`, optional
        None where the DateDB is not calibrated.
    place : int array, `m`
        Index of the place to which the point belongs, -1 for none: connected points of one type belong to the
        nearest place among them.
    """

    numbers: Volume
    type: np.ndarray
    score: np.ndarray
    margin: np.ndarray
    confidence: np.ndarray | None
    place: np.ndarray

    def table(self, found: FoundPlaces, places: Corrected, config: ScanConfig | None = None) -> np.ndarray:
        """Label of every point, `m + 1` uint16; the first is that of voxels for which none speaks.

        Parameters
        ----------
        found : FoundPlaces
        places : Corrected
            The same after corrections: they count for all points of a place.
        config : ScanConfig, optional
            Thresholds in place of the scan's own.
        """
        config = config or found.config
        named = is_named(
            config,
            threshold=found.threshold if config.min_score is None else config.min_score,
            types=[type_ for _, type_ in found.types],
            type_=self.type,
            score=self.score,
            margin=self.margin,
            confidence=self.confidence,
        )
        labels = np.where(named, self.type + 1, 0)
        for place, status in enumerate(places.status):
            if status:
                mine = self.place == place
                if status == "rejected":
                    labels[mine] = 0
                else:  # below the thresholds all of it counts: somebody said that it is there
                    some = mine & named
                    labels[some if some.any() else mine] = places.hits.labels[place]
        return np.concatenate([[0], labels]).astype(np.uint16)

    def classes(self, result: ScanResult, places: Corrected) -> dict[int, LabelClass]:
        """Meaning of the labels: all that the scan could name, and what people named."""
        hits = places.hits
        given = zip(hits.labels.tolist(), hits.names, hits.types, hits.schemes, strict=True)
        return {**result.labels().classes, **{label: LabelClass(n, t, s) for label, n, t, s in given}}

    def labels(self, result: ScanResult, table: np.ndarray, places: Corrected) -> LabelMap:
        """Domain type per voxel, lazily."""
        return LabelMap(looked_up(self.numbers, table), self.classes(result, places))


def open_points(result: ScanResult) -> LatticePoints | None:
    """What `paint_points` wrote; None if it is not painted, or was with another DateDB."""
    path = result.path / POINTS
    if not path.is_dir():
        return None
    group: Any = zarr.open_group(path, mode="r")
    if group.attrs.get("places") != read_found(result).digest:
        return None
    confidence = np.asarray(group["confidence"][:]) if "confidence" in group else None
    type_, score, margin, place = (np.asarray(group[name][:]) for name in ("type", "score", "margin", "place"))
    return LatticePoints(open_labels(path).volume, type_, score, margin, confidence, place)


def paint_points(result: ScanResult, *, datedb: DateDB, embedder: Embedder) -> Iterator[LabelsPainted]:
    """Write the volume that `open_points` gives, so that a change of thresholds is a change of a table.

    Parameters
    ----------
    result : ScanResult
        Finished, of an embedder that cuts no places out.
    datedb, embedder
        Those of the scan.

    Raises
    ------
    FormatError
        If the embedder cuts places out, or the volume is not where it was.
    """
    found, plan = read_found(result), plan_again(result, datedb=datedb, embedder=embedder)
    if embedder.needs_mask:
        raise FormatError(
            "expected a scan whose labels belong to lattice points",
            got=f"one with {type(embedder).__name__}, which cuts places out",
            hint="Paint its places.",
        )
    _require_volume(
        plan, result, "Put it back. Until then labels follow thresholds once they are applied (`cryoscan relabel`)."
    )
    score, margin = result.score.load(), result.margin.load()
    topk: Any = zarr.open_group(result.path / "topk.zarr", mode="r")
    best = np.asarray(topk["types"][0])
    there = score > 0
    number = np.zeros(there.shape, np.uint32)
    number[there] = np.arange(1, int(there.sum()) + 1)
    columns: dict[str, np.ndarray] = {
        "type": best[there].astype(np.int32),
        "score": score[there].astype(np.float64),
        "margin": margin[there].astype(np.float64),
        "place": _nearest_place(np.where(there, best + 1, 0), result, found)[there],
    }
    confidence = plan.datedb.confidences(columns["score"], columns["margin"], columns["type"], bank=plan.bank)
    if confidence is not None:
        columns["confidence"] = confidence
    ratio, first = plan.volume.voxel_size / embedder.voxel_size, plan.grid.centres(np.zeros(3))
    with replacing(result.path / POINTS, overwrite=True) as beside:
        blocks = create_numbers(beside, plan)
        for done, box in enumerate(blocks, start=1):
            nearest = [
                np.clip(np.rint((np.arange(b.start, b.stop) * ratio - f) / plan.config.stride_voxels), 0, n - 1)
                for b, f, n in zip(box, first, there.shape, strict=True)
            ]
            spread = number[np.ix_(*(index.astype(int) for index in nearest))]
            if spread.any():
                density = plan.volume.read(box) - plan.background > plan.contour
                open_zarr_array(beside, writable=True)[box] = np.where(density, spread, 0)
            yield LabelsPainted(done, len(blocks), 0.0, stage="blocks of lattice points painted")
        build_pyramid(beside, average=False)
        group = zarr.open_group(beside, mode="r+")
        for name, values in columns.items():
            group.create_array(name, data=values)
        group.attrs["places"] = found.digest


@dataclass(frozen=True, slots=True, eq=False)
class LatticeSample:
    """Some points of a lattice that hold something.

    Parameters
    ----------
    positions : float64 array, `n 3`
        z, y, x in Å.
    meanings : tuple of LabelClass, `n`
        What each looks like most.
    vectors : float32 array, `n d`
        Unit rows.
    """

    positions: np.ndarray
    meanings: tuple[LabelClass, ...]
    vectors: np.ndarray


def sample_lattice(
    result: ScanResult, count: int, *, datedb: DateDB, embedder: Embedder, seed: int = 0
) -> LatticeSample:
    """Look again at some points of a lattice, each drawn with the same probability.

    A scan keeps no vectors of its lattice unless it is told to, so the windows are embedded anew.

    Parameters
    ----------
    result : ScanResult
        Finished.
    count : int
        Most points; fewer where the lattice has fewer that hold something.
    datedb, embedder
        Those of the scan.
    seed : int

    Raises
    ------
    FormatError
        If the scan is unfinished, or its volume is not where it was.
    """
    result.require_complete()
    plan = plan_again(result, datedb=datedb, embedder=embedder)
    _require_volume(plan, result, "Put it back, or look at the hits.")
    score = result.score
    there = np.flatnonzero(score.load().ravel() > 0)
    chosen = np.sort(np.random.default_rng(seed).permutation(there)[:count])
    points = np.stack(np.unravel_index(chosen, score.shape), axis=1)
    windows = np.zeros((len(points), *[embedder.window] * 3), np.float32)
    for row, (z, y, x) in enumerate(points.tolist()):
        one = (slice(z, z + 1), slice(y, y + 1), slice(x, x + 1))
        windows[row] = plan.read_working(plan.grid.read_box(one)).load()
    topk: Any = zarr.open_group(result.path / "topk.zarr", mode="r")
    best = np.asarray(topk["types"][0]).ravel()[chosen]
    types, names = result.manifest["types"], result.manifest["names"]
    return LatticeSample(
        score.to_position(points),
        tuple(LabelClass(names[t], types[t][1], types[t][0]) for t in best.tolist()),
        unit_rows(embedder.embed(windows)),
    )


# ---------------------------------------------------------------- private


def _require_volume(plan: ScanPlan, result: ScanResult, hint: str) -> None:
    if plan.source is None:
        raise FormatError(f"expected the volume of {result.path}", got="none where it was", hint=hint)


def _nearest_place(labels: np.ndarray, result: ScanResult, found: FoundPlaces) -> np.ndarray:
    """For each lattice point the nearest place in its connected piece, -1 where there is none."""
    owner = np.full(labels.shape, -1, np.int32)
    if not len(found):
        return owner
    pieces = label_block(labels)
    at = np.rint(result.score.to_index(found.hits.positions)).astype(int)
    at = np.clip(at, 0, np.array(labels.shape) - 1)
    piece_of_place = pieces[tuple(at.T)]
    points = np.argwhere(pieces)
    piece = pieces[tuple(points.T)]
    order = np.argsort(piece, kind="stable")
    for wanted in np.unique(piece_of_place[piece_of_place > 0]):
        first, stop = np.searchsorted(piece[order], [wanted, wanted + 1])
        mine, rivals = points[order[first:stop]], np.flatnonzero(piece_of_place == wanted)
        owner[tuple(mine.T)] = rivals[cKDTree(at[rivals]).query(mine)[1]]
    return owner

"""One tile of the lattice: read a block, find its occupied points, embed and assign them, write, mark as done."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import scipy.ndimage

from cryoscan.errors import FormatError
from cryoscan.scan.executors import Work
from cryoscan.scan.folder import (
    TileReport,
    clear_tile,
    file_sizes,
    finished_tile,
    mark_tile,
    write_embeddings,
    write_lattice,
)
from cryoscan.scan.places import write_candidates
from cryoscan.scan.plan import ScanPlan, Speed, local_spread
from cryoscan.tiles import Tiling
from cryoscan.units import Box


def read_tile(plan: ScanPlan, path: Path, index: int) -> np.ndarray:
    """Everything that the windows of a tile see, on the embedder's grid, `z y x`.

    Raises
    ------
    FormatError
        If there is NaN or infinity in it.
    """
    box = _grown(plan.grid.read_box(plan.tiling.box(index)), plan.embedder.halo)
    block = plan.read_working(box)
    data = block.load()
    if not np.isfinite(data).all():
        low, high = (np.round(block.to_position(corner), 1).tolist() for corner in ((0, 0, 0), data.shape))
        raise FormatError(
            "expected finite values",
            got=f"NaN or infinity between {low} and {high} Å (z, y, x)",
            hint="Replace them by the mean of the volume in the program that made it; the rest is scanned.",
        )
    return data


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """What the lattice points of a tile look like most.

    Parameters
    ----------
    types : int32 array, `k z y x`
        Indices into the database's types, best first; -1 where there is none.
    scores : float32 array, `k z y x`
    vectors : float16 array, `z y x d`, optional
        If anything needs them later.
    windows : int
        Points that were embedded.
    """

    types: np.ndarray
    scores: np.ndarray
    vectors: np.ndarray | None
    windows: int


def answer_tile(plan: ScanPlan, index: int, block: np.ndarray) -> Answers:
    """Embed and assign the occupied lattice points of a tile."""
    box = plan.tiling.box(index)
    shape = tuple(part.stop - part.start for part in box)
    k = plan.config.candidates
    types = np.full((k, *shape), -1, np.int32)
    scores = np.zeros((k, *shape), np.float32)
    wanted = plan.config.keep_embeddings or not plan.embedder.needs_mask
    kept = np.zeros((*shape, plan.embedder.dim), np.float16) if wanted else None
    windows = 0
    for cell, part in _cells(plan, shape, block):
        occupied = _occupied(plan, part, box, cell)
        if not occupied.any():
            continue
        vectors = _embed(plan, part, occupied)
        found = plan.datedb.assign(
            vectors, top=k, resolution=plan.bank, representatives=False, device=str(plan.embedder.device)
        )
        alive = np.linalg.norm(vectors, axis=1) > 0
        z, y, x = (np.argwhere(occupied)[alive] + [c.start for c in cell]).T
        types[: found.types.shape[1], z, y, x] = found.types[alive].T
        scores[: found.scores.shape[1], z, y, x] = found.scores[alive].T
        if kept is not None:
            kept[z, y, x] = vectors[alive]
        windows += int(alive.sum())
    return Answers(types, scores, kept, windows)


def scan_tile(plan: ScanPlan, path: Path, index: int, block: np.ndarray) -> TileReport:
    """Embed and assign a tile, write it, then mark it as done.

    A tile that is done stays as it is: a scheduler does again what a worker had done that died
    before its answer was fetched, and by then others may be reading the files.
    """
    done = finished_tile(plan, path, index)
    if done is not None:
        return done
    start = time.process_time()
    answers = answer_tile(plan, index, block)
    box = plan.tiling.box(index)
    clear_tile(plan, path, index)
    if answers.windows:
        write_lattice(plan, path, box, answers.types, answers.scores)
        if answers.vectors is not None and plan.config.keep_embeddings:
            write_embeddings(path, box, answers.vectors)
        if answers.vectors is not None and not plan.embedder.needs_mask:
            write_candidates(plan, path, index, answers.scores[0], answers.vectors)
    sizes = file_sizes(plan, path, index)
    report = TileReport(plan.signature, answers.windows, time.process_time() - start, sizes)
    mark_tile(path, index, report)
    return report


SCAN_TILE = Work("tiles scanned", read_tile, scan_tile)


def probe_speed(plan: ScanPlan, *, seconds: float = 5.0) -> Speed:
    """Try tiles spread over the volume for a few seconds, without writing anything.

    The first is not counted: it pays for what is made only once. Where the volume is sharpened, one tile of the network
    is tried, and the others as the volume is: a scan sharpens each place once, which a few tiles do not show.
    """
    sharpening = 0.0 if plan.sharpening is None else plan.sharpening.seconds(plan.volume)
    plan = replace(plan, sharpening=None)
    order = np.random.default_rng(0).permutation(plan.active).tolist()
    points = windows = tried = 0
    spent, begin = 0.0, time.monotonic()
    for number, index in enumerate(order):
        start = time.monotonic()
        block = read_tile(plan, Path(), index)
        windows += answer_tile(plan, index, block).windows
        points += int(np.prod([part.stop - part.start for part in plan.tiling.box(index)]))
        if number > 0 or len(order) == 1:
            spent += time.monotonic() - start
            tried += 1
        if time.monotonic() - begin > seconds and tried:
            break
    return Speed(tried, spent / max(tried, 1), windows / max(points, 1), sharpening)


def _cells(plan: ScanPlan, shape: tuple[int, ...], block: np.ndarray) -> Iterator[tuple[Box, np.ndarray]]:
    """The cells of a tile: lattice points, counted from the tile's first, and the voxels that belong to them.

    Cells lie where the lattice puts them, tiles are whole cells: what a cell says does not
    depend on the tile. An embedder whose windows are independent gets the tile at once.
    """
    z, y, x = shape
    core = (z, y, x) if plan.embedder.cell == 1 else (min(plan.cell, z), min(plan.cell, y), min(plan.cell, x))
    stride, more = plan.config.stride_voxels, plan.embedder.window + 2 * plan.embedder.halo
    for cell in Tiling((z, y, x), core):
        yield cell, block[tuple(slice(c.start * stride, (c.stop - 1) * stride + more) for c in cell)]


def _occupied(plan: ScanPlan, part: np.ndarray, tile: Box, cell: Box) -> np.ndarray:
    """Lattice points of a cell that may have protein close to their centre, `z y x` bool.

    Close means within the stride, for what lies between is seen by a neighbour; but nothing
    beyond the window is looked at, for where a tile ends must not matter.
    """
    window, stride, halo = plan.embedder.window, plan.config.stride_voxels, plan.embedder.halo
    middle = window // 2 + halo
    points = tuple(slice(middle, middle + (c.stop - c.start - 1) * stride + 1, stride) for c in cell)
    reach = min(max(2, stride), middle)
    above = scipy.ndimage.maximum_filter(part, size=2 * reach, mode="constant", cval=-np.inf)[points]
    occupied = np.asarray(above > plan.contour)
    if plan.flat > 0 and occupied.any():
        occupied &= local_spread(part, plan.flat_edge)[points] > plan.flat
    if plan.mask is not None and occupied.any():
        occupied &= _inside_mask(plan, tile, cell)
    return occupied


def _inside_mask(plan: ScanPlan, tile: Box, cell: Box) -> np.ndarray:
    """Whether the mask is set at the centre of each lattice point of a cell."""
    assert plan.mask is not None
    ratio = plan.embedder.voxel_size / plan.volume.voxel_size
    axes = []
    for t, c, first, size in zip(tile, cell, plan.grid.centres(np.zeros(3)), plan.mask.shape, strict=True):
        index = np.arange(t.start + c.start, t.start + c.stop) * plan.config.stride_voxels + first
        axes.append(np.clip(np.rint(index * ratio).astype(int), 0, size - 1))
    box = tuple(slice(int(a[0]), int(a[-1]) + 1) for a in axes)
    values = np.asarray(plan.mask.data[box])
    return np.asarray(values[np.ix_(*(a - a[0] for a in axes))] > 0)


def _embed(plan: ScanPlan, part: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Vectors of some lattice points of a cell, `n d`.

    Where windows are independent and few of them are wanted, they are embedded one by one.
    """
    stride, edge = plan.config.stride_voxels, plan.embedder.window
    if plan.embedder.cell > 1 or points.mean() > 0.5:
        return plan.embedder.embed_dense(part, stride=stride)[points]
    views = np.lib.stride_tricks.sliding_window_view(part, (edge, edge, edge))[::stride, ::stride, ::stride]
    places = np.argwhere(points)
    parts = [plan.embedder.embed(views[tuple(places[start : start + 256].T)]) for start in range(0, len(places), 256)]
    return np.concatenate(parts)


def _grown(box: Box, halo: int) -> Box:
    z, y, x = (slice(part.start - halo, part.stop + halo) for part in box)
    return z, y, x

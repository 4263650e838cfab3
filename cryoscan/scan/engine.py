"""Running a plan: tile by tile, each written whole before it is marked as done."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.ndimage

from cryoscan.errors import ExistingOutputError, MismatchError, ResourceError
from cryoscan.io import create_zarr, open_zarr_array
from cryoscan.provenance import Provenance, write_atomically
from cryoscan.scan.finish import RegionNamed, finish
from cryoscan.scan.plan import ScanPlan, check_resources
from cryoscan.scan.result import FORMAT_VERSION, ScanResult, open_scan
from cryoscan.units import Box


@dataclass(frozen=True, slots=True)
class TileDone:
    """Event: a tile is computed and safe on disk.

    Parameters
    ----------
    done, total : int
        Tiles, those of earlier runs included.
    windows : int
        Windows embedded in this tile.
    seconds_left : float or None
        Estimate; None for tiles that were there already.
    """

    done: int
    total: int
    windows: int
    seconds_left: float | None


@dataclass(frozen=True, slots=True)
class ScanFinished:
    """Event: the scan is complete."""

    result: ScanResult


def run_scan(
    plan: ScanPlan, path: Path | str, *, overwrite: bool = False
) -> Iterator[TileDone | RegionNamed | ScanFinished]:
    """Run a plan, or what is left of it.

    Parameters
    ----------
    plan : ScanPlan
    path : Path
        Folder of the scan, ``name.scan``. An unfinished scan of the same plan is continued.
    overwrite : bool
        Start anew in place of an existing scan.

    Raises
    ------
    MismatchError
        If the folder holds a scan of other settings or inputs.
    ExistingOutputError
        If it is something else, or a finished scan.
    """
    path = Path(path)
    _prepare(plan, path, overwrite=overwrite)
    signature = plan.signature
    scannable = plan.preflight.can_identify or plan.config.ignore_resolution
    waiting = [index for index in range(len(plan.tiling)) if not _is_done(path, index, signature)] if scannable else []
    done = len(plan.tiling) - len(waiting)
    start = time.monotonic()
    for count, index in enumerate(waiting, start=1):
        windows = _run_tile(plan, path, plan.tiling.box(index))
        write_atomically(_marker(path, index), signature)
        left = (time.monotonic() - start) / count * (len(waiting) - count)
        yield TileDone(done + count, len(plan.tiling), windows, left)
    yield from finish(plan, path, scannable=scannable)
    yield ScanFinished(open_scan(path))


def _prepare(plan: ScanPlan, path: Path, *, overwrite: bool) -> None:
    manifest = path / "manifest.json"
    if path.exists() and not manifest.is_file() and any(path.iterdir() if path.is_dir() else [path]):
        raise ExistingOutputError(
            "expected a new name or an unfinished scan", got=f"{path}, which is something else", hint="Choose another."
        )
    if manifest.is_file() and not overwrite:
        stored = json.loads(manifest.read_text(encoding="utf-8"))
        before = Provenance.from_json(stored["provenance"])
        differences = before.differences(plan.provenance)
        if differences:
            raise MismatchError(
                f"expected the settings and inputs with which {path} was begun",
                got="; ".join(differences),
                hint="Use the same ones to continue, another name, or --overwrite to start anew.",
            )
        if (path / "summary.json").is_file():
            raise ExistingOutputError(
                "expected a scan that is not finished yet",
                got=f"{path}, which is complete",
                hint="Export it with `cryoscan export`, or pass --overwrite to scan again.",
            )
        return
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    content = {
        "format": "cryoscan scan",
        "format_version": FORMAT_VERSION,
        "provenance": plan.provenance.to_json(),
        "volume": {"shape": plan.volume.shape, "voxel_size_A": plan.volume.voxel_size, "origin_A": plan.volume.origin},
        "types": [list(key) for key in plan.datedb.types],
        "names": [plan.datedb.name(*key) for key in plan.datedb.types],
        "warnings": list(plan.preflight.warnings),
    }
    try:
        (beside / "tiles").mkdir(parents=True)
        check_resources(plan, beside)
        _create_arrays(plan, beside)
        (beside / "manifest.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
        if path.exists():
            shutil.rmtree(path)
        beside.rename(path)
    except OSError as error:
        raise ResourceError(
            f"expected to create the folder {path}", got=str(error), hint="Check permissions and the parent folder."
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _create_arrays(plan: ScanPlan, path: Path) -> None:
    import zarr

    voxel, origin = plan.lattice_geometry
    core = plan.tiling.core
    for name in ("score", "margin"):
        create_zarr(
            path / f"{name}.zarr",
            shape=plan.grid.shape,
            dtype=np.float32,
            voxel_size=voxel,
            origin=origin,
            chunks=core,
            shards=core,
        )
    group = zarr.open_group(path / "topk.zarr", mode="w")
    k = plan.config.candidates
    for name, dtype, fill in (("types", np.int32, -1), ("scores", np.float32, 0)):
        group.create_array(
            name, shape=(k, *plan.grid.shape), chunks=(k, *core), dtype=dtype, fill_value=fill, overwrite=True
        )


def _run_tile(plan: ScanPlan, path: Path, box: Box) -> int:
    """Embed and assign the lattice points of a tile, and write them; returns the number of windows embedded."""
    import zarr

    shape = tuple(part.stop - part.start for part in box)
    k = plan.config.candidates
    types = np.full((k, *shape), -1, np.int32)
    scores = np.zeros((k, *shape), np.float32)
    block = plan.read_working(plan.grid.read_box(box)).load()
    occupied = occupied_points(block, plan)
    if occupied.any():
        vectors = embed_points(block, occupied, plan)
        found = plan.datedb.assign(vectors, top=k, resolution=plan.bank)
        alive = np.linalg.norm(vectors, axis=1) > 0
        places = np.argwhere(occupied)[alive]
        z, y, x = places.T
        types[: found.types.shape[1], z, y, x] = found.types[alive].T
        scores[: found.scores.shape[1], z, y, x] = found.scores[alive].T
    open_zarr_array(path / "score.zarr", writable=True)[box] = scores[0]
    open_zarr_array(path / "margin.zarr", writable=True)[box] = scores[0] - scores[1]
    group = zarr.open_group(path / "topk.zarr", mode="r+")
    group["types"][(slice(None), *box)] = types
    group["scores"][(slice(None), *box)] = scores
    return int(occupied.sum())


def occupied_points(block: np.ndarray, plan: ScanPlan) -> np.ndarray:
    """Lattice points of a block that have density above the contour close to their centre, `z' y' x'` bool.

    Close means within the stride: what lies between is seen by a neighbour.
    """
    window, stride = plan.embedder.window, plan.config.stride_voxels
    reach = max(2, stride)
    above = scipy.ndimage.maximum_filter(block, size=2 * reach, mode="constant", cval=-np.inf) > plan.contour
    middle = window // 2
    z, y, x = (slice(middle, size - window + middle + 1, stride) for size in block.shape)
    return above[z, y, x]


def embed_points(block: np.ndarray, points: np.ndarray, plan: ScanPlan) -> np.ndarray:
    """Embed the windows of some lattice points of a block, `n d`; nearly all points: the whole block at once."""
    stride, edge = plan.config.stride_voxels, plan.embedder.window
    if points.mean() > 0.5:
        return plan.embedder.embed_dense(block, stride=stride)[points]
    views = np.lib.stride_tricks.sliding_window_view(block, (edge, edge, edge))[::stride, ::stride, ::stride]
    places = np.argwhere(points)
    parts = [plan.embedder.embed(views[tuple(places[start : start + 256].T)]) for start in range(0, len(places), 256)]
    return np.concatenate(parts)


def _marker(path: Path, index: int) -> Path:
    return path / "tiles" / str(index)


def _is_done(path: Path, index: int, signature: str) -> bool:
    marker = _marker(path, index)
    return marker.is_file() and marker.read_text() == signature

"""What tests of the scan share with the processes that they start: a scene, its database, and embedders with moods."""

import hashlib
import multiprocessing
import os
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from cryoscan import Volume
from cryoscan.datedb import DateDB
from cryoscan.embedding import Embedder
from cryoscan.filters import resample_onto
from cryoscan.io import VolumeFile, open_zarr_array
from cryoscan.scan import ScanConfig, ScanPlan, plan_scan, run_scan
from cryoscan.testing import CellEmbedder, ToyEmbedder, toy_datedb

ORIGIN = (-31.5, 12.25, 407.125)
VOXEL_SIZE = 3.1
SHAPE = (41, 52, 63)
PLANTED = {  # where the middle of each shape is, in Å from the first voxel
    "solid": ((40.0, 45.0, 40.0), (85.0, 110.0, 152.0)),
    "shell": ((80.0, 115.0, 50.0), (45.0, 50.0, 110.0)),
    "small": ((92.0, 40.0, 160.0), (30.0, 125.0, 105.0)),
}
RADII = {"solid": (16.0, 0.0), "shell": (19.0, 11.0), "small": (10.5, 0.0)}
SETTINGS: dict[str, Any] = {
    "stride_voxels": 2,
    "candidates": 2,
    "min_score": 0.9,
    "contour": 0.2,
    "resolution_A": 6.2,
    "tile_points": 8,
}


def ball(distance: np.ndarray, name: str) -> np.ndarray:
    """Density of a shape at some distances (Å) from its middle."""
    radius, hollow = RADII[name]
    inner = 1 / (1 + np.exp((distance - hollow) / 1.5)) if hollow else 0.0
    return np.asarray(1 / (1 + np.exp((distance - radius) / 1.5)) - inner, np.float32)


def scene(shape: tuple[int, int, int] = SHAPE) -> Volume:
    """Two of each shape, and some noise."""
    data = np.random.default_rng(3).normal(scale=0.02, size=shape).astype(np.float32)
    places = np.moveaxis(np.indices(shape), 0, -1) * VOXEL_SIZE
    for name, middles in PLANTED.items():
        for middle in middles:
            data += ball(np.linalg.norm(places - middle, axis=-1), name)
    return Volume(data, VOXEL_SIZE, ORIGIN)


def toy(*, needs_mask: bool = True) -> ToyEmbedder:
    return ToyEmbedder(window=12, voxel_size=4.0, needs_mask=needs_mask)


def cells() -> CellEmbedder:
    return CellEmbedder(window=12, voxel_size=4.0, cell=8, halo=3)


def database(embedder: Embedder) -> DateDB:
    """One type per shape; coarser than the scene: the scan has to blur, and needs a halo for it."""
    places = np.moveaxis(np.indices((27, 27, 27)), 0, -1) * 2.0 - 26.0
    corner = -(embedder.window - 1) / 2 * embedder.voxel_size
    windows = {
        name: resample_onto(
            Volume(ball(np.linalg.norm(places, axis=-1), name), 2.0, (-26.0, -26.0, -26.0)),
            voxel_size=embedder.voxel_size,
            origin=(corner, corner, corner),
            shape=(embedder.window,) * 3,
        )
        for name in RADII
    }
    return toy_datedb(embedder, windows, bank=9.0)


EMBEDDERS = {"masked": toy, "windows": lambda: toy(needs_mask=False), "cells": cells}
"""Kinds of embedders: places are cut out; windows are independent; windows of a cell share work."""


def plan_of(
    kind: str, volume: Volume, *, source: VolumeFile | None = None, mask: Volume | None = None, **settings: Any
) -> ScanPlan:
    """Plan a scan of a volume with a kind of embedder."""
    embedder = EMBEDDERS[kind]()
    config = ScanConfig.build(**{**SETTINGS, **settings})
    return plan_scan(volume, datedb=database(embedder), embedder=embedder, config=config, source=source, mask=mask)


# ---------------------------------------------------------------- what came out


def contents(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a scan."""
    group = zarr.open_group(path / "topk.zarr", mode="r")
    arrays = {name: np.asarray(group[name][...]) for name in ("types", "scores")}
    for name in ("score", "margin", "labels", "instances"):
        arrays[name] = np.asarray(open_zarr_array(path / f"{name}.zarr")[...])
    return arrays


def results(path: Path) -> dict[str, str]:
    """Digest of every file of a scan that is part of its answer; what is left of killed processes does not count."""
    files = [path / "hits.json", path / "summary.json", *path.glob("places/*.npz")]
    files += [file for file in path.glob("*.zarr/**/*") if file.is_file() and not file.name.endswith(".partial")]
    assert len(files) > 10
    return {str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


# ---------------------------------------------------------------- other processes


def start(kind: str, output: Path, **how: Any) -> BaseProcess:
    """Scan in another process, which starts in no time: its imports were made once for all."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["cryoscan.scan", "cryoscan.testing", "skimage.filters", "skimage.segmentation", "torch"]
    )
    process = context.Process(target=scan_here, args=(kind, output), kwargs=how, daemon=True)
    process.start()
    return process


def end(process: BaseProcess, *, seconds: float = 120) -> int | None:
    """Wait for a process, and tell how it ended."""
    process.join(seconds)
    if process.is_alive():
        process.kill()
        raise TimeoutError
    return process.exitcode


def scan_here(kind: str, output: Path, *, shard: tuple[int, int] | None = None, begun: Any = None) -> None:
    """Scan the scene in this process."""
    plan = plan_of(kind, scene())
    if begun is not None:
        begun.set()
    for _ in run_scan(plan, output, shard=shard):
        pass


# ---------------------------------------------------------------- what goes wrong


BRIGHT = PLANTED["small"][1]
"""Middle of the shape that `bright_scene` makes brighter than all others."""


def bright_scene() -> Volume:
    """The scene with one shape by which a moody embedder knows where it is."""
    volume = scene()
    data = volume.load()
    places = np.moveaxis(np.indices(data.shape), 0, -1) * VOXEL_SIZE
    data += 7 * ball(np.linalg.norm(places - BRIGHT, axis=-1), "small")
    return Volume(data, volume.voxel_size, volume.origin)


class Moody(ToyEmbedder):
    """A toy that goes wrong near the bright shape while a file exists, or once, if it may remove the file."""

    def __init__(self, switch: Path, mood: str, *, once: bool = False, needs_mask: bool = False) -> None:
        super().__init__(window=12, voxel_size=4.0, needs_mask=needs_mask)
        self._switch, self._mood, self._once = switch, mood, once

    def embed(self, windows: np.ndarray) -> np.ndarray:
        if windows.size and windows.max() > 2 and self._switch.exists():
            if self._once:
                self._switch.unlink()
            self._go_wrong()
        return super().embed(windows)

    def _go_wrong(self) -> None:
        if self._mood == "raise":
            raise ValueError("it is too bright here")
        if self._mood == "memory":
            raise MemoryError("no more of it")
        if self._mood == "die":
            os._exit(137)
        time.sleep(600)


def moody_plan(volume: Volume, embedder: Moody, **settings: Any) -> ScanPlan:
    """Plan a scan whose embedder goes wrong."""
    config = ScanConfig.build(**{**SETTINGS, **settings})
    return plan_scan(volume, datedb=database(toy()), embedder=embedder, config=config)


def pretend_version(version: str | None) -> None:
    """Let this process think that it runs another version of cryoscan; None for the truth."""
    import cryoscan.provenance
    import cryoscan.scan.plan

    truth = cryoscan.provenance.cryoscan_version
    cryoscan.scan.plan.cryoscan_version = truth if version is None else lambda: version

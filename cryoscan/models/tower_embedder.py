"""How a DensityTower serves as an Embedder: batches and threads for windows, cells and phases for blocks."""

import copy
import itertools
import math
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from torch.nn import functional

from cryoscan.embedding import check_windows, unit_rows
from cryoscan.errors import GeometryError
from cryoscan.models.density_tower import CODE_STRIDE, DensityTower
from cryoscan.provenance import fingerprint_arrays, fingerprint_json
from cryoscan.tiles import Tiling
from cryoscan.units import Angstrom, Box, Voxels

_VERSION = 1  # raise when the same weights come to mean other vectors
_BATCH = 16  # windows at a time on a processor
_GPU_BATCH = 2048  # the same on a GPU, to begin with; halved until it fits
_SAME = 0.999  # mean centred cosine of vectors that are as good as the same
_CELL = 128  # voxels at least: smaller cells evaluate more halo, larger ones gain little speed for much memory

_Piece = TypeVar("_Piece")


class TowerEmbedder:
    """Unit vectors of a DensityTower.

    Density must have its solvent at zero; its scale does not matter.

    Parameters
    ----------
    tower : DensityTower
        Copied.
    device : str
        Where torch computes.
    threads : int, optional
        Batches or cells computed side by side on a processor; default: one for each core. A single cell
        is left to the threads of torch.
    precision : torch.dtype
        Of the arithmetic, `torch.float32`, `torch.float16` or `torch.bfloat16`; see `fastest_precision`.
    """

    halo: Voxels = 8  # the codes of a cell's border are then within 0.998 of those with unlimited context
    needs_mask: bool = False

    def __init__(
        self,
        tower: DensityTower,
        *,
        device: str = "cpu",
        threads: int | None = None,
        precision: torch.dtype = torch.float32,
    ) -> None:
        self.device, self.threads, self.precision = torch.device(device), threads or os.cpu_count() or 1, precision
        self._batch = _BATCH if self.device.type == "cpu" else _GPU_BATCH
        self._tower = copy.deepcopy(tower).to(self.device).eval().requires_grad_(False)
        weights = tower.state_dict()
        arrays = fingerprint_arrays(weights[name].cpu().numpy() for name in sorted(weights))
        self._fingerprint = fingerprint_json(["density tower", _VERSION, tower.config.to_json(), arrays])

    def __repr__(self) -> str:
        return f"TowerEmbedder({self.dim}-d, windows {self.window}³ of {self.voxel_size:g} Å)"

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self._tower.config.dim

    @property
    def window(self) -> Voxels:
        """Edge of a window."""
        return self._tower.config.window

    @property
    def voxel_size(self) -> Angstrom:
        """Voxel size that windows must have, Å."""
        return self._tower.config.voxel_size_A

    @property
    def cell(self) -> Voxels:
        """A multiple of the network's period: all cells see their densities on the same grid."""
        period = math.lcm(self._tower.config.attention_period, CODE_STRIDE)
        return -(-_CELL // period) * period

    @property
    def working_bytes(self) -> int:
        """Memory of one cell: some 12 arrays of the finest level's size live together (measured)."""
        config = self._tower.config
        edge = (self.cell + self.window + 2 * self.halo) // config.stem_stride
        return 12 * 4 * config.channels * edge**3

    @property
    def fingerprint(self) -> str:
        """Identifies sizes and weights."""
        return self._fingerprint

    def embed(self, windows: np.ndarray) -> np.ndarray:
        """Embed windows, `b z y x` → `b d`; windows of zeros give zeros."""
        windows = check_windows(windows, self)
        result = np.zeros((len(windows), self.dim), np.float32)

        def embed_batch(part: slice) -> None:
            result[part] = self._windows(self._sent(windows[part]))

        while True:
            batch = self._batch
            try:
                self._each([slice(start, start + batch) for start in range(0, len(windows), batch)], embed_batch)
                return result
            except torch.OutOfMemoryError:
                if batch == 1:
                    raise
                torch.cuda.empty_cache()
                self._batch = batch // 2

    def embed_dense(self, block: np.ndarray, *, stride: Voxels) -> np.ndarray:
        """Embed all windows of a block, `z y x` → `z' y' x' d`.

        The block has window + (n - 1) stride + 2 halo voxels on an axis of n lattice points. Strides
        that are multiples of 4 take one pass through the network, others up to 64.
        """
        around = self.window + 2 * self.halo
        if block.ndim != 3 or min(block.shape) < around or any((n - around) % stride for n in block.shape):
            raise GeometryError(
                f"expected a block of {around} + a multiple of {stride} voxels on each axis",
                got=str(block.shape),
                hint="Cut blocks with WindowGrid.read_box, and add the embedder's halo on all sides.",
            )
        points = [(n - around) // stride + 1 for n in block.shape]
        result = np.zeros((*points, self.dim), np.float32)
        step = max(1, self.cell // stride)
        cells = Tiling((points[0], points[1], points[2]), (step, step, step))

        def embed_cell(cell: Box) -> None:
            voxels = tuple(slice(c.start * stride, (c.stop - 1) * stride + around) for c in cell)
            result[cell] = self._cell(self._sent(block[voxels]), stride)

        self._each(list(cells), embed_cell)
        return result

    def _sent(self, values: np.ndarray) -> torch.Tensor:
        """Values on the device; from pinned memory, so that the GPU fetches them while it computes."""
        tensor = torch.from_numpy(np.array(values, np.float32))
        return tensor if self.device.type == "cpu" else tensor.pin_memory().to(self.device, non_blocking=True)

    def _each(self, work: list[_Piece], do: Callable[[_Piece], None]) -> None:
        """Do all work: side by side on a processor, with one thread each, else one after the other."""
        if self.device.type != "cpu" or len(work) == 1 or self.threads == 1:
            for piece in work:
                do(piece)
            return
        with ThreadPoolExecutor(self.threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(do, work))

    @torch.inference_mode()
    def _windows(self, windows_BZYX: torch.Tensor) -> np.ndarray:
        with self._arithmetic():
            z_BD, _ = self._tower(windows_BZYX, reconstruct=False)
        return unit_rows(z_BD.float().cpu().numpy())

    @torch.inference_mode()
    def _cell(self, block_ZYX: torch.Tensor, stride: Voxels) -> np.ndarray:
        """Embed all windows of a cell, `z' y' x' d`.

        One pass embeds windows at multiples of 4 voxels; for other strides, windows whose places
        agree modulo 4 go together.
        """
        phases = CODE_STRIDE // math.gcd(stride, CODE_STRIDE)
        around, step = self.window + 2 * self.halo, phases * stride
        points = [(n - around) // stride + 1 for n in block_ZYX.shape]
        result = np.zeros((*points, self.dim), np.float32)
        for phase in itertools.product(range(phases), repeat=3):
            counts = [len(range(first, n, phases)) for first, n in zip(phase, points, strict=True)]
            if 0 in counts:
                continue
            part = block_ZYX[
                tuple(
                    slice(first * stride, first * stride + (n - 1) * step + around)
                    for first, n in zip(phase, counts, strict=True)
                )
            ]
            with self._arithmetic():
                z_ZYXD = self._tower.lattice(part[None], stride=step, halo=self.halo)[0]
            z_ZYXD = z_ZYXD.float() * self._filled(part, step)[..., None]
            result[tuple(slice(first, None, phases) for first in phase)] = unit_rows(z_ZYXD.cpu().numpy())
        return result

    def _arithmetic(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.precision, enabled=self.precision != torch.float32)

    def _filled(self, part_ZYX: torch.Tensor, step: Voxels) -> torch.Tensor:
        """Whether a window holds anything, `z' y' x'`: what reaches in from its neighbours is not its own."""
        inner = part_ZYX[(slice(self.halo, -self.halo),) * 3]
        filled_ZYX = (inner != 0).to(torch.float32)[None, None]
        for axis in range(3):
            kernel, stride = ([n if a == axis else 1 for a in range(3)] for n in (self.window, step))
            filled_ZYX = functional.max_pool3d(filled_ZYX, kernel, stride)
        return filled_ZYX[0, 0]


def fastest_precision(embedder: TowerEmbedder, block: np.ndarray, *, stride: Voxels) -> TowerEmbedder:
    """The same embedder with 16-bit arithmetic, where that is faster and gives the same vectors.

    Parameters
    ----------
    embedder : TowerEmbedder
    block : float32 array, `z y x`
        What is tried; as `TowerEmbedder.embed_dense` wants it.
    stride : Voxels

    Returns
    -------
    TowerEmbedder
        With the fastest arithmetic whose vectors agree with those in 32 bits to a mean centred cosine of 0.999.
    """
    exact, seconds = _timed(embedder, block, stride)
    filled = exact.any(axis=-1)
    best = embedder
    for precision in (torch.float16, torch.bfloat16):
        other = TowerEmbedder(
            embedder._tower, device=str(embedder.device), threads=embedder.threads, precision=precision
        )
        try:
            vectors, needed = _timed(other, block, stride)
        except RuntimeError:  # a device, or a layer on it, that does not know this precision
            continue
        middle = exact[filled].mean(axis=0)
        agree = (unit_rows(exact[filled] - middle) * unit_rows(vectors[filled] - middle)).sum(axis=1).mean()
        if np.isfinite(vectors).all() and agree >= _SAME and needed < seconds:
            best, seconds = other, needed
    return best


def _timed(embedder: TowerEmbedder, block: np.ndarray, stride: Voxels) -> tuple[np.ndarray, float]:
    """Vectors of a block, and the seconds that they take once everything is warm; answers lie in memory by then."""
    embedder.embed_dense(block, stride=stride)
    start = time.perf_counter()
    vectors = embedder.embed_dense(block, stride=stride)
    return vectors, time.perf_counter() - start

"""The embedder that first removes what does not belong to a domain, and then needs no training to turn with it.

A DensityTower that was trained to reconstruct takes neighbours and noise away, which an
invariant of the whole window cannot; the invariant makes the answer independent of the
orientation, which a small network learns only slowly.
"""

import copy
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view

from cryoscan.embedding import check_block, check_windows
from cryoscan.errors import GeometryError
from cryoscan.models.density_tower import DensityTower
from cryoscan.models.invariant import InvariantEmbedder
from cryoscan.provenance import fingerprint_arrays, fingerprint_json
from cryoscan.units import Angstrom, Voxels

_VERSION = 1  # raise when the same weights come to mean other vectors
_BATCH = 16


class CleanedEmbedder:
    """Invariant features of a tower's reconstruction of each window.

    Density must have its solvent at zero; its scale does not matter.

    Parameters
    ----------
    tower : DensityTower
        Copied. Its windows must be the invariant's, 32³.
    device : str
        Where torch computes.
    """

    cell: Voxels = 1
    halo: Voxels = 0
    needs_mask: bool = False
    working_bytes: int = 160 * 2**20

    def __init__(self, tower: DensityTower, *, device: str = "cpu") -> None:
        if tower.config.window != InvariantEmbedder.window:
            raise GeometryError(
                f"expected a tower of windows of {InvariantEmbedder.window}³ voxels",
                got=f"{tower.config.window}³",
                hint="Train one of that size, or use TowerEmbedder.",
            )
        self.device = torch.device(device)
        self._tower = copy.deepcopy(tower).to(self.device).eval().requires_grad_(False)
        self._invariant = InvariantEmbedder(tower.config.voxel_size_A, contour=0.0, device=device)
        weights = tower.state_dict()
        arrays = fingerprint_arrays(weights[name].cpu().numpy() for name in sorted(weights))
        about = ["cleaned", _VERSION, tower.config.to_json(), arrays, self._invariant.fingerprint]
        self._fingerprint = fingerprint_json(about)

    def __repr__(self) -> str:
        return f"CleanedEmbedder({self.dim}-d, windows {self.window}³ of {self.voxel_size:g} Å)"

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self._invariant.dim

    @property
    def window(self) -> Voxels:
        """Edge of a window."""
        return self._invariant.window

    @property
    def voxel_size(self) -> Angstrom:
        """Voxel size that windows must have, Å."""
        return self._invariant.voxel_size

    @property
    def fingerprint(self) -> str:
        """Identifies the definition of the features, sizes and weights."""
        return self._fingerprint

    def embed(self, windows: np.ndarray) -> np.ndarray:
        """Embed windows, `b z y x` → `b 702`; windows of zeros give zeros."""
        return self._invariant.embed(self.clean(check_windows(windows, self)))

    def embed_dense(self, block: np.ndarray, *, stride: Voxels) -> np.ndarray:
        """Embed all windows of a block, `z y x` → `z' y' x' 702`; exactly what `embed` gives for each."""
        check_block(block, self, stride=stride)
        windows = sliding_window_view(block, (self.window,) * 3)[::stride, ::stride, ::stride]
        rows = [self.embed(np.ascontiguousarray(row)) for plane in windows for row in plane]
        return np.concatenate(rows).reshape(*windows.shape[:3], self.dim)

    def clean(self, windows: np.ndarray) -> np.ndarray:
        """The tower's reconstructions of windows, `b z y x`, of the scale of their input."""
        result = np.zeros(windows.shape, np.float32)

        def clean_batch(start: int) -> None:
            part = slice(start, start + _BATCH)
            result[part] = self._reconstructed(torch.from_numpy(np.ascontiguousarray(windows[part], np.float32)))

        starts = range(0, len(windows), _BATCH)
        if self.device.type != "cpu" or len(starts) < 2:
            for start in starts:
                clean_batch(start)
            return result
        with ThreadPoolExecutor(os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(clean_batch, starts))
        return result

    @torch.inference_mode()
    def _reconstructed(self, x_BZYX: torch.Tensor) -> np.ndarray:
        x_BZYX = x_BZYX.to(self.device)
        _, found_BZYX = self._tower(x_BZYX)
        # the error that it was trained for does not see the sign of a scale
        found_BZYX = found_BZYX * torch.sign((found_BZYX * x_BZYX).sum(dim=(1, 2, 3), keepdim=True))
        result: np.ndarray = found_BZYX.float().cpu().numpy()
        return result

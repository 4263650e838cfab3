"""The embedder that needs no training: a rotation-invariant power spectrum of spherical harmonics.

The density in a window is expanded about its centre of mass in orthonormal radial functions
g_k(r) times real spherical harmonics Y_lm. Rotating the density mixes the 2l+1 coefficients
of one l by an orthogonal matrix, so the products

    P_l[k, k'] = sum_m c[k, l, m] c[k', l, m]

do not change. This is the mathematics of SOAP (Bartók et al. 2013, Phys. Rev. B 87, 184115)
and, for k = k', of 3D Zernike norms (Novotni & Klein 2003), but it keeps the products
between different shells. The feature vector is sign(P) sqrt|P| over k <= k' and all l.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from cryoscan.embedding import check_block, check_windows
from cryoscan.models.harmonics import DEGREES, RADII, SHELLS, mirror_classes, octant
from cryoscan.provenance import fingerprint_json
from cryoscan.units import Angstrom, Voxels

_VERSION = 1  # raise when the definition of the features changes: old databases are then refused
_BATCH = 16  # windows at a time: what fits into the processor's cache


class InvariantEmbedder:
    """702 rotation-invariant features of windows of 32³ voxels.

    Parameters
    ----------
    voxel_size : Angstrom
        Voxel size that windows must have. The default sees 80 Å, the size of 93 % of all domains.
    contour : float
        Density below this many standard deviations of its window is taken as empty, as a
        contour level does. 1 for measured maps; 0 for simulated densities, which have no noise.
        No part of the fingerprint: it prepares the input and leaves the features' meaning alone.
    device : str
        Where torch computes.
    """

    window: Voxels = 32
    dim: int = SHELLS * (SHELLS + 1) // 2 * DEGREES
    cell: Voxels = 1
    halo: Voxels = 0
    needs_mask: bool = True
    working_bytes: int = 96 * 2**20  # measured with two threads: windows, folded windows and products

    def __init__(self, voxel_size: Angstrom = 2.5, *, contour: float = 1.0, device: str = "cpu") -> None:
        self.voxel_size = float(voxel_size)
        self.contour = float(contour)
        self.device = torch.device(device)
        self._basis = [
            (each.parity, each.degrees, torch.from_numpy(each.functions).float().to(self.device))
            for each in mirror_classes()
        ]
        upper = np.triu_indices(SHELLS)
        self._upper = tuple(torch.from_numpy(index).to(self.device) for index in upper)
        self._octant = torch.from_numpy(octant()[0]).to(self.device)
        self._fold = torch.from_numpy(_fold_matrix(self.window)).to(self.device)

    def __repr__(self) -> str:
        return f"InvariantEmbedder({self.dim}-d, windows {self.window}³ of {self.voxel_size:g} Å)"

    @property
    def fingerprint(self) -> str:
        """Identifies the definition of the features and the voxel size."""
        return fingerprint_json(["invariant", _VERSION, SHELLS, DEGREES, RADII, self.window, self.voxel_size])

    def embed(self, windows: np.ndarray) -> np.ndarray:
        """Embed windows, `b z y x` → `b 702`; windows without signal give zeros."""
        windows = check_windows(windows, self)
        return self._in_batches(len(windows), lambda part: torch.from_numpy(np.ascontiguousarray(windows[part])))

    def embed_dense(self, block: np.ndarray, *, stride: Voxels) -> np.ndarray:
        """Embed all windows of a block, `z y x` → `z' y' x' 702`; exactly what `embed` gives for each."""
        check_block(block, self, stride=stride)
        windows = torch.from_numpy(np.ascontiguousarray(block, np.float32))
        for axis in range(3):
            windows = windows.unfold(axis, self.window, stride)
        lattice = windows.shape[:3]
        places = np.stack(np.unravel_index(np.arange(int(np.prod(lattice))), lattice))
        features = self._in_batches(
            places.shape[1], lambda part: windows[tuple(torch.from_numpy(index) for index in places[:, part])]
        )
        return features.reshape(*lattice, self.dim)

    def _in_batches(self, count: int, batch: Callable[[slice], torch.Tensor]) -> np.ndarray:
        """Features of `count` windows, of which `batch` gives some at a time."""
        parts = [slice(start, start + _BATCH) for start in range(0, count, _BATCH)]
        if not parts:
            return np.zeros((0, self.dim), np.float32)
        if self.device.type != "cpu":
            return np.concatenate([self._features(batch(part)) for part in parts])
        # One thread a batch instead of several threads a matrix product: the products are small,
        # and threads that wait for each other stall when the machine has other work (measured: 30 ×).
        with ThreadPoolExecutor(os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return np.concatenate(list(pool.map(lambda part: self._features(batch(part)), parts)))

    @torch.inference_mode()
    def _features(self, windows: torch.Tensor) -> np.ndarray:
        x_BZYX = windows.to(self.device, torch.float32)
        b, half = len(x_BZYX), self.window // 2
        x_BZYX = torch.relu(x_BZYX - self.contour * _spread(x_BZYX))
        x_BZYX = _recentred_and_folded(x_BZYX, self._fold)
        products = torch.zeros(b, DEGREES, SHELLS, SHELLS, device=self.device)
        for (pz, py, px), degrees, matrix in self._basis:
            z, y, x = (slice(half, None) if parity else slice(0, half) for parity in (pz, py, px))
            octant = x_BZYX[:, z, y, x].reshape(b, -1)[:, self._octant]
            c = (octant @ matrix).reshape(b, len(degrees), SHELLS)
            for degree, first, last in _runs(degrees):
                part = c[:, first:last]
                products[:, degree].baddbmm_(part.transpose(1, 2), part)
        features = products[:, :, self._upper[0], self._upper[1]].reshape(b, -1)
        features = torch.sign(features) * torch.sqrt(torch.abs(features))
        lengths = torch.linalg.vector_norm(features, dim=1, keepdim=True)
        features = torch.where(lengths > 1e-12, features / lengths.clamp_min(1e-12), torch.zeros_like(features))
        return features.cpu().numpy()


# ---------------------------------------------------------------- recentring


def _recentred_and_folded(x_BZYX: torch.Tensor, fold: torch.Tensor) -> torch.Tensor:
    """Move the centre of mass to the window's centre and split into mirror-even and mirror-odd halves.

    The centre of mass is that of (v - sd/2)+; the shift is by a Lanczos-3 kernel. Shift and fold are one
    matrix per axis. On every axis of the result the first half is the even part, the second
    the odd part, both from the centre outwards.
    """
    b, edge = x_BZYX.shape[:2]
    mass = torch.relu(x_BZYX - 0.5 * _spread(x_BZYX))
    over_z = mass.sum(dim=1)  # b y x
    profiles = (mass.reshape(b, edge, -1).sum(dim=2), over_z.sum(dim=2), over_z.sum(dim=1))
    grid = torch.arange(edge, dtype=torch.float32, device=x_BZYX.device) - (edge - 1) / 2
    total = profiles[0].sum(dim=1).clamp_min(1e-20)
    for profile in reversed(profiles):  # x, y, z: each product takes the last axis and puts it first
        shift = (profile @ grid) / total
        u = grid[None, None, :] - grid[None, :, None] - shift[:, None, None]
        move = torch.sinc(u) * torch.sinc(u / 3) * (u.abs() < 3)
        x_BZYX = torch.bmm(fold @ move, x_BZYX.reshape(b, -1, edge).transpose(1, 2)).reshape(b, edge, edge, edge)
    return x_BZYX


def _spread(x_BZYX: torch.Tensor) -> torch.Tensor:
    """Standard deviation of every window, `b 1 1 1`."""
    flat = x_BZYX.reshape(len(x_BZYX), -1)
    mean = flat.mean(dim=1)
    variance = (flat * flat).mean(dim=1) - mean * mean
    return variance.clamp_min(0).sqrt()[:, None, None, None]


# ---------------------------------------------------------------- basis


def _fold_matrix(edge: int) -> np.ndarray:
    """Sum (first half of the rows) and difference (second half) of mirror images, centre outwards."""
    half = edge // 2
    eye = np.eye(half)
    upper, lower = np.hstack([np.zeros((half, half)), eye]), np.hstack([eye[::-1], np.zeros((half, half))])
    return np.vstack([upper + lower, upper - lower]).astype(np.float32)


def _runs(degrees: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """(l, first, last) of each run of equal degrees in a sorted tuple."""
    return [(d, degrees.index(d), degrees.index(d) + degrees.count(d)) for d in sorted(set(degrees))]

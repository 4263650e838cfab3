"""The embedder whose vectors can still be turned: the harmonics of the density themselves.

Vectors of turned densities differ; they are compared by `cryoscan.models.matching`, which tries
all rotations, and not by their cosine. A second layer holds the density of helices less that of strands, as a network
sees them (`cryoscan.models.secondary`): in queries and in entries alike, so that it may err if it errs the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cryoscan.embedding import check_block, check_windows, unit_rows
from cryoscan.models.harmonics import DEGREES, RADII, SHELLS, WINDOW, blur_matrices, harmonics
from cryoscan.models.secondary import SecondaryNet
from cryoscan.provenance import fingerprint_json
from cryoscan.units import Angstrom, Voxels

_VERSION = 2  # raise when the definition changes: old databases are then refused
_BATCH = 64
_LEVELS = 63  # mean cosine to the harmonics themselves .999; twice as many take a fifth more space
_COARSER = 2  # steps of the second layer in those of the first
_BLURRED = 0.5  # weight of a second layer that was blurred: at the lower resolution the network sees less


class ShapeEmbedder:
    """The 972 harmonics of the density in a window of 32³ voxels, about the window's middle; or two layers of them.

    Parameters
    ----------
    voxel_size : Angstrom
        Voxel size that windows must have.
    contour : float
        Density below this many standard deviations of its window is taken as empty; 0 for simulated densities.
        No part of the fingerprint, as it prepares the input and leaves the vectors' meaning alone.
    secondary : SecondaryNet, optional
        Gives the second layer.
    device : str
        Where torch computes.
    """

    window: Voxels = WINDOW
    cell: Voxels = 1
    halo: Voxels = 0
    needs_mask: bool = False
    working_bytes: int = 128 * 2**20

    def __init__(
        self,
        voxel_size: Angstrom = 2.5,
        *,
        contour: float = 0.5,
        secondary: SecondaryNet | None = None,
        device: str = "cpu",
    ) -> None:
        self.voxel_size = voxel_size
        self.dim = DEGREES**2 * SHELLS * (1 if secondary is None else 2)
        self._secondary = secondary
        self.contour = contour
        self.device = torch.device(device)

    def __repr__(self) -> str:
        return f"ShapeEmbedder({self.dim}-d, windows {self.window}³ of {self.voxel_size:g} Å)"

    @property
    def fingerprint(self) -> str:
        """Identifies the definition of the harmonics, the voxel size and the network."""
        network = None if self._secondary is None else self._secondary.fingerprint
        return fingerprint_json(["shape", _VERSION, SHELLS, DEGREES, RADII, self.window, self.voxel_size, network])

    @torch.inference_mode()
    def embed(self, windows: np.ndarray) -> np.ndarray:
        """Embed windows, `b z y x` → `b 972·layers`; windows without signal give zeros."""
        windows = check_windows(windows, self)
        parts = [np.zeros((0, self.dim), np.float32)]
        for start in range(0, len(windows), _BATCH):
            x_BZYX = torch.from_numpy(np.ascontiguousarray(windows[start : start + _BATCH])).to(self.device)
            if self.contour > 0:
                spread = x_BZYX.flatten(1).std(dim=1, correction=0)[:, None, None, None]
                x_BZYX = torch.relu(x_BZYX - self.contour * spread)
            layers = [x_BZYX] if self._secondary is None else [x_BZYX, self._secondary.signed(x_BZYX)]
            c_BD = torch.cat([harmonics(str(self.device)).expand(layer).flatten(1) for layer in layers], dim=1)
            parts.append(c_BD.cpu().numpy())
        return unit_rows(np.concatenate(parts))

    def embed_dense(self, block: np.ndarray, *, stride: Voxels) -> np.ndarray:
        """Embed all windows of a block, `z y x` → `z' y' x' 972·layers`; exactly what `embed` gives for each."""
        check_block(block, self, stride=stride)
        views = np.lib.stride_tricks.sliding_window_view(block, (self.window,) * 3)[::stride, ::stride, ::stride]
        rows = [self.embed(np.asarray(row)) for plane in views for row in plane]
        return np.stack(rows).reshape(*views.shape[:3], self.dim)


@dataclass(frozen=True, slots=True, eq=False)
class Shapes:
    """Densities without noise and where they are, as a database keeps them: a byte for each harmonic.

    Parameters
    ----------
    density : int8 array, `n 972`
        Harmonics of each density; its scale does not matter.
    signed : int8 array, `n 972`
        Harmonics of helices less strands, in twice as large steps; without rows if nothing told them apart.
    envelope : int8 array, `n 972`
        Harmonics of its envelope, see `envelope`.
    scale : float32 array, `n`
        What `envelope` is to be multiplied with.
    """

    density: np.ndarray
    signed: np.ndarray
    envelope: np.ndarray
    scale: np.ndarray

    def __len__(self) -> int:
        return len(self.scale)

    @classmethod
    @torch.inference_mode()
    def of_windows(cls, windows: np.ndarray, secondary: SecondaryNet | None = None) -> "Shapes":
        """Shapes of densities without noise in the middle of windows, `n 32 32 32`; of two layers with a network."""
        parts = []
        for start in range(0, len(windows), _BATCH):
            x_BZYX = torch.from_numpy(np.ascontiguousarray(windows[start : start + _BATCH], np.float32))
            n = len(x_BZYX)
            layers = [x_BZYX, envelope(x_BZYX), *([] if secondary is None else [secondary.signed(x_BZYX)])]
            c_BD = harmonics().expand(torch.cat(layers)).flatten(1).numpy()
            largest = np.abs(c_BD[: 2 * n]).max(axis=1, keepdims=True).clip(min=1e-12)
            largest = np.concatenate([largest, largest[: len(c_BD) - 2 * n]])
            packed = c_BD / largest * _LEVELS
            packed[2 * n :] /= _COARSER
            packed = np.rint(packed).clip(-127, 127).astype(np.int8)
            scale = (largest[n : 2 * n, 0] / _LEVELS).astype(np.float32)
            parts.append(cls(packed[:n], packed[2 * n :], packed[n : 2 * n], scale))
        return cls.joined(parts)

    @classmethod
    def joined(cls, parts: "Sequence[Shapes]") -> "Shapes":
        """Several, one after the other; the second layer goes unless all have it."""
        density, signed, envelopes, scale = (
            np.concatenate([getattr(part, name) for part in parts]) for name in cls.__slots__
        )
        return cls(density, signed if len(signed) == len(density) else signed[:0], envelopes, scale)

    def take(self, rows: np.ndarray) -> "Shapes":
        """Some of them."""
        signed = self.signed[rows] if self.layers == 2 else self.signed
        return Shapes(self.density[rows], signed, self.envelope[rows], self.scale[rows])

    @property
    def layers(self) -> int:
        """2 if helices and strands are known, else 1."""
        return 2 if len(self.signed) else 1

    def densities(self, sigma: float) -> np.ndarray:
        """Harmonics of all layers blurred by a Gaussian of `sigma` voxels, unit rows, `n 972·layers` float32."""
        layers = [_blurred(self.density.astype(np.float32), sigma)]
        if self.layers == 2:
            layers.append((1 if sigma == 0 else _BLURRED) * _blurred(_COARSER * self.signed.astype(np.float32), sigma))
        return unit_rows(np.concatenate(layers, axis=1))

    def envelopes(self, sigma: float) -> np.ndarray:
        """Harmonics of the envelopes blurred by a Gaussian of `sigma` voxels, `n 972` float32."""
        return _blurred(self.envelope * self.scale[:, None], sigma)


def envelope(density_BZYX: torch.Tensor) -> torch.Tensor:
    """Where a density without noise is, softly: 1/2 at a twentieth of its maximum; `b z y x`.

    It is .08 far outside, and that is needed: a little of the surroundings keeps small entries
    from fitting anywhere (with 0 outside a third fewer are found beside uncut neighbours).
    """
    largest = density_BZYX.amax((1, 2, 3), keepdim=True).clamp_min(1e-12)
    return torch.sigmoid((density_BZYX / largest - 0.05) / 0.02)


def _blurred(vectors: np.ndarray, sigma: float) -> np.ndarray:
    if sigma == 0:
        return np.asarray(vectors, np.float32)
    c_NHK = vectors.reshape(len(vectors), DEGREES**2, SHELLS)
    parts = [c_NHK[:, degree**2 : (degree + 1) ** 2] @ matrix for degree, matrix in enumerate(blur_matrices(sigma))]
    return np.concatenate(parts, axis=1).reshape(len(vectors), -1)

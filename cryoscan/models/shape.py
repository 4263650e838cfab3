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

_VERSION = 3  # raise when the definition changes: old databases are then refused
_BATCH = 64
_LEVELS = 63  # mean cosine to the harmonics themselves .999; twice as many take a fifth more space
_COARSER = 2  # steps of the second layer in those of the first
_SECOND = 0.84
"""Strength of the second layer beside the first. At 1 clean densities are named as well, but noisy ones worse; at
.7 what has uncut neighbours is (decision 17)."""
_FAR_OUTSIDE = 0.1  # of an envelope
_TOUCHING = 0.03  # share of the smaller of two envelopes that may lie in the other


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
            layers = [x_BZYX] if self._secondary is None else [x_BZYX, _SECOND * self._secondary.signed(x_BZYX)]
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
    signed : int8 array, `banks n 972`
        Harmonics of helices less strands as the network sees them at the resolution of each bank of the database, in
        twice as large steps; without banks if nothing told them apart.
    envelope : int8 array, `n 972`
        Harmonics of its envelope, see `envelope`.
    scale : float32 array, `n`
        What `envelope` is to be multiplied with.
    usual : float16 array, `banks 2 n`
        What strangers reach with each, alone and in company, see `cryoscan.models.matching`; NaN where nobody has
        measured it, without banks if it is known of none.
    """

    density: np.ndarray
    signed: np.ndarray
    envelope: np.ndarray
    scale: np.ndarray
    usual: np.ndarray

    def __len__(self) -> int:
        return len(self.scale)

    @classmethod
    @torch.inference_mode()
    def of_windows(
        cls, windows: np.ndarray, secondary: SecondaryNet | None = None, *, coarser: Sequence[np.ndarray] = ()
    ) -> "Shapes":
        """Shapes of densities without noise in the middle of windows, `n 32 32 32`; of two layers with a network.

        Parameters
        ----------
        windows : float array
            At the resolution of the finest bank.
        secondary : SecondaryNet, optional
        coarser : sequence of float arrays
            The same at the resolutions of the other banks: blurring cannot tell what a network would see there.
        """
        parts = []
        for start in range(0, len(windows), _BATCH):
            banks = [_tensor(of_bank[start : start + _BATCH]) for of_bank in (windows, *coarser)]
            densities, around = [_expanded(x_BZYX) for x_BZYX in banks], _expanded(envelope(banks[0]))
            signed = np.zeros((0, *around.shape), np.int8)
            if secondary is not None:
                seen = [_expanded(secondary.signed(x_BZYX)) for x_BZYX in banks]
                signed = np.stack([_packed(s, d, _LEVELS / _COARSER) for s, d in zip(seen, densities, strict=True)])
            parts.append(
                cls(
                    density=_packed(densities[0], densities[0], _LEVELS),
                    signed=signed,
                    envelope=_packed(around, around, _LEVELS),
                    scale=(_largest(around)[:, 0] / _LEVELS).astype(np.float32),
                    usual=np.zeros((0, 2, len(around)), np.float16),
                )
            )
        return cls.joined(parts)

    @classmethod
    def joined(cls, parts: "Sequence[Shapes]") -> "Shapes":
        """Several, one after the other; the second layer goes unless all have it."""
        banks, most = min(len(part.signed) for part in parts), max(len(part.usual) for part in parts)
        return cls(
            density=np.concatenate([part.density for part in parts]),
            signed=np.concatenate([part.signed[:banks] for part in parts], axis=1),
            envelope=np.concatenate([part.envelope for part in parts]),
            scale=np.concatenate([part.scale for part in parts]),
            usual=np.concatenate([part._usual_or_unknown(most) for part in parts], axis=2),
        )

    def take(self, rows: np.ndarray) -> "Shapes":
        """Some of them."""
        return Shapes(
            self.density[rows], self.signed[:, rows], self.envelope[rows], self.scale[rows], self.usual[..., rows]
        )

    @property
    def layers(self) -> int:
        """2 if helices and strands are known, else 1."""
        return 2 if len(self.signed) else 1

    def _usual_or_unknown(self, banks: int) -> np.ndarray:
        return self.usual if len(self.usual) == banks else np.full((banks, 2, len(self)), np.nan, np.float16)

    def densities(self, sigma: float, *, bank: int = 0) -> np.ndarray:
        """Harmonics of all layers, unit rows, `n 972·layers` float32.

        Parameters
        ----------
        sigma : float
            Width in voxels of the Gaussian that takes the finest bank to the resolution of `bank`.
        bank : int
            Which of the second layers.
        """
        density = _blurred(self.density.astype(np.float32), sigma)
        if self.layers == 1:
            return unit_rows(density)
        largest = np.abs(density).max(axis=1, keepdims=True)  # what `_packed` divided by, in stored steps
        signed = self.signed[bank].astype(np.float32) * (_SECOND * _COARSER / _LEVELS * largest)
        return unit_rows(np.concatenate([density, signed], axis=1))

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


def in_company(vectors: np.ndarray, envelopes: np.ndarray, *, others: int = 2) -> np.ndarray:
    """Shapes that others of them touch, as where nothing was cut out; unit rows, `n 972·layers`.

    Parameters
    ----------
    vectors : float array, `n 972·layers`
    envelopes : float array, `n 972`
    others : int
        How many come beside each, in random directions, as near as they can without lying in each other.
    """
    rng, synthesise = np.random.default_rng(0), harmonics().synthesise
    layers = vectors.shape[1] // (DEGREES**2 * SHELLS)
    x_NLZYX = synthesise(_tensor(vectors).reshape(-1, DEGREES**2, SHELLS)).reshape(-1, layers, *(WINDOW,) * 3)
    m_NZYX = (synthesise(_tensor(envelopes).reshape(-1, DEGREES**2, SHELLS)) - _FAR_OUTSIDE).clamp(0, 1)
    mean_N = (x_NLZYX[:, 0] * m_NZYX).sum((1, 2, 3)) / m_NZYX.sum((1, 2, 3)).clamp_min(1e-6)
    x_NLZYX = x_NLZYX / mean_N.clamp_min(1e-6)[:, None, None, None, None]  # all proteins are equally dense
    together_NLZYX = x_NLZYX.clone()
    for n in range(len(vectors)):
        taken_ZYX = m_NZYX[n]
        for other in rng.integers(len(vectors), size=others):
            direction = rng.normal(size=3)
            direction /= np.linalg.norm(direction)
            for distance in range(2, WINDOW):
                step = np.rint(distance * direction).astype(int)
                m_ZYX = _moved(m_NZYX[other], step)
                if (taken_ZYX * m_ZYX).sum() < _TOUCHING * torch.minimum(taken_ZYX.sum(), m_NZYX[other].sum()):
                    break
            taken_ZYX = torch.maximum(taken_ZYX, m_ZYX)
            together_NLZYX[n] += _moved(x_NLZYX[other], step)
    c_ND = harmonics().expand(together_NLZYX.flatten(0, 1)).reshape(len(vectors), -1)
    return unit_rows(c_ND.numpy())


def _moved(x_ZYX: torch.Tensor, step: np.ndarray) -> torch.Tensor:
    """By whole voxels; what leaves the window is gone."""
    out, edge = torch.zeros_like(x_ZYX), x_ZYX.shape[-1]
    to, of = [], []
    for s in step.tolist():
        to.append(slice(max(0, s), edge + min(0, s)))
        of.append(slice(max(0, -s), edge - max(0, s)))
    out[..., to[0], to[1], to[2]] = x_ZYX[..., of[0], of[1], of[2]]
    return out


def _tensor(windows: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(windows, np.float32))


def _expanded(x_BZYX: torch.Tensor) -> np.ndarray:
    c_BD: np.ndarray = harmonics().expand(x_BZYX).flatten(1).numpy()
    return c_BD


def _packed(c_BD: np.ndarray, measure_BD: np.ndarray, steps: float) -> np.ndarray:
    """Harmonics as whole steps, of which so many make up the largest of the harmonics that they are measured by."""
    return np.rint(c_BD / _largest(measure_BD) * steps).clip(-127, 127).astype(np.int8)


def _largest(c_BD: np.ndarray) -> np.ndarray:
    return np.abs(c_BD).max(axis=1, keepdims=True).clip(min=1e-12)


def _blurred(vectors: np.ndarray, sigma: float) -> np.ndarray:
    if sigma == 0:
        return np.asarray(vectors, np.float32)
    c_NHK = vectors.reshape(len(vectors), DEGREES**2, SHELLS)
    parts = [c_NHK[:, degree**2 : (degree + 1) ** 2] @ matrix for degree, matrix in enumerate(blur_matrices(sigma))]
    return np.concatenate(parts, axis=1).reshape(len(vectors), -1)

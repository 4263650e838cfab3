"""Density in a ball as a sum of spherical harmonics on shells, and what rotations do to such a sum.

With orthonormal radial functions g_k(r) and real spherical harmonics Y_lm of unit vectors,

    density(r) ≈ sum over k, l, m of c[l, m, k] g_k(|r|) Y_lm(r/|r|),    l = 0 … 8, k = 1 … 12.

A rotation R of the density multiplies the 2l+1 coefficients of each l by an orthogonal matrix
D_l(R), so the correlation of two densities at every rotation is one product with a table of
such matrices (fast rotational matching; Kovacs & Wriggers 2002, Acta Cryst. D 58, 1282).
"""

import functools

import numpy as np
import torch
from scipy import ndimage
from scipy.special import sph_harm_y
from torch import Tensor

from cryoscan.units import Voxels

WINDOW: Voxels = 32
SHELLS = 12
DEGREES = 9
"""l = 0 … 8."""
RADII = (0.8, 15.2)
"""First and last shell, voxels."""
REACH = 16.0
"""Radius of the ball that is described, voxels."""
_DIRECTIONS = 64  # from which the matrices of rotations are found; 17 would do, 400 take five times as long


def radial_functions(r: np.ndarray) -> np.ndarray:
    """Gaussian shells made orthonormal with respect to r² dr, at radii in voxels, `n k`."""
    centres = np.linspace(*RADII, SHELLS)
    width = 0.7 * (centres[1] - centres[0])

    def shells(radii: np.ndarray) -> np.ndarray:
        return np.exp(-0.5 * ((radii[:, None] - centres) / width) ** 2)

    fine = np.linspace(0, REACH, 4001)
    weight = fine * np.sqrt(fine[1] - fine[0])
    _, triangle = np.linalg.qr(shells(fine) * weight[:, None])
    triangle *= np.sign(np.diag(triangle))[:, None]  # QR is unique only up to signs
    return np.linalg.solve(triangle.T, shells(r).T).T


def carried_by_grid(r: np.ndarray, degree: int) -> np.ndarray:
    """Share of a harmonic that a grid can carry at radii in voxels, 0 … 1.

    The wavelength on the sphere is 2 pi r / l: below three voxels what the grid would alias
    into does not turn with the density (measured: mean cosine over rotations .970 → .998).
    """
    return np.asarray(1 - np.exp(-((2 * r / max(degree, 1e-9)) ** 4)))


def real_harmonics(positions: np.ndarray, degrees: int) -> np.ndarray:
    """Real spherical harmonics of degrees below `degrees` at positions z y x, `n 3` → `n degrees²`.

    z is the polar axis. Ordered by degree l, then m = −l … l; sin(|m| φ) for m < 0.
    """
    z, y, x = positions.T
    r = np.sqrt(z * z + y * y + x * x)
    theta, phi = np.arccos(np.clip(z / np.maximum(r, 1e-9), -1, 1)), np.arctan2(y, x)
    columns = []
    for degree in range(degrees):
        for m in range(-degree, degree + 1):
            value = sph_harm_y(degree, abs(m), theta, phi)
            columns.append(value.real if m == 0 else np.sqrt(2) * (value.real if m > 0 else value.imag))
    return np.stack(columns, axis=1)


class Harmonics:
    """Goes from windows to coefficients and back.

    Parameters
    ----------
    device : str or torch.device
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        inside, functions, dual = _basis()
        self._inside = torch.from_numpy(inside).to(device)
        self._functions = torch.from_numpy(functions).to(device)
        self._dual = torch.from_numpy(dual).to(device)

    def expand(self, x_BZYX: Tensor) -> Tensor:
        """Coefficients of windows of 32³ voxels about their middle, `b z y x` → `b lm k`."""
        flat_BN = x_BZYX.reshape(len(x_BZYX), -1)[:, self._inside]
        return (flat_BN @ self._functions).reshape(len(x_BZYX), DEGREES**2, SHELLS)

    def synthesise(self, c_BHK: Tensor) -> Tensor:
        """Densities that have these coefficients, `b lm k` → `b z y x`; 0 outside the ball."""
        x_BN = c_BHK.new_zeros(len(c_BHK), WINDOW**3)
        x_BN[:, self._inside] = c_BHK.reshape(len(c_BHK), -1) @ self._dual
        return x_BN.reshape(-1, WINDOW, WINDOW, WINDOW)


@functools.lru_cache(maxsize=4)
def harmonics(device: str = "cpu") -> Harmonics:
    """The one `Harmonics` of a device."""
    return Harmonics(device)


def layered(vectors_ND: Tensor) -> Tensor:
    """Coefficients of one or more densities that turn together, one after the other, as if one had more shells.

    `n layers·lm·k` → `n lm layers·k`.
    """
    layers = vectors_ND.shape[1] // (DEGREES**2 * SHELLS)
    return vectors_ND.reshape(-1, layers, DEGREES**2, SHELLS).transpose(1, 2).flatten(2)


def rotation_table(rotations: np.ndarray, degrees: int) -> np.ndarray:
    """Matrices D_l of rotations, of all degrees below `degrees`, one after the other.

    Parameters
    ----------
    rotations : array, `n 3 3`
        Act on z y x columns.
    degrees : int

    Returns
    -------
    float32 array, `n sum((2l+1)²)`
        Row by row: density turned by R has the coefficients ``D_l c_l``.
    """
    directions = np.random.default_rng(0).normal(size=(_DIRECTIONS, 3))
    before = real_harmonics(directions, degrees)
    inverses = [np.linalg.pinv(before[:, l * l : (l + 1) ** 2]) for l in range(degrees)]
    parts = []
    for some in np.array_split(rotations, max(1, len(rotations) // 512)):
        # density turned by R has at p what it had at R⁻¹ p
        turned = real_harmonics((directions @ some).reshape(-1, 3), degrees).reshape(len(some), _DIRECTIONS, -1)
        matrices = [
            np.einsum("kp,rpm->rkm", inverse, turned[:, :, l * l : (l + 1) ** 2]).reshape(len(some), -1)
            for l, inverse in enumerate(inverses)
        ]
        parts.append(np.concatenate(matrices, axis=1).astype(np.float32))
    return np.concatenate(parts)


@functools.lru_cache(maxsize=8)
def blur_matrices(sigma: float) -> np.ndarray:
    """What a Gaussian of `sigma` voxels does to the coefficients: one matrix for each degree, `l k k`.

    An isotropic filter changes the radial functions alone.
    """
    matrices = np.empty((DEGREES, SHELLS, SHELLS), np.float32)
    basis = harmonics()
    for degree in range(DEGREES):
        order = degree**2 + degree  # m = 0
        single = torch.zeros(SHELLS, DEGREES**2, SHELLS)
        single[:, order] = torch.eye(SHELLS)
        blurred = [ndimage.gaussian_filter(x, sigma, mode="constant") for x in basis.synthesise(single).numpy()]
        matrices[degree] = basis.expand(torch.from_numpy(np.stack(blurred)))[:, order].numpy()
    return matrices


@functools.cache
def _basis() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Voxels of the ball, basis functions there (`voxels lm·k`), and the functions that give a density back."""
    axis = np.arange(WINDOW) - (WINDOW - 1) / 2
    places = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    radii = np.linalg.norm(places, axis=1)
    inside = np.flatnonzero(radii < REACH)
    places, radii = places[inside], radii[inside]
    angular = real_harmonics(places, DEGREES)
    for degree in range(DEGREES):
        angular[:, degree**2 : (degree + 1) ** 2] *= carried_by_grid(radii, degree)[:, None]
    functions = (angular[:, :, None] * radial_functions(radii)[:, None, :]).reshape(len(inside), -1)
    gram = functions.T @ functions
    dual = np.linalg.solve(gram + 1e-3 * np.eye(len(gram)), functions.T)
    return inside, functions.astype(np.float32), dual.astype(np.float32)

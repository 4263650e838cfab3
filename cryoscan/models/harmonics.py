"""Density in a ball as a sum of spherical harmonics on shells, and what rotations do to such a sum.

With orthonormal radial functions g_k(r) and real spherical harmonics Y_lm of unit vectors,

    density(r) ≈ sum over k, l, m of c[l, m, k] g_k(|r|) Y_lm(r/|r|),    l = 0 … 8, k = 1 … 12.

A rotation R of the density multiplies the 2l+1 coefficients of each l by an orthogonal matrix
D_l(R), so the correlation of two densities at every rotation is one product with a table of
such matrices (fast rotational matching; Kovacs & Wriggers 2002, Acta Cryst. D 58, 1282).
"""

import functools
import itertools
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from scipy.special import sph_harm_y
from torch import Tensor

from cryoscan.units import Voxels

WINDOW: Voxels = 32
_HALF = WINDOW // 2
SHELLS = 12
DEGREES = 9
"""l = 0 … 8."""
RADII = (0.8, 15.2)
"""First and last shell, voxels."""
REACH = 16.0
"""Radius of the ball that is described, voxels."""
Parity = tuple[int, int, int]
"""0 where even, 1 where odd, under the mirrors z → −z, y → −y, x → −x."""
_DIRECTIONS = 64  # from which the matrix of one rotation is found; 17 would do


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


@dataclass(frozen=True, slots=True, eq=False)
class MirrorClass:
    """Harmonics that are even, or odd, under the same ones of the mirrors z → −z, y → −y, x → −x.

    The sum of such a function times a density is a sum over one octant of the folded density (`folded`): an eighth of
    the work.

    Parameters
    ----------
    parity : Parity
    orders : int array, `h`
        Places of its harmonics among all of them, ascending.
    degrees : tuple of int
        l of each.
    functions : float array, `voxels h·k`
        In the part of the ball where z, y and x are positive (`octant`).
    """

    parity: Parity
    orders: np.ndarray
    degrees: tuple[int, ...]
    functions: np.ndarray

    @property
    def places(self) -> np.ndarray:
        """Of its coefficients among all of `lm k`, `h·k`."""
        return np.asarray((self.orders[:, None] * SHELLS + np.arange(SHELLS)).ravel())


def folded(x_BZYX: Tensor) -> dict[tuple[int, ...], Tensor]:
    """Sums (0) and differences (1) of mirrored voxels along z, y and x, from the middle outwards: `b z/2 y/2 x/2`."""
    parts: dict[tuple[int, ...], Tensor] = {(): x_BZYX}
    for axis in (1, 2, 3):
        halves = {key: (x.narrow(axis, _HALF, _HALF), x.narrow(axis, 0, _HALF).flip(axis)) for key, x in parts.items()}
        parts = {
            (*key, odd): upper - lower if odd else upper + lower
            for key, (upper, lower) in halves.items()
            for odd in (0, 1)
        }
    return parts


def unfolded(parts: dict[tuple[int, ...], Tensor]) -> Tensor:
    """The sum of functions of each parity that are given in one octant, `b z/2 y/2 x/2` → `b z y x`."""
    for axis in (3, 2, 1):
        pairs = {key[:-1]: (parts[*key[:-1], 0], parts[*key[:-1], 1]) for key in parts}
        parts = {key: torch.cat([(even - odd).flip(axis), even + odd], axis) for key, (even, odd) in pairs.items()}
    return parts[()]


class Harmonics:
    """Goes from windows to coefficients and back.

    Parameters
    ----------
    device : str or torch.device
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        inside, _ = octant()
        classes = mirror_classes()
        self._inside = torch.from_numpy(inside).to(device)
        self._functions = {each.parity: torch.from_numpy(each.functions).float().to(device) for each in classes}
        self._dual = {parity: torch.from_numpy(dual).to(device) for parity, dual in dual_functions().items()}
        self._places = {each.parity: torch.from_numpy(each.places).to(device) for each in classes}

    def expand(self, x_BZYX: Tensor) -> Tensor:
        """Coefficients of windows of 32³ voxels about their middle, `b z y x` → `b lm k`."""
        parts, b = folded(x_BZYX), len(x_BZYX)
        c_BD = x_BZYX.new_empty(b, DEGREES**2 * SHELLS)
        for parity, functions in self._functions.items():
            c_BD[:, self._places[parity]] = parts[parity].reshape(b, -1)[:, self._inside] @ functions
        return c_BD.reshape(b, DEGREES**2, SHELLS)

    def synthesise(self, c_BHK: Tensor) -> Tensor:
        """Densities that have these coefficients, `b lm k` → `b z y x`; 0 outside the ball."""
        c_BD, b = c_BHK.reshape(len(c_BHK), -1), len(c_BHK)
        parts: dict[tuple[int, ...], Tensor] = {}
        for parity, dual in self._dual.items():
            x_BN = c_BD.new_zeros(b, _HALF**3)
            x_BN[:, self._inside] = c_BD[:, self._places[parity]] @ dual
            parts[parity] = x_BN.reshape(b, _HALF, _HALF, _HALF)
        return unfolded(parts)


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

    A rotation about z mixes cos(mφ) and sin(mφ) alone, and one about y is one about z between a quarter turn and its
    inverse, whose matrix J is found once: D(α, β, γ) = Z(α) J Z(β) Jᵀ Z(γ) (after Pinchon & Hoggan 2007, J. Phys. A
    40, 1597).

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
    quarters = _quarter_turns(degrees)
    parts = []
    for some in np.array_split(rotations, max(1, len(rotations) // 512)):
        alpha, beta, gamma = _euler_angles(some)
        matrices = []
        for l, j_MM in enumerate(quarters):
            m = np.arange(-l, l + 1)
            cos_a, sin_a = np.cos(np.outer(alpha, m))[:, :, None], np.sin(np.outer(alpha, m))[:, :, None]
            cos_b, sin_b = np.cos(np.outer(beta, m))[:, None], np.sin(np.outer(beta, m))[:, None]
            cos_g, sin_g = np.cos(np.outer(gamma, m))[:, None], np.sin(np.outer(gamma, m))[:, None]
            left = cos_a * j_MM - sin_a * j_MM[::-1]  # Z(α) J
            left = left * cos_b + left[:, :, ::-1] * sin_b  # … Z(β)
            right = j_MM.T * cos_g + j_MM.T[:, ::-1] * sin_g  # Jᵀ Z(γ)
            matrices.append((left @ right).reshape(len(some), -1))
        parts.append(np.concatenate(matrices, axis=1).astype(np.float32))
    return np.concatenate(parts)


def _euler_angles(rotations: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Angles about z, y and z, radians, of rotations that act on z y x columns; R = Z(α) Y(β) Z(γ)."""
    z, y, x = 0, 1, 2
    sine = np.hypot(rotations[:, x, z], rotations[:, y, z])
    beta = np.arctan2(sine, rotations[:, z, z])
    alpha = np.arctan2(rotations[:, y, z], rotations[:, x, z])
    gamma = np.arctan2(rotations[:, z, y], -rotations[:, z, x])
    # about z alone, or upside down: only the sum or the difference of both is known
    sign = np.sign(rotations[:, z, z])
    both = np.arctan2(sign * rotations[:, y, x], sign * rotations[:, x, x])
    degenerate = sine < 1e-8
    return np.where(degenerate, both, alpha), beta, np.where(degenerate, 0, gamma)


@functools.cache
def _quarter_turns(degrees: int) -> list[np.ndarray]:
    """J: matrices of the rotation about x that takes z to y."""
    directions = np.random.default_rng(0).normal(size=(_DIRECTIONS, 3))
    before = real_harmonics(directions, degrees)
    turn = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])  # acts on z y x columns
    after = real_harmonics(directions @ turn, degrees)  # density turned by R has at p what it had at R⁻¹ p
    parts = [slice(l * l, (l + 1) ** 2) for l in range(degrees)]
    return [np.linalg.lstsq(before[:, part], after[:, part], rcond=None)[0] for part in parts]


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
def octant() -> tuple[np.ndarray, np.ndarray]:
    """Voxels of the ball where z, y and x are positive: their places in a folded window, and positions in voxels."""
    axis = np.arange(_HALF) + 0.5
    positions = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    inside = np.flatnonzero(np.linalg.norm(positions, axis=1) < REACH)
    return inside, positions[inside]


@functools.cache
def mirror_classes() -> tuple[MirrorClass, ...]:
    """All harmonics, sorted by what mirrors do to them."""
    _, positions = octant()
    radii = np.linalg.norm(positions, axis=1)
    angular, radial = real_harmonics(positions, DEGREES), radial_functions(radii)
    degrees = np.repeat(np.arange(DEGREES), 2 * np.arange(DEGREES) + 1)
    m = np.arange(DEGREES**2) - degrees**2 - degrees
    odd_y, odd_x = (m < 0).astype(int), np.where(m < 0, m + 1, m) % 2  # sin(|m| φ) and cos(m φ)
    odd_z = (degrees + m) % 2
    classes = []
    for z, y, x in itertools.product((0, 1), repeat=3):
        orders = np.flatnonzero((odd_z == z) & (odd_y == y) & (odd_x == x))
        carried = np.stack([carried_by_grid(radii, degree) for degree in degrees[orders]], axis=1)
        functions = (carried * angular[:, orders])[:, :, None] * radial[:, None, :]
        classes.append(
            MirrorClass((z, y, x), orders, tuple(degrees[orders].tolist()), functions.reshape(len(radii), -1))
        )
    return tuple(classes)


@functools.cache
def dual_functions() -> dict[Parity, np.ndarray]:
    """Functions whose sum, times the coefficients, gives a density back, for each parity: `h·k voxels`, in `octant`."""
    duals = {}
    for each in mirror_classes():
        gram = 8 * each.functions.T @ each.functions  # the same in all octants
        duals[each.parity] = np.linalg.solve(gram + 1e-3 * np.eye(len(gram)), each.functions.T).astype(np.float32)
    return duals

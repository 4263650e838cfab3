"""Density of atoms as a sum of Gaussians: the simulator behind the DateDB and the demo."""

import numpy as np

from cryoscan.errors import GeometryError
from cryoscan.structure import Structure
from cryoscan.units import SIGMA_PER_RESOLUTION, Angstrom, Shape, Vector
from cryoscan.volume import Volume

_REACH = 4.5  # standard deviations kept: the neglected tail holds 7e-6 of an atom's mass on each side


def density(
    structure: Structure,
    *,
    voxel_size: Angstrom,
    resolution: Angstrom,
    shape: Shape | None = None,
    origin: Vector | None = None,
) -> Volume:
    """Electron-scattering density of a structure on a grid.

    Each atom is a Gaussian of sigma = 0.225 × resolution that holds the atom's number of
    electrons, so that sum × voxel volume = number of electrons (of heavy atoms).

    Parameters
    ----------
    structure : Structure
    voxel_size : Angstrom
    resolution : Angstrom
        As of ChimeraX ``molmap``; must be at least 1.8 voxels, finer detail has no place
        on the grid.
    shape : (z, y, x) of Voxels, optional
        Default: the bounding box plus one resolution on each side.
    origin : (z, y, x) in Å, optional
        Position of the centre of voxel (0, 0, 0). Default: the box is centred on the
        bounding box of the atoms.

    Returns
    -------
    Volume
        Protein positive, solvent zero. Atoms beyond the box contribute what reaches in.
    """
    shape, origin = grid_around(structure, voxel_size=voxel_size, resolution=resolution, shape=shape, origin=origin)
    sigma = SIGMA_PER_RESOLUTION * resolution / voxel_size
    places = (structure.positions - origin) / voxel_size
    data = gaussian_sum(places, structure.elements.astype(np.float64), sigma=sigma, shape=shape)
    return Volume((data / voxel_size**3).astype(np.float32), voxel_size, origin)


def grid_around(
    structure: Structure,
    *,
    voxel_size: Angstrom,
    resolution: Angstrom,
    shape: Shape | None = None,
    origin: Vector | None = None,
) -> tuple[Shape, Vector]:
    """Shape and origin of the grid a structure is simulated on; see `density` for the defaults.

    Raises
    ------
    GeometryError
        If the grid is too coarse for the resolution.
    """
    if not resolution >= 1.8 * voxel_size:
        raise GeometryError(
            f"expected a resolution of at least 1.8 voxels ({1.8 * voxel_size:.2f} Å)",
            got=f"{resolution} Å",
            hint="Choose a smaller voxel size or a lower resolution.",
        )
    low, high = structure.positions.min(axis=0), structure.positions.max(axis=0)
    if shape is None:
        edges = np.ceil((high - low + 2 * resolution) / voxel_size).astype(int) + 1
        shape = (int(edges[0]), int(edges[1]), int(edges[2]))
    if origin is None:
        corner = (low + high) / 2 - (np.array(shape) - 1) / 2 * voxel_size
        origin = (float(corner[0]), float(corner[1]), float(corner[2]))
    return shape, origin


def gaussian_sum(places: np.ndarray, weights: np.ndarray, *, sigma: float, shape: Shape) -> np.ndarray:
    """Sum of normalised Gaussians at fractional voxel indices.

    Parameters
    ----------
    places : float array, `n 3`
    weights : float array, `n`
    sigma : float
        In voxels.
    shape : (z, y, x)

    Returns
    -------
    float64 array, `z y x`
    """
    reach = int(np.ceil(_REACH * sigma))
    offsets = np.arange(-reach, reach + 1)
    centres = np.rint(places)
    inside = np.all((centres >= -reach) & (centres < np.array(shape) + reach), axis=1)  # others reach no voxel
    places, weights = places[inside], weights[inside]
    padded = tuple(size + 4 * reach for size in shape)
    total = np.zeros(int(np.prod(padded)))
    for start in range(0, len(places), 4096):  # bounds the n·p³ table of contributions
        part = places[start : start + 4096]
        nearest = np.rint(part).astype(np.int64)
        profiles = np.exp(-0.5 * ((offsets - (part - nearest)[..., None]) / sigma) ** 2)  # n 3 p
        profiles /= sigma * np.sqrt(2 * np.pi)
        values = np.einsum(
            "n,ni,nj,nk->nijk", weights[start : start + 4096], profiles[:, 0], profiles[:, 1], profiles[:, 2]
        )
        z, y, x = (nearest[:, axis, None] + offsets + 2 * reach for axis in range(3))
        flat = (z[:, :, None, None] * padded[1] + y[:, None, :, None]) * padded[2] + x[:, None, None, :]
        total += np.bincount(flat.ravel(), values.ravel(), minlength=len(total))
    cut = tuple(slice(2 * reach, 2 * reach + size) for size in shape)
    return total.reshape(padded)[cut]

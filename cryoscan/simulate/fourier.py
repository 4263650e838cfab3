"""Density of atoms from electron form factors, low-passed in Fourier space: the second opinion on `density`.

It shares no arithmetic with the Gaussian sum; that both agree is a law of the house.
"""

from typing import Any

import numpy as np
import scipy.fft

from cryoscan.errors import GeometryError
from cryoscan.simulate.density import grid_around
from cryoscan.structure import Structure
from cryoscan.units import SIGMA_PER_RESOLUTION, Angstrom, Shape, Vector
from cryoscan.volume import Volume

_BLUR_IN_FINE_VOXELS = 0.9  # at this width the sampled atoms alias by 1e-7 of their mass
_FINE_VOXELS_PER_SIGMA = 1.25  # so that the low-pass always exceeds the blur it replaces
_MARGIN_IN_SIGMAS = 5.0


def density_from_form_factors(
    structure: Structure,
    *,
    voxel_size: Angstrom,
    resolution: Angstrom,
    shape: Shape | None = None,
    origin: Vector | None = None,
) -> Volume:
    """Electrostatic potential of a structure on a grid, from electron form factors.

    Atoms are laid on a fine grid by gemmi's density calculator with the five-Gaussian
    electron form factors of Peng et al. (1996, Acta Cryst. A52, 257; International Tables
    C, table 4.3.2.2), blurred enough to be sampled without aliasing. In Fourier space the
    blur is replaced by the low-pass of `density`, a Gaussian of sigma = 0.225 × resolution.
    B factors are not used.

    Parameters
    ----------
    structure : Structure
        Atoms of placeholder elements are left out.
    voxel_size, resolution, shape, origin
        As of `cryoscan.simulate.density`.

    Returns
    -------
    Volume
        Scaled so that sum × voxel volume = number of electrons, as of `density`; the
        weights of the elements among each other are those of electron scattering.

    Raises
    ------
    GeometryError
        If no atom has a known element, or the grid is too coarse for the resolution.
    """
    shape, origin = grid_around(structure, voxel_size=voxel_size, resolution=resolution, shape=shape, origin=origin)
    sigma = SIGMA_PER_RESOLUTION * resolution
    oversampling = max(2, int(np.ceil(_FINE_VOXELS_PER_SIGMA * voxel_size / sigma)))
    start, box = _box_of_atoms(structure, voxel_size, np.array(origin), margin=_MARGIN_IN_SIGMAS * sigma)
    blur = _BLUR_IN_FINE_VOXELS * voxel_size / oversampling
    fine = (oversampling * box[0], oversampling * box[1], oversampling * box[2])
    lengths = _scattering_lengths(structure.elements)
    places = structure.positions - (np.array(origin) + start * voxel_size)
    potential = _potential(
        structure.elements[lengths > 0], places[lengths > 0], fine, spacing=voxel_size / oversampling, blur=blur
    )
    smooth = _low_pass(potential, voxel_size, oversampling, sigma=np.sqrt(sigma**2 - blur**2))
    smooth *= structure.elements.sum(dtype=np.float64) / lengths.sum()
    data = np.zeros(shape, np.float32)
    inside, part = _overlap(start, smooth.shape, shape)
    data[inside] = smooth[part]
    return Volume(data, voxel_size, origin)


def _box_of_atoms(
    structure: Structure, voxel_size: Angstrom, origin: np.ndarray, *, margin: Angstrom
) -> tuple[np.ndarray, Shape]:
    """First voxel and shape of a box on the target's lattice that holds every atom and its tails."""
    low = np.floor((structure.positions.min(axis=0) - margin - origin) / voxel_size).astype(int)
    high = np.ceil((structure.positions.max(axis=0) + margin - origin) / voxel_size).astype(int)
    z, y, x = (int(scipy.fft.next_fast_len(int(size), real=True)) for size in high - low + 1)
    return low, (z, y, x)


def _scattering_lengths(elements: np.ndarray) -> np.ndarray:
    """Electron form factor at s = 0 of each atom, Å; 0 for placeholders and the heaviest elements."""
    import gemmi

    # gemmi gives element 0 a form factor; here it is a placeholder that scatters nothing, as in `density`.
    coefficients = {n: gemmi.Element(n).c4322 if n > 0 else None for n in np.unique(elements).tolist()}
    known = {number: float(c.calculate_sf(0)) if c else 0.0 for number, c in coefficients.items()}
    lengths = np.array([known[number] for number in elements.tolist()])
    if not lengths.sum() > 0:
        raise GeometryError(
            "expected atoms of known elements",
            got=f"atomic numbers {sorted(known)}",
            hint="Mend the element column of the structure's file.",
        )
    return lengths


def _potential(
    elements: np.ndarray, places: np.ndarray, fine: Shape, *, spacing: Angstrom, blur: Angstrom
) -> np.ndarray:
    """Blurred potential on the fine, periodic grid.

    Atoms are isotropic, so gemmi's first axis may be z: no coordinates are turned.
    """
    import gemmi

    calculator = gemmi.DensityCalculatorE()
    calculator.grid.spacegroup = gemmi.SpaceGroup("P 1")
    calculator.grid.set_size(*fine)
    z, y, x = (count * spacing for count in fine)
    calculator.grid.set_unit_cell(gemmi.UnitCell(z, y, x, 90, 90, 90))
    calculator.cutoff = 1e-7
    calculator.blur = 8 * np.pi**2 * blur**2  # as a B factor
    for number, place in zip(elements.tolist(), places.tolist(), strict=True):
        atom = gemmi.Atom()
        atom.element = gemmi.Element(number)
        atom.pos = gemmi.Position(*place)
        atom.b_iso = 0.0
        calculator.add_atom_density_to_grid(atom)
    return np.array(calculator.grid, dtype=np.float32)


def _low_pass(fine: np.ndarray, voxel_size: Angstrom, oversampling: int, *, sigma: Angstrom) -> np.ndarray:
    """Gaussian low-pass of a fine grid, sampled at the coarse voxels."""
    transform = scipy.fft.rfftn(fine)
    for axis, size in enumerate(fine.shape):
        frequencies = (scipy.fft.rfftfreq if axis == 2 else scipy.fft.fftfreq)(size, voxel_size / oversampling)
        gain = np.exp(-2 * (np.pi * sigma * frequencies) ** 2)
        transform *= np.expand_dims(gain.astype(np.float32), tuple({0, 1, 2} - {axis}))
    filtered: np.ndarray = scipy.fft.irfftn(transform, s=fine.shape)
    return filtered[::oversampling, ::oversampling, ::oversampling]


def _overlap(start: np.ndarray, size: tuple[int, ...], shape: Shape) -> tuple[Any, Any]:
    """Where a box that starts at `start` lies in an array, and which part of it that is."""
    first = np.maximum(start, 0)
    last = np.maximum(np.minimum(start + np.array(size), shape), first)
    inside = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
    part = tuple(slice(a, b) for a, b in zip(first - start, last - start, strict=True))
    return inside, part

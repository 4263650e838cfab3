"""Names for numbers that carry a unit, and the few constants that all of cryoscan shares."""

from typing import TypeAlias

Angstrom: TypeAlias = float
"""A length in Å."""

Degree: TypeAlias = float
"""An angle in degrees; radians never appear in a signature."""

Voxels: TypeAlias = int
"""A length in voxels of the grid at hand."""

Vector: TypeAlias = tuple[float, float, float]
"""A position or extent in z, y, x order, Å."""

Shape: TypeAlias = tuple[int, int, int]
"""A size in voxels, z, y, x."""

Box: TypeAlias = tuple[slice, slice, slice]
"""A box of voxels, z, y, x; it may reach beyond the array where a function says so."""

SIGMA_PER_RESOLUTION = 0.225
"""Width of an atom's Gaussian in units of the resolution R, at which its Fourier transform falls to 1/e at 1/R.

The convention of ChimeraX ``molmap``: sigma = R / (pi sqrt(2)). It is what "resolution" means
everywhere here: of simulated densities, of blurred maps and of noise.
"""

AVERAGE_RESIDUE_MASS_KDA = 0.1098
"""Mean mass of a protein residue in kDa."""

PROTEIN_DENSITY_DA_PER_A3 = 0.81
"""Mean density of protein (1.35 g/cm³)."""

A3_PER_RESIDUE = AVERAGE_RESIDUE_MASS_KDA * 1000 / PROTEIN_DENSITY_DA_PER_A3
"""Mean volume of a protein residue in Å³."""

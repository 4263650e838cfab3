"""Names for numbers that carry a unit, so that every signature says what it takes."""

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

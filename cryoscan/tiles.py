"""Integer arithmetic of windows and tiles: which voxels each lattice point sees, and who computes it.

The lattice belongs to the volume, never to its chunks: work is cut in lattice space, so
each window is computed by exactly one tile whatever the tiling (laws L1 and L2).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from cryoscan.errors import GeometryError
from cryoscan.units import Angstrom, Box, Shape, Vector, Voxels


@dataclass(frozen=True, slots=True)
class WindowGrid:
    """Windows of `window`³ voxels every `stride` voxels over a volume.

    The lattice is centred in the volume, so that both borders are treated alike; windows
    may reach beyond the volume.
    """

    volume_shape: Shape
    window: Voxels
    stride: Voxels

    def __post_init__(self) -> None:
        if self.window < 1 or self.stride < 1 or min(self.volume_shape) < 1:
            raise GeometryError(
                "expected a positive window, stride and volume shape",
                got=f"window {self.window}, stride {self.stride}, shape {self.volume_shape}",
                hint="Give numbers of voxels of at least 1.",
            )

    @property
    def shape(self) -> Shape:
        """Number of lattice points, z, y, x."""
        z, y, x = (-(-size // self.stride) for size in self.volume_shape)
        return z, y, x

    @property
    def first(self) -> tuple[Voxels, Voxels, Voxels]:
        """Start voxel of the first window on each axis (may be negative)."""
        z, y, x = (
            (size - (points - 1) * self.stride - self.window) // 2
            for size, points in zip(self.volume_shape, self.shape, strict=True)
        )
        return z, y, x

    def centres(self, indices: np.ndarray) -> np.ndarray:
        """Voxel indices (fractional for even windows) of the centres of lattice points (`... 3`)."""
        return np.asarray(indices) * self.stride + np.asarray(self.first) + (self.window - 1) / 2

    def geometry(self, voxel_size: Angstrom, origin: Vector) -> tuple[Angstrom, Vector]:
        """Voxel size and origin of the lattice seen as a volume."""
        z, y, x = np.asarray(origin) + self.centres(np.zeros(3)) * voxel_size
        return self.stride * voxel_size, (float(z), float(y), float(x))

    def read_box(self, lattice_box: Box) -> Box:
        """Voxels that the windows of a box of lattice points see together."""
        z, y, x = (
            slice(
                first + part.start * self.stride,
                first + (part.stop - 1) * self.stride + self.window,
            )
            for first, part in zip(self.first, lattice_box, strict=True)
        )
        return z, y, x


@dataclass(frozen=True, slots=True)
class Tiling:
    """A partition of a lattice into boxes of at most `core` points per axis."""

    shape: Shape
    core: Shape

    def __post_init__(self) -> None:
        if min(self.shape) < 1 or min(self.core) < 1:
            raise GeometryError(
                "expected positive shapes",
                got=f"lattice {self.shape}, core {self.core}",
                hint="A tile holds at least one lattice point.",
            )

    @property
    def counts(self) -> Shape:
        """Number of tiles on each axis."""
        z, y, x = (-(-size // core) for size, core in zip(self.shape, self.core, strict=True))
        return z, y, x

    def __len__(self) -> int:
        z, y, x = self.counts
        return z * y * x

    def __iter__(self) -> Iterator[Box]:
        for index in range(len(self)):
            yield self.box(index)

    def box(self, index: int) -> Box:
        """Lattice points of tile `index` (last axis runs fastest)."""
        place = np.unravel_index(index, self.counts)
        z, y, x = (
            slice(int(i) * core, min((int(i) + 1) * core, size))
            for i, core, size in zip(place, self.core, self.shape, strict=True)
        )
        return z, y, x

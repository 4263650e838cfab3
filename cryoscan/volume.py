"""A density on a grid, and where the grid is: the one place where indices meet ångström."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt

from cryoscan.errors import GeometryError
from cryoscan.units import Angstrom, Box, Shape, Vector


@runtime_checkable
class ArrayLike(Protocol):
    """What a volume needs of its data: numpy, a memory map, zarr and dask all have it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Size on each axis."""
        ...

    @property
    def dtype(self) -> Any:
        """Type of the values."""
        ...

    def __getitem__(self, key: Any, /) -> Any: ...


@dataclass(frozen=True, slots=True, eq=False)
class Volume:
    """A density on an isotropic grid.

    Parameters
    ----------
    data : array-like, `z y x`
        May be lazy; protein is positive.
    voxel_size : Angstrom
        Edge of a voxel, the same on every axis.
    origin : (z, y, x) in Å
        Position of the *centre* of voxel (0, 0, 0).
    """

    data: ArrayLike
    voxel_size: Angstrom
    origin: Vector = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        if len(self.data.shape) != 3:
            raise GeometryError(
                "expected a three-dimensional volume (z, y, x)",
                got=f"shape {tuple(self.data.shape)}",
                hint="Give one volume, not an image or a stack of volumes.",
            )
        if not (np.isfinite(self.voxel_size) and self.voxel_size > 0):
            raise GeometryError(
                "expected a positive voxel size in Å",
                got=str(self.voxel_size),
                hint="A header of 0 means 'unset': pass the voxel size explicitly (--voxel-size).",
            )
        if len(self.origin) != 3 or not np.all(np.isfinite(self.origin)):
            raise GeometryError(
                "expected an origin of three finite numbers (z, y, x, Å)",
                got=str(self.origin),
                hint="Mend the header, or pass an origin explicitly.",
            )
        object.__setattr__(self, "voxel_size", float(self.voxel_size))
        object.__setattr__(self, "origin", tuple(float(x) for x in self.origin))

    def __repr__(self) -> str:
        z, y, x = self.shape
        return f"Volume({z}×{y}×{x} voxels of {self.voxel_size:g} Å, origin {self.origin} Å, {self.data.dtype})"

    @property
    def shape(self) -> Shape:
        """Size in voxels, z, y, x."""
        z, y, x = self.data.shape
        return int(z), int(y), int(x)

    @property
    def extent(self) -> Vector:
        """Size in Å, z, y, x."""
        z, y, x = self.shape
        return z * self.voxel_size, y * self.voxel_size, x * self.voxel_size

    def to_index(self, positions: npt.ArrayLike) -> np.ndarray:
        """Fractional voxel indices of positions in Å (`... 3`, z y x)."""
        return (np.asarray(positions, np.float64) - self.origin) / self.voxel_size

    def to_position(self, indices: npt.ArrayLike) -> np.ndarray:
        """Positions in Å of voxel indices (`... 3`, z y x)."""
        return np.asarray(indices, np.float64) * self.voxel_size + self.origin

    def load(self) -> np.ndarray:
        """Read everything as float32."""
        return np.asarray(self.data[:, :, :], dtype=np.float32)

    def loaded(self) -> Self:
        """The same volume with its data in memory as float32."""
        return type(self)(self.load(), self.voxel_size, self.origin)

    def filled(self, value: float) -> "Volume":
        """The same volume with a value in place of NaN and infinity, where it is read."""
        return Volume(_Filled(self.data, value), self.voxel_size, self.origin)

    def crop(self, box: Box) -> "Volume":
        """A part of the volume; the box must lie inside.

        Raises
        ------
        GeometryError
            If the box is empty or reaches beyond the volume.
        """
        bounds = [_bounds(part, size) for part, size in zip(box, self.shape, strict=True)]
        if any(
            start < 0 or stop > size or start >= stop for (start, stop), size in zip(bounds, self.shape, strict=True)
        ):
            raise GeometryError(
                f"expected a box inside the volume of {self.shape} voxels (z, y, x)",
                got=", ".join(f"{start}:{stop}" for start, stop in bounds),
                hint="Give z0:z1,y0:y1,x0:x1 in voxels, each start below its stop.",
            )
        inside = tuple(slice(start, stop) for start, stop in bounds)
        origin = self.to_position([start for start, _ in bounds])
        return Volume(self.data[inside], self.voxel_size, _vector(origin))

    def read(self, box: Box, *, fill: float = 0.0) -> np.ndarray:
        """Values of a box as float32; what lies outside the volume is `fill`."""
        wanted = [(int(part.start), int(part.stop)) for part in box]
        inside = [
            (min(max(start, 0), size), min(max(stop, 0), size))
            for (start, stop), size in zip(wanted, self.shape, strict=True)
        ]
        part = np.asarray(self.data[tuple(slice(a, b) for a, b in inside)], dtype=np.float32)
        pad = [(a - start, stop - b) for (start, stop), (a, b) in zip(wanted, inside, strict=True)]
        if any(b <= a for a, b in inside):  # the box misses the volume altogether
            return np.full([stop - start for start, stop in wanted], fill, np.float32)
        if all(before == 0 and after == 0 for before, after in pad):
            return part
        return np.pad(part, pad, constant_values=fill)


@dataclass(frozen=True, slots=True, eq=False)
class _Filled:
    """An array with a value in place of NaN and infinity."""

    source: ArrayLike
    value: float

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.shape

    @property
    def dtype(self) -> Any:
        return self.source.dtype

    def __getitem__(self, key: Any, /) -> np.ndarray:
        values = np.asarray(self.source[key])
        finite = np.isfinite(values)
        return values if finite.all() else np.where(finite, values, np.asarray(self.value, values.dtype))


def _bounds(part: slice, size: int) -> tuple[int, int]:
    start = 0 if part.start is None else int(part.start)
    stop = size if part.stop is None else int(part.stop)
    return start, stop


def _vector(values: Sequence[float] | np.ndarray) -> Vector:
    z, y, x = (float(value) for value in values)
    return z, y, x

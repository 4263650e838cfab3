"""What happens to values between store and memory: type, sign, and extra axes of length one."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from cryoscan.errors import CryoscanError, FormatError, GeometryError
from cryoscan.units import Shape
from cryoscan.volume import ArrayLike


@dataclass(frozen=True, slots=True, eq=False)
class LazyArray:
    """A three-dimensional view of stored values that converts only what is asked for.

    Parameters
    ----------
    source : array-like, `… z y x`
        Axes before the last three have length one and are dropped.
    dtype : numpy.dtype
        Type of the values given out.
    negate : bool
        Change the sign, after the conversion: integers have no room for it.
    """

    source: ArrayLike
    dtype: np.dtype
    negate: bool = False

    @property
    def shape(self) -> Shape:
        """Size, z, y, x."""
        z, y, x = self.source.shape[-3:]
        return int(z), int(y), int(x)

    @property
    def ndim(self) -> int:
        """Number of axes; viewers ask for it."""
        return 3

    def __getitem__(self, key: Any, /) -> Any:
        key = key if isinstance(key, tuple) else (key,)
        leading = (0,) * (len(self.source.shape) - 3)
        try:
            values = np.asarray(self.source[leading + key])
        except CryoscanError:
            raise
        except (OSError, RuntimeError, ValueError) as error:
            raise FormatError(
                "expected readable blocks of data",
                got=f"{type(error).__name__}: {error}",
                hint="The store is damaged or incomplete: fetch or write it again.",
            ) from error
        with np.errstate(over="ignore", invalid="ignore"):  # what does not fit becomes infinite, and is found there
            values = values.astype(self.dtype, copy=False)
        return -values if self.negate else values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Everything at once, for functions that take arrays only."""
        if copy is False:
            raise ValueError("a lazy array cannot be given out without a copy")
        return np.asarray(self[:, :, :], dtype=dtype)


@dataclass(frozen=True, slots=True, eq=False)
class LazyPlanes:
    """Some planes of a three-dimensional array, cut when they are asked for."""

    source: ArrayLike
    first: int
    stop: int

    @property
    def shape(self) -> Shape:
        """Size, z, y, x."""
        _, y, x = self.source.shape
        return self.stop - self.first, int(y), int(x)

    @property
    def dtype(self) -> Any:
        """Type of the values."""
        return self.source.dtype

    @property
    def ndim(self) -> int:
        """Number of axes; viewers ask for it."""
        return 3

    def __getitem__(self, key: Any, /) -> Any:
        key = key if isinstance(key, tuple) else (key,)
        z, *rest = key
        if isinstance(z, slice):
            start, stop, step = z.indices(self.stop - self.first)
            z = slice(start + self.first, stop + self.first, step)
        else:
            z = range(self.stop - self.first)[z] + self.first
        return self.source[(z, *rest)]


def fit(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Convert values to a type that can hold them; fractions are rounded for integer types.

    Raises
    ------
    GeometryError
        If a value is beyond the type's range, or is NaN and the type has none.
    """
    if values.dtype == dtype or values.size == 0:
        return values.astype(dtype, copy=False)
    whole = np.issubdtype(dtype, np.integer)
    limits: Any = np.iinfo(dtype) if whole else np.finfo(dtype)
    low, high = values.min(), values.max()
    if (whole and not np.isfinite([low, high]).all()) or low < limits.min or (np.isfinite(high) and high > limits.max):
        raise GeometryError(
            f"expected values that {dtype} can hold",
            got=f"values from {low:g} to {high:g}",
            hint="Write them as float32 (dtype='float32').",
        )
    if whole and np.issubdtype(values.dtype, np.inexact):
        values = np.rint(values)
    return values.astype(dtype)

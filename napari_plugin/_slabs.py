"""Slices of chunked volumes: the planes that share their chunks are decoded once and kept, within a fixed budget."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np

_BUDGET = 640 * 2**20
"""Bytes of decoded planes that are kept, over all volumes."""


class ByPlanes:
    """An array that viewers take for one, and that reads only what they draw: a plane, not the box around it.

    napari cuts out what is visible before it takes a plane, and expects nothing to be read by that. Subclasses have a
    `source`, and say in `_values` what an index of it means that is more than a box.
    """

    __slots__ = ()
    source: Any

    @property
    def shape(self) -> tuple[int, int, int]:
        """Size, z, y, x."""
        z, y, x = self.source.shape
        return int(z), int(y), int(x)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return 3

    @property
    def size(self) -> int:
        """Number of voxels; viewers order levels by it."""
        return int(np.prod(self.shape))

    @property
    def dtype(self) -> np.dtype:
        """Type of the values."""
        return np.dtype(self.source.dtype)

    def __getitem__(self, key: Any, /) -> Any:
        key = whole_key(key)
        box = as_box(key, self.shape)
        return self._values(key) if box is None else Crop(self, box)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Everything at once, for functions that take arrays only."""
        z, y, x = self.shape
        return np.asarray(self.read((slice(0, z), slice(0, y), slice(0, x))), dtype=dtype)

    def read(self, box: tuple[slice, slice, slice]) -> np.ndarray:
        """The values of a box."""
        return np.asarray(self._values(box))

    def _values(self, key: tuple[Any, Any, Any]) -> Any:
        raise NotImplementedError


class Crop(ByPlanes):
    """A box of an array that is read when a plane of it is asked for.

    Parameters
    ----------
    source : ByPlanes
    box : (z, y, x) of slices
        With start and stop.
    """

    def __init__(self, source: ByPlanes, box: tuple[slice, slice, slice]) -> None:
        self.source, self.box = source, box

    @property
    def shape(self) -> tuple[int, int, int]:
        """Size, z, y, x."""
        z, y, x = (max(part.stop - part.start, 0) for part in self.box)
        return z, y, x

    def __getitem__(self, key: Any, /) -> Any:
        parts: list[int | slice] = []
        for part, whole, size in zip(whole_key(key), self.box, self.shape, strict=True):
            if isinstance(part, slice):
                start, stop, step = part.indices(size)
                parts.append(slice(whole.start + start, whole.start + stop, step))
            else:
                parts.append(whole.start + range(size)[int(part)])
        return self.source[tuple(parts)]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All of the box."""
        return np.asarray(self.source.read(self.box), dtype=dtype)


class LookedUp(ByPlanes):
    """Integers read as others; who changes the table changes the array.

    Parameters
    ----------
    source : array-like of int, `z y x`
    table : array
        By the integers of `source`.
    """

    def __init__(self, source: Any, table: np.ndarray) -> None:
        self.source, self.table = source, table

    @property
    def dtype(self) -> np.dtype:
        """Type of the values."""
        return self.table.dtype

    def _values(self, key: tuple[Any, Any, Any]) -> np.ndarray:
        return np.asarray(self.table[np.asarray(self.source[key])])


def whole_key(key: Any) -> tuple[Any, Any, Any]:
    """An index of three axes; those that were left out are whole."""
    parts: list[Any] = list(key) if isinstance(key, tuple) else [key]
    place = parts.index(Ellipsis) if Ellipsis in parts else len(parts)
    missing = 3 - len(parts) + (Ellipsis in parts)
    z, y, x = parts[:place] + [slice(None)] * missing + parts[place + 1 :]
    return z, y, x


def as_box(key: tuple[Any, Any, Any], shape: tuple[int, int, int]) -> tuple[slice, slice, slice] | None:
    """The box that an index without single planes and steps stands for; None for any other index."""
    if not all(isinstance(part, slice) and part.step in (None, 1) for part in key):
        return None
    z, y, x = (slice(*part.indices(size)[:2]) for part, size in zip(key, shape, strict=True))
    return z, y, x


class SlabCache:
    """Slabs of decoded planes, the least recently used dropped first; shared by all volumes of a viewer.

    Parameters
    ----------
    budget : int
        Bytes.
    """

    def __init__(self, budget: int = _BUDGET) -> None:
        self.budget = budget
        self._slabs: OrderedDict[Any, Future[np.ndarray]] = OrderedDict()
        self._sizes: dict[Any, int] = {}
        self._lock = threading.Lock()
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix="cryoscan-slices")

    @property
    def held(self) -> int:
        """Bytes that are kept or being read."""
        return sum(self._sizes.values())

    def get(self, key: Any) -> np.ndarray | None:
        """A slab that is kept; None if it is not there yet."""
        with self._lock:
            slab = self._slabs.get(key)
            if slab is not None:
                self._slabs.move_to_end(key)
        return None if slab is None or not slab.done() else slab.result()

    def prefetch(self, key: Any, size: int, read: Callable[[], np.ndarray]) -> None:
        """Begin to read a slab that will probably be asked for."""
        with self._lock:
            if key in self._slabs:
                return
            slab: Future[np.ndarray] = Future()
            while self._slabs and self.held + size > self.budget:
                oldest, _ = self._slabs.popitem(last=False)
                self._sizes.pop(oldest)
            self._slabs[key], self._sizes[key] = slab, size
        self._ahead.submit(self._fill, key, slab, read)

    def _fill(self, key: Any, waiting: "Future[np.ndarray]", read: Callable[[], np.ndarray]) -> None:
        try:
            waiting.set_result(read())
        except BaseException as error:  # whoever asked for the slab gets it
            with self._lock:
                self._slabs.pop(key, None)
                self._sizes.pop(key, None)
            waiting.set_exception(error)


_shared = SlabCache()


class Slabbed(ByPlanes):
    """A chunked array whose planes are read chunk by chunk; anything else passes unchanged.

    Parameters
    ----------
    source : array-like, `z y x`
    chunks : (z, y, x)
        Of the store.
    cache : SlabCache, optional
    """

    def __init__(self, source: Any, chunks: tuple[int, int, int], cache: SlabCache | None = None) -> None:
        self.source, self.chunks = source, chunks
        self._cache = cache or _shared
        self._last: tuple[int, int] | None = None

    def _values(self, key: tuple[Any, Any, Any]) -> Any:
        planes = [axis for axis, part in enumerate(key) if isinstance(part, int | np.integer)]
        if len(planes) != 1 or any(isinstance(part, slice) and part.step not in (None, 1) for part in key):
            return self.source[key]
        axis = planes[0]
        plane = range(self.shape[axis])[int(key[axis])]
        rest = [
            slice(*part.indices(size)) for part, size in zip(key, self.shape, strict=True) if isinstance(part, slice)
        ]
        thick = self.chunks[axis]
        number = plane // thick
        size = thick * int(np.prod([part.stop - part.start for part in rest])) * self.dtype.itemsize
        if thick == 1 or 2 * size > self._cache.budget:
            return self.source[key]
        slab = self._cache.get(self._key(axis, number, rest))
        self._look_ahead(axis, plane, rest, size)
        if slab is None:  # the plane alone is sooner there
            return self.source[key]
        return np.take(slab, plane - number * thick, axis)

    def read(self, box: tuple[slice, slice, slice]) -> np.ndarray:
        """The values of a box: through the cache if it is one plane, else past it."""
        thin = [axis for axis, part in enumerate(box) if part.stop - part.start == 1]
        if len(thin) != 1:
            return np.asarray(self.source[box])
        key = tuple(part.start if axis == thin[0] else part for axis, part in enumerate(box))
        return np.expand_dims(np.asarray(self[key]), thin[0])

    def _look_ahead(self, axis: int, plane: int, rest: list[slice], size: int) -> None:
        """Who moves through the planes will need the next slab in that direction."""
        last, self._last = self._last, (axis, plane)
        thick = self.chunks[axis]
        if last is None or last[0] != axis or not 0 < abs(plane - last[1]) < thick:
            return
        number = plane // thick
        wanted = [number, number + (1 if plane > last[1] else -1)]
        for n in wanted:
            if 0 <= n * thick < self.shape[axis]:
                self._cache.prefetch(self._key(axis, n, rest), size, partial(self._read, axis, n, rest))

    def _key(self, axis: int, number: int, rest: list[slice]) -> Any:
        return (id(self), axis, number, *((part.start, part.stop) for part in rest))

    def _read(self, axis: int, number: int, rest: list[slice]) -> np.ndarray:
        thick = self.chunks[axis]
        box = list(rest)
        box.insert(axis, slice(number * thick, min((number + 1) * thick, self.shape[axis])))
        return np.asarray(self.source[tuple(box)])


def slabbed(data: Any) -> Any:
    """The same array, read by slabs if it is a chunked store; others, such as memory maps, are quick as they are."""
    inner = data
    while not hasattr(inner, "chunks") and hasattr(inner, "source"):
        inner = inner.source
    chunks = getattr(inner, "chunks", None)
    if chunks is None or isinstance(data, Slabbed):
        return data
    z, y, x = (int(edge) for edge in tuple(chunks)[-3:])
    return Slabbed(data, (z, y, x))

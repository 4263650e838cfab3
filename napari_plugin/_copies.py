"""Labels in a file that the viewer edits, and the process beside it compares with a scan, searches and saves.

The file holds the numbers of the regions in the order z y x, and nothing else; those of a copy of a scan's
regions are uint32. Both processes map it into their memory, so what is painted in one is seen by the other.
"""

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cryoscan.errors import GeometryError, ResourceError
from cryoscan.segment import split_region
from cryoscan.units import Shape
from cryoscan.volume import Volume

_SLAB = 64  # planes that are read at once: the chunks of a scan


@dataclass(frozen=True, slots=True)
class Shared:
    """Labels in a file that two processes map into their memory.

    Parameters
    ----------
    file : Path
    shape : (z, y, x)
    dtype : str
        Of the numbers.
    """

    file: Path
    shape: Shape
    dtype: str = "uint32"

    def mapped(self, *, writable: bool = False) -> np.ndarray:
        """The numbers in memory, `z y x`."""
        return np.memmap(self.file, self.dtype, "r+" if writable else "r", shape=self.shape)

    @classmethod
    def of(cls, data: Any) -> "Shared | None":
        """The file that an array is the whole of; None if it is in no file, or the file is gone."""
        if not isinstance(data, np.memmap) or data.filename is None or not data.flags.c_contiguous or data.ndim != 3:
            return None
        file = Path(data.filename)
        whole = file.is_file() and file.stat().st_size == data.nbytes
        z, y, x = data.shape
        return cls(file, (z, y, x), str(data.dtype)) if whole else None


@dataclass(frozen=True, slots=True)
class PlanesCompared:
    """Event: how many planes of all were looked at."""

    done: int
    total: int


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """What is other in a copy than in the regions of a scan.

    Parameters
    ----------
    voxels : int64 array, `n`
        Flat indices.
    numbers : uint32 array, `n`
        The region that each belongs to now, 0 for none; new regions have the numbers after those of all places.
    new : dict
        Number of a new region → the number that it has in the copy.
    """

    voxels: np.ndarray
    numbers: np.ndarray
    new: dict[int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Renumbered:
    """Event: the numbers that new regions have from now on.

    Parameters
    ----------
    changed : int
        Voxels that are other than in the scan.
    new : dict
        Number of a new region → the number that it had, and the flat indices of its voxels.
    """

    changed: int
    new: dict[int, tuple[int, np.ndarray]]

    @classmethod
    def of(cls, drawn: Drawn) -> "Renumbered":
        """What a drawing makes of the numbers."""
        return cls(
            len(drawn.voxels),
            {number: (old, drawn.voxels[drawn.numbers == number]) for number, old in drawn.new.items()},
        )


@dataclass(frozen=True, slots=True, eq=False)
class Regrouped:
    """Event: voxels that go to other regions.

    Parameters
    ----------
    voxels : int64 array, `n`
        Flat indices.
    numbers : int array, `n`
        The region that each goes to.
    from_region : int
        Whose name new regions get, or the one that takes the others in.
    regions : tuple of int
        Those that are new, or that are no more.
    """

    voxels: np.ndarray
    numbers: np.ndarray
    from_region: int
    regions: tuple[int, ...]


def hand_over(data: Any, file: Path) -> Iterator[None]:
    """Write labels to a file, a slab of planes for each step, so that another process can map them.

    Parameters
    ----------
    data : int array-like, `z y x`
        In memory or on disk.
    file : Path

    Raises
    ------
    ResourceError
        If there is no room for it.
    """
    depth = data.shape[0]
    try:
        with open(file, "wb") as stream:
            for first in range(0, depth, _SLAB):
                slab = np.asarray(data[first : first + _SLAB, :, :])
                stream.write(np.ascontiguousarray(slab, np.dtype(data.dtype)).tobytes())
                yield
    except OSError as error:
        file.unlink(missing_ok=True)
        raise _no_room(int(np.prod(data.shape)) * np.dtype(data.dtype).itemsize, file, error) from error


def write_copy(numbers: Volume, kept: np.ndarray, file: Path) -> None:
    """Copy the regions of some places.

    Parameters
    ----------
    numbers : Volume
        Number of the place, from 1, of every voxel.
    kept : bool array
        Of every place, whether it is copied.
    file : Path

    Raises
    ------
    ResourceError
        If there is no room for it.
    """
    shown = np.concatenate([[False], kept])
    try:
        with open(file, "wb") as stream:
            for first in range(0, numbers.shape[0], _SLAB):
                slab = np.asarray(numbers.data[first : first + _SLAB, :, :])
                stream.write(np.where(shown[slab], slab, 0).astype(np.uint32).tobytes())
    except OSError as error:
        file.unlink(missing_ok=True)
        raise _no_room(4 * int(np.prod(numbers.shape)), file, error) from error


def differences(copy: np.ndarray, numbers: Volume, places: int, known: Set[int]) -> Iterator[PlanesCompared | Drawn]:
    """What was painted, erased, merged and split in a copy; the last event says it.

    Parameters
    ----------
    copy : uint32 array, `z y x`
    numbers : Volume
        Number of the place, from 1, of every voxel of the scan.
    places : int
        How many places there are. What has a number beyond, or one that was not copied, is a new region.
    known : set of int
        Numbers that were copied, or given to new regions since.
    """
    shown = np.zeros(places + 1, bool)
    shown[[number for number in known if number <= places]] = True
    plane = int(np.prod(copy.shape[1:]))
    voxels: list[np.ndarray] = []
    now: list[np.ndarray] = []
    for first in range(0, len(copy), _SLAB):
        before = np.asarray(numbers.data[first : first + _SLAB, :, :])
        slab = np.asarray(copy[first : first + _SLAB]).ravel()
        other = np.flatnonzero(slab != np.where(shown[before], before, 0).ravel())
        voxels.append(other + first * plane)
        now.append(slab[other])
        yield PlanesCompared(min(first + _SLAB, len(copy)), len(copy))
    drawn = np.concatenate(now)
    found = [n for n in sorted(pd.unique(drawn).tolist()) if n and (n > places or n not in known)]
    new = {places + 1 + index: old for index, old in enumerate(found)}
    renumbered = drawn.copy()
    for number, old in new.items():
        renumbered[drawn == old] = number
    yield Drawn(np.concatenate(voxels), renumbered, new)


def merging(labels: np.ndarray, wanted: Sequence[int]) -> Iterator[PlanesCompared | Regrouped]:
    """Which voxels go to another region if some become one; the last event says it.

    Parameters
    ----------
    labels : int array, `z y x`
    wanted : sequence of int
        The first that occurs takes the others in.

    Raises
    ------
    GeometryError
        If fewer than two of them occur.
    """
    wanted = [number for number in dict.fromkeys(wanted) if number]
    plane = int(np.prod(labels.shape[1:]))
    voxels: list[np.ndarray] = []
    numbers: list[np.ndarray] = []
    for first in range(0, len(labels), _SLAB):
        slab = np.asarray(labels[first : first + _SLAB]).ravel()
        mine = np.flatnonzero(np.isin(slab, wanted))
        voxels.append(mine + first * plane)
        numbers.append(slab[mine])
        yield PlanesCompared(min(first + _SLAB, len(labels)), len(labels))
    where, now = np.concatenate(voxels), np.concatenate(numbers)
    occurring = set(pd.unique(now).tolist())
    there = [number for number in wanted if number in occurring]
    if len(there) < 2:
        raise GeometryError(
            "expected two regions or more",
            got=", ".join(map(str, there)) or "none",
            hint="Give the numbers of regions that touch, such as 3, 17.",
        )
    moved = now != there[0]
    yield Regrouped(where[moved], np.full(int(moved.sum()), there[0], labels.dtype), there[0], tuple(there[1:]))


def splitting(labels: np.ndarray, seeds: np.ndarray, density: Volume) -> Iterator[PlanesCompared | Regrouped]:
    """Which voxels of a region go to new ones if it is split along its thinnest density; the last event says it.

    Parameters
    ----------
    labels : int array, `z y x`
    seeds : int array, `n 3`
        A voxel in each part.
    density : Volume
        On the same grid.

    Raises
    ------
    GeometryError
        If the seeds do not lie in one region, or the density is on another grid.
    """
    if density.shape != labels.shape:
        raise GeometryError(
            f"expected the volume on which the labels lie, of {labels.shape} voxels (z, y, x)",
            got=f"one of {density.shape}",
            hint="Select the volume of these labels in the list of layers.",
        )
    inside = ((seeds >= 0) & (seeds < labels.shape)).all(axis=1)
    held = {int(labels[tuple(seed)]) for seed in seeds[inside]} - {0}
    if len(held) != 1:
        raise GeometryError(
            "expected points in one region", got=f"{len(held)} regions", hint="Put one point into each of its parts."
        )
    (number,) = held
    highest, low, high = 0, np.array(labels.shape), np.zeros(3, int)
    for first in range(0, len(labels), _SLAB):
        slab = np.asarray(labels[first : first + _SLAB])
        highest = max(highest, int(slab.max()))
        for axis in range(3):
            mine = np.flatnonzero((slab == number).any(axis=tuple({0, 1, 2} - {axis})))
            if len(mine):
                mine = mine + (first if axis == 0 else 0)
                low[axis], high[axis] = min(low[axis], mine[0]), max(high[axis], mine[-1] + 1)
        yield PlanesCompared(min(first + _SLAB, len(labels)), len(labels))
    z, y, x = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    parts = split_region(density.read((z, y, x)), labels[z, y, x] == number, seeds - low)
    moved = np.argwhere(parts > 1)
    numbers = highest + parts[tuple(moved.T)].astype(np.int64) - 1
    if len(numbers) and numbers.max() > np.iinfo(labels.dtype).max:
        raise GeometryError(
            f"expected room for new numbers in labels of {labels.dtype}",
            got=f"a highest number of {highest}",
            hint="Make a copy to edit, whose numbers may be larger.",
        )
    voxels = np.ravel_multi_index(tuple((moved + low).T), labels.shape)
    yield Regrouped(voxels, numbers.astype(labels.dtype), number, tuple(np.unique(numbers).tolist()))


def _no_room(size: int, file: Path, error: OSError) -> ResourceError:
    return ResourceError(
        f"expected room for {size / 2**20:.0f} MiB in {file.parent}",
        got=str(error.strerror or error),
        hint="Make room there, or name a folder with more of it in the variable TMPDIR and start napari again.",
    )

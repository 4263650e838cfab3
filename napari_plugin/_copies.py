"""A copy of a scan's regions in a file, which the viewer edits and the process beside it compares with the scan.

The file holds the numbers of the places, uint32 in the order z y x, and nothing else. Both processes
map it into their memory, so what is painted in one is seen by the other.
"""

from collections.abc import Iterator, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from cryoscan.errors import ResourceError
from cryoscan.units import Shape
from cryoscan.volume import Volume

_SLAB = 64  # planes that are read at once: the chunks of a scan


@dataclass(frozen=True, slots=True)
class PlanesCompared:
    """Event: how many planes of all were compared."""

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


def mapped(file: Path, shape: Shape, *, writable: bool = False) -> np.ndarray:
    """A copy in memory, `z y x`."""
    return np.memmap(file, np.uint32, "r+" if writable else "r", shape=shape)


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
        raise ResourceError(
            f"expected room for {4 * np.prod(numbers.shape) / 2**20:.0f} MiB in {file.parent}",
            got=str(error.strerror or error),
            hint="Make room there, or name a folder with more of it in the variable TMPDIR and start napari again.",
        ) from error


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

"""An integer volume and what each integer means."""

import colorsys
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cryoscan.errors import GeometryError
from cryoscan.units import Angstrom
from cryoscan.volume import Volume


@dataclass(frozen=True, slots=True)
class LabelClass:
    """Meaning of one integer.

    Parameters
    ----------
    name : str
        For people, e.g. ``Globin-like``.
    type : str
        Place in a scheme, e.g. ``1.10.490.10``; empty for plain regions.
    scheme : str
        ``CATH``, ``SCOPe`` or empty.
    """

    name: str
    type: str = ""
    scheme: str = ""

    @property
    def colour(self) -> tuple[int, int, int]:
        """RGB 0–255 that depends on the type alone: the same in every volume and program."""
        digest = hashlib.sha256(f"{self.scheme}:{self.type or self.name}".encode()).digest()
        hue = int.from_bytes(digest[:4], "big") / 2**32
        red, green, blue = colorsys.hsv_to_rgb(hue, 0.55 + 0.4 * digest[4] / 255, 0.75 + 0.25 * digest[5] / 255)
        return round(255 * red), round(255 * green), round(255 * blue)


@dataclass(frozen=True, slots=True, eq=False)
class LabelMap:
    """Labels per voxel; 0 is background.

    Parameters
    ----------
    volume : Volume
        Integer data.
    classes : mapping
        Integer → meaning; integers without an entry are plain numbered regions.
    """

    volume: Volume
    classes: Mapping[int, LabelClass]

    def __post_init__(self) -> None:
        if not np.issubdtype(np.dtype(self.volume.data.dtype), np.integer):
            raise GeometryError(
                "expected integer labels", got=str(self.volume.data.dtype), hint="Convert the labels to integers."
            )
        if 0 in self.classes:
            raise GeometryError("expected label 0 to be background", got=str(self.classes[0]), hint="Number from 1.")

    def __repr__(self) -> str:
        return f"LabelMap({self.volume!r}, {len(self.classes)} classes)"

    @property
    def voxel_size(self) -> Angstrom:
        """Edge of a voxel, Å."""
        return self.volume.voxel_size

    def labels(self) -> np.ndarray:
        """The data in memory."""
        return np.asarray(self.volume.data[:, :, :])

    def mask(self, label: int) -> np.ndarray:
        """Voxels of one label, `z y x` bool.

        Raises
        ------
        GeometryError
            If no voxel carries the label.
        """
        mask = self.labels() == label
        if not mask.any():
            present = np.unique(self.labels())
            raise GeometryError(
                "expected a label that occurs in the label volume",
                got=str(label),
                hint=f"Labels present: {', '.join(map(str, present[:20]))}{' …' if len(present) > 20 else ''}.",
            )
        return mask


def looked_up(numbers: Volume, table: np.ndarray) -> Volume:
    """A volume of integers read as others, block by block."""
    return Volume(_Looked(numbers.data, table), numbers.voxel_size, numbers.origin)


@dataclass(frozen=True, slots=True, eq=False)
class _Looked:
    """Integers looked up in a table."""

    source: Any
    table: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        z, y, x = self.source.shape
        return int(z), int(y), int(x)

    @property
    def dtype(self) -> np.dtype:
        return self.table.dtype

    @property
    def ndim(self) -> int:
        return 3

    def __getitem__(self, key: Any, /) -> np.ndarray:
        return np.asarray(self.table[np.asarray(self.source[key])])

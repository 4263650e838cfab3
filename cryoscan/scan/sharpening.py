"""A volume that is sharpened where a scan reads it: network tiles are computed once, kept on disk, and shared.

What is read is what sharpening the whole volume first would have given, whatever part is read
and in which order, since the network's tiles belong to the volume (`cryoscan.enhance`), and
not to the tiles of the scan. Nothing here loads torch before a tile is computed.
"""

import io
import math
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from cryoscan.errors import MismatchError
from cryoscan.provenance import fingerprint_arrays, write_atomically
from cryoscan.units import Angstrom, Box, Shape
from cryoscan.volume import Volume

if TYPE_CHECKING:
    from cryoscan.enhance import Sharpener
    from cryoscan.models.cryosamu import CryoSamu

FOLDER = "sharpened"
"""Of a scan, while it is under way."""

_IN_MEMORY = 32  # tiles; 7 MiB each
_LAYERS_AT_ONCE = 6.1  # of the finest level; at most: 144³ voxels take 0.91 GiB with 16 channels, 1.28 with 24


class Draft:
    """A temporary folder, gone when nobody refers to it any more."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="cryoscan-sharpened-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Sharpening:
    """How a volume is sharpened, in plain values that other processes and later runs can read.

    Parameters
    ----------
    weights : Path
        Of the network.
    fingerprint : str
        Of its weights.
    background, scale : float
        Of the volume; see `cryoscan.enhance.Sharpener`.
    device : str
    folder : Path, optional
        Where finished tiles are kept; without, they are computed again once memory has forgotten them.
    draft : Draft, optional
        That folder, until there is a scan to keep them in.
    """

    weights: Path
    fingerprint: str
    background: float
    scale: float
    device: str
    folder: Path | None = None
    draft: Draft | None = field(default=None, compare=False)

    def drafted(self) -> Self:
        """The same, its tiles kept for a scan whose folder is not there yet."""
        draft = Draft()
        return replace(self, folder=draft.path, draft=draft)

    def kept_in(self, path: Path) -> Self:
        """The same, its tiles kept in the folder of a scan, to which those of the draft are moved."""
        kept = path / FOLDER
        if self.draft is not None:
            kept.mkdir(exist_ok=True)
            for tile in self.draft.path.glob("*.npy"):
                if not (kept / tile.name).exists():
                    write_atomically(kept / tile.name, tile.read_bytes())
                tile.unlink()
        return replace(self, folder=kept, draft=None)

    def of(self, volume: Volume) -> Volume:
        """The sharpened volume, computed where it is read.

        Raises
        ------
        MissingFileError, FormatError, MismatchError
            When it is read, if the network is not there any more, or is another one.
        """
        return Volume(_Lazy(self, volume), volume.voxel_size, volume.origin)

    def network(self) -> "CryoSamu":
        """The network on its device."""
        return _network(self.weights, self.fingerprint, self.device)

    def tile_bytes(self, volume: Volume) -> int:
        """What sharpening a tile needs at its peak, and the tiles that are kept in memory."""
        kept, seen = self._voxels(volume)
        working = _LAYERS_AT_ONCE * self.network().config.channels[0] * max(seen)
        return int(4 * (working + sum(sorted(kept)[-_IN_MEMORY:])))

    def disk_bytes(self, volume: Volume) -> int:
        """What the kept tiles take while a scan is under way, at most."""
        return 4 * sum(self._voxels(volume)[0])

    def seconds(self, volume: Volume) -> float:
        """Projected time of sharpening the whole volume in one process, from one tile in its middle that is tried."""
        sharpener = self._sharpener(volume)
        _, seen = self._voxels(volume)
        middle = len(seen) // 2
        tile = sharpener.tiles()[middle]
        start = time.monotonic()
        sharpener.tile(*tile)
        return (time.monotonic() - start) * sum(seen) / seen[middle]

    def _voxels(self, volume: Volume) -> tuple[list[int], list[int]]:
        """Of each tile, how many voxels are kept, and how many the network sees."""
        from cryoscan.enhance import kept_box

        tiles = self._sharpener(volume).tiles()
        kept = [math.prod(part.stop - part.start for part in kept_box(*tile)) for tile in tiles]
        return kept, [math.prod(part.stop - part.start for part in wide) for _, wide in tiles]

    def _sharpener(self, volume: Volume) -> "Sharpener":
        from cryoscan.enhance import Sharpener

        return Sharpener(volume, self.network(), self.background, self.scale)

    def to_json(self) -> dict[str, Any]:
        """JSON-able; where tiles are kept is not part of it."""
        return {
            "weights": str(self.weights.resolve()),
            "fingerprint": self.fingerprint,
            "background": self.background,
            "scale": self.scale,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any], *, device: str) -> Self:
        """The inverse of `to_json`."""
        return cls(Path(values["weights"]), values["fingerprint"], values["background"], values["scale"], device)


def plan_sharpening(
    volume: Volume, *, weights: Path | None = None, resolution: Angstrom | None = None, device: str = "cpu"
) -> tuple[Sharpening, tuple[str, ...]]:
    """How a volume will be sharpened, and what the user should be warned of before.

    Parameters
    ----------
    volume : Volume
        Protein positive.
    weights : Path, optional
        Of a network of one's own; the one that ships otherwise.
    resolution : Angstrom, optional
        Of the volume; estimated from its spectrum otherwise.
    device : str

    Raises
    ------
    MissingFileError, FormatError
        If there is no network, or the volume's middle is constant or holds NaN.
    """
    from cryoscan.enhance import judged, open_network, sharpener_of, shipped_network

    path = weights or shipped_network()
    network = open_network(path)
    sharpener = sharpener_of(volume, network)
    _, _, warnings = judged(volume, resolution=resolution)
    return Sharpening(path, _fingerprint(network), sharpener.background, sharpener.scale, device), warnings


def fingerprint_enhancer(weights: Path | None = None) -> str:
    """Fingerprint of the weights of a network, whatever its file is called; of the one that ships if none is given.

    Raises
    ------
    MissingFileError, FormatError
        If there is no such network.
    """
    from cryoscan.enhance import open_network

    return _fingerprint(open_network(weights))


# ---------------------------------------------------------------- private


def _fingerprint(network: "CryoSamu") -> str:
    return fingerprint_arrays(value.cpu().numpy() for _, value in sorted(network.state_dict().items()))


@lru_cache(maxsize=1)
def _network(weights: Path, fingerprint: str, device: str) -> "CryoSamu":
    from cryoscan.enhance import open_network

    network = open_network(weights)
    if _fingerprint(network) != fingerprint:
        raise MismatchError(
            "expected the network with which the scan was planned",
            got=f"another one in {weights}",
            hint="Leave the network's file in place while it is used; give a new one another name.",
        )
    return network.to(device)


class _Lazy:
    """The sharpened volume as an array: nothing is opened before it is read, so that plans are made lightly."""

    def __init__(self, recipe: Sharpening, volume: Volume) -> None:
        self._recipe, self._volume = recipe, volume
        self._grid: Volume | None = None

    @property
    def shape(self) -> Shape:
        return self._volume.shape

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.float32)

    def __getitem__(self, key: Any, /) -> np.ndarray:
        if self._grid is None:
            sharpener = self._recipe._sharpener(self._volume)
            self._grid = sharpener.on_grid(_Tiles(sharpener, self._recipe.folder))
        return np.asarray(self._grid.data[key])


class _Tiles:
    """The sharpened volume on the network's grid: the sum of the tiles that reach into what is read."""

    def __init__(self, sharpener: "Sharpener", folder: Path | None) -> None:
        from cryoscan.enhance import kept_box

        self._sharpener, self._folder = sharpener, folder
        self._tiles = sharpener.tiles()
        corners = [[[part.start, part.stop] for part in kept_box(*tile)] for tile in self._tiles]
        self._first, self._last = np.moveaxis(np.array(corners), 2, 0)
        self._tile = lru_cache(maxsize=_IN_MEMORY)(self._found)
        self._one_at_a_time = threading.Lock()  # what reads ahead and what cuts places out want the same tiles

    @property
    def shape(self) -> Shape:
        return self._sharpener.shape

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.float32)

    def __getitem__(self, box: Box, /) -> np.ndarray:
        low, high = np.array([part.start for part in box]), np.array([part.stop for part in box])
        total = np.zeros(np.maximum(high - low, 0), np.float32)
        for index in np.flatnonzero(((self._first < high) & (self._last > low)).all(axis=1)).tolist():
            first, last = self._first[index], self._last[index]
            start, stop = np.maximum(first, low), np.minimum(last, high)
            here = tuple(slice(a, b) for a, b in zip(start - low, stop - low, strict=True))
            there = tuple(slice(a, b) for a, b in zip(start - first, stop - first, strict=True))
            with self._one_at_a_time:
                found = self._tile(index)
            total[here] += found[there]
        return total

    def _found(self, index: int) -> np.ndarray:
        """A tile, from disk if any process has computed it before."""
        if self._folder is None:
            return self._sharpener.tile(*self._tiles[index])[1]
        file = self._folder / f"{index}.npy"
        try:
            stored: np.ndarray = np.load(file, allow_pickle=False)
            if stored.shape == tuple(self._last[index] - self._first[index]):
                return stored
        except (OSError, ValueError, EOFError):  # not there yet, or cut short
            pass
        _, found = self._sharpener.tile(*self._tiles[index])
        stream = io.BytesIO()
        np.save(stream, found, allow_pickle=False)
        self._folder.mkdir(exist_ok=True)
        write_atomically(file, stream.getvalue())
        return found

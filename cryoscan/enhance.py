"""Sharpen a map: a network sees it tile by tile; grid, place and memory stay as they are.

The network works on voxels of its own size, onto which each tile is resampled; what it finds
is brought back to the map's grid when it is read. Tiles overlap and fade into each other.
Where a map ends, tiles end too: a network without offsets takes what lies outside for
solvent, and has been trained on windows that end in the middle of density. Holes, voxels that
are NaN or infinite, are solvent to the network too, and holes in what it gives back.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import scipy.fft
import torch

from cryoscan.errors import FormatError, GeometryError, MismatchError, MissingFileError, ResourceError
from cryoscan.filters import frequency_grid, resample_onto
from cryoscan.metrics import fsc, resolution_at
from cryoscan.models.checkpoint import load_network
from cryoscan.models.cryosamu import CryoSamu, Informants
from cryoscan.models.residue_weighting import Form, informants_of
from cryoscan.models.structure_embedding import StructureEmbedder, embed_chains
from cryoscan.segment import check_same_grid
from cryoscan.structure import Structure
from cryoscan.tiles import Tiling
from cryoscan.units import Angstrom, Box, Shape, Vector, Voxels
from cryoscan.volume import ArrayLike, Volume

RANGE: tuple[Angstrom, Angstrom] = (4.0, 8.0)
"""Resolutions that the network was trained for, Å."""

MOST_RESIDUES = 10_000
"""Of a structure: attention compares every residue of a chain with every other."""

_HALO: Voxels = 24  # of the network's grid, on each side where the map goes on
_CORE: Voxels = 96
_FADE: Voxels = 12  # on each side of the border between two tiles
_IN_MEMORY = 2**29  # bytes; larger results lie in a temporary file
_SAMPLE: Voxels = 256  # edge of the part of a map that is measured
_FALLEN = 0.003  # of the power at 8 to 15 Å: where a map ends; chosen on maps low-passed to known resolutions
_BAND: tuple[Angstrom, Angstrom] = (15.0, 8.0)
_COARSE_BAND: tuple[Angstrom, Angstrom] = (40.0, 20.0)
_BAND_OVER_COARSE = 0.05  # a little less power than proteins have in the one band relative to the other
_HALF_MAP_FSC = 0.143
_PLANES_AT_ONCE = 16
_LEAST_INSIDE = 0.5
_LEAST_CONTRAST = 0.5


@dataclass(frozen=True, slots=True)
class TileEnhanced:
    """Event: so many tiles are done."""

    done: int
    total: int


@dataclass(frozen=True, slots=True, eq=False)
class Enhancement:
    """The end of an enhancement.

    Parameters
    ----------
    volume : Volume
        On the grid of the input, computed where it is read. It holds nothing finer than two
        voxels of the network, and what is NaN or infinite in the input is so here.
    difference : Volume
        What was changed: the result less the input.
    resolution : Angstrom, optional
        Of the input, as given or measured; None if it could not be measured.
    measured_by : str
        ``given``, ``half-maps`` or ``spectrum``.
    structure : str
        Name of the structure that was attended to, or empty.
    warnings : tuple of str
        Plain sentences for the user.
    """

    volume: Volume
    difference: Volume
    resolution: Angstrom | None
    measured_by: str
    structure: str
    warnings: tuple[str, ...]


def enhance(
    volume: Volume,
    network: CryoSamu,
    *,
    structure: Structure | None = None,
    embedder: StructureEmbedder | None = None,
    placed: bool = True,
    weighting: Form = "column",
    half_maps: tuple[Volume, Volume] | None = None,
    mask: Volume | None = None,
    resolution: Angstrom | None = None,
) -> Iterator[TileEnhanced | Enhancement]:
    """Sharpen a map; the last event is the result.

    Parameters
    ----------
    volume : Volume
        Protein positive; may be lazy and of any size.
    network : CryoSamu
    structure : Structure, optional
        Of the protein, a relative or a prediction. If it was built into this very map, the
        result must not be used to judge it.
    embedder : StructureEmbedder, optional
        The one that the network was trained with; needed with a structure.
    placed : bool
        Whether the structure lies in the map. What the network learns of it has no place,
        so that a relative need not; a structure that is said to lie in the map is checked.
    weighting : str
        Form of the weights of chains and residues, see `cryoscan.models.residue_weighting`.
    half_maps : (Volume, Volume), optional
        On the map's grid; tell its resolution.
    mask : Volume, optional
        On the map's grid, 0 … 1; outside there is solvent in the result.
    resolution : Angstrom, optional
        Of the map, if it is known.

    Yields
    ------
    TileEnhanced, and at the end Enhancement

    Raises
    ------
    FormatError
        If the map is constant or holds no finite values, or the structure holds no protein.
    GeometryError
        If the structure does not lie in the map's density.
    MismatchError
        If mask or half-maps have another grid, or the network another embedder.
    ResourceError
        If the structure has more than 10,000 residues.
    """
    for half in half_maps or ():
        check_same_grid(volume, half, what="a half-map")
    if mask is not None:
        check_same_grid(volume, mask)
    sharpener = sharpener_of(volume, network, mask=mask)
    if structure is not None:
        informants = _informants(volume, network, structure, embedder, placed, weighting, sharpener.background)
        sharpener = replace(sharpener, informants=informants)
    finest, measured_by, warnings = judged(volume, half_maps=half_maps, resolution=resolution)
    warnings = (*_holes(volume, mask), *warnings)
    total = _room(sharpener.shape)
    tiles = sharpener.tiles()
    for done, (core, wide) in enumerate(tiles, start=1):
        kept, found = sharpener.tile(core, wide)
        total[kept] += found
        yield TileEnhanced(done, len(tiles))
    yield Enhancement(
        sharpener.on_grid(total),
        sharpener.on_grid(total, difference=True),
        finest,
        measured_by,
        structure.id if structure is not None else "",
        warnings,
    )


@dataclass(frozen=True, slots=True, eq=False)
class Sharpener:
    """A network, and what it must know of a whole map so that it sharpens a part of it as it does the whole.

    Parameters
    ----------
    volume : Volume
    network : CryoSamu
    background : float
        Value of solvent.
    scale : float
        Spread of the density about it.
    mask : Volume, optional
    informants : Informants, optional
        What is told of a structure.
    """

    volume: Volume
    network: CryoSamu
    background: float
    scale: float
    mask: Volume | None = None
    informants: Informants | None = None

    @property
    def shape(self) -> Shape:
        """Size of the map on the network's grid."""
        return network_shape(self.volume, self.network.config.voxel_size_A)

    def tiles(self) -> list[tuple[Box, Box]]:
        """The core of each tile, and the box that is computed for it, on the network's grid."""
        return _tiles(self.shape, self.network.config.period)

    def tile(self, core: Box, wide: Box) -> tuple[Box, np.ndarray]:
        """What a tile adds to the sharpened map, less solvent: where, and how much; tiles add up to the map."""
        kept = kept_box(core, wide)
        block = _read(self.volume, self.mask, self.network.config.voxel_size_A, wide, self.background)
        inner = tuple(slice(k.start - w.start, k.stop - w.start) for k, w in zip(kept, wide, strict=True))
        if not block.any():
            return kept, np.zeros(block[inner].shape, np.float32)
        scale = np.float32(self.scale)
        found = applied(self.network, block / scale, self.informants)[inner] * scale
        fade = [_fade(c, k, size) for c, k, size in zip(core, kept, self.shape, strict=True)]
        found *= fade[0][:, None, None] * fade[1][None, :, None] * fade[2][None, None, :]
        return kept, found

    def on_grid(self, found: ArrayLike, *, difference: bool = False) -> Volume:
        """The sharpened map, or what was changed, on the map's own grid; resampled where it is read."""
        sharp = Volume(found, self.network.config.voxel_size_A, self.volume.origin)
        data = _OnGrid(self.volume, sharp, self.mask, self.background, difference)
        return Volume(data, self.volume.voxel_size, self.volume.origin)


def sharpener_of(volume: Volume, network: CryoSamu, *, mask: Volume | None = None) -> Sharpener:
    """Look at the middle of a map before any of it is sharpened.

    Raises
    ------
    FormatError
        If it is constant or holds nothing finite there.
    """
    sample = _sample(volume)
    sample = sample[np.isfinite(sample)]
    background = _checked_background(sample)
    scale = float(np.sqrt(np.mean((sample - np.float32(background)) ** 2, dtype=np.float64)))
    return Sharpener(volume, network, background, scale, mask)


def judged(
    volume: Volume, *, half_maps: tuple[Volume, Volume] | None = None, resolution: Angstrom | None = None
) -> tuple[Angstrom | None, str, tuple[str, ...]]:
    """The resolution of a map, how it is known, and what the user should be warned of before it is sharpened."""
    finest, measured_by = _resolution(volume, half_maps, resolution)
    return finest, measured_by, tuple(_guard(finest, measured_by, volume.voxel_size))


def network_shape(volume: Volume, voxel_size: Angstrom) -> Shape:
    """Size of a map on a network's grid, which begins with the map's first voxel."""
    ratio = volume.voxel_size / voxel_size
    z, y, x = (int(np.floor((size - 1) * ratio + 1e-6)) + 1 for size in volume.shape)
    return z, y, x


def kept_box(core: Box, wide: Box) -> Box:
    """The part of a tile's box in which it counts: its core, and where it fades into its neighbours."""
    z, y, x = (
        slice(max(w.start, c.start - _FADE), min(w.stop, c.stop + _FADE)) for c, w in zip(core, wide, strict=True)
    )
    return z, y, x


def open_network(path: Path | None = None) -> CryoSamu:
    """The network that ships with the package, or one of one's own.

    Raises
    ------
    MissingFileError
        If none ships, or there is no such file.
    FormatError
        If the file is no enhancing network.
    """
    return load_network(path or shipped_network(), CryoSamu)


def shipped_network() -> Path:
    """The file of the network that ships with the package.

    Raises
    ------
    MissingFileError
        If none ships.
    """
    shipped = Path(str(files("cryoscan"))) / "weights" / "enhancer.safetensors"
    if not shipped.is_file():
        raise MissingFileError(
            "expected a network to sharpen with",
            got="none: this copy of cryoscan ships without",
            hint="Give --weights FILE; cryoscan train configs/train/enhance.yaml makes one.",
        )
    return shipped


def enhanced(volume: Volume, network: CryoSamu, **options: Any) -> Volume:
    """The result of `enhance` in memory."""
    *_, last = enhance(volume, network, **options)
    assert isinstance(last, Enhancement)
    return last.volume.loaded()


def background_of(values: np.ndarray) -> float:
    """The most frequent value: that of solvent, or of what was masked away."""
    values = np.asarray(values, np.float32).ravel()
    low, high = np.quantile(values[:: max(1, len(values) // 1_000_000)], (0.0005, 0.9995))
    if not high > low:
        return float(low)
    counts, edges = np.histogram(values, bins=512, range=(float(low), float(high)))
    at = int(np.argmax(np.convolve(counts, np.ones(9) / 9, mode="same")))
    inside = values[(values >= edges[max(at - 4, 0)]) & (values <= edges[min(at + 5, 512)])]
    return float(np.median(inside))


def spectrum_resolution(data: np.ndarray, *, voxel_size: Angstrom) -> Angstrom | None:
    """Where a map's spectrum ends: the finest shell whose mean power is 0.3 % of that between 15 and 8 Å.

    An estimate to 1 Å or so for maps that were low-passed, as nearly all are; a map that was
    not ends at its Nyquist frequency.

    Returns
    -------
    Angstrom or None
        None if the map is too small or too coarse to say.
    """
    z, y, x = data.shape
    width = 1 / (max(data.shape) * voxel_size)
    shells = np.rint(frequency_grid((z, y, x), voxel_size) / width).astype(np.int64).ravel()
    power = np.abs(scipy.fft.rfftn(np.asarray(data, np.float32))).ravel() ** 2
    count = int(0.5 / voxel_size / width) + 1
    rows = shells < count
    mean = np.bincount(shells[rows], power[rows], minlength=count) / np.bincount(shells[rows], minlength=count).clip(1)
    s = np.arange(count) * width
    band, coarse = ((s >= 1 / low) & (s <= 1 / high) for low, high in (_BAND, _COARSE_BAND))
    if not band.any():
        return None
    usual = float(mean[band].mean())
    if coarse.any():  # a map that ends before the band has noise there, which is no measure of its signal
        usual = max(usual, _BAND_OVER_COARSE * float(mean[coarse].mean()))
    there = np.flatnonzero((mean > _FALLEN * usual) & (s >= 1 / _COARSE_BAND[0]))
    return float(1 / s[there[-1]]) if len(there) else None


# ---------------------------------------------------------------- what is refused


def _checked_background(sample: np.ndarray) -> float:
    if not sample.size:
        raise FormatError(
            "expected finite values in the map",
            got="NaN or infinity in every voxel of its middle",
            hint="Check that the program that wrote it ended without an error.",
        )
    low, high = float(sample.min()), float(sample.max())
    if not high - low > 1e-6 * max(abs(low), abs(high)):
        raise FormatError("expected a map with contrast", got=f"{low:g} in every voxel", hint="Is this the right file?")
    return background_of(sample)


def _informants(
    volume: Volume,
    network: CryoSamu,
    structure: Structure,
    embedder: StructureEmbedder | None,
    placed: bool,
    weighting: Form,
    background: float,
) -> Informants:
    if embedder is None or (embedder.name, embedder.dim) != (network.config.structure, network.config.structure_dim):
        got = "none" if embedder is None else f"'{embedder.name}' of {embedder.dim} numbers"
        raise MismatchError(
            f"expected the embedder of structures that the network was trained with, '{network.config.structure}' of "
            f"{network.config.structure_dim} numbers",
            got=got,
            hint="Take the weights that belong to the embedder, or the other way round.",
        )
    if bool(structure.nucleic.all()):
        raise FormatError(
            f"expected protein in the structure '{structure.id}'",
            got="nucleic acid alone",
            hint="Give the protein of the complex, or go without --structure.",
        )
    protein = structure.protein()
    if protein.n_residues > MOST_RESIDUES:
        raise ResourceError(
            f"expected a structure of at most {MOST_RESIDUES:,} residues",
            got=f"{protein.n_residues:,} in '{structure.id}'",
            hint="Give one copy of each chain: repeated chains tell the network nothing new.",
        )
    if placed:
        _refuse_misplaced(volume, protein, background)
    vectors_CRD, mask_CR = embed_chains(protein, embedder)
    return informants_of(vectors_CRD, mask_CR, residues=network.config.residues, form=weighting).to(
        next(network.parameters()).device
    )


def _refuse_misplaced(volume: Volume, protein: Structure, background: float) -> None:
    """Refuse atoms outside the map, or in no density of it."""
    places = np.rint(volume.to_index(protein.positions)).astype(np.int64)
    inside = np.all((places >= 0) & (places < np.array(volume.shape)), axis=1)
    hint = (
        "Fit the structure into the map, go without --structure, or, if it is a relative that need not lie in the "
        "map, say --unplaced."
    )
    if inside.mean() < _LEAST_INSIDE:
        distance = np.linalg.norm(protein.positions.mean(axis=0) - volume.to_position((np.array(volume.shape) - 1) / 2))
        raise GeometryError(
            f"expected the structure '{protein.id}' inside the map",
            got=f"{inside.mean():.0%} of its atoms there; its centre lies {distance:.0f} Å from the map's",
            hint=hint,
        )
    first, last = places[inside].min(axis=0), places[inside].max(axis=0) + 1
    z, y, x = (slice(int(a), int(b)) for a, b in zip(first, last, strict=True))
    values = volume.filled(background).read((z, y, x))
    at_atoms = values[tuple((places[inside] - first).T)]
    contrast = float((at_atoms.mean() - background) / max(float(values.std()), 1e-30))
    if contrast < _LEAST_CONTRAST:
        raise GeometryError(
            f"expected the structure '{protein.id}' in the map's density",
            got=f"a mean density at its atoms of {contrast:.2f} standard deviations above the solvent",
            hint=hint,
        )


# ---------------------------------------------------------------- what the map resolves


def _sample(volume: Volume) -> np.ndarray:
    """The middle of the map, at most 256³ voxels of it."""
    starts = [max(0, (size - _SAMPLE) // 2) for size in volume.shape]
    z, y, x = (slice(start, min(start + _SAMPLE, size)) for start, size in zip(starts, volume.shape, strict=True))
    return volume.read((z, y, x))


def _sample_without_holes(volume: Volume) -> np.ndarray:
    """The middle of the map, solvent in its holes."""
    sample = _sample(volume)
    finite = np.isfinite(sample)
    return sample if finite.all() else np.where(finite, sample, np.float32(background_of(sample[finite])))


def _holes(volume: Volume, mask: Volume | None) -> Iterator[str]:
    """How many voxels are NaN or infinite where the mask lets through, and where they lie."""
    count = 0
    low, high = np.full(3, np.inf), np.full(3, -np.inf)
    for first in range(0, volume.shape[0], _PLANES_AT_ONCE):
        slab = np.s_[first : first + _PLANES_AT_ONCE, :, :]
        broken = ~np.isfinite(np.asarray(volume.data[slab]))
        if mask is not None and broken.any():
            broken &= np.asarray(mask.data[slab]) > 0
        if broken.any():
            places = np.argwhere(broken) + np.array([first, 0, 0])
            count += len(places)
            low, high = np.minimum(low, places.min(axis=0)), np.maximum(high, places.max(axis=0))
    if count:
        start, stop = (np.round(volume.to_position(corner), 1).tolist() for corner in (low, high))
        many = f"{count:,} voxels are" if count > 1 else "1 voxel is"
        yield (
            f"{many} NaN or infinite, between {start} and {stop} Å (z, y, x): they stay as they are. The network saw "
            "solvent in their place, so that what lies close to them is less certain."
        )


def _resolution(
    volume: Volume, half_maps: tuple[Volume, Volume] | None, given: Angstrom | None
) -> tuple[Angstrom | None, str]:
    if given is not None:
        return given, "given"
    if half_maps is not None:
        first, second = (_sample_without_holes(half) for half in half_maps)
        return resolution_at(*fsc(first, second, voxel_size=volume.voxel_size), _HALF_MAP_FSC), "half-maps"
    sample = _sample_without_holes(volume)
    return spectrum_resolution(sample - background_of(sample), voxel_size=volume.voxel_size), "spectrum"


def _guard(resolution: Angstrom | None, measured_by: str, voxel_size: Angstrom) -> Iterator[str]:
    low, high = RANGE
    if resolution is None:
        yield "The map's resolution could not be measured (--resolution): the network is made for maps of 4 to 8 Å."
        return
    how = {"given": "was given", "half-maps": "comes from the half-maps"}.get(measured_by, "is read from its spectrum")
    if resolution > high:
        yield (
            f"The map's resolution, {resolution:.1f} Å, {how} and lies beyond the {low:g} to {high:g} Å that the "
            "network was trained for: what it adds is likely to be invented."
        )
    elif resolution < low - (1.0 if measured_by == "spectrum" else 0.2):
        yield (
            f"The map's resolution, {resolution:.1f} Å, {how} and is better than the {low:g} to {high:g} Å that the "
            "network was trained for: the map may lose detail."
        )
    if 2 * voxel_size > high:
        yield f"Voxels of {voxel_size:g} Å hold nothing finer than {2 * voxel_size:g} Å: there is nothing to sharpen."


# ---------------------------------------------------------------- tiles


def _tiles(shape: Shape, period: Voxels) -> list[tuple[Box, Box]]:
    """Cores that partition the grid, each with the box that is computed for it; starts are multiples of the period."""
    cores: list[Voxels] = []
    for size in shape:
        count = 1 if size <= _CORE + _HALO else -(-size // _CORE)  # one tile that ends with the map needs no halo
        cores.append(-(-size // (count * period)) * period)
    found: list[tuple[Box, Box]] = []
    for core in Tiling(shape, (cores[0], cores[1], cores[2])):
        z, y, x = (
            slice(max(0, part.start - _HALO), min(size, part.stop + _HALO))
            for part, size in zip(core, shape, strict=True)
        )
        found.append((core, (z, y, x)))
    return found


def _fade(core: slice, wide: slice, size: Voxels) -> np.ndarray:
    """Weight of a tile along an axis: 1 in its core, crossing over to its neighbours along half a Hann window.

    Neighbours' weights sum to 1, since one falls as the other rises.
    """
    u = np.arange(wide.start, wide.stop) + 0.5
    weight = np.ones(len(u))
    if core.start > 0:
        weight *= _rise((u - core.start) / _FADE)
    if core.stop < size:
        weight *= _rise((core.stop - u) / _FADE)
    return weight.astype(np.float32)


def _rise(u: np.ndarray) -> np.ndarray:
    """0 up to -1, 1 from 1 on, half a cosine between."""
    return np.asarray(0.5 + 0.5 * np.sin(0.5 * np.pi * np.clip(u, -1, 1)))


def _read(
    volume: Volume, mask: Volume | None, voxel_size: Angstrom, box: tuple[slice, ...], background: float
) -> np.ndarray:
    """The map less its background on a box of the network's grid, solvent in its holes and where the mask says so."""
    shift = np.array([part.start for part in box]) * voxel_size
    place = np.asarray(volume.origin) + shift
    origin: Vector = (float(place[0]), float(place[1]), float(place[2]))
    z, y, x = (part.stop - part.start for part in box)
    grid: dict[str, Any] = {"voxel_size": voxel_size, "origin": origin, "shape": (z, y, x)}
    values = resample_onto(volume.filled(background), **grid, fill=background).load()
    values -= np.float32(background)
    if mask is not None:
        values *= np.clip(resample_onto(mask.filled(0), **grid).load(), 0, 1)
    return values


@torch.inference_mode()
def applied(network: CryoSamu, block: np.ndarray, informants: Informants | None) -> np.ndarray:
    """The network on a block of any shape, padded with solvent."""
    period = network.config.period
    more = [(0, -size % period) for size in block.shape]
    padded = torch.from_numpy(np.pad(block, more))[None].to(next(network.parameters()).device)
    found = network(padded, informants)[0].float().cpu().numpy()
    z, y, x = block.shape
    result: np.ndarray = found[:z, :y, :x]
    return result


def _room(shape: Shape) -> np.ndarray:
    """Zeros for the result on the network's grid, in a temporary file without a name if it is large."""
    if 4 * int(np.prod(shape)) <= _IN_MEMORY:
        return np.zeros(shape, np.float32)
    with tempfile.TemporaryFile(prefix="cryoscan-enhance-") as file:  # lives on as long as it is mapped
        return np.memmap(file, np.float32, mode="w+", shape=shape)


@dataclass(frozen=True, slots=True, eq=False)
class _OnGrid:
    """The network's result on the map's grid, resampled where it is read."""

    source: Volume
    result: Volume
    mask: Volume | None
    background: float
    difference: bool

    @property
    def shape(self) -> Shape:
        """Size in voxels."""
        return self.source.shape

    @property
    def dtype(self) -> np.dtype:
        """Type of the values."""
        return np.dtype(np.float32)

    def __getitem__(self, key: Any, /) -> np.ndarray:
        key = key if isinstance(key, tuple) else (key,)
        key = (*key, *[slice(None)] * (3 - len(key)))
        bounds = [part.indices(size) for part, size in zip(key, self.shape, strict=True)]
        z, y, x = (slice(start, max(start, stop)) for start, stop, _ in bounds)
        if min(part.stop - part.start for part in (z, y, x)) == 0:
            return np.zeros([part.stop - part.start for part in (z, y, x)], np.float32)[
                tuple(slice(None, None, step) for *_, step in bounds)
            ]
        place = self.source.to_position([z.start, y.start, x.start])
        origin: Vector = (float(place[0]), float(place[1]), float(place[2]))
        shape: Shape = (z.stop - z.start, y.stop - y.start, x.stop - x.start)
        values = resample_onto(self.result, voxel_size=self.source.voxel_size, origin=origin, shape=shape).load()
        source = self.source.read((z, y, x))
        holes = ~np.isfinite(source)
        if self.mask is not None:
            weight = np.clip(self.mask.filled(0).read((z, y, x)), 0, 1)
            values *= weight
            holes &= weight > 0  # outside there is solvent, whatever the map says
        values += np.float32(self.background)
        values[holes] = source[holes]
        if self.difference:
            with np.errstate(invalid="ignore"):  # infinity less infinity
                values -= source
        return values[tuple(slice(None, None, step) for *_, step in bounds)]

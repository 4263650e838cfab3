"""The places that a lattice proposes: cut out of their neighbours, embedded again, and kept on disk.

A lattice window sees what lies around a molecule as well. An embedder that neighbours confuse
(`Embedder.needs_mask`) is shown each place a second time: its surroundings are segmented like
a map (watershed and grouping), and every group of a protein's size that holds the place is
embedded alone. For other embedders the vector of the lattice point is as good as any. What a
place was embedded as is stored, so that names can be given again under another database or
other thresholds without the volume.
"""

import io
import itertools
import zipfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import scipy.ndimage

from cryoscan.datedb.store import Assignment
from cryoscan.embedding import unit_rows
from cryoscan.errors import FormatError, GeometryError
from cryoscan.hits import NAMED_FROM_COSINE
from cryoscan.provenance import write_atomically
from cryoscan.scan.folder import read_lattice
from cryoscan.scan.plan import ScanPlan, probe_blocks
from cryoscan.segment import segment_map, soft_mask
from cryoscan.units import A3_PER_RESIDUE, Box, Vector
from cryoscan.volume import Volume

NULL = -1
"""In place of a tile's number: the places of phase-scrambled noise."""

_RESIDUES = (30, 600)
_MARGIN = 16  # voxels of context around a window, in which its density is segmented
_STEP, _STEPS = 1.0, 4  # voxels of 2.5 Å: smooths by 10 Å; 12 finer steps named the same places, half as fast
_NULL_PLACES = 200
_EDGE = 3.0  # Å over which a region's mask falls off
_AT_ONCE = 64  # windows that are embedded together


@dataclass(frozen=True, slots=True, eq=False)
class Places:
    """Regions at the places of a tile; a place may have several, nested in each other.

    Parameters
    ----------
    point : int array, `n 3`
        Lattice point that each region belongs to.
    position : float64 array, `n 3`
        Centre of mass, Å.
    start : int array, `n 3`
        First voxel, on the embedder's grid, of the block that the mask is of.
    vector : float16 array, `n d`
    mask : bool array, `n z y x`
        Voxels of the block that belong to the region; no voxels for embedders that need no mask.
    types, scores : int32 and float32 array, `n k`
        What it looks like most, as `DateDB.assign` says.
    entry : int32 array, `n`
        The entry of the best type.
    plain : float16 array, `n d`
        Where the scan sharpens, the vector of the place's best region in the volume as it is, the same for all regions
        of the place; else, and of noise, there are no columns.
    plain_types, plain_scores : int32 and float32 array, `n k`
        What that looks like most.
    """

    point: np.ndarray
    position: np.ndarray
    start: np.ndarray
    vector: np.ndarray
    mask: np.ndarray
    types: np.ndarray
    scores: np.ndarray
    entry: np.ndarray
    plain: np.ndarray
    plain_types: np.ndarray
    plain_scores: np.ndarray

    def __len__(self) -> int:
        return len(self.point)

    def at(self, points: np.ndarray) -> "Places":
        """Only the regions of some lattice points."""
        wanted = {tuple(point) for point in points.tolist()}
        rows = np.array([tuple(point) in wanted for point in self.point.tolist()], bool)
        return Places(*(getattr(self, name)[rows] for name in self.__slots__))


def mask_edge(plan: ScanPlan) -> int:
    """Edge of the blocks that masks are of, voxels of the embedder's grid."""
    return plan.embedder.window + _MARGIN if plan.embedder.needs_mask else 0


def named(plan: ScanPlan, places: Places) -> Places:
    """The regions with the names that the plan's database has for them."""
    answer = _assigned(plan, places.vector)
    return _named_plain(plan, replace(places, types=answer.types, scores=answer.scores, entry=answer.entries))


def _named_plain(plan: ScanPlan, places: Places) -> Places:
    if not places.plain.shape[1]:
        return places
    answer = _assigned(plan, places.plain)
    return replace(places, plain_types=answer.types, plain_scores=answer.scores)


def _assigned(plan: ScanPlan, vectors: np.ndarray) -> Assignment:
    """Answers to vectors, each asked once: neighbouring places often lie in the same region."""
    datedb, embedder = plan.naming
    once, row = np.unique(vectors, axis=0, return_inverse=True)
    rows = unit_rows(once.astype(np.float32))
    answer = datedb.assign(rows, top=plan.config.candidates, resolution=plan.level, device=str(embedder.device))
    return Assignment(*(part[row.ravel()] for part in (answer.types, answer.scores, answer.entries)))


def as_they_are(plan: ScanPlan, places: Places) -> Places:
    """The places with what they look like in the volume as it is, cut out by the masks of their best regions."""
    if plan.sharpening is None or not len(places):
        return places
    best, edge = best_of_places(plan, places).region, mask_edge(plan) or plan.embedder.window
    vectors = []
    for rows in np.array_split(best, -(-len(best) // _AT_ONCE)):
        windows = []
        for row in rows:
            z, y, x = (slice(int(first), int(first) + edge) for first in places.start[row])
            block = plan.read_working((z, y, x), as_it_is=True)
            data = block.load()
            windows.append(_window(block, data, places.mask[row], plan) if plan.embedder.needs_mask else data)
        vectors.append(plan.naming[1].embed(np.stack(windows)))
    _, place = np.unique(places.point, axis=0, return_inverse=True)
    plain = np.concatenate(vectors).astype(np.float16)[place.ravel()]
    return _named_plain(plan, replace(places, plain=plain))


# ---------------------------------------------------------------- where


def find_places(plan: ScanPlan, path: Path, index: int) -> Places:
    """Cut out and embed the places of a tile; of the volume's own noise if `index` is `NULL`."""
    if index == NULL:
        return _null_places(plan)
    points = peaks(plan, path, plan.tiling.box(index))
    places = _cut_out(plan, points) if plan.embedder.needs_mask else _of_candidates(plan, path, index, points)
    return as_they_are(plan, places)


def write_candidates(plan: ScanPlan, path: Path, index: int, score: np.ndarray, vectors: np.ndarray) -> None:
    """Keep the vectors of the points of a tile that are the best around, as far as the tile can tell.

    Its neighbours may know better ones, so these are somewhat more than its `peaks`.
    """
    top = _is_peak(score, _reach(plan)) & (score > 0)
    points = np.argwhere(top) + [part.start for part in plan.tiling.box(index)]
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, point=points, vector=vectors[top])
    write_atomically(path / "candidates" / f"{index}.npz", stream.getvalue())


def _of_candidates(plan: ScanPlan, path: Path, index: int, points: np.ndarray) -> Places:
    """Places with the vectors that the lattice had there."""
    with np.load(path / "candidates" / f"{index}.npz", allow_pickle=False) as stored:
        every, vectors = stored["point"], stored["vector"]
    row = {tuple(point): number for number, point in enumerate(every.tolist())}
    return _on_lattice(plan, points, vectors[[row[tuple(point)] for point in points.tolist()]])


def _on_lattice(plan: ScanPlan, points: np.ndarray, vectors: np.ndarray) -> Places:
    if not len(points):
        return _none(plan)
    step, origin = plan.lattice_geometry
    starts = points * plan.config.stride_voxels + np.asarray(plan.grid.first)
    masks = np.zeros((len(points), 0, 0, 0), bool)
    return _places(plan, points, points * step + np.asarray(origin), starts, vectors, masks)


def vector_at(plan: ScanPlan, position: Vector) -> np.ndarray:
    """What is at any position, embedded as the scan embeds its places, on a lattice point or not.

    Where places are cut out, it is the group of a protein's size that holds the position and has the best cosine, or
    the window as it is if there is none: density that is smaller, or that does not fall apart.

    Parameters
    ----------
    plan : ScanPlan
        With its volume; where it sharpens, that is sharpened here too.
    position : (z, y, x) in Å

    Returns
    -------
    float32 array, `d`
        Of unit length.

    Raises
    ------
    GeometryError
        If there is no density.
    """
    centre = (np.asarray(position) - plan.volume.origin) / plan.embedder.voxel_size
    block = _surroundings(plan, centre)
    data, reach = block.volume.load(), 2 * plan.config.stride_voxels
    middle = tuple(slice(max(0, size // 2 - reach), size // 2 + reach + 1) for size in data.shape)
    if not (data[middle] > plan.contour).any():
        raise GeometryError(
            "expected density at the place",
            got=f"none above the contour of the scan within {reach * plan.embedder.voxel_size:.0f} Å",
            hint="Click into a protein.",
        )
    regions = _embedded(plan, np.zeros((1, 3), np.int64), [block]) if plan.embedder.needs_mask else _none(plan)
    if len(regions):
        vector = regions.vector[best_of_places(plan, regions).region]
    else:
        first, edge = (len(data) - plan.embedder.window) // 2, plan.embedder.window
        vector = plan.naming[1].embed(data[(slice(first, first + edge),) * 3][None]).astype(np.float16)
    return unit_rows(vector.astype(np.float32))[0]


def add_places(plan: ScanPlan, path: Path, places: Places, points: np.ndarray) -> Places:
    """The regions of some lattice points: those that are known, and the others from kept vectors or the volume."""
    known = {tuple(point) for point in places.point.tolist()}
    new = np.array([point for point in points.tolist() if tuple(point) not in known], np.int64).reshape(-1, 3)
    there = plan.source is not None
    if plan.config.keep_embeddings and not plan.embedder.needs_mask and (there or plan.sharpening is None):
        import zarr

        stored = zarr.open_array(path / "embeddings.zarr", mode="r")
        vectors = [np.asarray(stored[z, y, x], np.float32) for z, y, x in new.tolist()]
        added = _on_lattice(plan, new, unit_rows(np.array(vectors).reshape(len(new), plan.embedder.dim)))
    else:
        added = _cut_out(plan, new) if there else _none(plan)
    return _joined([places.at(points), as_they_are(plan, added)], plan)


def _cut_out(plan: ScanPlan, points: np.ndarray) -> Places:
    parts = []
    for some in np.array_split(points, max(1, -(-len(points) // _AT_ONCE))):
        parts.append(_embedded(plan, some, [_surroundings(plan, c) for c in plan.grid.centres(some)]))
    return _joined(parts, plan)


def peaks(plan: ScanPlan, path: Path, box: Box) -> np.ndarray:
    """Lattice points of a box that are the best within the smallest distance of hits, `n 3`.

    They only propose places: the neighbours in a window lower its cosine, so the threshold is
    for what is cut out around them. The neighbouring tiles are looked at too, so that the
    answer does not depend on where tiles end.
    """
    reach = _reach(plan)
    around = [slice(part.start - reach, part.stop + reach) for part in box]
    score = read_lattice(path, "score", around)
    top = _is_peak(score, reach) & (score > 0)
    inner = (slice(reach, -reach),) * 3
    return np.argwhere(top[inner]) + [part.start for part in box]


def _reach(plan: ScanPlan) -> int:
    """Lattice points to each side that a peak is compared with."""
    step, _ = plan.lattice_geometry
    return max(1, int(plan.config.min_distance_A / step / 2))


def _is_peak(score: np.ndarray, reach: int) -> np.ndarray:
    best = scipy.ndimage.maximum_filter(score, size=2 * reach + 1, mode="constant", cval=-np.inf)
    return np.asarray(score == best)


# ---------------------------------------------------------------- on disk


def write_places(plan: ScanPlan, path: Path, index: int, places: Places) -> None:
    """Write the regions of a tile, and what they were made for, as one file."""
    stream = io.BytesIO()
    packed = np.packbits(places.mask.reshape(len(places), -1), axis=1) if len(places) else np.zeros((0, 0), np.uint8)
    np.savez(
        stream,
        signature=np.frombuffer(_signature(plan).encode(), np.uint8),
        point=places.point,
        position=places.position,
        start=places.start,
        vector=places.vector,
        types=places.types,
        scores=places.scores,
        entry=places.entry,
        plain=places.plain,
        plain_types=places.plain_types,
        plain_scores=places.plain_scores,
        mask=np.frombuffer(zlib.compress(packed.tobytes(), 1), np.uint8),
        edges=np.array(places.mask.shape[1:]),
    )
    write_atomically(places_file(path, index), stream.getvalue())


def read_places(plan: ScanPlan, path: Path, index: int, *, of_any_plan: bool = False) -> Places | None:
    """The regions of a tile; None if they are not there, damaged, or of another plan."""
    try:
        with places_file(path, index).open("rb") as file, np.load(file, allow_pickle=False) as stored:
            if not of_any_plan and stored["signature"].tobytes().decode() != _signature(plan):
                return None
            n, edges = len(stored["point"]), stored["edges"]
            bits = np.frombuffer(zlib.decompress(stored["mask"].tobytes()), np.uint8).reshape(n, -1)
            mask = np.unpackbits(bits, axis=1, count=int(np.prod(edges))).astype(bool).reshape(n, *edges)
            rest = {name: stored[name] for name in Places.__slots__ if name != "mask"}
            return Places(**rest, mask=mask)
    except (OSError, ValueError, KeyError, EOFError, zlib.error, zipfile.BadZipFile):
        return None


def forget_places_around(plan: ScanPlan, path: Path, index: int) -> None:
    """Drop the places of the tiles that looked at a tile's scores, since these were missing."""
    reach = _reach(plan)
    ranges = [
        range(max(0, part.start - reach) // core, min((part.stop - 1 + reach) // core + 1, count))
        for part, core, count in zip(plan.tiling.box(index), plan.tiling.core, plan.tiling.counts, strict=True)
    ]
    for place in itertools.product(*ranges):
        places_file(path, int(np.ravel_multi_index(place, plan.tiling.counts))).unlink(missing_ok=True)


def places_file(path: Path, index: int) -> Path:
    """Where the places of a tile are kept."""
    return path / "places" / ("null.npz" if index == NULL else f"{index}.npz")


def _signature(plan: ScanPlan) -> str:
    """Which places there are also depends on how far apart they must be."""
    return f"{plan.signature} {plan.config.min_distance_A:g}"


# ---------------------------------------------------------------- what


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    """A cube of the volume on the embedder's grid, and its first voxel there."""

    volume: Volume
    start: tuple[int, int, int]


def _surroundings(plan: ScanPlan, centre: np.ndarray) -> _Block:
    """What lies around a voxel (fractional) of the embedder's grid: a window, with a margin if it will be segmented."""
    if not plan.embedder.needs_mask:
        edge = plan.embedder.window
        z, y, x = (int(c) for c in np.rint(centre - (edge - 1) / 2))
    else:
        edge = mask_edge(plan)
        z, y, x = (int(c) - edge // 2 for c in np.rint(centre))
    return _Block(plan.read_working((slice(z, z + edge), slice(y, y + edge), slice(x, x + edge))), (z, y, x))


def _embedded(plan: ScanPlan, points: np.ndarray, blocks: list[_Block]) -> Places:
    """Embed the regions in the middle of some blocks."""
    point, position, start, windows, masks = [], [], [], [], []
    for place, block in zip(points, blocks, strict=True):
        data = block.volume.load()
        if not np.isfinite(data).all():
            raise FormatError(
                "expected finite values",
                got=f"NaN or infinity near {np.round(block.volume.to_position((0, 0, 0)))} Å (z, y, x)",
                hint="Replace them by the mean of the volume.",
            )
        for mask in _regions(plan, block, data):
            weight = np.clip(data - plan.contour, 0, None) if mask is None else np.where(mask, data - plan.contour, 0)
            position.append(_centre(plan, place, block, weight, masked=mask is not None))
            windows.append(data if mask is None else _window(block.volume, data, mask, plan))
            masks.append(np.zeros((0, 0, 0), bool) if mask is None else mask)
            point.append(place)
            start.append(block.start)
    if not windows:
        return _none(plan)
    _, embedder = plan.naming
    once = {window.tobytes(): window for window in windows}  # neighbours often lie in one region
    row = {key: number for number, key in enumerate(once)}
    vectors = embedder.embed(np.stack(list(once.values())))[[row[window.tobytes()] for window in windows]]
    return _places(plan, np.array(point), np.array(position), np.array(start), vectors, np.stack(masks))


def _regions(plan: ScanPlan, block: _Block, data: np.ndarray) -> list[np.ndarray | None]:
    """Masks of the groups of a protein's size that hold the middle of a block; [None] = the window as it is."""
    if not plan.embedder.needs_mask:
        return [None]
    if not (data > plan.contour).any():
        return []
    tree = segment_map(data, threshold=plan.contour, step=_STEP, steps=_STEPS)
    above = np.argwhere(tree.leaves > 0)
    distance = ((above - data.shape[0] // 2) ** 2).sum(axis=1)
    nearest = above[np.argmin(distance)]
    if distance.min() > (2 * plan.config.stride_voxels) ** 2:
        return []
    low, high = (residues * A3_PER_RESIDUE / block.volume.voxel_size**3 for residues in _RESIDUES)
    nodes = dict.fromkeys(int(level[tree.leaves[tuple(nearest)]]) for level in tree.levels)
    return [tree.node_mask(node) for node in nodes if low <= tree.counts[node] <= high]


def _centre(plan: ScanPlan, point: np.ndarray, block: _Block, weight: np.ndarray, *, masked: bool) -> np.ndarray:
    """Position of a region in Å: its centre of mass, or the middle of its window."""
    if masked:
        return block.volume.to_position(scipy.ndimage.center_of_mass(weight.clip(min=0)))
    _, origin = plan.lattice_geometry
    return np.asarray(origin) + np.asarray(point) * plan.config.stride_voxels * plan.embedder.voxel_size


def _window(block: Volume, data: np.ndarray, mask: np.ndarray, plan: ScanPlan) -> np.ndarray:
    """The region alone, its centre of mass in the middle of a window."""
    masked = data * soft_mask(mask, voxel_size=block.voxel_size, width=_EDGE)
    centre = scipy.ndimage.center_of_mass(np.clip(masked - 0.5 * masked.std(), 0, None))
    edge = plan.embedder.window
    z, y, x = (round(c - (edge - 1) / 2) for c in centre)
    return Volume(masked, 1.0).read((slice(z, z + edge), slice(y, y + edge), slice(x, x + edge)))


def _none(plan: ScanPlan) -> Places:
    empty = np.zeros((0, 3), np.int64)
    edge = mask_edge(plan)
    _, embedder = plan.naming
    vectors, masks = np.zeros((0, embedder.dim), np.float32), np.zeros((0, edge, edge, edge), bool)
    return _places(plan, empty, empty.astype(np.float64), empty, vectors, masks)


def _places(
    plan: ScanPlan,
    point: np.ndarray,
    position: np.ndarray,
    start: np.ndarray,
    vector: np.ndarray,
    mask: np.ndarray,
) -> Places:
    none, few = np.zeros((0, 0)), np.zeros((len(point), 0))
    return named(plan, Places(point, position, start, vector.astype(np.float16), mask, none, none, none, few, few, few))


def _joined(parts: list[Places], plan: ScanPlan) -> Places:
    parts = [part for part in parts if len(part)] or [_none(plan)]
    return Places(*(np.concatenate([getattr(p, name) for p in parts]) for name in Places.__slots__))


# ---------------------------------------------------------------- noise


def null_threshold(plan: ScanPlan, places: Places) -> float:
    """Cosine that the given share of places of the volume's own noise reaches.

    The noise is the volume with its phases scrambled: the same power spectrum, no molecules.
    Its places are cut out and named in the same way as those of the volume.
    """
    best = best_of_places(plan, places).score
    rate = plan.config.false_positive_rate
    least = NAMED_FROM_COSINE if plan.embedder.needs_mask else 0.0  # where it was measured
    return max(least, float(np.quantile(best, 1 - rate)) if len(best) else 0.0)


@dataclass(frozen=True, slots=True, eq=False)
class Named:
    """The best name of each place: one row per place.

    Parameters
    ----------
    region : int array, `n`
        Which of the regions of the tile.
    type, entry : int array, `n`
        Indices into the database's types and entries.
    score, margin : float array, `n`
    """

    region: np.ndarray
    type: np.ndarray
    entry: np.ndarray
    score: np.ndarray
    margin: np.ndarray


def best_of_places(plan: ScanPlan, places: Places) -> Named:
    """Of the nested regions of a place keep the one with the best cosine."""
    if not len(places):
        empty = np.zeros(0, np.int64)
        return Named(empty, empty, empty, np.zeros(0), np.zeros(0))
    score = places.scores[:, 0].astype(np.float64)
    margin = score - places.scores[:, 1] if places.scores.shape[1] > 1 else np.zeros_like(score)
    _, place = np.unique(places.point, axis=0, return_inverse=True)
    order = np.lexsort((np.arange(len(score)), -score, place.ravel()))
    first = order[np.r_[True, np.diff(place.ravel()[order]) > 0]]
    return Named(first, places.types[first, 0], places.entry[first], score[first], margin[first])


def _null_places(plan: ScanPlan) -> Places:
    if not plan.embedder.needs_mask:
        return _null_lattice(plan)
    rng = np.random.default_rng(0)
    edge = mask_edge(plan)
    probes = probe_blocks(plan, per_axis=2)
    parts: list[Places] = []
    for probe in probes:
        data = scrambled(probe.load(), rng)
        top = (data == scipy.ndimage.maximum_filter(data, size=5)) & (data > plan.contour)
        found = np.argwhere(top)
        rng.shuffle(found)
        points: list[list[int]] = []
        blocks: list[_Block] = []
        for place in found[: -(-_NULL_PLACES // len(probes))]:
            z, y, x = (int(s) for s in place - edge // 2)
            cut = Volume(data, probe.voxel_size).read((slice(z, z + edge), slice(y, y + edge), slice(x, x + edge)))
            points.append([len(parts), len(points), 0])  # only tells the places apart
            blocks.append(_Block(Volume(cut, probe.voxel_size), (z, y, x)))
        parts.append(_embedded(plan, np.array(points), blocks) if points else _none(plan))
    joined = _joined(parts, plan)
    return replace(joined, mask=np.zeros((len(joined), 0, 0, 0), bool))


def _null_lattice(plan: ScanPlan) -> Places:
    """The best points of lattices over scrambled noise."""
    rng = np.random.default_rng(0)
    stride, more = plan.config.stride_voxels, plan.embedder.window + 2 * plan.embedder.halo
    points, found = [], []
    for number, probe in enumerate(probe_blocks(plan, per_axis=2)):
        data = scrambled(probe.load(), rng)
        data = np.pad(data, [(0, max(0, more - size)) for size in data.shape])
        whole = tuple(slice(0, more + (size - more) // stride * stride) for size in data.shape)
        vectors = plan.embedder.embed_dense(data[whole], stride=stride)
        answer = plan.datedb.assign(
            vectors.reshape(-1, vectors.shape[-1]), top=1, resolution=plan.bank, representatives=False
        )
        score = np.where(vectors.any(axis=-1), answer.scores[:, 0].reshape(vectors.shape[:3]), 0)
        top = _is_peak(score, _reach(plan)) & (score > 0)
        found.append(vectors[top])
        points += [[number, place, 0] for place in range(int(top.sum()))]  # only tells the places apart
    return _on_lattice(plan, np.array(points, np.int64).reshape(-1, 3), np.concatenate(found))


def scrambled(data: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Data of the same power spectrum with random phases."""
    amplitude = np.abs(np.fft.rfftn(data))
    phase = np.fft.rfftn(rng.normal(size=data.shape))
    phase /= np.maximum(np.abs(phase), 1e-20)
    phase.flat[0] = np.sign(data.sum()) or 1.0  # the mean stays
    z, y, x = data.shape
    return np.fft.irfftn(amplitude * phase, s=(z, y, x), axes=(0, 1, 2)).astype(np.float32)

"""The region of density around a place: cut out of its neighbours and named by itself."""

from dataclasses import dataclass

import numpy as np
import scipy.ndimage

from cryoscan.hits import NAMED_FROM_COSINE
from cryoscan.scan.plan import ScanPlan, probe_blocks
from cryoscan.segment import segment_map, soft_mask
from cryoscan.units import A3_PER_RESIDUE
from cryoscan.volume import Volume

_RESIDUES = (30, 600)
_MARGIN = 16  # voxels of context around a window, in which its density is segmented
_STEP, _STEPS = 1.0, 4  # voxels of 2.5 Å: smooths by 10 Å; 12 finer steps named the same places, half as fast
_NULL_REGIONS = 200
_EDGE = 3.0  # Å over which a region's mask falls off


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """A named region.

    Parameters
    ----------
    position : (z, y, x) in Å
        Its centre of mass.
    type, entry : int
        Indices into the database's types and entries.
    score, margin : float
    start : (z, y, x)
        First voxel, on the embedder's grid, of the block that it was cut out of.
    mask : bool array, `z y x`
        Voxels of that block that belong to it.
    """

    position: np.ndarray
    type: int
    score: float
    margin: float
    entry: int
    start: tuple[int, int, int]
    mask: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """A cube of the volume on the embedder's grid, and its first voxel there."""

    volume: Volume
    start: tuple[int, int, int]


def region_block(plan: ScanPlan, point: np.ndarray) -> Block:
    """The surroundings of a lattice point."""
    edge = plan.embedder.window + _MARGIN
    z, y, x = (int(c) - edge // 2 for c in np.rint(plan.grid.centres(point)))
    return Block(plan.read_working((slice(z, z + edge), slice(y, y + edge), slice(x, x + edge))), (z, y, x))


def name_region(plan: ScanPlan, block: Block) -> Found | None:
    """Find the best name for the region at the centre of a block; None if there is no region of a protein's size.

    The block is segmented like a map (watershed and grouping). Of the groups that hold the
    centre and have the volume of a protein, the one with the best cosine is taken.
    """
    data = block.volume.load()
    if not (data > plan.contour).any():
        return None
    tree = segment_map(data, threshold=plan.contour, step=_STEP, steps=_STEPS)
    above = np.argwhere(tree.leaves > 0)
    distance = ((above - data.shape[0] // 2) ** 2).sum(axis=1)
    nearest = above[np.argmin(distance)]
    if distance.min() > (2 * plan.config.stride_voxels) ** 2:
        return None
    low, high = (residues * A3_PER_RESIDUE / block.volume.voxel_size**3 for residues in _RESIDUES)
    nodes = dict.fromkeys(int(level[tree.leaves[tuple(nearest)]]) for level in tree.levels)
    masks = [tree.node_mask(node) for node in nodes if low <= tree.counts[node] <= high]
    if not masks:
        return None
    vectors = plan.embedder.embed(np.stack([_window(block.volume, data, mask, plan) for mask in masks]))
    answer = plan.datedb.assign(vectors, top=plan.config.candidates, resolution=plan.bank)
    best = int(np.argmax(answer.scores[:, 0]))
    weight = np.where(masks[best], data - plan.contour, 0).clip(min=0)
    return Found(
        block.volume.to_position(scipy.ndimage.center_of_mass(weight)),
        int(answer.types[best, 0]),
        float(answer.scores[best, 0]),
        float(answer.scores[best, 0] - answer.scores[best, 1]) if answer.scores.shape[1] > 1 else 0.0,
        int(answer.entries[best]),
        block.start,
        masks[best],
    )


def is_named(plan: ScanPlan, found: Found, threshold: float) -> bool:
    """Whether a region stands out of the noise and its name is more likely right than not."""
    confidence = plan.datedb.confidence(found.score, found.margin, bank=plan.bank)
    return found.score >= threshold and (confidence is None or confidence >= plan.config.min_confidence)


def null_threshold(plan: ScanPlan) -> float:
    """Cosine that the given share of regions of the volume's own noise reaches.

    The noise is the volume with its phases scrambled: the same power spectrum, no molecules.
    Its regions are cut out and named in the same way as those of the volume.
    """
    rng = np.random.default_rng(0)
    edge = plan.embedder.window + _MARGIN
    best: list[float] = []
    probes = probe_blocks(plan, per_axis=2)
    for probe in probes:
        data = scrambled(probe.load(), rng)
        peaks = (data == scipy.ndimage.maximum_filter(data, size=5)) & (data > plan.contour)
        places = np.argwhere(peaks)
        rng.shuffle(places)
        for place in places[: -(-_NULL_REGIONS // len(probes))]:
            start = place - edge // 2
            z, y, x = (int(s) for s in start)
            cut = Volume(data, probe.voxel_size).read((slice(z, z + edge), slice(y, y + edge), slice(x, x + edge)))
            found = name_region(plan, Block(Volume(cut, probe.voxel_size), (z, y, x)))
            if found is not None:
                best.append(found.score)
    return max(NAMED_FROM_COSINE, float(np.quantile(best, 1 - plan.config.false_positive_rate)) if best else 0.0)


def scrambled(data: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Data of the same power spectrum with random phases."""
    amplitude = np.abs(np.fft.rfftn(data))
    phase = np.fft.rfftn(rng.normal(size=data.shape))
    phase /= np.maximum(np.abs(phase), 1e-20)
    phase.flat[0] = np.sign(data.sum()) or 1.0  # the mean stays
    z, y, x = data.shape
    return np.fft.irfftn(amplitude * phase, s=(z, y, x), axes=(0, 1, 2)).astype(np.float32)


def _window(block: Volume, data: np.ndarray, mask: np.ndarray, plan: ScanPlan) -> np.ndarray:
    """The region alone, its centre of mass in the middle of a window."""
    masked = data * soft_mask(mask, voxel_size=block.voxel_size, width=_EDGE)
    centre = scipy.ndimage.center_of_mass(np.clip(masked - 0.5 * masked.std(), 0, None))
    edge = plan.embedder.window
    z, y, x = (round(c - (edge - 1) / 2) for c in centre)
    return Volume(masked, 1.0).read((slice(z, z + edge), slice(y, y + edge), slice(x, x + edge)))

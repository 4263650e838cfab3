"""How regions join into larger ones as a map is smoothed: scale-space grouping and the best cut of its tree."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from cryoscan.errors import GeometryError
from cryoscan.segment.watershed import watershed
from cryoscan.units import Angstrom, Box

STEPS = 12
"""Levels of grouping that take a map of molecules from its watershed to whole chains, with `grouping_step`."""


@dataclass(frozen=True, slots=True, eq=False)
class GroupingTree:
    """Regions and the groups they join, level by level.

    Nodes are numbered: 0 is background, 1 … n are the watershed regions (leaves), and every
    merger of two or more nodes makes a new one, numbered after its parts. A node that meets
    no other at a level stays the same node there, so no two nodes hold the same voxels.

    Parameters
    ----------
    leaves : int32 array, `z y x`
        Watershed regions; 0 is background.
    levels : int64 array, `(steps + 1) (n + 1)`
        Node of each leaf at each level; level 0 is the leaves themselves, column 0 is 0.
    parents : int64 array, `nodes + 1`
        Node that each node merges into; 0 for none.
    counts : int64 array, `nodes + 1`
        Voxels of each node; entry 0 is 0.
    """

    leaves: np.ndarray
    levels: np.ndarray
    parents: np.ndarray
    counts: np.ndarray

    def __repr__(self) -> str:
        groups = [len(np.unique(level[1:])) for level in self.levels]
        return f"GroupingTree({' → '.join(map(str, groups))} regions, {self.n_nodes} nodes)"

    @property
    def n_nodes(self) -> int:
        """Number of nodes, leaves included; they are numbered from 1."""
        return len(self.parents) - 1

    def children(self, node: int) -> list[int]:
        """Nodes that merged into `node`; none for a leaf."""
        return [int(child) for child in np.flatnonzero(self.parents == node)] if node else []

    def leaves_of(self, node: int) -> np.ndarray:
        """Numbers of the watershed regions of a node."""
        self._require(node)
        return np.flatnonzero((self.levels == node).any(axis=0))

    def node_mask(self, node: int, box: Box | None = None) -> np.ndarray:
        """Voxels of a node in the whole map, or in a box of it, `z y x` bool."""
        member = np.zeros(self.levels.shape[1], bool)
        member[self.leaves_of(node)] = True
        mask: np.ndarray = member[self.leaves if box is None else self.leaves[box]]
        return mask

    def node_boxes(self) -> list[Box]:
        """Smallest box around each node, by number; entry 0, the background's, is empty."""
        low = np.full((self.n_nodes + 1, 3), max(self.leaves.shape))
        high = np.zeros((self.n_nodes + 1, 3), np.int64)
        for leaf, box in enumerate(ndimage.find_objects(self.leaves), start=1):
            low[leaf], high[leaf] = [part.start for part in box], [part.stop for part in box]
        for node in range(1, self.n_nodes + 1):  # children are numbered before their parents
            if parent := self.parents[node]:
                low[parent] = np.minimum(low[parent], low[node])
                high[parent] = np.maximum(high[parent], high[node])
        starts = np.minimum(low, high)
        return [
            (slice(int(a[0]), int(b[0])), slice(int(a[1]), int(b[1])), slice(int(a[2]), int(b[2])))
            for a, b in zip(starts, high, strict=True)
        ]

    def labels_at(self, level: int) -> np.ndarray:
        """Node of each voxel at a level, `z y x` int32; level 0 is the watershed, -1 the last."""
        return self.levels[level].astype(np.int32)[self.leaves]

    def labels_of(self, nodes: list[int]) -> np.ndarray:
        """Labels 1, 2, … of disjoint nodes in the order given, `z y x` int32."""
        table = np.zeros(self.levels.shape[1], np.int32)
        for label, node in enumerate(nodes, start=1):
            table[self.leaves_of(node)] = label
        return table[self.leaves]

    def _require(self, node: int) -> None:
        if not 1 <= node <= self.n_nodes:
            raise GeometryError(
                f"expected a node from 1 to {self.n_nodes}", got=str(node), hint="Node 0 is background and has no mask."
            )


def grouping_step(voxel_size: Angstrom) -> float:
    """Step of the grouping, in voxels, for a map of molecules: 1 Å, or a third of a voxel where that is more.

    `STEPS` of them smooth by 12 Å, or by the usual 4 voxels of Segger where that is more. On
    simulated complexes (5 to 11 Å, voxels of 1.2 to 3.3 Å) that is where the groups are
    whole chains; 4 steps of 1 voxel stop short of it if voxels are fine.
    """
    return max(1.0 / voxel_size, 1 / 3)


def segment_map(data: np.ndarray, *, threshold: float, step: float = 1.0, steps: int = 4) -> GroupingTree:
    """Segment a density map by watershed and scale-space grouping.

    The method and its three parameters are those of Segger (Pintilie et al., J. Struct.
    Biol. 170, 427, 2010).

    Parameters
    ----------
    data : float array, `z y x`
        Protein positive.
    threshold : float
        Voxels above it are segmented; see `contour_level`.
    step : float
        Standard deviation of the Gaussian that is added per level, in voxels.
    steps : int
        Number of levels.
    """
    return group_regions(data, watershed(data, threshold=threshold), step=step, steps=steps)


def group_regions(data: np.ndarray, labels: np.ndarray, *, step: float = 1.0, steps: int = 4) -> GroupingTree:
    """Group regions by following their maxima through ever smoother maps.

    At level k the map is smoothed by a Gaussian of sigma = k × step voxels, the maximum of
    every group climbs by steepest ascent from where it stood to a maximum of the smoothed
    map, and groups that reach the same one merge (Pintilie et al. 2010, section 2.2).

    Parameters
    ----------
    data : float array, `z y x`
        Protein positive.
    labels : int32 array, `z y x`
        Regions numbered 1 … n without gaps; 0 is background.
    step : float
        In voxels.
    steps : int
        Number of levels.
    """
    if not (step > 0 and steps >= 0):
        raise GeometryError(
            "expected a positive step (voxels) and a number of steps of at least 0",
            got=f"step {step}, steps {steps}",
            hint="Segger's usual values are 1 voxel and 4 steps.",
        )
    data = np.asarray(data, np.float32)
    counts = np.bincount(labels.ravel())
    counts[0] = 0
    n = len(counts) - 1
    if (counts[1:] == 0).any():
        raise GeometryError("expected regions numbered 1 … n", got="gaps in the numbers", hint="Renumber the labels.")
    places = _highest_voxels(data, labels, n)
    nodes = np.arange(n + 1)  # node of each leaf
    levels, parents, sizes = [nodes], [0] * (n + 1), [int(count) for count in counts]
    smooth = data
    for k in range(1, steps + 1):
        # Variances add, so what k - 1 steps have smoothed needs only the rest: a narrower kernel, sooner done.
        smooth = ndimage.gaussian_filter(smooth, step * np.sqrt(2 * k - 1), mode="nearest")
        places = _climb(smooth, places)
        nodes = _merge(nodes, places, parents, sizes)
        levels.append(nodes)
    return GroupingTree(np.asarray(labels, np.int32), np.stack(levels), np.array(parents), np.array(sizes))


def best_disjoint(tree: GroupingTree, scores: Mapping[int, float]) -> list[int]:
    """Choose nodes that do not overlap and whose scores sum to the most.

    The maximum-weight antichain of the tree, by dynamic programming from the leaves up.

    Parameters
    ----------
    tree : GroupingTree
        From `segment_map`.
    scores : mapping
        Node → score. Nodes without a score, or with one that is not positive, are never
        chosen. Scores add up, so that many small nodes beat one large node of the same
        score each: weight them by `tree.counts` if the covered volume shall decide.

    Returns
    -------
    list of int
        Highest score first. If a node and the best of its parts tie, the larger node is taken.
    """
    total = np.zeros(tree.n_nodes + 1)  # best sum within a node
    below = np.zeros(tree.n_nodes + 1)  # best sum within its children
    taken = np.zeros(tree.n_nodes + 1, bool)
    for node in range(1, tree.n_nodes + 1):  # children are numbered before their parents
        score = float(scores.get(node, 0.0))
        taken[node] = score > 0 and score >= below[node] - 1e-12 * abs(score)
        total[node] = score if taken[node] else below[node]
        below[tree.parents[node]] += total[node] if tree.parents[node] else 0.0
    covered = np.zeros(tree.n_nodes + 1, bool)
    for node in range(tree.n_nodes, 0, -1):
        parent = tree.parents[node]
        covered[node] = bool(parent) and bool(covered[parent] or taken[parent])
    chosen = np.flatnonzero(taken & ~covered)
    return sorted((int(node) for node in chosen), key=lambda node: (-scores[node], node))


def _highest_voxels(data: np.ndarray, labels: np.ndarray, n: int) -> np.ndarray:
    """Index of the highest voxel of each region, `n 3`."""
    if n == 0:
        return np.zeros((0, 3), np.int64)
    return np.array(ndimage.maximum_position(data, labels, np.arange(1, n + 1)), np.int64)


def _climb(data: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Let all places step to the highest of their 26 neighbours until none can."""
    shape = np.array(data.shape)
    offsets = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    places = places.copy()
    moving = np.arange(len(places))
    while moving.size:
        around = np.clip(places[moving, None] + offsets, 0, shape - 1)
        heights = data[around[..., 0], around[..., 1], around[..., 2]]
        best = heights.argmax(axis=1)
        higher = heights[np.arange(len(moving)), best] > data[tuple(places[moving].T)]
        moving, best, around = moving[higher], best[higher], around[higher]
        places[moving] = around[np.arange(len(moving)), best]
    return places


def _merge(nodes: np.ndarray, places: np.ndarray, parents: list[int], sizes: list[int]) -> np.ndarray:
    """Node of each leaf after leaves at one place have joined; appends the new nodes."""
    _, place = np.unique(places, axis=0, return_inverse=True)
    pairs = np.unique(np.stack([place.ravel(), nodes[1:]], axis=1), axis=0)  # which nodes stand at which place
    becomes = np.arange(len(parents))
    for group in np.split(pairs[:, 1], np.flatnonzero(np.diff(pairs[:, 0])) + 1):
        if len(group) < 2:
            continue
        becomes[group] = len(parents)
        for part in group:
            parents[part] = len(parents)
        parents.append(0)
        sizes.append(sum(sizes[part] for part in group))
    return becomes[nodes]

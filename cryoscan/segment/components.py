"""Connected components of label volumes larger than memory: block by block, joined exactly over the borders."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from skimage.measure import label as connected

from cryoscan.units import Box


def label_block(labels: np.ndarray) -> np.ndarray:
    """Number the connected components of one block, `z y x` uint32; what differs in label is not connected.

    Two voxels are connected where they share a face.
    """
    return np.asarray(connected(labels, background=0, connectivity=1), np.uint32)


def join_blocks(labels: Any, pieces: Any, instances: Any, boxes: Sequence[Box]) -> int:
    """Join the components of blocks over their borders and number them anew; gives their number.

    The components are those that `label_block` finds in the whole, and their numbers follow
    the first voxel of each in z, y, x order: neither depends on the blocks.

    Parameters
    ----------
    labels : array-like, `z y x`
        What was given to `label_block`.
    pieces : array-like, `z y x`
        What it gave, block by block.
    instances : array-like, `z y x`
        Gets the joined numbers.
    boxes : sequence of boxes
        The blocks that hold anything.
    """
    offsets, first = _first_voxels(pieces, boxes)
    parent = np.arange(offsets[-1] + 1)
    where = {tuple(part.start for part in box): number for number, box in enumerate(boxes)}
    for number, box in enumerate(boxes):
        for axis in range(3):
            start = [part.start for part in box]
            start[axis] = box[axis].stop
            other = where.get(tuple(start))
            if other is not None:
                here, there = (_face(box, axis, place) for place in (box[axis].stop - 1, box[axis].stop))
                _join(labels, pieces, here, there, offsets[number], offsets[other], parent)
    roots = np.array([_root(parent, int(part)) for part in range(len(parent))])
    earliest = np.full(len(parent), np.iinfo(np.int64).max)
    np.minimum.at(earliest, roots, first)
    alive = np.unique(roots[1:])
    ranked = np.zeros(len(parent), np.uint32)
    ranked[alive[np.argsort(earliest[alive])]] = np.arange(1, len(alive) + 1)
    final = ranked[roots]
    final[0] = 0
    for number, box in enumerate(boxes):
        block = np.asarray(pieces[box]).astype(np.int64)
        if block.any():
            instances[box] = final[np.where(block > 0, block + offsets[number], 0)]
    return len(alive)


def _first_voxels(pieces: Any, boxes: Sequence[Box]) -> tuple[np.ndarray, np.ndarray]:
    """What to add to each block's numbers to make them differ, and the first voxel of each component."""
    offsets = [0]
    first = [np.array([np.iinfo(np.int64).max])]
    for box in boxes:
        block = np.asarray(pieces[box])
        voxels = np.flatnonzero(block)[::-1]
        places = np.zeros(int(block.max(initial=0)) + 1, np.int64)
        places[block.ravel()[voxels]] = voxels  # the first one is written last
        places = places[1:]
        inside = np.unravel_index(places, block.shape)
        outside = [index + part.start for index, part in zip(inside, box, strict=True)]
        first.append(np.ravel_multi_index(outside, pieces.shape).astype(np.int64).reshape(-1))
        offsets.append(offsets[-1] + len(places))
    return np.array(offsets), np.concatenate(first)


def _face(box: Box, axis: int, place: int) -> Box:
    face = list(box)
    face[axis] = slice(place, place + 1)
    return face[0], face[1], face[2]


def _join(labels: Any, pieces: Any, here: Box, there: Box, low: int, high: int, parent: np.ndarray) -> None:
    """Unite the components that meet at two faces that touch."""
    one, two = np.asarray(labels[here]), np.asarray(labels[there])
    meet = (one == two) & (one > 0)
    if not meet.any():
        return
    pairs = np.stack([np.asarray(pieces[here])[meet] + low, np.asarray(pieces[there])[meet] + high])
    for a, b in np.unique(pairs.astype(np.int64), axis=1).T:
        a, b = _root(parent, int(a)), _root(parent, int(b))
        parent[max(a, b)] = min(a, b)


def _root(parent: np.ndarray, part: int) -> int:
    while parent[part] != part:
        parent[part] = parent[parent[part]]
        part = int(parent[part])
    return part

"""Law of connected components: block by block, joined over the borders, they are those of the whole."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cryoscan.segment import join_blocks, label_block
from cryoscan.units import Box

SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 11), st.integers(1, 13))
CORES = st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5))


def boxes_of(shape: tuple[int, ...], core: tuple[int, ...]) -> list[Box]:
    """Blocks of at most `core` voxels that cover a shape."""
    axes = [
        [slice(a, min(a + step, size)) for a in range(0, size, step)] for size, step in zip(shape, core, strict=True)
    ]
    return [(z, y, x) for z, y, x in product(*axes)]


def joined(labels: np.ndarray, boxes: list[Box]) -> tuple[np.ndarray, int]:
    """Components of a volume by way of its blocks."""
    pieces, instances = np.zeros(labels.shape, np.uint32), np.zeros(labels.shape, np.uint32)
    for box in boxes:
        pieces[box] = label_block(labels[box])
    count = join_blocks(labels, pieces, instances, boxes)
    return instances, count


def in_order(pieces: np.ndarray) -> np.ndarray:
    """Pieces numbered by their first voxel; alone, `label_block` takes another order where an axis has one voxel."""
    numbers, first = np.unique(pieces, return_index=True)
    table = np.zeros(pieces.max() + 1, np.uint32)
    table[numbers[numbers > 0][np.argsort(first[numbers > 0])]] = np.arange(1, (numbers > 0).sum() + 1)
    return table[pieces]


def snake(shape: tuple[int, int, int], label: int) -> np.ndarray:
    """One long line that winds through every second row of every second plane."""
    labels = np.zeros(shape, np.uint16)
    end = 0
    for z in range(0, shape[0], 2):
        rows = list(range(0, shape[1], 2))
        for number, y in enumerate(rows if (z // 2) % 2 == 0 else rows[::-1]):
            labels[z, y] = label
            end = -1 if end == 0 else 0
            if number + 1 < len(rows):
                labels[z, y + (1 if (z // 2) % 2 == 0 else -1), end] = label
        if z + 2 < shape[0]:
            labels[z + 1, rows[-1] if (z // 2) % 2 == 0 else rows[0], end] = label
    return labels


@given(st.data(), SHAPES, CORES)
@settings(max_examples=150, deadline=None)
def test_joined_blocks_are_the_components_of_the_whole(data: st.DataObject, shape: tuple, core: tuple) -> None:
    labels = data.draw(hnp.arrays(np.uint16, shape, elements=st.sampled_from([0, 0, 1, 1, 2, 7])))
    instances, count = joined(labels, boxes_of(shape, core))
    whole = in_order(label_block(labels))
    assert np.array_equal(instances, whole)
    assert count == whole.max()


@given(st.data(), SHAPES, CORES)
@settings(max_examples=75, deadline=None)
def test_the_order_of_blocks_does_not_matter_and_empty_ones_may_be_left_out(
    data: st.DataObject, shape: tuple, core: tuple
) -> None:
    labels = data.draw(hnp.arrays(np.uint16, shape, elements=st.sampled_from([0, 0, 0, 3])))
    boxes = [box for box in boxes_of(shape, core) if labels[box].any()]
    boxes = data.draw(st.permutations(boxes))
    assert np.array_equal(joined(labels, boxes)[0], in_order(label_block(labels)))


@pytest.mark.parametrize("core", [(1, 1, 1), (2, 3, 4), (3, 2, 5), (9, 1, 1), (4, 4, 4)])
def test_a_snake_that_crosses_every_border_is_one_piece(core: tuple[int, int, int]) -> None:
    labels = snake((9, 11, 13), 5)
    labels[1, 2:4, 2:6] = 2  # touches the snake, but is of another type
    instances, count = joined(labels, boxes_of(labels.shape, core))
    assert count == 2
    assert np.array_equal(instances, label_block(labels))
    assert set(instances[labels == 5]) == {1}


def test_pieces_that_touch_at_an_edge_only_are_apart() -> None:
    labels = np.zeros((2, 4, 4), np.uint16)
    labels[0, 1, 1] = labels[0, 2, 2] = labels[1, 1, 2] = 1
    _, count = joined(labels, boxes_of(labels.shape, (1, 2, 2)))
    assert count == 3
    assert label_block(labels).max() == 3


def test_nothing_has_no_components() -> None:
    labels = np.zeros((3, 4, 5), np.uint16)
    instances, count = joined(labels, boxes_of(labels.shape, (2, 2, 2)))
    assert count == 0
    assert not instances.any()
    assert joined(labels, [])[1] == 0

"""Law L2: tiles partition the lattice; the lattice belongs to the volume."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryoscan.errors import GeometryError
from cryoscan.tiles import Tiling, WindowGrid

shapes = st.tuples(*[st.integers(1, 19)] * 3)


@given(shapes, st.tuples(*[st.integers(1, 7)] * 3))
def test_tiles_cover_each_point_once(shape: tuple[int, int, int], core: tuple[int, int, int]) -> None:
    count = np.zeros(shape, int)
    tiling = Tiling(shape, core)
    boxes = list(tiling)
    assert len(boxes) == len(tiling)
    for box in boxes:
        count[box] += 1
    assert (count == 1).all()


@given(shapes, st.integers(1, 12), st.integers(1, 6), st.tuples(*[st.integers(1, 5)] * 3))
def test_a_tile_reads_exactly_its_windows(
    shape: tuple[int, int, int], window: int, stride: int, core: tuple[int, int, int]
) -> None:
    grid = WindowGrid(shape, window, stride)
    for box in Tiling(grid.shape, core):
        read = grid.read_box(box)
        for axis in range(3):
            first = grid.first[axis] + box[axis].start * stride
            last = grid.first[axis] + (box[axis].stop - 1) * stride
            assert (read[axis].start, read[axis].stop) == (first, last + window)


@given(st.integers(1, 200), st.integers(1, 40), st.integers(1, 20))
def test_the_lattice_is_centred_and_every_voxel_is_near_a_centre(size: int, window: int, stride: int) -> None:
    grid = WindowGrid((size, size, size), window, stride)
    centres = np.array([grid.centres(np.array([i, i, i]))[0] for i in range(grid.shape[0])])
    assert abs((centres[0] + centres[-1]) / 2 - (size - 1) / 2) <= 0.5
    distance = np.abs(np.arange(size)[:, None] - centres).min(axis=1)
    assert distance.max() <= stride / 2 + 0.5


def test_lattice_geometry_puts_points_at_the_centres_of_their_windows() -> None:
    grid = WindowGrid((37, 50, 61), 8, 3)
    voxel, origin = grid.geometry(1.7, (-31.5, 12.25, 407.125))
    index = np.array([2, 5, 7])
    expected = np.array((-31.5, 12.25, 407.125)) + grid.centres(index) * 1.7
    assert np.array(origin) + index * voxel == pytest.approx(expected)


@pytest.mark.parametrize("bad", [(0, 4), (4, 0), (-1, 2)])
def test_a_window_or_stride_below_one_is_refused(bad: tuple[int, int]) -> None:
    with pytest.raises(GeometryError, match="at least 1"):
        WindowGrid((9, 9, 9), *bad)

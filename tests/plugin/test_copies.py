"""A copy of a scan's regions that two processes share, and what differs in it."""

import numpy as np
import pytest

from cryoscan import LabelMap, Volume
from cryoscan.errors import GeometryError, ResourceError
from cryoscan.io import open_labels, write_labels
from napari_plugin._copies import (
    Drawn,
    PlanesCompared,
    Regrouped,
    Renumbered,
    Shared,
    differences,
    hand_over,
    merging,
    splitting,
    write_copy,
)

PLACES = 9
KEPT = np.array([True, False, True, True, True, False, True, True, True])  # numbers 2 and 6 are not copied


@pytest.fixture
def numbers(tmp_path, rng):
    """Numbers of nine places, from the disk; more than one slab of planes, and the last one is short."""
    data = rng.integers(0, PLACES + 1, size=(131, 17, 23)).astype(np.uint16)
    write_labels(LabelMap(Volume(data, 3.1, (-31.5, 12.25, 407.125)), {}), tmp_path / "numbers.zarr")
    return open_labels(tmp_path / "numbers.zarr").volume


@pytest.fixture
def copy(numbers, tmp_path):
    write_copy(numbers, KEPT, tmp_path / "1.raw")
    return Shared(tmp_path / "1.raw", numbers.shape).mapped(writable=True)


def drawn_in(copy, numbers, known):
    *steps, drawn = differences(copy, numbers, PLACES, known)
    assert [step.done for step in steps] == [64, 128, 131]
    assert all(isinstance(step, PlanesCompared) and step.total == 131 for step in steps)
    assert isinstance(drawn, Drawn)
    return drawn


def test_a_copy_holds_what_is_kept_and_is_seen_by_whoever_maps_it(numbers, copy, tmp_path):
    data = np.asarray(numbers.data[:, :, :])
    np.testing.assert_array_equal(copy, np.where(np.isin(data, (2, 6)), 0, data))
    copy[100, 3, 5] = 77
    assert Shared(tmp_path / "1.raw", numbers.shape).mapped()[100, 3, 5] == 77
    assert Shared.of(copy) == Shared(tmp_path / "1.raw", numbers.shape)
    for other in (copy[1:], copy[::2], copy.T, copy.copy(), np.asarray(copy)):
        assert Shared.of(other) is None
    (tmp_path / "1.raw").unlink()
    assert Shared.of(copy) is None


def test_only_what_was_changed_differs_and_new_regions_get_the_next_numbers(numbers, copy):
    known = set((np.flatnonzero(KEPT) + 1).tolist())
    assert not len(drawn_in(copy, numbers, known).voxels)
    before, edited = np.asarray(copy).copy(), np.asarray(copy).copy()
    edited[60:70, 4, 5:9] = 0
    edited[before == 3] = 1
    edited[5, :3] = 2  # new, for all that the layer knows
    edited[130, 16] = PLACES + 1  # new as well, and the number that the one before will have
    copy[:] = edited
    drawn = drawn_in(copy, numbers, known)
    assert drawn.new == {PLACES + 1: 2, PLACES + 2: PLACES + 1}
    np.testing.assert_array_equal(drawn.voxels, np.flatnonzero(edited != before))
    wanted = np.where(edited == PLACES + 1, PLACES + 2, np.where(edited == 2, PLACES + 1, edited))
    np.testing.assert_array_equal(drawn.numbers, wanted.ravel()[drawn.voxels])
    told = Renumbered.of(drawn)
    assert told.changed == len(drawn.voxels)
    for number, (old, voxels) in told.new.items():
        np.testing.assert_array_equal(voxels, np.flatnonzero(edited == old))
        copy.flat[voxels] = number
    again = drawn_in(copy, numbers, known)  # what has its number keeps it
    assert set(again.new) == set(again.new.values()) == {PLACES + 1, PLACES + 2}
    np.testing.assert_array_equal(again.numbers, drawn.numbers)


def test_no_room_for_a_copy_is_said_and_leaves_nothing(numbers, tmp_path):
    with pytest.raises(ResourceError, match="TMPDIR"):
        write_copy(numbers, KEPT, tmp_path / "missing" / "1.raw")
    assert not (tmp_path / "missing").exists()


def test_labels_of_any_type_are_handed_over_a_slab_per_step(tmp_path, rng):
    data = rng.integers(-3, 300, size=(131, 5, 7)).astype(">i2")
    assert len(list(hand_over(data, tmp_path / "h.raw"))) == 3
    np.testing.assert_array_equal(Shared(tmp_path / "h.raw", data.shape, str(data.dtype)).mapped(), data)
    with pytest.raises(ResourceError, match="TMPDIR"):
        list(hand_over(data, tmp_path / "missing" / "h.raw"))


def test_regions_that_become_one_are_found_in_every_slab(copy):
    before = np.asarray(copy).copy()
    *steps, told = merging(copy, [0, 77, 4, 3, 4, 9])
    assert [step.done for step in steps] == [64, 128, 131]
    assert isinstance(told, Regrouped)
    assert (told.from_region, told.regions) == (4, (3, 9))
    np.testing.assert_array_equal(told.voxels, np.flatnonzero(np.isin(before, (3, 9))))
    assert set(told.numbers.tolist()) == {4}
    np.testing.assert_array_equal(copy, before)  # to change it is the window's
    with pytest.raises(GeometryError, match="two regions"):
        list(merging(copy, [4, 77, 4]))


def test_a_region_is_split_at_its_thinnest_density_across_slabs():
    labels = np.zeros((131, 17, 23), np.uint8)
    labels[50:90, 4:9, 6:19] = 5
    labels[129:, 10:, 20:] = 250
    density = np.ones(labels.shape, np.float32)
    density[70] = 0.1
    volume = Volume(density, 3.1, (-31.5, 12.25, 407.125))
    seeds = np.array([[52, 6, 7], [88, 5, 18], [200, 0, 0]])
    *steps, told = splitting(labels, seeds, volume)
    assert [step.done for step in steps] == [64, 128, 131]
    assert (told.from_region, told.regions) == (5, (251,))
    split = labels.copy()
    split.flat[told.voxels] = told.numbers
    assert (split[50:70, 4:9, 6:19] == 5).all()
    assert (split[71:90, 4:9, 6:19] == 251).all()
    np.testing.assert_array_equal(split > 0, labels > 0)
    labels[0, 0, 0] = 255
    with pytest.raises(GeometryError, match="uint8"):
        list(splitting(labels, seeds, volume))
    with pytest.raises(GeometryError, match="0 regions"):
        list(splitting(labels, seeds[2:], volume))
    with pytest.raises(GeometryError, match="on which the labels lie"):
        list(splitting(labels, seeds, Volume(density[1:], 3.1)))

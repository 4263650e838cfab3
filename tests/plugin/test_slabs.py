"""Planes of chunked volumes: the same values as without the cache, each chunk decoded once, memory bounded."""

import time

import numpy as np
import pytest

from napari_plugin._slabs import Crop, Slabbed, SlabCache, slabbed


class Counting:
    """A chunked store that counts what is read of it."""

    chunks = (8, 16, 16)
    ndim = 3

    def __init__(self, rng):
        self.data = rng.normal(size=(37, 41, 53)).astype(np.float32)
        self.shape, self.dtype, self.read = self.data.shape, self.data.dtype, []

    def __getitem__(self, key):
        self.read.append(key)
        return self.data[key]


@pytest.fixture
def store(rng):
    return Counting(rng)


def scroll(array, planes, axis=0):
    for plane in planes:
        key = [slice(None)] * 3
        key[axis] = plane
        yield plane, np.asarray(array[tuple(key)])
        time.sleep(0.002)  # the next slab is read meanwhile


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_planes_are_those_of_the_store(store, axis):
    array = Slabbed(store, store.chunks, SlabCache())
    for plane, values in scroll(array, [*range(store.shape[axis]), 3, 20, -1], axis):
        np.testing.assert_array_equal(values, np.take(store.data, plane, axis))


def test_chunks_are_decoded_once_while_one_scrolls(store):
    array = Slabbed(store, store.chunks, SlabCache())
    list(scroll(array, range(37)))
    slabs = [key for key in store.read if isinstance(key[0], slice)]
    assert len(slabs) == 5
    assert len(store.read) < 37  # and some planes before their slabs were there


def test_memory_stays_within_the_budget(store):
    slab = 8 * 41 * 53 * 4
    cache = SlabCache(budget=2 * slab)
    array = Slabbed(store, store.chunks, cache)
    for _ in scroll(array, [*range(37), *range(36, -1, -1)]):
        assert cache.held <= cache.budget
    small = SlabCache(budget=slab)  # no room for a slab and the next: planes are read one by one
    for plane, values in scroll(Slabbed(store, store.chunks, small), range(20)):
        np.testing.assert_array_equal(values, store.data[plane])
    assert small.held == 0


def test_nothing_is_read_before_a_plane_is_asked_for(store):
    crop = Slabbed(store, store.chunks, SlabCache())[:, 5:30, 7:20]
    assert isinstance(crop, Crop)
    assert (crop.shape, crop.ndim, crop.size) == ((37, 25, 13), 3, 37 * 25 * 13)
    assert store.read == []
    np.testing.assert_array_equal(np.asarray(crop[9]), store.data[9, 5:30, 7:20])
    np.testing.assert_array_equal(np.asarray(crop[9:10, 2:4]), store.data[9:10, 7:9, 7:20])
    np.testing.assert_array_equal(np.asarray(crop), store.data[:, 5:30, 7:20])
    np.testing.assert_array_equal(crop[..., 3], store.data[:, 5:30, 10])


def test_a_plane_that_cannot_be_read_says_so_every_time(store):
    class Broken(Counting):
        def __getitem__(self, key):
            raise OSError("damaged")

    array = Slabbed(Broken(np.random.default_rng(0)), store.chunks, SlabCache())
    for plane in (3, 4, 5, 4):
        with pytest.raises(OSError, match="damaged"):
            array[plane]


def test_memory_maps_pass_as_they_are(rng):
    data = rng.normal(size=(3, 4, 5))
    assert slabbed(data) is data

"""Naming at a place, regions that are drawn or split, densities that are docked, volumes at several resolutions."""

import numpy as np
import pytest
from scan_worker import ORIGIN, PLANTED, RADII, ball, database, scene
from scipy.spatial.transform import Rotation

from cryoscan import Volume
from cryoscan.datedb import Entry
from cryoscan.datedb.own import add_regions
from cryoscan.dock import dock_density
from cryoscan.errors import GeometryError, MismatchError
from cryoscan.io import open_levels, write_volume
from cryoscan.models import InvariantEmbedder
from cryoscan.segment import region_from_outline, region_from_sphere, split_region
from cryoscan.testing import ToyEmbedder
from cryoscan.workflows import identify_at


@pytest.fixture(scope="module")
def embedder():
    return InvariantEmbedder(4.0, contour=0.0)


# ---------------------------------------------------------------- what is this?


@pytest.mark.parametrize("name", list(PLANTED))
def test_every_shape_is_named_where_it_is(embedder, name):
    volume, db = scene(), database(embedder)
    for middle in PLANTED[name]:
        middle = np.add(middle, ORIGIN)
        place = tuple(np.add(middle, (0, 0, 15.0 * (name == "shell"))))  # the middle of a shell is hollow
        found = identify_at(volume, place, datedb=db, embedder=embedder, resolution=6.2)
        assert np.linalg.norm(np.subtract(found.region.centre, middle)) < 8
        assert found.region.candidates[0].entry == name
        inside = found.mask.sum() * volume.voxel_size**3
        assert inside == pytest.approx(found.region.volume_A3, rel=0.01)


def test_solvent_and_the_outside_have_no_answer(embedder):
    volume, db = scene(), database(embedder)
    with pytest.raises(GeometryError, match="Click into a protein"):
        identify_at(volume, tuple(volume.to_position((20, 48, 2))), datedb=db, embedder=embedder, resolution=6.2)
    with pytest.raises(GeometryError, match="inside the volume"):
        identify_at(volume, (1e5, 0, 0), datedb=db, embedder=embedder)
    with pytest.raises(MismatchError):
        identify_at(volume, ORIGIN, datedb=db, embedder=ToyEmbedder(window=12, voxel_size=4.0))


# ---------------------------------------------------------------- regions


def test_outline_lies_where_its_angstroms_say(ugly_volume):
    low, high = ugly_volume.to_position((3, 2.6, 4.4))[1:], ugly_volume.to_position((5, 9.4, 12.6))[1:]
    outline = [(low[0], low[1]), (low[0], high[1]), (high[0], high[1]), (high[0], low[1])]
    z = ugly_volume.origin[0] + np.array([2.6, 5.4]) * ugly_volume.voxel_size
    mask = region_from_outline(ugly_volume, outline, z=tuple(z))
    expected = np.zeros(ugly_volume.shape, bool)
    expected[3:6, 3:10, 5:13] = True
    np.testing.assert_array_equal(mask, expected)
    assert region_from_outline(ugly_volume, outline)[:, 5, 7].all()
    with pytest.raises(GeometryError, match="larger than a voxel"):
        region_from_outline(ugly_volume, np.array(outline) + 1e4)


def test_a_region_splits_where_its_density_is_thinnest():
    z, y, x = np.indices((11, 13, 31))
    data = sum(np.exp(-((z - 5) ** 2 + (y - 6) ** 2 + (x - c) ** 2) / 18) for c in (8, 20)).astype(np.float32)
    mask = data > 0.2
    parts = split_region(data, mask, [(5, 6, 20), (5, 6, 9)])
    np.testing.assert_array_equal(parts > 0, mask)
    assert set(np.unique(parts[..., :14][mask[..., :14]])) == {2}
    assert set(np.unique(parts[..., 15:][mask[..., 15:]])) == {1}
    for seeds in ([(5, 6, 8)], [(5, 6, 8), (5, 6, 8)], [(5, 6, 8), (0, 0, 0)], [(5, 6, 8), (99, 0, 0)]):
        with pytest.raises(GeometryError, match="two places"):
            split_region(data, mask, seeds)


# ---------------------------------------------------------------- docking without atoms


def test_a_turned_density_is_put_back(rng):
    points = rng.normal(size=(60, 3)) * (4.0, 9.0, 15.0)
    points -= points.mean(axis=0)
    turn, shift = Rotation.from_euler("zyx", [40, -25, 70], degrees=True).as_matrix(), np.array([12.0, -7.0, 20.0])

    def blobs(centres, shape, origin):
        volume = Volume(np.zeros(shape, np.float32), 2.5, origin)
        places = np.moveaxis(np.indices(shape), 0, -1) * 2.5 + origin
        data = sum(np.exp(-((places - c) ** 2).sum(-1) / 18) for c in centres)
        return Volume(data.astype(np.float32), volume.voxel_size, origin)

    probe = blobs(points, (32, 32, 32), (-38.75,) * 3)
    target = blobs(points @ turn.T + shift, (37, 41, 45), (-40.0, -55.0, -35.0))
    found = dock_density(target, probe, resolution=8.0)
    assert found.cc_mask > 0.95
    assert found.volume.shape == target.shape
    assert found.volume.origin == target.origin
    assert np.corrcoef(found.volume.load().ravel(), target.load().ravel())[0, 1] > 0.95


# ---------------------------------------------------------------- resolutions of a volume


@pytest.mark.parametrize("ngff", ["0.5", "0.4"])
def test_levels_of_a_pyramid_know_where_they_are(tmp_path, ngff, rng):
    plane = rng.normal(size=3)
    z, y, x = np.indices((150, 131, 137))
    volume = Volume((plane[0] * z + plane[1] * y + plane[2] * x).astype(np.float32), 1.37, (-31.5, 12.25, 407.125))
    write_volume(volume, tmp_path / "a.zarr", ngff=ngff)
    finest, *coarser = open_levels(tmp_path / "a.zarr")
    assert coarser
    for level in coarser:
        index = (10, 7, 12)
        fine = finest.to_index(level.to_position(index))
        assert float(level.data[10, 7, 12]) == pytest.approx(float(plane @ fine), abs=1e-2)


def test_mrc_has_one_level(ugly_volume, tmp_path):
    write_volume(ugly_volume, tmp_path / "a.mrc")
    assert [level.shape for level in open_levels(tmp_path / "a.mrc")] == [ugly_volume.shape]


# ---------------------------------------------------------------- a database of one's own hits


def test_an_accepted_region_becomes_an_entry_that_finds_its_like(tmp_path, embedder):
    volume = scene()
    places = np.moveaxis(np.indices(volume.shape), 0, -1) * volume.voxel_size
    lens = np.abs(places - (62, 80, 120)) @ (1 / np.array([8.0, 14.0, 26.0]))
    volume = Volume(volume.load() + (1 / (1 + np.exp((lens - 1) * 8))).astype(np.float32), 3.1, volume.origin)
    db = database(embedder).write(tmp_path / "a.datedb")
    mask = lens < 1.1
    more = add_regions(db, volume, [(Entry("lens-1", "mine", "lens", 0), mask)], tmp_path / "b.datedb", resolution=6.2)
    assert len(more) == len(RADII) + 1
    assert more.verify() == []
    middle = tuple(np.add(ORIGIN, (62, 80, 120)))
    found = identify_at(volume, middle, datedb=more, embedder=embedder, resolution=6.2)
    assert found.region.candidates[0].entry == "lens-1"
    with pytest.raises(GeometryError, match="not in the DateDB yet"):
        add_regions(more, volume, [(Entry("lens-1", "mine", "lens", 0), mask)], tmp_path / "c", resolution=6.2)
    assert region_from_sphere(volume, middle, radius=8.0)[mask].any()
    assert ball(np.zeros(1), "solid")[0] > 0.9

"""Docking puts structures back where they were taken from."""

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from cryoscan import Structure, Volume
from cryoscan.dock import _splat, dock, rotation_grid
from cryoscan.errors import GeometryError
from cryoscan.io import open_volume, read_structure
from cryoscan.segment import region_from_structure
from cryoscan.simulate import density

RESOLUTION = 6.0


def folded_chain(rng: np.random.Generator, residues: int = 120) -> Structure:
    """A compact walk of carbon atoms 3.8 Å apart: the size and density of a domain, no symmetry."""
    radius = 2.3 * residues ** (1 / 3) + 3
    places = [np.zeros(3)]
    while len(places) < residues:
        step = rng.normal(size=3)
        place = places[-1] + 3.8 * step / np.linalg.norm(step)
        if np.linalg.norm(place) < radius:
            places.append(place)
    n = 5 * residues
    positions = np.repeat(places, 5, axis=0) + rng.normal(scale=1.2, size=(n, 3))
    text = np.array(["A"] * n)
    index = np.repeat(np.arange(residues), 5)
    return Structure(
        id="walk",
        positions=positions * (1.0, 1.25, 0.85),
        elements=np.full(n, 6, np.uint8),
        names=text,
        residue_names=text,
        residue_numbers=index,
        insertion_codes=text,
        chains=text,
        residues=index,
        b_factors=np.zeros(n, np.float32),
        nucleic=np.zeros(n, bool),
    )


def rmsd(a: Structure, b: Structure) -> float:
    return float(np.sqrt(((a.positions - b.positions) ** 2).sum(axis=1).mean()))


def noisy_map(structure: Structure, rng: np.random.Generator, *, voxel_size: float = 1.9, noise: float = 1.0) -> Volume:
    """A non-cubic box with the structure off its middle, and noise of the same resolution."""
    origin = structure.positions.mean(axis=0) - np.array([20, 24, 17]) * voxel_size
    volume = density(structure, voxel_size=voxel_size, resolution=RESOLUTION, shape=(41, 45, 37), origin=tuple(origin))
    grain = ndimage.gaussian_filter(rng.normal(size=volume.shape), 0.225 * RESOLUTION / voxel_size)
    level = noise * volume.data[volume.data > 0.1 * volume.data.max()].std() / grain.std()
    return Volume(volume.data + (level * grain).astype(np.float32), voxel_size, volume.origin)


@pytest.mark.parametrize("seed", [1, 2])
def test_rotated_and_shifted_structure_is_put_back_within_an_angstrom(seed):
    rng = np.random.default_rng(seed)
    truth = folded_chain(rng).moved(offset=(31.0, -212.0, 77.0))
    volume = noisy_map(truth, rng)
    # Not centred on 0, so that a rotation about the wrong point shows.
    start = truth.moved(rotation=Rotation.random(rng=rng).as_matrix(), offset=(15.0, 8.0, -3.0))
    probe = density(start, voxel_size=volume.voxel_size, resolution=RESOLUTION)
    docking = dock(volume, probe, start, resolution=RESOLUTION, angular_step=20, refined=12)
    assert rmsd(docking.structure, truth) < 1.0
    placed = start.moved(rotation=docking.rotation, offset=docking.offset)
    assert rmsd(placed, docking.structure) < 1e-9
    assert np.linalg.det(docking.rotation) == pytest.approx(1)
    assert 0.5 < docking.cc_mask < 0.95


def test_docking_is_deterministic_and_a_clean_map_is_matched_almost_perfectly():
    rng = np.random.default_rng(5)
    truth = folded_chain(rng, residues=60)
    volume = noisy_map(truth, rng, noise=0.0)
    probe = density(truth, voxel_size=volume.voxel_size, resolution=RESOLUTION)
    settings = {"resolution": RESOLUTION, "angular_step": 30, "refined": 4}
    first, second = (dock(volume, probe, truth, **settings) for _ in range(2))
    assert np.array_equal(first.rotation, second.rotation)
    assert first.offset == second.offset
    assert first.cc_mask > 0.97
    assert first.cc_box > 0.97


def test_region_mask_keeps_the_structure_in_its_region():
    rng = np.random.default_rng(3)
    here = folded_chain(rng, residues=60)
    there = here.moved(offset=(0.0, 46.0, 0.0))
    two = density(here, voxel_size=2.1, resolution=RESOLUTION, shape=(33, 59, 35), origin=(-34.0, -40.0, -36.0))
    other = density(there, voxel_size=2.1, resolution=RESOLUTION, shape=two.shape, origin=two.origin)
    # The other copy is twice as dense: without the mask it wins.
    volume = Volume(two.data + 2 * other.data, two.voxel_size, two.origin)
    probe = density(here, voxel_size=2.1, resolution=RESOLUTION)
    mask = region_from_structure(volume, here.positions, radius=5.0)
    settings = {"resolution": RESOLUTION, "angular_step": 30, "refined": 4}
    # What lies in the mask's box but outside the mask must not count either.
    filled = Volume(np.where(mask, volume.data, volume.data.max()), volume.voxel_size, volume.origin)
    docking = dock(filled, probe, here, region_mask=mask, **settings)
    assert rmsd(docking.structure, here) < 1.0
    assert docking.cc_box > 0.9
    assert rmsd(dock(volume, probe, here, **settings).structure, there) < 1.0


def test_splatted_points_keep_their_place_and_weight(rng):
    places, weights = rng.uniform(3, 6, size=(50, 3)), rng.random(50)
    grid = _splat(places, weights, [9, 11, 13])
    assert grid.sum() == pytest.approx(weights.sum(), rel=1e-6)
    assert ndimage.center_of_mass(grid) == pytest.approx(tuple(weights @ places / weights.sum()), rel=1e-5)
    assert np.allclose(_splat(places - (9, 22, 13), weights, [9, 11, 13]), grid, atol=1e-6)


def test_inputs_stay_as_they_were():
    rng = np.random.default_rng(4)
    structure = folded_chain(rng, residues=40)
    volume = noisy_map(structure, rng)
    probe = density(structure, voxel_size=2.0, resolution=RESOLUTION)
    before = volume.data.copy(), probe.data.copy(), structure.positions.copy()
    dock(volume, probe, structure, resolution=RESOLUTION, angular_step=60, refined=1)
    for old, new in zip(before, (volume.data, probe.data, structure.positions)):
        assert np.array_equal(old, new)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "emd_5830_3j63_chainA",
        "emd_3240_5fn5_chainC",
        "emd_2513_frh_fitted",  # one of several subunits that fill the box: bulk alone misleads the search
    ],
)
def test_models_are_docked_into_their_experimental_maps(name, data_folder):
    volume = open_volume(data_folder / "maps" / f"{name}.mrc.gz")
    truth = read_structure(data_folder / "maps_models" / f"{name}.pdb.gz")
    start = truth.centred().moved(rotation=Rotation.random(rng=np.random.default_rng(7)).as_matrix())
    probe = density(start, voxel_size=volume.voxel_size, resolution=RESOLUTION)
    docking = dock(volume, probe, start, resolution=RESOLUTION)
    assert rmsd(docking.structure, truth) < 1.0


def test_rotations_cover_all_orientations_evenly():
    step = 30.0
    grid = Rotation.from_matrix(rotation_grid(step))
    assert len(grid) == 576
    assert np.allclose(np.linalg.det(grid.as_matrix()), 1)
    probes = Rotation.random(200, rng=np.random.default_rng(0))
    nearest = np.array([np.degrees((probe.inv() * grid).magnitude().min()) for probe in probes])
    assert nearest.max() < step
    assert nearest.mean() < 0.7 * step


def test_what_cannot_be_docked_is_refused(rng):
    structure = folded_chain(rng, residues=20)
    probe = density(structure, voxel_size=2.0, resolution=RESOLUTION)
    volume = Volume(np.ones((9, 11, 13), np.float32) * rng.random((9, 11, 13)).astype(np.float32), 2.0)
    empty = Volume(np.zeros((9, 11, 13), np.float32), 2.0)
    with pytest.raises(GeometryError, match="map with positive density"):
        dock(empty, probe, structure, resolution=RESOLUTION)
    with pytest.raises(GeometryError, match="probe with positive density"):
        dock(volume, empty, structure, resolution=RESOLUTION)
    with pytest.raises(GeometryError, match=r"\(9, 11, 13\); got \(13, 11, 9\)"):
        dock(volume, probe, structure, resolution=RESOLUTION, region_mask=np.ones((13, 11, 9), bool))
    with pytest.raises(GeometryError, match="Choose another region"):
        dock(volume, probe, structure, resolution=RESOLUTION, region_mask=np.zeros(volume.shape, bool))
    with pytest.raises(GeometryError, match="8 to 20"):
        dock(volume, probe, structure, resolution=RESOLUTION, angular_step=0)

"""Law L8: atoms become the same density whichever way it is computed, and wherever they are put.

Two simulators that share no arithmetic must agree: a sum of Gaussians, and electron form
factors taken through Fourier space.
"""

from dataclasses import replace
from pathlib import Path

import gemmi
import numpy as np
import pytest
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from cryoscan import Structure, Volume
from cryoscan.errors import GeometryError
from cryoscan.io.structures import read_structure
from cryoscan.metrics import cc_box, fsc
from cryoscan.simulate import density, density_from_form_factors

DATA = Path(__file__).resolve().parents[1] / "data"
BOTH = pytest.mark.parametrize("simulate", [density, density_from_form_factors], ids=["gaussians", "form factors"])


PER_ATOM = (
    "names",
    "residue_names",
    "residue_numbers",
    "insertion_codes",
    "chains",
    "residues",
    "b_factors",
    "nucleic",
)


@pytest.fixture(scope="module")
def structure() -> Structure:
    """A helix, a strand and a nucleotide, far from the origin."""
    return read_structure(DATA / "ugly.cif")


def one_atom(position: tuple[float, float, float], element: int = 6) -> Structure:
    text = np.array([""])
    number = np.array([0])
    return Structure(
        id="atom",
        positions=np.array([position], np.float64),
        elements=np.array([element], np.uint8),
        names=text,
        residue_names=text,
        residue_numbers=number,
        insertion_codes=text,
        chains=text,
        residues=number,
        b_factors=np.zeros(1, np.float32),
        nucleic=np.zeros(1, bool),
    )


def centre_of_mass(volume: Volume) -> np.ndarray:
    data = volume.load().astype(np.float64)
    return volume.to_position([np.sum(grid * data) / data.sum() for grid in np.indices(volume.shape)])


# ---------------------------------------------------------------- the two agree


@pytest.mark.parametrize(("voxel_size", "resolution"), [(1.37, 6), (2.0, 6), (2.5, 6), (2.0, 8), (2.5, 10), (1.1, 10)])
def test_both_simulators_agree(structure, voxel_size, resolution):
    gaussians = density(structure, voxel_size=voxel_size, resolution=resolution)
    form_factors = density_from_form_factors(structure, voxel_size=voxel_size, resolution=resolution)
    assert gaussians.shape == form_factors.shape
    assert gaussians.origin == form_factors.origin
    assert cc_box(gaussians.data, form_factors.data) > 0.99
    frequencies, correlation = fsc(gaussians.data, form_factors.data, voxel_size=voxel_size)
    assert correlation[frequencies < 1 / resolution].min() > 0.98


def test_both_simulators_agree_on_a_real_chain(data_folder):
    chain = read_structure(data_folder / "maps_models" / "emd_5830_3j63_chainA.pdb.gz")
    for resolution in (6, 8, 10):
        maps = [
            simulate(chain, voxel_size=2, resolution=resolution) for simulate in (density, density_from_form_factors)
        ]
        assert cc_box(maps[0].data, maps[1].data) > 0.995


@BOTH
@pytest.mark.parametrize(("voxel_size", "resolution"), [(1.37, 4), (2.0, 6), (5.0, 20)])
def test_sum_over_the_box_is_the_number_of_electrons(simulate, structure, voxel_size, resolution):
    edge = [
        int(extent / voxel_size) + 5 * int(resolution / voxel_size) for extent in np.ptp(structure.positions, axis=0)
    ]
    middle = (structure.positions.min(axis=0) + structure.positions.max(axis=0)) / 2
    origin = tuple(middle - (np.array(edge) - 1) / 2 * voxel_size)
    volume = simulate(structure, voxel_size=voxel_size, resolution=resolution, shape=tuple(edge), origin=origin)
    electrons = volume.load().sum(dtype=np.float64) * voxel_size**3
    assert electrons == pytest.approx(structure.elements.sum(dtype=int), rel=1e-3)


# ---------------------------------------------------------------- where atoms are


@BOTH
@pytest.mark.parametrize("element", [6, 16, 34])
def test_an_atom_off_every_symmetry_stays_at_its_place(simulate, element):
    position = (-20.3, 41.9, 107.45)
    volume = simulate(
        one_atom(position, element), voxel_size=1.9, resolution=7, shape=(21, 26, 33), origin=(-37.1, 18.2, 70.0)
    )
    np.testing.assert_allclose(centre_of_mass(volume), position, atol=0.01)
    brightest = volume.to_position(np.unravel_index(np.argmax(volume.data), volume.shape))
    assert np.abs(brightest - position).max() <= 1.9 / 2


@BOTH
def test_default_box_holds_the_structure_in_its_middle(simulate, structure):
    volume = simulate(structure, voxel_size=1.7, resolution=6)
    middle = volume.to_position((np.array(volume.shape) - 1) / 2)
    np.testing.assert_allclose(
        middle, (structure.positions.min(axis=0) + structure.positions.max(axis=0)) / 2, atol=1e-3
    )
    assert min(abs(volume.data[index]).max() for index in ((0,), (-1,))) < 0.02 * volume.data.max()


@BOTH
def test_a_part_of_the_box_is_a_crop_of_the_whole(simulate, structure):
    whole = simulate(structure, voxel_size=1.5, resolution=6)
    box = (slice(7, 20), slice(3, 21), slice(9, 18))
    crop = whole.crop(box)
    part = simulate(structure, voxel_size=1.5, resolution=6, shape=crop.shape, origin=crop.origin)
    np.testing.assert_allclose(part.data, crop.data, atol=1e-4 * whole.data.max())


@BOTH
def test_a_box_beside_the_structure_is_empty(simulate, structure):
    volume = simulate(structure, voxel_size=2, resolution=6, shape=(9, 10, 11), origin=(5000, 0, 0))
    assert volume.shape == (9, 10, 11)
    assert not volume.data.any()


@BOTH
def test_moving_atoms_by_voxels_moves_the_map(simulate, structure):
    here = simulate(structure, voxel_size=1.7, resolution=6, shape=(34, 36, 38), origin=(88, -38, 12))
    moved = structure.moved(offset=(1.7 * 2, 1.7 * -3, 1.7))
    there = simulate(moved, voxel_size=1.7, resolution=6, shape=(34, 36, 38), origin=(88 + 3.4, -38 - 5.1, 12 + 1.7))
    np.testing.assert_allclose(there.data, here.data, atol=1e-4 * here.data.max())


@BOTH
@pytest.mark.parametrize("seed", [1, 2])
def test_rotating_atoms_rotates_the_map(simulate, structure, seed):
    """Within the error of cubic interpolation on a grid of a fifth of the resolution."""
    rotation = Rotation.random(rng=np.random.default_rng(seed)).as_matrix()
    still = structure.centred()
    settings = {"voxel_size": 1.4, "resolution": 7.0, "shape": (51, 53, 55), "origin": (-35.0, -36.4, -37.8)}
    before, after = simulate(still, **settings), simulate(still.moved(rotation=rotation), **settings)
    places = after.to_position(np.indices(after.shape).transpose(1, 2, 3, 0)) @ rotation  # rotated back
    turned = map_coordinates(before.load(), before.to_index(places).transpose(3, 0, 1, 2), order=3)
    assert cc_box(turned, after.data) > 0.999
    assert np.abs(turned - after.data).max() < 0.02 * after.data.max()


# ---------------------------------------------------------------- what resolution means


@BOTH
@pytest.mark.parametrize("resolution", [5.0, 9.0])
def test_transform_of_an_atom_is_analytic(simulate, resolution):
    """exp(−2 pi² (0.225 R)² s²), for the form factors times f(s) / f(0): the same low-pass in both."""
    voxel_size, shape = resolution / 7, (61, 63, 65)  # fine enough to show no aliasing
    origin = tuple(-voxel_size * (n // 2) for n in shape)
    volume = simulate(one_atom((0, 0, 0), 7), voxel_size=voxel_size, resolution=resolution, shape=shape, origin=origin)
    transform = np.abs(np.fft.rfftn(volume.load().astype(np.float64)))[0, 0] * voxel_size**3
    s = np.fft.rfftfreq(shape[2], voxel_size)
    expected = 7 * np.exp(-2 * (np.pi * 0.225 * resolution * s) ** 2)
    if simulate is density_from_form_factors:
        factor = gemmi.Element("N").c4322
        expected *= np.array([factor.calculate_sf(x**2 / 4) for x in s]) / factor.calculate_sf(0)
    np.testing.assert_allclose(transform, expected, atol=0.005)


def test_elements_weigh_by_electrons_or_by_form_factor():
    settings = {"voxel_size": 1.5, "resolution": 6, "shape": (25, 25, 41), "origin": (-18, -18, -30)}
    pair = replace(
        one_atom((0, 0, -15)),
        positions=np.array([(0.0, 0, -15), (0.0, 0, 15)]),
        elements=np.array([6, 16], np.uint8),
        **{name: np.repeat(getattr(one_atom((0, 0, 0)), name), 2) for name in PER_ATOM},
    )
    shares = [
        simulate(pair, **settings).data[:, :, 21:].sum() / 22 * 1.5**3
        for simulate in (density, density_from_form_factors)
    ]
    assert shares[0] == pytest.approx(16 / 22, rel=1e-3)
    carbon, sulphur = (gemmi.Element(symbol).c4322.calculate_sf(0) for symbol in "CS")
    assert shares[1] == pytest.approx(sulphur / (carbon + sulphur), rel=1e-3)


# ---------------------------------------------------------------- what cannot be simulated


@BOTH
def test_grid_too_coarse_for_the_resolution_is_refused(simulate, structure):
    with pytest.raises(GeometryError, match="voxels"):
        simulate(structure, voxel_size=3, resolution=5)


def test_atoms_without_elements_are_refused():
    with pytest.raises(GeometryError, match="element column"):
        density_from_form_factors(one_atom((0, 0, 0), 0), voxel_size=2, resolution=6)


@BOTH
def test_input_is_left_alone(simulate, structure):
    before = structure.positions.copy(), structure.elements.copy()
    simulate(structure, voxel_size=2.5, resolution=8)
    np.testing.assert_array_equal(structure.positions, before[0])
    np.testing.assert_array_equal(structure.elements, before[1])

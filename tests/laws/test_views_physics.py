"""Law L8 for training views: they agree with the simulator of the DateDB and with analytic values."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from cryoscan import Structure
from cryoscan.filters import lowpass_gaussian
from cryoscan.simulate import density
from cryoscan.train import CONDITIONS, Anchor, AtomLibrary, rendering, simulate_views
from cryoscan.train import views as views_module
from cryoscan.train.scenes import random_rotations
from cryoscan.units import Angstrom

TURN = np.array([[0.36, 0.48, -0.8], [-0.8, 0.6, 0.0], [0.48, 0.64, 0.6]])
"""A rotation without symmetry."""


def body(seed: int, radius: Angstrom = 20.0) -> Structure:
    """An ellipsoid as dense in atoms as protein, with three kinds of them; no symmetry, far from 0."""
    rng = np.random.default_rng(seed)
    n = int(4 / 3 * np.pi * radius**3 * 0.058)
    points = rng.uniform(-1, 1, (4 * n, 3))
    points = points[(points**2).sum(axis=1) < 1][:n] * radius * np.array([1.0, 0.7, 0.45])
    points += 0.2 * points[:, [1, 2, 0]]
    n = len(points)
    return Structure(
        id="body",
        positions=points + np.array([-31.5, 407.3, 12.25]),
        elements=rng.choice([6, 7, 8], n).astype(np.uint8),
        names=np.full(n, "CA"),
        residue_names=np.full(n, "ALA"),
        residue_numbers=np.arange(n) // 8,
        insertion_codes=np.full(n, ""),
        chains=np.full(n, "A"),
        residues=np.arange(n) // 8,
        b_factors=np.zeros(n, np.float32),
        nucleic=np.zeros(n, bool),
    )


STRUCTURE = body(1)


@pytest.fixture(scope="module")
def library() -> AtomLibrary:
    anchor = Anchor("body", (), "k", "1abc_A", ((0, STRUCTURE.n_residues),), "train")
    return AtomLibrary.of_chains([("1abc_A", STRUCTURE)], anchors=[anchor], neighbours=["1abc_A"])


@pytest.fixture
def draws() -> torch.Generator:
    return torch.Generator().manual_seed(5)


# ---------------------------------------------------------------- densities


@pytest.mark.parametrize(("resolution", "voxel_size"), [(4.0, 2.2), (4.5, 2.5), (6.0, 2.5), (8.1, 2.5), (15.0, 3.1)])
def test_a_clean_view_is_the_density_of_the_turned_domain(library, draws, monkeypatch, resolution, voxel_size):
    turn = torch.tensor(TURN, dtype=torch.float32)
    monkeypatch.setattr(views_module, "random_rotations", lambda count, rng: turn.expand(count, 3, 3))
    config = replace(CONDITIONS["clean_6A"], resolution_A=(resolution, resolution), shift_A=5.0)
    views = simulate_views(library, torch.zeros(3, dtype=torch.int64), config=config, rng=draws, voxel_size=voxel_size)
    weights = STRUCTURE.elements.astype(np.float64)
    centred = STRUCTURE.moved(offset=-(weights @ STRUCTURE.positions) / weights.sum()).moved(rotation=TURN)
    half = -15.5 * voxel_size
    for seen, clean, shift in zip(views.density_BZYX, views.clean_BZYX, views.shift_B3.numpy(), strict=True):
        expected = density(
            centred.moved(offset=shift),
            voxel_size=voxel_size,
            resolution=resolution,
            shape=(32, 32, 32),
            origin=(half, half, half),
        ).load()
        for data in (seen, clean):
            assert np.corrcoef(data.numpy().ravel(), expected.ravel())[0, 1] > 0.99


def test_densities_hold_the_electrons(library):
    atoms, owners = library.atoms_of_anchors(torch.tensor([0, 0]))
    positions = library.positions(atoms) - library.centres_D3[0]
    weights = library.numbers_N[atoms].float()
    found = rendering.densities(positions, weights, owners, torch.tensor([5.0, 9.0]), edge=40, voxel_size=2.5)
    electrons = float(STRUCTURE.elements.sum())
    assert found.sum(dim=(1, 2, 3)).numpy() * 2.5**3 == pytest.approx([electrons] * 2, rel=2e-3)


@pytest.mark.parametrize("resolution", [4.5, 6.0, 8.1, 12.0])
def test_an_atom_is_as_wide_as_its_resolution_says(draws, resolution):
    places = 2.5 * torch.rand(1000, 3, generator=draws)
    found = rendering.densities(
        places, torch.ones(1000), torch.arange(1000), torch.full((1000,), resolution), edge=18, voxel_size=2.5
    )
    z, y, x = ((torch.arange(18) - 8.5) * 2.5 - places[:, axis, None] for axis in range(3))
    profiles = (found.sum(dim=(2, 3)) * z**2, found.sum(dim=(1, 3)) * y**2, found.sum(dim=(1, 2)) * x**2)
    for profile in profiles:  # each atom is wider or narrower by its place between grid points; the mean is right
        assert (2.5**3 * profile.sum(dim=1)).mean() == pytest.approx((0.225 * resolution) ** 2, rel=0.03)


def test_orientations_are_even_and_never_mirrored(draws):
    turns = random_rotations(4000, rng=draws)
    eye = torch.eye(3).expand(4000, 3, 3)
    assert torch.allclose(turns @ turns.transpose(1, 2), eye, atol=1e-5)
    assert torch.allclose(torch.linalg.det(turns), torch.ones(4000), atol=1e-5)
    traces = turns.diagonal(dim1=1, dim2=2).sum(dim=1)
    assert traces.mean() == pytest.approx(0, abs=0.05)  # of the Haar measure on SO(3): mean 0, mean square 1
    assert (traces**2).mean() == pytest.approx(1, abs=0.06)
    assert turns.mean(dim=0).abs().max() < 0.04


# ---------------------------------------------------------------- masks


@pytest.mark.parametrize("resolution", [5.0, 9.0])
def test_the_distance_from_the_surface_of_a_ball_is_found(resolution):
    r = rendering.radius_grid(40, 2.5, device=torch.device("cpu"))
    inside = 52.0 / 135.56 * (r < 22.0).numpy()
    blurred = lowpass_gaussian(inside.astype(np.float32), voxel_size=2.5, sigma=0.225 * resolution)
    found = rendering.surface_distance(torch.from_numpy(blurred)[None], torch.tensor([resolution]), voxel_size=2.5)[0]
    near = (r - 22).abs() < 5
    assert (found - (r - 22))[near].abs().max() < 2.5
    assert (found - (r - 22))[near].mean() == pytest.approx(0, abs=0.7)


@pytest.mark.parametrize("scene", ["molecular", "sphere"])
def test_a_wider_mask_leaves_more_of_the_surroundings(library, scene):
    crowded = replace(CONDITIONS["neighbours_no_mask"], shift_A=0.0)
    left = []
    for wider in (-3.0, 3.0, 9.0):
        margins = {"mask_offset_A": (wider, wider), "sphere_margin_A": wider}
        config = replace(crowded, scenes={scene: 1.0}, **margins)
        rng = torch.Generator().manual_seed(3)
        views = simulate_views(library, torch.zeros(4, dtype=torch.int64), config=config, rng=rng)
        left.append((views.density_BZYX > 0.1).float().mean().item())
    assert left[0] < 0.9 * left[1] < 0.81 * left[2]


# ---------------------------------------------------------------- noise


def test_noise_has_the_strength_and_the_colour_it_is_said_to_have(library, draws):
    alone = replace(CONDITIONS["noise"], scenes={"crowded": 1.0}, neighbours=(0, 0), snr=(2.0, 2.0))
    views = simulate_views(library, torch.zeros(12, dtype=torch.int64), config=alone, rng=draws)
    power = torch.zeros(32, 32, 17)
    for seen, clean in zip(views.density_BZYX, views.clean_BZYX, strict=True):
        signal = (seen * clean).sum() / (clean * clean).sum() * clean
        noise = seen - signal
        where = clean > 0.1 * clean.max()
        assert signal[where].var() / noise.var() == pytest.approx(2, rel=0.25)
        power += torch.fft.rfftn(noise).abs() ** 2
    s2 = (rendering.frequency_grids(32, 2.5, device=torch.device("cpu")) ** 2).sum(dim=0)
    shells = [(s2 >= low**2) & (s2 < (low + 0.02) ** 2) for low in (0.03, 0.15)]
    gain = torch.exp(-4 * (math.pi * 0.225 * 6.0) ** 2 * s2)  # of the power
    found, expected = (float(data[shells[1]].mean() / data[shells[0]].mean()) for data in (power, gain))
    assert found == pytest.approx(expected, rel=0.15)


# ---------------------------------------------------------------- Fourier space


@pytest.mark.parametrize("tilt", [40.0, 60.0])
def test_the_wedge_misses_what_no_tilt_measures(draws, tilt):
    turns = random_rotations(3, rng=draws)
    grid = torch.randn(3, 20000, 1, 1, generator=draws)
    wedge = rendering.missing_wedge(grid, turns, torch.full((3,), tilt))
    assert 1 - wedge.mean(dim=(1, 2, 3)).numpy() == pytest.approx([1 - tilt / 90] * 3, abs=0.015)
    beam, across, axis = turns[0]
    angles = torch.deg2rad(torch.tensor([0.0, tilt - 2, tilt + 2, 90.0]))
    directions = across[:, None] * torch.cos(angles) + beam[:, None] * torch.sin(angles)
    seen = rendering.missing_wedge(directions[:, :, None, None], turns[:1], torch.tensor([tilt]))
    assert seen.flatten().tolist() == [1, 1, 0, 0]
    along_axis = rendering.missing_wedge(0.1 * axis[:, None, None, None], turns[:1], torch.tensor([tilt]))
    assert along_axis.item() == 1


def test_the_contrast_transfer_vanishes_where_it_should():
    wavelength = rendering.electron_wavelength(300.0)
    assert wavelength == pytest.approx(0.019687, abs=1e-6)  # e.g. International Tables C, table 4.3.1.1
    s = torch.linspace(0.0, 0.08, 4001)
    defocus = 3.0
    found = rendering.phase_flipped_transfer((s**2)[None, None], torch.tensor([defocus]), box=5000.0)[0, 0, 0]
    assert found[0] == pytest.approx(0.1, abs=1e-3)
    minima = s[1:-1][(found[1:-1] < found[:-2]) & (found[1:-1] < found[2:])]
    # Cs turns the phase by less than a degree here: pi lambda dz s² + asin 0.1 = k pi
    zeros = [math.sqrt((k - math.asin(0.1) / math.pi) / (wavelength * defocus * 1e4)) for k in (1, 2, 3)]
    assert minima[:3].tolist() == pytest.approx(zeros, rel=2e-3)
    assert found.min() >= 0
    small = rendering.phase_flipped_transfer((s**2)[None, None], torch.tensor([6.0]), box=100.0)[0, 0, 0]
    assert small[-200:].numpy() == pytest.approx(2 / math.pi, abs=0.1)  # rings beyond the box have averaged out


def test_a_positive_b_factor_is_a_gaussian_blur(draws):
    data = torch.zeros(2, 40, 40, 40)
    data[:, 17, 21, 24] = 1.0
    data = rendering.gaussian_blur(data, torch.tensor([3.0, 3.0]), voxel_size=2.5)
    s2 = (rendering.frequency_grids(40, 2.5, device=data.device) ** 2).sum(dim=0)
    b = torch.tensor([300.0, 0.0])
    found = rendering.filtered(data, rendering.sharpening(s2, b, torch.tensor([6.0, 6.0])))
    blurred = rendering.gaussian_blur(data, torch.tensor([math.sqrt(300 / (8 * math.pi**2))] * 2), voxel_size=2.5)
    assert torch.allclose(found[0], blurred[0], atol=1e-5 * float(data.max()) + 1e-7)
    assert torch.allclose(found[1], data[1], atol=1e-6)
    sharp = rendering.filtered(data, rendering.sharpening(s2, torch.tensor([-150.0, -50.0]), torch.tensor([6.0, 6.0])))
    assert sharp[0].max() > sharp[1].max() > data.max()

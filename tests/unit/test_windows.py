"""From a region of a map to a window: place, mask and blur; and the look before the work."""

import numpy as np
import pytest

from cryoscan import Volume
from cryoscan.errors import FormatError, GeometryError
from cryoscan.models import InvariantEmbedder
from cryoscan.preflight import inspect, sample
from cryoscan.simulate.density import gaussian_sum
from cryoscan.windows import blurred, centre_of_mass, region_window

ORIGIN = (-31.5, 12.25, 407.125)


def blob_map(centre: tuple[float, float, float], *, voxel: float, sigma: float = 7.0) -> Volume:
    """An elongated blob at a place in Å, in an ugly box."""
    shape = (61, 73, 80)
    atoms = np.array(centre) + np.array([[0, 0, 0], [0, 9, 4], [5, -8, 12], [-11, 3, 2]], float)
    data = gaussian_sum((atoms - ORIGIN) / voxel, np.ones(4), sigma=sigma / voxel, shape=shape)
    return Volume(data.astype(np.float32), voxel, ORIGIN)


@pytest.mark.parametrize("voxel", [1.1, 1.9, 2.5])
def test_a_window_is_centred_on_the_region_whatever_the_voxel_size(voxel: float) -> None:
    centre = tuple(np.array(ORIGIN) + np.array([29, 36, 41]) * voxel)
    volume = blob_map(centre, voxel=voxel, sigma=4.0)  # type: ignore[arg-type]
    window = region_window(volume, None, InvariantEmbedder())
    assert window.shape == (32, 32, 32)
    middle = centre_of_mass(Volume(window, 1.0))
    assert middle == pytest.approx((15.5, 15.5, 15.5), abs=0.15)


def test_the_same_region_embeds_the_same_at_other_voxel_sizes_and_places() -> None:
    embedder = InvariantEmbedder(contour=0.0)
    windows = []
    for voxel, place in ((1.1, (29, 36, 41)), (1.9, (33, 30, 39)), (2.5, (27, 40, 36))):
        centre = tuple(np.array(ORIGIN) + np.array(place) * voxel)
        windows.append(region_window(blob_map(centre, voxel=voxel, sigma=4.0), None, embedder))  # type: ignore[arg-type]
    vectors = embedder.embed(np.stack(windows))
    assert (vectors @ vectors.T).min() > 0.995


def test_a_mask_hides_what_is_outside() -> None:
    centre = tuple(np.array(ORIGIN) + np.array([29, 36, 25]) * 1.9)
    other = tuple(np.array(ORIGIN) + np.array([29, 36, 62]) * 1.9)
    alone = blob_map(centre, voxel=1.9, sigma=4.0)  # type: ignore[arg-type]
    both = Volume(alone.load() + 3 * blob_map(other, voxel=1.9, sigma=4.0).load(), 1.9, ORIGIN)  # type: ignore[arg-type]
    mask = np.zeros(alone.shape, bool)
    mask[:, :, :43] = True
    embedder = InvariantEmbedder()
    masked = region_window(both, mask, embedder)
    assert np.abs(masked - region_window(alone, mask, embedder)).max() < 0.05 * masked.max()


def test_blurring_adds_in_quadrature_and_never_sharpens() -> None:
    volume = blob_map(tuple(np.array(ORIGIN) + 55), voxel=1.9, sigma=0.225 * 20)  # type: ignore[arg-type]
    wide = blurred(volume, resolution=20.0, target=26.0)
    expected = blob_map(tuple(np.array(ORIGIN) + 55), voxel=1.9, sigma=0.225 * 26)  # type: ignore[arg-type]
    assert np.abs(wide.load() - expected.load()).max() < 0.01 * expected.load().max()
    assert blurred(volume, resolution=20.0, target=12.0) is volume
    assert blurred(volume, resolution=None, target=12.0) is volume


def test_a_region_without_density_or_of_another_shape_is_refused() -> None:
    volume = Volume(np.zeros((9, 10, 11), np.float32), 2.0)
    with pytest.raises(GeometryError, match="none above the background"):
        region_window(volume, None, InvariantEmbedder())
    with pytest.raises(GeometryError, match="volume's shape"):
        region_window(volume, np.ones((9, 10, 10), bool), InvariantEmbedder())
    with pytest.raises(GeometryError, match="an empty mask"):
        region_window(volume, np.zeros((9, 10, 11), bool), InvariantEmbedder())


# ---------------------------------------------------------------- preflight


def noisy(voxel: float, sign: float = 1.0) -> Volume:
    volume = blob_map(tuple(np.array(ORIGIN) + np.array([30, 36, 40]) * voxel), voxel=voxel, sigma=3 * voxel)  # type: ignore[arg-type]
    data = volume.load()
    return Volume(sign * (data + 0.02 * data.max() * np.random.default_rng(0).normal(size=data.shape)), voxel, ORIGIN)


def test_a_good_map_needs_no_warning() -> None:
    found = inspect(noisy(1.9), resolution=6.0, coarsest=10.0)
    assert found.can_identify
    assert found.warnings == ()
    assert found.nyquist == pytest.approx(3.8)


def test_dark_protein_is_noticed() -> None:
    found = inspect(noisy(1.9, sign=-1.0), resolution=6.0, coarsest=10.0)
    assert any("--contrast dark" in warning for warning in found.warnings)


def test_a_volume_that_is_too_coarse_says_so_with_both_numbers() -> None:
    found = inspect(noisy(8.2), resolution=None, coarsest=10.0)
    assert not found.can_identify
    assert any("16.4 Å" in warning and "10 Å" in warning for warning in found.warnings)


def test_a_resolution_beyond_nyquist_is_not_believed() -> None:
    found = inspect(noisy(4.0), resolution=3.0, coarsest=10.0)
    assert found.finest == pytest.approx(8.0)
    assert any("8 Å" in warning for warning in found.warnings)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused_with_a_remedy(value: float) -> None:
    data = noisy(2.0).load().copy()
    data[5, 6, 7] = value
    with pytest.raises(FormatError, match="nan_to_num"):
        inspect(Volume(data, 2.0), resolution=None, coarsest=10.0)


def test_a_constant_volume_is_refused() -> None:
    with pytest.raises(FormatError, match="right file"):
        inspect(Volume(np.full((9, 9, 9), 3.0), 2.0), resolution=None, coarsest=10.0)


def test_a_large_volume_is_sampled_evenly() -> None:
    data = np.zeros((40, 500, 600), np.float32)
    data[:, 250:, :] = 1.0
    values = sample(Volume(data, 2.0))
    assert values.size < data.size / 2
    assert values.mean() == pytest.approx(0.5, abs=0.15)

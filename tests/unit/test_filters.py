"""Resampling and low-pass filters against functions whose answer is known."""

import numpy as np
import pytest

from cryoscan import Volume
from cryoscan.filters import (
    frequency_grid,
    lowpass_butterworth,
    lowpass_cut,
    lowpass_gaussian,
    resample_fourier,
    resample_onto,
)


def blobs(shape: tuple[int, int, int], voxel: float, origin: tuple[float, float, float], sigma: float) -> Volume:
    """Three Gaussians at fixed Å off every symmetry, sampled on a grid."""
    z, y, x = (o + np.arange(n) * voxel for o, n in zip(origin, shape, strict=True))
    data = np.zeros(shape, np.float32)
    for cz, cy, cx, weight in ((12.3, 20.1, 31.7, 1.0), (22.9, 11.4, 18.2, 0.6), (17.0, 27.7, 24.4, 1.7)):
        data += weight * np.exp(
            -((z[:, None, None] - cz) ** 2 + (y[:, None] - cy) ** 2 + (x - cx) ** 2) / (2 * sigma**2)
        )
    return Volume(data, voxel, origin)


@pytest.mark.parametrize("voxel", [0.9, 1.23, 1.77, 2.5, 3.1])
def test_fourier_resampling_agrees_with_sampling_on_the_other_grid(voxel: float) -> None:
    origin = (-3.0, -4.0, -5.0)
    source = blobs((37, 40, 51), 1.23, origin, sigma=2.9)
    result = resample_fourier(source, voxel)
    assert result.voxel_size == voxel
    assert result.origin == origin
    expected = blobs(result.shape, voxel, origin, sigma=2.9)
    assert np.abs(result.data - expected.data).max() < 0.01 * expected.data.max()


def test_fourier_resampling_there_and_back_is_the_identity() -> None:
    source = blobs((37, 40, 51), 1.23, (0, 0, 0), sigma=2.0)
    back = resample_fourier(resample_fourier(source, 0.7), 1.23)
    part = tuple(slice(4, n - 4) for n in back.shape)
    assert np.abs(back.data[part] - source.data[part]).max() < 0.005 * source.data.max()


def test_fourier_resampling_to_the_same_voxel_size_changes_nothing(ugly_volume: Volume) -> None:
    assert np.array_equal(resample_fourier(ugly_volume, 1.37).data, ugly_volume.data)


@pytest.mark.parametrize("voxel", [0.9, 1.23, 2.5, 3.1])
def test_local_resampling_agrees_with_sampling_on_the_other_grid(voxel: float) -> None:
    source = blobs((37, 40, 51), 1.23, (-3, -4, -5), sigma=3.2)
    result = resample_onto(source, voxel_size=voxel, origin=(9.1, 8.2, 13.3), shape=(13, 11, 14))
    expected = blobs((13, 11, 14), voxel, (9.1, 8.2, 13.3), sigma=3.2)
    assert np.abs(result.data - expected.data).max() < 0.02 * source.load().max()


def test_local_resampling_of_a_part_agrees_with_the_whole(ugly_volume: Volume) -> None:
    origin = ugly_volume.origin
    whole = resample_onto(ugly_volume, voxel_size=2.1, origin=origin, shape=(7, 10, 14))
    start = np.array([2, 3, 5])
    corner = np.array(origin) + start * 2.1
    part = resample_onto(ugly_volume, voxel_size=2.1, origin=tuple(corner), shape=(4, 5, 6))  # type: ignore[arg-type]
    assert np.abs(part.data - whole.data[2:6, 3:8, 5:11]).max() < 1e-4


def test_local_resampling_outside_the_volume_gives_the_fill() -> None:
    volume = Volume(np.ones((9, 9, 9), np.float32), 2.0)
    result = resample_onto(volume, voxel_size=1.0, origin=(500.0, 0, 0), shape=(4, 4, 4))
    assert (result.data == 0).all()


def test_gaussian_lowpass_widens_a_gaussian_in_quadrature() -> None:
    source = blobs((48, 52, 56), 1.1, (-5, -5, -5), sigma=2.5)
    blurred = lowpass_gaussian(source.load(), voxel_size=1.1, sigma=2.0)
    wide = np.sqrt(2.5**2 + 2.0**2)
    expected = blobs((48, 52, 56), 1.1, (-5, -5, -5), sigma=wide).load() * (2.5 / wide) ** 3
    assert np.abs(blurred - expected).max() < 0.01 * expected.max()


@pytest.mark.parametrize("order", [2, 8])
def test_butterworth_halves_the_power_at_its_resolution(order: int) -> None:
    n, voxel, resolution = 60, 1.5, 9.0  # 1/9 Å is an exact frequency of 60 voxels of 1.5 Å
    wave = np.cos(2 * np.pi * np.arange(n) * voxel / resolution).astype(np.float32)
    data = np.broadcast_to(wave, (5, 7, n)).copy()
    result = lowpass_butterworth(data, voxel_size=voxel, resolution=resolution, order=order)
    assert result.std() / data.std() == pytest.approx(np.sqrt(0.5), rel=1e-4)
    constant = np.full((5, 7, 9), 3.0, np.float32)
    assert lowpass_butterworth(constant, voxel_size=voxel, resolution=9.0) == pytest.approx(constant)


def test_filters_leave_their_input_alone(ugly_volume: Volume) -> None:
    before = ugly_volume.load().copy()
    lowpass_gaussian(ugly_volume.data, voxel_size=1.37, sigma=2.0)  # type: ignore[arg-type]
    resample_fourier(ugly_volume, 2.0)
    resample_onto(ugly_volume, voxel_size=2.0, origin=(0, 0, 400), shape=(3, 3, 3))
    assert np.array_equal(ugly_volume.load(), before)


def test_a_cut_off_map_holds_nothing_finer_and_all_that_is_coarser(rng):
    data = rng.normal(size=(24, 30, 28)).astype(np.float32)
    found = lowpass_cut(data, voxel_size=1.3, resolution=5.0)
    s = frequency_grid((24, 30, 28), 1.3)
    before, after = np.fft.rfftn(data), np.fft.rfftn(found)
    np.testing.assert_allclose(after[s <= 1 / 5.0], before[s <= 1 / 5.0], atol=1e-2)
    assert np.abs(after[s >= 1.1 / 5.0]).max() < 1e-2

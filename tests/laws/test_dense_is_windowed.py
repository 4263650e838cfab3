"""Law: embedding a block in one pass is embedding its windows, and does not depend on how the work is cut."""

import functools

import numpy as np
import pytest
import torch

from cryoscan.errors import GeometryError
from cryoscan.models import DensityTower, TowerConfig, TowerEmbedder, fastest_precision, tower_embedder

SMALL = TowerConfig(window=16, dim=24, channels=6, attention_window=3, head_channels=5, pool_sigma=3.0)
BOX = (61, 67, 73)


def scene(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """Crowded smooth blobs of differing strength."""
    rng = torch.Generator().manual_seed(seed)
    noise = torch.randn(1, 1, *shape, generator=rng)
    smooth = torch.nn.functional.avg_pool3d(torch.nn.functional.avg_pool3d(noise, 3, 1, 1), 5, 1, 2)
    patches = torch.randn(1, 1, *(-(-n // 6) for n in shape), generator=rng).exp()
    strength = torch.nn.functional.interpolate(patches, size=shape, mode="trilinear")
    return (smooth.clamp_min(0) * strength)[0, 0].numpy()


def windows_at(volume: np.ndarray, places: np.ndarray, edge: int) -> np.ndarray:
    return np.stack([volume[z : z + edge, y : y + edge, x : x + edge] for z, y, x in places])


@functools.cache
def calibrated(config: TowerConfig) -> DensityTower:
    """An untrained tower whose running norms are those of the scene."""
    torch.manual_seed(0)
    tower, rng, edge = DensityTower(config), np.random.default_rng(0), config.window
    volume = scene(BOX, seed=9)
    with torch.no_grad():
        for _ in range(30):
            places = rng.integers(0, np.array(BOX) - edge + 1, size=(3, 3))
            tower.train()(torch.from_numpy(windows_at(volume, places, edge)), rng=torch.Generator().manual_seed(1))
    return tower.eval()


@pytest.fixture(scope="module")
def embedder() -> TowerEmbedder:
    return TowerEmbedder(calibrated(SMALL), threads=1)


def centred_cosines(dense: np.ndarray, windowed: np.ndarray) -> np.ndarray:
    mean = windowed.mean(axis=0)
    a, b = dense - mean, windowed - mean
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.mark.parametrize("switches", [{}, {"use_swinconv": False}, {"use_residual": False}])
def test_a_window_within_a_block_is_the_window_alone(switches: dict[str, bool]) -> None:
    # untrained, hence 0.7: a trained tower must reach 0.95; it has learned to disregard grid and border
    embedder = TowerEmbedder(calibrated(TowerConfig(**switches)), threads=1)
    points = (7, 6, 5)
    volume = scene(tuple((n - 1) * 4 + 32 + 2 * embedder.halo for n in points))  # type: ignore[arg-type]
    dense = embedder.embed_dense(volume, stride=4)
    places = np.random.default_rng(0).permutation(list(np.ndindex(*points)))[:80]
    windowed = embedder.embed(windows_at(volume, places * 4 + embedder.halo, 32))
    z, y, x = places.T
    assert centred_cosines(dense[z, y, x], windowed).mean() > 0.7
    assert ((dense[z, y, x] @ windowed.T).argmax(axis=1) == np.arange(80)).mean() > 0.5  # chance: 0.0125


def test_a_window_alone_in_space_is_the_same_in_a_block() -> None:
    # nothing beyond the window, no attention, hence no border and no partition: the two ways are one function
    config = TowerConfig(**{**SMALL.to_json(), "use_swinconv": False})
    embedder = TowerEmbedder(calibrated(config), threads=1)
    block = np.zeros((16 + 2 * embedder.halo,) * 3, np.float32)
    inside = (slice(embedder.halo, -embedder.halo),) * 3
    window = scene((16, 16, 16))
    window[~np.pad(np.ones((2, 4, 6), bool), ((7, 7), (6, 6), (5, 5)))] = 0
    block[inside] = window
    assert embedder.embed_dense(block, stride=4)[0, 0, 0] @ embedder.embed(window[None])[0] > 0.97


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 6, 8, 12])
def test_strides_agree_where_they_meet(embedder: TowerEmbedder, stride: int) -> None:
    around = 16 + 2 * embedder.halo
    points = (4, 3, 2)
    volume = scene(tuple((n - 1) * stride + around for n in points))  # type: ignore[arg-type]
    before = volume.copy()
    dense = embedder.embed_dense(volume, stride=stride)
    assert dense.shape == (*points, 24)
    assert dense.dtype == np.float32
    assert np.array_equal(volume, before)
    for place in np.ndindex(*points):  # each lattice point evaluated as the first of a block
        alone = volume[tuple(slice(i * stride, i * stride + around) for i in place)]
        assert dense[place] @ embedder.embed_dense(alone, stride=stride)[0, 0, 0] > 0.95


def test_what_a_cell_says_does_not_depend_on_its_neighbours(
    embedder: TowerEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cryoscan.models.tower_embedder._CELL", 13)
    assert embedder.cell == 24
    stride, step, around = 4, 6, 16 + 2 * embedder.halo
    points = (8, 13, 7)  # cells of 6 points and pieces of cells
    volume = scene(tuple((n - 1) * stride + around for n in points))  # type: ignore[arg-type]
    whole = embedder.embed_dense(volume, stride=stride)
    for first in [(0, 0, 0), (6, 6, 6), (0, 12, 0), (6, 0, 6)]:
        last = [min(start + step, n) for start, n in zip(first, points, strict=True)]
        part = volume[tuple(slice(a * stride, (b - 1) * stride + around) for a, b in zip(first, last, strict=True))]
        alone = embedder.embed_dense(part, stride=stride)
        assert np.array_equal(whole[tuple(slice(a, b) for a, b in zip(first, last, strict=True))], alone)


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_nothing(embedder: TowerEmbedder, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cryoscan.models.tower_embedder._CELL", 13)
    other = TowerEmbedder(calibrated(SMALL), threads=threads)
    assert other.fingerprint == embedder.fingerprint
    volume = scene((16 + 2 * embedder.halo + 4 * 7,) * 3)
    assert np.abs(other.embed_dense(volume, stride=4) - embedder.embed_dense(volume, stride=4)).max() < 1e-4


def test_sixteen_bits_say_the_same(embedder: TowerEmbedder) -> None:
    volume = scene((16 + 2 * embedder.halo + 20,) * 3)
    half = TowerEmbedder(calibrated(SMALL), threads=1, precision=torch.bfloat16)
    exact, rough = embedder.embed_dense(volume, stride=4), half.embed_dense(volume, stride=4)
    assert half.fingerprint == embedder.fingerprint
    assert np.abs(exact - rough).max() > 1e-5  # it is not 32 bits in disguise
    assert (exact * rough).sum(axis=-1).min() > 0.99
    windows = volume[None, :16, :16, :16]
    assert (embedder.embed(windows) * half.embed(windows)).sum() > 0.99


@pytest.mark.parametrize(
    ("seconds", "error", "taken"),
    [
        ({torch.float16: 0.5, torch.bfloat16: 0.4}, {}, torch.bfloat16),
        ({torch.float16: 0.5, torch.bfloat16: 0.4}, {torch.bfloat16: 0.1}, torch.float16),
        ({torch.float16: 0.5, torch.bfloat16: 2.0}, {torch.float16: np.nan}, torch.float32),
        ({torch.float16: 1.5, torch.bfloat16: 2.0}, {}, torch.float32),
    ],
)
def test_sixteen_bits_are_taken_where_they_are_faster_and_right(
    embedder: TowerEmbedder,
    monkeypatch: pytest.MonkeyPatch,
    seconds: dict[torch.dtype, float],
    error: dict[torch.dtype, float],
    taken: torch.dtype,
) -> None:
    exact = np.random.default_rng(0).normal(size=(4, 5, 6, 24)).astype(np.float32)
    exact[0, 0] = 0

    def timed(tried: TowerEmbedder, *_: object) -> tuple[np.ndarray, float]:
        wrong = error.get(tried.precision, 0.0) * np.random.default_rng(1).normal(size=exact.shape)
        return exact + wrong, seconds.get(tried.precision, 1.0)

    monkeypatch.setattr(tower_embedder, "_timed", timed)
    assert fastest_precision(embedder, np.zeros((4, 4, 4)), stride=4).precision == taken


def test_contrast_does_not_matter(embedder: TowerEmbedder) -> None:
    volume = scene((16 + 2 * embedder.halo + 8, 16 + 2 * embedder.halo, 16 + 2 * embedder.halo + 4))
    assert np.abs(embedder.embed_dense(7.3 * volume, stride=4) - embedder.embed_dense(volume, stride=4)).max() < 1e-4


def test_empty_windows_give_zeros_even_beside_full_ones(embedder: TowerEmbedder) -> None:
    halo = embedder.halo
    volume = scene((16 + 2 * halo + 40, 16 + 2 * halo, 16 + 2 * halo))
    volume[halo + 12 :] = 0
    vectors = embedder.embed_dense(volume, stride=4)[:, 0, 0]
    lengths = np.linalg.norm(vectors, axis=1)
    assert lengths[:3] == pytest.approx(np.ones(3), abs=1e-5)
    assert (vectors[3:] == 0).all()
    assert (embedder.embed(np.zeros((2, 16, 16, 16), np.float32)) == 0).all()


@pytest.mark.parametrize("shape", [(31, 32, 32), (32, 33, 36), (32, 32)])
def test_a_block_that_windows_do_not_fill_is_refused(embedder: TowerEmbedder, shape: tuple[int, ...]) -> None:
    with pytest.raises(GeometryError, match="halo"):
        embedder.embed_dense(np.zeros(shape, np.float32), stride=4)

"""The untrained embedder: invariance, equality of its two ways, and its contract (law L9)."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from cryoscan.embedding import Embedder
from cryoscan.errors import GeometryError
from cryoscan.models import InvariantEmbedder
from cryoscan.simulate.density import gaussian_sum


def walk(seed: int, radius: float = 22.0) -> np.ndarray:
    """A random chain of 500 atoms within `radius` Å of 0."""
    steps = np.random.default_rng(seed).normal(size=(500, 3)) * 1.6
    places = np.cumsum(steps, axis=0)
    places -= places.mean(axis=0)
    return places * radius / np.linalg.norm(places, axis=1).max()


def window(places: np.ndarray, resolution: float = 6.0) -> np.ndarray:
    sigma = 0.225 * resolution / 2.5
    return gaussian_sum(places / 2.5 + 15.5, np.full(len(places), 6.0), sigma=sigma, shape=(32, 32, 32)).astype(
        np.float32
    )


@pytest.fixture(scope="module")
def embedder() -> InvariantEmbedder:
    return InvariantEmbedder()


@pytest.mark.parametrize("resolution", [6.0, 10.0])
def test_random_rotations_and_shifts_do_not_change_the_embedding(
    embedder: InvariantEmbedder, resolution: float
) -> None:
    rng = np.random.default_rng(5)
    turns = Rotation.random(16, rng=rng).as_matrix()
    turned = embedder.embed(np.stack([window(walk(0) @ t.T + rng.uniform(-4, 4, 3), resolution) for t in turns]))
    others = embedder.embed(np.stack([window(walk(seed), resolution) for seed in range(1, 9)]))
    assert (turned @ turned.T).min() > 0.985
    assert (turned @ others.T).max() < 0.95


def test_a_mirror_image_is_not_told_from_its_object(
    embedder: InvariantEmbedder,
) -> None:
    # the power spectrum is invariant under reflection as well: handedness is not in it
    a, b = embedder.embed(np.stack([window(walk(0)), window(walk(0) * (-1, 1, 1))]))
    assert a @ b > 0.99


def test_contract(embedder: InvariantEmbedder) -> None:
    assert isinstance(embedder, Embedder)
    assert (embedder.dim, embedder.window, embedder.voxel_size) == (702, 32, 2.5)
    windows = np.stack([window(walk(seed)) for seed in range(20)])
    before = windows.copy()
    vectors = embedder.embed(windows)
    assert vectors.shape == (20, 702)
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(20), abs=1e-5)
    assert np.array_equal(vectors, embedder.embed(windows))
    assert np.abs(vectors[7] - embedder.embed(windows[7:8])[0]).max() < 1e-5
    assert np.array_equal(windows, before)
    assert embedder.embed(np.zeros((0, 32, 32, 32))).shape == (0, 702)


def test_scale_of_the_density_does_not_matter(embedder: InvariantEmbedder) -> None:
    a, b = embedder.embed(np.stack([window(walk(3)), 1e-4 * window(walk(3))]))
    assert np.abs(a - b).max() < 1e-4


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_an_empty_window_gives_zeros(embedder: InvariantEmbedder, value: float) -> None:
    vectors = InvariantEmbedder(contour=0.0).embed(np.zeros((1, 32, 32, 32)))
    assert (vectors == 0).all()
    assert np.isfinite(embedder.embed(np.full((1, 32, 32, 32), value, np.float32))).all()


@pytest.mark.parametrize("stride", [1, 3, 4])
def test_dense_is_windowed(embedder: InvariantEmbedder, stride: int) -> None:
    rng = np.random.default_rng(2)
    shape = tuple(32 + stride * n for n in (1, 2, 3))
    block = rng.normal(size=shape).astype(np.float32)
    dense = embedder.embed_dense(block, stride=stride)
    assert dense.shape == (2, 3, 4, 702)
    for place in np.ndindex(2, 3, 4):
        cut = tuple(slice(stride * i, stride * i + 32) for i in place)
        assert np.abs(dense[place] - embedder.embed(block[cut][None])[0]).max() < 1e-5


@pytest.mark.parametrize("shape", [(31, 32, 32), (33, 32, 34)])
def test_a_block_that_windows_do_not_fill_is_refused(embedder: InvariantEmbedder, shape: tuple[int, int, int]) -> None:
    with pytest.raises(GeometryError, match="read_box"):
        embedder.embed_dense(np.zeros(shape, np.float32), stride=4)


def test_windows_of_another_size_are_refused_with_the_right_one(embedder: InvariantEmbedder) -> None:
    with pytest.raises(GeometryError, match=r"32³.*|2\.5 Å"):
        embedder.embed(np.zeros((2, 30, 32, 32), np.float32))


def test_the_fingerprint_follows_the_voxel_size_and_not_the_contour() -> None:
    assert InvariantEmbedder().fingerprint == InvariantEmbedder(contour=0.0).fingerprint
    assert InvariantEmbedder().fingerprint != InvariantEmbedder(5.0).fingerprint

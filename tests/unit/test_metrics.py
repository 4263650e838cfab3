"""Numbers to judge by, against analytic cases and brute force."""

from itertools import permutations

import numpy as np
import pytest
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from cryoscan import metrics
from cryoscan.errors import GeometryError
from cryoscan.filters import lowpass_gaussian

SHAPES = [(24, 24, 24), (11, 17, 23), (16, 9, 20), (5, 32, 7)]


# ---------------------------------------------------------------- Fourier shell correlation


@pytest.mark.parametrize("shape", SHAPES)
def test_fsc_of_a_map_with_itself_is_one_in_every_shell(rng, shape):
    data = rng.normal(size=shape)
    frequencies, correlation = metrics.fsc(data, 3 * data + 7, voxel_size=1.37)
    np.testing.assert_allclose(correlation, 1, atol=1e-12)
    assert len(frequencies) == max(shape) // 2
    assert frequencies[-1] <= 0.5 / 1.37 + 1e-12


@pytest.mark.parametrize("shape", SHAPES)
def test_fsc_sees_every_fourier_coefficient_once(rng, shape):
    """Against a plain sum over the full transform, mirror images and all."""
    a, b = rng.normal(size=(2, *shape))
    voxel_size = 0.8
    full_a, full_b = np.fft.fftn(a), np.fft.fftn(b)
    grid = np.meshgrid(*(np.fft.fftfreq(n, voxel_size) for n in shape), indexing="ij")
    shell = np.rint(np.sqrt(sum(g**2 for g in grid)) * max(shape) * voxel_size).astype(int)
    frequencies, correlation = metrics.fsc(a, b, voxel_size=voxel_size)
    for i, frequency in enumerate(frequencies, start=1):
        inside = shell == i
        power = np.sum(np.abs(full_a[inside]) ** 2) * np.sum(np.abs(full_b[inside]) ** 2)
        assert correlation[i - 1] == pytest.approx(np.sum(full_a[inside] * full_b[inside].conj()).real / np.sqrt(power))
        assert frequency == pytest.approx(i / (max(shape) * voxel_size))


def test_fsc_does_not_mind_a_filter_of_one_map(rng):
    data = rng.normal(size=(20, 22, 26)).astype(np.float32)
    _, correlation = metrics.fsc(data, lowpass_gaussian(data, voxel_size=1.5, sigma=1.0), voxel_size=1.5)
    assert correlation.min() > 0.98


def test_fsc_of_independent_noise_is_near_zero(rng):
    _, correlation = metrics.fsc(*rng.normal(size=(2, 33, 40, 37)), voxel_size=2)
    assert np.abs(correlation[5:]).max() < 0.15
    assert abs(correlation[5:].mean()) < 0.02


def test_fsc_of_signal_plus_noise_is_the_share_of_signal(rng):
    """SNR of 1 in both halves: FSC = SNR / (1 + SNR) = 0.5."""
    signal, noise_a, noise_b = rng.normal(size=(3, 40, 41, 42))
    _, correlation = metrics.fsc(signal + noise_a, signal + noise_b, voxel_size=1)
    assert correlation[5:].mean() == pytest.approx(0.5, abs=0.02)


def test_fsc_of_an_inverted_and_of_an_empty_map(rng):
    data = rng.normal(size=(9, 10, 11))
    np.testing.assert_allclose(metrics.fsc(data, -data, voxel_size=1)[1], -1)
    assert not metrics.fsc(data, np.zeros_like(data), voxel_size=1)[1].any()


def test_resolution_is_where_two_filtered_maps_part(rng):
    """Noise whose power overtakes the signal's at 1/8 Å: FSC 0.5 there."""
    shape, voxel_size, where = (48, 49, 50), 2.0, 1 / 8
    sigma = np.sqrt(np.log(2)) / (2 * np.pi * where) * np.sqrt(2)
    signal = lowpass_gaussian(rng.normal(size=shape), voxel_size=voxel_size, sigma=sigma)
    # Signal power exp(-4 pi² sigma² s²) is 1/4 at 1/8 Å; noise of power 1/4 makes SNR 1.
    halves = [signal + rng.normal(size=shape) / 2 for _ in range(2)]
    frequencies, correlation = metrics.fsc(*halves, voxel_size=voxel_size)
    assert metrics.resolution_at(frequencies, correlation) == pytest.approx(8, rel=0.05)


def test_resolution_interpolates_and_knows_its_limits():
    frequencies = np.array([0.1, 0.2, 0.3])
    assert metrics.resolution_at(frequencies, np.array([1.0, 0.75, 0.25])) == pytest.approx(4)
    assert metrics.resolution_at(frequencies, np.array([1.0, 0.75, 0.25]), 0.143) == pytest.approx(1 / 0.3)
    assert metrics.resolution_at(frequencies, np.array([0.2, 0.1, 0.9])) == float("inf")


# ---------------------------------------------------------------- real-space correlation


def test_box_correlation_is_pearson(rng):
    a, b = rng.normal(size=(2, 7, 8, 9)).astype(np.float32)
    assert metrics.cc_box(a, b) == pytest.approx(np.corrcoef(a.ravel(), b.ravel())[0, 1])
    assert metrics.cc_box(a, -2 * a + 5) == pytest.approx(-1)


def test_mask_correlation_ignores_what_lies_outside(rng):
    a, b = rng.normal(size=(2, 7, 8, 9))
    mask = rng.random((7, 8, 9)) < 0.3
    disturbed = np.where(mask, a, 1000)
    assert metrics.cc_mask(disturbed, b, mask) == pytest.approx(np.corrcoef(a[mask], b[mask])[0, 1])


def test_volume_looks_at_the_models_highest_voxels_and_peaks_at_both():
    density = np.array([9.0, 8, 1, 2, 0, 0]).reshape(1, 2, 3)
    model = np.array([0.0, 7, 1, 6, 2, 0]).reshape(1, 2, 3)
    mask = np.zeros((1, 2, 3), bool)
    mask[0, 0, :2] = True  # two voxels
    assert metrics.cc_volume(density, model, mask) == pytest.approx(np.corrcoef([8, 2], [7, 6])[0, 1])
    assert metrics.cc_peaks(density, model, mask) == pytest.approx(np.corrcoef([9, 8, 2], [0, 7, 6])[0, 1])


def test_unexplained_density_lowers_peaks_but_not_mask():
    grid = np.indices((24, 25, 26)).transpose(1, 2, 3, 0)
    model = np.exp(-np.sum((grid - [12, 12, 7]) ** 2, axis=-1) / 8)
    density = model + np.exp(-np.sum((grid - [12, 12, 19]) ** 2, axis=-1) / 8)
    mask = metrics.mask_around(np.array([[12.0, 12, 7]]), radius=4, shape=model.shape, voxel_size=1)
    assert metrics.cc_mask(density, model, mask) > 0.999
    assert metrics.cc_peaks(density, model, mask) < 0.5


def test_constant_map_has_no_correlation(rng):
    data = rng.normal(size=(4, 5, 6))
    assert np.isnan(metrics.cc_box(data, np.ones_like(data)))
    assert np.isnan(metrics.cc_mask(data, data, np.zeros(data.shape, bool)))


@pytest.mark.parametrize("measure", [metrics.cc_box, metrics.iou, lambda a, b: metrics.fsc(a, b, voxel_size=1)])
def test_maps_on_different_grids_are_refused(measure):
    with pytest.raises(GeometryError, match="Resample one"):
        measure(np.zeros((4, 5, 6)), np.zeros((4, 6, 5)))


def test_mask_holds_the_voxels_near_atoms(rng):
    shape, voxel_size, origin = (11, 14, 9), 1.7, (-4.0, 20.5, 3.0)
    positions = rng.uniform(-3, 22, size=(6, 3)) + origin  # some outside the box
    centres = np.indices(shape).transpose(1, 2, 3, 0) * voxel_size + origin
    expected = np.min(np.linalg.norm(centres[..., None, :] - positions, axis=-1), axis=-1) <= 3.1
    mask = metrics.mask_around(positions, radius=3.1, shape=shape, voxel_size=voxel_size, origin=origin)
    np.testing.assert_array_equal(mask, expected)
    assert 0 < mask.sum() < mask.size


# ---------------------------------------------------------------- retrieval


def test_top_k_and_reciprocal_rank():
    ranks = [1, 3, 10, np.inf]
    assert [metrics.top_k(ranks, k) for k in (1, 3, 5, 10)] == [0.25, 0.5, 0.5, 0.75]
    assert metrics.mean_reciprocal_rank(ranks) == pytest.approx((1 + 1 / 3 + 1 / 10) / 4)
    assert np.isnan(metrics.top_k([], 1))


def test_average_precision_is_the_area_summed_entry_by_entry(rng):
    for _ in range(20):
        relevant = rng.random(30) < 0.2
        precisions = [relevant[: i + 1].mean() for i in range(30) if relevant[i]]
        assert metrics.average_precision(relevant) == pytest.approx(np.mean(precisions) if precisions else 0)
    assert metrics.average_precision([1, 1, 0, 0]) == 1
    assert metrics.average_precision([0, 0, 0, 1]) == 0.25
    assert metrics.average_precision([0, 0]) == 0


def test_auroc_counts_pairs_with_ties_as_half(rng):
    for levels in (3, 1000):
        scores = rng.integers(levels, size=60)
        positives = rng.random(60) < 0.3
        pairs = [(p > n) + (p == n) / 2 for p in scores[positives] for n in scores[~positives]]
        assert metrics.auroc(scores, positives) == pytest.approx(np.mean(pairs))
    assert metrics.auroc([0.1, 0.9], [False, True]) == 1
    assert np.isnan(metrics.auroc([0.1, 0.9], [True, True]))


def test_wilson_interval_solves_its_defining_equation():
    """The ends p satisfy |share − p| = z sqrt(p (1 − p) / n)."""
    for end in metrics.wilson_interval(61, 148):
        assert abs(61 / 148 - end) == pytest.approx(1.959964 * np.sqrt(end * (1 - end) / 148), rel=1e-6)
    assert metrics.wilson_interval(0, 10)[0] == pytest.approx(0, abs=1e-12)
    assert metrics.wilson_interval(10, 10)[1] == pytest.approx(1)
    assert metrics.wilson_interval(0, 0) == (0, 1)


# ---------------------------------------------------------------- detection


def best_matching(found: np.ndarray, planted: np.ndarray, limit: float) -> tuple[int, float]:
    """Most pairs, then least total distance, by trying everything."""
    swapped = len(found) > len(planted)
    few, many = (planted, found) if swapped else (found, planted)
    results = []
    for order in permutations(range(len(many)), len(few)):
        distances = [d for d in np.linalg.norm(few - many[list(order)], axis=1) if d <= limit]
        results.append((-len(distances), sum(distances)))
    pairs, total = min(results)
    return -pairs, total


@pytest.mark.parametrize("sizes", [(4, 6), (6, 4), (5, 5), (1, 1)])
def test_matching_finds_most_pairs_then_the_closest(rng, sizes):
    for _ in range(15):
        found, planted = (rng.uniform(0, 30, size=(n, 3)) for n in sizes)
        pairs = metrics.match_points(found, planted, 14.0)
        distances = np.linalg.norm(found[pairs[:, 0]] - planted[pairs[:, 1]], axis=1)
        number, total = best_matching(found, planted, 14.0)
        assert len(pairs) == number
        assert distances.sum() == pytest.approx(total)
        assert len(set(pairs[:, 0])) == len(set(pairs[:, 1])) == number


def test_two_finds_at_one_place_count_once():
    planted = np.array([[0.0, 0, 0]])
    found = np.array([[0.0, 0, 3], [0.0, 0, 1], [50.0, 0, 0]])
    assert metrics.match_points(found, planted, 5).tolist() == [[1, 0]]


@pytest.mark.parametrize("sizes", [(0, 3), (3, 0), (0, 0)])
def test_nothing_matches_nothing(sizes):
    pairs = metrics.match_points(np.zeros((sizes[0], 3)), np.zeros((sizes[1], 3)), 5)
    assert pairs.shape == (0, 2)


def test_matching_of_many_scattered_points_is_quick(rng):
    planted = rng.uniform(0, 5000, size=(5000, 3))
    found = planted[rng.permutation(5000)[:4000]] + rng.normal(size=(4000, 3))
    assert len(metrics.match_points(found, planted, 10)) == 4000


def test_precision_recall_and_f1():
    assert metrics.precision_recall_f1(8, 10, 6) == pytest.approx((0.75, 0.6, 2 * 0.75 * 0.6 / 1.35))
    assert metrics.precision_recall_f1(0, 10, 0) == (0, 0, 0)
    assert metrics.precision_recall_f1(0, 0, 0) == (0, 0, 0)


def test_intersection_over_union():
    a, b = np.zeros((2, 3, 4, 5), bool)
    assert metrics.iou(a, b) == 1
    a[0], b[0, :2] = True, True
    assert metrics.iou(a, b) == pytest.approx(10 / 20)
    assert metrics.iou(a, ~a) == 0


def test_inputs_are_left_alone(rng):
    a, b = rng.normal(size=(2, 6, 7, 8))
    before = a.copy(), b.copy()
    metrics.fsc(a, b, voxel_size=1)
    metrics.cc_peaks(a, b, a > 0)
    np.testing.assert_array_equal((a, b), before)


# ---------------------------------------------------------------- ridges


def wire(points, shape=(40, 44, 48), width=2.0):
    """Density around a line of points."""
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1).reshape(-1, 3)
    distance, _ = cKDTree(points).query(grid)
    return np.exp(-0.5 * (distance / width) ** 2).reshape(shape)


def line():
    t = np.linspace(0, 1, 400)[:, None]
    return np.array([6.2, 8.7, 5.1]) + t * np.array([27.0, 26.0, 36.0])


def test_ridges_run_along_a_line_of_density_and_nowhere_else():
    points = line()
    found = np.argwhere(metrics.ridges(wire(points)))
    near, place = cKDTree(points).query(found)
    beside = (place > 20) & (place < len(points) - 20)  # around an end density falls off to all sides
    assert near[beside].max() < 1.5
    covered, _ = cKDTree(found).query(points[30:-30])
    assert covered.max() < 1.5
    assert not metrics.ridges(np.zeros((8, 8, 8))).any()


def test_coverage_counts_atoms_near_ridges_and_is_not_bought_with_many():
    points = line()
    on = points[20:-20:8]
    away = on + np.array([0, 0, 2.5])
    place = {"voxel_size": 1.3, "origin": (5.0, -7.0, 11.0)}

    def covered(data, atoms):
        return metrics.trace_coverage(data, atoms * 1.3 + np.array(place["origin"]), **place)

    assert covered(wire(points), on) == (1.0, 1.0)
    two, three = covered(wire(points), away)
    assert two < 0.5 < 0.9 < three
    rng = np.random.default_rng(0)
    scattered = np.random.default_rng(1).uniform(4, 36, size=(60, 3))
    noise = lowpass_gaussian(rng.normal(size=(40, 44, 48)).astype(np.float32), voxel_size=1.0, sigma=1.0)
    assert covered(noise, scattered)[0] < 0.5
    assert covered(np.zeros((40, 44, 48)), on) == (0.0, 0.0)


# ---------------------------------------------------------------- folds


def a_walk(n=80):
    """A trace with no symmetry, positions in Å."""
    return np.random.default_rng(3).normal(0, 2.2, (n, 3)).cumsum(axis=0) + np.array([40.0, -7.5, 300.0])


def test_the_same_fold_scores_what_is_paired_wherever_it_lies():
    fixed = a_walk()
    turn = Rotation.from_euler("zyx", (20, -75, 140), degrees=True).as_matrix()
    moving = fixed @ turn.T + (5.0, 70.0, -3.0)
    score, rotation, offset = metrics.tm_score(moving, fixed, 100)
    assert score == pytest.approx(0.8)
    np.testing.assert_allclose(moving @ rotation.T + offset, fixed, atol=1e-6)


def test_the_formula_of_zhang_and_skolnick():
    """Pairs of atoms pushed apart evenly, so that no superposition does better than none."""
    fixed = a_walk(400)
    push = np.random.default_rng(0).normal(size=fixed.shape)
    push *= 3.0 / np.linalg.norm(push, axis=1, keepdims=True)
    score, *_ = metrics.tm_score(fixed + push, fixed, 400)
    d0 = 1.24 * 385 ** (1 / 3) - 1.8
    assert score == pytest.approx(1 / (1 + (3.0 / d0) ** 2), abs=0.01)


def test_a_half_that_is_turned_away_does_not_hide_the_other():
    fixed = a_walk()
    moving = fixed.copy()
    moving[50:] = (fixed[50:] - fixed[50]) @ Rotation.from_euler("z", 120, degrees=True).as_matrix().T + fixed[50] + 30
    score, rotation, offset = metrics.tm_score(moving, fixed, 80)
    assert 50 / 80 <= score < 0.75
    np.testing.assert_allclose((moving @ rotation.T + offset)[:50], fixed[:50], atol=0.5)


def test_strangers_score_little_and_too_few_pairs_are_refused():
    other = np.random.default_rng(11).normal(0, 2.2, (80, 3)).cumsum(axis=0)
    assert metrics.tm_score(other, a_walk(), 80)[0] < 0.4
    with pytest.raises(GeometryError, match="at least 4 pairs"):
        metrics.tm_score(other[:3], a_walk()[:3], 80)

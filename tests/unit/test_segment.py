"""Thresholds, watershed, grouping trees and regions on maps with known content."""

import json
from itertools import combinations

import numpy as np
import pytest
from scipy import ndimage

from cryoscan import LabelClass, LabelMap, Volume
from cryoscan.errors import GeometryError, MismatchError
from cryoscan.io import open_volume
from cryoscan.segment import (
    GroupingTree,
    best_disjoint,
    check_same_grid,
    component_at,
    contour_level,
    group_regions,
    region_from_box,
    region_from_labels,
    region_from_sphere,
    region_from_structure,
    segment_map,
    soft_mask,
    watershed,
)
from cryoscan.units import AVERAGE_RESIDUE_MASS_KDA

DALTON_PER_CUBIC_ANGSTROM = 0.81

# Maps whose whole content is modelled, or whose box holds nothing else of note.
WHOLE_MAPS = (
    "emd_1044_1oed_box",
    "emd_1080_groel_fitted",
    "emd_1461_vp6_box",
    "emd_1883_rnapII",
    "emd_2566_3j6b_chain9",
    "emd_3240_5fn5_chainC",
    "emd_4118_5ly6_box",
    "emd_5185_3j06_box",
    "emd_5830_3j63_chainA",
    "emd_6187_3j8x_chainA",
    "emd_6187_3j8x_chainB",
    "emd_6272_3j9s_chainA_1A",
    "emd_6770_5xsy_chainB",
)


def blobs(shape: tuple[int, int, int], centres: list[tuple[float, float, float]], sigma: float = 2.0) -> np.ndarray:
    grid = np.moveaxis(np.indices(shape), 0, -1)
    total = sum(np.exp(-((grid - np.array(centre)) ** 2).sum(axis=-1) / (2 * sigma**2)) for centre in centres)
    return np.asarray(total, np.float32)


@pytest.fixture
def two_pairs() -> np.ndarray:
    """Two pairs of blobs: within a pair 6 voxels apart, between pairs 22."""
    return blobs((17, 23, 51), [(8, 11, 10), (8, 11, 16), (8, 11, 38), (8, 11, 44)])


# ---------------------------------------------------------------- contour level


@pytest.mark.parametrize("name", WHOLE_MAPS)
def test_contour_encloses_a_plausible_volume_of_real_maps(name, data_folder):
    volume = open_volume(data_folder / "maps" / f"{name}.mrc.gz")
    residues = json.loads((data_folder / "maps" / "maps.json").read_text())[name]["n_res"]
    expected = residues * AVERAGE_RESIDUE_MASS_KDA * 1000 / DALTON_PER_CUBIC_ANGSTROM
    data = volume.load()
    enclosed = (data > contour_level(data)).sum() * volume.voxel_size**3
    assert 0.4 < enclosed / expected < 1.6


def test_contour_follows_scale_and_offset_of_the_map(two_pairs, rng):
    data = two_pairs + rng.normal(scale=0.03, size=two_pairs.shape).astype(np.float32)
    plain = data > contour_level(data)
    moved = 250 * data + 1000
    changed = plain ^ (moved > contour_level(moved))
    assert changed.sum() < 0.02 * plain.sum()


def test_padding_with_zeros_leaves_the_contour_where_it_was(two_pairs):
    padded = np.pad(two_pairs, 20)
    assert contour_level(padded) == pytest.approx(contour_level(two_pairs), rel=0.01)


def test_contour_lies_above_the_noise_of_the_solvent(two_pairs, rng):
    noise = rng.normal(scale=0.1, size=(40, 60, 70)).astype(np.float32)
    noise[10:27, 20:43, 10:61] += two_pairs
    assert contour_level(noise) > 0.27  # three sigma are 0.3


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_empty_or_broken_maps_have_no_contour(value):
    with pytest.raises(GeometryError, match=r"(give the threshold yourself|Mend the map)"):
        contour_level(np.full((5, 6, 7), value, np.float32))


# ---------------------------------------------------------------- watershed


def test_every_maximum_gets_one_region_and_the_threshold_is_respected(two_pairs):
    labels = watershed(two_pairs, threshold=0.3)
    assert labels.dtype == np.int32
    assert labels.max() == 4
    assert np.array_equal(labels > 0, two_pairs > 0.3)
    assert [labels[8, 11, x] for x in (10, 16, 38, 44)] == [1, 2, 3, 4]


def test_watershed_gives_the_same_labels_twice_and_leaves_its_input_alone(rng):
    data = ndimage.gaussian_filter(rng.normal(size=(21, 26, 31)), 1.5).astype(np.float32)
    before = data.copy()
    assert np.array_equal(watershed(data, threshold=0.0), watershed(data, threshold=0.0))
    assert np.array_equal(data, before)


# ---------------------------------------------------------------- grouping


def test_near_maxima_merge_before_far_ones(two_pairs):
    tree = segment_map(two_pairs, threshold=0.1, step=2.0, steps=5)
    groups = [len(set(level[1:])) for level in tree.levels]
    assert groups[0] == 4
    assert 2 in groups
    pairs = tree.levels[groups.index(2)]
    assert pairs[1] == pairs[2] != pairs[3] == pairs[4]


def test_nodes_of_a_level_partition_the_density(rng):
    data = ndimage.gaussian_filter(rng.normal(size=(31, 27, 35)), 1.2).astype(np.float32)
    tree = segment_map(data, threshold=0.05, step=1.0, steps=4)
    assert tree.n_nodes > tree.leaves.max()
    for level in range(len(tree.levels)):
        nodes = tree.labels_at(level)
        assert np.array_equal(nodes > 0, data > 0.05)
        assert np.array_equal(
            np.bincount(nodes.ravel(), minlength=tree.n_nodes + 1)[1:][np.unique(nodes)[1:] - 1],
            tree.counts[np.unique(nodes)[1:]],
        )


def test_a_node_is_the_union_of_its_children(rng):
    data = ndimage.gaussian_filter(rng.normal(size=(31, 27, 35)), 1.2).astype(np.float32)
    tree = segment_map(data, threshold=0.05, steps=3)
    merged = [node for node in range(1, tree.n_nodes + 1) if tree.children(node)]
    assert merged
    for node in merged[:20]:
        parts = [tree.node_mask(child) for child in tree.children(node)]
        assert len(parts) >= 2
        assert np.array_equal(np.sum(parts, axis=0), tree.node_mask(node).astype(int))
        assert tree.node_mask(node).sum() == tree.counts[node]


def test_regions_climb_to_the_maximum_of_the_smoothed_map(two_pairs):
    """Merging at level k needs the maxima of the Gaussian of sigma k × step to coincide, nothing less."""
    labels = watershed(two_pairs, threshold=0.1)
    for sigma in (1.0, 2.0, 3.0):
        tree = group_regions(two_pairs, labels, step=sigma, steps=1)
        smooth = ndimage.gaussian_filter(two_pairs, sigma, mode="nearest")
        peaks, _ = ndimage.label(smooth == ndimage.maximum_filter(smooth, 3))
        tops = {int(peaks[8, 11, x]) for x in range(51)} - {0}
        assert len(set(tree.levels[1][1:])) == len(tops)


@pytest.mark.parametrize(("step", "steps"), [(0.0, 4), (-1.0, 4), (1.0, -1), (np.nan, 1)])
def test_impossible_steps_are_refused(two_pairs, step, steps):
    with pytest.raises(GeometryError, match="1 voxel and 4 steps"):
        segment_map(two_pairs, threshold=0.1, step=step, steps=steps)


def test_a_map_below_its_threshold_makes_an_empty_tree(two_pairs):
    tree = segment_map(two_pairs, threshold=99.0)
    assert tree.n_nodes == 0
    assert best_disjoint(tree, {}) == []
    with pytest.raises(GeometryError, match="background"):
        tree.node_mask(0)


# ---------------------------------------------------------------- best cut


def small_tree() -> GroupingTree:
    """Leaves 1–5; 6 = 1+2, 7 = 3+4, 8 = 6+7; 5 stays alone."""
    leaves = np.repeat(np.arange(6, dtype=np.int32), 3).reshape(3, 3, 2)
    levels = np.array([[0, 1, 2, 3, 4, 5], [0, 6, 6, 7, 7, 5], [0, 8, 8, 8, 8, 5]])
    return GroupingTree(leaves, levels, np.array([0, 6, 6, 7, 7, 0, 8, 8, 0]), np.array([0, 3, 3, 3, 3, 3, 6, 6, 12]))


def test_best_disjoint_beats_every_other_choice(rng):
    tree = small_tree()
    masks = {node: tree.node_mask(node) for node in range(1, 9)}
    for _ in range(50):
        scores = {node: float(rng.normal()) for node in range(1, 9)}
        chosen = best_disjoint(tree, scores)
        assert not any((masks[a] & masks[b]).any() for a, b in combinations(chosen, 2))
        best = 0.0
        for size in range(1, 6):
            for nodes in combinations(range(1, 9), size):
                if not any((masks[a] & masks[b]).any() for a, b in combinations(nodes, 2)):
                    best = max(best, sum(scores[node] for node in nodes))
        assert sum(scores[node] for node in chosen) == pytest.approx(best)


def test_of_equal_scores_the_larger_node_is_taken():
    assert best_disjoint(small_tree(), {1: 0.3, 2: 0.2, 6: 0.5}) == [6]
    assert best_disjoint(small_tree(), {1: 0.1, 2: 0.2, 6: 0.1 + 0.2}) == [6]


def test_nodes_without_a_positive_score_are_never_chosen():
    assert best_disjoint(small_tree(), {8: -1.0, 7: 0.0, 3: 0.4, 5: 0.6}) == [5, 3]


def test_chosen_nodes_become_labels_in_their_order():
    labels = small_tree().labels_of([5, 6])
    assert np.array_equal(labels.ravel(), np.repeat([0, 2, 2, 0, 0, 1], 3))


# ---------------------------------------------------------------- regions


def test_sphere_lies_where_its_angstroms_say(ugly_volume):
    centre = ugly_volume.to_position([4, 9, 15])
    mask = region_from_sphere(ugly_volume, tuple(centre), radius=3.0)
    distance = np.linalg.norm(ugly_volume.to_position(np.argwhere(np.ones(ugly_volume.shape))) - centre, axis=1)
    assert np.array_equal(mask.ravel(), distance <= 3.0)


def test_region_of_a_structure_is_every_voxel_near_an_atom(ugly_volume, rng):
    positions = ugly_volume.to_position(rng.uniform(-2, [12, 18, 24], size=(300, 3)))
    mask = region_from_structure(ugly_volume, positions, radius=2.2)
    voxels = ugly_volume.to_position(np.argwhere(np.ones(ugly_volume.shape)))
    nearest = np.linalg.norm(voxels[:, None] - positions[None], axis=2).min(axis=1)
    assert np.array_equal(mask.ravel(), nearest <= 2.2)
    assert 0 < mask.mean() < 1


def test_regions_beside_the_map_are_refused_with_both_places(ugly_volume):
    with pytest.raises(GeometryError, match="same coordinate system"):
        region_from_structure(ugly_volume, np.zeros((5, 3)), radius=3.0)
    with pytest.raises(GeometryError, match=r"407\.12"):
        region_from_sphere(ugly_volume, (0.0, 0.0, 0.0), radius=3.0)


def test_box_must_lie_inside(ugly_volume):
    mask = region_from_box(ugly_volume, (slice(2, 5), slice(0, 17), slice(20, 23)))
    assert mask.sum() == 3 * 17 * 3
    assert mask[2:5, :, 20:].all()
    with pytest.raises(GeometryError, match="z0:z1,y0:y1,x0:x1"):
        region_from_box(ugly_volume, (slice(2, 12), slice(0, 17), slice(20, 23)))


def test_component_holds_its_seed_and_connects_through_corners():
    data = np.zeros((4, 5, 6))
    data[0, 0, 0] = data[1, 1, 1] = data[3, 4, 5] = 1
    mask = component_at(data, threshold=0.5, index=(0, 0, 0))
    assert mask[1, 1, 1]
    assert mask.sum() == 2
    with pytest.raises(GeometryError, match="lower the threshold"):
        component_at(data, threshold=0.5, index=(2, 2, 2))
    with pytest.raises(GeometryError, match="inside the map"):
        component_at(data, threshold=0.5, index=(0, 0, -1))


def test_soft_edge_is_one_inside_half_at_half_width_and_zero_beyond():
    mask = np.zeros((3, 3, 21), bool)
    mask[:, :, :5] = True
    soft = soft_mask(mask, voxel_size=1.5, width=6.0)[1, 1]
    assert soft.dtype == np.float32
    assert (soft[:5] == 1).all()
    assert soft[6] == pytest.approx(0.5, abs=1e-6)  # 3 Å from the last voxel inside
    assert soft[8:].max() < 1e-6


def test_labels_of_another_map_are_refused(ugly_volume):
    labels = np.zeros(ugly_volume.shape, np.int16)
    labels[3:5, 4, 5] = 7
    label_map = LabelMap(Volume(labels, ugly_volume.voxel_size, ugly_volume.origin), {7: LabelClass("part")})
    assert region_from_labels(ugly_volume, label_map, 7).sum() == 2
    with pytest.raises(GeometryError, match="Labels present"):
        region_from_labels(ugly_volume, label_map, 8)
    with pytest.raises(MismatchError, match="origin"):
        region_from_labels(ugly_volume, LabelMap(Volume(labels, ugly_volume.voxel_size), {}), 7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"voxel_size": 1.37 * 1.02}, r"1\.37 Å; got 1\.397 Å"),
        ({"data": np.zeros((17, 11, 23))}, r"\(11, 17, 23\).*\(17, 11, 23\)"),
        ({"origin": (-31.5, 12.25 + 0.5 * 1.37, 407.125)}, r"12\.25.*12\.94"),
    ],
)
def test_grids_that_differ_are_named_with_numbers(ugly_volume, change, message):
    fields = {"data": ugly_volume.data, "voxel_size": ugly_volume.voxel_size, "origin": ugly_volume.origin}
    check_same_grid(ugly_volume, Volume(**fields))
    with pytest.raises(MismatchError, match=message):
        check_same_grid(ugly_volume, Volume(**(fields | change)))


def test_headers_that_round_are_the_same_grid(ugly_volume):
    check_same_grid(ugly_volume, Volume(ugly_volume.data, 1.3701, (-31.499, 12.2501, 407.12)))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_contour_is_found_in_finite_time_whatever_the_scale(sign: float) -> None:
    # float data whose closest values differ by 1e-9 once kept the search from ending
    rng = np.random.default_rng(0)
    data = np.zeros((61, 73, 80), np.float32)
    data[25:36, 30:42, 33:47] = 1.0
    data = ndimage.gaussian_filter(data, 3.0) + 0.02 * rng.normal(size=data.shape)
    for scale in (1e-6, 1.0, 1e6):
        level = contour_level(sign * scale * data)
        assert abs(level / scale) < 2.0

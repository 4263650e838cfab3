"""Numbers to judge by: how well maps agree, retrieval ranks types, and places found match places planted."""

import numpy as np
import numpy.typing as npt
import scipy.fft
from scipy.ndimage import gaussian_filter
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation
from scipy.special import ndtri
from scipy.stats import rankdata

from cryoscan.errors import GeometryError
from cryoscan.filters import frequency_grid
from cryoscan.units import Angstrom, Shape, Vector

_CA_STEP: Angstrom = 3.8  # between successive C-alpha atoms
_FRAGMENTS = (1, 2, 4)  # parts of the alignment, 1 / n long, from which superpositions are sought
_TURNS = 20
_ROUND = 0.2  # least curvature across the flat side of a ridge, in units of that across its sharp side

# ---------------------------------------------------------------- structures


def tm_score(moving: np.ndarray, fixed: np.ndarray, length: int) -> tuple[float, np.ndarray, np.ndarray]:
    """How alike two folds are whose residues are paired, and the superposition that shows it.

    The TM-score (Zhang & Skolnick 2004, Proteins 57, 702): unlike a root mean square distance it
    does not grow with the protein and forgives what is turned away. Above 0.5 folds are the
    same, about 0.17 is chance.

    Parameters
    ----------
    moving, fixed : float arrays, `n 3`
        Positions of paired C-alpha atoms in Å.
    length : int
        Residues of the protein that is judged by, paired or not.

    Returns
    -------
    score : float
        0 … 1.
    rotation : float array, `3 3`
    offset : float array, `3`
        ``rotation @ moving + offset`` lies on `fixed`. Found from fragments of the alignment, whose
        superposition is refined by what it lays close, as TM-score's authors do.

    Raises
    ------
    GeometryError
        If there are fewer than 4 pairs, or other numbers of positions.
    """
    if len(moving) != len(fixed) or len(moving) < 4:
        raise GeometryError(
            "expected at least 4 pairs of positions", got=f"{len(moving)} and {len(fixed)}", hint="Align them first."
        )
    scale = max(1.24 * np.cbrt(max(length - 15, 0)) - 1.8, 0.5)
    best = (-1.0, np.eye(3), np.zeros(3))
    for parts in _FRAGMENTS:
        size = max(len(moving) // parts, 4)
        for start in range(0, len(moving) - size + 1, max(1, size // 2)):
            near = (np.arange(len(moving)) >= start) & (np.arange(len(moving)) < start + size)
            for _ in range(_TURNS):
                middle, target = moving[near].mean(axis=0), fixed[near].mean(axis=0)
                rotation = Rotation.align_vectors(fixed[near] - target, moving[near] - middle)[0].as_matrix()
                offset = target - rotation @ middle
                apart = np.linalg.norm(moving @ rotation.T + offset - fixed, axis=1)
                score = float((1 / (1 + (apart / scale) ** 2)).sum() / max(length, 1))
                if score > best[0]:
                    best = score, rotation, offset
                closer = apart < max(scale, 4.0) + 1.0
                if closer.sum() < 4 or (closer == near).all():
                    break
                near = closer
    return best


# ---------------------------------------------------------------- maps


def fsc(a: np.ndarray, b: np.ndarray, *, voxel_size: Angstrom) -> tuple[np.ndarray, np.ndarray]:
    """Fourier shell correlation of two maps (Harauz & van Heel 1986, Optik 73, 146).

    Parameters
    ----------
    a, b : float arrays, `z y x`
        On the same grid; any shape.
    voxel_size : Angstrom
        Edge of a voxel.

    Returns
    -------
    frequencies : float array, `n`
        Centres of the shells in 1/Å, up to the Nyquist frequency; a shell is as wide as one
        Fourier step of the longest axis. Frequency 0 is left out.
    correlation : float array, `n`
        −1 … 1; 0 where one of the maps has no power at all.

    Raises
    ------
    GeometryError
        If the shapes differ.
    """
    _check_same_shape(a, b)
    shape = _shape(a)
    width = 1 / (max(shape) * voxel_size)
    shells = np.rint(frequency_grid(shape, voxel_size) / width).astype(np.int64).ravel()
    count = int(np.floor(0.5 / voxel_size / width + 1e-9)) + 1
    # rfftn leaves out the mirror images of all planes but x = 0 and (of even sizes) the last.
    mirrored = np.full(shape[2] // 2 + 1, 2.0)
    mirrored[0] = 1.0
    if shape[2] % 2 == 0:
        mirrored[-1] = 1.0
    transform_a, transform_b = (scipy.fft.rfftn(np.asarray(values, np.float64)) for values in (a, b))

    def shell_sums(values: np.ndarray) -> np.ndarray:
        return np.bincount(shells, (values * mirrored).ravel(), minlength=count)[1:count]

    cross = shell_sums((transform_a * transform_b.conj()).real)
    power = np.sqrt(shell_sums(np.abs(transform_a) ** 2)) * np.sqrt(shell_sums(np.abs(transform_b) ** 2))
    correlation = np.divide(cross, power, out=np.zeros(count - 1), where=power > 0)
    return np.arange(1, count) * width, np.clip(correlation, -1, 1)


def resolution_at(frequencies: np.ndarray, correlation: np.ndarray, threshold: float = 0.5) -> Angstrom:
    """Resolution in Å at which a shell correlation first falls below a threshold.

    Interpolated linearly in frequency. If it never falls, the resolution of the last shell;
    if it starts below, infinity.
    """
    below = np.flatnonzero(np.asarray(correlation) < threshold)
    if len(below) == 0:
        return float(1 / frequencies[-1])
    i = int(below[0])
    if i == 0:
        return float("inf")
    fraction = (correlation[i - 1] - threshold) / (correlation[i - 1] - correlation[i])
    return float(1 / (frequencies[i - 1] + fraction * (frequencies[i] - frequencies[i - 1])))


def cc_box(density: np.ndarray, model: np.ndarray) -> float:
    """Pearson correlation of a map and a model map over all voxels (Afonine et al. 2018, Acta Cryst. D74, 531).

    Not a number where one of them is constant, as in all four correlations.
    """
    _check_same_shape(density, model)
    return _pearson(np.asarray(density).ravel(), np.asarray(model).ravel())


def cc_mask(density: np.ndarray, model: np.ndarray, mask: np.ndarray) -> float:
    """Correlation over the voxels of a mask around the atoms, e.g. of `mask_around` (Afonine et al. 2018)."""
    _check_same_shape(density, model, mask)
    inside = np.asarray(mask, bool)
    return _pearson(np.asarray(density)[inside], np.asarray(model)[inside])


def cc_volume(density: np.ndarray, model: np.ndarray, mask: np.ndarray) -> float:
    """Correlation over the N highest voxels of the model map, N = voxels of the mask (Afonine et al. 2018)."""
    _check_same_shape(density, model, mask)
    return cc_mask(density, model, _highest(model, int(np.count_nonzero(mask))))


def cc_peaks(density: np.ndarray, model: np.ndarray, mask: np.ndarray) -> float:
    """Correlation over the N highest voxels of either map, N = voxels of the mask (Afonine et al. 2018).

    Density that the model does not explain counts, unlike in `cc_mask` and `cc_volume`.
    """
    _check_same_shape(density, model, mask)
    number = int(np.count_nonzero(mask))
    return cc_mask(density, model, _highest(density, number) | _highest(model, number))


def mask_around(
    positions: np.ndarray, *, radius: Angstrom, shape: Shape, voxel_size: Angstrom, origin: Vector = (0.0, 0.0, 0.0)
) -> np.ndarray:
    """Voxels whose centre lies within `radius` Å of an atom, `z y x` bool.

    Parameters
    ----------
    positions : float array, `n 3`
        z, y, x in Å.
    radius : Angstrom
        About the resolution of the map for `cc_mask`.
    shape : (z, y, x) of Voxels
        Size of the grid.
    voxel_size : Angstrom
        Edge of a voxel.
    origin : (z, y, x) in Å
        Centre of voxel (0, 0, 0).
    """
    reach = int(np.ceil(radius / voxel_size)) + 1
    offsets = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    mask = np.zeros(shape, bool)
    for part in np.array_split(np.asarray(positions, np.float64), len(positions) // 1024 + 1):
        places = (part - origin) / voxel_size
        voxels = np.rint(places).astype(np.int64)[:, None, :] + offsets
        near = np.sum((voxels - places[:, None, :]) ** 2, axis=-1) <= (radius / voxel_size) ** 2
        voxels = voxels[near & np.all((voxels >= 0) & (voxels < np.array(shape)), axis=-1)]
        mask[tuple(voxels.T)] = True
    return mask


# ---------------------------------------------------------------- traces


def ridges(data: np.ndarray, *, smoothing: float = 0.7) -> np.ndarray:
    """Voxels that a ridge of the density passes through, `z y x` bool.

    A ridge is a line along which density is highest across: in the plane of the two steepest
    directions of curvature, both downwards, the quadratic that fits the density has its
    maximum within half a voxel (Lindeberg 1998, Int. J. Comput. Vis. 30, 117; d = 1 in
    three dimensions). Only density above the mean by a standard deviation counts.

    Parameters
    ----------
    data : float array, `z y x`
    smoothing : float
        Width of the Gaussian whose derivatives are taken, voxels.
    """
    values = np.asarray(data, np.float32)
    dense = np.argwhere(values > values.mean() + values.std())
    result = np.zeros(values.shape, bool)
    if len(dense) == 0:
        return result
    at = tuple(dense.T)

    def derivative(*order: int) -> np.ndarray:
        return np.asarray(gaussian_filter(values, smoothing, order=order)[at], np.float64)

    slope = np.stack([derivative(1, 0, 0), derivative(0, 1, 0), derivative(0, 0, 1)], axis=1)
    zz, yy, xx = derivative(2, 0, 0), derivative(0, 2, 0), derivative(0, 0, 2)
    zy, zx, yx = derivative(1, 1, 0), derivative(1, 0, 1), derivative(0, 1, 1)
    curvature = np.stack([zz, zy, zx, zy, yy, yx, zx, yx, xx], axis=1).reshape(-1, 3, 3)
    steepness, directions = np.linalg.eigh(curvature)  # rising: the first two are the steepest downwards
    across = directions[:, :, :2]
    steps = -np.einsum("nc,nck->nk", slope, across) / np.minimum(steepness[:, :2], -1e-12)
    top = np.abs(np.einsum("nck,nk->nc", across, steps)).max(axis=1) <= 0.5
    # on the flank of a ridge density falls off to both sides in one direction only
    found = top & (steepness[:, 0] < 0) & (steepness[:, 1] < _ROUND * steepness[:, 0])
    result[tuple(dense[found].T)] = True
    return result


def trace_coverage(
    data: np.ndarray,
    trace: np.ndarray,
    *,
    voxel_size: Angstrom,
    origin: Vector,
    distances: tuple[Angstrom, ...] = (2.0, 3.0),
) -> tuple[float, ...]:
    """Fraction of the C-alpha atoms of a model that have a ridge of the density near by.

    Any map has as many ridges as one likes to see. Only so many of the densest ridge voxels
    count as a chain through all atoms would pass through.

    Parameters
    ----------
    data : float array, `z y x`
        Maps that are compared must be on the same grid.
    trace : float array, `n 3`
        C-alpha atoms, z, y, x in Å.
    voxel_size, origin
        Of the grid.
    distances : floats
        What near means, Å.
    """
    places = np.argwhere(ridges(data))
    number = int(np.ceil(len(trace) * _CA_STEP / voxel_size))
    order = np.argsort(-np.asarray(data)[tuple(places.T)], kind="stable")[:number]
    if len(order) == 0 or len(trace) == 0:
        return tuple(0.0 for _ in distances)
    nearest, _ = cKDTree(places[order] * voxel_size + np.asarray(origin)).query(trace)
    return tuple(float(np.mean(nearest <= distance)) for distance in distances)


# ---------------------------------------------------------------- retrieval


def top_k(ranks: npt.ArrayLike, k: int) -> float:
    """Fraction of queries whose true type is among the first `k`.

    Parameters
    ----------
    ranks : numbers, `n`
        Rank of the true type, 1 = best; infinity where it was not listed.
    k : int
        Length of the list looked at.
    """
    return _mean(np.asarray(ranks, np.float64) <= k)


def mean_reciprocal_rank(ranks: npt.ArrayLike) -> float:
    """Mean of 1 / rank; an infinite rank counts 0."""
    return _mean(1 / np.asarray(ranks, np.float64))


def average_precision(relevant_sorted: npt.ArrayLike) -> float:
    """Mean, over the relevant entries, of the precision at their rank.

    Parameters
    ----------
    relevant_sorted : bools, `n`
        Best-scored entry first.

    Returns
    -------
    float
        0 where nothing is relevant.
    """
    relevant = np.asarray(relevant_sorted, bool)
    ranks = np.flatnonzero(relevant) + 1
    return float(np.mean(np.arange(1, len(ranks) + 1) / ranks)) if len(ranks) else 0.0


def auroc(scores: npt.ArrayLike, positives: npt.ArrayLike) -> float:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties counting half.

    By rank sums (Hanley & McNeil 1982, Radiology 143, 29); not a number if one kind is missing.
    """
    is_positive = np.asarray(positives, bool)
    n_positive = int(np.count_nonzero(is_positive))
    n_negative = len(is_positive) - n_positive
    if not n_positive or not n_negative:
        return float("nan")
    rank_sum = float(rankdata(np.asarray(scores, np.float64))[is_positive].sum())
    return (rank_sum - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative)


def roc_curve(scores: npt.ArrayLike, positives: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Receiver operating characteristic; its area is `auroc`.

    Parameters
    ----------
    scores : float array, `n`
        Ties are one point.
    positives : bool array, `n`

    Returns
    -------
    false_rate, true_rate : float arrays
        From (0, 0) to (1, 1), one point for each score.
    """
    values, positive = np.asarray(scores, np.float64), np.asarray(positives, bool)
    order = np.argsort(-values, kind="stable")
    last = np.append(np.diff(values[order]) != 0, True)
    right, wrong = np.cumsum(positive[order])[last], np.cumsum(~positive[order])[last]
    return np.append(0.0, wrong / max(wrong[-1], 1)), np.append(0.0, right / max(right[-1], 1))


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a proportion (Wilson 1927, J. Am. Stat. Assoc. 22, 209); 0 … 1 if n = 0."""
    if n == 0:
        return 0.0, 1.0
    z = float(ndtri(0.5 + confidence / 2))
    share = successes / n
    centre = share + z**2 / (2 * n)
    half = z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    scale = 1 + z**2 / n
    return max(0.0, float((centre - half) / scale)), min(1.0, float((centre + half) / scale))


# ---------------------------------------------------------------- detection


def match_points(found: np.ndarray, planted: np.ndarray, max_distance: Angstrom) -> np.ndarray:
    """Pair found and planted positions one to one: as many pairs as possible, then the closest.

    Parameters
    ----------
    found, planted : float arrays, `n 3` and `m 3`
        z, y, x in Å.
    max_distance : Angstrom
        Farther positions are never paired.

    Returns
    -------
    int array, `pairs 2`
        Index into `found`, index into `planted`, by rising `found`.
    """
    found, planted = (np.asarray(points, np.float64).reshape(-1, 3) for points in (found, planted))
    near = cKDTree(found).query_ball_point(planted, max_distance) if len(found) and len(planted) else []
    pairs = np.array([(i, j) for j, close in enumerate(near) for i in close], np.int64).reshape(-1, 2)
    if len(pairs) == 0:
        return pairs
    # Positions that are far apart do not compete: each connected group is solved by itself.
    nodes = len(found) + len(planted)
    graph = csr_array((np.ones(len(pairs)), (pairs[:, 0], len(found) + pairs[:, 1])), shape=(nodes, nodes))
    group = connected_components(graph, directed=False)[1][pairs[:, 0]]
    order = np.argsort(group, kind="stable")
    groups = np.split(pairs[order], np.flatnonzero(np.diff(group[order])) + 1)
    matched = np.concatenate([_assign(found, planted, pairs, max_distance) for pairs in groups])
    return matched[np.argsort(matched[:, 0])]


def precision_recall_f1(found: int, planted: int, matches: int) -> tuple[float, float, float]:
    """Precision, recall and their harmonic mean from numbers of things; 0 where a number is 0."""
    precision = matches / found if found else 0.0
    recall = matches / planted if planted else 0.0
    return precision, recall, 2 * matches / (found + planted) if found + planted else 0.0


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two masks; 1 if both are empty."""
    _check_same_shape(a, b)
    a, b = np.asarray(a, bool), np.asarray(b, bool)
    union = int(np.count_nonzero(a | b))
    return int(np.count_nonzero(a & b)) / union if union else 1.0


# ---------------------------------------------------------------- private


def _check_same_shape(*arrays: np.ndarray) -> None:
    shapes = [np.shape(array) for array in arrays]
    if len(set(shapes)) > 1:
        raise GeometryError(
            "expected arrays on the same grid",
            got=" and ".join(map(str, shapes)),
            hint="Resample one volume onto the other first.",
        )


def _shape(array: np.ndarray) -> Shape:
    if np.ndim(array) != 3 or min(np.shape(array)) < 2:
        raise GeometryError(
            "expected three-dimensional maps of at least 2 voxels on each axis",
            got=f"shape {np.shape(array)}",
            hint="Give whole maps, not slices.",
        )
    z, y, x = np.shape(array)
    return z, y, x


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    if len(a) == 0:
        return float("nan")
    a, b = a - a.mean(dtype=np.float64), b - b.mean(dtype=np.float64)
    length = float(np.sqrt(np.sum(a * a) * np.sum(b * b)))
    return float(np.sum(a * b)) / length if length > 0 else float("nan")


def _highest(values: np.ndarray, number: int) -> np.ndarray:
    """Mask of the `number` highest voxels."""
    mask = np.zeros(np.shape(values), bool)
    if number > 0:
        mask.flat[np.argpartition(np.asarray(values), -number, axis=None)[-number:]] = True
    return mask


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _assign(found: np.ndarray, planted: np.ndarray, pairs: np.ndarray, max_distance: Angstrom) -> np.ndarray:
    """Hungarian assignment within one group of positions that are near each other."""
    rows, row = np.unique(pairs[:, 0], return_inverse=True)
    columns, column = np.unique(pairs[:, 1], return_inverse=True)
    # A forbidden pair costs more than all allowed ones together, so no allowed pair is given up for closeness.
    forbidden = (max_distance + 1) * (min(len(rows), len(columns)) + 1)
    cost = np.full((len(rows), len(columns)), forbidden)
    cost[row, column] = np.linalg.norm(found[pairs[:, 0]] - planted[pairs[:, 1]], axis=1)
    i, j = linear_sum_assignment(cost)
    allowed = cost[i, j] < forbidden
    return np.stack([rows[i[allowed]], columns[j[allowed]]], axis=1)

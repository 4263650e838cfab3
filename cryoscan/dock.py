"""Rigid docking of a structure into density: the check of a proposed domain that knows nothing of embeddings."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import scipy.fft
from scipy import ndimage, optimize
from scipy.spatial.transform import Rotation

from cryoscan.errors import GeometryError
from cryoscan.filters import resample_fourier
from cryoscan.rotations import rotation_grid
from cryoscan.structure import Structure
from cryoscan.units import SIGMA_PER_RESOLUTION, Angstrom, Degree, Vector
from cryoscan.volume import Volume

_SEARCH_RESOLUTION = 8.0  # Å: finer detail costs time in the coarse search and tells shapes apart no better
_ENVELOPE = 0.05  # of the probe's maximum: inside it, the molecule and a rim of solvent
_MOST_THREADS = 8
_MOST_POINTS = 2000  # of the probe that the local refinement samples


@dataclass(frozen=True, slots=True, eq=False)
class Docking:
    """A structure placed in a map.

    Parameters
    ----------
    rotation : float64 array, `3 3`
        Acts on z, y, x columns.
    offset : (z, y, x) in Å
        Docked position = rotation · position + offset.
    cc_mask : float
        Pearson correlation of map and model density over the voxels of the model's envelope.
    cc_box : float
        Pearson correlation over all voxels of the box that was searched.
    structure : Structure
        The docked structure.
    """

    rotation: np.ndarray
    offset: Vector
    cc_mask: float
    cc_box: float
    structure: Structure

    def __repr__(self) -> str:
        return f"Docking({self.structure.id}: cc_mask {self.cc_mask:.3f}, cc_box {self.cc_box:.3f})"


def dock(
    volume: Volume,
    probe: Volume,
    structure: Structure,
    *,
    resolution: Angstrom,
    region_mask: np.ndarray | None = None,
    angular_step: Degree = 15.0,
    refined: int = 24,
) -> Docking:
    """Place a structure into a map by rotation and translation.

    For every rotation of a uniform grid the translations are searched at once by Fourier
    transform on a coarse grid; the best few placements are refined on the full grid. The
    result is deterministic.

    Parameters
    ----------
    volume : Volume
        The map, protein positive; at about `resolution`.
    probe : Volume
        Density of `structure` at `resolution`, in the structure's own place
        (`cryoscan.simulate.density`).
    structure : Structure
        Where it stands does not matter.
    resolution : Angstrom
        Of map and probe.
    region_mask : array, `z y x`, optional
        On the grid of `volume`, 0 … 1: only this part of the map is searched, and density
        outside counts as empty.
    angular_step : Degree
        Distance of neighbouring rotations in the coarse search.
    refined : int
        Number of placements that are refined.

    Returns
    -------
    Docking

    Raises
    ------
    GeometryError
        If the mask has another shape than the map or is empty, or if map or probe hold no density.
    """
    target, probe = _search_box(volume, region_mask), probe.loaded()
    centre = structure.positions.mean(axis=0)
    _refuse_flat(target, "map")
    _refuse_flat(probe, "probe")
    starts = _coarse_search(target, probe, centre, resolution=resolution, angular_step=angular_step, best=refined)
    rotation, place = _refine(target, probe, centre, starts)
    offset = place - rotation @ centre
    model = _placed(probe, centre, rotation, place, like=target)
    inside = model > _ENVELOPE * model.max()
    data = target.load()
    return Docking(
        rotation=rotation,
        offset=(float(offset[0]), float(offset[1]), float(offset[2])),
        cc_mask=_correlation(data[inside], model[inside]),
        cc_box=_correlation(data.ravel(), model.ravel()),
        structure=structure.moved(rotation=rotation, offset=offset),
    )


@dataclass(frozen=True, slots=True, eq=False)
class DockedDensity:
    """A density placed in a map: on the map's grid, and its correlation with it inside the envelope."""

    volume: Volume
    cc_mask: float


def dock_density(
    volume: Volume,
    probe: Volume,
    *,
    resolution: Angstrom,
    region_mask: np.ndarray | None = None,
    angular_step: Degree = 15.0,
    refined: int = 24,
) -> DockedDensity:
    """Place a density of which no atoms are at hand into a map; see `dock`.

    Parameters
    ----------
    probe : Volume
        Its middle at 0 Å.

    Raises
    ------
    GeometryError
        If the mask has another shape than the map or is empty, or if map or probe hold no density.
    """
    target, probe = _search_box(volume, region_mask), probe.loaded()
    _refuse_flat(target, "map")
    _refuse_flat(probe, "probe")
    middle = np.zeros(3)
    starts = _coarse_search(target, probe, middle, resolution=resolution, angular_step=angular_step, best=refined)
    rotation, place = _refine(target, probe, middle, starts)
    model = _placed(probe, middle, rotation, place, like=target)
    inside = model > _ENVELOPE * model.max()
    placed = Volume(model, target.voxel_size, target.origin)
    return DockedDensity(placed, _correlation(target.load()[inside], model[inside]))


# ---------------------------------------------------------------- search


def _search_box(volume: Volume, region_mask: np.ndarray | None) -> Volume:
    """The map, or the box around the masked part of it with everything else set to zero."""
    if region_mask is None:
        return volume.loaded()
    if region_mask.shape != volume.shape:
        raise GeometryError(
            f"expected a region mask of the map's shape {volume.shape}",
            got=str(region_mask.shape),
            hint="Make the mask on the grid of the map.",
        )
    if not region_mask.any():
        raise GeometryError("expected a region with voxels in it", got="an empty mask", hint="Choose another region.")
    z, y, x = ndimage.find_objects((region_mask > 0).astype(np.int8))[0]
    part = volume.crop((z, y, x))
    return Volume(part.load() * region_mask[z, y, x].astype(np.float32), part.voxel_size, part.origin)


def _coarse_search(
    target: Volume, probe: Volume, centre: np.ndarray, *, resolution: Angstrom, angular_step: Degree, best: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rotation and position of the structure's centre of the best placements, at most one per rotation."""
    coarse = max(resolution, _SEARCH_RESOLUTION)
    sigma = SIGMA_PER_RESOLUTION * float(np.sqrt(coarse**2 - resolution**2))
    step = max(coarse / 3, target.voxel_size)
    grid = resample_fourier(_blurred(target, sigma), step)
    points, weights = _cloud(resample_fourier(_blurred(probe, sigma), step), above=_ENVELOPE)
    points = (points - centre) / step
    # Half a probe of zeros at one end is enough: what protrudes at either end wraps into them.
    reach = int(np.ceil(np.sqrt((points**2).sum(axis=1).max()))) + 1
    shape = [scipy.fft.next_fast_len(size + reach, real=True) for size in grid.shape]
    data = grid.load()
    spectrum = scipy.fft.rfftn(data - data.mean(), s=shape) * _edge_weights(shape)
    rotations = rotation_grid(angular_step)

    def best_place(rotation: np.ndarray) -> tuple[float, np.ndarray]:
        turned = _splat(points @ rotation.T, weights, shape)  # the probe's centre is voxel 0
        scores = scipy.fft.irfftn(spectrum * scipy.fft.rfftn(turned).conj(), s=shape)
        scores = scores[: data.shape[0], : data.shape[1], : data.shape[2]]
        peak = int(scores.argmax())
        # Splatting changes the probe's norm a little with the rotation.
        norm = np.sqrt((turned**2).sum() - weights.sum() ** 2 / data.size)
        return float(scores.flat[peak] / norm), np.array(np.unravel_index(peak, scores.shape))

    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
        found = list(pool.map(best_place, rotations))
    order = sorted(range(len(found)), key=lambda i: (-found[i][0], i))[:best]
    return [(rotations[i], grid.to_position(found[i][1])) for i in order]


def _refine(
    target: Volume, probe: Volume, centre: np.ndarray, starts: list[tuple[np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray]:
    """The placement with the highest correlation inside the probe's envelope, from any of the starts."""
    points, values = _cloud(probe, above=_ENVELOPE)
    thin = max(1, len(points) // _MOST_POINTS)
    points, values = points[::thin] - centre, values[::thin]
    radius = float(np.sqrt((points**2).sum(axis=1).mean()))  # turns rotations into Å at the surface

    def placement(start: tuple[np.ndarray, np.ndarray], moves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        turn = Rotation.from_rotvec(moves[:3] / radius).as_matrix()
        return turn @ start[0], start[1] + moves[3:]

    def climbed(start: tuple[np.ndarray, np.ndarray], reach: Angstrom, trials: int) -> tuple[float, np.ndarray]:
        def loss(moves: np.ndarray) -> float:
            rotation, place = placement(start, moves)
            return -_correlation(_sample(target, points @ rotation.T + place), values)

        simplex = np.vstack([np.zeros(6), reach * np.eye(6)])
        settings = {"initial_simplex": simplex, "maxfev": trials, "xatol": 0.01, "fatol": 1e-5}
        result = optimize.minimize(loss, np.zeros(6), method="Nelder-Mead", options=settings)
        return float(result.fun), result.x

    first = [(loss, placement(start, moves)) for start in starts for loss, moves in [climbed(start, 2.5, 150)]]
    first.sort(key=lambda item: item[0])
    last = [(loss, placement(start, moves)) for _, start in first[:3] for loss, moves in [climbed(start, 1.0, 400)]]
    return min(last, key=lambda item: item[0])[1]


# ---------------------------------------------------------------- arrays


def _cloud(volume: Volume, *, above: float) -> tuple[np.ndarray, np.ndarray]:
    """Positions in Å (`n 3`) and values of the voxels above a fraction of the maximum."""
    data = volume.load()
    inside = np.argwhere(data > above * data.max())
    return volume.to_position(inside), data[tuple(inside.T)]


def _edge_weights(shape: list[int]) -> np.ndarray:
    """Weights |s| for the coefficients of `rfftn`: they make surfaces count, not bulk.

    Without them a probe settles where a larger density is fullest. The full Laplacian
    filter, |s|² (Chacón & Wriggers, J. Mol. Biol. 317, 375, 2002), did no better and
    amplifies noise more.
    """
    z, y = (np.fft.fftfreq(size) for size in shape[:2])
    x = np.fft.rfftfreq(shape[2])
    return np.sqrt(z[:, None, None] ** 2 + y[None, :, None] ** 2 + x[None, None, :] ** 2).astype(np.float32)


def _splat(places: np.ndarray, weights: np.ndarray, shape: list[int]) -> np.ndarray:
    """Spread points at fractional voxels over their eight neighbours on a periodic grid, float32."""
    low = np.floor(places).astype(np.int64)
    part = places - low
    index = np.zeros((8, len(places)), np.int64)
    share = np.tile(weights, (8, 1))
    for corner in range(8):
        for axis in range(3):
            up = corner >> axis & 1
            index[corner] = index[corner] * shape[axis] + (low[:, axis] + up) % shape[axis]
            share[corner] *= part[:, axis] if up else 1 - part[:, axis]
    total = np.bincount(index.ravel(), share.ravel(), minlength=shape[0] * shape[1] * shape[2])
    return total.reshape(shape).astype(np.float32)


def _blurred(volume: Volume, sigma: Angstrom) -> Volume:
    if sigma == 0:
        return volume
    data = ndimage.gaussian_filter(volume.load(), sigma / volume.voxel_size, mode="constant")
    return Volume(data, volume.voxel_size, volume.origin)


def _sample(volume: Volume, positions: np.ndarray) -> np.ndarray:
    """Trilinear values at positions in Å (`... 3`); 0 outside the volume."""
    indices = np.moveaxis(volume.to_index(positions), -1, 0)
    values: np.ndarray = ndimage.map_coordinates(volume.data, indices, order=1, mode="constant")
    return values


def _placed(probe: Volume, centre: np.ndarray, rotation: np.ndarray, place: np.ndarray, *, like: Volume) -> np.ndarray:
    """Density of the placed probe on the grid of `like`."""
    back = rotation.T
    first = probe.to_index(back @ (np.array(like.origin) - place) + centre)
    values: np.ndarray = ndimage.affine_transform(
        probe.data,
        back * (like.voxel_size / probe.voxel_size),
        first,
        output_shape=like.shape,
        order=1,
        mode="constant",
    )
    return values


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson correlation; 0 if one of them is constant."""
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm > 0 else 0.0


def _refuse_flat(volume: Volume, what: str) -> None:
    data = volume.load()
    if not np.isfinite(data).all() or not data.max() > max(float(data.min()), 0.0):
        raise GeometryError(
            f"expected a {what} with positive density",
            got="flat, negative or not finite values",
            hint="Check the contrast (protein positive), the region and the file.",
        )

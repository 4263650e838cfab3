"""Regions as masks on a volume's grid: from a box, a sphere, a label or atoms, and with soft edges."""

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage import segmentation
from skimage.draw import polygon2mask

from cryoscan.errors import GeometryError, MismatchError
from cryoscan.labels import LabelMap
from cryoscan.segment.watershed import EVERY_NEIGHBOUR
from cryoscan.units import Angstrom, Box, Vector
from cryoscan.volume import Volume

_VOXEL_SIZE_TOLERANCE = 0.01
_ORIGIN_TOLERANCE = 0.25  # voxels: below the half voxel by which corner and centre conventions differ
_ATOMS_AT_ONCE = 4096


def region_from_box(volume: Volume, box: Box) -> np.ndarray:
    """Voxels of a box, `z y x` bool; the box must lie inside the volume."""
    mask = np.zeros(volume.shape, bool)
    Volume(mask, volume.voxel_size).crop(box)  # refuses a box that does not fit, without reading the map
    mask[box] = True
    return mask


def region_from_sphere(volume: Volume, centre: Vector, *, radius: Angstrom) -> np.ndarray:
    """Voxels whose centre is at most `radius` Å from `centre` (z, y, x, Å), `z y x` bool.

    Raises
    ------
    GeometryError
        If no voxel is: the sphere is too small or lies outside the volume.
    """
    return _balls(volume, np.asarray(centre, np.float64).reshape(1, 3), radius, what="sphere")


def region_from_structure(volume: Volume, positions: np.ndarray, *, radius: Angstrom) -> np.ndarray:
    """Voxels whose centre is at most `radius` Å from any atom, `z y x` bool.

    Parameters
    ----------
    volume : Volume
        Whose grid the mask has.
    positions : float array, `n 3`
        z, y, x in Å.
    radius : Angstrom
        About the resolution of the map, at least 2 to 3 Å.

    Raises
    ------
    GeometryError
        If no voxel is near an atom: structure and map do not share a coordinate system.
    """
    return _balls(volume, np.asarray(positions, np.float64), radius, what="atoms")


def region_from_outline(
    volume: Volume, outline: npt.ArrayLike, *, z: tuple[Angstrom, Angstrom] | None = None
) -> np.ndarray:
    """Voxels inside an outline that was drawn in a plane, over all planes or some, `z y x` bool.

    Parameters
    ----------
    volume : Volume
        Whose grid the mask has.
    outline : float array, `n 2`
        Corners, y and x in Å.
    z : (first, last) in Å, optional
        Planes whose centres lie between.

    Raises
    ------
    GeometryError
        If no voxel is inside.
    """
    corners = (np.asarray(outline, np.float64) - volume.origin[1:]) / volume.voxel_size
    mask = np.zeros(volume.shape, bool)
    inside = polygon2mask(volume.shape[1:], corners)
    planes = volume.origin[0] + np.arange(volume.shape[0]) * volume.voxel_size
    taken = np.ones(len(planes), bool) if z is None else (planes >= z[0]) & (planes <= z[1])
    mask[taken] = inside
    if not mask.any():
        raise GeometryError(
            "expected an outline with voxels of the volume inside",
            got="none",
            hint="Draw it on the volume, larger than a voxel.",
        )
    return mask


def region_from_labels(volume: Volume, label_map: LabelMap, label: int) -> np.ndarray:
    """Voxels of one label of a label volume that has the grid of `volume`, `z y x` bool.

    Raises
    ------
    MismatchError
        If the two grids differ.
    GeometryError
        If no voxel carries the label.
    """
    check_same_grid(volume, label_map.volume)
    return label_map.mask(label)


def component_at(data: np.ndarray, *, threshold: float, index: npt.ArrayLike) -> np.ndarray:
    """The connected density above a threshold that holds the voxel `index` (z, y, x), `z y x` bool.

    Voxels connect through faces, edges and corners.

    Raises
    ------
    GeometryError
        If the voxel is outside the map or below the threshold.
    """
    z, y, x = (int(i) for i in np.asarray(index))
    if not all(0 <= i < size for i, size in zip((z, y, x), data.shape, strict=True)):
        raise GeometryError(
            f"expected a voxel inside the map of {data.shape} voxels (z, y, x)",
            got=f"({z}, {y}, {x})",
            hint="Give z, y, x in voxels, counted from 0.",
        )
    if not data[z, y, x] > threshold:
        raise GeometryError(
            f"expected density above the threshold {threshold:.4g} at voxel ({z}, {y}, {x})",
            got=f"{data[z, y, x]:.4g}",
            hint="Pick a voxel inside the density, or lower the threshold.",
        )
    components, _ = ndimage.label(np.asarray(data) > threshold, EVERY_NEIGHBOUR)
    mask: np.ndarray = components == components[z, y, x]
    return mask


def split_region(data: np.ndarray, mask: np.ndarray, seeds: npt.ArrayLike) -> np.ndarray:
    """Split a region along the thinnest density between some of its voxels.

    Parameters
    ----------
    data : float array, `z y x`
        Protein positive.
    mask : bool array, `z y x`
        The region.
    seeds : int array, `n 3`
        A voxel in each part, z, y, x; at least two.

    Returns
    -------
    int32 array, `z y x`
        Part of each voxel of the region, 1 … n in the order of the seeds; 0 outside.

    Raises
    ------
    GeometryError
        If there are fewer than two seeds in different voxels of the region.
    """
    places = np.unique(np.rint(np.asarray(seeds, np.float64)).astype(int).reshape(-1, 3), axis=0, return_index=True)[1]
    chosen = np.rint(np.asarray(seeds, np.float64)).astype(int).reshape(-1, 3)[np.sort(places)]
    inside = ((chosen >= 0) & (chosen < mask.shape)).all(axis=1)
    chosen = chosen[inside]
    chosen = chosen[mask[tuple(chosen.T)]]
    if len(chosen) < 2:
        raise GeometryError(
            "expected at least two places inside the region, one in each part",
            got=str(len(chosen)),
            hint="Put a point into each of the parts that are to be told apart.",
        )
    markers = np.zeros(mask.shape, np.int32)
    markers[tuple(chosen.T)] = np.arange(1, len(chosen) + 1)
    parts = segmentation.watershed(-np.asarray(data, np.float32), markers, mask=mask, connectivity=EVERY_NEIGHBOUR)
    return np.asarray(parts, np.int32)


def soft_mask(mask: np.ndarray, *, voxel_size: Angstrom, width: Angstrom) -> np.ndarray:
    """Give a mask a soft edge outside of it.

    Parameters
    ----------
    mask : bool array, `z y x`
        The region.
    voxel_size : Angstrom
        Of the mask's grid.
    width : Angstrom
        Distance over which the edge falls from 1 to 0 as half a cosine.

    Returns
    -------
    float32 array, `z y x`
        1 in the mask, 0 farther than `width` from it.
    """
    mask = np.asarray(mask, bool)
    if width <= 0 or not mask.any():
        return mask.astype(np.float32)
    distance = ndimage.distance_transform_edt(~mask, sampling=voxel_size)
    edge = 0.5 + 0.5 * np.cos(np.pi * np.minimum(distance / width, 1))
    return np.asarray(edge, np.float32)


def check_same_grid(volume: Volume, other: Volume, *, what: str = "a mask") -> None:
    """Refuse a mask, a label volume or another companion whose voxels are not those of `volume`.

    Parameters
    ----------
    what : str
        The companion, in the middle of a sentence.

    Raises
    ------
    MismatchError
        If the shapes differ, the voxel sizes by more than 1 %, or the origins by more than
        a quarter of a voxel.
    """
    if volume.shape != other.shape:
        raise MismatchError(
            f"expected {what} of the map's shape {volume.shape} (z, y, x)",
            got=str(other.shape),
            hint="Make it on the map it belongs to, or resample it onto that grid.",
        )
    if abs(other.voxel_size / volume.voxel_size - 1) > _VOXEL_SIZE_TOLERANCE:
        raise MismatchError(
            f"expected {what} with the map's voxel size, {volume.voxel_size:.4g} Å",
            got=f"{other.voxel_size:.4g} Å",
            hint="Give the right voxel size for both files, or resample one of them.",
        )
    shift = np.abs(np.subtract(other.origin, volume.origin)) / volume.voxel_size
    if shift.max() > _ORIGIN_TOLERANCE:
        raise MismatchError(
            f"expected {what} at the map's origin {_numbers(volume.origin)} Å (z, y, x)",
            got=f"{_numbers(other.origin)} Å",
            hint="Some programs lose the origin: set it to the map's if their voxels coincide.",
        )


def _balls(volume: Volume, positions: np.ndarray, radius: Angstrom, *, what: str) -> np.ndarray:
    mask = np.zeros(volume.shape, bool)
    places = volume.to_index(positions)
    reach = int(np.floor(radius / volume.voxel_size + 0.5))
    steps = np.arange(-reach, reach + 1)
    offsets = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    count = max(1, _ATOMS_AT_ONCE * 343 // len(offsets))
    for start in range(0, len(places), count):
        part = places[start : start + count, None]
        voxels = np.rint(part).astype(np.int64) + offsets
        near = ((voxels - part) ** 2).sum(axis=-1) <= (radius / volume.voxel_size) ** 2
        inside = ((voxels >= 0) & (voxels < np.array(volume.shape))).all(axis=-1)
        z, y, x = voxels[near & inside].T
        mask[z, y, x] = True
    if not mask.any():
        low, high = positions.min(axis=0), positions.max(axis=0)
        last = volume.to_position(np.array(volume.shape) - 1)
        raise GeometryError(
            f"expected the {what} to reach into the map, which spans {_numbers(volume.origin)} to {_numbers(last)} Å "
            "(z, y, x)",
            got=f"{what} from {_numbers(low)} to {_numbers(high)} Å with a radius of {radius:g} Å",
            hint="Check that both are in the same coordinate system, and the map's origin.",
        )
    return mask


def _numbers(values: npt.ArrayLike) -> str:
    return "(" + ", ".join(f"{value:.2f}" for value in np.asarray(values)) + ")"

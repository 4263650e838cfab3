"""A crowded volume made of known densities: random places, rotations and noise."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.ndimage
from scipy.spatial.transform import Rotation

from cryoscan.filters import lowpass_gaussian
from cryoscan.units import SIGMA_PER_RESOLUTION, Angstrom, Shape, Vector
from cryoscan.volume import Volume


@dataclass(frozen=True, slots=True)
class Planted:
    """Where a density was put: index into the list given, and position (z, y, x, Å) of its centre."""

    index: int
    position: Vector


def crowded_volume(
    densities: Sequence[Volume],
    *,
    n: int,
    shape: Shape,
    voxel_size: Angstrom,
    origin: Vector = (0.0, 0.0, 0.0),
    gap: Angstrom = 4.0,
    noise: float = 0.2,
    resolution: Angstrom = 6.0,
    seed: int = 0,
) -> tuple[Volume, list[Planted]]:
    """Plant densities so that they do not overlap, and add noise.

    Parameters
    ----------
    densities : sequence of Volume
        Centred on 0 Å; each is planted in turn until `n` are placed.
    n : int
        Number to place; fewer are placed if there is no room.
    shape, voxel_size, origin
        Of the volume.
    gap : Angstrom
        Smallest distance between the surfaces (a tenth of the maximum) of neighbours.
    noise : float
        Standard deviation of the noise relative to that of the density inside the proteins.
    resolution : Angstrom
        The noise is low-passed to it.
    seed : int

    Returns
    -------
    Volume, list of Planted
    """
    rng = np.random.default_rng(seed)
    data = np.zeros(shape, np.float32)
    taken = np.zeros(shape, bool)
    planted: list[Planted] = []
    for attempt in range(60 * n):
        if len(planted) == n:
            break
        index = len(planted) % len(densities)
        rotation = Rotation.random(rng=rng).as_matrix()
        place = np.array([rng.uniform(12, max(13, size - 13)) for size in shape])
        box, part = _rotated(densities[index], rotation, place, voxel_size)
        inside = tuple(slice(max(0, b.start), min(size, b.stop)) for b, size in zip(box, shape, strict=True))
        part = part[tuple(slice(i.start - b.start, i.stop - b.start) for i, b in zip(inside, box, strict=True))]
        solid = part > 0.1 * densities[index].load().max()
        if (solid & taken[inside]).any() or not _whole(box, shape, solid):
            del attempt
            continue
        data[inside] += part
        reach = int(np.ceil(gap / voxel_size))
        wide = tuple(slice(max(0, i.start - reach), min(size, i.stop + reach)) for i, size in zip(inside, shape))
        grown = np.zeros([w.stop - w.start for w in wide], bool)
        grown[tuple(slice(i.start - w.start, i.stop - w.start) for i, w in zip(inside, wide, strict=True))] = solid
        taken[wide] |= scipy.ndimage.distance_transform_edt(~grown) <= reach
        position = np.asarray(origin) + place * voxel_size
        planted.append(Planted(index, (float(position[0]), float(position[1]), float(position[2]))))
    white = rng.normal(size=shape).astype(np.float32)
    coloured = lowpass_gaussian(white, voxel_size=voxel_size, sigma=SIGMA_PER_RESOLUTION * resolution)
    signal = data[data > 0.1 * data.max()].std() if planted else 1.0
    data += coloured * np.float32(noise * signal / coloured.std())
    return Volume(data, voxel_size, origin), planted


def _rotated(
    density: Volume, rotation: np.ndarray, place: np.ndarray, voxel_size: Angstrom
) -> tuple[tuple[slice, slice, slice], np.ndarray]:
    """A density turned about 0 Å and set down at a fractional voxel place: box and values."""
    radius = int(np.ceil(max(density.extent) / 2 / voxel_size)) + 1
    start = np.floor(place).astype(int) - radius
    box = tuple(slice(int(s), int(s) + 2 * radius + 2) for s in start)
    grid = np.stack(np.meshgrid(*[np.arange(b.start, b.stop) for b in box], indexing="ij"), axis=-1)
    offsets = (grid - place) * voxel_size  # Å from the centre
    source = density.to_index(offsets @ rotation)  # the inverse rotation, applied to rows
    values = scipy.ndimage.map_coordinates(density.load(), np.moveaxis(source, -1, 0), order=3, mode="constant")
    return (box[0], box[1], box[2]), values.astype(np.float32)


def _whole(box: tuple[slice, slice, slice], shape: Shape, solid: np.ndarray) -> bool:
    """Whether nothing solid sticks out of the volume: no solid voxel on the border."""
    if all(b.start >= 0 and b.stop <= size for b, size in zip(box, shape, strict=True)):
        return True
    faces = [solid[0], solid[-1], solid[:, 0], solid[:, -1], solid[:, :, 0], solid[:, :, -1]]
    return not any(face.any() for face in faces)

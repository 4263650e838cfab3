"""How a region of a map becomes the window that an embedder takes: filter, mask, centre, resample."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import scipy.ndimage

from cryoscan.embedding import Embedder
from cryoscan.errors import GeometryError
from cryoscan.filters import lowpass_gaussian, resample_onto
from cryoscan.units import SIGMA_PER_RESOLUTION, Angstrom, Box, Vector
from cryoscan.volume import Volume


def region_window(
    volume: Volume,
    mask: np.ndarray | None,
    embedder: Embedder,
    *,
    resolution: Angstrom | None = None,
    bank: Angstrom | None = None,
    about: Literal["density", "mask"] = "density",
) -> np.ndarray:
    """Cut a region out of a map as one window of the embedder.

    The map is blurred from its own resolution to that of the database's bank, multiplied by
    the mask, and resampled to a window about the region's middle.

    Parameters
    ----------
    volume : Volume
        Protein positive.
    mask : float or bool array, `z y x`, optional
        On the volume's grid; None takes everything.
    embedder : Embedder
    resolution, bank : Angstrom, optional
        Of the map and of the simulated densities it is compared with. Without both the map
        is taken as it is.
    about : str
        What has its middle in the middle of the window: the region's density, or the mask, which is the better
        guess where neighbours are in it.

    Returns
    -------
    float32 array, `w w w`
    """
    margin = int(np.ceil((bank or 6.0) / volume.voxel_size)) + 2
    box = _bounding_box(mask, volume.shape, margin)
    part = Volume(volume.read(box), volume.voxel_size, _corner(volume, box))
    weights = np.ones(part.shape, np.float32) if mask is None else _read(mask, box)
    data = blurred(part, resolution=resolution, target=bank).load() * weights
    if about == "mask":
        centre = _position(part, scipy.ndimage.center_of_mass(weights))
    else:
        centre = centre_of_mass(Volume(data, part.voxel_size, part.origin))
    corner = np.asarray(centre) - (embedder.window - 1) / 2 * embedder.voxel_size
    edge = embedder.window
    window = resample_onto(
        Volume(data, part.voxel_size, part.origin),
        voxel_size=embedder.voxel_size,
        origin=(float(corner[0]), float(corner[1]), float(corner[2])),
        shape=(edge, edge, edge),
    )
    return window.load()


def region_windows(
    volume: Volume,
    mask: np.ndarray | None,
    embedder: Embedder,
    *,
    resolution: Angstrom | None = None,
    bank: Angstrom | None = None,
) -> np.ndarray:
    """Windows about both middles of a region, `2 w w w`; see `region_window`.

    Neighbours pull the density's middle away from what was pointed at; a mask that was drawn
    loosely has its middle elsewhere.
    """
    at = {"resolution": resolution, "bank": bank}
    return np.stack(
        [
            region_window(volume, mask, embedder, about="density", **at),
            region_window(volume, mask, embedder, about="mask", **at),
        ]
    )


def blurred(volume: Volume, *, resolution: Angstrom | None, target: Angstrom | None) -> Volume:
    """Blur a map of one resolution to a lower one; unchanged where it is not finer than the target.

    Gaussians add in quadrature: sigma² = 0.225² (target² - resolution²).
    """
    if resolution is None or target is None or target <= resolution:
        return volume
    sigma = SIGMA_PER_RESOLUTION * float(np.sqrt(target**2 - resolution**2))
    # padded by three sigma: the Fourier product would wrap one border round to the other
    pad = int(np.ceil(3 * sigma / volume.voxel_size))
    data = np.pad(volume.load(), pad)
    data = lowpass_gaussian(data, voxel_size=volume.voxel_size, sigma=sigma)
    return Volume(data[pad:-pad, pad:-pad, pad:-pad] if pad else data, volume.voxel_size, volume.origin)


def centre_of_mass(volume: Volume) -> Vector:
    """Centre of mass of the density above half a standard deviation, z y x in Å.

    Raises
    ------
    GeometryError
        If nothing is above it.
    """
    data = volume.load()
    mass = np.clip(data - 0.5 * data.std(), 0, None)
    if not mass.sum() > 0:
        raise GeometryError(
            "expected density in the region",
            got="none above the background",
            hint="Check the region's place (centre voxel = origin + index × voxel size), and the contrast.",
        )
    return _position(volume, scipy.ndimage.center_of_mass(mass))


def _bounding_box(mask: np.ndarray | None, shape: tuple[int, int, int], margin: int) -> Box:
    if mask is None:
        return slice(0, shape[0]), slice(0, shape[1]), slice(0, shape[2])
    if mask.shape != shape:
        raise GeometryError(
            f"expected a mask of the volume's shape {shape}", got=str(mask.shape), hint="Resample the mask first."
        )
    found = scipy.ndimage.find_objects((mask > 0).astype(np.uint8))
    if not found:
        raise GeometryError("expected a region with at least one voxel", got="an empty mask", hint="Check the mask.")
    z, y, x = (slice(part.start - margin, part.stop + margin) for part in found[0])
    return z, y, x


def _corner(volume: Volume, box: Box) -> Vector:
    return _position(volume, [part.start for part in box])


def _position(volume: Volume, index: Sequence[float]) -> Vector:
    z, y, x = volume.to_position(index)
    return float(z), float(y), float(x)


def _read(mask: np.ndarray, box: Box) -> np.ndarray:
    return Volume(mask, 1.0).read(box)

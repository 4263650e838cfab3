"""From layers back to files and regions: what the user points at in the viewer, as the library takes it."""

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from cryoscan.errors import GeometryError, MissingFileError
from cryoscan.io import VolumeFile, describe
from cryoscan.units import Box, Shape, Vector
from cryoscan.volume import Volume

_SAME_SIZE = 1e-3
_EXTRA_DEPTH = 0.5
"""Of the width of an outline, above and below the plane in which it was drawn."""
_SLAB = 64  # planes that are read at once: the chunks of most stores


@dataclass(frozen=True, slots=True)
class Painted:
    """Where a labels layer is painted, small enough to cross to another process.

    Parameters
    ----------
    shape : (z, y, x)
    scale, translate : (z, y, x) in Å
        Of the layer: edge of a voxel, and the centre of voxel 0.
    planes : tuple of bytes
        A bit per voxel, packed and compressed plane by plane.
    """

    shape: Shape
    scale: Vector
    translate: Vector
    planes: tuple[bytes, ...]

    def on_grid_of(self, volume: Volume) -> Volume:
        """The same on the grid of a volume: 1 where the nearest voxel of the layer is painted, 0 outside of it."""
        nearest, inside = [], []
        for axis in range(3):
            places = volume.origin[axis] + np.arange(volume.shape[axis]) * volume.voxel_size
            index = np.rint((places - self.translate[axis]) / self.scale[axis]).astype(int)
            inside.append((index >= 0) & (index < self.shape[axis]))
            nearest.append(np.clip(index, 0, self.shape[axis] - 1))
        mask = np.zeros(volume.shape, np.int8)
        rows = np.ix_(inside[1], inside[2])
        for z in np.flatnonzero(inside[0]):
            plane = self._plane(int(nearest[0][z]))
            mask[z][rows] = plane[np.ix_(nearest[1][inside[1]], nearest[2][inside[2]])]
        return Volume(mask, volume.voxel_size, volume.origin)

    def _plane(self, z: int) -> np.ndarray:
        bits = np.frombuffer(zlib.decompress(self.planes[z]), np.uint8)
        return np.unpackbits(bits, count=self.shape[1] * self.shape[2]).reshape(self.shape[1:])


def file_of(layer: Any) -> VolumeFile:
    """The file of an image layer; other processes read it there.

    Raises
    ------
    GeometryError
        If the layer is a colour picture, is not three-dimensional, or has no voxel size in Å.
    MissingFileError
        If it was never saved, or its file is gone.
    """
    if getattr(layer, "rgb", False):
        raise GeometryError(
            f"expected a density in layer '{layer.name}'", got="a colour picture", hint="Choose a volume."
        )
    if layer.ndim != 3:
        raise GeometryError(
            f"expected a volume in layer '{layer.name}'",
            got=f"{layer.ndim} dimensions",
            hint="Choose a layer of three dimensions (z, y, x).",
        )
    known = layer.metadata.get("cryoscan", {}).get("file")
    path = known["path"] if known else layer.source.path
    if path is None:
        raise MissingFileError(
            f"expected layer '{layer.name}' to come from a file",
            got="one that is in memory only",
            hint="Save it (File → Save selected layers) as .mrc or .zarr and open that.",
        )
    file = VolumeFile.from_json(known) if known else VolumeFile(path)
    if not file.path.exists():
        raise MissingFileError(
            f"expected the volume of layer '{layer.name}'",
            got=f"no such file: {file.path}",
            hint="It was moved or renamed: open it from where it is now.",
        )
    return _with_voxel_size(file, layer)


def _with_voxel_size(file: VolumeFile, layer: Any) -> VolumeFile:
    """The file with the layer's scale, where that is not the header's."""
    scale = [float(value) for value in layer.scale]
    own = file.voxel_size or describe(file.path).voxel_size
    if own is None and max(scale) == min(scale) == 1.0:
        raise GeometryError(
            f"expected layer '{layer.name}' to have a voxel size",
            got="none in its file, and a scale of 1",
            hint="Give the voxel size in Å in the field above, or mend the file's header.",
        )
    if max(scale) > min(scale) * (1 + _SAME_SIZE):
        raise GeometryError(
            f"expected cubic voxels in layer '{layer.name}'",
            got=f"a scale of {scale}",
            hint="Resample the volume to cubic voxels.",
        )
    if own is not None and abs(scale[0] / own - 1) <= _SAME_SIZE:
        return file
    if max(scale) == min(scale) == 1.0:  # another reader opened it, which knows no voxel sizes
        return file
    return VolumeFile(file.path, scale[0], file.contrast, file.z_range)


def region_of_labels(layer: Any, label: int, volume: Volume) -> tuple[Box, np.ndarray]:
    """A label of a layer as a mask within a box of a volume on the same grid.

    Raises
    ------
    GeometryError
        If the grids differ, or no voxel has the label.
    """
    data = layer.data[0] if layer.multiscale else layer.data
    if tuple(data.shape) != volume.shape:
        raise GeometryError(
            f"expected labels of the volume's shape {volume.shape}",
            got=str(tuple(data.shape)),
            hint="Choose labels that were made on this volume.",
        )
    return _boxed(np.asarray(data[:, :, :]) == label, volume, what=f"label {label}")


def region_of_outline(layer: Any, volume: Volume) -> tuple[Box, np.ndarray]:
    """The selected shape of a layer (or its last) as a mask, as deep as it is wide."""
    from cryoscan.segment import region_from_outline

    corners = outline_of(layer)
    z = _corners(layer)[:, 0].mean()
    depth = _EXTRA_DEPTH * float(np.ptp(corners, axis=0).mean())
    return _boxed(region_from_outline(volume, corners, z=(z - depth, z + depth)), volume, what="the outline")


def outline_of(layer: Any) -> np.ndarray:
    """Corners of the selected shape of a layer (or its last), y and x in Å, `n 2`."""
    return _corners(layer)[:, 1:]


def mask_of(layer: Any) -> Painted:
    """Where a labels layer is not 0.

    Raises
    ------
    GeometryError
        If the layer is not three-dimensional, or nothing is painted in it.
    """
    if layer.ndim != 3:
        raise GeometryError(
            f"expected a mask of three dimensions in layer '{layer.name}'",
            got=f"{layer.ndim} dimensions",
            hint="Choose labels that were made on the volume (z, y, x).",
        )
    data = layer.data[0] if layer.multiscale else layer.data
    z, y, x = data.shape
    planes: list[bytes] = []
    painted = False
    for first in range(0, z, _SLAB):
        for plane in np.asarray(data[first : first + _SLAB, :, :]) != 0:
            painted = painted or bool(plane.any())
            planes.append(zlib.compress(np.packbits(plane).tobytes(), 1))
    if not painted:
        raise GeometryError(
            f"expected something painted in layer '{layer.name}'", got="nothing", hint="Paint where to look."
        )
    (sz, sy, sx), (tz, ty, tx) = layer.scale, layer.translate
    scale, translate = (float(sz), float(sy), float(sx)), (float(tz), float(ty), float(tx))
    return Painted((z, y, x), scale, translate, tuple(planes))


def _corners(layer: Any) -> np.ndarray:
    if not len(layer.data):
        raise GeometryError(
            f"expected a shape in layer '{layer.name}'", got="none", hint="Draw a rectangle, ellipse or polygon first."
        )
    chosen = sorted(layer.selected_data)
    index = chosen[-1] if chosen else len(layer.data) - 1
    corners = np.asarray(layer.data[index], np.float64)
    if layer.shape_type[index] == "ellipse":
        middle, a, b = corners.mean(axis=0), (corners[1] - corners[0]) / 2, (corners[3] - corners[0]) / 2
        angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)[:, None]
        corners = middle + np.cos(angles) * a + np.sin(angles) * b
    return np.array([layer.data_to_world(corner) for corner in corners], np.float64)


def _boxed(mask: np.ndarray, volume: Volume, *, what: str) -> tuple[Box, np.ndarray]:
    """A mask within a box that leaves room to blur, so that little crosses to the other process."""
    found = np.argwhere(mask)
    if not len(found):
        raise GeometryError(
            f"expected voxels in {what}", got="none", hint="Pick a label that occurs, or draw on the volume."
        )
    margin = int(np.ceil(20.0 / volume.voxel_size))
    low, high = np.maximum(found.min(axis=0) - margin, 0), np.minimum(found.max(axis=0) + 1 + margin, volume.shape)
    z, y, x = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return (z, y, x), mask[z, y, x]

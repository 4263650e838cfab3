"""Array operations that several verbs share: resampling between grids and low-pass filters."""

from collections.abc import Callable

import numpy as np
import scipy.fft

from cryoscan.units import Angstrom, Shape, Vector
from cryoscan.volume import Volume

_LANCZOS_LOBES = 3
_MARGIN = 8  # voxels of padding that keep the jump between the periodic ends away from the data

# ---------------------------------------------------------------- resampling


def resample_fourier(volume: Volume, voxel_size: Angstrom) -> Volume:
    """Resample to another voxel size by cropping or padding the Fourier transform.

    The transform is cropped at the coarser grid's Nyquist frequency and the series is
    evaluated at the new voxels' places, so any ratio of voxel sizes is exact. Voxel
    (0, 0, 0) keeps its place; detail is lost only when going to coarser voxels.

    Parameters
    ----------
    volume : Volume
        Is read into memory.
    voxel_size : Angstrom

    Returns
    -------
    Volume
        Reaches as far as the input, at most one voxel less.
    """
    ratio = voxel_size / volume.voxel_size
    data = volume.load()
    if abs(ratio - 1) < 1e-4:
        return Volume(data, volume.voxel_size, volume.origin)
    matrices = []
    for size in volume.shape:
        count = int(np.floor((size - 1) / ratio + 1e-6)) + 1
        matrices.append(_dirichlet_matrix(size, np.arange(count) * ratio, cutoff=0.5 / max(ratio, 1.0)))
    return Volume(_along_axes(matrices, data), voxel_size, volume.origin)


def resample_onto(volume: Volume, *, voxel_size: Angstrom, origin: Vector, shape: Shape, fill: float = 0.0) -> Volume:
    """Resample a volume onto a given grid with a local kernel (Lanczos-3, widened when coarsening).

    Each output voxel depends on a small neighbourhood of input voxels alone, so a part of a
    huge volume can be resampled by itself and agrees with the whole (law L1). Only the
    input that is needed is read; outside the volume it is `fill`.
    """
    matrices, box = [], []
    for axis in range(3):
        places = (origin[axis] - volume.origin[axis] + np.arange(shape[axis]) * voxel_size) / volume.voxel_size
        start, matrix = _lanczos_matrix(places, max(1.0, voxel_size / volume.voxel_size))
        matrices.append(matrix)
        box.append(slice(start, start + matrix.shape[1]))
    data = volume.read((box[0], box[1], box[2]), fill=fill)
    return Volume(_along_axes(matrices, data), voxel_size, origin)


# ---------------------------------------------------------------- low-pass


def lowpass_gaussian(data: np.ndarray, *, voxel_size: Angstrom, sigma: Angstrom) -> np.ndarray:
    """Convolve with a Gaussian of width `sigma` Å: H(s) = exp(-2 pi² sigma² s²)."""
    return _filtered(data, lambda s: np.exp(-2 * (np.pi * sigma * s) ** 2), voxel_size)


def lowpass_butterworth(data: np.ndarray, *, voxel_size: Angstrom, resolution: Angstrom, order: int = 8) -> np.ndarray:
    """Butterworth low-pass, H(s) = 1 / sqrt(1 + (s R)^(2 order)): half power at 1/R."""
    return _filtered(data, lambda s: 1 / np.sqrt(1 + (s * resolution) ** (2 * order)), voxel_size)


def lowpass_cut(data: np.ndarray, *, voxel_size: Angstrom, resolution: Angstrom, edge: float = 0.1) -> np.ndarray:
    """Cut off what is finer than the resolution: 1 up to s = 1/R, then half a cosine to 0 at (1 + edge) / R."""
    return _filtered(
        data,
        lambda s: 0.5 + 0.5 * np.cos(np.pi * np.clip((s * resolution - 1) / edge, 0, 1)),
        voxel_size,
    )


def frequency_grid(shape: Shape, voxel_size: Angstrom) -> np.ndarray:
    """Spatial frequency ``|s|`` in 1/Å of every coefficient of `rfftn`, `z y x//2+1`."""
    z, y = (np.fft.fftfreq(size, voxel_size) for size in shape[:2])
    x = np.fft.rfftfreq(shape[2], voxel_size)
    return np.sqrt(z[:, None, None] ** 2 + y[None, :, None] ** 2 + x[None, None, :] ** 2).astype(np.float32)


# ---------------------------------------------------------------- private


def _filtered(data: np.ndarray, response: Callable[[np.ndarray], np.ndarray], voxel_size: Angstrom) -> np.ndarray:
    z, y, x = data.shape
    spectrum = scipy.fft.rfftn(np.asarray(data, np.float32), workers=-1)
    spectrum *= response(frequency_grid((z, y, x), voxel_size)).astype(np.float32)
    return scipy.fft.irfftn(spectrum, s=(z, y, x), workers=-1).astype(np.float32)


def _along_axes(matrices: list[np.ndarray], data: np.ndarray) -> np.ndarray:
    """Multiply each axis of `data` by its matrix (`out in`); NaN and infinity make NaN of what they take part in."""
    import torch  # numpy's products follow the number of threads in their last bits, on some processors

    x_ZYX = torch.from_numpy(np.require(data, matrices[2].dtype, "W"))
    z_OI, y_OI, x_OI = (torch.from_numpy(matrix) for matrix in matrices)
    found_ZYX = torch.tensordot(z_OI, y_OI @ (x_ZYX @ x_OI.T), dims=([1], [0]))
    return np.ascontiguousarray(found_ZYX.numpy(), np.float32)


def _dirichlet_matrix(size: int, places: np.ndarray, *, cutoff: float) -> np.ndarray:
    """Series with frequencies up to `cutoff` (cycles per voxel) of `size` samples, evaluated at `places`.

    The samples are continued by their edge values; the columns of the continuation are
    folded onto the edge columns, so that the matrix applies to the data as it is.
    """
    padded = size + 2 * _MARGIN + (size + 1) % 2  # odd: no lone Nyquist coefficient
    highest = min((padded - 1) // 2, int(np.floor(cutoff * padded + 1e-9)))
    u = (places[:, None] + _MARGIN - np.arange(padded)) / padded
    sine = np.sin(np.pi * u)
    whole = np.abs(sine) < 1e-9
    kernel = np.sin((2 * highest + 1) * np.pi * u) / (padded * np.where(whole, 1, sine))
    kernel[whole] = (2 * highest + 1) / padded
    matrix = kernel[:, _MARGIN : _MARGIN + size]
    matrix[:, 0] += kernel[:, :_MARGIN].sum(axis=1)
    matrix[:, -1] += kernel[:, _MARGIN + size :].sum(axis=1)
    return np.ascontiguousarray(matrix, np.float32)


def _lanczos_matrix(places: np.ndarray, widen: float) -> tuple[int, np.ndarray]:
    """First input voxel and weights (`out in`, rows sum to 1) that interpolate at `places`."""
    reach = _LANCZOS_LOBES * widen
    start = int(np.ceil(places[0] - reach))
    stop = int(np.floor(places[-1] + reach)) + 1
    u = (places[:, None] - np.arange(start, stop)) / widen
    weights = np.where(np.abs(u) < _LANCZOS_LOBES, np.sinc(u) * np.sinc(u / _LANCZOS_LOBES), 0)
    weights /= weights.sum(axis=1, keepdims=True)
    return start, weights.astype(np.float32)

"""What is this volume, and can anything be found in it? Answered in seconds, before hours are spent."""

from dataclasses import dataclass

import numpy as np

from cryoscan.errors import CryoscanError, FormatError
from cryoscan.io import stored_parts
from cryoscan.segment import contour_level
from cryoscan.units import Angstrom, Shape
from cryoscan.volume import Volume

_SAMPLE = 4_000_000  # voxels that are looked at
_ALIKE: Angstrom = 8.0  # coarser, many domains look alike
_EVERY = 7  # value of the sample that is looked at for the contour, which takes longest and is only shown
_BLOCK = 48
_SKEWED = 0.25


@dataclass(frozen=True, slots=True)
class Preflight:
    """What a look at a sample of the volume tells.

    Parameters
    ----------
    shape : Shape
    voxel_size, nyquist : Angstrom
        No detail finer than `nyquist` (two voxels) can be in the volume.
    mean, spread, skewness : float
        Of the values; protein-positive volumes are skewed to the right.
    background : float
        The median: most of a volume is solvent.
    contour : float
        Density above which there is probably protein.
    finest : Angstrom
        Resolution at which a database may be searched: that of the map, or Nyquist.
    coarsest : Angstrom
        Lowest resolution at which the database still tells domains apart.
    resolution_known : bool
        Whether it was given, rather than taken from Nyquist.
    warnings : tuple of str
        Plain sentences for the user.
    """

    shape: Shape
    voxel_size: Angstrom
    nyquist: Angstrom
    mean: float
    spread: float
    skewness: float
    background: float
    contour: float
    finest: Angstrom
    coarsest: Angstrom
    resolution_known: bool
    warnings: tuple[str, ...]

    @property
    def can_identify(self) -> bool:
        """Whether the volume resolves what the database needs."""
        return self.finest <= self.coarsest


def inspect(volume: Volume, *, resolution: Angstrom | None, coarsest: Angstrom) -> Preflight:
    """Look at a volume before working on it.

    Parameters
    ----------
    volume : Volume
        Protein positive.
    resolution : Angstrom, optional
        Of the volume, if it is known.
    coarsest : Angstrom
        Resolution of the coarsest bank of the DateDB.

    Raises
    ------
    FormatError
        If the sample holds NaN or infinity, or nothing but one value.
    """
    values = sample(volume)
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).sum())
        raise FormatError(
            "expected finite values",
            got=f"{bad} of {values.size} sampled voxels that are NaN or infinite",
            hint="Replace them, e.g. with the mean: numpy.nan_to_num(data, nan=data.mean()).",
        )
    mean, spread = float(values.mean()), float(values.std())
    if spread <= 1e-6 * max(abs(mean), 1e-30):
        raise FormatError(
            "expected a volume with contrast", got=f"the value {mean:g} everywhere", hint="Is this the right file?"
        )
    skewness = float((((values - mean) / spread) ** 3).mean())
    nyquist = 2 * volume.voxel_size
    finest = max(resolution or nyquist, nyquist)
    warnings = []
    if skewness < -_SKEWED:
        warnings.append(
            f"The density is skewed to the dark side (skewness {skewness:.2f}): protein may be dark here. "
            "If so, pass --contrast dark; with the wrong sign nothing is found."
        )
    if resolution is not None and resolution < 0.99 * nyquist:
        warnings.append(
            f"A resolution of {resolution:g} Å was given, but voxels of {volume.voxel_size:g} Å hold nothing finer "
            f"than {nyquist:g} Å: {nyquist:g} Å is used. Is the voxel size right?"
        )
    if finest > coarsest:
        warnings.append(
            f"The volume resolves {finest:.1f} Å at best, the database needs {coarsest:g} Å or better: single "
            "domains look alike at this resolution, so nothing can be named and everything stays unknown."
        )
    elif finest > _ALIKE:
        warnings.append(f"At {finest:.1f} Å many domains look alike: take the names as suggestions.")
    if resolution is None and finest <= coarsest:
        warnings.append("The resolution is not known (--resolution): names are less certain.")
    try:
        contour = contour_level(values[::_EVERY])
    except CryoscanError:
        contour = mean + spread
    return Preflight(
        shape=volume.shape,
        voxel_size=volume.voxel_size,
        nyquist=nyquist,
        mean=mean,
        spread=spread,
        skewness=skewness,
        background=float(np.median(values)),
        contour=contour,
        finest=finest,
        coarsest=coarsest,
        resolution_known=resolution is not None,
        warnings=tuple(warnings),
    )


def sample(volume: Volume) -> np.ndarray:
    """Values of the whole volume if it is small, else of blocks spread evenly over what is stored; `n`, float32."""
    if int(np.prod(volume.shape)) <= _SAMPLE:
        return volume.load().ravel()
    stored = stored_parts(volume.data)
    if stored is None or stored.present.all() or not stored.present.any():
        starts = _spread_evenly(volume.shape)
    else:
        starts = _spread_over(np.argwhere(stored.present), stored.size)
    blocks = []
    for start in starts.tolist():
        z, y, x = (slice(s, min(s + _BLOCK, size)) for s, size in zip(start, volume.shape, strict=True))
        blocks.append(volume.read((z, y, x)).ravel())
    return np.concatenate(blocks)


def _spread_over(parts: np.ndarray, size: Shape) -> np.ndarray:
    """Blocks anywhere in parts: of a shard, too, only some chunks may be stored."""
    count = _SAMPLE // _BLOCK**3
    if max(size) <= _BLOCK:
        count = min(count, len(parts))
    chosen = parts[np.linspace(0, len(parts) - 1, count).astype(int)]
    room = np.maximum(0, np.asarray(size) - _BLOCK) + 1
    return np.asarray(chosen * size + np.random.default_rng(0).integers(0, room, size=(count, 3)))


def _spread_evenly(shape: Shape) -> np.ndarray:
    per_axis = max(1, round((_SAMPLE / _BLOCK**3) ** (1 / 3)))
    axes = [np.unique(np.linspace(0, max(0, size - _BLOCK), per_axis).astype(int)) for size in shape]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)

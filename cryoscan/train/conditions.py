"""How unlike a clean, complete, well-cut domain a view may be and how likely, and conditions to measure under."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from cryoscan.errors import ConfigError
from cryoscan.units import Angstrom, Degree

SCENES = ("isolated", "crowded", "molecular", "sphere", "tomogram")
"""What surrounds the domain and how it is cut out.

``isolated``: nothing else is there. ``crowded``: the rest of its chain and other chains that
touch it, uncut. ``molecular``, ``sphere``: the same, cut out by an imperfect mask of the
domain's shape or by a ball. ``tomogram``: crowded, at low resolution, with missing wedge,
contrast transfer and strong noise.
"""

Range = tuple[float, float]

_FRACTIONS = ("centred", "incomplete", "whole_chain", "distorted", "noise_free", "magnification")
_SIGNED = ("mask_offset_A", "b_factor_A2")
_RANGES = (
    "resolution_A",
    "missing",
    "neighbours",
    "mask_offset_A",
    "mask_edge_A",
    "uneven",
    "b_factor_A2",
    "gamma",
    "snr",
    "tomogram_resolution_A",
    "tomogram_snr",
    "tilt_degrees",
    "defocus_um",
)


@dataclass(frozen=True, slots=True)
class ViewConfig:
    """What views are drawn from; ranges are drawn from evenly unless said otherwise."""

    scenes: Mapping[str, float] = field(
        default_factory=lambda: {"isolated": 0.25, "crowded": 0.25, "molecular": 0.3, "sphere": 0.1, "tomogram": 0.1}
    )
    """Scene → relative frequency; scenes that are not named do not occur."""
    resolution_A: Range = (4.0, 10.0)
    """Resolution of all scenes but tomograms, Å."""
    shift_A: Angstrom = 4.0
    """Largest error of the centre along each axis, Å."""
    centred: float = 0.5
    """Fraction of the isolated and masked views that are centred, to a voxel, on the mass that is visible in them."""
    magnification: float = 0.05
    """Largest relative error of the voxel size."""
    incomplete: float = 0.3
    """Fraction of the views from which a part of the domain is missing."""
    missing: Range = (0.05, 0.30)
    """Fraction of the domain's atoms that is missing from these: a stretch of residues, or all beyond a plane."""
    neighbours: tuple[int, int] = (1, 3)
    """Fewest and most chains that touch the domain or its chain, except in isolated views."""
    whole_chain: float = 1.0
    """Fraction of the views with neighbours that also hold the rest of the domain's own chain."""
    mask_offset_A: Range = (-3.0, 3.0)
    """How far outside the molecular surface a molecular mask has fallen to 1/2, Å."""
    mask_roughness_A: Angstrom = 2.0
    """Standard deviation of that from place to place, Å."""
    mask_edge_A: Range = (3.0, 6.0)
    """Width of the soft edge of molecular and spherical masks, Å."""
    sphere_margin_A: Angstrom = 4.0
    """Radius of a spherical mask less that of the domain, Å."""
    distorted: float = 0.5
    """Probability of each of: uneven resolution, rescaled amplitudes, flattened solvent, gamma. None in tomograms."""
    uneven: Range = (0.7, 1.5)
    """Best and worst local resolution in units of the map's; it changes along a random direction."""
    b_factor_A2: Range = (-150.0, 300.0)
    """B of the factor exp(-B s²/4) on the amplitudes, Å²."""
    gamma: Range = (0.7, 1.4)
    """Exponent of the intensities."""
    noise_free: float = 0.2
    """Fraction of the views without noise; no tomogram is."""
    snr: Range = (0.5, 50.0)
    """Variance of the domain's density over that of the noise, drawn evenly on a logarithmic scale; the noise
    is as smooth as the density."""
    tomogram_resolution_A: Range = (8.0, 20.0)
    """Resolution of tomograms, Å."""
    tomogram_snr: Range = (0.05, 1.0)
    """As `snr`; a part of the noise's power falls with frequency."""
    tilt_degrees: tuple[Degree, Degree] = (40.0, 70.0)
    """Largest tilt, degrees."""
    defocus_um: Range = (2.0, 6.0)
    """Underfocus, µm."""

    def __post_init__(self) -> None:
        unknown = [scene for scene in self.scenes if scene not in SCENES]
        if unknown or not sum(self.scenes.values()) > 0 or min(self.scenes.values()) < 0:
            raise ConfigError(
                f"expected frequencies of {', '.join(SCENES)}, not all zero",
                got=str(dict(self.scenes)),
                hint="Write for instance {'isolated': 1.0}.",
            )
        for name in _FRACTIONS:
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(
                    f"expected a fraction '{name}'", got=str(getattr(self, name)), hint="Give a number from 0 to 1."
                )
        for name in _RANGES:
            low, high = getattr(self, name)
            if not low <= high or (name not in _SIGNED and low < 0):
                raise ConfigError(
                    f"expected a range '{name}', the lower end first", got=f"({low}, {high})", hint="Swap or mend it."
                )
        object.__setattr__(self, "scenes", dict(self.scenes))


_CLEAN = ViewConfig(
    scenes={"isolated": 1.0},
    resolution_A=(6.0, 6.0),
    shift_A=2.0,
    centred=0.0,
    magnification=0.0,
    incomplete=0.0,
    missing=(0.30, 0.30),
    neighbours=(2, 2),
    whole_chain=0.0,
    mask_offset_A=(3.0, 3.0),
    mask_roughness_A=0.0,
    mask_edge_A=(3.0, 3.0),
    distorted=0.0,
    noise_free=1.0,
)

CONDITIONS: Mapping[str, ViewConfig] = MappingProxyType(
    {
        "clean_6A": _CLEAN,
        "clean_4.5-10A": replace(_CLEAN, resolution_A=(4.5, 10.0)),
        "clean_10A": replace(_CLEAN, resolution_A=(10.0, 10.0)),
        "noise": replace(_CLEAN, noise_free=0.0, snr=(1.0, 1.0)),
        "missing_30": replace(_CLEAN, incomplete=1.0),
        "neighbours_no_mask": replace(_CLEAN, scenes={"crowded": 1.0}),
        "neighbours_sphere": replace(_CLEAN, scenes={"sphere": 1.0}),
        "neighbours_molecular_3A": replace(_CLEAN, scenes={"molecular": 1.0}),
        "hard": replace(
            _CLEAN,
            scenes={"molecular": 1.0},
            resolution_A=(8.0, 8.0),
            shift_A=3.0,
            incomplete=1.0,
            missing=(0.15, 0.15),
            whole_chain=1.0,
            mask_roughness_A=2.0,
            noise_free=0.0,
            snr=(5.0, 5.0),
        ),
        "tomogram": replace(_CLEAN, scenes={"tomogram": 1.0}, whole_chain=1.0, tomogram_resolution_A=(10.0, 15.0)),
    }
)
"""Fixed conditions to measure embedders under. Each differs from ``clean_6A`` (one domain at 6 Å, ±2 Å off
centre, no noise) in what its name says; ``hard`` and ``tomogram`` in many things."""

"""Settings of a scan: what the user wants, apart from the volume and the database."""

from typing import ClassVar

from pydantic import Field

from cryoscan.config import Config


class TypeThresholds(Config):
    """What a region must reach to be named as one type; what is unset is as for all types."""

    min_score: float | None = Field(default=None, ge=-1, le=1)
    """Cosine from which on."""
    min_margin: float | None = Field(default=None, ge=0, le=2)
    """Lead over the next type from which on."""
    min_volume_A3: float | None = Field(default=None, ge=0)
    """Volume of the region from which on, Å³."""


class ScanConfig(Config):
    """How a volume is scanned."""

    stride_voxels: int = Field(default=4, ge=1, le=32)
    """Distance of neighbouring windows on the embedder's grid (2.5 Å voxels: 4 = 10 Å)."""
    resolution_A: float | None = Field(default=None, gt=0)
    """Resolution of the volume in Å; unset = taken from the voxel size."""
    scheme: str = "CATH"
    """Scheme whose types are the labels; entries of a user's own schemes count as well, those of others do not."""
    contour: float | None = None
    """Density above which a voxel may be protein; unset = found from the volume."""
    false_positive_rate: float = Field(default=0.01, gt=0, lt=1)
    """Share of regions of the volume's own phase-scrambled noise that would pass the threshold."""
    min_score: float | None = Field(default=None, ge=-1, le=1)
    """Cosine from which on a region is named; unset = from the false-positive rate, at least 0.8."""
    min_confidence: float = Field(default=0.5, ge=0, le=1)
    """Probability of being right from which on a region is named; where the DateDB is calibrated."""
    min_margin: float | None = Field(default=None, ge=0, le=2)
    """Lead of the cosine over that of the next type from which on a region is named; unset = any."""
    min_volume_A3: float | None = Field(default=None, ge=0)
    """Volume of a region from which on it is named, Å³; unset = any. Only where places are cut out."""
    per_type: dict[str, TypeThresholds] | None = None
    """Type, such as 1.10.490.10 → what is different for it."""
    min_distance_A: float = Field(default=25.0, gt=0)
    """Hits closer than this to a better one are dropped."""
    candidates: int = Field(default=5, ge=2, le=20)
    """Domain types kept per lattice point."""
    tile_points: int | None = Field(default=None, ge=2, le=256)
    """Lattice points per edge of a tile, the unit of work and of resuming; unset = by the size of the volume."""
    skip_flat: bool = True
    """Leave out what has clearly less contrast than the rest, such as vacuum beside a lamella."""
    keep_embeddings: bool = False
    """Store the vectors of the lattice as bytes, so that `cryoscan relabel` can search them in another DateDB."""
    enhance: bool = False
    """Sharpen the volume first (see `cryoscan enhance`), and say of each place whether that changed its name."""
    ignore_resolution: bool = False
    """Embed even if the volume is too coarse for the database; the names then mean little."""

    labelling: ClassVar[frozenset[str]] = frozenset(
        {
            "false_positive_rate",
            "min_score",
            "min_confidence",
            "min_margin",
            "min_volume_A3",
            "per_type",
            "min_distance_A",
        }
    )
    """Settings that only choose among what the tiles hold: `relabel` changes them without scanning again."""

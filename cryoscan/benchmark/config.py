"""Settings of a benchmark."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from cryoscan.config import Config


class Case(Config):
    """A domain of an experimental map."""

    map: str
    """Its name in maps.json; it must have a model."""
    chain: str
    """Of the model."""
    type: str
    """Scheme and type of the domain, e.g. ``CATH 2.60.40.10``; types of this scheme alone are proposed."""
    residues: str = ""
    """Of the domain, e.g. ``2-135,411-525``; all of the chain if empty."""
    resolution_A: float | None = Field(default=None, gt=0)
    """To which the map is filtered, Å; as it is if not given."""


class BenchmarkConfig(Config):
    """What is asked, and how hard the questions are."""

    kind: Literal[
        "retrieval", "conditions", "real_maps", "calibration", "mode2", "scaling", "enhance", "cryodomain", "cases"
    ]
    """Simulated domains, or chains cut out of experimental maps; the latter uses `residues` alone."""
    residues: tuple[int, int] = (40, 300)
    """Smallest and largest query, residues."""
    resolutions_A: tuple[float, ...] = Field(default=(4.5, 6.0, 8.0, 10.0), min_length=1)
    """Resolutions at which the queries are simulated, Å."""
    half: Literal["test", "dev", "both"] = "test"
    """Half of the sequence clusters, by the parity of a hash, that queries are chosen from; settings were chosen on
    ``dev``. Only for data that name no queries."""
    n_queries: int = Field(default=190, ge=1)
    """Largest number of queries per scheme that are chosen. Only for data that name no queries."""
    per_type: int = Field(default=5, ge=1)
    """Largest number of queries of one type that are chosen. Only for data that name no queries."""
    cath_types: int = Field(default=159, ge=1)
    """Size of the smaller set of CATH types: those of the queries and the most populous others."""
    scope_types: int = Field(default=79, ge=1)
    """Size of the smaller set of SCOPe types."""
    max_identity: float = Field(default=0.30, ge=0, le=1)
    """Entries with a higher sequence identity to a query are struck from the DateDB for it."""
    noise: float = Field(default=0.3, ge=0)
    """Standard deviation of the noise, in units of the signal's."""
    shift_A: float = Field(default=2.0, ge=0)
    """Largest error of the centre along each axis, Å."""
    seed: int = 0
    """Of the rotations, shifts and noise, together with the id of each domain."""
    maps: tuple[str, ...] = ()
    """Names of the maps that are cut up whole. Only for ``mode2``, as all below."""
    assemblies: tuple[str, ...] = ()
    """PDB ids of complexes that are simulated at `resolutions_A`, with `noise`, and cut up."""
    domains: dict[str, dict[str, str]] = Field(default_factory=dict)
    """Map → CATH type → residues of the domain in every chain of the map's model, e.g. ``2-135,411-525``."""
    cases: tuple[Case, ...] = ()
    """Domains of experimental maps that are named and docked. Only for ``cases``."""
    d2: tuple[str, ...] = ()
    """Maps with the symmetry D2 about the middle of their grid, whose regions should repeat."""
    weights: Path | None = None
    """Enhancing network to measure; the one that ships otherwise. Only for ``enhance``, as the next two."""
    identified_A: tuple[float, ...] = ()
    """Resolutions at which the chains of real maps are named with and without enhancement."""
    runs: Path | None = None
    """Folder of the runs of configs/cryodomain, each under its own name. Only for ``cryodomain``, as the next."""
    pictures: Path | None = None
    """Folder that pictures are drawn in; none otherwise."""
    speed_voxels: tuple[int, ...] = (100, 150, 200)
    """Edges of the cubic maps, 1 Å a voxel, that are timed."""
    parts: tuple[Literal["dense", "growth", "workers", "kills", "workers_killed", "sparse"], ...] = (
        "dense",
        "growth",
        "workers",
        "kills",
        "workers_killed",
        "sparse",
    )
    """What is measured. Only for ``scaling``, as all below."""
    shapes: tuple[tuple[int, int, int], ...] = ((128, 128, 128), (192, 192, 192), (256, 256, 256))
    """Voxels (2.5 Å) of the volumes that are scanned."""
    interrupted: tuple[int, int, int] = (256, 256, 256)
    """Voxels of the volume whose scan is killed."""
    shared: tuple[int, int, int] = (384, 384, 384)
    """Voxels of the volume that two workers share."""

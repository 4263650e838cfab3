"""Settings of a DateDB."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from cryoscan.config import Config
from cryoscan.datedb.store import Fit


class DateDBConfig(Config):
    """How a database is built."""

    resolutions_A: tuple[float, ...] = Field(default=(6.0, 10.0), min_length=1)
    """Resolutions of the simulated densities, one bank each, Å."""
    voxel_size_A: float = Field(default=2.5, gt=0)
    """Voxel size of the embedder's windows, Å."""
    dtype: Literal["int8", "float16", "float32"] = "float16"
    """How embeddings are stored."""
    ca_only: bool = True
    """Include domains of which only C-alpha positions are known (completed approximately)."""
    calibration: dict[float, Fit] = Field(default_factory=dict)
    """Level → coefficients that turn cosine, lead and, if there is a fourth, length into a confidence (`cryoscan
    benchmark` measures them)."""
    shape_calibration: dict[float, Fit] = Field(default_factory=dict)
    """The same for answers by shape."""
    previews: int = Field(default=0, ge=0)
    """Number of the largest types whose representative gets a preview density."""
    atom_weights: Path | None = None
    """Weights of an AtomTower, which embeds the structures themselves in place of their simulated densities."""
    tower_weights: Path | None = None
    """Weights of the tower of densities that was aligned to it, which embeds what is asked. Both are put into the
    database."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.atom_weights is None) != (self.tower_weights is None):
            raise ValueError("atom_weights and tower_weights belong together: give both or neither")
        if self.atom_weights is not None and len(self.resolutions_A) != 1:
            raise ValueError("vectors of structures are the same at all resolutions: give one under resolutions_A")
        return self

"""Settings of a batch: those of the scans, and what single volumes need instead."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator

from cryoscan.config import Config
from cryoscan.errors import ConfigError
from cryoscan.scan import ScanConfig


class VolumeSettings(Config):
    """What is special about one volume, or about those that a pattern names; unset = as for all."""

    voxel_size: float | None = Field(default=None, gt=0)
    """In place of the header's, Å."""
    contrast: Literal["bright", "dark"] | None = None
    """What protein is in the file."""
    resolution: float | None = Field(default=None, gt=0)
    """Of the volume, Å."""
    z_range: tuple[int, int] | None = None
    """Planes to scan: first and last + 1, counted from 0; in text 40:160."""
    mask: str | None = None
    """Volume on the same grid, above 0 where to scan; may hold {stem}, {run} and the other words of `naming`."""
    name: str | None = Field(default=None, pattern=r"^[\w.+-]+$")
    """Of the scan and in tables, e.g. as in RELION's tomogram table."""
    scan: dict[str, Any] = Field(default_factory=dict)
    """Settings of the scan that differ from those of the batch, e.g. {min_score: 0.85}."""

    @field_validator("z_range", mode="before")
    @classmethod
    def _planes(cls, value: object) -> object:
        return tuple(value.split(":")) if isinstance(value, str) else value

    @field_validator("scan")
    @classmethod
    def _settings_of_a_scan(cls, value: dict[str, Any]) -> dict[str, Any]:
        ScanConfig.build(**value)
        return value

    def replaced_by(self, other: "VolumeSettings") -> Self:
        """These settings, with what the other one sets in their place."""
        values = {**self.model_dump(exclude_unset=True), **other.model_dump(exclude_unset=True)}
        return type(self).build(**{**values, "scan": {**self.scan, **other.scan}})


class BatchConfig(Config):
    """How many volumes are scanned."""

    scan: ScanConfig = ScanConfig()
    """Settings of all scans."""
    contrast: Literal["bright", "dark"] = "bright"
    """What protein is in the files; raw tomograms are mostly dark."""
    voxel_size: float | None = Field(default=None, gt=0)
    """In place of all headers', Å."""
    naming: str = "{run}"
    """Name of a volume's scan, made of {stem} (file without ending), {folder}, {dataset}, {run} and {tomogram}; for
    files outside of a project, run and tomogram are the stem and dataset is the folder."""
    voxel_spacing: float | None = Field(default=None, gt=0)
    """Which tomogram of a run to take where a project has several: its voxel size, Å."""
    tomogram: str | None = None
    """Which tomogram of a run to take: copick's type or the portal's number; * and ? stand for others."""
    overrides: dict[str, VolumeSettings] = Field(default_factory=dict)
    """Pattern → what is different for volumes whose path, file name or run matches it; later ones win."""

    @field_validator("scan", mode="before")
    @classmethod
    def _settings_of_a_scan(cls, value: object) -> object:
        return ScanConfig.build(**value) if isinstance(value, dict) else value

    @field_validator("overrides", mode="before")
    @classmethod
    def _settings_of_volumes(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        return {
            pattern: VolumeSettings.build(**settings) if isinstance(settings, dict) else settings
            for pattern, settings in value.items()
        }


def fill_words(template: str, words: dict[str, str], *, what: str) -> str:
    """Put the words of a volume into a name or path such as ``{dataset}_{run}``.

    Raises
    ------
    ConfigError
        If the template holds another word.
    """
    try:
        return template.format_map(words)
    except (KeyError, ValueError, IndexError, AttributeError) as error:
        raise ConfigError(
            f"expected {', '.join(f'{{{word}}}' for word in words)} in {what}",
            got=f"'{template}'",
            hint="Write e.g. {dataset}_{run}.",
        ) from error


def words_of(path: Path, *, dataset: str = "", run: str = "", tomogram: str = "") -> dict[str, str]:
    """What a template may be filled with."""
    stem = path.name
    for ending in (".gz", ".bz2", ".zarr", ".ome", ".mrc", ".map", ".rec", ".ccp4", ".st", ".ali"):
        stem = stem.removesuffix(ending)
    folder = path.resolve().parent.name
    return {
        "stem": stem,
        "folder": folder,
        "dataset": dataset or folder,
        "run": run or stem,
        "tomogram": tomogram or stem,
    }

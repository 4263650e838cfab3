"""Thresholds that were tuned on one scan, as settings of a batch: tune on one tomogram, apply to all."""

from pathlib import Path
from typing import Any

import yaml

from cryoscan.batch.config import BatchConfig
from cryoscan.errors import ResourceError, refuse_existing
from cryoscan.provenance import write_atomically
from cryoscan.scan import ScanConfig


def write_recipe(config: ScanConfig, path: Path, *, overwrite: bool = False) -> None:
    """Write the settings of a scan as a file that `cryoscan batch --config` and `cryoscan relabel --recipe` take.

    Raises
    ------
    ExistingOutputError, ResourceError
        If the file is there already, or cannot be written.
    """
    kept = config.model_dump(mode="json", include=set(ScanConfig.labelling))
    settings = {**config.model_dump(mode="json", exclude_defaults=True), **kept}  # a default may have been chosen
    text = yaml.safe_dump({"scan": settings}, sort_keys=False, allow_unicode=True)
    try:
        write_atomically(refuse_existing(path, overwrite=overwrite), text)
    except OSError as error:
        if isinstance(error, FileExistsError | FileNotFoundError):
            raise
        raise ResourceError(
            f"expected to write {path}",
            got=error.strerror or str(error),
            hint="Choose a folder where you may write.",
        ) from error


def read_recipe(path: Path) -> dict[str, Any]:
    """The thresholds of a recipe, as `relabel` takes them; its other settings would need a new scan."""
    chosen = BatchConfig.read(path).scan.model_dump(mode="json", exclude_unset=True)
    return {key: value for key, value in chosen.items() if key in ScanConfig.labelling}

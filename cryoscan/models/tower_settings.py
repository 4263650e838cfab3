"""How a tower's sizes are read from YAML; apart from the network, which needs torch and numpy alone."""

from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

from pydantic import Field, create_model

from cryoscan.config import Config
from cryoscan.models.density_tower import TowerConfig

_FIELDS: dict[str, Any] = {
    setting.name: (setting.type, Field(setting.default, description=get_args(setting.type)[1]))
    for setting in fields(TowerConfig)
}

TowerSettings: type[Config] = create_model(
    "TowerSettings", __base__=Config, __doc__="Sizes of a DensityTower, one key for each of `TowerConfig`.", **_FIELDS
)
"""The keys of `TowerConfig` as a configuration: read, written and documented like every other."""


def read_tower_config(path: Path | str) -> TowerConfig:
    """Read the sizes of a tower from a YAML file.

    Raises
    ------
    ConfigError
        If a key is unknown or a value impossible.
    """
    return TowerConfig.from_json(TowerSettings.read(path).model_dump())

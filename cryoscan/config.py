"""What every configuration is: frozen, validated, read from YAML and written back the same."""

import difflib
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from cryoscan.errors import ConfigError, require_file


class Config(BaseModel):
    """Frozen settings; unknown keys are refused with the closest known one."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True)

    @classmethod
    def read(cls, path: Path | str, **overrides: Any) -> Self:
        """Read the settings of a YAML file; `overrides` replace single keys."""
        path = require_file(Path(path), what="a YAML configuration file")
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"expected YAML in {path}", got=str(error).replace("\n", " "), hint="Mend the file's syntax."
            ) from error
        if not isinstance(values, dict):
            raise ConfigError(
                f"expected 'key: value' lines in {path}", got=type(values).__name__, hint="See configs/ for examples."
            )
        return cls.build(**{**values, **overrides})

    @classmethod
    def build(cls, **values: Any) -> Self:
        """Make a configuration from values, with readable errors."""
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            if first["type"] == "extra_forbidden":
                close = difflib.get_close_matches(key, list(cls.model_fields), n=1)
                hint = f"Did you mean '{close[0]}'?" if close else f"Known keys: {', '.join(cls.model_fields)}."
                raise ConfigError(f"expected a key of {cls.__name__}", got=f"'{key}'", hint=hint) from error
            raise ConfigError(
                f"expected a valid '{key}' in {cls.__name__}",
                got=repr(first.get("input")),
                hint=f"{first['msg']}.",
            ) from error

    def write(self, path: Path | str) -> None:
        """Write the settings as YAML."""
        text = yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)
        Path(path).write_text(text, encoding="utf-8")

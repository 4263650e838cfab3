"""How the reference pages of commands and settings are made from the code itself."""

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

CONFIG_CLASSES = {
    "Scanning (`cryoscan scan --config`)": ("cryoscan.scan.config", "ScanConfig"),
    "Scanning many volumes (`cryoscan batch --config`)": ("cryoscan.batch.config", "BatchConfig"),
    "One volume of many (a list, or `overrides`)": ("cryoscan.batch.config", "VolumeSettings"),
    "Building a database (`cryoscan datedb build --config`)": ("cryoscan.datedb.config", "DateDBConfig"),
    "Benchmarks (`cryoscan benchmark`)": ("cryoscan.benchmark.config", "BenchmarkConfig"),
    "Training a tower (`cryoscan train`)": ("cryoscan.train.config", "TrainConfig"),
    "Training a tower of structures (`cryoscan train`, kind `atom`)": ("cryoscan.train.config", "AtomTrainConfig"),
    "Training the network that sharpens (`cryoscan train`, objective `enhance`)": (
        "cryoscan.train.config",
        "EnhanceTrainConfig",
    ),
    "Training the network that tells helices and strands apart (`cryoscan train`, objective `recognise`)": (
        "cryoscan.train.config",
        "RecogniseTrainConfig",
    ),
}
_SETTINGS = """# Settings

A YAML file of `key: value` lines. An unknown key is refused with the closest known one; what a file leaves out has the
default.
"""


def write_reference(folder: Path) -> None:
    """Write ``commands.md`` and ``settings.md`` into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in {"commands.md": commands_page(), "settings.md": settings_page()}.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:  # an unchanged page is not built again
            path.write_text(text, encoding="utf-8")


def commands_page() -> str:
    """Every command with its arguments and options, as typer describes them."""
    words = [
        sys.executable,
        "-m",
        "typer",
        "cryoscan.cli",
        "utils",
        "docs",
        "--name",
        "cryoscan",
        "--title",
        "Commands",
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"typer could not describe the commands: {done.stderr}")
    return done.stdout


def settings_page() -> str:
    """Every key of every configuration class, as pydantic knows it."""
    return _SETTINGS + "\n".join(_setting_lines()) + "\n"


def _setting_lines() -> Iterator[str]:
    for title, (module, name) in CONFIG_CLASSES.items():
        model: type[BaseModel] = getattr(importlib.import_module(module), name)
        yield f"\n## {title}\n"
        yield f"{(model.__doc__ or '').strip()}\n"
        yield "| key | meaning | default |\n|---|---|---|"
        for key, field in model.model_fields.items():
            default = "required" if field.is_required() else f"`{field.get_default(call_default_factory=True)!r}`"
            yield f"| `{key}` | {_cell(field.description)} | {_cell(default)} |"


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")

"""The manifest: valid, found by napari, and every command it names exists."""

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from npe2 import PluginManifest

ROOT = Path(__file__).resolve().parents[2]
MANIFEST = ROOT / "napari_plugin" / "napari.yaml"


def test_manifest_is_valid():
    done = subprocess.run(
        [sys.executable, "-m", "npe2", "validate", "--imports", str(MANIFEST)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_command_but_the_widgets_resolves_without_qt():
    manifest = PluginManifest.from_file(MANIFEST)
    names = [command.python_name for command in manifest.contributions.commands]
    names = [name for name in names if not name.startswith("napari_plugin._widgets:")]
    assert len(names) >= 5
    code = "import importlib, sys\n"
    for name in names:
        module, _, function = name.partition(":")
        code += f"assert callable(importlib.import_module({module!r}).{function})\n"
    code += "assert not {'qtpy', 'PySide6', 'PyQt6'} & sys.modules.keys()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


def test_every_contribution_names_a_command_and_every_command_is_contributed():
    contributions = PluginManifest.from_file(MANIFEST).contributions
    commands = {command.id for command in contributions.commands}
    used = [c.command for c in (*contributions.readers, *contributions.writers, *contributions.widgets)]
    used += [sample.command for sample in contributions.sample_data]
    assert set(used) == commands
    assert len(used) == len(set(used))


def test_napari_finds_the_plugin():
    found = [point.value for point in entry_points(group="napari.manifest") if point.name == "cryoscan"]
    assert found == ["napari_plugin:napari.yaml"]
    assert PluginManifest.from_distribution("cryoscan").name == "cryoscan"


@pytest.mark.parametrize("name", ["a.mrc", "a.map.gz", "a.rec", "a.zarr", "a.zarr/", "a.scan", "a.scan/"])
def test_reader_is_offered(name):
    reader = PluginManifest.from_file(MANIFEST).contributions.readers[0]
    assert any(Path(name.rstrip("/")).match(pattern.rstrip("/")) for pattern in reader.filename_patterns)

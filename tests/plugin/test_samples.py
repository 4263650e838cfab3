"""Sample data: made once, kept, and opened like any other file."""

import shutil

import pytest

from napari_plugin import _samples


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_the_demo_volume_is_made_once():
    ((data, settings, kind),) = _samples.demo_volume()
    assert kind == "image"
    assert tuple(data.shape) == (64, 88, 104)
    assert settings["metadata"]["cryoscan"]["file"]["path"] == str(_samples.folder() / "demo.mrc")
    made = (_samples.folder() / "demo.mrc").stat().st_mtime_ns
    _samples.demo_volume()
    assert (_samples.folder() / "demo.mrc").stat().st_mtime_ns == made


def test_a_demo_scan_that_is_there_is_opened(toy_folder):
    shutil.copytree(toy_folder / "scene.scan", _samples.folder() / "demo.scan")
    roles = [settings["metadata"]["cryoscan"].get("role", "volume") for _, settings, _ in _samples.demo_scan()]
    assert roles == ["volume", "score", "margin", "places", "hits"]

"""A volume, a database and a scan that the plug-in's tests share: six shapes of three types, named in a second."""

import dataclasses
import json
import os
import shutil
import time
from pathlib import Path

import pytest
from scan_worker import database, plan_of, scene, toy

from cryoscan.io import VolumeFile, write_volume
from cryoscan.lattice import paint_points
from cryoscan.models import InvariantEmbedder
from cryoscan.scan import ScanConfig, open_scan, run_scan
from napari_plugin import _tasks
from napari_plugin._background import Background

ROOT = Path(__file__).resolve().parents[2]
CONFIG = {"stride_voxels": 3, "candidates": 2, "min_score": 0.8, "contour": 0.2, "resolution_A": 6.2}


@pytest.fixture(scope="session", autouse=True)
def _the_other_process_finds_the_code():
    """The package under test, also where it is not the installed one."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory):
    """scene.mrc, toy.datedb and scene.scan, whose regions are painted."""
    folder = tmp_path_factory.mktemp("toy")
    write_volume(scene(), folder / "scene.mrc")
    database(InvariantEmbedder(4.0)).write(folder / "toy.datedb")
    for _ in _tasks.scan(_request(folder)):
        pass
    for _ in _tasks.paint(folder / "scene.scan", folder / "toy.datedb"):
        pass
    return folder


@pytest.fixture(scope="session")
def sharpened_scan(toy_folder, tmp_path_factory):
    """A scan that sharpened the toy volume, which changed the label of its second place."""
    path = tmp_path_factory.mktemp("sharpened") / "sharp.scan"
    for _ in _tasks.scan(dataclasses.replace(_request(toy_folder, enhance=True), output=path)):
        pass
    for _ in _tasks.paint(path, toy_folder / "toy.datedb"):
        pass
    found = json.loads((path / "found.json").read_text())
    assert found["changed"] == [False] * 6  # the network leaves these shapes what they are
    found["changed"][1], found["plain"][1] = True, ["CATH", "1.10.2.10", "shell", 0.875]
    (path / "found.json").write_text(json.dumps(found))
    return path


@pytest.fixture(scope="session")
def lattice_scan(toy_folder, tmp_path_factory):
    """A scan of the toy volume whose embedder cuts no places out."""
    path, source = tmp_path_factory.mktemp("lattice") / "windows.scan", VolumeFile(toy_folder / "scene.mrc")
    for _ in run_scan(plan_of("windows", source.open(), source=source), path):
        pass
    embedder = toy(needs_mask=False)
    for _ in paint_points(open_scan(path), datedb=database(embedder), embedder=embedder):
        pass
    return path


def _request(folder, **settings):
    config = ScanConfig.build(**{**CONFIG, **settings})
    return _tasks.ScanRequest(VolumeFile(folder / "scene.mrc"), folder / "scene.scan", config, folder / "toy.datedb")


@pytest.fixture
def folder(toy_folder, tmp_path):
    """A copy of the toy folder to change."""
    copied = tmp_path / "toy"
    shutil.copytree(toy_folder, copied)
    return copied


@pytest.fixture
def request_for(toy_folder, tmp_path):
    """A scan of the toy volume into a folder of its own."""

    def make(**settings):
        config = ScanConfig.build(**{**CONFIG, **settings})
        file = VolumeFile(toy_folder / "scene.mrc")
        return _tasks.ScanRequest(file, tmp_path / "new.scan", config, toy_folder / "toy.datedb")

    return make


class Kept(Background):
    """A process that tests share, as each loads its libraries for seconds; closing only empties it."""

    def close(self):
        self._waiting.clear()
        if self._running is not None:
            self.stop(self._running)
        end = time.monotonic() + 30
        while self.busy:
            self.poll()
            assert time.monotonic() < end, "what was being done did not stop"
            time.sleep(0.01)


@pytest.fixture(scope="session")
def processes():
    """The two processes of a controller."""
    both = Kept(), Kept()
    yield both
    for one in both:
        Background.close(one)


@pytest.fixture
def until():
    """Call a controller's `poll` until something is true, as the viewer's clock does."""

    def wait(controller, condition, *, seconds=60):
        end = time.monotonic() + seconds
        while not condition():
            controller.poll()
            assert time.monotonic() < end, "it did not happen in time"
            time.sleep(0.01)

    return wait

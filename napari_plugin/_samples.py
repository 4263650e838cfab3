"""Sample data: the volume of `cryoscan demo`, whose content is known, and its scan."""

import os
from pathlib import Path

from napari_plugin._layers import LayerData


def demo_volume() -> list[LayerData]:
    """A crowded volume of 24 domains, made in a second."""
    from napari_plugin._reader import read

    return read(str(_volume()))


def demo_scan() -> list[LayerData]:
    """The scan of the demo volume; the first time it is scanned before your eyes, which takes about a minute."""
    from napari_plugin._reader import read, read_scan

    scan = folder() / "demo.scan"
    if (scan / "summary.json").is_file():
        return read_scan(str(scan))
    import napari

    from cryoscan.io import VolumeFile
    from cryoscan.scan import ScanConfig
    from napari_plugin._session import session_of
    from napari_plugin._tasks import ScanRequest

    viewer = napari.current_viewer()
    if viewer is not None:
        controller = session_of(viewer).controller
        controller.said.emit("info", "The demo volume is scanned now; it takes about a minute.")
        controller.scanning.start(ScanRequest(VolumeFile(_volume()), scan, ScanConfig(resolution_A=6.0)))
    return read(str(_volume()))


def folder() -> Path:
    """Where sample data are kept between sessions."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    place = cache / "cryoscan" / "demo"
    place.mkdir(parents=True, exist_ok=True)
    return place


def _volume() -> Path:
    from cryoscan.demo import demo_volume

    path = folder() / "demo.mrc"
    if not path.is_file():
        demo_volume(path)
    return path

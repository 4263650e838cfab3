"""How fast a volume opens in napari, and a slice is there; prints JSON.

``xvfb-run -s "-screen 0 1280x800x24" python tests/benchmarks/viewer_speed.py --shape 512,1024,1024`` (z, y, x).
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

from cryoscan import Volume
from cryoscan.io import write_volume

VOXEL = 10.0


class Noise:
    """Noise that repeats every 64 planes: large volumes need no memory to be written."""

    ndim, dtype = 3, np.dtype(np.float32)

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.shape = shape
        self._planes = np.random.default_rng(0).normal(size=(64, *shape[1:])).astype(np.float32)

    def __getitem__(self, key):
        z, y, x = key
        return self._planes[np.arange(self.shape[0])[z] % 64][..., y, x]


def resident() -> int:
    return round(psutil.Process().memory_info().rss / 2**20)


def main(path: Path, depth: int) -> dict[str, object]:
    import napari
    from qtpy.QtCore import QEventLoop, QTimer

    def wait(seconds: float) -> None:
        loop = QEventLoop()
        QTimer.singleShot(int(1000 * seconds), loop.quit)
        loop.exec()

    viewer = napari.Viewer()
    viewer.window._qt_window.resize(1280, 800)
    wait(1.0)
    answer: dict[str, object] = {"memory_before_MiB": resident()}

    def seconds_to(action) -> float:
        begin = time.monotonic()
        action()
        viewer.screenshot(canvas_only=True, flash=False)  # waits until it is drawn
        return round(time.monotonic() - begin, 3)

    worked = time.process_time()
    answer["open_to_picture_s"] = seconds_to(lambda: viewer.open(path, plugin="cryoscan"))
    answer["open_to_picture_cpu_s"] = round(time.process_time() - worked, 3)  # on a busy machine the fairer number
    empty = [seconds_to(lambda: None) for _ in range(5)]
    wait(1.0)

    def turn_to(planes: list[int], pause: float) -> dict[str, float]:
        spent = []
        for plane in planes:
            begin = time.monotonic()
            viewer.dims.set_point(0, plane * VOXEL)
            spent.append(time.monotonic() - begin)
            wait(pause)
        inside = np.array(spent)
        return {
            "planes": len(planes),
            "median_s": round(float(np.median(inside)), 3),
            "p95_s": round(float(np.percentile(inside, 95)), 3),
            "max_s": round(float(inside.max()), 3),
        }

    middle = depth // 2
    answer["screenshot_alone_s"] = round(float(np.median(empty)), 3)
    answer["scrolling"] = turn_to(list(range(middle, depth - depth // 8)), 0.05)
    answer["memory_after_scrolling_MiB"] = resident()
    answer["scrolling_back"] = turn_to(list(range(depth - depth // 8, middle - depth // 8, -1)), 0.05)
    answer["memory_after_scrolling_back_MiB"] = resident()
    answer["jumping"] = turn_to([(37 * step * depth // 100) % depth for step in range(12)], 0.5)
    answer["memory_at_the_end_MiB"] = resident()
    answer["three_dimensions_s"] = seconds_to(lambda: setattr(viewer.dims, "ndisplay", 3))
    viewer.close()
    return answer


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", default="512,1024,1024")
    parser.add_argument("--keep", type=Path, help="a volume that is there, or is left there")
    given = parser.parse_args()
    z, y, x = map(int, given.shape.split(","))
    with tempfile.TemporaryDirectory() as folder:
        volume = given.keep or Path(folder) / "big.zarr"
        if not volume.exists():
            write_volume(Volume(Noise((z, y, x)), VOXEL), volume)
        json.dump({"shape_zyx": [z, y, x], **main(volume, z)}, sys.stdout, indent=1)

"""Make the picture of the README: `python docs/make_demo_image.py`."""

import tempfile
from pathlib import Path

from cryoscan.demo import run_demo
from cryoscan.export import slices_figure
from cryoscan.io import open_labels, open_volume

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for _ in run_demo(Path(folder) / "demo", seed=0):
            pass
        volume = open_volume(Path(folder) / "demo" / "volume.mrc")
        labels = open_labels(Path(folder) / "demo" / "labels.mrc")
        figure = slices_figure(volume, labels)
    (Path(__file__).parent / "images" / "demo.png").write_bytes(figure.png)

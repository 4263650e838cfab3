"""Draw what `identify_map` makes of the maps of the benchmark mode2: python docs/make_mode2_images.py FOLDER."""

import sys
from pathlib import Path

import numpy as np

from cryoscan.benchmark import BenchmarkConfig
from cryoscan.benchmark.folders import listed_map
from cryoscan.benchmark.mode2 import part_masks, parts_of
from cryoscan.datedb import open_datedb
from cryoscan.datedb.build import embedder_for
from cryoscan.export import slices_figure
from cryoscan.io import open_volume, read_structure
from cryoscan.labels import LabelMap
from cryoscan.volume import Volume
from cryoscan.workflows import Identification, identify_map

ROOT = Path(__file__).resolve().parents[1]
PICTURES = {"emd_1461_vp6_box": "vp6", "emd_1080_groel_fitted": "groel", "relion_betagal_3.54A": "betagal"}
PLACES = {"groel": (51.0, 43.0, 15.0)}  # z, y, x in Å, through the apical domains; the middle lies between the rings
MARGIN = 10.0  # Å around the regions


def main(folder: Path) -> None:
    """Write docs/images/mode2-*.png."""
    config = BenchmarkConfig.read(ROOT / "configs" / "benchmark" / "mode2.yaml")
    datedb = open_datedb()
    for name, picture in PICTURES.items():
        source = listed_map(folder, name)
        volume = open_volume(source.map_path, voxel_size=source.voxel_size).loaded()
        *_, answer = identify_map(volume, datedb=datedb, embedder=embedder_for(datedb), resolution=source.resolution)
        assert isinstance(answer, Identification)
        assert answer.labels is not None
        labels = answer.labels.labels()
        outlines = None
        if source.model_path is not None:
            model = read_structure(source.model_path).protein()
            parts = [part for part in parts_of(model, config.domains.get(name, {})) if part.kind == "domain"]
            data = np.zeros(volume.shape, np.int32)
            for number, mask in enumerate(part_masks(volume, model, parts, within=labels > 0), start=1):
                data[mask] = number
            outlines = LabelMap(Volume(data, volume.voxel_size, volume.origin), {})
        places = np.argwhere(labels > 0)
        margin = round(MARGIN / volume.voxel_size)
        low = np.maximum(places.min(axis=0) - margin, 0)
        high = np.minimum(places.max(axis=0) + margin + 1, volume.shape)
        z, y, x = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
        around = volume.crop((z, y, x))
        figure = slices_figure(around, answer.labels, outlines=outlines, position=PLACES.get(picture))
        (ROOT / "docs" / "images" / f"mode2-{picture}.png").write_bytes(figure.png)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Print the two made-up rows of docs/results/scans.md: noise alone, and domains in heavy noise."""

import tempfile
from pathlib import Path

import numpy as np

from cryoscan import Volume
from cryoscan.datedb import open_datedb
from cryoscan.datedb.previews import read_previews
from cryoscan.filters import lowpass_gaussian
from cryoscan.metrics import match_points
from cryoscan.models import InvariantEmbedder
from cryoscan.scan import ScanConfig, ScanFinished, ScanResult
from cryoscan.testing import crowded_volume
from cryoscan.workflows import scan_tomogram

DATEDB = open_datedb()


def scan(volume: Volume, folder: str) -> ScanResult:
    config = ScanConfig(resolution_A=6.0)
    events = scan_tomogram(
        volume, Path(folder) / "a.scan", datedb=DATEDB, embedder=InvariantEmbedder(), config=config, overwrite=True
    )
    *_, last = events
    assert isinstance(last, ScanFinished)
    return last.result


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        white = np.random.default_rng(0).normal(size=(60, 70, 80)).astype(np.float32)
        noise = Volume(lowpass_gaussian(white, voxel_size=2.9, sigma=1.35), 2.9)
        print("noise alone:", scan(noise, folder).summary["verdict"])
        previews = read_previews(DATEDB)[:60]
        chosen = [previews[i] for i in np.random.default_rng(1).permutation(60)[:20]]
        volume, planted = crowded_volume(
            [preview.volume for preview in chosen],
            n=20,
            shape=(90, 110, 130),
            voxel_size=2.9,
            gap=2.0,
            noise=0.5,
            seed=1,
        )
        result = scan(volume, folder)
        pairs = match_points(result.hits.positions, np.array([item.position for item in planted]), 15.0)
        right = sum(result.hits.types[hit] == chosen[planted[place].index].entry.type for hit, place in pairs)
        print(f"noise 0.5: {len(planted)} planted, {len(result.hits)} named, {len(pairs)} in place, {right} rightly")

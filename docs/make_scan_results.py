"""Print the made-up rows of docs/results/scans.md: noise alone, and domains in noise, at several resolutions."""

import tempfile
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from cryoscan import Volume
from cryoscan.datedb import open_datedb
from cryoscan.datedb.previews import read_previews
from cryoscan.filters import lowpass_gaussian
from cryoscan.metrics import match_points
from cryoscan.models import InvariantEmbedder
from cryoscan.scan import ScanConfig, ScanFinished, ScanResult
from cryoscan.testing import crowded_volume
from cryoscan.units import SIGMA_PER_RESOLUTION
from cryoscan.workflows import scan_tomogram

DATEDB = open_datedb()
PREVIEWS = read_previews(DATEDB)[:60]
CHOSEN = [PREVIEWS[i] for i in np.random.default_rng(1).permutation(60)[:20]]
ROOM = np.array([90, 110, 130]) * 2.9  # Å


def scan(volume: Volume, folder: str, resolution: float) -> ScanResult:
    config = ScanConfig(resolution_A=resolution)
    events = scan_tomogram(
        volume, Path(folder) / "a.scan", datedb=DATEDB, embedder=InvariantEmbedder(), config=config, overwrite=True
    )
    *_, last = events
    assert isinstance(last, ScanFinished)
    return last.result


def scanned(folder: str, *, resolution: float, voxel_size: float, noise: float) -> None:
    """Twenty planted domains, blurred with their noise to a resolution."""
    volume, planted = crowded_volume(
        [preview.volume for preview in CHOSEN],
        n=20,
        shape=tuple((ROOM / voxel_size).astype(int).tolist()),
        voxel_size=voxel_size,
        gap=2.0,
        noise=noise if resolution == 6 else 0.0,
        seed=1,
    )
    if resolution > 6:  # that of the previews
        data = gaussian_filter(volume.load(), SIGMA_PER_RESOLUTION * np.sqrt(resolution**2 - 36) / voxel_size)
        grain = np.random.default_rng(3).normal(size=data.shape)
        grain = gaussian_filter(grain, SIGMA_PER_RESOLUTION * resolution / voxel_size)
        data = data + noise * data.std() * grain / grain.std()
        volume = Volume(data.astype(np.float32), voxel_size, volume.origin)
    result = scan(volume, folder, resolution)
    pairs = match_points(result.hits.positions, np.array([item.position for item in planted]), 15.0)
    right = sum(result.hits.types[hit] == CHOSEN[planted[place].index].entry.type for hit, place in pairs)
    print(
        f"{resolution:g} Å, voxels of {voxel_size:g} Å, noise {noise:g}: {len(planted)} planted, "
        f"{len(result.hits)} named, {len(pairs)} in place, {right} rightly"
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        white = np.random.default_rng(0).normal(size=(60, 70, 80)).astype(np.float32)
        fine = Volume(lowpass_gaussian(white, voxel_size=2.9, sigma=1.35), 2.9)
        print("noise alone, 6 Å:", scan(fine, folder, 6.0).summary["verdict"])
        for resolution, voxel_size in ((12.0, 4.0), (15.0, 5.0), (20.0, 5.0)):
            coarse = Volume(gaussian_filter(white, SIGMA_PER_RESOLUTION * resolution / voxel_size), voxel_size)
            print(f"noise alone, {resolution:g} Å:", scan(coarse, folder, resolution).summary["verdict"])
        scanned(folder, resolution=6.0, voxel_size=2.9, noise=0.5)
        scanned(folder, resolution=12.0, voxel_size=4.0, noise=0.2)
        scanned(folder, resolution=15.0, voxel_size=5.0, noise=0.2)
        scanned(folder, resolution=15.0, voxel_size=5.0, noise=0.5)
        scanned(folder, resolution=20.0, voxel_size=5.0, noise=0.2)

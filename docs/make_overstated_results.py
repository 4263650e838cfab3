"""The table "Maps that claim too much" of results/enhance.md: noise begins before the resolution that they claim.

    python docs/make_overstated_results.py DATA MAP [MAP ...] [--weights FILE]

prints CC_mask before and after sharpening. Noise is white in the measurement and rises with the sharpening that
follows; its power is the signal's at so many times the resolution at which the map is then cut off.
"""

import argparse
from pathlib import Path

import numpy as np
import scipy.fft

from cryoscan.enhance import enhanced, open_network
from cryoscan.filters import frequency_grid, lowpass_cut
from cryoscan.metrics import cc_mask, mask_around
from cryoscan.simulate import density
from cryoscan.train.enhance_run import read_real_pair
from cryoscan.volume import Volume

RESOLUTIONS, TIMES, B, SEED = (5.0, 6.0, 7.0), (1.0, 1.3, 1.6), 150.0, 5


def with_noise(volume: Volume, *, meets: float) -> Volume:
    """A map with noise whose power meets the map's at a resolution in Å."""
    data = volume.load()
    s = frequency_grid(data.shape, volume.voxel_size)
    signal = scipy.fft.rfftn(data)
    white = scipy.fft.rfftn(np.random.default_rng(SEED).normal(size=data.shape))
    shell = np.abs(s - 1 / meets) < 1.5 / (min(data.shape) * volume.voxel_size)
    scale = np.sqrt((np.abs(signal[shell]) ** 2).mean() / (np.abs(white[shell]) ** 2).mean())
    rise = np.exp(np.minimum(B * s**2, 36.0) / 4 - B / meets**2 / 4)
    noisy = scipy.fft.irfftn(signal + scale * rise * white, s=data.shape)
    return Volume(noisy.astype(np.float32), volume.voxel_size, volume.origin)


def main() -> None:
    """Print a line for each map, each resolution and each place where the noise begins."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("maps", nargs="+")
    parser.add_argument("--weights", type=Path)
    given = parser.parse_args()
    network = open_network(given.weights)
    for name in given.maps:
        pair = read_real_pair(given.data, name)
        grid = {"voxel_size": pair.volume.voxel_size, "shape": pair.volume.shape, "origin": pair.volume.origin}
        for times in TIMES:
            cells = []
            for resolution in RESOLUTIONS:
                noisy = with_noise(pair.volume, meets=times * resolution)
                data = lowpass_cut(noisy.load(), voxel_size=noisy.voxel_size, resolution=resolution)
                low = Volume(data, noisy.voxel_size, noisy.origin)
                model = density(pair.structure, resolution=resolution, **grid).load()
                mask = mask_around(pair.structure.positions, radius=resolution / 2, **grid)
                values = [cc_mask(one.load(), model, mask) for one in (low, enhanced(low, network))]
                cells.append(" → ".join(f"{value:.3f}"[1:] for value in values))
            print(f"| `{name}` | {times:g} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

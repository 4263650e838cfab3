"""The network that ships: there, small, described, and better than nothing on a map of a protein it has not seen."""

import numpy as np
import pytest
import scipy.fft

from cryoscan import Volume
from cryoscan.enhance import background_of, enhanced, open_network, shipped_network
from cryoscan.filters import frequency_grid, lowpass_cut
from cryoscan.io import open_volume, read_structure
from cryoscan.metrics import cc_mask, fsc, mask_around
from cryoscan.models.checkpoint import tower_provenance
from cryoscan.models.structure_embedding import embedder_named
from cryoscan.simulate import density
from cryoscan.train.enhance_run import read_real_pair


def test_it_is_small_and_says_where_it_comes_from():
    path = shipped_network()
    assert path.stat().st_size < 16e6
    card = path.with_suffix(".md").read_text(encoding="utf-8")
    learned = tower_provenance(path).config
    assert all(name in card for name in (*learned["real_train"], *learned["real_validation"]))
    network = open_network()
    assert embedder_named(network.config.structure).dim == network.config.structure_dim


@pytest.mark.parametrize("resolution", [6.0, 8.0])
def test_it_helps_a_map_of_a_protein_that_it_has_not_seen(data_folder, resolution):
    name = "emd_3240_5fn5_chainC"
    raw = open_volume(data_folder / "maps" / f"{name}.mrc.gz", voxel_size=1.4).loaded()
    structure = read_structure(data_folder / "maps_models" / f"{name}.pdb.gz").protein()
    data = raw.load() - background_of(raw.load())
    low = Volume(lowpass_cut(data, voxel_size=1.4, resolution=resolution), 1.4, raw.origin)
    grid = {"voxel_size": 1.4, "shape": raw.shape, "origin": raw.origin}
    model = density(structure, resolution=resolution, **grid).load()
    mask = mask_around(structure.positions, radius=resolution / 2, **grid)
    after = enhanced(low, open_network()).load()
    assert cc_mask(after, model, mask) > cc_mask(low.load(), model, mask) + 0.01
    frequencies, before_curve = fsc(low.load(), model, voxel_size=1.4)
    _, after_curve = fsc(after, model, voxel_size=1.4)
    finer = (frequencies > 1 / resolution) & (frequencies < 1 / 4.5)
    assert after_curve[finer].mean() > before_curve[finer].mean() + 0.1


@pytest.mark.parametrize("resolution", [6.0, 7.0])
def test_noise_below_the_resolution_that_a_map_claims_is_not_sharpened(data_folder, resolution):
    pair = read_real_pair(data_folder, "emd_6770_5xsy_chainB")
    volume, meets = pair.volume, 1.3 * resolution
    grid = {"voxel_size": volume.voxel_size, "shape": volume.shape, "origin": volume.origin}
    s = frequency_grid(volume.shape, volume.voxel_size)
    signal, white = (scipy.fft.rfftn(x) for x in (volume.load(), np.random.default_rng(5).normal(size=volume.shape)))
    shell = np.abs(s - 1 / meets) < 0.03
    level = np.sqrt((np.abs(signal[shell]) ** 2).mean() / (np.abs(white[shell]) ** 2).mean())
    sharpened = level * np.exp(37.5 * np.minimum(s**2, 0.24) - 37.5 / meets**2)  # B of 150 Å²
    noisy = scipy.fft.irfftn(signal + sharpened * white, s=volume.shape).astype(np.float32)
    low = Volume(
        lowpass_cut(noisy, voxel_size=volume.voxel_size, resolution=resolution), volume.voxel_size, volume.origin
    )
    model = density(pair.structure, resolution=resolution, **grid).load()
    mask = mask_around(pair.structure.positions, radius=resolution / 2, **grid)
    before, after = (cc_mask(one.load(), model, mask) for one in (low, enhanced(low, open_network())))
    assert before < 0.78  # .85 and more without noise
    assert after > before

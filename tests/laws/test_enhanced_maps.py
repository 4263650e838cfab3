"""Laws of sharpening: tiles leave no trace, the grid stays, solvent stays, and only what fits is taken."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from small_proteins import helices, joined

import cryoscan.enhance as module
from cryoscan import Volume
from cryoscan.enhance import Enhancement, TileEnhanced, background_of, enhance, enhanced, spectrum_resolution
from cryoscan.errors import FormatError, GeometryError, MismatchError, MissingFileError, ResourceError
from cryoscan.filters import lowpass_cut
from cryoscan.models.cryosamu import CryoSamu, CryoSamuConfig
from cryoscan.models.structure_embedding import GeometryEmbedder
from cryoscan.simulate import density

CONFIG = CryoSamuConfig(channels=(4, 8), residues=16, width=8, heads=2, voxel_size_A=2.1)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(5)
    network = CryoSamu(CONFIG)
    torch.nn.init.normal_(network.head.weight, std=0.3)
    torch.nn.init.normal_(network.attention.answer.weight, std=0.5)
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def protein():
    return helices(26, 24, 22, at=(-12.0, 30.5, 7.25))


@pytest.fixture(scope="module")
def volume(protein):
    """Odd, non-cubic, voxel size not 1, origin not 0, solvent not 0."""
    found = density(protein, voxel_size=1.37, resolution=5.0)
    noise = np.random.default_rng(0).normal(0, 0.01, found.shape)
    return Volume((found.load() + noise + 0.4).astype(np.float32), 1.37, found.origin)


# ---------------------------------------------------------------- tiles


def test_tiles_leave_no_trace(network, volume, monkeypatch):
    """A halo as wide as the network sees: however it is cut up, the map is the same."""
    whole = enhanced(volume, network).load()
    monkeypatch.setattr(module, "_FADE", 4)
    monkeypatch.setattr(module, "_tiles", smallest_tiles)
    *tiles, _ = enhance(volume, network)
    assert len(tiles) >= 8
    np.testing.assert_allclose(enhanced(volume, network).load(), whole, atol=2e-3 * whole.std())
    monkeypatch.setattr(module, "_fade", lambda core, wide, size: np.ones(wide.stop - wide.start, np.float32))
    assert np.abs(enhanced(volume, network).load() - whole).max() > 0.5 * whole.std()  # not faded: counted twice


def smallest_tiles(shape, period):
    """Tiles of 8 voxels and halos of 20, as a map far larger than a tile would be cut."""
    cores = [[slice(a, min(a + 8, size)) for a in range(0, size, 8)] for size in shape]
    return [
        (
            core,
            tuple(
                slice(max(0, part.start - 20), min(size, part.stop + 20))
                for part, size in zip(core, shape, strict=True)
            ),
        )
        for core in product(*cores)
    ]


@pytest.mark.parametrize("shape", [(5, 9, 200), (130, 121, 120), (119, 240, 7), (500, 500, 500)])
def test_cores_partition_the_grid_begin_on_the_period_and_fade_to_one(shape):
    tiles = module._tiles(shape, 8)
    for axis, size in enumerate(shape):
        pairs = {((core[axis].start, core[axis].stop), (wide[axis].start, wide[axis].stop)) for core, wide in tiles}
        total = np.zeros(size)
        counted = np.zeros(size, int)
        for (first, last), (a, b) in pairs:
            assert a % 8 == 0
            assert b - a <= module._CORE + 2 * module._HALO
            counted[first:last] += 1
            total[a:b] += module._fade(slice(first, last), slice(a, b), size)
        assert (counted == 1).all()
        np.testing.assert_allclose(total, 1, atol=1e-6)


def test_a_large_result_lies_on_disk_and_is_the_same(network, volume, monkeypatch):
    plain = enhanced(volume, network).load()
    monkeypatch.setattr(module, "_IN_MEMORY", 1)
    *_, last = enhance(volume, network)
    assert isinstance(last.volume.data.result.data, np.memmap)
    np.testing.assert_array_equal(last.volume.load(), plain)


# ---------------------------------------------------------------- grid, solvent, scale


def test_grid_and_place_stay_and_any_box_reads_the_same(network, volume):
    *events, last = enhance(volume, network)
    assert isinstance(last, Enhancement)
    assert [type(event) for event in events] == [TileEnhanced]
    assert (last.volume.shape, last.volume.voxel_size, last.volume.origin) == (
        volume.shape,
        volume.voxel_size,
        volume.origin,
    )
    whole = last.volume.load()
    for box in ((slice(3, 9), slice(0, 5), slice(7, 20)), (slice(None), 4, slice(2, None)), (slice(0, 12, 5),)):
        key = tuple(slice(part, part + 1) if isinstance(part, int) else part for part in box)
        np.testing.assert_allclose(last.volume.data[key], whole[key], atol=1e-4)
    np.testing.assert_allclose(last.difference.load(), whole - volume.load(), atol=1e-4)


def test_an_untrained_network_gives_the_map_back_as_far_as_its_grid_carries_it(volume):
    found = enhanced(volume, CryoSamu(CONFIG).eval()).load()
    expected = lowpass_cut(volume.load(), voxel_size=volume.voxel_size, resolution=4.2)
    inner = (slice(6, -6),) * 3
    assert np.corrcoef(found[inner].ravel(), expected[inner].ravel())[0, 1] > 0.99
    assert found.mean() == pytest.approx(volume.load().mean(), abs=0.01)


def test_scale_and_offset_of_the_map_are_those_of_the_result(network, volume):
    plain = enhanced(volume, network).load()
    for scale, offset in ((1e-7, 0.0), (250.0, -30.0)):
        other = Volume((volume.load() * scale + offset).astype(np.float32), volume.voxel_size, volume.origin)
        np.testing.assert_allclose(
            (enhanced(other, network).load() - offset) / scale, plain, atol=2e-3 * np.abs(plain).max()
        )


def test_outside_a_mask_there_is_solvent(network, volume):
    mask = np.zeros(volume.shape, np.float32)
    mask[4:-4, 4:-4, 4:-4] = 1
    found = enhanced(volume, network, mask=Volume(mask, volume.voxel_size, volume.origin)).load()
    solvent = background_of(volume.load())
    np.testing.assert_allclose(found[mask == 0], solvent, atol=1e-5)
    assert np.abs(found[mask == 1] - solvent).max() > 0.1


def test_the_most_frequent_value_is_the_solvent(volume, protein):
    assert background_of(volume.load()) == pytest.approx(0.4, abs=0.01)
    masked = np.where(volume.load() > 0.6, volume.load(), 0)
    assert background_of(masked) == 0


# ---------------------------------------------------------------- what a map resolves


@pytest.mark.parametrize("resolution", [4.5, 6.0, 8.0])
def test_the_spectrum_tells_where_a_map_was_cut_off(volume, resolution):
    low = lowpass_cut(volume.load() - 0.4, voxel_size=1.37, resolution=resolution)
    assert spectrum_resolution(low, voxel_size=1.37) == pytest.approx(resolution, abs=0.9)


def test_noise_beyond_a_coarse_map_is_not_taken_for_detail():
    """A map that ends before 15 Å has nothing but noise where others are measured."""
    protein = helices(90, 80, 85, 88, 90, 84, chains="AB")
    directions = np.random.default_rng(1).normal(size=(len(protein), 3))
    radii = 45 * np.random.default_rng(2).uniform(size=(len(protein), 1)) ** (1 / 3)
    ball = radii * directions / np.linalg.norm(directions, axis=1, keepdims=True)  # atoms anywhere: no helices' peaks
    coarse = density(replace(protein, positions=ball), voxel_size=3.7, resolution=20.0)
    noise = np.random.default_rng(0).normal(0, 0.003 * coarse.load().max(), coarse.shape)
    assert spectrum_resolution(coarse.load() + noise, voxel_size=3.7) > 8.5


def test_the_user_is_warned_outside_the_range_and_only_there(network, volume):
    def warned(**options):
        *_, last = enhance(volume, network, **options)
        return last

    low = [lowpass_cut(volume.load(), voxel_size=1.37, resolution=r) for r in (6.0, 12.0)]
    fits, coarse = (Volume(data, volume.voxel_size, volume.origin) for data in low)
    *_, last = enhance(fits, network)
    assert (last.measured_by, last.warnings) == ("spectrum", ())
    *_, last = enhance(coarse, network)
    assert "likely to be invented" in last.warnings[0]
    assert "may lose detail" in warned(resolution=3.0).warnings[0]
    assert warned(resolution=5.0).warnings == ()


def test_half_maps_tell_the_resolution(network, volume):
    rng = np.random.default_rng(1)
    clean = lowpass_cut(volume.load(), voxel_size=1.37, resolution=7.0)
    noise = rng.normal(0, 0.02, (2, *volume.shape))
    halves = tuple(Volume((clean + n).astype(np.float32), 1.37, volume.origin) for n in noise)
    *_, last = enhance(volume, network, half_maps=halves)
    assert last.measured_by == "half-maps"
    assert 5.5 < last.resolution < 8.0


# ---------------------------------------------------------------- structures


def test_a_structure_is_heard_wherever_its_axes_point(network, volume, protein):
    alone = enhanced(volume, network).load()
    told = enhanced(volume, network, structure=protein, embedder=GeometryEmbedder()).load()
    assert np.abs(told - alone).max() > 1e-3 * alone.std()
    away = protein.moved(rotation=np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0]]), offset=(500, 0, 0))
    moved = enhanced(volume, network, structure=away, embedder=GeometryEmbedder(), placed=False).load()
    np.testing.assert_allclose(moved, told, atol=1e-3 * alone.std())


def test_a_structure_that_is_far_away_is_refused_with_a_way_out(network, volume, protein):
    with pytest.raises(GeometryError, match=r"its centre lies .* Å from the map's.*go without --structure") as caught:
        enhanced(volume, network, structure=protein.moved(offset=(900, 0, 0)), embedder=GeometryEmbedder())
    assert caught.value.hint
    emptied = Volume(volume.load()[::-1, ::-1].copy(), 1.37, volume.origin)
    corner = helices(26, at=np.array(volume.origin) + 1)
    with pytest.raises(GeometryError, match="in the map's density"):
        enhanced(emptied, network, structure=corner.moved(offset=(0, 0, 0)), embedder=GeometryEmbedder())


def test_nucleic_acid_alone_and_huge_proteins_are_refused(network, volume, protein):
    nucleic = replace(protein, nucleic=np.ones(len(protein), bool))
    with pytest.raises(FormatError, match="nucleic acid alone"):
        enhanced(volume, network, structure=nucleic, embedder=GeometryEmbedder())
    huge = joined(*[helices(100, 100)] * 51)
    with pytest.raises(ResourceError, match="10,000 residues"):
        enhanced(volume, network, structure=huge, embedder=GeometryEmbedder())


def test_another_embedder_than_the_networks_is_refused(network, volume, protein):
    with pytest.raises(MismatchError, match=r"'geometry' of 42 numbers.*none"):
        enhanced(volume, network, structure=protein)

    class Other(GeometryEmbedder):
        name = "other"

    with pytest.raises(MismatchError, match="'other'"):
        enhanced(volume, network, structure=protein, embedder=Other())


# ---------------------------------------------------------------- maps


def test_companions_of_another_grid_are_refused(network, volume):
    small = Volume(np.zeros((4, 5, 6), np.float32), 1.37, volume.origin)
    shifted = Volume(volume.load(), 1.37, (0.0, 0.0, 0.0))
    for other in (small, shifted):
        with pytest.raises(MismatchError):
            enhanced(volume, network, mask=other)
        with pytest.raises(MismatchError):
            enhanced(volume, network, half_maps=(volume, other))


@pytest.mark.parametrize("value", [0.0, 3.25])
def test_constant_maps_are_refused(network, value):
    flat = Volume(np.full((9, 11, 13), value, np.float32), 1.37)
    with pytest.raises(FormatError, match=f"{value:g} in every voxel"):
        enhanced(flat, network)


# ---------------------------------------------------------------- holes


def with_holes(volume):
    data = volume.load().copy()
    data[3, 4, 5] = np.nan
    data[20:22, 17, 11] = np.inf, -np.inf
    return Volume(data, volume.voxel_size, volume.origin), ~np.isfinite(data)


@pytest.mark.parametrize("small", [False, True])
def test_holes_are_solvent_to_the_network_and_stay_holes(network, volume, monkeypatch, small):
    if small:  # no tile is lost because another has a hole, or because it has one itself
        monkeypatch.setattr(module, "_FADE", 4)
        monkeypatch.setattr(module, "_tiles", smallest_tiles)
    broken, holes = with_holes(volume)
    *_, last = enhance(broken, network, resolution=6.0)
    found = last.volume.load()
    np.testing.assert_array_equal(found[holes], broken.load()[holes])
    filled = Volume(np.where(holes, background_of(volume.load()), volume.load()), volume.voxel_size, volume.origin)
    np.testing.assert_allclose(found[~holes], enhanced(filled, network).load()[~holes], atol=1e-3)
    assert (np.isfinite(last.difference.load()) == ~holes).all()
    low, high = (np.round(volume.to_position(corner), 1).tolist() for corner in ((3, 4, 5), (21, 17, 11)))
    (said,) = last.warnings
    assert said.startswith(
        f"3 voxels are NaN or infinite, between {low} and {high} Å (z, y, x): they stay as they are."
    )


def test_holes_outside_a_mask_become_solvent_and_nobody_is_warned(network, volume):
    broken, holes = with_holes(volume)
    mask = np.ones(volume.shape, np.float32)
    mask[:6] = 0
    mask[-3:] = np.nan
    *_, last = enhance(broken, network, mask=Volume(mask, volume.voxel_size, volume.origin), resolution=6.0)
    found = last.volume.load()
    solvent = background_of(broken.load()[~holes])
    np.testing.assert_allclose(found[:6], solvent, atol=1e-5)
    np.testing.assert_allclose(found[-3:], solvent, atol=1e-5)
    assert (~np.isfinite(found)).sum() == 2
    assert last.warnings[0].startswith("2 voxels are")


def test_half_maps_and_structures_are_judged_in_spite_of_holes(network, volume, protein):
    broken, _ = with_holes(volume)
    *_, last = enhance(broken, network, half_maps=(broken, broken), structure=protein, embedder=GeometryEmbedder())
    assert last.measured_by == "half-maps"
    assert last.resolution == pytest.approx(2 * volume.voxel_size, rel=0.1)


def test_a_map_of_holes_is_refused(network):
    with pytest.raises(FormatError, match="NaN or infinity in every voxel") as caught:
        enhanced(Volume(np.full((9, 11, 13), np.nan, np.float32), 1.37), network)
    assert caught.value.hint


def test_without_weights_it_is_said_how_to_get_some(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "files", lambda _: tmp_path)
    with pytest.raises(MissingFileError, match=r"cryoscan train configs/train/enhance\.yaml"):
        module.open_network()

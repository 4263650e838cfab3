"""The DensityTower: sizes, homogeneity, learning (law L13), its file, the contract of its embedder (law L9)."""

import copy
import dataclasses
import functools
import json
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cryoscan.embedding import Embedder
from cryoscan.errors import ConfigError, FormatError, GeometryError, MissingFileError
from cryoscan.models import DensityTower, TowerConfig, TowerEmbedder, load_tower, save_network, tower_provenance
from cryoscan.models.bias_free import NormedConv
from cryoscan.models.swin_conv import WindowAttention
from cryoscan.models.tower_settings import read_tower_config
from cryoscan.provenance import Provenance

ROOT = Path(__file__).resolve().parents[2]
SMALL = TowerConfig(window=16, dim=10, channels=6, levels=3, attention_window=3, head_channels=5, pool_sigma=4.5)
PROVENANCE = Provenance("cryoscan train", config={"steps": 7}, seed=3)


def small_tower(config: TowerConfig = SMALL, seed: int = 0) -> DensityTower:
    torch.manual_seed(seed)
    return DensityTower(config)


def blobs(count: int, edge: int, seed: int = 0) -> torch.Tensor:
    """Smooth positive densities with an empty surround."""
    noise = torch.randn(count, 1, edge, edge, edge, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.avg_pool3d(noise, 5, 1, 2)[:, 0].clamp_min(0)
    smooth[:, :2] = 0
    return smooth


@functools.cache
def calibrated(config: TowerConfig = SMALL) -> DensityTower:
    """An untrained tower whose running norms are those of blobs; do not change it."""
    tower, rng = small_tower(config).train(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for seed in range(40):
            tower(blobs(2, config.window, seed), rng=rng)
    return tower.eval()


# ---------------------------------------------------------------- sizes


@pytest.mark.parametrize(("name", "millions"), [("compact", 0.35), ("compact24", 0.76), ("paper", 18.3)])
def test_named_towers_have_their_size(name: str, millions: float) -> None:
    tower = DensityTower(TowerConfig.named(name))
    assert sum(weight.numel() for weight in tower.parameters()) / 1e6 == pytest.approx(millions, rel=0.03)


@pytest.mark.parametrize("name", ["compact", "compact24", "paper"])
def test_the_shipped_configurations_are_the_named_ones(name: str) -> None:
    assert read_tower_config(ROOT / "configs" / "tower" / f"{name}.yaml") == TowerConfig.named(name)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_residual": False},
        {"use_swinconv": False},
        {"stem_stride": 1, "levels": 3},
        {"levels": 2, "blocks": 2},
        {"channels": 18, "attention_window": 4},
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_windows_become_vectors_and_reconstructions(changes: dict[str, int], training: bool) -> None:
    tower = small_tower(dataclasses.replace(SMALL, **changes)).train(training)
    z_BD, reconstruction = tower(blobs(3, 16))
    assert z_BD.shape == (3, 10)
    assert reconstruction is not None
    assert reconstruction.shape == (3, 16, 16, 16)
    assert tower(blobs(3, 16), reconstruct=False)[1] is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"use_residual": False, "use_swinconv": False}, "at least one branch"),
        ({"channels": 7}, "even number"),
        ({"channels": 8.0}, "channels"),
        ({"dim": 0}, "dim"),
        ({"use_residual": 1}, "true or false"),
        ({"pool_sigma": float("nan")}, "pool_sigma"),
        ({"levels": 1}, "stride 2 after 1 levels"),
        ({"window": 20}, "window 20"),
    ],
)
def test_impossible_sizes_are_refused(changes: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        dataclasses.replace(SMALL, **changes)


def test_unknown_names_and_keys_are_refused() -> None:
    with pytest.raises(ConfigError, match="compact24"):
        TowerConfig.named("huge")
    with pytest.raises(ConfigError, match="chanels"):
        TowerConfig.from_json({"chanels": 8})


def test_windows_of_another_size_are_refused() -> None:
    with pytest.raises(GeometryError, match="16³"):
        small_tower()(torch.zeros(1, 20, 20, 20))
    with pytest.raises(GeometryError, match="multiples of 4"):
        small_tower().lattice(torch.zeros(1, 24, 24, 24), stride=6)


def test_the_network_needs_neither_pydantic_nor_safetensors() -> None:
    code = (
        "import sys\n"
        "for name in 'pydantic yaml safetensors gemmi zarr faiss skimage'.split(): sys.modules[name] = None\n"
        "import cryoscan.models.checkpoint, cryoscan.models.tower_embedder\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------- homogeneity


@pytest.mark.parametrize("factor", [7.3, 1e-6, 1e6])
@pytest.mark.parametrize("switches", [{}, {"use_residual": False}, {"use_swinconv": False}])
def test_contrast_scales_the_output_and_nothing_else(factor: float, switches: dict[str, bool]) -> None:
    tower = calibrated(dataclasses.replace(SMALL, **switches))
    x_BZYX = blobs(4, 16)
    with torch.inference_mode():
        z, reconstruction = tower(x_BZYX)
        scaled_z, scaled_reconstruction = tower(factor * x_BZYX)
    torch.testing.assert_close(scaled_z / factor, z, rtol=1e-4, atol=1e-5 * z.abs().max().item())
    torch.testing.assert_close(scaled_reconstruction / factor, reconstruction, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("factor", [0.5, 30.0])
def test_the_layers_themselves_are_homogeneous(factor: float) -> None:
    # the tower divides by the input's magnitude first; this holds without that
    x_BCZYX = torch.randn(2, 6, 7, 8, 9)
    for layer in (NormedConv(6, 4, 3), WindowAttention(6, window=3, head_channels=4, shifted=True)):
        layer.eval()
        torch.testing.assert_close(layer(factor * x_BCZYX), factor * layer(x_BCZYX), rtol=1e-4, atol=1e-4)
        assert (layer(torch.zeros(1, 6, 5, 6, 7)) == 0).all()


def test_a_convolution_divides_by_the_running_root_mean_square() -> None:
    torch.manual_seed(2)
    layer = NormedConv(3, 5, 3)
    x_BCZYX = 4.2 * torch.randn(6, 3, 7, 8, 9)
    for _ in range(200):
        trained = layer(x_BCZYX)
    torch.testing.assert_close(trained.square().mean(dim=(0, 2, 3, 4)), torch.ones(5))
    torch.testing.assert_close(layer.eval()(x_BCZYX), trained, rtol=1e-3, atol=1e-4)


def test_the_gradient_of_a_normed_convolution_is_right() -> None:
    torch.manual_seed(1)
    layer = NormedConv(2, 3, 3).double()
    layer.mean_square = layer.mean_square.float()
    x_BCZYX = torch.randn(2, 2, 3, 4, 3, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, 3, 3, 4, 3, dtype=torch.float64)

    def value(x: torch.Tensor, weight: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
        return (torch.func.functional_call(layer, {"weight": weight, "gain": gain}, (x,)) * weights).sum()

    inputs = (x_BCZYX, layer.weight, layer.gain)
    for slope, argument in zip(torch.autograd.grad(value(*inputs), inputs), inputs, strict=True):
        step = torch.randn_like(argument)
        higher, lower = (
            value(*(a + sign * 1e-4 * step if a is argument else a for a in inputs)).item() for sign in (1, -1)
        )
        # the mean square is kept in single precision, also of doubles
        assert (slope * step).sum().item() == pytest.approx((higher - lower) / 2e-4, rel=1e-2, abs=1e-2)


# ---------------------------------------------------------------- attention


@pytest.mark.parametrize("shifted", [False, True])
def test_attention_stays_within_its_windows(shifted: bool) -> None:
    attention = WindowAttention(4, window=4, head_channels=4, shifted=shifted).eval()
    shape, place, offset = (8, 9, 7), (1, 6, 3), 2 if shifted else 0
    x_BCZYX = torch.randn(1, 4, *shape)
    changed = x_BCZYX.clone()
    changed[(0, slice(None), *place)] *= -1  # of the same magnitude, which neighbours do see
    moved = ((attention(changed) - attention(x_BCZYX)).abs().amax(dim=1)[0] > 1e-6).numpy()
    axes = [(np.arange(size) - offset) // 4 == (index - offset) // 4 for size, index in zip(shape, place, strict=True)]
    own = axes[0][:, None, None] & axes[1][:, None] & axes[2]
    assert np.array_equal(moved, own)


@pytest.mark.parametrize("shifted", [False, True])
def test_what_lies_beyond_the_grid_has_no_part_in_attention(shifted: bool) -> None:
    # a mean of equal values is that value, whatever the weights, unless zeros from beyond are averaged in
    attention = WindowAttention(4, window=4, head_channels=4, shifted=shifted).eval()
    same = torch.tensor([0.3, -1.2, 0.7, 2.0])[None, :, None, None, None].expand(1, 4, 6, 9, 7)
    given = attention(same)
    torch.testing.assert_close(given, given[:, :, 2:3, 3:4, 4:5].expand_as(given), rtol=1e-4, atol=1e-5)


def test_partitions_are_drawn_in_training_from_the_generator_given() -> None:
    attention = WindowAttention(4, window=4, head_channels=4, shifted=False)
    x_BCZYX = torch.randn(1, 4, 8, 8, 8)
    again = [attention(x_BCZYX, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(again[0], again[1])
    assert not torch.equal(again[0], again[2])


# ---------------------------------------------------------------- learning


def test_every_weight_gets_a_gradient() -> None:
    tower = small_tower().train()
    z_BD, reconstruction = tower(blobs(4, 16))
    (z_BD.sum() + reconstruction.square().sum()).backward()
    still = [name for name, weight in tower.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert not still


def test_reconstruction_overfits_one_batch() -> None:
    tower, rng = (
        small_tower(dataclasses.replace(SMALL, levels=2, channels=16)).train(),
        torch.Generator().manual_seed(0),
    )
    x_BZYX = blobs(8, 16)
    optimizer = torch.optim.AdamW(tower.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        _, reconstruction = tower(x_BZYX, rng=rng)
        loss = (reconstruction - x_BZYX).square().mean() / x_BZYX.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.5
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.15


# ---------------------------------------------------------------- the file


@pytest.mark.parametrize("half_precision", [False, True])
def test_a_saved_tower_is_read_as_it_was(tmp_path: Path, half_precision: bool) -> None:
    tower, path = calibrated(), tmp_path / "tower.safetensors"
    save_network(tower, path, provenance=PROVENANCE, half_precision=half_precision)
    again = load_tower(path)
    assert again.config == tower.config
    assert not again.training
    assert tower_provenance(path) == PROVENANCE
    x_BZYX = blobs(2, 16)
    with torch.inference_mode():
        torch.testing.assert_close(again(x_BZYX)[0], tower(x_BZYX)[0], rtol=0, atol=1e-2 if half_precision else 0)
    same = TowerEmbedder(again).fingerprint == TowerEmbedder(tower).fingerprint
    assert same is not half_precision
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tower.safetensors"]


def test_half_precision_halves_the_file(tmp_path: Path) -> None:
    tower = small_tower()
    for half in (False, True):
        save_network(tower, tmp_path / f"{half}.safetensors", provenance=PROVENANCE, half_precision=half)
    sizes = [(tmp_path / f"{half}.safetensors").stat().st_size for half in (False, True)]
    assert sizes[1] < 0.6 * sizes[0]


def rewritten(path: Path, *, header: dict[str, str] | None = None, rename: tuple[str, str] | None = None) -> None:
    """Change entries of a tower's header, or the name of a tensor."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    entries = json.loads(data[8 : 8 + size])
    entries["__metadata__"] = {**entries["__metadata__"], **(header or {})}
    if rename:
        entries[rename[1]] = entries.pop(rename[0])
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "whole .safetensors file"),
        (lambda path: path.write_bytes(path.read_bytes()[:5]), "whole .safetensors file"),
        (lambda path: path.write_bytes(b""), "whole .safetensors file"),
        (lambda path: path.write_text("not a tower, but long enough to have a header of eight bytes"), "whole"),
        (lambda path: rewritten(path, header={"kind": "something else"}), "a file of something else"),
        (lambda path: rewritten(path, header={"format_version": "99"}), "99.*Update cryoscan"),
        (lambda path: rewritten(path, header={"config": "{"}), "configuration of a density tower"),
        (lambda path: rewritten(path, header={"config": '{"wings": 2}'}), "wings.*newer version"),
        (lambda path: rewritten(path, header={"config": '{"dim": 11}'}), "different towers"),
        (lambda path: rewritten(path, rename=("stem.weight", "stern.weight")), "stem.weight.*of shape None"),
    ],
)
def test_a_damaged_or_foreign_file_is_refused(tmp_path: Path, damage, words: str) -> None:
    path = tmp_path / "tower.safetensors"
    save_network(small_tower(), path, provenance=PROVENANCE)
    damage(path)
    with pytest.raises(FormatError, match=words) as caught:
        load_tower(path)
    assert caught.value.hint


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    tower, path = small_tower(), tmp_path / "tower.safetensors"
    with torch.no_grad():
        tower.merge.gain[2] = float("nan")
    save_network(tower, path, provenance=PROVENANCE)
    with pytest.raises(FormatError, match=re.escape("'merge.gain'")):
        load_tower(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no such file"):
        load_tower(tmp_path / "tower.safetensors")


# ---------------------------------------------------------------- the embedder


@pytest.fixture(scope="module")
def embedder() -> TowerEmbedder:
    return TowerEmbedder(calibrated(), threads=2)


def test_contract(embedder: TowerEmbedder) -> None:
    assert isinstance(embedder, Embedder)
    assert (embedder.dim, embedder.window, embedder.voxel_size, embedder.needs_mask) == (10, 16, 2.5, False)
    assert embedder.cell % 24 == 0  # attention windows of 3 voxels of stride 8
    windows = blobs(37, 16).numpy()
    before = windows.copy()
    vectors = embedder.embed(windows)
    assert vectors.shape == (37, 10)
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(37), abs=1e-5)
    assert np.array_equal(vectors, embedder.embed(windows))
    assert np.abs(vectors[20] - embedder.embed(windows[20:21])[0]).max() < 1e-4
    assert np.array_equal(windows, before)
    assert embedder.embed(windows[:0]).shape == (0, 10)
    with pytest.raises(GeometryError, match="16³"):
        embedder.embed(np.zeros((1, 17, 16, 16), np.float32))


@pytest.mark.parametrize("factor", [7.3, 1e-9, 1e9])
def test_an_embedding_does_not_depend_on_contrast(embedder: TowerEmbedder, factor: float) -> None:
    windows = blobs(5, 16).numpy()
    assert np.abs(embedder.embed(factor * windows) - embedder.embed(windows)).max() < 1e-4


def test_an_embedder_is_not_changed_by_further_training() -> None:
    tower = copy.deepcopy(calibrated())
    embedder = TowerEmbedder(tower)
    before = embedder.embed(blobs(2, 16).numpy())
    tower.train()
    with torch.no_grad():
        tower.merge.gain.mul_(-1)
    assert np.array_equal(embedder.embed(blobs(2, 16).numpy()), before)


def test_the_fingerprint_follows_weights_and_sizes() -> None:
    first, same, other = (TowerEmbedder(small_tower(seed=seed)) for seed in (0, 0, 1))
    wider = TowerEmbedder(small_tower(dataclasses.replace(SMALL, pool_sigma=5.0)))
    assert first.fingerprint == same.fingerprint
    assert len({first.fingerprint, other.fingerprint, wider.fingerprint}) == 3

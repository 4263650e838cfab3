"""The network that turns with its input: its law, its contract, its file, and that it learns."""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from small_library import small_library
from torch import Tensor
from torch.nn import functional

from cryoscan.embedding import Embedder
from cryoscan.errors import ConfigError, FormatError
from cryoscan.models import (
    DensityTower,
    ShapeTower,
    ShapeTowerConfig,
    ShapeTowerEmbedder,
    TowerConfig,
    load_tower,
    save_network,
)
from cryoscan.models.harmonics import DEGREES, harmonics, rotation_table
from cryoscan.provenance import Provenance
from cryoscan.train import AtomLibrary, ViewConfig, objectives, simulate_views
from cryoscan.train.config import TrainConfig
from cryoscan.train.folder import LIBRARY
from cryoscan.train.kinship import Kinship
from cryoscan.train.loop import FitSettings, fit, generator
from cryoscan.train.run import SeenAgain, TrainFinished, build_pupil, draw_views, train
from cryoscan.train.views import Views

SMALL = ShapeTowerConfig(dim=12, channels=8, hidden=10, blocks=2, dropout=0.0)
RUN = TrainConfig.build(
    kind="shape",
    objective="classify",
    tower=SMALL.to_json(),
    views={"scenes": {"isolated": 1.0}},
    batch=6,
    steps_seen=2,
    per_type=3,
    hidden=0.0,
    reconstruction=0.0,
    steps=7,
    validate_every=7,
)


@pytest.fixture(scope="module")
def library() -> AtomLibrary:
    return small_library()


@pytest.fixture(scope="module")
def views(library: AtomLibrary) -> Views:
    config = ViewConfig(scenes={"isolated": 1.0}, resolution_A=(6.0, 6.0), incomplete=0.0, distorted=0.0)
    rng = torch.Generator().manual_seed(2)
    return simulate_views(library, torch.arange(4).repeat(3), config=config, rng=rng, window=32, voxel_size=2.5)


def turned(c_BHK: Tensor, rotation: Rotation) -> Tensor:
    row, first, parts = rotation_table(rotation.as_matrix()[None], DEGREES)[0], 0, []
    for l in range(DEGREES):
        m = 2 * l + 1
        matrix = torch.from_numpy(row[first : first + m * m].reshape(m, m))
        parts.append(matrix @ c_BHK[:, l * l : (l + 1) ** 2])
        first += m * m
    return torch.cat(parts, dim=1)


# ---------------------------------------------------------------- the network


@pytest.mark.parametrize("config", [SMALL, ShapeTowerConfig()])
def test_vectors_do_not_change_when_the_density_turns(config: ShapeTowerConfig, views: Views) -> None:
    torch.manual_seed(0)
    tower = ShapeTower(config).eval()
    c_BHK = harmonics().expand(views.density_BZYX)
    with torch.no_grad():
        before = tower.of_harmonics(c_BHK)
        centre = before.mean(dim=0)
        for rotation in Rotation.random(3, random_state=1):
            after = tower.of_harmonics(turned(c_BHK, rotation))
            assert functional.cosine_similarity(before - centre, after - centre).min() > 0.97
        shuffled = tower.of_harmonics(c_BHK[:, torch.randperm(DEGREES**2, generator=torch.Generator().manual_seed(0))])
    assert functional.cosine_similarity(before - centre, shuffled - centre).mean() < 0.9  # no constant vectors


def test_contrast_does_not_matter_and_what_it_shows_does(views: Views) -> None:
    torch.manual_seed(1)
    embedder: Embedder = ShapeTowerEmbedder(ShapeTower(SMALL))
    assert isinstance(embedder, Embedder)
    windows = views.density_BZYX.numpy()[:4]
    vectors = embedder.embed(windows)
    assert vectors.shape == (4, 12)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(4), abs=1e-5)
    assert np.abs(embedder.embed(7.3 * windows) - vectors).max() < 1e-4
    assert (vectors @ vectors.T - np.eye(4)).max() < 0.9999
    assert not embedder.embed(np.zeros((2, 32, 32, 32), np.float32)).any()


def test_dense_is_windowed(views: Views) -> None:
    embedder = ShapeTowerEmbedder(ShapeTower(SMALL))
    block = np.pad(views.density_BZYX[0].numpy(), ((0, 3), (0, 6), (3, 0)))
    dense = embedder.embed_dense(block, stride=3)
    assert dense.shape == (2, 3, 2, 12)
    assert dense[1, 2, 0] == pytest.approx(embedder.embed(block[None, 3:35, 6:38, :32])[0], abs=1e-5)


def test_weights_come_back_from_their_file(tmp_path: Path, views: Views) -> None:
    torch.manual_seed(2)
    tower = ShapeTower(SMALL)
    save_network(tower, tmp_path / "a.safetensors", provenance=Provenance("test"))
    again = load_tower(tmp_path / "a.safetensors")
    assert isinstance(again, ShapeTower)
    windows = views.density_BZYX.numpy()[:2]
    one, two = ShapeTowerEmbedder(tower), ShapeTowerEmbedder(again)
    assert np.array_equal(one.embed(windows), two.embed(windows))
    assert one.fingerprint == two.fingerprint
    assert one.fingerprint != ShapeTowerEmbedder(ShapeTower(SMALL)).fingerprint
    other = tmp_path / "b.safetensors"
    save_network(
        DensityTower(TowerConfig(window=16, channels=4, use_swinconv=False)), other, provenance=Provenance("test")
    )
    assert isinstance(load_tower(other), DensityTower)
    whole = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FormatError, match=r"expected a whole \.safetensors file"):
        load_tower(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [({"blocks": 0}, "blocks"), ({"dim": 2.5}, "dim"), ({"dropout": 1.0}, "below 1"), ({"levels": 3}, "levels")],
)
def test_impossible_sizes_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ShapeTowerConfig.from_json(change)


# ---------------------------------------------------------------- training


def test_it_learns_types_and_not_which_domain_of_a_type(library: AtomLibrary, views: Views, tmp_path: Path) -> None:
    kinship = Kinship(library.anchors)
    pupil = build_pupil(RUN, library)
    objective = functools.partial(objectives.classify, kinship=kinship)
    before, _ = objective(pupil, views, generator(0, 0, 1))
    settings = FitSettings(steps=80, learning_rate=1e-2, warm_up=5, report_every=80)
    *_, last = fit(pupil, objective, lambda step, rng: views, settings, tmp_path)
    assert np.isfinite(last.numbers["loss"])
    after, numbers = objective(pupil, views, generator(0, 0, 1))
    assert after < 0.7 * before
    assert numbers["type_first"] > 0.9


def test_nodes_hold_their_domains(library: AtomLibrary) -> None:
    kinship = Kinship(library.anchors)
    nodes, shares = kinship.members(torch.arange(7), 4)
    assert len(nodes) == 4  # three types of CATH, one of SCOPe
    assert nodes.max() < kinship.nodes
    assert shares.sum(dim=1).tolist() == [1, 1, 1, 1, 0, 1, 1]  # the fifth has no type
    assert sorted(shares[0].tolist()) == [0, 0, 0.5, 0.5]  # of both schemes
    assert torch.equal(shares[1], shares[5])
    assert not torch.equal(shares[1], shares[2])


def test_views_are_seen_again_and_a_run_goes_on_with_the_same(library: AtomLibrary) -> None:
    straight = SeenAgain(RUN, library)
    batches = [straight(step, generator(RUN.seed, step, 0)) for step in range(7)]
    assert [len(batch.anchors_B) for batch in batches] == [3, 3, 3, 3, 3, 6, 6]
    assert torch.equal(batches[6].density_BZYX[3:], batches[1].density_BZYX[:3])
    assert not torch.equal(batches[6].density_BZYX[:3], batches[5].density_BZYX[:3])
    later = SeenAgain(RUN, library)(6, generator(RUN.seed, 6, 0))
    assert torch.equal(later.density_BZYX, batches[6].density_BZYX)
    once = RUN.model_copy(update={"steps_seen": 1})
    assert len(draw_views(once, SeenAgain(once, library)._sampler, library, 0, generator(0, 0, 0)).anchors_B) == 6


def test_a_run_ends_with_weights_and_a_card(library: AtomLibrary, tmp_path: Path) -> None:
    library.save(tmp_path / LIBRARY)
    *_, last = train(RUN, tmp_path)
    assert isinstance(last, TrainFinished)
    assert isinstance(load_tower(last.weights), ShapeTower)
    assert {one.embedder for one in last.outcomes} == {"invariant", "tower"}
    assert "A shape tower of cryoscan" in last.card.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"per_type": 1}, "per_type of 2"),
        ({"objective": "reconstruct"}, "does not reconstruct"),
        ({"hidden": 0.1}, "hidden"),
    ],
)
def test_impossible_runs_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig.build(**{**RUN.model_dump(), **change})

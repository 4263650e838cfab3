"""Objectives, kinship, evaluation and the run as a whole, on a library of seven small bodies."""

import functools
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_library import small_library
from typer.testing import CliRunner

from cryoscan.cli import app
from cryoscan.embedding import unit_rows
from cryoscan.errors import ConfigError, MismatchError, MissingFileError
from cryoscan.models import DensityTower, TowerConfig, TowerEmbedder, load_tower
from cryoscan.models.cleaned import CleanedEmbedder
from cryoscan.train import CONDITIONS, ViewConfig, objectives, simulate_views
from cryoscan.train.config import TrainConfig
from cryoscan.train.evaluate import Outcome, collapse, evaluate
from cryoscan.train.folder import LIBRARY
from cryoscan.train.kinship import Kinship, Sampler
from cryoscan.train.loop import FitSettings, fit, generator, learning_rate
from cryoscan.train.objectives import Pupil
from cryoscan.train.run import TrainFinished, build_pupil, train
from cryoscan.train.state import averaged

TOWER = TowerConfig(window=16, voxel_size_A=3.3, dim=8, channels=4, use_swinconv=False)
SETTINGS = FitSettings(steps=80, learning_rate=1e-2, warm_up=5, report_every=20)


@pytest.fixture(scope="module")
def library():
    return small_library()


@pytest.fixture(scope="module")
def kinship(library):
    return Kinship(library.anchors)


@pytest.fixture(scope="module")
def views(library):
    config = ViewConfig(scenes={"sphere": 1.0}, resolution_A=(7.0, 9.0), incomplete=0.0, distorted=0.0)
    anchors = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])
    rng = torch.Generator().manual_seed(2)
    return simulate_views(library, anchors, config=config, rng=rng, window=16, voxel_size=3.3)


def test_training_needs_torch_numpy_and_scipy_alone():
    code = "import sys, cryoscan.train.run; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "torch" in loaded
    assert not {"pydantic", "yaml", "gemmi", "zarr", "safetensors", "matplotlib", "mrcfile"} & set(loaded)


# ---------------------------------------------------------------- kinship


def test_kin_is_as_deep_as_the_deepest_shared_node(kinship):
    everyone = torch.arange(7)
    assert kinship.depths(torch.tensor([0]), everyone).tolist() == [[5, 4, 3, 0, 0, 4, 0]]
    assert kinship.depths(torch.tensor([4]), everyone).tolist() == [[0, 0, 0, 0, 5, 0, 0]]


def test_domains_without_a_type_are_kin_to_themselves_alone(kinship):
    codes = kinship.codes(torch.arange(7))
    assert (codes[:, 0] == codes[4, 0]).tolist() == [False] * 4 + [True] + [False] * 2
    assert torch.equal(codes[0], codes[1])


def test_soft_labels_are_spread_over_kin(kinship):
    shares = objectives.shares_of(kinship, torch.tensor([0, 3, 4]), 7)
    assert shares.sum(dim=1).tolist() == pytest.approx([1, 1, 1])
    assert shares[0].tolist() == pytest.approx([0.5, 0.175, 0.15, 0, 0, 0.175, 0])
    assert shares[2].tolist() == pytest.approx([0, 0, 0, 0, 1, 0, 0])


@pytest.mark.parametrize(("cap", "share"), [(1, 1 / 4), (2, 2 / 5), (9, 2 / 5)])
def test_populous_types_are_drawn_no_more_often_than_the_cap(library, cap, share):
    rng = torch.Generator().manual_seed(0)
    drawn = Sampler(library, cap=cap).draw(8000, rng=rng)
    assert set(drawn.tolist()) == {0, 1, 2, 3, 4}
    assert float((drawn < 2).float().mean()) == pytest.approx(share, abs=0.02)


def test_views_of_a_type_are_drawn_in_a_row(library):
    drawn = Sampler(library).draw(300, per_type=3, rng=torch.Generator().manual_seed(0))
    names = [(library.anchors[index].types or (index,))[0] for index in drawn.tolist()]
    assert all(len({*names[start : start + 3]}) == 1 for start in range(0, 300, 3))


# ---------------------------------------------------------------- objectives


def objective_named(name, kinship):
    return {
        "reconstruct": functools.partial(objectives.reconstruct, hidden=0.0),
        "contrast": functools.partial(objectives.contrast, kinship=kinship),
        "align_paper": functools.partial(objectives.align_paper, kinship=kinship, other_of_type=0.0),
        "align": functools.partial(objectives.align, kinship=kinship),
        "align_frozen": functools.partial(objectives.align, kinship=kinship),
    }[name]


@pytest.mark.parametrize(
    ("name", "below"),
    [("reconstruct", 0.5), ("contrast", 0.85), ("align_paper", 0.2), ("align", 0.75), ("align_frozen", 0.75)],
)
def test_every_objective_learns_one_batch_by_heart(name, below, library, kinship, views, tmp_path):
    torch.manual_seed(1)
    targets = torch.nn.functional.normalize(torch.randn(len(library.anchors), 8), dim=1)
    pupil = Pupil(DensityTower(TOWER), targets, frozen=name != "align")
    losses = [
        event.numbers["loss"]
        for event in fit(pupil, objective_named(name, kinship), lambda *_: views, SETTINGS, tmp_path)
    ]
    assert np.isfinite(losses).all()
    assert losses[-1] < below * losses[0], losses


def test_frozen_targets_stay_and_prototypes_move(library, kinship, views, tmp_path):
    for frozen in (True, False):
        targets = torch.randn(len(library.anchors), 8)
        pupil = Pupil(DensityTower(TOWER), targets, frozen=frozen)
        objective = functools.partial(objectives.align, kinship=kinship)
        list(fit(pupil, objective, lambda *_: views, replace(SETTINGS, steps=3), tmp_path / str(frozen)))
        assert torch.equal(pupil.targets_DK, targets) is frozen


def test_the_reconstruction_error_is_1_for_nothing_0_for_all_and_2_for_the_negative(views):
    clean = views.clean_BZYX
    assert objectives.reconstruction_error(3 * clean, clean).item() == pytest.approx(0, abs=1e-5)
    assert objectives.reconstruction_error(0 * clean, clean).item() == pytest.approx(1)
    assert objectives.reconstruction_error(-clean, clean).item() == pytest.approx(2, abs=1e-5)


def test_the_wanted_share_of_blocks_is_hidden():
    hidden = objectives.hide_blocks(torch.ones(9, 18, 18, 18), hidden=0.3, block=4, rng=torch.Generator())
    assert 1 - hidden.mean().item() == pytest.approx(0.3, abs=0.03)
    corner = hidden[:, :4, :4, :4]
    assert torch.equal(corner, corner[:, :1, :1, :1].expand_as(corner))


def test_a_loss_that_is_no_number_ends_the_run_before_it_spoils_the_weights(views, tmp_path):
    def broken(pupil, views, rng):
        loss, _ = objectives.reconstruct(pupil, views, rng)
        return loss * torch.nan, {}

    pupil = Pupil(DensityTower(TOWER))
    with pytest.raises(ConfigError, match="Lower learning_rate"):
        list(fit(pupil, broken, lambda *_: views, SETTINGS, tmp_path))
    assert all(torch.isfinite(weight).all() for weight in pupil.parameters())


def test_the_learning_rate_rises_and_falls():
    settings = FitSettings(steps=100, warm_up=10, learning_rate=1.0)
    rates = [learning_rate(settings, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert np.argmax(rates) in (9, 10)
    assert max(rates) == pytest.approx(1)
    assert np.all(np.diff(rates[10:]) < 0)
    assert rates[-1] < 0.02


def test_every_step_and_stream_has_its_own_generator():
    firsts = {torch.rand(1, generator=generator(*key)).item() for key in np.ndindex(3, 40, 2)}
    assert len(firsts) == 240


# ---------------------------------------------------------------- evaluation


class Oracle:
    """Knows a library's domains by their size and shape alone: sorted widths of the density."""

    dim, window, voxel_size = 9, 16, 3.3

    def embed(self, windows):
        u = np.arange(16) - 7.5
        grid = np.stack(np.meshgrid(u, u, u, indexing="ij"))
        mass = np.maximum(windows, 0) / np.maximum(windows, 0).sum(axis=(1, 2, 3), keepdims=True)
        centre = np.einsum("bzyx,czyx->bc", mass, grid)
        second = np.einsum("bzyx,czyx,dzyx->bcd", mass, grid, grid) - centre[:, :, None] * centre[:, None]
        widths = np.linalg.eigvalsh(second)
        return unit_rows(np.exp(-((widths[:, :, None] - np.array([3.0, 6.0, 12.0])) ** 2) / 8).reshape(-1, 9))


class Blind(Oracle):
    def embed(self, windows):
        return unit_rows(np.ones((len(windows), 9), np.float32))


COARSE = {"clean": replace(CONDITIONS["clean_6A"], resolution_A=(7.0, 7.0), shift_A=1.0)}


@pytest.fixture(scope="module")
def outcomes(library):
    found = evaluate({"oracle": Oracle(), "blind": Blind()}, library, conditions=COARSE, views=5)
    return {(one.embedder, one.question): one for one in found}


def test_an_embedder_that_knows_is_right_and_one_that_does_not_is_not(outcomes):
    assert outcomes["oracle", "domain"].found[0] > 5
    assert outcomes["oracle", "domain"].mrr > 0.6
    assert outcomes["blind", "domain"].found[0] == 0  # ties count against
    assert outcomes["blind", "type"].found[0] == 0


def test_types_are_asked_for_among_those_trained_on_and_domains_among_all(outcomes):
    types, domains = outcomes["oracle", "type"], outcomes["oracle", "domain"]
    assert (types.queries, types.choices) == (10, 3)
    assert (domains.queries, domains.choices) == (10, 6)  # the domain without a type is in no bank


def test_a_row_says_what_chance_would_give_and_how_sure_it_is():
    row = Outcome("it", "clean", "type", 40, 200, (4, 8, 20), 0.2).row()
    assert (row["top1"], row["chance_top1"], row["chance_top10"]) == (0.1, 0.005, 0.05)
    assert row["top10_low"] < 0.5 < row["top10_high"]


def test_collapse_is_seen():
    rng = np.random.default_rng(0)
    alive = collapse(unit_rows(rng.normal(size=(200, 16)).astype(np.float32)))
    line = rng.normal(size=(200, 1)) * np.ones(16) + 10 + 1e-3 * rng.normal(size=(200, 16))
    dead = collapse(unit_rows(line.astype(np.float32)))
    assert alive["spread"] == pytest.approx(1, abs=0.05)
    assert dead["spread"] < 0.01
    assert alive["rank"] > 15 > dead["rank"]
    star = rng.normal(size=(200, 64)) + np.eye(64)[0] * 3
    star[0] = np.eye(64)[0]
    assert collapse(unit_rows(star.astype(np.float32)))["hubs"] > alive["hubs"] + 2


# ---------------------------------------------------------------- cleaned embedder


def test_cleaned_windows_keep_the_contract_of_embedders(rng):
    embedder = CleanedEmbedder(DensityTower(TowerConfig(channels=4, use_swinconv=False)))
    block = rng.normal(size=(32, 34, 36)).astype(np.float32)
    dense = embedder.embed_dense(block, stride=2)
    assert dense.shape == (1, 2, 3, 702)
    one = embedder.embed(np.ascontiguousarray(block[None, :, 2:, 4:]))[0]
    np.testing.assert_allclose(dense[0, 1, 2], one, atol=1e-5)
    np.testing.assert_allclose(embedder.embed(7 * block[None, :, 2:, 4:]), one[None], atol=1e-5)
    assert np.linalg.norm(dense, axis=3) == pytest.approx(1, abs=1e-5)
    assert not embedder.embed(np.zeros((1, 32, 32, 32), np.float32)).any()


# ---------------------------------------------------------------- whole runs


CONFIG = TrainConfig.build(
    objective="align",
    tower={"window": 32, "voxel_size_A": 2.8, "dim": 8, "channels": 4, "use_swinconv": False},
    views={"scenes": {"isolated": 0.5, "molecular": 0.5}, "resolution_A": [6.0, 9.0]},
    batch=4,
    clean_until=2,
    steps=3,
    validate_every=3,
)


@pytest.fixture(scope="module")
def finished(library, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    library.save(folder / LIBRARY)
    stopped = list(train(CONFIG, folder, until=2))
    return folder, stopped, list(train(CONFIG, folder))


def test_a_run_leaves_weights_a_card_and_curves(finished):
    folder, stopped, (*_, last) = finished
    assert stopped[-1].stopped
    assert isinstance(last, TrainFinished)
    assert {one.embedder for one in last.outcomes} == {"invariant", "cleaned", "tower"}
    embedder = TowerEmbedder(load_tower(last.weights))
    assert embedder.dim == 8
    card = last.card.read_text(encoding="utf-8")
    for text in ("seed 0", "train: 5 domains", "`objective`: align", "| missing_30 | domain |", "## Limits"):
        assert text in card
    assert (folder / "curves.png").stat().st_size > 10_000


def test_a_run_does_not_go_on_with_another_configuration(finished):
    folder, *_ = finished
    with pytest.raises(MismatchError, match="setting 'batch': 4 before, 6 now"):
        next(train(CONFIG.model_copy(update={"batch": 6}), folder))


def test_a_finished_run_begins_another(finished, library, tmp_path):
    folder, *_ = finished
    library.save(tmp_path / LIBRARY)
    later = CONFIG.model_copy(update={"start_from": folder / "tower.safetensors", "objective": "reconstruct"})
    next(train(later, tmp_path, until=1))
    inputs = json.loads((tmp_path / "provenance.json").read_text())["inputs"]
    assert set(inputs) == {"library", "start_from"}
    other = later.model_copy(update={"tower": {**CONFIG.tower, "channels": 6}})
    (tmp_path / "other").mkdir()
    library.save(tmp_path / "other" / LIBRARY)
    with pytest.raises(MismatchError, match="Give the same sizes"):
        next(train(other, tmp_path / "other"))


def test_the_command_trains_and_says_how_far_it_came(library, tmp_path):
    library.save(tmp_path / LIBRARY)
    CONFIG.write(tmp_path / "config.yaml")
    words = ["train", str(tmp_path / "config.yaml"), "-o", str(tmp_path), "--steps", "1", "--json"]
    answer = CliRunner().invoke(app, words)
    assert json.loads(answer.stdout) == {"output": str(tmp_path), "finished": False, "step": 1, "steps": 3}
    assert averaged(tmp_path, build_pupil(CONFIG, library)) == 1


def test_a_run_needs_data_to_begin(tmp_path):
    with pytest.raises(MissingFileError, match="Give --data FOLDER"):
        next(train(CONFIG, tmp_path / "empty"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objective": "contrast"}, "contrast needs per_type"),
        ({"views": {"scenes": {"nowhere": 1}}}, "nowhere"),
        ({"views": {"resolutoin_A": [4, 5]}}, "resolutoin_A"),
        ({"tower": {"voxel_size_A": 5.0}}, "carries 4.5 Å"),
        ({"tower": {"chanels": 3}}, "chanels"),
        ({"objectif": "align"}, "Did you mean 'objective'"),
    ],
)
def test_impossible_settings_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig.build(**{"objective": "align", **change})

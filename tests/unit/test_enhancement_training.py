"""What the enhancing network is trained on and for: pairs, losses, a run that goes on where it was stopped."""

import gzip
import json

import numpy as np
import pytest
import torch
from small_library import small_library
from small_proteins import helices

from cryoscan import Volume
from cryoscan.errors import ConfigError, FormatError, MismatchError, MissingFileError
from cryoscan.io import write_structure, write_volume
from cryoscan.metrics import fsc
from cryoscan.models.checkpoint import load_network, tower_provenance
from cryoscan.models.cryosamu import CryoSamu, CryoSamuConfig
from cryoscan.simulate import density
from cryoscan.train.config import EnhanceTrainConfig, TrainConfig, read_train_config
from cryoscan.train.enhance_run import NetworkTrained, read_real_pair, train_enhancer
from cryoscan.train.enhancement import enhance_objective, shell_correlation, ssim_3d
from cryoscan.train.pairs import TARGET_SIGMA, PairConfig, RealPair, real_pairs, simulated_pairs, together

WINDOW, VOXEL = 24, 2.0
QUIET = PairConfig(
    resolution_A=(4.2, 4.2),
    noise_limited=0.0,
    best_A=3.2,
    noise_power=(0.0, 0.0),
    remaining_b_A2=(0.0, 0.0),
    mobile_b_A2=(0.0, 0.0),
    uneven=(0.0, 0.0),
    charged=(1.0, 1.0),
    solvent=(0.0, 0.0),
    coarse_power=(0.0, 0.0),
    neighbours=(0, 0),
    masked=0.0,
    clipped=0.0,
)


@pytest.fixture(scope="module")
def library():
    return small_library()


def draw(library, config, *, seed=0, anchors=(0, 2, 4)):
    rng = torch.Generator().manual_seed(seed)
    return simulated_pairs(library, torch.tensor(anchors), config=config, rng=rng, window=WINDOW, voxel_size=VOXEL)


# ---------------------------------------------------------------- simulated pairs


def test_a_quiet_map_is_the_sharp_density_low_passed(library):
    pairs = draw(library, QUIET)
    for map_ZYX, sharp_ZYX in zip(pairs.map_BZYX.numpy(), pairs.sharp_BZYX.numpy(), strict=True):
        frequencies, correlation = fsc(map_ZYX, sharp_ZYX, voxel_size=VOXEL)
        assert correlation[frequencies < 1 / 6].min() > 0.97


def test_the_target_has_the_width_that_its_definition_says():
    k = (np.pi / (2.4 + 0.8 * 3.0)) ** 2
    assert pytest.approx(np.sqrt(1 / (2 * k))) == TARGET_SIGMA


def test_the_map_fits_the_target_in_scale(library):
    pairs = draw(library, PairConfig())
    rms = pairs.sharp_BZYX.square().mean(dim=(1, 2, 3)).sqrt()
    torch.testing.assert_close(rms, torch.ones(3), rtol=1e-3, atol=1e-3)
    pairs = draw(library, QUIET)
    slope = (pairs.map_BZYX * pairs.sharp_BZYX).sum(dim=(1, 2, 3)) / pairs.sharp_BZYX.square().sum(dim=(1, 2, 3))
    torch.testing.assert_close(slope, torch.ones(3), rtol=1e-3, atol=1e-3)


def test_the_same_seed_gives_the_same_pairs_and_another_one_others(library):
    one, again, other = (draw(library, PairConfig(), seed=seed) for seed in (3, 3, 4))
    assert torch.equal(one.map_BZYX, again.map_BZYX)
    assert not torch.allclose(one.map_BZYX, other.map_BZYX)


@pytest.mark.parametrize(
    "spoilt",
    [
        {"noise_power": (2.0, 2.0), "noise_limited": 1.0, "resolution_A": (6.0, 6.0)},
        {"coarse_power": (0.5, 0.5)},
        {"mobile_b_A2": (400.0, 400.0)},
        {"uneven": (0.8, 0.8)},
        {"charged": (0.0, 0.0)},
        {"solvent": (0.8, 0.8)},
        {"remaining_b_A2": (500.0, 500.0)},
        {"resolution_A": (8.0, 8.0)},
    ],
    ids=lambda spoilt: next(iter(spoilt)),
)
def test_everything_that_spoils_a_map_does(library, spoilt):
    def alike(config):
        pairs = draw(library, config)
        return np.corrcoef(pairs.map_BZYX.numpy().ravel(), pairs.sharp_BZYX.numpy().ravel())[0, 1]

    settings = {name: getattr(QUIET, name) for name in PairConfig.__dataclass_fields__}
    assert alike(PairConfig(**{**settings, **spoilt})) < alike(QUIET) - 0.003


def test_neighbours_belong_to_the_target_and_masks_cut_both(library):
    settings = {name: getattr(QUIET, name) for name in PairConfig.__dataclass_fields__}
    crowded = draw(library, PairConfig(**{**settings, "neighbours": (3, 3)}))
    alone, masked = draw(library, QUIET), draw(library, PairConfig(**{**settings, "masked": 1.0}))

    def filled(pairs):
        return float((pairs.sharp_BZYX > 0.5 * pairs.sharp_BZYX.std()).float().mean())

    assert filled(crowded) > 1.2 * filled(alone)
    assert float((masked.map_BZYX == 0).float().mean()) > 0.3 > float((alone.map_BZYX == 0).float().mean())
    assert ((masked.map_BZYX != 0) | (masked.sharp_BZYX.abs() < 1e-6)).all()


# ---------------------------------------------------------------- real pairs


@pytest.fixture(scope="module")
def source():
    structure = helices(22, 24, 20, at=(120.0, -40.0, 7.5))
    volume = density(structure, voxel_size=1.1, resolution=4.0)
    return RealPair("made", volume, structure, True, 4.0)


def test_a_window_of_a_map_lies_on_its_model_however_it_is_turned(source):
    rng = torch.Generator().manual_seed(2)
    config = PairConfig(resolution_A=(4.2, 4.3))
    pairs = real_pairs([source], torch.zeros(4, dtype=torch.int64), config=config, rng=rng, window=24, voxel_size=2.0)
    for map_ZYX, sharp_ZYX in zip(pairs.map_BZYX.numpy(), pairs.sharp_BZYX.numpy(), strict=True):
        assert np.corrcoef(map_ZYX.ravel(), sharp_ZYX.ravel())[0, 1] > 0.9
        assert np.corrcoef(map_ZYX[::-1].ravel(), sharp_ZYX.ravel())[0, 1] < 0.8


def test_far_from_an_incomplete_model_nothing_counts(source):
    partial = RealPair("made", source.volume, source.structure, False, 4.0)
    rng = torch.Generator().manual_seed(2)
    pairs = real_pairs(
        [partial], torch.zeros(1, dtype=torch.int64), config=PairConfig(), rng=rng, window=24, voxel_size=2.0
    )
    outside = pairs.sharp_BZYX.abs() < 1e-4
    assert float(pairs.weight_BZYX[outside].mean()) < 0.2
    assert float(pairs.weight_BZYX[pairs.sharp_BZYX > 1].min()) > 0.75


@pytest.mark.parametrize(
    ("changes", "least"),
    [
        ({"overstated": 1.0, "noise_power": (1.0, 1.0), "overstated_by": (1.6, 1.6)}, 0.02),
        ({"real_b_A2": (300.0, 300.0)}, 0.02),
        ({"real_masked": 1.0, "mask_offset_A": (0.5, 0.5)}, 0.0),
    ],
    ids=lambda changes: next(iter(changes)) if isinstance(changes, dict) else "",
)
def test_windows_of_maps_are_spoilt_as_is_said(source, changes, least):
    def drawn(**settings):
        config = PairConfig(resolution_A=(4.2, 4.3), **settings)
        rng = torch.Generator().manual_seed(2)
        chosen = torch.zeros(3, dtype=torch.int64)
        return real_pairs([source], chosen, config=config, rng=rng, window=24, voxel_size=2.0)

    def alike(pairs):
        return np.corrcoef(pairs.map_BZYX.numpy().ravel(), pairs.sharp_BZYX.numpy().ravel())[0, 1]

    plain, spoilt = drawn(), drawn(**changes)
    if "real_masked" in changes:  # solvent is gone from both
        empty = [float((pairs.map_BZYX.abs() < 1e-6).float().mean()) for pairs in (plain, spoilt)]
        assert empty[1] > empty[0] + 0.2
        assert ((spoilt.map_BZYX != 0) | (spoilt.sharp_BZYX.abs() < 1e-6)).all()
    else:
        assert alike(spoilt) < alike(plain) - least


def test_a_simulated_map_may_claim_more_than_it_holds(library):
    settings = {name: getattr(QUIET, name) for name in PairConfig.__dataclass_fields__}
    settings |= {"resolution_A": (5.0, 5.0), "noise_limited": 1.0, "noise_power": (1.0, 1.0)}

    def alike(config):
        pairs = draw(library, config)
        return np.corrcoef(pairs.map_BZYX.numpy().ravel(), pairs.sharp_BZYX.numpy().ravel())[0, 1]

    honest = alike(PairConfig(**settings))
    assert alike(PairConfig(**{**settings, "overstated": 1.0, "overstated_by": (1.6, 1.6)})) < honest - 0.02


# ---------------------------------------------------------------- losses


def test_ssim_is_the_formula_written_out_in_one_cube():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 7, 7, 7))
    wide = b.max() - b.min()
    x, y = a / wide, b / wide
    light = (2 * x.mean() * y.mean() + 1e-4) / (x.mean() ** 2 + y.mean() ** 2 + 1e-4)
    contrast = (2 * ((x - x.mean()) * (y - y.mean())).mean() + 9e-4) / (x.var() + y.var() + 9e-4)
    found = ssim_3d(*(torch.from_numpy(part)[None] for part in (a, b)))
    assert float(found[0]) == pytest.approx(light * contrast)


def test_ssim_is_one_for_the_same_and_falls_with_noise():
    x = torch.randn(2, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ssim_3d(x, x), torch.ones(2))
    noisy = [float(ssim_3d(x + level * torch.randn_like(x), x).mean()) for level in (0.2, 0.5, 1.0)]
    assert 1 > noisy[0] > noisy[1] > noisy[2]


def test_shells_agree_with_the_metric_where_nothing_is_faded(library):
    rng = np.random.default_rng(1)
    inner = np.zeros((2, 24, 24, 24))
    inner[:, 4:-4, 4:-4, 4:-4] = rng.normal(size=(2, 16, 16, 16))  # the fade leaves this alone
    _, expected = fsc(inner[0], inner[1], voxel_size=1.75)
    found = shell_correlation(*(torch.from_numpy(part)[None] for part in inner), voxel_size=1.75)
    np.testing.assert_allclose(found[0].numpy(), expected, atol=1e-6)


def test_the_loss_is_least_at_the_truth_and_sees_no_unknown_place(library):
    pairs = draw(library, PairConfig())

    class Answers(torch.nn.Module):
        config = CryoSamuConfig(voxel_size_A=VOXEL)

        def __init__(self, answer):
            super().__init__()
            self.answer = answer

        def forward(self, *_):
            return self.answer

    def loss(answer, of=pairs):
        return float(enhance_objective(Answers(answer), of, torch.Generator())[0])

    truth = pairs.sharp_BZYX
    assert loss(truth) == pytest.approx(0, abs=1e-4)
    assert loss(truth) < loss(0.9 * truth) < loss(0.5 * truth)
    assert loss(truth) < loss(pairs.map_BZYX)
    weight = torch.zeros_like(truth)
    weight[:, 6:-6, 6:-6, 6:-6] = 1
    known = type(pairs)(pairs.map_BZYX, truth * weight, weight, pairs.resolution_B)
    spoilt = truth.clone()
    spoilt[:, :6] = 50
    assert loss(spoilt, known) == pytest.approx(loss(truth, known), abs=1e-4)


# ---------------------------------------------------------------- a run

SMALL = {
    "objective": "enhance",
    "network": {"channels": [2, 4], "residues": 8, "width": 4, "heads": 2, "voxel_size_A": 2.0},
    "window": 16,
    "batch": 2,
    "steps": 4,
    "warm_up": 1,
    "validate_every": 2,
    "seed": 5,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data folder with maps and their models, of which only the first fits."""
    root = tmp_path_factory.mktemp("data")
    for name in ("maps", "maps_models"):
        (root / name).mkdir()
    structure = helices(22, 24, 20, at=(20.0, 40.0, 7.5))
    records = {}
    bad, far = (structure.moved(offset=offset) for offset in ((0, 14, 9), (400, 0, 0)))
    for name, model in (("good", structure), ("bad", bad), ("far", far)):
        volume = density(structure, voxel_size=1.7, resolution=5.0)
        rng = np.random.default_rng(1)
        noisy = volume.load() + rng.normal(0, 0.02, volume.shape).astype(np.float32)
        write_volume(Volume(noisy, 1.7, volume.origin), root / "maps" / f"{name}.mrc")
        write_structure(model, root / "maps_models" / f"{name}.pdb")
        for path in (root / "maps" / f"{name}.mrc", root / "maps_models" / f"{name}.pdb"):
            path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes(), 1))
        records[name] = {"res": 4.5, "vox": [1.7, 1.7, 1.7]}
    (root / "maps" / "maps.json").write_text(json.dumps(records))
    return root


@pytest.fixture
def begin(library, tmp_path):
    """Begin a run in a folder that has its library and residues already."""

    def start(name, **settings):
        run = tmp_path / name
        run.mkdir(exist_ok=True)
        if not (run / "library.npz").exists():
            library.save(run / "library.npz")
            count, residues = len(library.chains), 8
            vectors = np.random.default_rng(0).normal(size=(count, residues, 42)).astype(np.float16)
            ones = np.ones((count, residues), np.float16)
            np.savez(run / "informants.npz", vectors=vectors, weights=ones, mask=ones.astype(bool))
        return run, EnhanceTrainConfig.build(**{**SMALL, **settings})

    return start


def test_a_stopped_run_goes_on_to_the_same_weights(begin, folder):
    run, config = begin("whole", real_train=("good",))
    *_, whole = train_enhancer(config, run, data=folder)
    assert isinstance(whole, NetworkTrained)
    run, config = begin("halves", real_train=("good",))
    *_, first = train_enhancer(config, run, data=folder, until=2)
    assert (first.done, first.stopped) == (2, True)
    *_, halves = train_enhancer(config, run, data=folder)
    one, other = (load_network(end.weights, CryoSamu).state_dict() for end in (whole, halves))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert "Model card" in halves.card.read_text()


def test_real_maps_are_watched_and_the_card_says_how_they_did(begin, folder):
    run, config = begin("watched", real_validation=("good",), steps=2)
    *_, last = train_enhancer(config, run, data=folder)
    assert last.watched["validation/5/cc_mask/before"] > 0.5
    assert "| 5 Å | cc_mask |" in last.card.read_text()


def test_a_run_may_begin_with_the_mean_of_another(begin, folder):
    first, config = begin("first")
    *_, _ = train_enhancer(config, first, data=folder)
    run, config = begin("second", start_from=first, steps=1, learning_rate=1e-12)
    *_, last = train_enhancer(config, run, data=folder)
    one, other = (load_network(path, CryoSamu).state_dict() for path in (first / "enhancer.safetensors", last.weights))
    for name in one:
        if "mean_square" not in name:
            torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-6)
    assert not torch.equal(one["stem.weight"], CryoSamu(config.network_config()).stem.weight)


def test_a_run_may_begin_with_the_weights_of_a_narrower_network(begin, folder):
    first, config = begin("first", real_train=("good",))
    *_, before = train_enhancer(config, first, data=folder)
    wider = {**SMALL["network"], "channels": [6, 4]}
    run, config = begin("second", start_from=before.weights, network=wider, steps=1)
    *_, last = train_enhancer(config, run, data=folder)
    assert load_network(last.weights, CryoSamu).config.channels == (6, 4)
    assert set(tower_provenance(last.weights).inputs) == {"library", "start_from"}
    run, config = begin("third", start_from=before.weights, network={**wider, "channels": [2, 8]})
    with pytest.raises(ConfigError, match="begun with"):
        list(train_enhancer(config, run, data=folder))


def test_what_was_learned_may_be_blended_with_what_was_begun_with(begin, folder):
    first, config = begin("first", real_train=("good",))
    *_, before = train_enhancer(config, first, data=folder)
    ends = {}
    for share in (0.25, 1.0):
        run, config = begin(f"blend {share}", start_from=before.weights, blend=share, real_validation=("good",))
        *_, ends[share] = train_enhancer(config, run, data=folder)
    start, quarter, whole = (load_network(end.weights, CryoSamu) for end in (before, ends[0.25], ends[1.0]))
    for name, tensor in quarter.state_dict().items():
        expected = 0.75 * start.state_dict()[name] + 0.25 * whole.state_dict()[name]
        torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-7)
    assert not torch.allclose(start.stem.weight, whole.stem.weight, atol=1e-4)
    watched = [end.watched["validation/5/cc_mask/after"] for end in ends.values()]
    assert watched[0] != watched[1]  # the card tells of what is kept


def test_weights_remember_the_proteins_of_their_maps(begin, folder):
    run, config = begin("run", real_train=("good",), steps=1)
    *_, last = train_enhancer(config, run, data=folder)
    sequences = tower_provenance(last.weights).inputs["good"].split(",")
    assert sorted(len(sequence) for sequence in sequences) == sorted(
        np.unique(read_real_pair(folder, "good").structure.chains, return_counts=True)[1] // 5
    )


def test_other_settings_other_maps_and_no_maps_are_refused(begin, folder):
    run, config = begin("one")
    *_, _ = train_enhancer(config, run, data=folder, until=1)
    _, other = begin("one", learning_rate=1e-3)
    with pytest.raises(MismatchError, match="learning_rate"):
        list(train_enhancer(other, run, data=folder))
    run, config = begin("two", real_train=("good",))
    with pytest.raises(MissingFileError, match="good"):
        list(train_enhancer(config, run, data=None))
    run, config = begin("three", real_train=("absent",))
    with pytest.raises(MissingFileError, match="absent"):
        list(train_enhancer(config, run, data=folder))


@pytest.mark.parametrize("name", ["bad", "far"])
def test_a_model_that_does_not_explain_its_map_is_no_pair(folder, name):
    assert read_real_pair(folder, "good").complete
    with pytest.raises(FormatError, match=f"explains the map {name}"):
        read_real_pair(folder, name)


def test_the_objective_chooses_the_kind_of_settings(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("objective: enhance\nsteps: 7\n")
    assert isinstance(read_train_config(path), EnhanceTrainConfig)
    path.write_text("objective: reconstruct\n")
    assert isinstance(read_train_config(path), TrainConfig)
    path.write_text("objective: enhence\n")
    with pytest.raises(ConfigError, match="objective"):
        read_train_config(path)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"window": 41}, "multiple of 2"),
        ({"network": {"chanels": [1, 2]}}, "chanels"),
        ({"pairs": {"maskd": 1}}, "maskd"),
        ({"real_train": ("a",), "real_validation": ("a",)}, "must not be learned from"),
        ({"blend": 0.5}, "weights to begin with"),
    ],
)
def test_impossible_settings_are_refused(wrong, said):
    with pytest.raises(ConfigError, match=said):
        EnhanceTrainConfig.build(**{**SMALL, **wrong})


def test_batches_are_joined_in_order(library):
    one, other = draw(library, QUIET, anchors=(0,)), draw(library, PairConfig(), anchors=(1, 2))
    both = together([one, other])
    assert len(both) == 3
    assert torch.equal(both.map_BZYX[1:], other.map_BZYX)

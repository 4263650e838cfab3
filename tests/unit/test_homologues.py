"""Relatives of a protein: who counts as one, and that it is laid onto the protein."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from small_proteins import helices, joined

from cryoscan.benchmark.homologues import Relatives, superposed

TURN = Rotation.from_euler("zyx", (25, -70, 130), degrees=True).as_matrix()
NAMES = np.array(["ALA", "LEU", "GLU", "LYS", "PHE", "SER", "VAL", "TRP", "HIS", "CYS", "ASP", "THR"])


def protein(seed=0, chain="A", length=60):
    """A chain of helices with a sequence of its own."""
    found = helices(length // 2, length - length // 2, chains=chain)
    sequence = np.random.default_rng(seed).choice(NAMES, found.n_residues)
    return replace(found, residue_names=sequence[found.residues])


def mutated(structure, share, seed=1):
    """Some residues replaced by one that is not there."""
    rng = np.random.default_rng(seed)
    gone = rng.random(structure.n_residues) < share
    return replace(structure, residue_names=np.where(gone[structure.residues], "MET", structure.residue_names))


def away(structure):
    return structure.moved(rotation=TURN, offset=(120.0, -33.5, 7.25))


def test_a_relative_with_other_ends_is_laid_onto_the_protein():
    whole = protein(length=80)
    fixed = whole.select((whole.residues >= 3) & (whole.residues < 76))
    moving = away(mutated(whole.select(whole.residues < 70), 0.4))
    laid = superposed(moving, fixed)
    assert laid.rmsd < 1e-6
    assert laid.tm_score == pytest.approx(67 / 73)  # of the model's residues, what is paired
    np.testing.assert_allclose(laid.structure.positions, whole.select(whole.residues < 70).positions, atol=1e-5)
    bent = replace(moving, positions=moving.positions + np.random.default_rng(0).normal(0, 1.0, moving.positions.shape))
    assert 1.0 < superposed(bent, fixed).rmsd < 2.5
    assert superposed(whole.select(whole.residues < 12), fixed) is None


def test_only_relatives_count_and_the_nearest_is_taken():
    model = protein()
    chains = {
        "itself": model,
        "twin": mutated(model, 0.1),
        "near": away(mutated(model, 0.5)),
        "far": away(mutated(model, 0.68, seed=3)),
        "fragment": mutated(model.select(model.residues < 25), 0.5),
        "stranger": protein(seed=9),
    }
    found = Relatives(chains.items()).of(model)
    assert found.about[0].startswith("near for A: ")
    assert 0.4 < found.identity < 0.6
    assert found.rmsd == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(found.structure.positions, model.positions, atol=1e-5)
    assert "MET" in found.structure.residue_names
    del chains["near"], chains["far"]
    assert Relatives(chains.items()).of(model) is None


def test_a_chain_of_another_fold_is_no_relative_whatever_its_sequence():
    model = protein()
    near = mutated(model, 0.5)
    walk = np.random.default_rng(2).normal(0, 2.2, (near.n_residues, 3)).cumsum(axis=0)
    unfolded = replace(near, positions=walk[near.residues])
    assert superposed(unfolded, model).tm_score < 0.5
    assert Relatives([("unfolded", unfolded)]).of(model) is None
    found = Relatives([("unfolded", unfolded), ("folded", mutated(model, 0.6, seed=2))]).of(model)
    assert found.about[0].startswith("folded for A: ")
    assert found.tm_score == pytest.approx(1.0)


def test_each_chain_of_a_model_gets_its_own_relative():
    first, second = protein(seed=0, chain="A"), protein(seed=5, chain="B").moved(offset=(0, 50.0, 0))
    chains = {"x": away(mutated(second, 0.5)), "y": away(mutated(first, 0.5))}
    found = Relatives(chains.items()).of(joined(first, second))
    assert [text.split(",")[0].split(":")[0] for text in found.about] == ["y for A", "x for B"]
    assert found.structure.n_residues == 120
    np.testing.assert_allclose(found.structure.positions, joined(first, second).positions, atol=1e-5)

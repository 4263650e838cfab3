"""What an embedding of atoms must not see, and what it must: motion, padding, the order of chains; handedness."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from cryoscan.io import StructureStore, read_domains
from cryoscan.models.atom_tower import AtomTower, AtomTowerConfig, embed_residues, embed_structures
from cryoscan.models.residues import residues_of
from cryoscan.structure import Structure

CONFIGS = {
    "graph": AtomTowerConfig(width=32, layers=2, neighbours=12, dim=24, heads=4),
    "dense": AtomTowerConfig(encoder="dense", width=32, pair_width=12, layers=2, heads=4, dim=24, fusion_blocks=1),
}


@pytest.fixture(params=CONFIGS, name="tower")
def random_tower(request) -> AtomTower:
    torch.manual_seed(11)
    return AtomTower(CONFIGS[request.param])


@pytest.fixture(scope="module", name="domains")
def real_domains(data_folder) -> list[Structure]:
    store = StructureStore(data_folder / "structures")
    rows = read_domains(data_folder / "labels" / "cath_domains.tsv")
    return [store.domain(row) for row in rows[5:2000:400] if 40 <= row.n_residues <= 200]


def distance(first: np.ndarray, second: np.ndarray) -> float:
    """Largest distance between rows, in units of the distance between different structures."""
    scale = np.linalg.norm(first[:1] - first[1:], axis=1).mean()
    return float(np.linalg.norm(first - second, axis=1).max() / scale)


def test_motion_changes_nothing(tower, domains, rng):
    turns = Rotation.random(len(domains), rng=rng).as_matrix()
    moved = [d.moved(rotation=turn, offset=(217.0, -90.5, 33.1)) for d, turn in zip(domains, turns, strict=True)]
    assert distance(embed_structures(tower, domains), embed_structures(tower, moved)) < 1e-3


def test_a_mirror_image_is_another_structure(tower, domains):
    mirrored = [replace(domain, positions=domain.positions * (1, 1, -1)) for domain in domains]
    assert distance(embed_structures(tower, domains), embed_structures(tower, mirrored)) > 0.05


def test_padding_changes_nothing(tower, domains):
    items = [residues_of(domain) for domain in domains]
    together = embed_residues(tower, items, batch=len(items))
    alone = embed_residues(tower, items, batch=1)
    assert distance(together, alone) < 1e-3


def test_the_order_of_chains_changes_nothing(tower, domains):
    first, second = domains[0].centred(), domains[1].centred().moved(offset=(17.0, 0.0, 6.0))
    one_way, other_way = joined(first, second), joined(second, first)
    pair = embed_structures(tower, [one_way, domains[2]])
    assert distance(pair, np.stack([embed_structures(tower, [other_way])[0], pair[1]])) < 1e-3
    as_one_chain = joined(first, second, chain="A")
    assert distance(pair, np.stack([embed_structures(tower, [as_one_chain])[0], pair[1]])) > 1e-3


def joined(first: Structure, second: Structure, *, chain: str | None = None) -> Structure:
    """Two structures as one, under chains of their own names or of one name."""
    arrays = {
        name: np.concatenate([getattr(first, name), getattr(second, name)])
        for name in ("positions", "elements", "names", "residue_names", "residue_numbers", "insertion_codes",
                     "b_factors", "nucleic")
    }  # fmt: skip
    names = (chain or f"{first.id}", chain or f"{second.id}")
    chains = np.repeat(names, (len(first), len(second)))
    residues = np.concatenate([first.residues, second.residues + first.residues.max() + 1])
    return Structure(id="joined", chains=chains, residues=residues, **arrays)

"""A library of few small bodies for tests of training: two types of two domains, one of one, one without a type."""

import numpy as np

from cryoscan import Structure
from cryoscan.train import Anchor, AtomLibrary

TYPES = (
    ("CATH:1.10.8.10", "SCOPe:a.5.2.1"),
    ("CATH:1.10.8.10",),
    ("CATH:1.10.8.20",),
    ("CATH:3.40.50.300",),
    (),
    ("CATH:1.10.8.10",),
    ("CATH:3.40.50.300",),
)
SPLITS = ("train", "train", "train", "train", "train", "validation", "validation")


def small_library() -> AtomLibrary:
    """Seven bodies; those of one type are alike in shape."""
    keys = [f"{index}abc_A" for index in range(len(TYPES))]
    structures = [body(index) for index in range(len(TYPES))]
    anchors = [
        Anchor(f"d{index}", types, f"k{index}", keys[index], ((0, structures[index].n_residues),), split)
        for index, (types, split) in enumerate(zip(TYPES, SPLITS, strict=True))
    ]
    return AtomLibrary.of_chains(zip(keys, structures, strict=True), anchors=anchors, neighbours=keys[:5])


def body(index: int) -> Structure:
    """About 40 residues in a box whose proportions say the type; far from 0."""
    rng = np.random.default_rng(index)
    seed = sum(map(ord, "".join(TYPES[index][:1]))) if TYPES[index] else index
    sides = np.random.default_rng(seed).permutation([8.0, 14.0, 21.0]) + rng.uniform(-1, 1, 3)
    n = 320
    return Structure(
        id="body",
        positions=rng.uniform(-0.5, 0.5, (n, 3)) * sides + np.array([-31.5, 407.3, 12.25]),
        elements=rng.choice([6, 7, 8], n).astype(np.uint8),
        names=np.full(n, "CA"),
        residue_names=np.full(n, "ALA"),
        residue_numbers=np.arange(n) // 8,
        insertion_codes=np.full(n, ""),
        chains=np.full(n, "A"),
        residues=np.arange(n) // 8,
        b_factors=np.zeros(n, np.float32),
        nucleic=np.zeros(n, bool),
    )

"""Approximate heavy atoms of a chain of which only the C-alpha positions are known."""

from dataclasses import replace

import numpy as np

from cryoscan.structure import Structure

# Electrons of the side chain's heavy atoms, and the usual distance of their centre from C-alpha in Å.
_SIDE_CHAINS = {
    "GLY": (0, 0.0), "ALA": (6, 1.5), "SER": (14, 1.9), "CYS": (22, 2.1), "THR": (20, 2.0), "VAL": (18, 2.0),
    "PRO": (18, 1.9), "ILE": (24, 2.3), "LEU": (24, 2.6), "ASP": (28, 2.5), "ASN": (27, 2.5), "GLU": (34, 3.1),
    "GLN": (33, 3.1), "MET": (34, 3.0), "MSE": (52, 3.0), "HIS": (38, 3.1), "LYS": (31, 3.5), "PHE": (42, 3.4),
    "TYR": (50, 3.8), "ARG": (45, 4.1), "TRP": (61, 3.9),
}  # fmt: skip
_UNKNOWN = (26, 2.5)


def is_trace(structure: Structure) -> bool:
    """Whether the structure has one C-alpha atom per residue and nothing else."""
    return bool(np.all(structure.names == "CA")) and structure.n_residues == len(structure)


def atoms_from_trace(structure: Structure) -> Structure:
    """Add peptide and side-chain masses to a C-alpha trace, enough for densities of 5 Å and lower.

    Between neighbouring C-alphas (less than 4.5 Å apart) C, O and N are placed on the
    straight line; the side chain is one mass along the bisector that points away from both
    neighbours. Elements are the masses' numbers of electrons.

    Parameters
    ----------
    structure : Structure
        One C-alpha per residue, see `is_trace`.
    """
    ca = structure.positions
    step = np.diff(ca, axis=0)
    bonded = (np.linalg.norm(step, axis=1) < 4.5) & (structure.chains[1:] == structure.chains[:-1])
    start = np.flatnonzero(bonded)
    before = np.zeros_like(ca)
    after = np.zeros_like(ca)
    before[start + 1] = step[start]
    after[start] = step[start]
    outward = before - after
    length = np.linalg.norm(outward, axis=1, keepdims=True)
    outward = np.where(length > 0.1, outward / np.maximum(length, 0.1), 0)
    electrons, reach = np.array([_SIDE_CHAINS.get(str(name), _UNKNOWN) for name in structure.residue_names]).T
    has_side = np.flatnonzero(electrons > 0)
    groups = [  # name, residue index, position, electrons
        ("CA", np.arange(len(ca)), ca, np.full(len(ca), 6)),
        ("C", start, ca[start] + 0.36 * step[start], np.full(len(start), 6 + 8)),  # with its O
        ("N", start + 1, ca[start] + 0.63 * step[start], np.full(len(start), 7)),
        ("CB", has_side, ca[has_side] + reach[has_side, None] * outward[has_side], electrons[has_side]),
    ]
    index = np.concatenate([group[1] for group in groups])
    order = np.argsort(index, kind="stable")
    index = index[order]
    return replace(
        structure,
        positions=np.concatenate([group[2] for group in groups])[order],
        elements=np.concatenate([group[3] for group in groups]).astype(np.uint8)[order],
        names=np.concatenate([np.full(len(group[1]), group[0]) for group in groups])[order],
        residue_names=structure.residue_names[index],
        residue_numbers=structure.residue_numbers[index],
        insertion_codes=structure.insertion_codes[index],
        chains=structure.chains[index],
        residues=structure.residues[index],
        b_factors=structure.b_factors[index],
        nucleic=structure.nucleic[index],
    )

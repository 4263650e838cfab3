"""Small proteins for tests: nearly ideal helices side by side, with a whole backbone and C-beta atoms."""

from dataclasses import fields

import numpy as np

from cryoscan import Structure

_ATOMS = {  # radius, angle and height from C-alpha in an alpha helix (Å, degrees); and atomic number
    "N": (1.55, -27.7, -0.88, 7),
    "CA": (2.29, 0.0, 0.0, 6),
    "C": (1.68, 26.4, 1.11, 6),
    "O": (2.02, 20.0, 2.30, 8),
    "CB": (3.30, -18.0, -0.60, 6),
}
_RESIDUES = ("ALA", "LEU", "GLU", "LYS", "PHE", "SER", "VAL")


def helices(*lengths: int, at=(0.0, 0.0, 0.0), chains: str = "A", id_: str = "helices") -> Structure:
    """Helices of so many residues, 10 Å apart; each chain holds them all, 24 Å from the one before."""
    rows = []
    for place, chain in enumerate(chains):
        number = 0
        for column, length in enumerate(lengths):
            for residue in range(length):
                for name, (radius, angle, height, element) in _ATOMS.items():
                    turn = np.deg2rad(100 * residue + angle)
                    z = 1.5 * residue + height
                    y, x = radius * np.sin(turn) + 10 * column, radius * np.cos(turn) + 24 * place
                    rows.append((z, y, x, element, name, _RESIDUES[(number * 3 + place) % 7], number + 1, chain))
                number += 1
    residue = np.cumsum([row[4] == "N" for row in rows]) - 1
    jitter = np.random.default_rng(7).normal(0, 0.1, (len(rows), 3))  # distances that are all alike tie
    return Structure(
        id=id_,
        positions=np.array([row[:3] for row in rows]) + jitter + np.array(at),
        elements=np.array([row[3] for row in rows], np.uint8),
        names=np.array([row[4] for row in rows]),
        residue_names=np.array([row[5] for row in rows]),
        residue_numbers=np.array([row[6] for row in rows]),
        insertion_codes=np.full(len(rows), ""),
        chains=np.array([row[7] for row in rows]),
        residues=residue,
        b_factors=np.zeros(len(rows), np.float32),
        nucleic=np.zeros(len(rows), bool),
    )


def joined(*parts: Structure) -> Structure:
    """Structures as one."""
    names = [field.name for field in fields(Structure) if field.name not in ("id", "domains", "residues")]
    arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    sizes = np.cumsum([0, *(part.n_residues for part in parts[:-1])])
    residues = np.concatenate([part.residues + size for part, size in zip(parts, sizes, strict=True)])
    return Structure(id=parts[0].id, residues=residues, **arrays)

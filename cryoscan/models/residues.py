"""What the AtomTower sees of a structure: a frame per residue, torsion angles, places along the chain."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cryoscan.errors import FormatError
from cryoscan.models.invariant_points import Frames, dihedral, frames_of, turned_by
from cryoscan.structure import Structure

FEWEST_RESIDUES = 20
"""Structures with fewer residues have no fold to speak of and are refused."""

AMINO_ACIDS = (
    "ALA", "ARG", "ASN", "ASP", "CYS", "GLN", "GLU", "GLY", "HIS", "ILE",
    "LEU", "LYS", "MET", "PHE", "PRO", "SER", "THR", "TRP", "TYR", "VAL",
)  # fmt: skip
UNKNOWN = len(AMINO_ACIDS)
"""Index of an amino acid that is none of the twenty, or is not told."""

BACKBONE = ((-0.525, 1.363, 0.0), (0.0, 0.0, 0.0), (1.526, 0.0, 0.0), (-0.527, -0.779, 1.211))
"""Local coordinates of N, C-alpha, C and C-beta in Å (ideal geometry; C-beta: medians of 100 chains)."""

TORSIONS = ("phi", "psi", "omega", "chi1", "chi2", "chi3", "chi4")

FAR = 33
"""Places between residues on both sides of a gap, and the distance along a chain from which on all are alike."""


@dataclass(frozen=True, slots=True, eq=False)
class Residues:
    """Residues of one structure (leading shape `l`) or of a padded batch (`b l`).

    Parameters
    ----------
    frames : Frames
        Of the backbone; origin at C-alpha; the structure is centred on 0.
    torsions : float tensor, `... l 7 2`
        Sine and cosine of `TORSIONS`; zeros where unknown.
    has_torsion : bool tensor, `... l 7`
    two_fold : bool tensor, `... l 7`
        Torsions of which an angle and its opposite are the same (side chains with a symmetric end).
    amino_acids : integer tensor, `... l`
        Index in `AMINO_ACIDS`, or `UNKNOWN`.
    chains : integer tensor, `... l`
        0, 1, 2 … for each chain.
    places : integer tensor, `... l`
        Place along the chain; gaps count at most `FAR`.
    mask : bool tensor, `... l`
        Real residues; the rest is padding.
    """

    frames: Frames
    torsions: Tensor
    has_torsion: Tensor
    two_fold: Tensor
    amino_acids: Tensor
    chains: Tensor
    places: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return self.mask.shape[0]

    def __repr__(self) -> str:
        return f"Residues({' x '.join(map(str, self.mask.shape))})"

    def part(self, index: Tensor | slice) -> "Residues":
        """Some residues of one structure, or some structures of a batch."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "frames"}
        frames = Frames(self.frames.rotations[index], self.frames.origins[index])
        return Residues(frames=frames, **{name: value[index] for name, value in values.items()})

    def to(self, device: torch.device | str) -> "Residues":
        """The same on another device."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "frames"}
        frames = Frames(self.frames.rotations.to(device), self.frames.origins.to(device))
        return Residues(frames=frames, **{name: value.to(device) for name, value in values.items()})


def residues_of(structure: Structure) -> Residues:
    """Describe a structure for the AtomTower.

    Residues that lack N, C-alpha or C are left out. A structure of C-alphas alone gets the
    frames that are likeliest at each angle between successive C-alphas (mean error 10° on
    18,000 residues of known backbone) and no torsion angles; its residues without a neighbour
    on either side are left out.

    Raises
    ------
    FormatError
        If fewer than 20 residues remain.
    """
    atoms = _named_atoms(structure)
    _, first = np.unique(structure.residues, return_index=True)
    names = structure.residue_names[first]
    numbers = structure.residue_numbers[first]
    chains = np.unique(structure.chains[first], return_inverse=True)[1]
    n, ca, c = (torch.from_numpy(atoms[:, _SLOTS[name]]) for name in ("N", "CA", "C"))
    is_trace = not bool(torch.isfinite(n).all(-1).any())
    before, after = _bonds(ca, c, n, chains, is_trace=is_trace)
    if is_trace:
        frames, kept = _frames_of_trace(ca, before, after)
        torsions = torch.full((len(names), 7, 2), torch.nan)
    else:
        frames, kept = frames_of(n, ca, c), torch.isfinite(torch.cat([n, ca, c], dim=-1)).all(-1)
        torsions = _torsions(atoms, names, before, after)
    if int(kept.sum()) < FEWEST_RESIDUES:
        raise FormatError(
            f"expected at least {FEWEST_RESIDUES} residues with N, CA and C (or with CA alone) in '{structure.id}'",
            got=f"{int(kept.sum())} of {len(names)}",
            hint="Give a protein domain or chain; peptides and nucleic acids have no embedding.",
        )
    has_torsion = torch.isfinite(torsions).all(-1)
    known = {name: index for index, name in enumerate(AMINO_ACIDS)} | {"MSE": AMINO_ACIDS.index("MET")}
    indices = [known.get(str(name), UNKNOWN) for name in names]
    everything = Residues(
        frames=Frames(frames.rotations.float(), (frames.origins - frames.origins[kept].mean(0)).float()),
        torsions=torch.nan_to_num(torsions).float(),
        has_torsion=has_torsion,
        two_fold=torch.from_numpy(_TWO_FOLD[indices]),
        amino_acids=torch.tensor(indices),
        chains=torch.from_numpy(chains),
        places=torch.from_numpy(_places(numbers, chains, after.numpy())),
        mask=torch.ones(len(names), dtype=torch.bool),
    )
    return everything.part(kept)


def collate(items: Sequence[Residues]) -> Residues:
    """Pad structures to the longest: `l` each → `b l`. Padding has unit frames at 0."""
    longest = max(len(item) for item in items)

    def padded(name: str) -> Tensor:
        parts = [getattr(item, name) for item in items]
        return torch.stack(
            [functional.pad(part, (0, 0) * (part.ndim - 1) + (0, longest - len(part))) for part in parts]
        )

    rotations = torch.eye(3).repeat(len(items), longest, 1, 1)
    origins = torch.zeros(len(items), longest, 3)
    for row, item in enumerate(items):
        rotations[row, : len(item)] = item.frames.rotations
        origins[row, : len(item)] = item.frames.origins
    names = [field.name for field in fields(Residues) if field.name != "frames"]
    return Residues(frames=Frames(rotations, origins), **{name: padded(name) for name in names})


# ---------------------------------------------------------------- atoms and angles

_SIDE_CHAINS = {
    "ALA": (), "GLY": (),
    "ARG": ("CB", "CG", "CD", "NE", "CZ"), "ASN": ("CB", "CG", "OD1"), "ASP": ("CB", "CG", "OD1"),
    "CYS": ("CB", "SG"), "GLN": ("CB", "CG", "CD", "OE1"), "GLU": ("CB", "CG", "CD", "OE1"),
    "HIS": ("CB", "CG", "ND1"), "ILE": ("CB", "CG1", "CD1"), "LEU": ("CB", "CG", "CD1"),
    "LYS": ("CB", "CG", "CD", "CE", "NZ"), "MET": ("CB", "CG", "SD", "CE"), "PHE": ("CB", "CG", "CD1"),
    "PRO": ("CB", "CG", "CD"), "SER": ("CB", "OG"), "THR": ("CB", "OG1"), "TRP": ("CB", "CG", "CD1"),
    "TYR": ("CB", "CG", "CD1"), "VAL": ("CB", "CG1"), "MSE": ("CB", "CG", "SE", "CE"),
}  # fmt: skip
"""Atoms behind N and C-alpha whose successive torsions are chi1 … chi4 (IUPAC 1970)."""

_SLOTS = {name: i for i, name in enumerate(sorted({"N", "CA", "C", *sum(_SIDE_CHAINS.values(), ())}))}

_TWO_FOLD = np.zeros((UNKNOWN + 1, 7), bool)
for _name, _chi in (("ASP", 2), ("GLU", 3), ("PHE", 2), ("TYR", 2)):
    _TWO_FOLD[AMINO_ACIDS.index(_name), 2 + _chi] = True

# Rotation vectors (z, y, x in the trace's frame, degrees) from the frame of three successive C-alphas to the
# backbone's, by the angle between them: means over 18,000 residues of 111 crystal structures.
_TRACE_ANGLES = (88.1, 93.2, 101.5, 110.3, 118.0, 125.8, 133.9, 141.4, 148.6)
_TRACE_TURNS = (
    (10.8, 10.0, -16.0), (10.2, 9.7, -14.8), (12.2, -0.2, -10.7), (18.1, -13.8, 4.2), (21.6, -15.5, 10.7),
    (22.2, -13.7, 13.8), (21.0, -11.5, 16.5), (16.2, -7.9, 18.9), (10.2, -4.1, 21.1),
)  # fmt: skip


def _named_atoms(structure: Structure) -> np.ndarray:
    """Positions of the atoms in `_SLOTS`, `residues slots 3` Å; NaN where missing."""
    slots = np.array([_SLOTS.get(str(name), -1) for name in structure.names])
    slots[structure.nucleic] = -1
    rows = np.unique(structure.residues, return_inverse=True)[1]
    atoms = np.full((rows.max() + 1, len(_SLOTS), 3), np.nan)
    used = np.flatnonzero(slots >= 0)[::-1]  # of alternative positions the first one stays
    atoms[rows[used], slots[used]] = structure.positions[used]
    return atoms


def _bonds(ca: Tensor, c: Tensor, n: Tensor, chains: np.ndarray, *, is_trace: bool) -> tuple[Tensor, Tensor]:
    """Whether each residue is bound to the one before and to the one after, `l` bool each."""
    lengths = (ca[1:] - ca[:-1]).norm(dim=-1) if is_trace else (n[1:] - c[:-1]).norm(dim=-1)
    bound = (lengths < (4.5 if is_trace else 2.0)) & torch.from_numpy(chains[1:] == chains[:-1])
    return functional.pad(bound, (1, 0)), functional.pad(bound, (0, 1))


def _frames_of_trace(ca: Tensor, before: Tensor, after: Tensor) -> tuple[Frames, Tensor]:
    """Likely backbone frames of a C-alpha trace, and which residues have one; ends take their neighbour's rotation."""
    inner = before & after
    previous, following = ca.roll(1, 0), ca.roll(-1, 0)
    trace = frames_of(previous, ca, following)
    cosine = functional.cosine_similarity(previous - ca, following - ca, dim=-1)
    angle = torch.rad2deg(cosine.clamp(-1, 1).acos()).numpy()
    turns = np.stack([np.interp(angle, _TRACE_ANGLES, column) for column in zip(*_TRACE_TURNS, strict=True)], axis=-1)
    rotations = trace.rotations @ turned_by(torch.from_numpy(turns))
    first, last = after & ~before & inner.roll(-1), before & ~after & inner.roll(1)
    rotations = torch.where(first[:, None, None], rotations.roll(-1, 0), rotations)
    rotations = torch.where(last[:, None, None], rotations.roll(1, 0), rotations)
    return Frames(rotations, ca), inner | first | last


def _torsions(atoms: np.ndarray, names: np.ndarray, before: Tensor, after: Tensor) -> Tensor:
    """Sine and cosine of all torsions, `l 7 2`; NaN where an atom is missing."""
    n, ca, c = (torch.from_numpy(atoms[:, _SLOTS[name]]) for name in ("N", "CA", "C"))
    hidden = torch.tensor(torch.nan, dtype=n.dtype)
    last_ca, last_c = (torch.where(before[:, None], part.roll(1, 0), hidden) for part in (ca, c))
    next_n = torch.where(after[:, None], n.roll(-1, 0), hidden)
    backbone = [dihedral(last_c, n, ca, c), dihedral(n, ca, c, next_n), dihedral(last_ca, last_c, n, ca)]
    slots = np.full((len(names), 7), len(_SLOTS))  # an extra slot that holds no atom
    for name in np.unique(names):
        path = [_SLOTS[atom] for atom in ("N", "CA", *_SIDE_CHAINS.get(str(name), ()))]
        slots[names == name, : len(path)] = path
    padded = np.concatenate([atoms, np.full((len(atoms), 1, 3), np.nan)], axis=1)
    path_atoms = torch.from_numpy(padded[np.arange(len(names))[:, None], slots])
    chi = [dihedral(*path_atoms[:, k : k + 4].unbind(1)) for k in range(4)]
    return torch.stack([*backbone, *chi], dim=1)


def _places(numbers: np.ndarray, chains: np.ndarray, bound_to_next: np.ndarray) -> np.ndarray:
    """Places along the chain; over a gap the author's numbers count, within 2 … FAR."""
    steps = np.where(bound_to_next[:-1], 1, np.clip(np.diff(numbers), 2, FAR))
    steps = np.where(np.diff(chains) == 0, steps, FAR)
    return np.concatenate([[0], np.cumsum(steps)])

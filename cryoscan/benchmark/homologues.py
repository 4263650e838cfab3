"""Relatives of a protein among the chains of a folder, laid onto it: what a user gives who has no better model."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

import gemmi
import numpy as np
from scipy.spatial.transform import Rotation

from cryoscan.datedb.held_out import identity, sequence_of
from cryoscan.errors import CryoscanError
from cryoscan.io import StructureStore
from cryoscan.structure import Structure, joined
from cryoscan.units import Angstrom

IDENTITY = (0.25, 0.60)
"""Of a relative's sequence: below nobody would find it, above it is nearly the protein itself."""

_LEAST_OF_LENGTH = 0.6  # of the longer sequence: a fragment is no model of a chain
_FEWEST = 20  # pairs of residues that are laid onto each other
_RUN = re.compile(r"(\d+)([MID])")


@dataclass(frozen=True, slots=True, eq=False)
class Relative:
    """Relatives of the chains of a model, laid onto them.

    Parameters
    ----------
    structure : Structure
    about : tuple of str
        For people: which chain for which, its identity and the distance of its C-alpha atoms.
    identity : float
        Mean over the chains that have one, 0 … 1.
    rmsd : Angstrom
        Of the C-alpha atoms of aligned residues, the same mean.
    """

    structure: Structure
    about: tuple[str, ...]
    identity: float
    rmsd: Angstrom


class Relatives:
    """Chains among which relatives are looked for.

    Parameters
    ----------
    chains : iterable of (name, Structure)
    """

    def __init__(self, chains: Iterable[tuple[str, Structure]]) -> None:
        self._chains = {name: (chain, sequence_of(chain)) for name, chain in chains}

    def __len__(self) -> int:
        return len(self._chains)

    def of(self, model: Structure) -> Relative | None:
        """The most similar relative of each chain of a model, laid onto it by C-alpha atoms; None if there is none."""
        protein = model.protein()
        parts, about, identities, distances = [], [], [], []
        for letter in dict.fromkeys(protein.chains.tolist()):
            chain = protein.select(protein.chains == letter)
            found = self._nearest(sequence_of(chain))
            if found is None:
                continue
            name, alike = found
            laid = superposed(self._chains[name][0], chain)
            if laid is None:
                continue
            structure, rmsd = laid
            parts.append(replace(structure, chains=np.full(len(structure), letter)))
            about.append(f"{name} for {letter}: {alike:.0%} identical, {rmsd:.1f} Å")
            identities.append(alike)
            distances.append(rmsd)
        if not parts:
            return None
        return Relative(
            replace(joined(parts), id=f"relatives of {model.id}"),
            tuple(about),
            float(np.mean(identities)),
            float(np.mean(distances)),
        )

    def _nearest(self, sequence: str) -> tuple[str, float] | None:
        best: tuple[str, float] | None = None
        for name, (_, other) in self._chains.items():
            if not _LEAST_OF_LENGTH <= len(other) / max(len(sequence), 1) <= 1 / _LEAST_OF_LENGTH:
                continue
            alike = identity(sequence, other)
            if IDENTITY[0] <= alike <= IDENTITY[1] and (best is None or alike > best[1]):
                best = name, alike
        return best


def relatives_of_store(store: StructureStore) -> Relatives:
    """All chains of a store that can be read."""
    chains = []
    for key in store.keys():  # noqa: SIM118  it is no mapping
        try:
            chains.append((key, store.chain(key)))
        except CryoscanError:  # said by whoever asks for it by name
            continue
    return Relatives(chains)


def superposed(moving: Structure, fixed: Structure) -> tuple[Structure, Angstrom] | None:
    """A chain laid onto another by the C-alpha atoms of aligned residues, and their root mean square distance.

    None where fewer than 20 residues can be aligned.
    """
    here, there = _traces(moving), _traces(fixed)
    pairs = np.array(_aligned(sequence_of(moving), sequence_of(fixed)), np.int64).reshape(-1, 2)
    a, b = here[pairs[:, 0]], there[pairs[:, 1]]
    known = np.isfinite(a).all(axis=1) & np.isfinite(b).all(axis=1)
    a, b = a[known], b[known]
    if len(a) < _FEWEST:
        return None
    middle, target = a.mean(axis=0), b.mean(axis=0)
    rotation, total = Rotation.align_vectors(b - target, a - middle)
    matrix = rotation.as_matrix()
    return moving.moved(rotation=matrix, offset=target - matrix @ middle), float(total / np.sqrt(len(a)))


def _traces(chain: Structure) -> np.ndarray:
    """The C-alpha atom of each residue, `residues 3` Å; NaN where there is none."""
    found = np.full((chain.n_residues, 3), np.nan)
    atoms = np.flatnonzero(chain.names == "CA")[::-1]  # of alternatives the first one stays
    found[chain.residues[atoms]] = chain.positions[atoms]
    return found


def _aligned(first: str, second: str) -> list[tuple[int, int]]:
    """Pairs of residues of the best alignment, as in `identity`."""
    one, other = (gemmi.expand_one_letter_sequence(text, gemmi.ResidueKind.AA) for text in (first, second))
    runs = _RUN.findall(gemmi.align_string_sequences(one, other, [], gemmi.AlignmentScoring("b")).cigar_str())
    i = j = 0
    pairs = []
    for length, kind in ((int(count), kind) for count, kind in runs):
        if kind == "M":
            pairs += [(i + k, j + k) for k in range(length)]
        i += length if kind in "MI" else 0
        j += length if kind in "MD" else 0
    return pairs

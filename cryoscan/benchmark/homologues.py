"""Relatives of a protein among the chains of a folder, laid onto it: what a user gives who has no better model."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

import gemmi
import numpy as np

from cryoscan.datedb.held_out import identity, sequence_of
from cryoscan.errors import CryoscanError
from cryoscan.io import StructureStore
from cryoscan.metrics import tm_score
from cryoscan.structure import Structure, joined
from cryoscan.units import Angstrom

IDENTITY = (0.25, 0.60)
"""Of a relative's sequence: below nobody would find it, above it is nearly the protein itself."""

SAME_FOLD = 0.5
"""TM-score from which on a chain is a relative: a quarter of the residues of strangers may be identical."""

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
        For people: which chain for which, its identity, its fold's likeness and the distance of its C-alpha atoms.
    identity : float
        Mean over the chains that have one, 0 … 1.
    tm_score : float
        See `cryoscan.metrics.tm_score`, over the length of the model's chain, the same mean.
    rmsd : Angstrom
        Of the C-alpha atoms of aligned residues, the same mean.
    """

    structure: Structure
    about: tuple[str, ...]
    identity: float
    tm_score: float
    rmsd: Angstrom


@dataclass(frozen=True, slots=True, eq=False)
class Laid:
    """A chain laid onto another.

    Parameters
    ----------
    structure : Structure
    tm_score : float
        Over the length of the other.
    rmsd : Angstrom
        Of the C-alpha atoms of aligned residues.
    """

    structure: Structure
    tm_score: float
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
        parts, about, identities, laid = [], [], [], []
        for letter in dict.fromkeys(protein.chains.tolist()):
            chain = protein.select(protein.chains == letter)
            for alike, name in self._alike(sequence_of(chain)):
                found = superposed(self._chains[name][0], chain)
                if found is not None and found.tm_score >= SAME_FOLD:
                    parts.append(replace(found.structure, chains=np.full(len(found.structure), letter)))
                    about.append(
                        f"{name} for {letter}: {alike:.0%} identical, TM-score {found.tm_score:.2f}, {found.rmsd:.1f} Å"
                    )
                    identities.append(alike)
                    laid.append(found)
                    break
        if not parts:
            return None
        return Relative(
            replace(joined(parts), id=f"relatives of {model.id}"),
            tuple(about),
            float(np.mean(identities)),
            float(np.mean([one.tm_score for one in laid])),
            float(np.mean([one.rmsd for one in laid])),
        )

    def _alike(self, sequence: str) -> list[tuple[float, str]]:
        """Chains of similar length and sequence, the most similar first."""
        found = []
        for name, (_, other) in self._chains.items():
            if not _LEAST_OF_LENGTH <= len(other) / max(len(sequence), 1) <= 1 / _LEAST_OF_LENGTH:
                continue
            alike = identity(sequence, other)
            if IDENTITY[0] <= alike <= IDENTITY[1]:
                found.append((alike, name))
        return sorted(found, key=lambda one: (-one[0], one[1]))


def relatives_of_store(store: StructureStore) -> Relatives:
    """All chains of a store that can be read."""
    chains = []
    for key in store.keys():  # noqa: SIM118  it is no mapping
        try:
            chains.append((key, store.chain(key)))
        except CryoscanError:  # said by whoever asks for it by name
            continue
    return Relatives(chains)


def superposed(moving: Structure, fixed: Structure) -> Laid | None:
    """A chain laid onto another by the C-alpha atoms of aligned residues, where folds are most alike.

    None where fewer than 20 residues can be aligned.
    """
    here, there = _traces(moving), _traces(fixed)
    pairs = np.array(_aligned(sequence_of(moving), sequence_of(fixed)), np.int64).reshape(-1, 2)
    a, b = here[pairs[:, 0]], there[pairs[:, 1]]
    known = np.isfinite(a).all(axis=1) & np.isfinite(b).all(axis=1)
    a, b = a[known], b[known]
    if len(a) < _FEWEST:
        return None
    score, rotation, offset = tm_score(a, b, fixed.n_residues)
    apart = a @ rotation.T + offset - b
    rmsd = float(np.sqrt((apart**2).sum(axis=1).mean()))
    return Laid(moving.moved(rotation=rotation, offset=offset), score, rmsd)


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

"""Which domains tests ask for and when two sequences are too close: what benchmarks and training share."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from cryoscan.datedb.store import Entry
from cryoscan.io import DomainRow
from cryoscan.structure import Structure

Half = Literal["test", "dev", "both"]

_RUN = re.compile(r"(\d+)([MID])")


def choose_held_out(
    rows: Sequence[DomainRow],
    entries: Iterable[Entry],
    *,
    half: Half,
    residues: tuple[int, int],
    per_type: int,
    largest_types: int,
    largest: int,
) -> list[DomainRow]:
    """Choose domains to ask for that are the same on every machine: by hashes of ids, never by chance.

    One domain per sequence cluster of the half, of a size within bounds and of a real type
    that the entries know from another cluster and another PDB entry.

    Parameters
    ----------
    rows : sequence of DomainRow
        Of one scheme.
    entries : iterable of Entry
        Of the DateDB that is asked.
    half : str
        See `half_of_cluster`.
    residues : (int, int)
        Smallest and largest domain.
    per_type, largest_types, largest : int
        Most domains of a type, most types, most domains altogether.
    """
    known: dict[tuple[str, str], set[tuple[str, str]]] = {}
    for entry in entries:
        known.setdefault((entry.scheme, entry.type), set()).add((entry.cluster, entry.pdb))
    low, high = residues
    clusters: set[str] = set()
    by_type: dict[str, list[DomainRow]] = {}
    for row in sorted(rows, key=lambda row: digest(row.id)):
        others = known.get((row.scheme, row.type), set())
        if (
            row.clu40 not in clusters
            and half in (half_of_cluster(row.clu40), "both")
            and low <= row.n_residues <= high
            and is_real_type(row.scheme, row.type)
            and any(cluster != row.clu40 and pdb != row.pdb for cluster, pdb in others)
            and len(by_type.get(row.type, [])) < per_type
        ):
            clusters.add(row.clu40)
            by_type.setdefault(row.type, []).append(row)
    chosen = [row for type_ in sorted(by_type, key=digest)[:largest_types] for row in by_type[type_]]
    return chosen[:largest]


def half_of_cluster(cluster: str) -> Half:
    """``test`` or ``dev``, by the parity of a hash: settings are chosen on one, results are read on the other."""
    return "test" if digest(cluster) % 2 else "dev"


def is_real_type(scheme: str, type_: str) -> bool:
    """Whether a type is one: SCOPe's families 0 ("automated matches") and classes from h on are not."""
    return scheme != "SCOPe" or (not type_.endswith(".0") and type_[0] <= "g")


def identity(first: str, second: str) -> float:
    """Identical residues of the best alignment over the length of the shorter sequence, 0 … 1.

    A global alignment (BLOSUM62, gap open 10, extend 1) whose gaps at the ends are free. The
    shorter length finds fragments and copies with other ends too. An alignment of no positive
    score is no sign of relation and counts 0: without this rule a quarter and more of the
    unrelated pairs whose lengths differ twofold would exceed 30 %, with it one in a thousand
    does (measured on 4,000 pairs of different CATH class).
    """
    import gemmi

    if not first or not second:
        return 0.0
    expanded = [gemmi.expand_one_letter_sequence(text, gemmi.ResidueKind.AA) for text in (first, second)]
    scoring = gemmi.AlignmentScoring("b")
    found = gemmi.align_string_sequences(expanded[0], expanded[1], [], scoring)
    runs = _RUN.findall(found.cigar_str())
    ends = runs[:1] + (runs[-1:] if len(runs) > 1 else [])
    free = sum(-scoring.gapo - scoring.gape * int(length) for length, kind in ends if kind != "M")
    if found.score + free <= 0:
        return 0.0
    return float(found.match_count / min(len(expanded[0]), len(expanded[1])))


def sequence_of(structure: Structure) -> str:
    """One-letter sequence of the residues a structure holds."""
    import gemmi

    _, first = np.unique(structure.residues, return_index=True)
    letters = gemmi.one_letter_code([str(name) for name in structure.residue_names[first]])
    return str(letters).upper()


def sequences_of(structure: Structure) -> set[str]:
    """One-letter sequences of a structure's protein chains."""
    protein = structure.protein()
    return {sequence_of(protein.select(protein.chains == chain)) for chain in np.unique(protein.chains)}


def digest(text: str) -> int:
    """A number that belongs to a text, the same on every machine."""
    return int(hashlib.md5(text.encode(), usedforsecurity=False).hexdigest(), 16)

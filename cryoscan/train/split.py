"""Which domains are learned from, which are watched and which are kept for the end: by sequence clusters."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cryoscan.datedb.held_out import Half, choose_held_out, digest, identity, is_real_type, sequence_of
from cryoscan.datedb.sources import entry_of_row, rows_of_store
from cryoscan.io import DomainRow, StructureStore, read_structure
from cryoscan.structure import Structure
from cryoscan.train.library import Anchor, AtomLibrary, Split
from cryoscan.units import Angstrom

_SCHEMES = {"CATH": 159, "SCOPe": 79}  # and the most types that are held out, as in configs/benchmark/cath.yaml
_PER_TYPE, _LARGEST = 5, 190
_RESIDUES = (40, 300)
_WORD = 5  # residues of a word that two sequences must share before they are aligned
_COPY: Angstrom = 0.3


@dataclass(frozen=True, slots=True)
class ClusterSplit:
    """The outcome of `split_clusters`.

    Parameters
    ----------
    anchors : tuple of Anchor
        Domains of one chain each, with the split of their cluster.
    neighbours : tuple of str
        Keys of the chains that may stand beside an anchor in training: none holds anything
        that is held out, or a relative of it.
    left_out : dict
        Reason → number of domains that are in no split.
    """

    anchors: tuple[Anchor, ...]
    neighbours: tuple[str, ...]
    left_out: dict[str, int]

    def lines(self) -> list[str]:
        """For people: what each split holds, and what is in none."""
        found = []
        for split in ("train", "validation", "test"):
            mine = [anchor for anchor in self.anchors if anchor.split == split]
            clusters, types = {anchor.cluster for anchor in mine}, {type_ for anchor in mine for type_ in anchor.types}
            found.append(f"{split}: {len(mine)} domains, {len(clusters)} clusters, {len(types)} types")
        found.append(f"neighbours: {len(self.neighbours)} chains")
        return [*found, *(f"left out, {reason}: {count}" for reason, count in self.left_out.items())]


def read_library(
    folder: Path | str, *, hold_out: bool = True, validation: int = 100, seed: int = 0
) -> tuple[AtomLibrary, ClusterSplit]:
    """Split the domains of a data folder and collect the atoms of all chains that are needed.

    Chains that no scheme classifies are used too, as anchors without a type and as
    neighbours. Everything similar to a chain of the folder's experimental maps is left out
    of training.

    Parameters
    ----------
    folder : Path
        With `structures/`, `labels/` and, if there are maps, `maps_models/`.
    hold_out : bool
        If not, everything is trained on, and what is measured on these domains says nothing.
    validation, seed
        As of `split_clusters`.
    """
    folder = Path(folder)
    rows, _ = rows_of_store(folder, ca_only=False)
    known, _ = rows_of_store(folder)
    unlabelled = (folder / "structures" / "unlabelled_chains.npz").is_file()
    store = StructureStore(folder / "structures", unlabelled=unlabelled)
    models = [read_structure(path).protein() for path in sorted((folder / "maps_models").glob("*.pdb*"))]
    away_from = {sequence_of(model.select(model.chains == c)) for model in models for c in np.unique(model.chains)}
    split = split_clusters(
        rows,
        store,
        known=known,
        away_from=sorted(away_from) if hold_out else (),
        hold_out=hold_out,
        validation=validation,
        seed=seed,
    )
    needed = {anchor.chain for anchor in split.anchors} | set(split.neighbours)
    keys = [key for key in store.keys() if key in needed]  # noqa: SIM118
    chains = ((key, store.chain(key)) for key in keys)
    return AtomLibrary.of_chains(chains, anchors=split.anchors, neighbours=split.neighbours), split


def split_clusters(
    rows: Sequence[DomainRow],
    store: StructureStore,
    *,
    known: Sequence[DomainRow] | None = None,
    away_from: Sequence[str] = (),
    hold_out: bool = True,
    validation: int = 100,
    max_identity: float = 0.30,
    seed: int = 0,
) -> ClusterSplit:
    """Divide domains into those to train on, to watch and to test on.

    *Test* are the domains that the retrieval benchmark asks for (`choose_held_out`, half
    ``test``). *Validation* are drawn from those that it would ask for in the other half.
    *Train* is the rest, less everything that is close to either: domains of the same cluster,
    of the same PDB entry, or of the same type and more identical in sequence than
    `max_identity`; and every domain of a chain that holds one of these, or whose whole
    sequence is more identical than that to a held-out domain (or to a sequence of
    `away_from`) with which it shares five residues in a row. Domains of 40 to 300 residues
    in one chain and of a real type are used; of copies (the same residues, or C-alpha atoms
    within 0.3 Å of each other) one is.

    Parameters
    ----------
    rows : sequence of DomainRow
        Known with all atoms. The same residues in two schemes are one anchor of two types.
    store : StructureStore
        Holds their chains. Chains that no row names become anchors without a type.
    known : sequence of DomainRow, optional
        What the DateDB that is asked holds; default: `rows`.
    away_from : sequence of str
        Sequences of other material that results are read on.
    hold_out : bool
        If not, all domains are trained on.
    validation : int
        Number of domains.
    max_identity : float
        As of `cryoscan.datedb.held_out.identity`.
    seed : int
        Of the choice of the validation domains.
    """
    held = held_out_of(rows, known or rows, validation=validation, seed=seed) if hold_out else {}
    keys = store.keys()
    sequences = {key: sequence_of(store.chain(key)) for key in keys}
    struck = _relatives(rows, held, max_identity=max_identity)
    foul = {key for row in rows if row.id in struck for key in _chains(row)}
    away = [*(row.sequence for row in rows if row.id in held), *away_from]
    foul |= _similar(sequences, away, max_identity=max_identity)
    pdbs = {row.pdb.lower() for row in rows if row.id in held}
    foul |= {key for key in keys if key.rsplit("_", 1)[0].lower() in pdbs}
    left_out: Counter[str] = Counter()
    found: list[Anchor] = []
    for anchor, row in _anchors(rows, held, left_out):
        if anchor.split == "train" and (row.id in struck or anchor.chain in foul):
            left_out["similar to something held out, or in one chain with it"] += 1
        else:
            found.append(anchor)
    labelled = {key for row in rows for key in _chains(row)}
    for key, sequence in sequences.items():
        if key not in labelled and key not in foul and _RESIDUES[0] <= len(sequence) <= _RESIDUES[1]:
            found.append(Anchor(key, (), key, key, ((0, len(sequence)),), "train"))
    kept = _without_copies(found, store)
    left_out["copy of another"] += len(found) - len(kept)
    neighbours = tuple(key for key in keys if key not in foul)
    return ClusterSplit(tuple(kept), neighbours, dict(left_out))


def held_out_of(
    rows: Sequence[DomainRow], known: Sequence[DomainRow], *, validation: int, seed: int
) -> dict[str, Split]:
    """Id → ``test`` or ``validation`` for the domains that are held out; see `split_clusters`."""
    entries = [entry_of_row(row) for row in known]
    watched: list[str] = []
    tested: list[str] = []
    halves: tuple[tuple[Half, list[str]], ...] = (("dev", watched), ("test", tested))
    for scheme, types in _SCHEMES.items():
        mine = [row for row in rows if row.scheme == scheme]
        for half, ids in halves:
            chosen = choose_held_out(
                mine,
                entries,
                half=half,
                residues=_RESIDUES,
                per_type=_PER_TYPE,
                largest_types=types,
                largest=_LARGEST,
            )
            ids.extend(row.id for row in chosen)
    watched = sorted(watched, key=lambda id_: digest(f"{seed} {id_}"))[:validation]
    held: dict[str, Split] = dict.fromkeys(watched, "validation")
    return held | dict.fromkeys(tested, "test")


def _relatives(rows: Sequence[DomainRow], held: Mapping[str, Split], *, max_identity: float) -> set[str]:
    """Ids of the domains that are held out or too close to one that is."""
    residues = {row.parts for row in rows if row.id in held}
    asked = [row for row in rows if row.parts in residues]  # the other scheme's names of them as well
    clusters, pdbs = {row.clu40 for row in asked}, {row.pdb.lower() for row in asked}
    by_type: dict[str, set[str]] = defaultdict(set)
    for row in asked:
        by_type[row.type].add(row.sequence)
    aligned: dict[tuple[str, str], float] = {}
    found = set()
    for row in rows:
        if row.clu40 in clusters or row.pdb.lower() in pdbs:
            found.add(row.id)
            continue
        for other in by_type[row.type]:
            pair = (row.sequence, other)
            if pair not in aligned:
                aligned[pair] = identity(*pair)
            if aligned[pair] > max_identity:
                found.add(row.id)
    return found


def _similar(sequences: Mapping[str, str], others: Iterable[str], *, max_identity: float) -> set[str]:
    """Keys of the sequences that share a word with one of the others and are too identical to it."""
    owners: dict[str, set[str]] = defaultdict(set)
    for other in others:
        for word in _words(other):
            owners[word].add(other)
    known: dict[str, bool] = {}
    for sequence in set(sequences.values()):
        candidates = set().union(*(owners[word] for word in _words(sequence) & owners.keys()))
        known[sequence] = any(identity(sequence, other) > max_identity for other in candidates)
    return {key for key, sequence in sequences.items() if known[sequence]}


def _words(sequence: str) -> set[str]:
    return {sequence[i : i + _WORD] for i in range(len(sequence) - _WORD + 1)}


def _anchors(
    rows: Sequence[DomainRow], held: Mapping[str, Split], left_out: Counter[str]
) -> list[tuple[Anchor, DomainRow]]:
    """Anchors with the first of their rows: one for the same residues, with all their types."""
    found: dict[str, tuple[Anchor, DomainRow]] = {}
    for row in sorted(rows, key=lambda row: row.id not in held):  # what is held out comes first and stays so
        if not is_real_type(row.scheme, row.type):
            left_out["no real type"] += 1
        elif not _RESIDUES[0] <= row.n_residues <= _RESIDUES[1]:
            left_out["smaller than 40 or larger than 300 residues"] += 1
        elif len(_chains(row)) > 1:
            left_out["of several chains"] += 1
        elif row.parts in found:
            anchor, first = found[row.parts]
            types = (*anchor.types, f"{row.scheme}:{row.type}")
            found[row.parts] = replace(anchor, types=tuple(dict.fromkeys(types))), first
        else:
            chain, text = row.parts.rsplit("=", 1)
            pairs = [piece.split(":") for piece in text.split(",")]
            ranges = tuple((int(first), int(last)) for first, last in pairs)
            types = (f"{row.scheme}:{row.type}",)
            found[row.parts] = Anchor(row.id, types, row.clu40, chain, ranges, held.get(row.id, "train")), row
    return list(found.values())


def _chains(row: DomainRow) -> set[str]:
    return {part.rsplit("=", 1)[0] for part in row.parts.split(";")}


def _without_copies(anchors: Sequence[Anchor], store: StructureStore) -> list[Anchor]:
    """The anchors without those whose C-alpha atoms lie on those of an earlier one of their cluster and split."""
    kept: dict[tuple[str, str, int], list[np.ndarray]] = defaultdict(list)
    found = []
    for anchor in anchors:
        trace = _trace(store.chain(anchor.chain), anchor)
        same = kept[anchor.split, anchor.cluster, len(trace)]
        if anchor.split == "train" and any(_rmsd(trace, other) < _COPY for other in same):
            continue
        same.append(trace)
        found.append(anchor)
    return found


def _trace(structure: Structure, anchor: Anchor) -> np.ndarray:
    inside = np.zeros(int(structure.residues[-1]) + 1, bool)
    for first, last in anchor.ranges:
        inside[first:last] = True
    return structure.positions[(structure.names == "CA") & inside[structure.residues]]


def _rmsd(first: np.ndarray, second: np.ndarray) -> Angstrom:
    """Root mean square distance after the best superposition (Kabsch 1976, Acta Cryst. A32, 922)."""
    a, b = first - first.mean(axis=0), second - second.mean(axis=0)
    u, scales, vt = np.linalg.svd(a.T @ b)
    scales[-1] *= np.sign(np.linalg.det(u @ vt))
    return float(np.sqrt(max(0.0, (a**2).sum() + (b**2).sum() - 2 * scales.sum()) / max(len(a), 1)))

"""Which entries of a DateDB are too close to a query to count: same cluster, same PDB entry, similar sequence."""

from collections.abc import Mapping, Sequence

import numpy as np

from cryoscan.datedb import Entry
from cryoscan.datedb.held_out import identity
from cryoscan.io import DomainRow


def relatives(
    queries: Sequence[DomainRow], entries: Sequence[Entry], *, sequences: Mapping[str, str], max_identity: float
) -> np.ndarray:
    """Entries that must not count for a query, `q entries` bool.

    An entry is struck if it shares the query's sequence cluster (40 % identity) or its PDB
    entry, or if it is of the query's own type and more identical in sequence than
    `max_identity`. Entries of other types can only mislead, so they need no alignment.
    Copies of a domain under another PDB code have (nearly) its sequence, so they need no
    comparison of coordinates.

    Parameters
    ----------
    queries : sequence of DomainRow
        With sequences.
    entries : sequence of Entry
    sequences : mapping
        Id of an entry → sequence, as far as known.
    max_identity : float
        As of `cryoscan.datedb.held_out.identity`.
    """
    clusters = np.array([entry.cluster for entry in entries])
    pdbs = np.array([entry.pdb.lower() for entry in entries])
    ids = np.array([entry.id for entry in entries])
    places: dict[tuple[str, str], list[int]] = {}
    for place, entry in enumerate(entries):
        places.setdefault((entry.scheme, entry.type), []).append(place)
    struck = np.zeros((len(queries), len(entries)), bool)
    known: dict[tuple[str, str], float] = {}
    for row, query in zip(struck, queries, strict=True):
        row |= ids == query.id
        if query.clu40:
            row |= clusters == query.clu40
        if query.pdb:
            row |= pdbs == query.pdb.lower()
        for place in places.get((query.scheme, query.type), []):
            other = sequences.get(entries[place].id, "")
            if row[place] or not other or not query.sequence:
                continue
            pair = (query.sequence, other)
            if pair not in known:
                known[pair] = identity(*pair)
            row[place] = known[pair] > max_identity
    return struck

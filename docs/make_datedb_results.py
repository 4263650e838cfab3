"""Print how well C-alpha traces stand for full structures (docs/results/datedb.md): needs the data folder."""

import sys

import numpy as np

import cryoscan.datedb.build as build
from cryoscan.datedb.sources import rows_of_store
from cryoscan.models import InvariantEmbedder

if __name__ == "__main__":
    rows, store = rows_of_store(sys.argv[1], ca_only=False)
    full = [store.domain(row) for row in [row for row in rows if row.scheme == "CATH"][::90]]
    traces = [structure.select(structure.names == "CA") for structure in full]
    embedder = InvariantEmbedder(contour=0.0)
    wanted = build.embed_structures(full, embedder, resolutions=(6.0, 10.0))
    completed = build.embed_structures(traces, embedder, resolutions=(6.0, 10.0))
    build.is_trace = lambda _: False  # leave the traces as they are
    bare = build.embed_structures(traces, embedder, resolutions=(6.0, 10.0))
    for resolution, vectors in wanted.items():
        for name, found in (("completed", completed[resolution]), ("bare", bare[resolution])):
            low, median = np.quantile((vectors * found).sum(axis=1), [0.05, 0.5])
            first = float(np.mean((found @ vectors.T).argmax(axis=1) == np.arange(len(full))))
            numbers = f"median {median:.3f}, 5 % below {low:.3f}, own structure first {first:.2f}"
            print(f"{len(full)} domains, {resolution:g} Å, {name}: {numbers}")

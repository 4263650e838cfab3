"""DateDB: a database of domain embeddings, searched by density.

A DateDB is a folder::

    name.datedb/
        manifest.json      what wrote it: embedder, resolutions, provenance, fingerprints
        entries.csv.gz     one line per domain: id, type, name, PDB, chain, ranges, length …
        embeddings.npz     the truth: banks × rows × dimensions, int8 or float16
        shapes.npz         harmonics of densities and envelopes, for a closer look; 972 × rows, int8
        names.json         names of the nodes of CATH and SCOPe
        previews.npz       densities of representatives, for pictures and the demo (optional)
        index-*.faiss      a cache, may be deleted

A *bank* holds every row simulated at one resolution; a query is searched in the bank
closest to its own resolution. Several entries may share a row (the same residues in CATH
and in SCOPe).
"""

from cryoscan.datedb.files import default_path, open_datedb
from cryoscan.datedb.hierarchy import LEVEL_NAMES, levels, roll_up
from cryoscan.datedb.store import DateDB, Entry

__all__ = ["LEVEL_NAMES", "DateDB", "Entry", "default_path", "levels", "open_datedb", "roll_up"]

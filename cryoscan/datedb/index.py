"""The FAISS index over a bank: a cache that can be deleted and is rebuilt the same."""

import logging
from pathlib import Path
from typing import Any

import numpy as np

from cryoscan.provenance import write_atomically

_log = logging.getLogger(__name__)


def index_name(bank: float) -> str:
    """File name of the index of a bank."""
    return f"index-{bank:g}A.faiss"


def build_index(vectors: np.ndarray) -> Any:
    """Exact inner-product index over unit rows, `n d`."""
    import faiss  # half a second that only a search needs

    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(np.ascontiguousarray(vectors, np.float32))
    return index


def open_index(path: Path | None, vectors: np.ndarray) -> Any:
    """Read the cached index if it fits the vectors, else build it.

    A cache that cannot be read or does not hold these very vectors is ignored: the
    embeddings are the truth.
    """
    if path is not None and path.is_file():
        import faiss

        try:
            index = faiss.deserialize_index(np.frombuffer(path.read_bytes(), np.uint8))
            if index.ntotal == len(vectors) and index.d == vectors.shape[1]:
                probe = np.linspace(0, len(vectors) - 1, min(len(vectors), 64)).astype(int)
                if np.array_equal(index.reconstruct_batch(probe), vectors[probe]):
                    return index
        except (RuntimeError, OSError) as error:
            _log.info("index cache %s is not usable (%s): building it anew", path, error)
    return build_index(vectors)


def cache_index(path: Path, vectors: np.ndarray) -> None:
    """Write the index of a bank."""
    import faiss

    write_atomically(path, faiss.serialize_index(build_index(vectors)).tobytes())

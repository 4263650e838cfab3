"""Helix, strand or neither: told from the C-alpha atoms alone, so that traces can be told as well."""

import numpy as np

from cryoscan.structure import Structure

COIL, HELIX, STRAND = range(3)
"""Kinds of residues."""
KINDS = ("coil", "helix", "strand")

_SHORTEST = {HELIX: 5, STRAND: 3}  # residues
_REACH = 4  # residues over which distances are looked at
_PAIRED = 6.0  # Å between C-alphas of neighbouring strands; 4.8 to 5.5 as a rule


def secondary_structure(structure: Structure) -> np.ndarray:
    """Kind of each residue, by distances of C-alpha atoms.

    After P-SEA (Labesse et al. 1997, CABIOS 13, 291): in a helix residues two, three and four apart are 5.5, 5.3 and
    6.4 Å from each other, in a strand 6.6, 9.9 and 12.6 Å. A strand must lie beside another one.

    Parameters
    ----------
    structure : Structure
        Protein; residues without a C-alpha atom are neither.

    Returns
    -------
    int8 array, `residues`
        `COIL`, `HELIX` or `STRAND`, by the structure's residue indices.
    """
    alpha = structure.names == "CA"
    kinds = np.zeros(int(structure.residues.max(initial=-1)) + 1, np.int8)
    kinds[structure.residues[alpha]] = _kinds(structure.positions[alpha].astype(np.float64))
    return kinds


def _kinds(ca: np.ndarray) -> np.ndarray:
    n = len(ca)
    apart = {k: np.full(n, np.inf) for k in (2, 3, 4)}
    for k, distance in apart.items():
        distance[: max(n - k, 0)] = np.linalg.norm(ca[k:] - ca[:-k], axis=1)
    helix = _like(apart, (5.5, 0.7), (5.3, 1.0), (6.4, 1.0))
    extended = _like(apart, (6.6, 0.7), (9.9, 1.2), (12.6, 1.8)) & ~helix
    paired = extended & _beside(ca, extended)
    bridged = paired.copy()
    bridged[1:-1] |= paired[:-2] & paired[2:] & extended[1:-1]
    kinds = np.zeros(n, np.int8)
    kinds[_long(bridged, _SHORTEST[STRAND])] = STRAND
    kinds[_long(helix, _SHORTEST[HELIX])] = HELIX
    return kinds


def _like(apart: dict[int, np.ndarray], *wanted: tuple[float, float]) -> np.ndarray:
    """Residues of stretches in which all distances are as wanted, within bounds."""
    first = np.logical_and.reduce([abs(apart[k] - d) < most for k, (d, most) in zip(apart, wanted, strict=True)])
    found = first.copy()
    for step in range(1, _REACH + 1):
        found[step:] |= first[:-step]
    return found


def _beside(ca: np.ndarray, extended: np.ndarray) -> np.ndarray:
    """Residues with a residue of a strand next to them that is none of their neighbours along the chain."""
    from scipy.spatial import cKDTree

    found = np.zeros(len(ca), bool)
    if len(ca):
        pairs = cKDTree(ca).query_pairs(_PAIRED, output_type="ndarray")
        i, j = pairs[(pairs[:, 1] - pairs[:, 0]) > 2].T
        found[i[extended[j]]] = True
        found[j[extended[i]]] = True
    return found


def _long(mask: np.ndarray, shortest: int) -> np.ndarray:
    """The runs of at least so many."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(np.int8), [0]])))
    found = np.zeros(len(mask), bool)
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        found[start:end] = end - start >= shortest
    return found

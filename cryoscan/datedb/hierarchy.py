"""The trees of CATH and SCOPe: from a type to its four levels and their names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cryoscan.hits import Candidate

LEVELS = 4
LEVEL_NAMES = {
    "CATH": ("class", "architecture", "topology", "homologous superfamily"),
    "SCOPe": ("class", "fold", "superfamily", "family"),
}


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the tree with the support that a list of candidates gives it.

    Parameters
    ----------
    level : int
        1 (class) … 4 (the type itself).
    code, scheme, name : str
    cosine : float
        Of the best candidate below the node.
    share : float
        Part of the candidates' weight (softmax of cosines) below the node, 0 … 1.
    """

    level: int
    code: str
    scheme: str
    name: str
    cosine: float
    share: float


def levels(scheme: str, type_: str) -> tuple[str, ...]:
    """Codes from the class down to the type, e.g. ``('1', '1.10', '1.10.8', '1.10.8.10')``.

    A type of another scheme than CATH or SCOPe is a tree of one level.
    """
    if scheme not in LEVEL_NAMES:
        return (type_,)
    parts = type_.split(".")
    return tuple(".".join(parts[:depth]) for depth in range(1, len(parts) + 1))


def node_name(names: Mapping[str, str], scheme: str, code: str) -> str:
    """Name of a node, or of the closest named node above it; '' if none is known."""
    for candidate in reversed(levels(scheme, code)):
        name = names.get(f"{scheme}:{candidate}")
        if name:
            return name
    return ""


def roll_up(
    candidates: Sequence[Candidate], names: Mapping[str, str], *, sharpness: float = 40.0
) -> dict[str, list[Node]]:
    """The path down the tree of each scheme that a ranked list of candidates supports best.

    Where the exact type is uncertain the candidates often agree on a level above it; the
    `share` says how much they do. Every node lies below the one before it.

    Parameters
    ----------
    candidates : sequence of Candidate
    names : mapping
        ``'CATH:1.10'`` → name.
    sharpness : float
        Inverse temperature of the softmax over cosines.

    Returns
    -------
    dict
        Scheme → one node per level, from the class down.
    """
    result: dict[str, list[Node]] = {}
    for scheme in dict.fromkeys(candidate.scheme for candidate in candidates):
        mine = [candidate for candidate in candidates if candidate.scheme == scheme]
        top = max(candidate.cosine for candidate in mine)
        weights = [2.718281828 ** (sharpness * (candidate.cosine - top)) for candidate in mine]
        depth = max(len(levels(scheme, candidate.type)) for candidate in mine)
        nodes: list[Node] = []
        for level in range(depth):
            support: dict[str, float] = {}
            best: dict[str, float] = {}
            for candidate, weight in zip(mine, weights, strict=True):
                codes = levels(scheme, candidate.type)
                if level < len(codes) and (not nodes or nodes[-1].code in codes):
                    support[codes[level]] = support.get(codes[level], 0.0) + weight
                    best[codes[level]] = max(best.get(codes[level], -1.0), candidate.cosine)
            if not support:
                break
            code = max(support, key=lambda key: (support[key], best[key]))
            share = support[code] / sum(weights)
            nodes.append(Node(level + 1, code, scheme, node_name(names, scheme, code), best[code], share))
        result[scheme] = nodes
    return result

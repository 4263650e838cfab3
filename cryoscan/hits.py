"""Answers: ranked candidates for one query, and the list of things found in a volume."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cryoscan.errors import GeometryError
from cryoscan.units import PROTEIN_DENSITY_DA_PER_A3


@dataclass(frozen=True, slots=True)
class Candidate:
    """One domain type proposed for a query.

    Parameters
    ----------
    rank : int
        1 is best.
    type, scheme, name : str
        E.g. ``1.10.490.10``, ``CATH``, ``Globin-like``.
    entry : str
        Representative: the best entry of this type.
    cosine : float
        Similarity of the query to the representative, −1 … 1.
    """

    rank: int
    type: str
    scheme: str
    name: str
    entry: str
    cosine: float
    hierarchy: tuple[str, ...] = ()
    pdb: str = ""
    chain: str = ""
    ranges: str = ""
    length: int = 0

    def to_json(self) -> dict[str, Any]:
        """JSON-able; the first six keys are fixed, others script against them."""
        return {
            "rank": self.rank,
            "type": self.type,
            "scheme": self.scheme,
            "name": self.name,
            "entry": self.entry,
            "cosine": round(self.cosine, 4),
            "hierarchy": list(self.hierarchy),
            "pdb": self.pdb,
            "chain": self.chain,
            "ranges": self.ranges,
            "length": self.length,
        }


@dataclass(frozen=True, slots=True, eq=False)
class Hits:
    """Things found in a volume, best first.

    Parameters
    ----------
    positions : float64 array, `n 3`
        z, y, x in Å.
    labels : int array, `n`
        Integers of the label volume.
    types, schemes, names, entries : lists of str, `n`
    scores : float array, `n`
        Cosine to the representative of the type.
    margins : float array, `n`
        Score minus the score of the best other type.
    """

    positions: np.ndarray
    labels: np.ndarray
    types: list[str] = field(default_factory=list)
    schemes: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    entries: list[str] = field(default_factory=list)
    scores: np.ndarray = field(default_factory=lambda: np.zeros(0))
    margins: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def __post_init__(self) -> None:
        n = len(self.positions)
        lengths = {
            name: len(getattr(self, name))
            for name in ("labels", "types", "schemes", "names", "entries", "scores", "margins")
        }
        if self.positions.shape != (n, 3) or set(lengths.values()) - {n}:
            raise GeometryError(
                f"expected {n} positions (n, 3) and as many values of each kind",
                got=f"positions {self.positions.shape}, {lengths}",
                hint="Every hit has one value of each kind.",
            )

    def __len__(self) -> int:
        return len(self.positions)

    def __repr__(self) -> str:
        return f"Hits({len(self)} of {len(set(self.types))} types)"

    def select(self, keep: np.ndarray) -> "Hits":
        """The hits of an index array or mask."""
        index = np.arange(len(self))[keep]
        return Hits(
            self.positions[index],
            self.labels[index],
            [self.types[i] for i in index],
            [self.schemes[i] for i in index],
            [self.names[i] for i in index],
            [self.entries[i] for i in index],
            self.scores[index],
            self.margins[index],
        )


@dataclass(frozen=True, slots=True)
class Region:
    """A region of a map and the domain types proposed for it.

    Parameters
    ----------
    id : int
        Its label.
    centre : (z, y, x) in Å
    volume_A3 : float
        Volume of the region's density above the contour, Å³.
    candidates : tuple of Candidate
        As many as were asked for.
    support : tuple of Candidate
        A longer list, on which margin and roll-up rest.
    margin : float
        Best cosine minus that of the best other type; of the same scheme where it is a published one.
    confidence : float or None
        Probability that the first candidate is right; None if the DateDB is not calibrated.
    resolution : float
        At which the region was compared, Å.
    resolved : bool
        Whether the map's resolution lets domains be told apart at all.
    """

    id: int
    centre: tuple[float, float, float]
    volume_A3: float
    candidates: tuple[Candidate, ...]
    support: tuple[Candidate, ...] = ()
    margin: float = 0.0
    confidence: float | None = None
    resolution: float = 0.0
    resolved: bool = True

    @property
    def mass_kDa(self) -> float:
        """Expected mass of protein of this volume, at 0.81 Da/Å³."""
        return self.volume_A3 * PROTEIN_DENSITY_DA_PER_A3 / 1000

    @property
    def verdict(self) -> str:
        """`named`, or `unknown`: the map does not resolve domains, or the first candidate is more likely wrong."""
        if not self.candidates or not self.resolved:
            return "unknown"
        if self.confidence is None:
            return "named" if self.candidates[0].cosine >= NAMED_FROM_COSINE else "unknown"
        return "named" if self.confidence >= NAMED_FROM_CONFIDENCE else "unknown"


NAMED_FROM_COSINE = 0.8
"""Where a DateDB is not calibrated: below this cosine a candidate is no name."""

NAMED_FROM_CONFIDENCE = 0.5
"""A first candidate that is more likely wrong than right is no name."""

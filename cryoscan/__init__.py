"""cryoscan finds and names proteins in cryo-ET tomograms and cryo-EM maps without knowing their sequences.

This module holds the nouns, and loads each when it is first asked for: `cryoscan --help` needs none of them.
The verbs live in the packages below it (`cryoscan.io`, `cryoscan.simulate`, `cryoscan.datedb` …), the journeys in
`cryoscan.workflows`.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryoscan.errors import CryoscanError
    from cryoscan.hits import Candidate, Hits
    from cryoscan.labels import LabelClass, LabelMap
    from cryoscan.structure import Domain, Segment, Structure
    from cryoscan.volume import Volume

__all__ = [
    "Candidate",
    "CryoscanError",
    "Domain",
    "Hits",
    "LabelClass",
    "LabelMap",
    "Segment",
    "Structure",
    "Volume",
]

_HOMES = {
    "errors": ("CryoscanError",),
    "hits": ("Candidate", "Hits"),
    "labels": ("LabelClass", "LabelMap"),
    "structure": ("Domain", "Segment", "Structure"),
    "volume": ("Volume",),
}


def __getattr__(name: str) -> object:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"cryoscan.{home}"), name)
    raise AttributeError(f"module 'cryoscan' has no attribute '{name}'")

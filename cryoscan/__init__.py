"""cryoscan finds and names proteins in cryo-ET tomograms and cryo-EM maps without knowing their sequences.

This module holds the nouns and is light: it loads neither torch nor zarr. The verbs live in
the packages below it (`cryoscan.io`, `cryoscan.simulate`, `cryoscan.datedb` …), the journeys
in `cryoscan.workflows`.
"""

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

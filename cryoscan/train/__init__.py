"""Training: which domains may be learned from, and the views of them that are drawn on the fly.

`cryoscan.train.split` divides the labelled domains by sequence clusters and makes an
`AtomLibrary` of a data folder; it needs all that reading structures needs. The library and
the views need torch and numpy alone, so that one file and this package are all that a
machine with an accelerator has to be given. So do the loop, the objectives and
`cryoscan.train.run`, which builds from a configuration what they need; the configuration itself
(`cryoscan.train.config`) is read with pydantic.
"""

from cryoscan.train.conditions import CONDITIONS, SCENES, ViewConfig
from cryoscan.train.library import Anchor, AtomLibrary
from cryoscan.train.views import Views, simulate_views

__all__ = ["CONDITIONS", "SCENES", "Anchor", "AtomLibrary", "ViewConfig", "Views", "simulate_views"]

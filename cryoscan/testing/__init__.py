"""Volumes whose content is known, for tests, documentation and users.

`crowded_volume` plants real domains at random places and rotations; `ToyEmbedder` makes the
engine testable in milliseconds, `CellEmbedder` shares work within cells as learned towers do.
"""

from cryoscan.testing.crowd import Planted, crowded_volume
from cryoscan.testing.toy import CellEmbedder, ToyEmbedder, toy_datedb

__all__ = ["CellEmbedder", "Planted", "ToyEmbedder", "crowded_volume", "toy_datedb"]

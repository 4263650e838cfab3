"""Embedders: functions from windows of density to vectors.

`InvariantEmbedder` needs no training: it is the baseline that every learned model must beat.
`TowerEmbedder` is a trained `DensityTower`, which `load_tower` reads from a file.
"""

from cryoscan.models.checkpoint import load_tower, save_tower, tower_provenance
from cryoscan.models.density_tower import DensityTower, TowerConfig
from cryoscan.models.device import choose_device
from cryoscan.models.invariant import InvariantEmbedder
from cryoscan.models.tower_embedder import TowerEmbedder

__all__ = [
    "DensityTower",
    "InvariantEmbedder",
    "TowerConfig",
    "TowerEmbedder",
    "choose_device",
    "load_tower",
    "save_tower",
    "tower_provenance",
]

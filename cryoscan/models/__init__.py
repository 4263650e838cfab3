"""Embedders: functions from windows of density to vectors.

`InvariantEmbedder` needs no training; a tomogram is scanned with it. What was found is named with `ShapeEmbedder`, by
comparing shapes at all rotations; their second layer comes from a trained `SecondaryNet`. All others must beat them.
`TowerEmbedder` is a trained `DensityTower`, which `load_tower` reads from a file, `ShapeTowerEmbedder` a trained
`ShapeTower`.
"""

from cryoscan.models.checkpoint import load_tower, save_network, tower_provenance
from cryoscan.models.density_tower import DensityTower, TowerConfig
from cryoscan.models.device import choose_device
from cryoscan.models.invariant import InvariantEmbedder
from cryoscan.models.shape import ShapeEmbedder
from cryoscan.models.shape_tower import ShapeTower, ShapeTowerConfig, ShapeTowerEmbedder
from cryoscan.models.tower_embedder import TowerEmbedder, fastest_precision

__all__ = [
    "DensityTower",
    "InvariantEmbedder",
    "ShapeEmbedder",
    "ShapeTower",
    "ShapeTowerConfig",
    "ShapeTowerEmbedder",
    "TowerConfig",
    "TowerEmbedder",
    "choose_device",
    "fastest_precision",
    "load_tower",
    "save_network",
    "tower_provenance",
]

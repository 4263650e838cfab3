"""Embedders: functions from windows of density to vectors.

`InvariantEmbedder` needs no training: it is the baseline that every learned model must beat.
"""

from cryoscan.models.invariant import InvariantEmbedder

__all__ = ["InvariantEmbedder"]

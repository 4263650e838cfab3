"""The one seam for learning: what the engine, the database and the doors know of an embedder."""

from typing import Protocol, runtime_checkable

import numpy as np

from cryoscan.errors import GeometryError
from cryoscan.units import Angstrom, Voxels


@runtime_checkable
class Embedder(Protocol):
    """Turns windows of density into vectors of unit length.

    `embed_dense` is the same function as `embed`, computed for all windows of a block at
    once; learned towers may share work between windows there (mean cosine ≥ 0.95), exact
    embedders agree to 1e-5.
    """

    @property
    def dim(self) -> int:
        """Length of a vector."""
        ...

    @property
    def window(self) -> Voxels:
        """Edge of a window."""
        ...

    @property
    def voxel_size(self) -> Angstrom:
        """Voxel size that windows must have, Å."""
        ...

    @property
    def fingerprint(self) -> str:
        """Identifies definition and weights; a DateDB of another one is refused."""
        ...

    @property
    def device(self) -> object:
        """Where it computes; `str` of it is torch's name of the device. The database is searched there too."""
        ...

    @property
    def cell(self) -> Voxels:
        """Edge of the cells in which dense evaluation is done, 1 where every window is independent.

        The lattice is cut into cells counted from its first point, so that the vector of a
        point never depends on how the work is cut.
        """
        ...

    @property
    def halo(self) -> Voxels:
        """Context around the windows of a cell that dense evaluation takes in, 0 for exact embedders."""
        ...

    @property
    def needs_mask(self) -> bool:
        """Whether neighbours in a window spoil its vector, so that places are cut out before they are named."""
        ...

    @property
    def working_bytes(self) -> int:
        """Memory that embedding one cell, or one batch of windows, takes at its peak."""
        ...

    def embed(self, windows: np.ndarray) -> np.ndarray:
        """Embed a batch of windows, `b z y x` → `b d`, rows of unit length (zero for empty windows)."""
        ...

    def embed_dense(self, block: np.ndarray, *, stride: Voxels) -> np.ndarray:
        """Embed every window of a block, `z y x` → `z' y' x' d`, with n' = (n − window − 2 halo) / stride + 1."""
        ...


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Scale rows to unit length, float32; rows of zeros stay zero."""
    vectors = np.asarray(vectors, np.float32)
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def check_windows(windows: np.ndarray, embedder: Embedder) -> np.ndarray:
    """Return windows as float32 `b z y x`, or say what is wrong with their shape."""
    edge = embedder.window
    if windows.ndim != 4 or windows.shape[1:] != (edge, edge, edge):
        raise GeometryError(
            f"expected windows of shape (batch, {edge}, {edge}, {edge})",
            got=str(windows.shape),
            hint=f"Resample to {embedder.voxel_size:g} Å and cut windows of {edge}³ voxels.",
        )
    return np.asarray(windows, np.float32)


def check_block(block: np.ndarray, embedder: Embedder, *, stride: Voxels) -> None:
    """Say what is wrong with the shape of a block that is to be cut into windows, if anything is."""
    edge = embedder.window
    if block.ndim != 3 or min(block.shape) < edge or any((n - edge) % stride for n in block.shape):
        raise GeometryError(
            f"expected a block of {edge} + a multiple of {stride} voxels on each axis",
            got=str(block.shape),
            hint="Cut blocks with WindowGrid.read_box.",
        )

"""A small embedder without torch, and a database for it."""

import numpy as np

from cryoscan.datedb import DateDB, Entry
from cryoscan.embedding import check_windows, unit_rows
from cryoscan.units import Angstrom, Voxels
from cryoscan.volume import Volume


class ToyEmbedder:
    """Mean density in radial shells about the window's centre: rotation-tolerant, exact when dense.

    Parameters
    ----------
    window : Voxels
    voxel_size : Angstrom
    needs_mask : bool
        Whether a scan cuts places out before it names them.
    """

    cell: Voxels = 1
    halo: Voxels = 0
    working_bytes: int = 2**20

    def __init__(self, window: Voxels = 8, voxel_size: Angstrom = 4.0, *, needs_mask: bool = True) -> None:
        self.window, self.voxel_size, self.needs_mask = window, float(voxel_size), needs_mask
        half = np.arange(window) - (window - 1) / 2
        z, y, x = np.meshgrid(half, half, half, indexing="ij")
        shell = np.floor(np.sqrt(z**2 + y**2 + x**2)).astype(int)
        self._shells = np.stack([(shell == s) / max((shell == s).sum(), 1) for s in range(window // 2)]).reshape(
            window // 2, -1
        )

    @property
    def dim(self) -> int:
        """One number per shell."""
        return self.window // 2

    @property
    def fingerprint(self) -> str:
        """Identifies window and voxel size."""
        return f"toy-{self.window}-{self.voxel_size:g}"

    def embed(self, windows: np.ndarray) -> np.ndarray:
        """Embed windows, `b z y x` → `b d`."""
        windows = check_windows(windows, self)
        return unit_rows(windows.reshape(len(windows), -1).astype(np.float64) @ self._shells.T)

    def embed_dense(self, block: np.ndarray, *, stride: Voxels) -> np.ndarray:
        """Embed every window of a block, `z y x` → `z' y' x' d`."""
        edge = self.window
        views = np.lib.stride_tricks.sliding_window_view(block, (edge, edge, edge))[::stride, ::stride, ::stride]
        return self.embed(views.reshape(-1, edge, edge, edge)).reshape(*views.shape[:3], self.dim)


def toy_datedb(embedder: ToyEmbedder, densities: dict[str, Volume], *, bank: Angstrom = 6.0) -> DateDB:
    """A database of one bank with one CATH-like type per density, named by its key."""
    windows = []
    for volume in densities.values():
        middle = [(size - embedder.window) // 2 for size in volume.shape]
        windows.append(volume.read(tuple(slice(m, m + embedder.window) for m in middle)))  # type: ignore[arg-type]
    entries = tuple(
        Entry(id=name, scheme="CATH", type=f"1.10.{row + 1}.10", row=row, length=100)
        for row, name in enumerate(densities)
    )
    names = {f"CATH:{entry.type}": entry.id for entry in entries}
    about = {
        "kind": "ToyEmbedder",
        "fingerprint": embedder.fingerprint,
        "dim": embedder.dim,
        "window": embedder.window,
        "voxel_size_A": embedder.voxel_size,
    }
    return DateDB(entries, {bank: embedder.embed(np.stack(windows))}, about, names)

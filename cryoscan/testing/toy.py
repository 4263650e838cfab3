"""Small embedders without torch, and a database for them."""

import numpy as np

from cryoscan.datedb import DateDB, Entry
from cryoscan.embedding import Embedder, check_windows, unit_rows
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

    device: str = "cpu"
    cell: Voxels = 1
    halo: Voxels = 0
    working_bytes: int = 2**20

    def __init__(self, window: Voxels = 8, voxel_size: Angstrom = 4.0, *, needs_mask: bool = True) -> None:
        self.window, self.voxel_size, self.needs_mask = window, float(voxel_size), needs_mask
        self._shells = shell_weights(window)

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
        return unit_rows(_shell_means(windows, self._shells))

    def embed_dense(self, block: np.ndarray, *, stride: Voxels) -> np.ndarray:
        """Embed every window of a block, `z y x` → `z' y' x' d`."""
        edge = self.window
        views = np.lib.stride_tricks.sliding_window_view(block, (edge, edge, edge))[::stride, ::stride, ::stride]
        return self.embed(views.reshape(-1, edge, edge, edge)).reshape(*views.shape[:3], self.dim)


class CellEmbedder:
    """Shell means, and a tenth of the mean of all voxels it is given: for a cell of the lattice, with its halo.

    Learned towers share work within a cell in the same way, so whoever cuts cells anywhere
    else than the lattice does, or forgets the halo, gets other vectors.

    Parameters
    ----------
    window : Voxels
    voxel_size : Angstrom
    cell, halo : Voxels
    """

    device: str = "cpu"
    needs_mask: bool = False
    working_bytes: int = 2**20

    def __init__(self, window: Voxels = 8, voxel_size: Angstrom = 4.0, *, cell: Voxels = 8, halo: Voxels = 3) -> None:
        self.window, self.voxel_size, self.cell, self.halo = window, float(voxel_size), cell, halo
        self._shells = shell_weights(window)

    @property
    def dim(self) -> int:
        """One number per shell, and one for the cell."""
        return self.window // 2 + 1

    @property
    def fingerprint(self) -> str:
        """Identifies all its numbers."""
        return f"cell-{self.window}-{self.voxel_size:g}-{self.cell}-{self.halo}"

    def embed(self, windows: np.ndarray) -> np.ndarray:
        """Embed windows, `b z y x` → `b d`; each is a cell of its own."""
        windows = check_windows(windows, self)
        return self._vectors(windows, windows.mean(axis=(1, 2, 3), dtype=np.float64))

    def embed_dense(self, block: np.ndarray, *, stride: Voxels) -> np.ndarray:
        """Embed every window of a cell with its halo, `z y x` → `z' y' x' d`."""
        edge, halo = self.window, self.halo
        inner = block[tuple(slice(halo, size - halo) for size in block.shape)]
        views = np.lib.stride_tricks.sliding_window_view(inner, (edge, edge, edge))[::stride, ::stride, ::stride]
        windows = views.reshape(-1, edge, edge, edge)
        context = np.full(len(windows), block.mean(dtype=np.float64))
        return self._vectors(windows, context).reshape(*views.shape[:3], self.dim)

    def _vectors(self, windows: np.ndarray, context: np.ndarray) -> np.ndarray:
        shells = _shell_means(windows, self._shells)
        return unit_rows(np.concatenate([shells, 0.1 * context[:, None]], axis=1))


def _shell_means(windows: np.ndarray, shells: np.ndarray) -> np.ndarray:
    """No matrix product: on some processors its last bits follow the number of threads."""
    means: np.ndarray = np.einsum("bv,sv->bs", windows.reshape(len(windows), -1).astype(np.float64), shells)
    return means


def shell_weights(window: Voxels) -> np.ndarray:
    """Weights that average a window over shells of one voxel about its centre, `shells voxels`."""
    half = np.arange(window) - (window - 1) / 2
    z, y, x = np.meshgrid(half, half, half, indexing="ij")
    shell = np.floor(np.sqrt(z**2 + y**2 + x**2)).astype(int)
    shells = window // 2
    return np.stack([(shell == s) / max((shell == s).sum(), 1) for s in range(shells)]).reshape(shells, -1)


def toy_datedb(embedder: Embedder, densities: dict[str, Volume], *, bank: Angstrom = 6.0) -> DateDB:
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
        "kind": type(embedder).__name__,
        "fingerprint": embedder.fingerprint,
        "dim": embedder.dim,
        "window": embedder.window,
        "voxel_size_A": embedder.voxel_size,
    }
    return DateDB(entries, {bank: embedder.embed(np.stack(windows))}, about, names)

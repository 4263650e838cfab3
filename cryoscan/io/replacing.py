"""How an output, a file or a folder, appears whole or not at all, whatever its size."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryoscan.errors import CryoscanError, FormatError, ResourceError, refuse_existing


@contextmanager
def replacing(path: Path, *, overwrite: bool, needed: int = 0) -> Iterator[Path]:
    """Give a path beside `path` to write to, and rename it to `path` if all went well.

    `needed` bytes must be free: a full disk under a memory map kills the process.

    Raises
    ------
    ExistingOutputError
        If `path` exists and `overwrite` is false.
    FormatError
        If a folder that is neither a Zarr store nor of cryoscan's own would be replaced.
    ResourceError
        If the system refuses to write: disk full, no permission.
    """
    refuse_existing(path, overwrite=overwrite)
    if path.is_dir() and not (is_zarr(path) or (path / "manifest.json").is_file()):
        raise FormatError(
            "expected an earlier output to replace",
            got=f"the folder {path}, which is no Zarr store",
            hint="Choose another name; a folder of other files is never replaced.",
        )
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise ResourceError(
            f"expected {needed / 1e9:.1f} GB of free disk for {path}",
            got=f"{free / 1e9:.1f} GB",
            hint="Free some disk space, or write to another disk.",
        )
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        _remove(beside)
        yield beside
        _swap(beside, path)
    except CryoscanError:
        raise
    except OSError as error:
        raise ResourceError(
            f"expected to write {path}",
            got=error.strerror or str(error),
            hint="Free some disk space, or write to a folder where you may write.",
        ) from error
    finally:
        _remove(beside)


def is_zarr(folder: Path) -> bool:
    """Whether a folder is a node of a Zarr store, of format 2 or 3."""
    return any((folder / name).is_file() for name in ("zarr.json", ".zgroup", ".zattrs", ".zarray"))


def _swap(beside: Path, path: Path) -> None:
    """Rename; a folder cannot be renamed onto another, so the old one steps aside first."""
    if not (path.exists() and (path.is_dir() or beside.is_dir())):
        beside.replace(path)
        return
    aside = path.with_name(f".{path.name}.{os.getpid()}.old")
    _remove(aside)
    path.rename(aside)
    try:
        beside.rename(path)
    except OSError:
        aside.rename(path)
        raise
    _remove(aside)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

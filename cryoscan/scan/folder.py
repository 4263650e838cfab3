"""The folder of a scan: what lies where, which parts of it are done, and who may write it."""

import contextlib
import json
import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cryoscan.errors import CryoscanError, ExistingOutputError, MismatchError, ResourceError
from cryoscan.io import create_zarr, open_zarr_array
from cryoscan.provenance import Provenance, write_atomically
from cryoscan.scan.plan import ScanPlan, check_resources
from cryoscan.scan.result import FORMAT_VERSION
from cryoscan.units import Box


@dataclass(frozen=True, slots=True)
class TileReport:
    """What was done with a tile; its done-marker.

    Parameters
    ----------
    signature : str
        Of the plan that it was done for.
    windows : int
        Lattice points that were embedded.
    seconds : float
    sizes : tuple of int
        Bytes of its files, -1 for none: a file that was cut short later is noticed.
    """

    signature: str
    windows: int
    seconds: float
    sizes: tuple[int, ...]


def prepare(plan: ScanPlan, path: Path, *, overwrite: bool, workers: int = 1) -> None:
    """Create the folder of a scan, or check that the one that is there can be continued.

    Raises
    ------
    MismatchError
        If the folder holds a scan of other settings or inputs.
    ExistingOutputError
        If it is something else, or a finished scan.
    ResourceError
        If it cannot be written, or the scan does not fit disk or memory.
    """
    manifest = path / "manifest.json"
    if path.exists() and not manifest.is_file() and any(path.iterdir() if path.is_dir() else [path]):
        raise _something_else(path)
    begun = manifest.is_file()
    if begun and not overwrite:
        _check_same(plan, path)
        return
    if begun:
        _read_manifest(path)  # nothing but a scan is replaced
    beside = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.part")
    gone = beside.with_suffix(".old")
    try:
        (beside / "tiles").mkdir(parents=True)
        (beside / "places").mkdir()
        (beside / "candidates").mkdir()
        check_resources(plan, beside, workers=workers)
        _create_arrays(plan, beside)
        write_manifest(plan, beside)
        if begun:
            with exclusive(path):
                path.rename(gone)
        with contextlib.suppress(OSError):  # another shard of the same scan was faster: its folder is as good
            beside.rename(path)
        if not manifest.is_file():
            beside.rename(path)
        _check_same(plan, path)
    except CryoscanError:
        raise
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        shutil.rmtree(gone, ignore_errors=True)


def discard_unfinished(path: Path) -> None:
    """Remove the folder of a scan that was begun and is not wanted any more.

    Raises
    ------
    ExistingOutputError
        If it is finished, something else, or being written.
    """
    _read_manifest(path)
    if (path / "summary.json").is_file():
        raise ExistingOutputError(
            "expected an unfinished scan", got=f"{path}, which is complete", hint="Remove it by hand, if you must."
        )
    with exclusive(path):
        gone = path.with_name(f".{path.name}.{os.getpid()}.old")
        path.rename(gone)
    shutil.rmtree(gone)


def write_manifest(plan: ScanPlan, path: Path) -> None:
    """Say what the scan is made of."""
    content = {
        "format": "cryoscan scan",
        "format_version": FORMAT_VERSION,
        "provenance": plan.provenance.to_json(),
        "volume": {"shape": plan.volume.shape, "voxel_size_A": plan.volume.voxel_size, "origin_A": plan.volume.origin},
        "whole": _whole(plan),
        "source": None if plan.source is None else plan.source.to_json(),
        "datedb": None if plan.datedb.path is None else str(plan.datedb.path.resolve()),
        "bank_A": plan.bank,
        "planned": {
            "blur_A": plan.blur,
            "background": plan.background,
            "contour": plan.contour,
            "flat": plan.flat,
            "working_shape": plan.working_shape,
            "tile": plan.tiling.core,
            "preflight": asdict(plan.preflight),
            "sharpening": None if plan.sharpening is None else plan.sharpening.to_json(),
        },
        "named_by": plan.naming[1].fingerprint,
        "types": [list(key) for key in plan.datedb.types],
        "names": [plan.datedb.name(*key) for key in plan.datedb.types],
        "warnings": list(plan.preflight.warnings),
    }
    write_atomically(path / "manifest.json", json.dumps(content, indent=1))


def _whole(plan: ScanPlan) -> dict[str, Any] | None:
    """Grid of the volume that some planes were taken from: RELION counts from its centre, people in its planes."""
    if plan.source is None or plan.source.z_range is None:
        return None
    whole = replace(plan.source, z_range=None).open()
    return {"shape": whole.shape, "origin_A": whole.origin}


def is_complete(path: Path) -> bool:
    """Whether the last step has been written, without a tile that failed."""
    summary = path / "summary.json"
    return summary.is_file() and not json.loads(summary.read_text(encoding="utf-8")).get("failed")


# ---------------------------------------------------------------- what is done


def finished_tiles(plan: ScanPlan, path: Path) -> dict[int, TileReport]:
    """Reports of the tiles that are done for this plan and whose files are whole."""
    signature = plan.signature
    return {
        index: report
        for index, report in all_reports(path).items()
        if report.signature == signature and index < len(plan.tiling) and report.sizes == file_sizes(plan, path, index)
    }


def finished_tile(plan: ScanPlan, path: Path, index: int) -> TileReport | None:
    """Report of a tile, if it is done for this plan and its files are whole."""
    report = _read_report(path / "tiles" / str(index))
    if report is None or report.signature != plan.signature:
        return None
    return report if report.sizes == file_sizes(plan, path, index) else None


def all_reports(path: Path) -> dict[int, TileReport]:
    """Reports of all tiles with a marker, whatever plan it is of."""
    names = [name for name in os.listdir(path / "tiles") if name.isdecimal()]
    reports = {int(name): _read_report(path / "tiles" / name) for name in names}
    return {index: report for index, report in reports.items() if report is not None}


def mark_tile(path: Path, index: int, report: TileReport) -> None:
    """Write the done-marker of a tile, after all of its data."""
    write_atomically(path / "tiles" / str(index), json.dumps(asdict(report)))


def file_sizes(plan: ScanPlan, path: Path, index: int) -> tuple[int, ...]:
    """Bytes of the files that hold a tile, -1 for none."""
    return tuple(_size(file) for file in _tile_files(plan, path, index))


def clear_tile(plan: ScanPlan, path: Path, index: int) -> None:
    """Remove what is left of a tile: the parts of a file that was cut short cannot be read to write the others."""
    for file in _tile_files(plan, path, index):
        file.unlink(missing_ok=True)


def _tile_files(plan: ScanPlan, path: Path, index: int) -> list[Path]:
    z, y, x = (int(i) for i in np.unravel_index(index, plan.tiling.counts))
    files = [f"{name}.zarr/0/c/{z}/{y}/{x}" for name in ("score", "margin")]
    files += [f"topk.zarr/{name}/c/0/{z}/{y}/{x}" for name in ("types", "scores")]
    if plan.config.keep_embeddings:
        files.append(f"embeddings.zarr/c/{z}/{y}/{x}/0")
    if not plan.embedder.needs_mask:
        files.append(f"candidates/{index}.npz")
    return [path / file for file in files]


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return -1


def _read_report(file: Path) -> TileReport | None:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        return TileReport(values["signature"], values["windows"], values["seconds"], tuple(values["sizes"]))
    except (OSError, ValueError, KeyError, TypeError):  # not a marker, or one that was cut short
        return None


def failures(path: Path) -> dict[int, dict[str, object]]:
    """Place and reason of every tile that failed."""
    files = sorted((path / "failed").glob("*.json"), key=lambda file: int(file.stem))
    return {int(file.stem): json.loads(file.read_text(encoding="utf-8")) for file in files}


# ---------------------------------------------------------------- the lattice


def write_lattice(plan: ScanPlan, path: Path, box: Box, types: np.ndarray, scores: np.ndarray) -> None:
    """Write the answers of a box of lattice points, `k z y x` each; whole shards only."""
    import zarr

    open_zarr_array(path / "score.zarr", writable=True)[box] = scores[0]
    open_zarr_array(path / "margin.zarr", writable=True)[box] = scores[0] - scores[1]
    group = zarr.open_group(path / "topk.zarr", mode="r+")
    group["types"][(slice(None), *box)] = types
    group["scores"][(slice(None), *box)] = scores


def write_embeddings(path: Path, box: Box, vectors: np.ndarray) -> None:
    """Write the vectors of a box of lattice points as bytes, `z y x d`; only their direction is kept."""
    import zarr

    longest = np.abs(vectors).max(axis=-1, keepdims=True).astype(np.float32)
    packed = np.rint(vectors * (127 / np.where(longest > 0, longest, 1))).astype(np.int8)
    zarr.open_array(path / "embeddings.zarr", mode="r+")[box] = packed


def read_lattice(path: Path, name: str, box: Sequence[slice], *, pad: float = 0.0) -> np.ndarray:
    """A box of the score or margin lattice; it may reach beyond."""
    array = open_zarr_array(path / f"{name}.zarr")
    inside = tuple(slice(max(0, b.start), min(size, b.stop)) for b, size in zip(box, array.shape, strict=True))
    values = np.asarray(array[inside])
    around = [(i.start - b.start, b.stop - i.stop) for i, b in zip(inside, box, strict=True)]
    return np.pad(values, around, constant_values=pad)


def _create_arrays(plan: ScanPlan, path: Path) -> None:
    import zarr

    voxel, origin = plan.lattice_geometry
    core = plan.tiling.core
    for name in ("score", "margin"):
        create_zarr(
            path / f"{name}.zarr",
            shape=plan.grid.shape,
            dtype=np.float32,
            voxel_size=voxel,
            origin=origin,
            chunks=core,
            shards=core,
        )
    group = zarr.open_group(path / "topk.zarr", mode="w")
    k = plan.config.candidates
    for name, dtype, fill in (("types", np.int32, -1), ("scores", np.float32, 0)):
        group.create_array(name, shape=(k, *plan.grid.shape), chunks=(k, *core), dtype=dtype, fill_value=fill)
    if plan.config.keep_embeddings:
        dim = plan.embedder.dim
        zarr.create_array(
            path / "embeddings.zarr", shape=(*plan.grid.shape, dim), chunks=(*core, dim), dtype=np.int8, fill_value=0
        )


# ---------------------------------------------------------------- who may write


@contextlib.contextmanager
def exclusive(path: Path, *, shard: tuple[int, int] | None = None) -> Iterator[None]:
    """Hold the right to write a scan: alone, or beside the other shards of the same scan.

    The locks are the operating system's and end with the process, however it ends: nothing
    stale is left behind.

    Raises
    ------
    ExistingOutputError
        If another process is scanning into this folder.
    """
    whole = _Lock(path / "lock")
    try:
        whole.take(shared=shard is not None)
        whole.sign("" if shard is None else f", share {shard[0]}/{shard[1]}")
        yield
    finally:
        whole.release()


@contextlib.contextmanager
def alone_among_shards(path: Path, name: str) -> Iterator[bool]:
    """Try to be the only one of several shards to do something; False if another does it."""
    lock = _Lock(path / f"{name}.lock")
    try:
        try:
            lock.take(shared=False)
        except ExistingOutputError:
            yield False
            return
        yield True
    finally:
        lock.release()


class _Lock:
    """A file that is locked by the operating system while somebody works."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._handle: int | None = None

    def take(self, *, shared: bool) -> None:
        import fcntl

        self._handle = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self._handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError as error:
            said = os.pread(self._handle, 200, 0).decode(errors="replace")
            self.release()
            raise ExistingOutputError(
                f"expected nobody else to write {self._file.parent}",
                got=f"another cryoscan at work there{f' ({said})' if said else ''}",
                hint="Wait for it, stop it, or choose another name; to work together, start all with --shard i/n.",
            ) from error

    def sign(self, more: str) -> None:
        assert self._handle is not None
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, f"process {os.getpid()} on {socket.gethostname()}{more}".encode(), 0)

    def release(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


# ---------------------------------------------------------------- private


def _check_same(plan: ScanPlan, path: Path) -> None:
    stored = _read_manifest(path)
    if stored.get("format_version") != FORMAT_VERSION:
        raise ExistingOutputError(
            f"expected a scan of format version {FORMAT_VERSION}",
            got=f"version {stored.get('format_version')} in {path}",
            hint="It was begun with another version of cryoscan: choose another name, or --overwrite to start anew.",
        )
    differences = Provenance.from_json(stored["provenance"]).differences(plan.provenance)
    if differences:
        raise MismatchError(
            f"expected the settings and inputs with which {path} was begun",
            got="; ".join(differences),
            hint="Use the same ones to continue, another name, or --overwrite to start anew; thresholds of a "
            "finished scan are changed with `cryoscan relabel`.",
        )
    if is_complete(path):
        raise ExistingOutputError(
            "expected a scan that is not finished yet",
            got=f"{path}, which is complete",
            hint="Export it with `cryoscan export`, or pass --overwrite to scan again.",
        )


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        stored: dict[str, Any] = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        if stored["format"] != "cryoscan scan":
            raise KeyError("format")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _something_else(path) from error
    return stored


def _something_else(path: Path) -> ExistingOutputError:
    return ExistingOutputError(
        "expected a new name or an unfinished scan", got=f"{path}, which is something else", hint="Choose another."
    )


def _cannot_write(path: Path, error: OSError) -> ResourceError:
    return ResourceError(
        f"expected to create the folder {path}", got=str(error), hint="Check permissions and the parent folder."
    )

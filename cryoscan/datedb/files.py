"""The database on disk: a folder of JSON, CSV and numpy arrays, written beside and then renamed."""

import csv
import gzip
import io
import json
import os
import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import fields
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cryoscan.datedb.index import cache_index, index_name
from cryoscan.datedb.store import DateDB, Entry, Fit
from cryoscan.embedding import unit_rows
from cryoscan.errors import CryoscanError, FormatError, MissingFileError, ResourceError, refuse_existing
from cryoscan.provenance import Provenance, fingerprint_arrays

if TYPE_CHECKING:
    from cryoscan.models.shape import Shapes

FORMAT_VERSION = 2
TOWER, ATOM_TOWER = "tower.safetensors", "atom_tower.safetensors"
"""Networks that a database brings along: the one that embeds what is asked, and the one that embedded the entries."""

_LEVELS = 63  # of int8: mean cosine to the vectors themselves .9993; twice as many take a third more space
_DTYPES = {"int8": np.int8, "float16": np.float16, "float32": np.float32}
_INDEX_FROM = 50_000  # rows; below, building the index takes less time than reading it


def write_datedb(db: DateDB, path: Path, *, overwrite: bool, dtype: str) -> DateDB:
    """Write a database as a folder; beside first, then renamed.

    Parameters
    ----------
    db : DateDB
    path : Path
        Should end in ``.datedb``.
    overwrite : bool
        Replace a database of this name.
    dtype : {'int8', 'float16', 'float32'}
        int8 halves the size of float16; rows are scaled to unit length again when read.

    Returns
    -------
    DateDB
        As it reads back.
    """
    refuse_existing(path, overwrite=overwrite)
    if path.exists() and not (path / "manifest.json").is_file():
        raise FormatError(
            "expected a DateDB to replace", got=f"{path}, which is something else", hint="Choose another name."
        )
    rows = np.stack([_packed(bank, dtype) for bank in db.banks.values()])
    manifest = {
        "format": "cryoscan datedb",
        "format_version": FORMAT_VERSION,
        "embedder": dict(db.embedder),
        "resolutions_A": list(db.banks),
        "dtype": dtype,
        "embeddings": fingerprint_arrays([rows]),
        "n_entries": len(db.entries),
        "n_rows": rows.shape[1],
        "shapes": None if db.shapes is None else fingerprint_arrays(_shape_arrays(db.shapes).values()),
        "calibration": {f"{bank:g}": list(fit) for bank, fit in db.calibration.items()},
        "shape_calibration": {f"{bank:g}": list(fit) for bank, fit in db.shape_calibration.items()},
        "provenance": db.provenance.to_json(),
    }
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        beside.mkdir()
        np.savez_compressed(beside / "embeddings.npz", allow_pickle=False, embeddings=rows)
        if db.shapes is not None:
            turned = {name: _turned(array) for name, array in _shape_arrays(db.shapes).items()}  # compresses better
            np.savez_compressed(beside / "shapes.npz", allow_pickle=False, **turned)
        (beside / "entries.csv.gz").write_bytes(gzip.compress(_entries_csv(db.entries).encode(), mtime=0))
        (beside / "names.json").write_text(json.dumps(dict(db.names), indent=0, sort_keys=True), encoding="utf-8")
        for name in ("previews.npz", TOWER, ATOM_TOWER):
            if db.path is not None and (db.path / name).is_file():
                shutil.copy2(db.path / name, beside / name)
        (beside / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        replace_folder(beside, path)
    except OSError as error:
        raise ResourceError(
            f"expected to write the DateDB {path}", got=str(error), hint="Check permissions and free space."
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    written = open_datedb(path)
    if rows.shape[1] >= _INDEX_FROM:
        write_indices(written)
    return written


def default_path() -> Path:
    """Folder of the database that ships with the package."""
    return Path(str(files("cryoscan.datedb"))) / "default.datedb"


def open_datedb(path: Path | str | None = None) -> DateDB:
    """Read a database; None = the one that ships with the package.

    Raises
    ------
    MissingFileError, FormatError
        If it is not there, damaged, or of another format version.
    """
    path = default_path() if path is None else Path(path)
    if not path.is_dir():
        kind = FormatError if path.exists() else MissingFileError
        raise kind(
            "expected the folder of a DateDB (name.datedb)",
            got=f"no such folder: {path}",
            hint="Give the path of a .datedb folder, or leave --datedb out to use the one that ships with cryoscan.",
        )
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        version = manifest["format_version"]
        if version != FORMAT_VERSION:
            raise FormatError(
                f"expected DateDB format version {FORMAT_VERSION}",
                got=str(version),
                hint="Use the version of cryoscan that wrote it, or rebuild it with `cryoscan datedb build`.",
            )
        with (path / "embeddings.npz").open("rb") as file, np.load(file, allow_pickle=False) as stored:
            rows = stored["embeddings"]
        if fingerprint_arrays([rows]) != manifest["embeddings"]:
            raise FormatError(
                "expected embeddings that match the manifest", got=f"others in {path}", hint="The DateDB is damaged."
            )
        text = gzip.decompress((path / "entries.csv.gz").read_bytes()).decode("utf-8")
        entries = _entries_from_csv(text)
        if len(entries) != manifest["n_entries"]:
            raise FormatError(
                f"expected {manifest['n_entries']} entries", got=str(len(entries)), hint="The DateDB is damaged."
            )
        names = json.loads((path / "names.json").read_text(encoding="utf-8"))
        banks = {
            float(resolution): unit_rows(bank.astype(np.float32))
            for resolution, bank in zip(manifest["resolutions_A"], rows, strict=True)
        }
        calibration, of_shapes = (
            {float(bank): _fit(*numbers) for bank, numbers in manifest.get(name, {}).items()}
            for name in ("calibration", "shape_calibration")
        )
        shapes = _read_shapes(path, manifest["shapes"]) if manifest.get("shapes") else None
        provenance = Provenance.from_json(manifest["provenance"])
        about = manifest["embedder"]
        return DateDB(entries, banks, about, names, provenance, calibration, path, shapes, of_shapes)
    except CryoscanError:
        raise
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise FormatError(
            f"expected a sound DateDB in {path}",
            got=f"{type(error).__name__}: {error}",
            hint="The folder is damaged or is no DateDB: rebuild it with `cryoscan datedb build`.",
        ) from error


def replace_folder(beside: Path, path: Path) -> None:
    """Put a finished folder into the place of another; the old one is never half gone."""
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    if path.exists():
        path.rename(old)
    beside.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def write_indices(db: DateDB) -> None:
    """Cache the FAISS index of every bank beside the embeddings."""
    assert db.path is not None
    for resolution, bank in db.banks.items():
        cache_index(db.path / index_name(resolution), bank)


def _fit(constant: float, cosine: float, margin: float, length: float | None = None) -> Fit:
    return (constant, cosine, margin) if length is None else (constant, cosine, margin, length)


def _shape_arrays(shapes: "Shapes") -> dict[str, np.ndarray]:
    arrays = {item.name: getattr(shapes, item.name) for item in fields(shapes)}
    return {name: array for name, array in arrays.items() if len(array)}


def _read_shapes(path: Path, fingerprint: str) -> "Shapes":
    from cryoscan.models.shape import Shapes  # brings torch, which many commands do without

    with (path / "shapes.npz").open("rb") as file, np.load(file, allow_pickle=False) as stored:
        arrays = {name: np.ascontiguousarray(_turned(stored[name])) for name in stored.files}
        arrays.setdefault("signed", arrays["density"][None][:0])
        arrays.setdefault("usual", np.zeros((0, 2, len(arrays["scale"])), np.float16))
        shapes = Shapes(**arrays)
    if fingerprint_arrays(_shape_arrays(shapes).values()) != fingerprint:
        raise FormatError(
            "expected shapes that match the manifest", got=f"others in {path}", hint="The DateDB is damaged."
        )
    return shapes


def _turned(array: np.ndarray) -> np.ndarray:
    """Each component of all rows together, instead of each row; and back."""
    return array if array.ndim == 1 else array.swapaxes(-1, -2)


def _packed(bank: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "int8":
        largest = np.abs(bank).max(axis=1, keepdims=True)
        return np.rint(bank / np.where(largest > 0, largest, 1) * _LEVELS).astype(np.int8)
    return bank.astype(_DTYPES[dtype])


def _entries_csv(entries: Sequence[Entry]) -> str:
    text = io.StringIO()
    names = [item.name for item in fields(Entry)]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([getattr(entry, name) for name in names] for entry in entries)
    return text.getvalue()


def _entries_from_csv(text: str) -> tuple[Entry, ...]:
    reader = csv.DictReader(io.StringIO(text))
    return tuple(
        Entry(
            id=row["id"],
            scheme=row["scheme"],
            type=row["type"],
            row=int(row["row"]),
            pdb=row["pdb"],
            chain=row["chain"],
            ranges=row["ranges"],
            length=int(row["length"]),
            resolution=float(row["resolution"]),
            source=row["source"],
            cluster=row["cluster"],
        )
        for row in reader
    )

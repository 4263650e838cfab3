"""Densities of representatives, kept beside a database for pictures and the demo."""

import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cryoscan.datedb.store import DateDB, Entry
from cryoscan.errors import FormatError, GeometryError
from cryoscan.provenance import write_atomically
from cryoscan.units import Angstrom
from cryoscan.volume import Volume

_RESIDUES = (60, 260)


@dataclass(frozen=True, slots=True, eq=False)
class Preview:
    """Simulated density of the representative of a type.

    Parameters
    ----------
    entry : Entry
    volume : Volume
        Centred on 0 Å, protein positive, scaled to 0 … 1.
    resolution : Angstrom
    """

    entry: Entry
    volume: Volume
    resolution: Angstrom


def choose_representatives(db: DateDB, n: int, *, scheme: str = "CATH") -> list[Entry]:
    """The most central entry of each of the `n` largest types of a scheme, largest first.

    Only entries of 60 to 260 residues count. Central is the entry with the highest mean
    cosine to the others of its type.
    """
    members: dict[str, list[Entry]] = {}
    for entry in db.entries:
        if entry.scheme == scheme and _RESIDUES[0] <= entry.length <= _RESIDUES[1]:
            members.setdefault(entry.type, []).append(entry)
    largest = sorted(members, key=lambda type_: (-len(members[type_]), type_))[:n]
    bank = db.banks[min(db.banks)]
    chosen = []
    for type_ in largest:
        vectors = bank[[entry.row for entry in members[type_]]]
        chosen.append(members[type_][int(np.argmax(vectors @ vectors.mean(axis=0)))])
    return chosen


def write_previews(
    path: Path, windows: Mapping[str, np.ndarray], *, voxel_size: Angstrom, resolution: Angstrom
) -> None:
    """Write densities (entry id → `z y x`) beside a database, 8 bits a voxel."""
    ids = list(windows)
    densities = np.stack([np.clip(windows[id_] / windows[id_].max(), 0, 1) for id_ in ids])
    stream = io.BytesIO()
    np.savez_compressed(
        stream,
        ids=np.array(ids),
        densities=np.rint(densities * 255).astype(np.uint8),
        voxel_size_A=np.float64(voxel_size),
        resolution_A=np.float64(resolution),
    )
    write_atomically(path / "previews.npz", stream.getvalue())


def read_previews(db: DateDB) -> list[Preview]:
    """The previews of a database, largest types first; an empty list if it has none.

    Raises
    ------
    FormatError
        If the file is damaged.
    """
    if db.path is None or not (db.path / "previews.npz").is_file():
        return []
    try:
        with np.load(db.path / "previews.npz", allow_pickle=False) as content:
            ids: Sequence[str] = [str(id_) for id_ in content["ids"]]
            densities, voxel = content["densities"], float(content["voxel_size_A"])
            resolution = float(content["resolution_A"])
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise FormatError(
            f"expected previews in {db.path}", got=str(error), hint="Rebuild the DateDB, or delete previews.npz."
        ) from error
    previews = []
    for id_, density in zip(ids, densities, strict=True):
        try:
            entry = db.entry(id_)
        except GeometryError:  # removed from the database since
            continue
        corner = -(np.array(density.shape) - 1) / 2 * voxel
        origin = (float(corner[0]), float(corner[1]), float(corner[2]))
        previews.append(Preview(entry, Volume(density.astype(np.float32) / 255, voxel, origin), resolution))
    return previews

"""A user's own structures in a DateDB: a new one, or more entries in one that is there."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from cryoscan.datedb.build import (
    DomainEmbedded,
    build_datedb,
    built_by,
    embedder_for,
    secondary_of,
    tower_path,
    towers_of,
    with_strangers_reach,
)
from cryoscan.datedb.config import DateDBConfig
from cryoscan.datedb.files import ATOM_TOWER, open_datedb
from cryoscan.datedb.hierarchy import levels
from cryoscan.datedb.sources import domains_of_files, names_of_table
from cryoscan.datedb.store import DateDB, Entry
from cryoscan.errors import MissingFileError, refuse_existing
from cryoscan.models import InvariantEmbedder
from cryoscan.models.atom_tower import AtomTower
from cryoscan.models.checkpoint import load_network
from cryoscan.provenance import Provenance, fingerprint_file
from cryoscan.segment import soft_mask
from cryoscan.units import Angstrom
from cryoscan.volume import Volume
from cryoscan.windows import region_window

_EDGE: Angstrom = 3.0
"""Over which the masks of regions fall off."""


def build_from_files(
    structures: Sequence[Path],
    path: Path,
    *,
    labels: Path | None = None,
    config: DateDBConfig,
    overwrite: bool = False,
) -> Iterator[DomainEmbedded]:
    """Build a DateDB of structure files alone, and write it.

    Parameters
    ----------
    structures : sequence of Path
        PDB or mmCIF.
    path : Path
        The new database; written once everything is embedded.
    labels : Path, optional
        Table that says what the domains are, see `domains_of_files`.
    config : DateDBConfig
    overwrite : bool

    Yields
    ------
    DomainEmbedded
        The last one carries the database as written.
    """
    refuse_existing(path, overwrite=overwrite)
    sources = domains_of_files(structures, labels=labels)
    names = {**_shipped_names([entry for entry, _ in sources]), **_names(labels)}
    towers = towers_of(config)
    for event in build_datedb(
        sources,
        InvariantEmbedder(config.voxel_size_A, contour=0.0) if towers is None else towers.asks,
        resolutions=config.resolutions_A,
        names=names,
        provenance=built_by(config, towers, _fingerprints(structures, labels)),
        atoms=None if towers is None else towers.atoms,
    ):
        if event.result is None:
            yield event
            continue
        db = replace(event.result, calibration=config.calibration, shape_calibration=config.shape_calibration)
        written = with_strangers_reach(db).write(path, overwrite=overwrite, dtype=config.dtype)
        if towers is not None:
            towers.put_into(path)
        yield replace(event, result=written)


def add_structures(
    db: DateDB, structures: Sequence[Path], path: Path, *, labels: Path | None = None
) -> Iterator[DomainEmbedded]:
    """Write a DateDB with more entries than `db`, embedded as its own were.

    Parameters
    ----------
    db : DateDB
    structures : sequence of Path
        PDB or mmCIF.
    path : Path
        Where the larger database goes; may be the place of `db`, which is replaced at the end.
    labels : Path, optional
        Table that says what the domains are, see `domains_of_files`.

    Yields
    ------
    DomainEmbedded
        The last one carries the database as written.

    Raises
    ------
    GeometryError
        If an id is in the database already.
    MismatchError
        If the database was written by an embedder that is not at hand.
    """
    embedder = embedder_for(db, contour=0.0)
    sources = domains_of_files(structures, labels=labels)
    inputs = {"datedb": db.fingerprint, **_fingerprints(structures, labels)}
    provenance = Provenance("cryoscan datedb add", inputs=inputs)
    by_atoms = db.embedder.get("entries") == "AtomTower"
    for event in build_datedb(
        sources,
        embedder,
        resolutions=list(db.banks),
        names=_names(labels),
        provenance=provenance,
        atoms=load_network(tower_path(db, ATOM_TOWER), AtomTower) if by_atoms else None,
    ):
        if event.result is None:
            yield event
            continue
        more = with_strangers_reach(
            db.with_entries(event.result.entries, event.result.banks, shapes=event.result.shapes)
        )
        more = replace(more, names={**db.names, **event.result.names}, provenance=provenance)
        yield replace(event, result=more.write(path, overwrite=True, dtype=stored_dtype(db)))


def add_regions(
    db: DateDB, volume: Volume, regions: Sequence[tuple[Entry, np.ndarray]], path: Path, *, resolution: Angstrom
) -> DateDB:
    """Write a DateDB with regions of a measured volume as entries beside those of `db`.

    Parameters
    ----------
    db : DateDB
    volume : Volume
        Protein positive.
    regions : sequence of (Entry, array)
        Mask of each on the volume's grid, `z y x`; the `row` of the entries is set here.
    path : Path
        Where the larger database goes; may be the place of `db`, which is replaced at the end.
    resolution : Angstrom
        Of the volume. Banks that are finer get its density as it is.

    Raises
    ------
    GeometryError
        If an id is in the database already, or a region holds no density.
    MismatchError
        If the database was written by an embedder that is not at hand.
    """
    embedder = embedder_for(db, contour=0.0)
    soft = [soft_mask(mask, voxel_size=volume.voxel_size, width=_EDGE) for _, mask in regions]
    windows = {
        bank: np.stack([region_window(volume, part, embedder, resolution=resolution, bank=bank) for part in soft])
        for bank in db.banks
    }
    banks = {bank: embedder.embed(some) for bank, some in windows.items()}
    shapes = None
    if db.shapes is not None:
        from cryoscan.models.shape import Shapes

        finest, *coarser = (np.clip(windows[bank], 0, None) for bank in sorted(db.banks))
        shapes = Shapes.of_windows(finest, secondary_of(db), coarser=coarser)
    entries = [replace(entry, row=row) for row, (entry, _) in enumerate(regions)]
    inputs = {"datedb": db.fingerprint}
    more = replace(
        with_strangers_reach(db.with_entries(entries, banks, shapes=shapes)),
        provenance=Provenance("cryoscan datedb add", inputs=inputs),
    )
    return more.write(path, overwrite=True, dtype=stored_dtype(db))


def stored_dtype(db: DateDB) -> str:
    """How the embeddings of a DateDB lie on disk, so that a changed copy is stored alike."""
    if db.path is None:
        return "float16"
    return str(json.loads((db.path / "manifest.json").read_text(encoding="utf-8"))["dtype"])


def _names(labels: Path | None) -> dict[str, str]:
    return {} if labels is None else names_of_table(labels)


def _shipped_names(entries: Sequence[Entry]) -> dict[str, str]:
    """What the shipped database calls the nodes above some entries."""
    try:
        names: Mapping[str, str] = open_datedb(None).names
    except MissingFileError:
        return {}
    keys = {f"{entry.scheme}:{code}" for entry in entries for code in levels(entry.scheme, entry.type)}
    return {key: names[key] for key in keys & names.keys()}


def _fingerprints(structures: Sequence[Path], labels: Path | None) -> dict[str, str]:
    return {path.name: fingerprint_file(path) for path in [*structures, *([labels] if labels else [])]}

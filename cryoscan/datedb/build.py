"""From structures to a database: simulate each domain at every bank's resolution, and embed it."""

import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from cryoscan.datedb.files import ATOM_TOWER, TOWER
from cryoscan.datedb.store import DateDB, Entry
from cryoscan.embedding import Embedder
from cryoscan.errors import FormatError, GeometryError, MismatchError, MissingFileError, require_file
from cryoscan.models import (
    InvariantEmbedder,
    ShapeTower,
    ShapeTowerEmbedder,
    TowerEmbedder,
    choose_device,
    load_tower,
    tower_provenance,
)
from cryoscan.models.atom_tower import AtomTower, embed_residues
from cryoscan.models.checkpoint import Tower, load_network
from cryoscan.models.comparison import shipped_comparison
from cryoscan.models.matching import Matcher, strangers_reach
from cryoscan.models.residues import Residues, residues_of
from cryoscan.models.secondary import SecondaryNet, shipped_secondary
from cryoscan.models.shape import ShapeEmbedder, Shapes, in_company
from cryoscan.provenance import Provenance, fingerprint_file
from cryoscan.simulate import atoms_from_trace, density, is_trace
from cryoscan.structure import Structure
from cryoscan.units import Angstrom

if TYPE_CHECKING:
    from cryoscan.datedb.config import DateDBConfig

_BATCH = 64
_STRANGERS, _FEWEST_STRANGERS = 300, 50
_MEASURED_AGAIN = 24  # known rows, which tell how what is found in a quicker way compares
_SIDE_BY_SIDE = 8  # structures that pass an AtomTower together
Skipped = tuple[str, str]
"""Id of a domain and the reason why it is not in the database."""


@dataclass(frozen=True, slots=True)
class DomainEmbedded:
    """Event: so many domains are done; the last event carries the database."""

    done: int
    total: int
    skipped: tuple[Skipped, ...] = ()
    result: DateDB | None = None


def build_datedb(
    domains: Sequence[tuple[Entry, Callable[[], Structure]]],
    embedder: Embedder,
    *,
    resolutions: Sequence[Angstrom],
    names: Mapping[str, str],
    provenance: Provenance,
    atoms: AtomTower | None = None,
) -> Iterator[DomainEmbedded]:
    """Embed domains into a new database.

    Parameters
    ----------
    domains : sequence of (Entry, function)
        The function reads the structure; entries of equal PDB and ranges share a row. The
        `row` of the entries is set here.
    embedder : Embedder
    resolutions : sequence of Angstrom
        One bank each.
    names : mapping
        ``'CATH:1.10'`` → name.
    provenance : Provenance
    atoms : AtomTower, optional
        Embeds the structures themselves; `embedder` is then the tower aligned to it, with which is asked.

    Yields
    ------
    DomainEmbedded
        The last one carries the database.
    """
    if not domains:
        raise GeometryError("expected at least one domain", got="none", hint="Check the table and the folder.")
    rows: dict[Any, int] = {}
    entries: list[Entry] = []
    pending: list[Structure] = []
    described: list[Residues] = []
    parts: dict[float, list[np.ndarray]] = {resolution: [] for resolution in resolutions}
    shapes: list[Shapes] = []
    skipped: list[Skipped] = []
    for done, (entry, read) in enumerate(domains, start=1):
        key = (entry.pdb, entry.chain, entry.ranges) if entry.pdb and entry.ranges else entry.id
        if key not in rows:
            try:
                structure = read()
                if atoms is not None:
                    described.append(residues_of(structure))
                pending.append(structure)
                rows[key] = len(rows)
            except (FormatError, GeometryError) as error:
                skipped.append((entry.id, str(error)))
                continue
        entries.append(replace(entry, row=rows[key]))
        if len(pending) == _BATCH:
            _flush(pending, parts, shapes, embedder, described, atoms)
            yield DomainEmbedded(done, len(domains))
    _flush(pending, parts, shapes, embedder, described, atoms)
    if not entries:
        raise GeometryError(
            "expected at least one readable domain",
            got=f"{len(skipped)} skipped",
            hint=f"First reason: {skipped[0][1]}",
        )
    banks = {float(resolution): np.concatenate(vectors) for resolution, vectors in parts.items()}
    about = describe_embedder(embedder)
    if atoms is not None:
        about["entries"] = "AtomTower"
    db = DateDB(tuple(entries), banks, about, names, provenance, shapes=Shapes.joined(shapes) if shapes else None)
    yield DomainEmbedded(len(domains), len(domains), tuple(skipped), db)


def embed_structures(
    structures: Iterable[Structure], embedder: Embedder, *, resolutions: Sequence[Angstrom]
) -> dict[float, np.ndarray]:
    """Simulate and embed structures: resolution → unit vectors, `n d`."""
    parts: dict[float, list[np.ndarray]] = {float(resolution): [] for resolution in resolutions}
    _flush(list(structures), parts, [], embedder, [], None)
    return {resolution: np.concatenate(vectors) for resolution, vectors in parts.items()}


def with_structures(
    db: DateDB, entries: Sequence[Entry], structures: Sequence[Structure], embedder: Embedder
) -> DateDB:
    """A database with entries of more structures, for as long as it is needed; their `row` counts from 0."""
    parts: dict[float, list[np.ndarray]] = {resolution: [] for resolution in db.banks}
    shapes: list[Shapes] = []
    _flush(list(structures), parts, shapes, embedder, [], None)
    banks = {resolution: np.concatenate(vectors) for resolution, vectors in parts.items()}
    return with_strangers_reach(db.with_entries(entries, banks, shapes=Shapes.joined(shapes) if shapes else None))


def with_strangers_reach(db: DateDB) -> DateDB:
    """A database that knows what strangers usually reach with each entry (`cryoscan.models.matching`).

    One entry of each of some types asks for all others, alone and with two others beside it; relatives of what asks
    do not count: entries of its type, its sequence cluster or its PDB entry. What is known already stays. A database
    without shapes, or of too few types to say what is usual, is returned as it is.
    """
    shapes = db.shapes
    types = sorted({(entry.scheme, entry.type): entry for entry in reversed(db.entries)}.items())
    if shapes is None or len(types) < _FEWEST_STRANGERS:
        return db
    asking = [types[place][1] for place in np.linspace(0, len(types) - 1, _STRANGERS).astype(int)]
    asking = list({entry.row: entry for entry in asking}.values())
    finest_first = sorted(db.banks)
    usual = shapes.usual if len(shapes.usual) else np.full((len(finest_first), 2, len(shapes)), np.nan, np.float16)
    unknown = np.flatnonzero(np.isnan(usual).any(axis=(0, 1)))
    if len(unknown) == 0:
        return db
    known = np.setdiff1d(np.arange(len(shapes)), unknown)
    few = len(unknown) < len(asking) <= len(known)
    beside = known[np.linspace(0, len(known) - 1, _MEASURED_AGAIN).astype(int)] if few else known[:0]
    asked = np.concatenate([unknown, beside])
    related = _related(db, asking)[:, asked]
    rows = np.concatenate([asked, [entry.row for entry in asking]])
    banks = {bank: vectors[rows] for bank, vectors in db.banks.items()}
    compared = replace(db, entries=(), banks=banks, shapes=shapes.take(rows)).by_shape  # a few, if a few were added
    assert compared is not None
    found = usual.copy()
    for place, bank in enumerate(finest_first):
        theirs, alone = np.split(compared.banks[bank], [len(asked)])
        crowd = in_company(alone, shapes.take(rows[len(asked) :]).envelopes(db.bank_blur(bank)))
        for row, ours in enumerate((alone, crowd)):
            if few:  # then they ask, which is as good: fits are mutual, but all of so few are refined
                reach = strangers_reach(Matcher(ours).similarities(theirs).T, related)
                line = np.polyfit(reach[len(unknown) :], usual[place, row, beside].astype(np.float64), 1)
                reach = np.polyval(line, reach)
            else:
                reach = strangers_reach(Matcher(theirs).similarities(ours), related)
            found[place, row][unknown] = reach[: len(unknown)]
    return replace(db, shapes=replace(shapes, usual=found))


def _related(db: DateDB, asking: Sequence[Entry]) -> np.ndarray:
    """Which rows hold relatives of each entry that asks, `asking rows`."""
    marks: dict[tuple[str, ...], set[int]] = defaultdict(set)
    for entry in db.entries:
        for mark in _marks(entry):
            marks[mark].add(entry.row)
    found = np.zeros((len(asking), len(next(iter(db.banks.values())))), bool)
    for place, entry in enumerate(asking):
        found[place, sorted({entry.row}.union(*(marks[mark] for mark in _marks(entry))))] = True
    return found


def _marks(entry: Entry) -> list[tuple[str, ...]]:
    """What relatives have in common."""
    told = [("cluster", entry.cluster), ("pdb", entry.pdb.lower())]
    return [(entry.scheme, entry.type), *(mark for mark in told if mark[1])]


def closer_look(db: DateDB, embedder: Embedder, *, contour: float = 0.5) -> tuple[DateDB, Embedder]:
    """What places are named with, once they are found: shapes where the database has them, else its embedder.

    Parameters
    ----------
    db, embedder
        Must belong together.
    contour : float
        0 for simulated densities; see `ShapeEmbedder`.
    """
    by_shape = db.by_shape
    if by_shape is None:
        return db, embedder
    device = str(embedder.device)
    secondary = secondary_of(db, device=device)
    return by_shape, ShapeEmbedder(embedder.voxel_size, contour=contour, secondary=secondary, device=device)


def secondary_of(db: DateDB, *, device: str = "cpu") -> SecondaryNet | None:
    """The network that saw the second layer of a database's shapes, None if they have one layer.

    Raises
    ------
    MismatchError
        If it, or the comparison by which strangers were measured, was another one than that of this version of
        cryoscan.
    """
    if db.shapes is None or db.shapes.layers == 1:
        return None
    network = shipped_secondary(device)
    wanted = {"secondary": network.fingerprint, "comparison": shipped_comparison().fingerprint}
    for name, fingerprint in wanted.items():
        if db.embedder.get(name) != fingerprint:
            raise MismatchError(
                f"expected shapes of this version's {name} network ({fingerprint})",
                got=f"a DateDB of another one ({db.embedder.get(name)})",
                hint="Rebuild the database with `cryoscan datedb build`.",
            )
    return network


def structure_window(structure: Structure, embedder: Embedder, *, resolution: Angstrom) -> np.ndarray:
    """Simulated density of a structure's protein in one window, centred on its centre of mass, `w w w`."""
    protein = structure.protein()
    if is_trace(protein):
        protein = atoms_from_trace(protein)
    weights = protein.elements.astype(np.float64)
    centre = weights @ protein.positions / weights.sum()
    corner = centre - (embedder.window - 1) / 2 * embedder.voxel_size
    edge = embedder.window
    volume = density(
        protein,
        voxel_size=embedder.voxel_size,
        resolution=resolution,
        shape=(edge, edge, edge),
        origin=(float(corner[0]), float(corner[1]), float(corner[2])),
    )
    return volume.load()


def describe_embedder(embedder: Embedder) -> dict[str, Any]:
    """What a DateDB remembers of the embedder that wrote it."""
    secondary = _secondary_at(embedder.voxel_size)
    return {
        "kind": type(embedder).__name__,
        "fingerprint": embedder.fingerprint,
        "dim": embedder.dim,
        "window": embedder.window,
        "voxel_size_A": embedder.voxel_size,
        "secondary": None if secondary is None else secondary.fingerprint,
        "comparison": None if secondary is None else shipped_comparison().fingerprint,
    }


def embedder_for(db: DateDB, *, contour: float = 1.0, device: str | None = None) -> Embedder:
    """Make the embedder that wrote a DateDB.

    Parameters
    ----------
    db : DateDB
    contour : float
        1 for queries from measured maps, 0 for simulated densities; see `InvariantEmbedder`.
    device : str, optional
        torch's name of where to compute, e.g. ``cuda:1``; by default the GPU, if there is one.

    Raises
    ------
    MismatchError
        If this version of cryoscan has no such embedder, or the tower in the database is another one.
    MissingFileError, FormatError
        If the tower that a database of structures brings along is missing or damaged.
    ConfigError
        If there is no such device.
    """
    if db.embedder.get("entries") == "AtomTower":
        found = embedder_of_tower(load_tower(tower_path(db, TOWER)), contour=contour, device=device)
        db.require(found)
        return found
    voxel_size = float(db.embedder.get("voxel_size_A", 2.5))
    embedder = InvariantEmbedder(voxel_size, contour=contour, device=choose_device(device))
    db.require(embedder)
    return embedder


def _secondary_at(voxel_size: Angstrom) -> SecondaryNet | None:
    """The network, if it has learned densities of these voxels."""
    network = shipped_secondary()
    return network if network.config.voxel_size_A == voxel_size else None


def embedder_of_tower(tower: Tower, *, contour: float = 1.0, device: str | None = None) -> Embedder:
    """The embedder that a trained tower of densities is; parameters as of `embedder_for`."""
    where = choose_device(device)
    if isinstance(tower, ShapeTower):
        return ShapeTowerEmbedder(tower, contour=contour, device=where)
    return TowerEmbedder(tower, device=where)


def tower_path(db: DateDB, name: str) -> Path:
    """Where a network that the database brings along is; `TOWER` or `ATOM_TOWER`."""
    if db.path is None:
        raise MissingFileError(
            "expected a DateDB that lies on disk with its towers", got="one in memory", hint="Write it first."
        )
    return require_file(db.path / name, what="a tower that belongs to the DateDB")


@dataclass(frozen=True, slots=True, eq=False)
class Towers:
    """The two networks of a database of structures.

    Parameters
    ----------
    atoms : AtomTower
        Embeds the entries.
    asks : Embedder
        The tower of densities aligned to it.
    files : tuple of Path
        Weights of both, the latter first.
    """

    atoms: AtomTower
    asks: Embedder
    files: tuple[Path, Path]

    @classmethod
    def read(cls, tower_weights: Path, atom_weights: Path) -> Self:
        """Read both, of which the first must have been aligned to the second.

        Raises
        ------
        MismatchError
            If it was aligned to another one, or to none.
        MissingFileError, FormatError
            If a file is missing or damaged.
        """
        atoms, tower = load_network(atom_weights, AtomTower), load_tower(tower_weights)
        aligned, given = tower_provenance(tower_weights).inputs.get("atom_weights"), fingerprint_file(atom_weights)
        if aligned != given or tower.config.dim != atoms.dim:
            raise MismatchError(
                f"expected a tower that was aligned to the AtomTower in {atom_weights} (fingerprint {given})",
                got=f"one of {tower.config.dim} numbers, {atoms.dim} wanted, aligned to {aligned or 'none'}",
                hint="Train it with `targets: atoms` and these atom_weights, or give the weights it was trained with.",
            )
        return cls(atoms, embedder_of_tower(tower, contour=0.0), (tower_weights, atom_weights))

    @property
    def fingerprints(self) -> dict[str, str]:
        """Of the files, for provenance."""
        return {name: fingerprint_file(file) for name, file in zip((TOWER, ATOM_TOWER), self.files, strict=True)}

    def put_into(self, path: Path) -> None:
        """Put the files into the folder of a database."""
        for name, file in zip((TOWER, ATOM_TOWER), self.files, strict=True):
            shutil.copyfile(file, path / name)


def towers_of(config: "DateDBConfig") -> Towers | None:
    """The networks that a database is to be built with, if its settings name any."""
    if config.atom_weights is None or config.tower_weights is None:
        return None
    return Towers.read(config.tower_weights, config.atom_weights)


def built_by(config: "DateDBConfig", towers: Towers | None, inputs: Mapping[str, str] | None = None) -> Provenance:
    """What a new database says of its origin; networks by their fingerprints, not by their paths."""
    settings = config.model_dump(mode="json", exclude={"atom_weights", "tower_weights"})
    found = {**(inputs or {}), **({} if towers is None else towers.fingerprints)}
    return Provenance("cryoscan datedb build", settings, found)


def _flush(
    pending: list[Structure],
    parts: Mapping[float, list[np.ndarray]],
    shapes: list[Shapes],
    embedder: Embedder,
    described: list[Residues],
    atoms: AtomTower | None,
) -> None:
    """Embed some structures, or what is described of them; keep their shapes if the embedder's windows hold them."""
    if not pending:
        return
    if atoms is not None:
        of_atoms = embed_residues(atoms, described, batch=_SIDE_BY_SIDE)
        for vectors in parts.values():
            vectors.append(of_atoms)
        pending.clear()
        described.clear()
        return
    windows = {
        resolution: np.stack([structure_window(structure, embedder, resolution=resolution) for structure in pending])
        for resolution in parts
    }
    for resolution, vectors in parts.items():
        vectors.append(embedder.embed(windows[resolution]))
    if embedder.window == ShapeEmbedder.window:
        finest, *coarser = (windows[resolution] for resolution in sorted(windows))
        shapes.append(Shapes.of_windows(finest, _secondary_at(embedder.voxel_size), coarser=coarser))
    pending.clear()

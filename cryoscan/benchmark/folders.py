"""What a folder of benchmark data holds, read with tolerance: what is missing or broken is said, not guessed."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryoscan.errors import CryoscanError, FormatError, MissingFileError
from cryoscan.io import DomainRow, StructureStore, read_domains

_NAMES_TABLE = "scope_names.tsv"  # of nodes, not of domains
_LISTS = {"CATH": "cath_queries.txt", "SCOPe": "scope_queries.txt"}
_MODEL_SUFFIXES = (".pdb.gz", ".pdb", ".ent", ".cif.gz", ".cif", ".mmcif")
_MAP_SUFFIXES = (".mrc.gz", ".mrc", ".map.gz", ".map", ".ccp4", ".mrc.bz2", ".zarr", ".ome.zarr")

# ---------------------------------------------------------------- domains


@dataclass(frozen=True, slots=True)
class DomainTables:
    """Rows of all tables of a folder, each id once.

    Parameters
    ----------
    rows : tuple of DomainRow
        Domains known with all atoms.
    traces : tuple of DomainRow
        Domains of which only the C-alpha atoms are known.
    notes : tuple of str
        Tables that could not be read.
    """

    rows: tuple[DomainRow, ...]
    traces: tuple[DomainRow, ...]
    notes: tuple[str, ...]


def read_tables(folder: Path) -> DomainTables:
    """Read every table of domains in `labels/`.

    Raises
    ------
    MissingFileError, FormatError
        If there is no table, or none can be read.
    """
    paths = [path for path in sorted((folder / "labels").glob("*.[ct]sv")) if path.name != _NAMES_TABLE]
    if not paths:
        raise MissingFileError(
            f"expected tables of domains such as {folder / 'labels' / 'cath_domains.tsv'}",
            got="none",
            hint="Give a folder with labels/ (tables) and structures/ (chains).",
        )
    full: dict[str, DomainRow] = {}
    traces: dict[str, DomainRow] = {}
    notes = []
    for path in paths:
        try:
            for row in read_domains(path):
                (traces if "ca_only" in path.name else full).setdefault(row.id, row)
        except CryoscanError as error:
            notes.append(f"labels/{path.name} was left out: {error}")
    if not full and not traces:
        raise FormatError(
            f"expected a table of domains in {folder / 'labels'}", got=notes[0], hint="Mend or replace the tables."
        )
    only_traces = tuple(row for row in traces.values() if row.id not in full)
    return DomainTables(tuple(full.values()), only_traces, tuple(notes))


def open_chains(folder: Path) -> StructureStore:
    """All chains in `structures/`, whatever kinds are there."""
    chains = folder / "structures"
    return StructureStore(
        chains,
        ca_only=(chains / "ca_only_chains.npz").is_file(),
        unlabelled=(chains / "unlabelled_chains.npz").is_file(),
    )


def named_queries(folder: Path, scheme: str) -> list[str] | None:
    """Ids that the folder names as queries of a scheme; None if it names none."""
    for path in (folder / "labels" / _LISTS[scheme], folder / _LISTS[scheme]):
        if path.is_file():
            lines = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8-sig").splitlines())
            return list(dict.fromkeys(line.split()[0] for line in lines if line))
    return None


# ---------------------------------------------------------------- maps


@dataclass(frozen=True, slots=True)
class ModelledMap:
    """An experimental map, its model, and what is known of it.

    Parameters
    ----------
    resolution, voxel_size : float, optional
        Å; None where maps.json does not say.
    """

    name: str
    map_path: Path
    model_path: Path
    resolution: float | None
    voxel_size: float | None


def modelled_maps(folder: Path) -> tuple[list[ModelledMap], list[str]]:
    """Maps of `maps/` that have a model in `maps_models/`, in the order of maps.json, and what was left out.

    Raises
    ------
    MissingFileError
        If there is none.
    """
    notes: list[str] = []
    found: list[ModelledMap] = []
    left_out: list[str] = []
    for name, values in _map_records(folder, notes):
        map_path = _beside(folder / "maps", name, _MAP_SUFFIXES)
        model_path = _beside(folder / "maps_models", name, _MODEL_SUFFIXES)
        if map_path is None:
            notes.append(f"{name}: no file in maps/")
        elif model_path is None:
            left_out.append(name)
        else:
            resolution = _positive(values.get("res", values.get("resolution")))
            if resolution is None:
                notes.append(f"{name}: resolution unknown, the map is taken as it is")
            found.append(ModelledMap(name, map_path, model_path, resolution, _positive(values.get("vox"))))
    if left_out:
        notes.append(f"{len(left_out)} maps without a model are not asked for: {', '.join(left_out)}")
    if not found:
        raise MissingFileError(
            f"expected maps in {folder / 'maps'} with models of the same names in {folder / 'maps_models'}",
            got="; ".join(notes) or "none",
            hint="Give a folder with maps/ (and maps.json) and maps_models/.",
        )
    return found, notes


@dataclass(frozen=True, slots=True)
class ListedMap:
    """An experimental map with or without a model, and what is known of it.

    Parameters
    ----------
    resolution, voxel_size : float, optional
        Å; None where maps.json does not say.
    """

    name: str
    map_path: Path
    model_path: Path | None
    resolution: float | None
    voxel_size: float | None


def listed_map(folder: Path, name: str) -> ListedMap:
    """The map of a name in `maps/`, with its model from `maps_models/` if there is one.

    Raises
    ------
    MissingFileError
    """
    map_path = _beside(folder / "maps", name, _MAP_SUFFIXES)
    if map_path is None:
        raise MissingFileError(
            f"expected a map {name} in {folder / 'maps'}", got="none", hint="Give the folder that holds maps/."
        )
    values = dict(_map_records(folder, [])).get(name, {})
    return ListedMap(
        name,
        map_path,
        _beside(folder / "maps_models", name, _MODEL_SUFFIXES),
        _positive(values.get("res", values.get("resolution"))),
        _positive(values.get("vox")),
    )


def assembly_path(folder: Path, name: str) -> Path:
    """The atoms of an assembly in `assemblies/`.

    Raises
    ------
    MissingFileError
    """
    path = _beside(folder / "assemblies", name, _MODEL_SUFFIXES)
    if path is None:
        raise MissingFileError(
            f"expected a structure {name} in {folder / 'assemblies'}",
            got="none",
            hint="Give the folder that holds assemblies/, or other names under `assemblies:`.",
        )
    return path


def _map_records(folder: Path, notes: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    path = folder / "maps" / "maps.json"
    if not path.is_file():
        notes.append("maps/maps.json is missing: resolutions are unknown, voxel sizes are the headers'")
        yield from ((name, {}) for name in _stems(folder / "maps", _MAP_SUFFIXES))
        return
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise FormatError(f"expected JSON in {path}", got=str(error), hint="Mend the file.") from error
    if not isinstance(records, dict):
        raise FormatError(
            f"expected one record per map in {path}", got=type(records).__name__, hint='{"name": {"res": 3.8, …}, …}'
        )
    for name, values in records.items():
        yield name, values if isinstance(values, dict) else {}


def _stems(folder: Path, suffixes: Sequence[str]) -> list[str]:
    names = {path.name for path in folder.glob("*")}
    return sorted({name.removesuffix(suffix) for name in names for suffix in suffixes if name.endswith(suffix)})


def _beside(folder: Path, name: str, suffixes: Sequence[str]) -> Path | None:
    return next((path for suffix in suffixes if (path := folder / f"{name}{suffix}").exists()), None)


def _positive(value: Any) -> float | None:
    if isinstance(value, list) and value:
        value = value[0]
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if 0 < number < float("inf") else None

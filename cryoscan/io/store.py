"""The compact store of chains: int16 steps of 0.01 Å in npz shards, read with numpy alone."""

import re
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from cryoscan.errors import FormatError, MismatchError, MissingFileError
from cryoscan.io.tables import DomainRow
from cryoscan.structure import Structure, joined
from cryoscan.units import Angstrom

_STEP: Angstrom = 0.01
_ATOMIC_NUMBERS = {"C": 6, "N": 7, "O": 8, "F": 9, "P": 15, "S": 16, "AS": 33, "SE": 34, "BR": 35, "I": 53}
_PART = re.compile(r"(.+)=(\d+:\d+(?:,\d+:\d+)*)")
_ARRAYS = (
    "key",
    "chain",
    "source",
    "resolution",
    "origin",
    "atom_off",
    "res_off",
    "dxyz",
    "natom",
    "resnum",
    "icode",
    "element",
    "element_vocab",
    "atomname",
    "atomname_vocab",
    "resname",
    "resname_vocab",
)

_SPECIAL = ("ca_only_chains.npz", "unlabelled_chains.npz")

Shard = Mapping[str, np.ndarray]


class StructureStore:
    """Whole protein chains by key, e.g. ``1p3q_Q``; shards are read when first needed.

    Parameters
    ----------
    folder : path
        Holds ``fullatom_chains_*.npz``.
    ca_only : bool
        Also offer the chains of which only C-alpha atoms are known (``ca_only_chains.npz``).
    unlabelled : bool
        Also offer the chains that no scheme classifies (``unlabelled_chains.npz``).

    Raises
    ------
    MissingFileError
        If the folder or one of its files is not there.
    FormatError
        If a shard is damaged.
    """

    def __init__(self, folder: Path | str, *, ca_only: bool = False, unlabelled: bool = False) -> None:
        self._paths = _shard_paths(Path(folder), ca_only=ca_only, unlabelled=unlabelled)
        self._shards: dict[Path, Shard] = {}
        self._where = {
            str(key): (path, i) for path in self._paths for i, key in enumerate(_read_arrays(path, ("key",))["key"])
        }

    def __repr__(self) -> str:
        return f"StructureStore({len(self._where)} chains in {len(self._paths)} files)"

    def __len__(self) -> int:
        return len(self._where)

    def __contains__(self, key: object) -> bool:
        return key in self._where

    def keys(self) -> list[str]:
        """All keys, in the order of the files."""
        return list(self._where)

    def source(self, key: str) -> str:
        """Who carried the chain's file."""
        shard, i = self._find(key)
        return str(shard["source"][i])

    def resolution(self, key: str) -> Angstrom | None:
        """Resolution of the chain's structure in Å; None where unknown."""
        shard, i = self._find(key)
        value = float(shard["resolution"][i])
        return round(value, 3) if value > 0 else None

    def chain(self, key: str) -> Structure:
        """All atoms of a chain; B factors are not stored and read as 0."""
        return self._residues(key, None)

    def domain(self, row: DomainRow) -> Structure:
        """The atoms of a domain, found by the row's `parts`.

        Raises
        ------
        MismatchError
            If the row has no parts, or they name chains or residues that the store lacks.
        """
        parts = [_PART.fullmatch(part) for part in row.parts.split(";")]
        if not all(parts):
            raise MismatchError(
                f"expected the parts of domain '{row.id}' such as 1p3q_Q=0:45",
                got=f"'{row.parts}'",
                hint="Use the table that belongs to the store, or read the domain's file instead.",
            )
        found = [self._residues(part[1], _indices(part[2])) for part in parts if part]
        whole = found[0] if len(found) == 1 else joined(found)
        domain = row.domain()
        return replace(whole, id=row.id, domains=(domain,) if domain.segments else ())

    def _find(self, key: str) -> tuple[Shard, int]:
        if key not in self._where:
            raise MismatchError(
                "expected the key of a chain in the store",
                got=f"'{key}'",
                hint="Keys look like 1p3q_Q; C-alpha chains and unlabelled chains must be asked for "
                "(ca_only=True, unlabelled=True).",
            )
        path, i = self._where[key]
        if path not in self._shards:
            self._shards[path] = _read_shard(path)
        return self._shards[path], i

    def _residues(self, key: str, indices: np.ndarray | None) -> Structure:
        """The atoms of some residues of a chain, by 0-based index; None = all."""
        shard, i = self._find(key)
        first_residue, last_residue = shard["res_off"][i : i + 2].tolist()
        first_atom, last_atom = shard["atom_off"][i : i + 2].tolist()
        if indices is None:
            indices = np.arange(last_residue - first_residue)
        elif indices[-1] >= last_residue - first_residue:
            raise MismatchError(
                f"expected residues below {last_residue - first_residue} in chain '{key}'",
                got=str(indices[-1]),
                hint="The table of domains belongs to another store.",
            )
        counts = shard["natom"][first_residue:last_residue].astype(np.int64)
        ends = np.cumsum(counts)
        kept_counts = counts[indices]
        atoms = np.repeat(ends[indices] - np.cumsum(kept_counts), kept_counts) + np.arange(kept_counts.sum())
        steps_xyz = np.cumsum(shard["dxyz"][first_atom:last_atom], axis=0, dtype=np.int64)[atoms]
        positions_xyz = steps_xyz * _STEP + shard["origin"][i].astype(np.float64)
        residues = np.repeat(np.arange(len(indices)), kept_counts)
        per_residue = (first_residue + indices)[residues]
        rows = first_atom + atoms
        return Structure(
            id=key,
            positions=np.ascontiguousarray(positions_xyz[:, ::-1]),
            elements=shard["atomic_number"][rows],
            names=shard["atomname_vocab"][shard["atomname"][rows]],
            residue_names=shard["resname_vocab"][shard["resname"][per_residue]],
            residue_numbers=shard["resnum"][per_residue].astype(np.int64),
            insertion_codes=shard["icode_vocab"][shard["icode"][per_residue]],
            chains=np.full(len(rows), str(shard["chain"][i])),
            residues=residues,
            b_factors=np.zeros(len(rows), np.float32),
            nucleic=np.zeros(len(rows), bool),
        )


def _shard_paths(folder: Path, *, ca_only: bool, unlabelled: bool) -> list[Path]:
    paths = sorted(folder.glob("fullatom_chains_*.npz"))
    # A store of other hands may call its shards otherwise; the two special ones keep their names.
    paths = paths or sorted(path for path in folder.glob("*.npz") if path.name not in _SPECIAL)
    paths += [folder / "ca_only_chains.npz"] if ca_only else []
    paths += [folder / "unlabelled_chains.npz"] if unlabelled else []
    missing = [path for path in paths if not path.is_file()]
    if missing or not paths:
        raise MissingFileError(
            f"expected a folder with {missing[0].name if missing else 'fullatom_chains_*.npz'}",
            got=str(folder),
            hint="Give the folder that holds the store's npz files.",
        )
    return paths


def _read_arrays(path: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    try:
        # The stream is ours: numpy leaves its own open when the archive is damaged.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            return {name: archive[name] for name in names}
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise FormatError(
            f"expected a shard of the structure store: {path}",
            got=str(error),
            hint="The file is damaged, cut short, or something else: fetch it again.",
        ) from error


def _read_shard(path: Path) -> Shard:
    shard = _read_arrays(path, _ARRAYS)
    by_element = _atomic_numbers(str(symbol).upper() for symbol in shard["element_vocab"])[shard["element"]]
    # Some carriers' files call every element U or X; a protein's atom names start with the element.
    by_name = _atomic_numbers(str(name)[0] for name in shard["atomname_vocab"])[shard["atomname"]]
    shard["atomic_number"] = np.where(by_element > 0, by_element, by_name)
    shard["icode_vocab"] = np.array(["" if code in (0, 32) else chr(code) for code in range(256)])
    return shard


def _atomic_numbers(symbols: Iterable[str]) -> np.ndarray:
    """Atomic numbers; 0 for what a protein does not hold."""
    return np.array([_ATOMIC_NUMBERS.get(symbol, 0) for symbol in symbols], np.uint8)


def _indices(ranges: str) -> np.ndarray:
    bounds = (part.split(":") for part in ranges.split(","))
    return np.unique(np.concatenate([np.arange(int(start), int(stop)) for start, stop in bounds]))

"""Where domains come from: a store of chains with label tables, or a user's structure files."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path

from cryoscan.datedb.store import Entry
from cryoscan.errors import FormatError, GeometryError, MissingFileError
from cryoscan.hits import Candidate
from cryoscan.io import DomainRow, StructureStore, parse_ranges, read_domains, read_scope_names, read_structure
from cryoscan.structure import Domain, Structure

Source = tuple[Entry, Callable[[], Structure]]
"""An entry (its row not yet set) and the function that reads its structure."""

_TABLES = ("cath_domains.tsv", "scope_domains.tsv")
_CA_ONLY_TABLES = ("cath_domains_ca_only.tsv", "scope_domains_ca_only.tsv")


def domains_of_store(folder: Path | str, *, ca_only: bool = True) -> list[Source]:
    """All labelled domains of a data folder with `structures/` and `labels/`.

    A domain that is known in full and as a C-alpha trace is taken in full.
    """
    rows, store = rows_of_store(folder, ca_only=ca_only)
    return [(entry_of_row(row), partial(store.domain, row)) for row in rows]


def rows_of_store(folder: Path | str, *, ca_only: bool = True) -> tuple[list[DomainRow], StructureStore]:
    """Table rows (each id once, full atoms first) and the store that holds their chains."""
    folder = Path(folder)
    rows: dict[str, DomainRow] = {}
    tables = _TABLES + (_CA_ONLY_TABLES if ca_only else ())
    present = [folder / "labels" / name for name in tables if (folder / "labels" / name).is_file()]
    if not present:
        raise MissingFileError(
            f"expected label tables such as {folder / 'labels' / _TABLES[0]}",
            got="none",
            hint="Give the folder that holds structures/ and labels/.",
        )
    for path in present:
        for row in read_domains(path):
            rows.setdefault(row.id, row)
    has_traces = ca_only and (folder / "structures" / "ca_only_chains.npz").is_file()
    return list(rows.values()), StructureStore(folder / "structures", ca_only=has_traces)


def entry_of_row(row: DomainRow) -> Entry:
    """The entry of a table's row."""
    chains = "".join(dict.fromkeys(segment.chain for segment in row.domain().segments))
    return Entry(
        id=row.id,
        scheme=row.scheme,
        type=row.type,
        row=0,
        pdb=row.pdb,
        chain=chains,
        ranges=row.ranges,
        length=row.n_residues,
        resolution=row.resolution or 0.0,
        source=row.source,
        cluster=row.clu40,
    )


def domains_of_files(paths: Sequence[Path], *, labels: Path | None = None) -> list[Source]:
    """Domains of a user's structure files.

    Parameters
    ----------
    paths : sequence of Path
        PDB or mmCIF.
    labels : Path, optional
        Table with `id` and `type`, and optionally `ranges` and `file` (or a `pdb`) that says
        which structure a line belongs to. Without it every protein chain becomes an entry
        whose type is its own name, in the scheme ``user``.
    """
    structures = {path: read_structure(path) for path in paths}
    if labels is None:
        return [source for path, structure in structures.items() for source in _chains(path, structure)]
    found: list[Source] = []
    for row in read_domains(labels):
        path = _file_of(row, list(structures))
        structure = structures[path]
        domain = row.domain()
        part = structure.domain(domain) if domain.segments else structure.protein()
        entry = entry_of_row(row)
        found.append((_completed(entry, path, part), partial(_same, part)))
    return found


def _chains(path: Path, structure: Structure) -> list[Source]:
    protein = structure.protein()
    chains = list(dict.fromkeys(str(chain) for chain in protein.chains))
    found: list[Source] = []
    for chain in chains:
        part = protein.select(protein.chains == chain)
        name = structure.id if len(chains) == 1 else f"{structure.id}_{chain}"
        entry = Entry(id=name, scheme="user", type=name, row=0)
        found.append((_completed(entry, path, part), partial(_same, part)))
    return found


def _completed(entry: Entry, path: Path, part: Structure) -> Entry:
    chains = "".join(dict.fromkeys(str(chain) for chain in part.chains))
    return Entry(
        id=entry.id,
        scheme=entry.scheme,
        type=entry.type,
        row=0,
        pdb=entry.pdb,
        chain=entry.chain or chains,
        ranges=entry.ranges,
        length=entry.length or part.n_residues,
        resolution=entry.resolution,
        source=entry.source or path.name,
        cluster=entry.cluster,
    )


def _file_of(row: DomainRow, paths: list[Path]) -> Path:
    if len(paths) == 1 and not row.file:
        return paths[0]
    for path in paths:
        stem = path.name.split(".")[0].lower()
        if path.name == Path(row.file).name or (not row.file and stem in (row.id.lower(), row.pdb.lower())):
            return path
    raise FormatError(
        f"expected a structure file for '{row.id}'",
        got=f"file '{row.file}', pdb '{row.pdb}'",
        hint="Add a column 'file' to the table that names the structure file of each line.",
    )


def _same(structure: Structure) -> Structure:
    return structure


# ---------------------------------------------------------------- structures of candidates


def structures_of_folder(folder: Path | str) -> Callable[[Candidate], Structure | None]:
    """Make the function that finds the atoms of a candidate's representative.

    Parameters
    ----------
    folder : Path
        A data folder with `structures/` and `labels/`, or a folder of structure files named
        after the PDB entry, the entry of the DateDB, or its chain (``1abc.cif``, ``1abc.pdb.gz`` …).

    Returns
    -------
    function
        Candidate → its structure, or None where the folder does not have it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MissingFileError(
            "expected a folder of structures",
            got=str(folder),
            hint="Give a folder of <pdb>.cif or <pdb>.pdb files, or a data folder with structures/ and labels/.",
        )
    if (folder / "structures").is_dir() and (folder / "labels").is_dir():
        rows, store = rows_of_store(folder)
        by_id = {row.id: row for row in rows}
        return lambda candidate: store.domain(by_id[candidate.entry]) if candidate.entry in by_id else None
    paths = {path.name.split(".")[0].lower(): path for path in sorted(folder.iterdir()) if _is_structure(path)}

    def find(candidate: Candidate) -> Structure | None:
        stems = [candidate.pdb, candidate.entry, candidate.entry.rsplit("_", 1)[0]]
        path = next((paths[stem.lower()] for stem in stems if stem.lower() in paths), None)
        return None if path is None else _part_of(read_structure(path).protein(), candidate)

    return find


def _is_structure(path: Path) -> bool:
    return path.name.lower().removesuffix(".gz").endswith((".pdb", ".ent", ".cif", ".mmcif"))


def _part_of(structure: Structure, candidate: Candidate) -> Structure | None:
    """The candidate's residues, without ranges its chain or everything; None where the file numbers them otherwise."""
    segments = parse_ranges(candidate.ranges) if candidate.ranges else ()
    if not segments:
        chain = structure.chains == candidate.chain
        return structure.select(chain) if chain.any() else structure
    try:
        return structure.domain(Domain(candidate.entry, candidate.scheme, candidate.type, segments))
    except GeometryError:
        return None


# ---------------------------------------------------------------- names


def names_of_table(labels: Path) -> dict[str, str]:
    """Names of types that a user's table of domains gives: ``'scheme:type'`` → name."""
    return {f"{row.scheme}:{row.type}": row.name for row in read_domains(labels) if row.name}


def names_of_store(folder: Path | str) -> dict[str, str]:
    """Names of the nodes of SCOPe (from its table) and CATH.

    CATH's classes, architectures and the larger topologies come with the package. The name
    of another homologous superfamily is that of the SCOPe superfamily in which most of its
    domains are found that both schemes classify; it is marked with "cf.".
    """
    folder = Path(folder)
    table = folder / "labels" / "scope_names.tsv"
    names = {f"SCOPe:{code}": name for code, name in read_scope_names(table).items()} if table.is_file() else {}
    text = (files("cryoscan.datedb") / "cath_names.tsv").read_text(encoding="utf-8")
    names |= {f"CATH:{code}": name for _, code, name in (line.split("\t") for line in text.splitlines())}
    rows, _ = rows_of_store(folder)
    scope_of_chain: dict[str, list[tuple[set[int], str]]] = defaultdict(list)
    for row in rows:
        if row.scheme == "SCOPe":
            for key, places in _places(row):
                scope_of_chain[key].append((places, row.type))
    votes: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        if row.scheme != "CATH":
            continue
        for key, places in _places(row):
            for other, type_ in scope_of_chain[key]:
                if len(places & other) > 0.7 * max(len(places), len(other)):
                    votes[row.type][".".join(type_.split(".")[:3])] += 1
    for type_, counter in votes.items():
        superfamily, _ = counter.most_common(1)[0]
        name = names.get(f"SCOPe:{superfamily}")
        if name:
            names.setdefault(f"CATH:{type_}", f"cf. {name}")
    return names


def _places(row: DomainRow) -> list[tuple[str, set[int]]]:
    found = []
    for part in row.parts.split(";"):
        key, ranges = part.rsplit("=", 1)
        places: set[int] = set()
        for piece in ranges.split(","):
            first, last = piece.split(":")
            places.update(range(int(first), int(last)))
        found.append((key, places))
    return found

"""Atoms from and to PDB and mmCIF files: which records are the macromolecule, and how its axes are turned."""

import gzip
import re
import zlib
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from cryoscan.errors import FormatError, refuse_existing, require_file
from cryoscan.provenance import write_atomically
from cryoscan.structure import Domain, Structure

_PDB = (".pdb", ".ent")
_MMCIF = (".cif", ".mmcif")
# An ATOM record without a number in each of the three coordinate columns; gemmi would read 0.
_PDB_BAD_COORDINATE = re.compile(r"^(?:ATOM  |HETATM).{24}(?!(?:(?=.{0,7}\d)[-+. \d]{8}){3}).*", re.MULTILINE)
_PDB_LARGEST_SERIAL = 99_999
_PDB_COORDINATE_XYZ = (-999.999, 9999.999)
_PDB_RESIDUE_NUMBER = (-999, 9999)


def read_structure(
    path: Path | str, *, assembly: str | None = None, model: int = 1, domains: Sequence[Domain] = ()
) -> Structure:
    """Read the protein and nucleic acid of a PDB or mmCIF file.

    Chains and residues carry the author's names and numbers. Waters, ligands, ions and
    hydrogens are dropped; modified residues such as selenomethionine stay. Of alternative
    locations the one with the highest occupancy is kept (the first of equals).

    Parameters
    ----------
    path : path
        ``.pdb``, ``.ent``, ``.cif`` or ``.mmcif``, also with ``.gz``.
    assembly : str, optional
        Name of a biological assembly, usually ``"1"``. The first copy of a chain keeps its
        name, further ones are called ``A-2``, ``A-3`` … Default: the atoms as deposited.
    model : int
        Of several models the n-th in the order of the file, from 1.
    domains : sequence of Domain
        Named parts to carry along.

    Returns
    -------
    Structure
        Its id is the name of the file without its endings.

    Raises
    ------
    FormatError
        If the file is damaged, holds no macromolecule, or lacks the model or assembly.
    """
    path = require_file(Path(path), what="a structure file (PDB or mmCIF)")
    name, suffix = _split_suffix(path)
    parsed = _parse(_content(path), suffix, path)
    chosen = _model(parsed, model, path)
    if assembly is not None:
        chosen = _assembly(parsed, chosen, assembly, path)
    rows = [row for chain in chosen for row in _chain_rows(chain)]
    if not rows:
        raise FormatError(
            f"expected atoms of a protein or nucleic acid in {path}",
            got="none",
            hint="Check that the file is complete and holds more than ligands, waters or hydrogens.",
        )
    return _structure(rows, name=name, domains=tuple(domains))


def write_structure(structure: Structure, path: Path | str, *, overwrite: bool = False) -> None:
    """Write a structure as mmCIF (``.cif``, ``.mmcif``) or PDB (``.pdb``, ``.ent``).

    Raises
    ------
    FormatError
        If the suffix is another one, or the structure does not fit the PDB format.
    ExistingOutputError
        If the file exists and `overwrite` is false.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in _PDB + _MMCIF:
        raise FormatError(
            "expected an output that ends in .cif, .mmcif, .pdb or .ent",
            got=path.name,
            hint="Choose one of these endings; .cif holds structures of any size.",
        )
    refuse_existing(path, overwrite=overwrite)
    if suffix in _PDB:
        _check_fits_pdb(structure)
    model = _to_gemmi(structure)
    text = model.make_mmcif_document().as_string() if suffix in _MMCIF else model.make_pdb_string()
    write_atomically(path, text)


def _split_suffix(path: Path) -> tuple[str, str]:
    """Name without endings, and the ending that says the format."""
    inner = Path(path.stem) if path.suffix.lower() == ".gz" else Path(path.name)
    if inner.suffix.lower() not in _PDB + _MMCIF:
        raise FormatError(
            "expected a structure file that ends in .pdb, .ent, .cif or .mmcif, with or without .gz",
            got=path.name,
            hint="Rename the file after its format, or convert it.",
        )
    return inner.stem, inner.suffix.lower()


def _content(path: Path) -> bytes:
    content = path.read_bytes()
    if path.suffix.lower() != ".gz":
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise FormatError(
            f"expected a complete gzip file: {path}", got=str(error), hint="The file is damaged: fetch it again."
        ) from error


def _parse(content: bytes, suffix: str, path: Path) -> Any:
    """Read with gemmi; whatever it refuses becomes one kind of error."""
    import gemmi

    try:
        if suffix in _PDB:
            text = content.decode("utf-8", errors="replace")
            if bad := _PDB_BAD_COORDINATE.search(text):
                raise ValueError(f"no coordinates in '{bad[0].rstrip()}'")
            parsed = gemmi.read_pdb_string(text)
        else:
            document = gemmi.cif.read_string(content)
            blocks = [block for block in document if block.find_loop("_atom_site.id")] or list(document)
            parsed = gemmi.make_structure_from_block(blocks[0]) if blocks else gemmi.Structure()
    except (ValueError, RuntimeError, IndexError) as error:
        raise FormatError(
            f"expected {'PDB' if suffix in _PDB else 'mmCIF'} text in {path}",
            got=" ".join(str(error).split()),
            hint="The file is damaged, cut short, or its ending does not match its format.",
        ) from error
    if len(parsed) == 0 or parsed[0].count_atom_sites() == 0:
        raise FormatError(
            f"expected atoms in {path}",
            got="a file without a single atom" if content.strip() else "an empty file",
            hint="Check that the download is complete and that the ending matches the format.",
        )
    parsed.merge_chain_parts()
    parsed.setup_entities()
    return parsed


def _model(parsed: Any, model: int, path: Path) -> Any:
    if not 1 <= model <= len(parsed):
        raise FormatError(
            f"expected a model between 1 and {len(parsed)} in {path}",
            got=str(model),
            hint="Models are counted from 1 in the order of the file.",
        )
    return parsed[model - 1]


def _assembly(parsed: Any, model: Any, name: str, path: Path) -> Any:
    """Copy the chains of a biological assembly and give every copy a name of its own."""
    import gemmi

    found = [assembly for assembly in parsed.assemblies if assembly.name == name]
    if not found:
        known = ", ".join(assembly.name for assembly in parsed.assemblies)
        raise FormatError(
            f"expected the assembly '{name}' in {path}",
            got=f"assemblies {known}" if known else "a file that describes no assembly",
            hint="Name one that the file has, or leave the assembly away to take the atoms as deposited.",
        )
    copied = gemmi.make_assembly(found[0], model, gemmi.HowToNameCopiedChain.Dup)
    copies: dict[str, int] = {}
    for chain in copied:
        copies[chain.name] = number = copies.get(chain.name, 0) + 1
        if number > 1:
            chain.name = f"{chain.name}-{number}"
    return copied


def _chain_rows(chain: Any) -> Iterator[tuple[Any, Any, Any]]:
    """Chain name, residue and atom of everything to keep, in the order of the file."""
    kept = (residue for residue in chain if _is_macromolecule(residue))
    for _, alternatives in groupby(kept, key=lambda residue: (residue.seqid.num, residue.seqid.icode)):
        for residue, atom in _one_conformer(list(alternatives)):
            if not atom.is_hydrogen():
                yield chain.name, residue, atom


def _is_macromolecule(residue: Any) -> bool:
    import gemmi

    if residue.entity_type == gemmi.EntityType.Polymer:
        return True
    # A TER in the middle of a chain (a gap, to some programs) makes gemmi call the rest ligands.
    info = gemmi.find_tabulated_residue(residue.name)
    return residue.het_flag == "A" and (info.is_amino_acid() or info.is_nucleic_acid())


def _one_conformer(residues: list[Any]) -> Iterator[tuple[Any, Any]]:
    """Residue and atom of the best conformer at one position of a chain.

    The conformer is chosen for the position as a whole, so that no side chain is mixed from
    two; an atom that the best conformer lacks is taken from the next.
    """
    occupancy: dict[str, float] = {}
    for residue in residues:
        for atom in residue:
            if atom.has_altloc():
                occupancy[atom.altloc] = max(atom.occ, occupancy.get(atom.altloc, 0.0))
    order = {letter: i for i, letter in enumerate(sorted(occupancy, key=lambda letter: -occupancy[letter]))}
    best = min(residues, key=lambda residue: min((order[a.altloc] for a in residue if a.has_altloc()), default=0))
    for residue in residues:
        if not any(atom.has_altloc() for atom in residue):
            yield from ((residue, atom) for atom in residue)
        elif residue is best:
            ranked: dict[str, Any] = {}
            for atom in sorted(residue, key=lambda atom: order.get(atom.altloc, -1)):
                ranked.setdefault(atom.name, atom)
            yield from ((residue, atom) for atom in residue if ranked[atom.name] is atom)


def _structure(rows: list[tuple[Any, Any, Any]], *, name: str, domains: tuple[Domain, ...]) -> Structure:
    numbers = np.array([residue.seqid.num for _, residue, _ in rows], np.int64)
    insertion_codes = np.array([residue.seqid.icode.strip() for _, residue, _ in rows])
    residue_names = np.array([residue.name for _, residue, _ in rows])
    chains = np.array([chain for chain, _, _ in rows])
    starts = np.zeros(len(rows), bool)
    for labels in (numbers, insertion_codes, residue_names, chains):
        starts[1:] |= labels[1:] != labels[:-1]
    positions_xyz = np.array([atom.pos.tolist() for _, _, atom in rows], np.float64)
    if not np.isfinite(positions_xyz).all():
        raise FormatError(f"expected finite coordinates in '{name}'", got="a missing value", hint="Mend the file.")
    return Structure(
        id=name,
        positions=np.ascontiguousarray(positions_xyz[:, ::-1]),
        elements=np.array([atom.element.atomic_number for _, _, atom in rows], np.uint8),
        names=np.array([atom.name for _, _, atom in rows]),
        residue_names=residue_names,
        residue_numbers=numbers,
        insertion_codes=insertion_codes,
        chains=chains,
        residues=np.cumsum(starts),
        b_factors=np.array([atom.b_iso for _, _, atom in rows], np.float32),
        nucleic=_nucleic(residue_names, rows),
        domains=domains,
    )


def _nucleic(residue_names: np.ndarray, rows: list[tuple[Any, Any, Any]]) -> np.ndarray:
    """Atoms of DNA and RNA; a residue nobody tabulated is one if it has a sugar's C1'."""
    import gemmi

    known = {name: gemmi.find_tabulated_residue(name) for name in set(residue_names.tolist())}
    with_sugar = {residue.name for _, residue, atom in rows if atom.name == "C1'"}
    is_nucleic = {name: info.is_nucleic_acid() if info.found() else name in with_sugar for name, info in known.items()}
    return np.array([is_nucleic[name] for name in residue_names.tolist()], bool)


def _check_fits_pdb(structure: Structure) -> None:
    low, high = _PDB_COORDINATE_XYZ
    first, last = _PDB_RESIDUE_NUMBER
    numbers = structure.residue_numbers
    problems = {
        f"{len(structure)} atoms": len(structure) > _PDB_LARGEST_SERIAL,
        "a chain name longer than one letter": max(map(len, structure.chains)) > 1,
        "a residue name longer than three letters": max(map(len, structure.residue_names)) > 3,
        "a residue number outside −999 … 9999": numbers.min() < first or numbers.max() > last,
        "a coordinate outside −999.999 … 9999.999 Å": structure.positions.min() < low
        or structure.positions.max() > high,
    }
    found = [problem for problem, is_met in problems.items() if is_met]
    if found:
        raise FormatError(
            f"expected a structure that fits the PDB format ('{structure.id}')",
            got="; ".join(found),
            hint="Write mmCIF instead: choose a name that ends in .cif.",
        )


def _to_gemmi(structure: Structure) -> Any:
    """The structure as gemmi knows it, one chain per name in order of appearance."""
    import gemmi

    model = gemmi.Model(1)
    for chain_name in dict.fromkeys(structure.chains.tolist()):
        chain = gemmi.Chain(chain_name)
        atoms = np.flatnonzero(structure.chains == chain_name)
        for _, group in groupby(atoms.tolist(), key=lambda i: int(structure.residues[i])):
            chain.add_residue(_residue(structure, list(group)))
        model.add_chain(chain)
    written = gemmi.Structure()
    written.name = structure.id
    written.spacegroup_hm = "P 1"
    written.add_model(model)
    written.setup_entities()
    written.assign_serial_numbers()
    return written


def _residue(structure: Structure, atoms: list[int]) -> Any:
    import gemmi

    first = atoms[0]
    residue = gemmi.Residue()
    residue.name = str(structure.residue_names[first])
    residue.seqid = gemmi.SeqId(int(structure.residue_numbers[first]), str(structure.insertion_codes[first]) or " ")
    residue.entity_type = gemmi.EntityType.Polymer
    residue.het_flag = "A"
    for i in atoms:
        atom = gemmi.Atom()
        atom.name = str(structure.names[i])
        atom.element = gemmi.Element(int(structure.elements[i]))
        z, y, x = structure.positions[i].tolist()
        atom.pos = gemmi.Position(x, y, z)
        atom.b_iso = float(structure.b_factors[i])
        residue.add_atom(atom)
    return residue

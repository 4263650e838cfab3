"""Tables of domains and the two notations for their residue ranges, CATH's and SCOPe's."""

import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cryoscan.errors import FormatError, require_file
from cryoscan.structure import Domain, ResidueId, Segment
from cryoscan.units import Angstrom

_RANGE = r"(-?\d+[A-Za-z]?)-(-?\d+[A-Za-z]?)"
_CATH = re.compile(rf"{_RANGE}:([^\s:,]+)")
_SCOPE = re.compile(rf"([^\s:,]+):(?:{_RANGE})?")
_RESIDUE = re.compile(r"(-?\d+)([A-Za-z]?)")
_CATH_TYPE = re.compile(r"\d+\.\d+\.\d+\.\d+")
_SCOPE_TYPE = re.compile(r"[a-z]\.\d+\.\d+\.\d+")

# Column names of published tables and of a plain table of one's own, first come first served.
_COLUMNS = {
    "id": ("domain_id", "id"),
    "type": ("superfamily_or_family", "type"),
    "ranges": ("segments_pdb", "ranges"),
    "n_residues": ("nres", "n_residues"),
}


@dataclass(frozen=True, slots=True)
class DomainRow:
    """One line of a table of domains; what the table does not say is empty.

    Parameters
    ----------
    id : str
        E.g. ``1p3qQ00`` or ``d1a6ka_``.
    pdb : str
    scheme : str
        ``CATH``, ``SCOPe`` or a user's own word.
    type : str
        Place in the scheme, e.g. ``1.10.8.10`` or ``a.1.1.2``.
    name : str
        For people.
    ranges : str
        Residue ranges in CATH or SCOPe notation, e.g. ``398-444:Q``; empty or ``-`` = everything.
    parts : str
        Chain keys and 0-based residue ranges into a structure store, e.g. ``1p3q_Q=0:45``.
    n_residues : int
        0 = unknown.
    resolution : Å or None
        Of the structure; None = unknown, or not from diffraction or microscopy.
    source : str
        Who carried the file.
    clu40, clu95 : str
        Representative of the sequence cluster at 40 and 95 % identity.
    sequence : str
    file : str
        Structure file, as the table gives it.
    """

    id: str
    pdb: str
    scheme: str
    type: str
    name: str
    ranges: str
    parts: str
    n_residues: int
    resolution: Angstrom | None
    source: str
    clu40: str
    clu95: str
    sequence: str
    file: str

    def domain(self) -> Domain:
        """The domain this line describes; without segments if it is a whole structure."""
        segments = parse_ranges(self.ranges) if self.ranges else ()
        return Domain(name=self.id, scheme=self.scheme, type=self.type, segments=segments)


def parse_ranges(text: str) -> tuple[Segment, ...]:
    """Read residue ranges in CATH or SCOPe notation.

    Parameters
    ----------
    text : str
        Comma-separated; the chain stands behind (CATH: ``1-158:A,329-397:A``) or before
        (SCOPe: ``A:1-47,B:``). Numbers may be negative and carry insertion codes
        (``-5-30:A``, ``52A-60B:L``). ``-`` is SCOPe's whole structure.

    Returns
    -------
    tuple of Segment
        Empty for ``-``.

    Raises
    ------
    FormatError
        If a range cannot be read.
    """
    if text.strip() == "-":
        return ()
    return tuple(_segment(part.strip(), text) for part in text.split(","))


def read_domains(path: Path | str) -> list[DomainRow]:
    """Read a table of domains, tab- or comma-separated with a header.

    Columns ``id`` (or ``domain_id``) and ``type`` (or ``superfamily_or_family``) are
    required; ``ranges`` (or ``segments_pdb``), ``pdb``, ``scheme``, ``name``, ``file``,
    ``parts``, ``nres``, ``resolution``, ``source``, ``clu40``, ``clu95`` and ``sequence``
    are used where present; others are ignored. Without a scheme, four numbers are CATH and
    a letter with three numbers is SCOPe; anything else is ``user``.

    Raises
    ------
    FormatError
        If a required column or value is missing, a value cannot be read, or an id occurs twice.
    """
    path = Path(path)
    lines = _read_table(path, required=("id", "type"))
    rows: list[DomainRow] = []
    seen: dict[str, int] = {}
    for number, values in lines:
        row = _domain_row(values, where=f"{path}, line {number}")
        if row.id in seen:
            raise FormatError(
                f"expected every id once in {path}",
                got=f"'{row.id}' in lines {seen[row.id]} and {number}",
                hint="Give each domain an id of its own.",
            )
        seen[row.id] = number
        rows.append(row)
    if not rows:
        raise FormatError(f"expected domains in {path}", got="a header only", hint="Add one line per domain.")
    return rows


def read_scope_names(path: Path | str) -> dict[str, str]:
    """Read the names of SCOPe's classes, folds, superfamilies and families: sccs → name."""
    return {values["sccs"]: values["name"] for _, values in _read_table(Path(path), required=("sccs", "name"))}


def _segment(part: str, text: str) -> Segment:
    if found := _CATH.fullmatch(part):
        first, last, chain = found.groups()
    elif found := _SCOPE.fullmatch(part):
        chain, first, last = found.groups()
    else:
        raise FormatError(
            "expected residue ranges such as 1-158:A,329-397:A or A:1-47,B:",
            got=f"'{part}' in '{text}'" if part != text else f"'{text}'",
            hint="Name the chain of every range; separate ranges by commas.",
        )
    return Segment(chain) if first is None else Segment(chain, _residue_id(first), _residue_id(last))


def _residue_id(text: str) -> ResidueId:
    found = _RESIDUE.fullmatch(text)
    assert found is not None  # the range's own pattern let it through
    return int(found[1]), found[2]


def _read_table(path: Path, *, required: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and values of each line, columns under the names this module uses."""
    path = require_file(path, what="a table (tab- or comma-separated text)")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormatError(f"expected UTF-8 text in {path}", got=str(error), hint="Save the table as text.") from error
    lines = [(i, line) for i, line in enumerate(text.splitlines(), start=1) if line.strip()]
    header = lines[0][1] if lines else ""
    delimiter = "\t" if "\t" in header else ","
    columns = [column.strip() for column in next(csv.reader([header], delimiter=delimiter), [])]
    names = {_own_name(column, columns): i for i, column in enumerate(columns)}
    missing = [name for name in required if name not in names]
    if missing:
        raise FormatError(
            f"expected a column {' and a column '.join(map(_spellings, missing))} in {path}",
            got=f"columns {', '.join(columns)}" if any(columns) else "no header",
            hint="Name the columns in the first line; separate them by tabs or commas.",
        )
    numbers = [number for number, _ in lines[1:]]
    for number, values in zip(numbers, csv.reader((line for _, line in lines[1:]), delimiter=delimiter), strict=False):
        if len(values) != len(columns):
            raise FormatError(
                f"expected {len(columns)} values in {path}, line {number}",
                got=str(len(values)),
                hint="The table is damaged or cut short; quote values that contain the separator.",
            )
        yield number, {name: values[i].strip() for name, i in names.items()}


def _own_name(column: str, columns: list[str]) -> str:
    for name, spellings in _COLUMNS.items():
        present = [spelling for spelling in spellings if spelling in columns]
        if present and column == present[0]:
            return name
    return column


def _spellings(name: str) -> str:
    return " or ".join(f"'{spelling}'" for spelling in _COLUMNS.get(name, (name,)))


def _domain_row(values: Mapping[str, str], *, where: str) -> DomainRow:
    for name in ("id", "type"):
        if not values[name]:
            raise FormatError(f"expected a value for '{name}' in {where}", got="nothing", hint="Fill it in.")
    resolution = _number(values, "resolution", where)
    try:
        row = DomainRow(
            n_residues=int(_number(values, "n_residues", where)),
            resolution=resolution if resolution > 0 else None,  # tables write 0.00 for unknown
            scheme=values.get("scheme") or _scheme(values["type"]),
            id=values["id"],
            type=values["type"],
            pdb=values.get("pdb", ""),
            name=values.get("name", ""),
            ranges=values.get("ranges", ""),
            parts=values.get("parts", ""),
            source=values.get("source", ""),
            clu40=values.get("clu40", ""),
            clu95=values.get("clu95", ""),
            sequence=values.get("sequence", ""),
            file=values.get("file", ""),
        )
        row.domain()
    except FormatError as error:
        raise FormatError(f"{error.expected} in {where}", got=error.got, hint=error.hint) from error
    return row


def _number(values: Mapping[str, str], name: str, where: str) -> float:
    text = values.get(name, "")
    try:
        number = float(text or 0)
    except ValueError:
        number = float("nan")
    if not 0 <= number < float("inf"):
        raise FormatError(
            f"expected a number for '{name}' in {where}", got=f"'{text}'", hint="Leave it empty if it is unknown."
        )
    return number


def _scheme(kind: str) -> str:
    if _CATH_TYPE.fullmatch(kind):
        return "CATH"
    return "SCOPe" if _SCOPE_TYPE.fullmatch(kind) else "user"

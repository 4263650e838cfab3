"""The table of a batch, made from what is on disk: so processes and later runs add up, and nothing is counted twice."""

import csv
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryoscan.batch.record import RECORDS, Status, read_record, status_on_disk
from cryoscan.errors import ExistingOutputError, FormatError
from cryoscan.export import Convention, write_hits_csv_of_many, write_star_of_many
from cryoscan.hits import Hits
from cryoscan.provenance import write_atomically
from cryoscan.redrawn import changed
from cryoscan.scan import ScanResult, open_scan
from cryoscan.units import Angstrom, Shape
from cryoscan.volume import Volume

if TYPE_CHECKING:
    from cryoscan.batch.plan import BatchItem

SUMMARY = "summary.csv"
_TRIES = 5


@dataclass(frozen=True, slots=True)
class BatchRow:
    """One volume in the table; what is not known is None.

    Parameters
    ----------
    name, path, status : str
    voxel_size_A : Angstrom
    shape_zyx : Shape
        Of what is scanned.
    hits, types, windows : int
        Places named, kinds of them, windows embedded.
    seconds : float
    warnings : tuple of str
    error : str
    """

    name: str
    path: str
    status: str
    voxel_size_A: Angstrom | None = None
    shape_zyx: Shape | None = None
    hits: int | None = None
    types: int | None = None
    windows: int | None = None
    seconds: float | None = None
    warnings: tuple[str, ...] = ()
    error: str = ""

    def cells(self) -> list[object]:
        """As text for a table, in the order of `COLUMNS`."""
        values = asdict(self)
        values["shape_zyx"] = "" if self.shape_zyx is None else " ".join(map(str, self.shape_zyx))
        values["warnings"] = " | ".join(self.warnings)
        return ["" if value is None else value for value in values.values()]


COLUMNS = tuple(BatchRow.__dataclass_fields__)
"""Names of the table's columns, in order."""


def read_rows(output: Path, items: "Iterable[BatchItem]" = ()) -> list[BatchRow]:
    """The table of an output folder: the given items in their order, then all others that are there.

    Parameters
    ----------
    output : Path
    items : iterable of BatchItem
        For what has not been begun, or cannot be.
    """
    planned = {item.name: item for item in items}
    there = {path.name.removesuffix(".scan") for path in output.glob("[!.]*.scan")}
    there |= {path.stem for path in (output / RECORDS).glob("[!.]*.json")}
    names = [*planned, *sorted(there - planned.keys())]
    return [_row(output / f"{name}.scan", name, planned.get(name)) for name in names]


def write_summary(output: Path, items: "Sequence[BatchItem]" = ()) -> list[BatchRow]:
    """Write ``summary.csv`` and give its rows.

    Several processes may do so at once: each looks again after it has written, so the last
    one to write has seen what all others did.
    """
    rows = read_rows(output, items)
    for _ in range(_TRIES):
        write_atomically(output / SUMMARY, _csv(rows))
        again = read_rows(output, items)
        if again == rows:
            break
        rows = again
    return rows


def seconds_per_A3(rows: Iterable[BatchRow]) -> float | None:
    """Mean time that the finished volumes took per Å³; None if there is none."""
    done = [(row, row.seconds) for row in rows if row.status == Status.done and row.seconds]
    volumes = [math.prod(row.shape_zyx) * row.voxel_size_A**3 for row, _ in done if row.shape_zyx and row.voxel_size_A]
    return sum(seconds for _, seconds in done) / sum(volumes) if volumes else None


def check_all_hits(path: Path) -> None:
    """Refuse to write the hits of all volumes over a file that is something else.

    Raises
    ------
    FormatError
        If the name ends in neither ``.star`` nor ``.csv``.
    ExistingOutputError
        If there is a file that no earlier batch wrote.
    """
    if path.suffix.lower() not in (".star", ".csv"):
        raise FormatError("expected hits to end in .star or .csv", got=path.name, hint="The ending chooses the format.")
    if not path.exists():
        return
    wanted = b"_cryoscanType" if path.suffix.lower() == ".star" else b"tomogram,rank,"
    if not (path.is_file() and wanted in _beginning(path)):
        raise ExistingOutputError(
            "expected a new file, or hits that an earlier batch wrote", got=str(path), hint="Choose another name."
        )


def write_all_hits(output: Path, path: Path, *, convention: Convention = "relion5") -> int:
    """Write the hits of all finished scans of a folder into one STAR or CSV file; gives their number.

    Nothing is written as long as no scan is finished.

    Parameters
    ----------
    output : Path
        Folder of the batch.
    path : Path
        ``.star`` or ``.csv``; the hits of an earlier batch are replaced. Volumes are told
        apart by ``rlnTomoName`` or the column ``tomogram``, their names in the batch.
    convention : {"relion5", "relion3"}
        See `write_star`.
    """
    check_all_hits(path)
    parts = list(_finished(output))
    if not parts:
        return 0
    if path.suffix.lower() == ".csv":
        write_hits_csv_of_many(parts, path, overwrite=True)
    else:
        write_star_of_many(parts, path, convention=convention, overwrite=True)
    return sum(len(hits) for _, hits, _ in parts)


def _beginning(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(4096)


def _finished(output: Path) -> Iterator[tuple[str, Hits, Volume]]:
    for scan in sorted(output.glob("[!.]*.scan")):
        result = open_scan(scan)
        if result.is_complete:
            now = changed(result)
            hits = result.hits if now is None else now.places.answer
            yield scan.name.removesuffix(".scan"), hits, result.whole_grid


def _row(scan: Path, name: str, item: "BatchItem | None") -> BatchRow:
    record = read_record(scan)
    known: dict[str, Any] = {"path": "", "status": Status.new, "error": "", "warnings": ()}
    if item is not None:
        known |= {"path": str(item.path), "status": item.status, "error": item.reason, "warnings": item.warnings}
        if item.grid is not None:
            known |= {"shape_zyx": item.grid.shape, "voxel_size_A": item.grid.voxel_size}
    if record is not None:
        known |= {"path": known["path"] or record.path, "seconds": round(record.seconds, 1)}
        known["warnings"] = known["warnings"] or record.warnings
    try:
        status, error = status_on_disk(scan, item.provenance if item else None, record)
        if item is None or item.provenance is not None or status is Status.done:  # else the item knows better
            known |= {"status": status, "error": error}
        if (scan / "manifest.json").is_file():
            known |= _what_the_scan_says(open_scan(scan), known["warnings"])
    except (OSError, ValueError) as damage:  # a damaged scan is a row of the table too
        known |= {"status": Status.failed, "error": str(damage)}
    return BatchRow(name, **{**known, "status": str(known["status"])})


def _what_the_scan_says(result: ScanResult, warnings: tuple[str, ...]) -> dict[str, Any]:
    shape, voxel_size, _ = result.volume_geometry
    said: dict[str, Any] = {"shape_zyx": shape, "voxel_size_A": voxel_size}
    if result.is_complete:
        summary = result.summary
        said |= {
            "hits": int(summary["hits"]),
            "types": len(summary["hits_per_type"]),
            "windows": int(summary["windows"]),
            "warnings": tuple(dict.fromkeys([*warnings, *summary["warnings"]])),
        }
    return said


def _csv(rows: Iterable[BatchRow]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(row.cells() for row in rows)
    return text.getvalue()

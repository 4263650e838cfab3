"""Hits as a table for spreadsheets and scripts: every field, positions in Å and in voxels."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from cryoscan.errors import refuse_existing
from cryoscan.hits import Hits
from cryoscan.provenance import write_atomically
from cryoscan.volume import Volume

COLUMNS = (
    "rank",
    "x_angstrom",
    "y_angstrom",
    "z_angstrom",
    "x_voxel",
    "y_voxel",
    "z_voxel",
    "label",
    "type",
    "scheme",
    "name",
    "entry",
    "score",
    "margin",
)
"""Names of the columns, in order."""


def write_hits_csv(hits: Hits, path: Path | str, *, volume: Volume, overwrite: bool = False) -> None:
    """Write hits as comma-separated values in UTF-8, best first as they come.

    Parameters
    ----------
    hits : Hits
        In the order in which they are written.
    path : path
        Of the CSV file.
    volume : Volume
        Where the hits were found: voxels are counted from 0 in it, Å in its coordinate
        system. Numbers are written with all their digits.
    overwrite : bool
        Replace a file that exists.
    """
    _write(path, COLUMNS, _rows(hits, volume), overwrite=overwrite)


def write_hits_csv_of_many(
    parts: Sequence[tuple[str, Hits, Volume]], path: Path | str, *, overwrite: bool = False
) -> None:
    """Write the hits of several volumes as one table whose first column, ``tomogram``, names the volume.

    Parameters
    ----------
    parts : sequence of (str, Hits, Volume)
        Name, hits and grid of each volume, in the order in which they are written.
    path, overwrite
        See `write_hits_csv`.
    """
    rows = ([name, *row] for name, hits, volume in parts for row in _rows(hits, volume))
    _write(path, ("tomogram", *COLUMNS), rows, overwrite=overwrite)


def _rows(hits: Hits, volume: Volume) -> Iterator[list[object]]:
    positions_xyz = hits.positions[:, ::-1].tolist()
    indices_xyz = volume.to_index(hits.positions)[:, ::-1].tolist()
    for i in range(len(hits)):
        names = [hits.types[i], hits.schemes[i], hits.names[i], hits.entries[i]]
        numbers = [float(hits.scores[i]), float(hits.margins[i])]
        yield [i + 1, *positions_xyz[i], *indices_xyz[i], int(hits.labels[i]), *names, *numbers]


def _write(path: Path | str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, overwrite: bool) -> None:
    path = refuse_existing(Path(path), overwrite=overwrite)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_atomically(path, text.getvalue())

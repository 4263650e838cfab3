"""Hits as a table for spreadsheets and scripts: every field, positions in Å and in voxels."""

import csv
import io
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
    path = refuse_existing(Path(path), overwrite=overwrite)
    positions_xyz = hits.positions[:, ::-1].tolist()
    indices_xyz = volume.to_index(hits.positions)[:, ::-1].tolist()
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for i in range(len(hits)):
        names = [hits.types[i], hits.schemes[i], hits.names[i], hits.entries[i]]
        numbers = [float(hits.scores[i]), float(hits.margins[i])]
        writer.writerow([i + 1, *positions_xyz[i], *indices_xyz[i], int(hits.labels[i]), *names, *numbers])
    write_atomically(path, text.getvalue())

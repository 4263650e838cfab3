"""Export: files for other programs, written and not read back.

Positions leave the package here and only here in x, y, z: `write_star` for RELION,
`write_hits_csv` for everything else, `write_star_of_many` and
`write_hits_csv_of_many` for several volumes in one file. `write_report` makes one HTML page of tables
(`candidates_table`, `hits_table`) and slices (`slices_figure`) that can be mailed.

All writers refuse to overwrite unless told, and write beside before they rename.
"""

from cryoscan.export.hits import write_hits
from cryoscan.export.report import (
    Figure,
    Section,
    Table,
    candidates_table,
    hits_table,
    slices_figure,
    write_report,
)
from cryoscan.export.star import Convention, centred_positions_xyz, write_star, write_star_of_many
from cryoscan.export.tables import write_hits_csv, write_hits_csv_of_many

__all__ = [
    "Convention",
    "Figure",
    "Section",
    "Table",
    "candidates_table",
    "centred_positions_xyz",
    "hits_table",
    "slices_figure",
    "write_hits",
    "write_hits_csv",
    "write_hits_csv_of_many",
    "write_star_of_many",
    "write_report",
    "write_star",
]

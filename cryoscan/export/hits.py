"""Hits in the format that a file's name asks for."""

from pathlib import Path

from cryoscan.errors import FormatError
from cryoscan.export.star import Convention, write_star
from cryoscan.export.tables import write_hits_csv
from cryoscan.hits import Hits
from cryoscan.volume import Volume


def write_hits(
    hits: Hits,
    path: Path,
    *,
    volume: Volume,
    tomogram_name: str,
    convention: Convention = "relion5",
    overwrite: bool = False,
) -> None:
    """Write hits as ``.star`` or ``.csv``; see `write_star` and `write_hits_csv`.

    Raises
    ------
    FormatError
        If the name has another ending.
    """
    if path.suffix.lower() == ".csv":
        write_hits_csv(hits, path, volume=volume, overwrite=overwrite)
    elif path.suffix.lower() == ".star":
        write_star(hits, path, volume=volume, convention=convention, tomogram_name=tomogram_name, overwrite=overwrite)
    else:
        raise FormatError("expected hits to end in .star or .csv", got=path.name, hint="The ending chooses the format.")

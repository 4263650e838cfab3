"""`cryoscan export`: a scan's answer for other programs."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cryoscan.cli import options as o
from cryoscan.cli import show

if TYPE_CHECKING:
    from cryoscan.scan import ScanResult


class StarConvention(StrEnum):
    """How RELION counts positions."""

    relion5 = "relion5"
    relion3 = "relion3"


class Ngff(StrEnum):
    """Versions of OME-Zarr."""

    v05 = "0.5"
    v04 = "0.4"


def export(
    path: Annotated[Path, typer.Argument(metavar="NAME.scan", help="Folder of a finished scan.", show_default=False)],
    labels: Annotated[
        Path | None, typer.Option("--labels", help="Labels to write: .mrc or .zarr.", show_default=False)
    ] = None,
    hits: Annotated[
        Path | None, typer.Option("--hits", help="Hits to write: .star or .csv.", show_default=False)
    ] = None,
    star_convention: Annotated[
        StarConvention, typer.Option("--star-convention", help="relion5: Å from the centre; relion3: voxels.")
    ] = StarConvention.relion5,
    tomogram_name: Annotated[
        str | None, typer.Option("--tomogram-name", help="rlnTomoName; the scan's name otherwise.", show_default=False)
    ] = None,
    ngff: Annotated[Ngff, typer.Option("--ngff", help="Version of OME-Zarr.")] = Ngff.v05,
    overwrite: o.Overwrite = False,
    as_json: o.Json = False,
) -> None:
    """Write the labels and hits of a scan for ChimeraX, napari, RELION or a spreadsheet.

    Example: cryoscan export tomogram.scan --labels labels.mrc --hits hits.star
    """
    from cryoscan.errors import ConfigError, refuse_existing
    from cryoscan.io import write_labels
    from cryoscan.scan import open_scan

    result = open_scan(path)
    if labels is None and hits is None:
        raise ConfigError(
            "expected --labels or --hits", got="neither", hint="Say what to write, e.g. --hits hits.star."
        )
    for wanted in (labels, hits):  # nothing is written if one of them cannot be
        if wanted is not None:
            refuse_existing(wanted, overwrite=overwrite)
    if hits is not None:
        name = tomogram_name or path.resolve().stem
        write_hits(result, hits, convention=star_convention, tomogram_name=name, overwrite=overwrite)
    if labels is not None:
        write_labels(result.labels(), labels, ngff=ngff.value, overwrite=overwrite)
    outputs = [str(wanted) for wanted in (labels, hits) if wanted is not None]
    if as_json:
        show.print_json({"outputs": outputs, "hits": len(result.hits)})
    else:
        show.line(f"{len(result.hits)} hits; written: {', '.join(outputs)}")


def write_hits(
    result: "ScanResult", path: Path, *, convention: StarConvention, tomogram_name: str, overwrite: bool
) -> None:
    """Write hits as the name says."""
    from cryoscan.errors import FormatError
    from cryoscan.export import write_hits_csv, write_star

    if path.suffix.lower() == ".csv":
        write_hits_csv(result.hits, path, volume=result.grid, overwrite=overwrite)
    elif path.suffix.lower() == ".star":
        write_star(
            result.hits,
            path,
            volume=result.grid,
            convention=convention.value,
            tomogram_name=tomogram_name,
            overwrite=overwrite,
        )
    else:
        raise FormatError("expected hits to end in .star or .csv", got=path.name, hint="The ending chooses the format.")

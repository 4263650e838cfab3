"""`cryoscan export`: a scan's answer for other programs."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cryoscan.cli import options as o
from cryoscan.cli import show


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
    journal: Annotated[
        Path | None, typer.Option("--journal", help="What people changed about it, as .csv.", show_default=False)
    ] = None,
    as_scanned: Annotated[
        bool, typer.Option("--as-scanned", help="Leave out what people changed in the viewer.")
    ] = False,
    ngff: Annotated[Ngff, typer.Option("--ngff", help="Version of OME-Zarr.")] = Ngff.v05,
    overwrite: o.Overwrite = False,
    as_json: o.Json = False,
) -> None:
    """Write the labels and hits of a scan for ChimeraX, napari, RELION or a spreadsheet.

    Example: cryoscan export tomogram.scan --labels labels.mrc --hits hits.star
    """
    from cryoscan.errors import ConfigError
    from cryoscan.scan import open_scan
    from cryoscan.workflows import export_scan

    result = open_scan(path)
    if labels is None and hits is None and journal is None:
        raise ConfigError(
            "expected --labels, --hits or --journal", got="none", hint="Say what to write, e.g. --hits hits.star."
        )
    written = export_scan(
        result,
        labels=labels,
        hits=hits,
        journal=journal,
        convention=star_convention.value,
        tomogram_name=tomogram_name,
        ngff=ngff.value,
        as_scanned=as_scanned,
        overwrite=overwrite,
    )
    outputs = [str(file) for file in written.files]
    if as_json:
        show.print_json({"outputs": outputs, "hits": written.hits})
    else:
        show.line(f"{written.hits} hits; written: {', '.join(outputs)}")

"""`cryoscan scan`: everything in a tomogram or map, tile by tile."""

from pathlib import Path
from typing import Annotated, Any

import typer

from cryoscan.cli import options as o
from cryoscan.cli import show


def scan(
    path: o.VolumePath,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="NAME.scan", help="Folder of the scan.", show_default=False)
    ],
    datedb: o.DateDBPath = None,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="YAML", help="Settings of the scan.", show_default=False)
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(
            "--stride", min=1, help="Voxels of 2.5 Å between windows; in place of the settings'.", show_default=False
        ),
    ] = None,
    resolution: o.Resolution = None,
    voxel_size: o.VoxelSize = None,
    contrast: o.ContrastOption = o.Contrast.bright,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start anew in place of an earlier scan.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what the scan would do, and stop.")] = False,
    as_json: o.Json = False,
) -> None:
    """Scan a volume for every domain; stopped with Ctrl-C, the same line goes on where it was.

    Example: cryoscan scan tomogram.mrc -o tomogram.scan --contrast dark
    """
    from cryoscan.cli.inputs import open_given
    from cryoscan.datedb import open_datedb
    from cryoscan.datedb.build import embedder_for
    from cryoscan.scan import ScanConfig, ScanFinished, plan_scan, run_scan

    chosen: dict[str, Any] = {"stride_voxels": stride, "resolution_A": resolution}
    chosen = {key: value for key, value in chosen.items() if value is not None}
    settings = ScanConfig.build(**chosen) if config is None else ScanConfig.read(config, **chosen)
    given = open_given(path, voxel_size=voxel_size, contrast=contrast)
    show.warn(given.warnings)
    db = open_datedb(datedb)
    plan = plan_scan(given.volume, datedb=db, embedder=embedder_for(db), config=settings, source=path)
    for text in plan.lines():
        show.note(text)
    if dry_run:
        about = {"plan": plan.lines(), "memory_bytes": plan.memory_bytes(), "disk_bytes": plan.disk_bytes()}
        _say({**about, "warnings": [*given.warnings, *plan.preflight.warnings]}, "Nothing was scanned.", as_json)
        return
    try:
        for event in show.progress(run_scan(plan, output, overwrite=overwrite), "tiles scanned"):
            if isinstance(event, ScanFinished):
                summary = event.result.summary
                text = f"{output}: {summary.get('verdict', 'done')}\nNext: cryoscan export {output} --hits hits.star"
                _say({"output": str(output), **summary}, text, as_json)
    except KeyboardInterrupt:
        show.note("Stopped. Finished tiles are kept: give the same command again to go on.")
        raise typer.Exit(130) from None


def _say(about: dict[str, Any], text: str, as_json: bool) -> None:
    if as_json:
        show.print_json(about)
    else:
        show.line(text)

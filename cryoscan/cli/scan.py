"""`cryoscan scan`: everything in a tomogram or map, tile by tile."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cryoscan.cli import options as o
from cryoscan.cli import show

if TYPE_CHECKING:
    from cryoscan.scan import ScanEvent

_SHOWN = 5  # places whose name sharpening changed; the others are in the summary


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
    mask: Annotated[
        Path | None,
        typer.Option("--mask", metavar="VOLUME", help="Look only where it is above 0.", show_default=False),
    ] = None,
    z_range: Annotated[
        str | None,
        typer.Option("--z-range", metavar="FIRST:STOP", help="Planes to scan, from 0.", show_default=False),
    ] = None,
    enhance: o.EnhanceScan = False,
    enhancer: o.Enhancer = None,
    workers: o.Workers = None,
    scheduler: o.Scheduler = None,
    cluster: o.ClusterFile = None,
    device: o.Device = None,
    shard: Annotated[
        str | None,
        typer.Option("--shard", metavar="I/N", help="Do the I-th of N shares (job arrays).", show_default=False),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start anew in place of an earlier scan.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what the scan would do, need and take, and stop.")
    ] = False,
    as_json: o.Json = False,
) -> None:
    """Scan a volume for every domain; stopped with Ctrl-C, the same line goes on where it was.

    Example: cryoscan scan tomogram.mrc -o tomogram.scan --contrast dark
    """
    from cryoscan.cli.inputs import executor_for, only_one, open_given, open_mask, parse_planes, parse_shard
    from cryoscan.datedb import open_datedb
    from cryoscan.datedb.build import embedder_for
    from cryoscan.errors import ConfigError
    from cryoscan.scan import ScanConfig, plan_scan, run_scan
    from cryoscan.scan.tile import probe_speed

    only_one(workers=workers, scheduler=scheduler, cluster=cluster, shard=shard)
    chosen: dict[str, Any] = {"stride_voxels": stride, "resolution_A": resolution, "enhance": enhance or None}
    chosen = {key: value for key, value in chosen.items() if value is not None}
    settings = ScanConfig.build(**chosen) if config is None else ScanConfig.read(config, **chosen)
    if enhancer is not None and not settings.enhance:
        raise ConfigError(
            "expected --enhance with --enhancer", got="--enhancer alone", hint="Give both, or leave the network out."
        )
    given = open_given(path, voxel_size=voxel_size, contrast=contrast, z_range=parse_planes(z_range))
    show.warn(given.warnings)
    db = open_datedb(datedb)
    plan = plan_scan(
        given.volume,
        datedb=db,
        embedder=embedder_for(db, device=device),
        config=settings,
        source=given.file,
        mask=None if mask is None else open_mask(given, mask),
        folder=None if overwrite else output,
        enhancer=enhancer,
    )
    speed = probe_speed(plan) if dry_run and plan.scannable and len(plan.active) else None
    lines = plan.lines(workers=workers or 1, speed=speed)
    for text in lines:
        show.note(text)
    if dry_run:
        about = {"plan": lines, "memory_bytes": plan.memory_bytes(workers=workers or 1)}
        about |= {"disk_bytes": plan.disk_bytes(), "seconds": speed and speed.seconds(plan, workers=workers or 1)}
        if cluster is not None:
            about["job_script"] = _show_script(cluster)
        _say({**about, "warnings": [*given.warnings, *plan.preflight.warnings]}, "Nothing was scanned.", as_json)
        return
    try:
        with executor_for(workers, scheduler, cluster) as executor:
            share = parse_shard(shard)
            events = run_scan(plan, output, overwrite=overwrite, executor=executor, shard=share)
            _follow(events, output, as_json)
    except KeyboardInterrupt:
        show.note("Stopped. Finished tiles are kept: give the same command again to go on.")
        raise typer.Exit(130) from None


def _follow(events: "Iterator[ScanEvent]", output: Path, as_json: bool) -> None:
    """Show progress, then the answer."""
    from cryoscan.scan import ScanFinished, ShardDone, TileDone

    for event in show.progress(events, "tiles scanned"):
        if isinstance(event, TileDone) and event.error is not None:
            show.warn([f"a tile failed: {event.error}"])
        if isinstance(event, ShardDone):
            text = f"This share is done; {event.left} tiles are left to others, the last of which writes the answer."
            _say({"output": str(output), "tiles_left": event.left}, text, as_json)
        if isinstance(event, ScanFinished):
            summary = event.result.summary
            text = f"{output}: {summary['verdict']}\nNext: cryoscan export {output} --hits hits.star"
            _say({"output": str(output), **summary}, text, as_json)
            show.warn(_changed(summary.get("changed_by_sharpening", [])))
            if summary["failed"]:
                count = len(summary["failed"])
                show.warn([f"{count} tile{'s' if count > 1 else ''} failed; the same command tries them again."])
                raise typer.Exit(1)


def _changed(places: list[dict[str, Any]]) -> list[str]:
    """A sentence for each of the first places whose name sharpening changed."""
    said = []
    for place in places[:_SHOWN]:
        position = ", ".join(f"{value:g}" for value in place["position_zyx_A"])
        before, after = (place[key] or "no name" for key in ("as_it_is", "sharpened"))
        said.append(f"At {position} Å (z, y, x) sharpening changed {before} to {after}: neither answer is safe.")
    more = len(places) - len(said)
    return [*said, *([f"{more} more places are listed in summary.json."] if more > 0 else [])]


def _show_script(cluster: Path) -> str:
    from cryoscan.scan.cluster import ClusterConfig, job_script

    script = job_script(ClusterConfig.read(cluster))
    show.note(f"Each job would be:\n{script}")
    return script


def _say(about: dict[str, Any], text: str, as_json: bool) -> None:
    if as_json:
        show.print_json(about)
    else:
        show.line(text)

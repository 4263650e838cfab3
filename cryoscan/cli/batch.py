"""`cryoscan batch`: many volumes with one line, and one table of what was found."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cryoscan.cli import options as o
from cryoscan.cli import show

if TYPE_CHECKING:
    from cryoscan.batch import BatchEvent, BatchFinished, BatchItem, BatchRow
    from cryoscan.scan import ScanPlan

_COLUMNS = ("name", "status", "voxel Å", "shape z y x", "hits", "types", "windows", "time", "warnings")
_SIZES = ("memory MiB", "disk MiB")
_NUMBERS = ("voxel Å", "hits", "types", "windows", "time", "warnings")


def batch(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="VOLUMES...",
            help="Files, folders, patterns in quotes, lists (.txt .yaml .csv), copick's JSON or a project's folder.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FOLDER", help="Folder of all scans.", show_default=False)
    ],
    datedb: o.DateDBPath = None,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="YAML", help="Settings of the batch.", show_default=False)
    ] = None,
    voxel_size: o.VoxelSize = None,
    contrast: Annotated[
        o.Contrast | None,
        typer.Option("--contrast", help="What protein is in the files: bright or dark.", show_default=False),
    ] = None,
    resolution: o.Resolution = None,
    voxel_spacing: Annotated[
        float | None,
        typer.Option(
            "--voxel-spacing", metavar="Å", min=0.01, help="Which tomogram of each run to take.", show_default=False
        ),
    ] = None,
    tomogram: Annotated[
        str | None,
        typer.Option("--tomogram", metavar="NAME", help="Which one by copick's type or number.", show_default=False),
    ] = None,
    naming: Annotated[
        str | None,
        typer.Option("--naming", metavar="WORDS", help="Names of the scans, e.g. {folder}_{stem}.", show_default=False),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option("--shard", metavar="I/N", help="Only every N-th volume from the I-th on.", show_default=False),
    ] = None,
    enhance: o.EnhanceScan = False,
    enhancer: o.Enhancer = None,
    workers: o.Workers = None,
    scheduler: o.Scheduler = None,
    cluster: o.ClusterFile = None,
    device: o.Device = None,
    hits: Annotated[
        Path | None,
        typer.Option("--hits", metavar="FILE", help="Hits of all volumes: .star or .csv.", show_default=False),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Scan anew what was scanned with other settings.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Look at every volume, say what would be done.")] = False,
    as_json: o.Json = False,
) -> None:
    """Scan many volumes; stopped or failed, the same line does what is left.

    Example: cryoscan batch 'tomograms/*.mrc' -o scans --contrast dark --hits all.star
    """
    from cryoscan.batch import BatchConfig, check_all_hits, plan_batch, run_batch
    from cryoscan.cli.inputs import executor_for, only_one, parse_shard
    from cryoscan.datedb import open_datedb
    from cryoscan.datedb.build import embedder_for

    only_one(workers=workers, scheduler=scheduler, cluster=cluster)
    chosen: dict[str, Any] = {"voxel_size": voxel_size, "contrast": contrast and contrast.value, "naming": naming}
    chosen |= {"voxel_spacing": voxel_spacing, "tomogram": tomogram}
    chosen = {key: value for key, value in chosen.items() if value is not None}
    settings = BatchConfig.build(**chosen) if config is None else BatchConfig.read(config, **chosen)
    for_all = {"resolution_A": resolution, "enhance": enhance or None}
    scans = settings.scan.model_copy(update={key: value for key, value in for_all.items() if value is not None})
    settings = settings.model_copy(update={"scan": scans})
    if hits is not None:
        check_all_hits(hits)
    db = open_datedb(datedb)
    share = parse_shard(shard)
    both: dict[str, Any] = {"datedb": db, "embedder": embedder_for(db, device=device)}
    items = plan_batch(inputs, output, config=settings, enhancer=enhancer, **both)
    both["shard"] = share
    for item in items:
        show.warn(f"{item.name}: {warning}" for warning in item.warnings)
    if dry_run:
        _preview(items, output, both, as_json)
        return
    with ExitStack() as stack:
        both["executor"] = stack.enter_context(executor_for(workers, scheduler, cluster))
        events = stack.enter_context(closing(run_batch(items, overwrite=overwrite, **both)))
        finished = _watch(events)
    _answer(finished, hits, as_json)


def _watch(events: "Iterator[BatchEvent]") -> "BatchFinished":
    """Say what happens while it happens, and give the end."""
    from cryoscan.batch import BatchFinished, VolumeBusy, VolumeDone, VolumeFailed, VolumePlanned, VolumeStarted

    try:
        for event in show.progress(events, "tiles scanned"):
            match event:
                case VolumeStarted(name, number, total):
                    show.note(f"{name}: {number} of {total}")
                case VolumePlanned(name, plan):
                    show.warn(f"{name}: {warning}" for warning in plan.preflight.warnings)
                case VolumeDone(name, result, seconds, left):
                    spent = show.duration(seconds) if seconds else "done by another process"
                    rest = f"; about {show.duration(left)} for the others" if left >= 1 else ""
                    show.note(f"{name}: {result.summary['verdict']}, {spent}{rest}")
                case VolumeFailed(name, reason):
                    show.note(f"{name}: failed: {reason}")
                case VolumeBusy(name):
                    show.note(f"{name}: another process is at work on it")
                case BatchFinished():
                    return event
    except KeyboardInterrupt:
        show.note("Stopped. What is finished is kept: give the same command again to go on.")
        raise typer.Exit(130) from None
    raise AssertionError("a batch ends with BatchFinished")


def _answer(finished: "BatchFinished", hits: Path | None, as_json: bool) -> None:
    from cryoscan.batch import write_all_hits

    counts = dict(Counter(row.status for row in finished.rows))
    about: dict[str, Any] = {"summary": str(finished.path), "counts": counts, "failed": finished.failed}
    said = ", ".join(f"{count} {status}" for status, count in counts.items())
    if hits is not None:
        about |= {"hits_file": str(hits), "hits": write_all_hits(finished.path.parent, hits)}
        said += f"; {about['hits']} hits in {hits}"
    if as_json:
        show.print_json({**about, "volumes": [asdict(row) for row in finished.rows]})
    else:
        show.table(_COLUMNS, map(_cells, finished.rows), right=_NUMBERS)
        show.line(f"\n{said}; table: {finished.path}")
    for name, reason in finished.failed.items():
        show.note(f"failed: {name}: {reason}")
    if finished.failed:
        raise typer.Exit(1)


def _cells(row: "BatchRow") -> list[object]:
    known = ["" if value is None else value for value in (row.hits, row.types, row.windows)]
    size = "" if row.voxel_size_A is None else f"{row.voxel_size_A:g}"
    shape = "" if row.shape_zyx is None else " ".join(map(str, row.shape_zyx))
    spent = "" if row.seconds is None else show.duration(row.seconds)
    return [row.name, row.status, size, shape, *known, spent, len(row.warnings) or ""]


def _preview(items: "Sequence[BatchItem]", output: Path, given: dict[str, Any], as_json: bool) -> None:
    """Say what is left to do, and what it will take."""
    from cryoscan.batch import VolumePlanned, preview_batch, read_rows, seconds_per_A3

    status = {item.name: item.status for item in items}
    planned: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    volume_A3 = 0.0
    for event in preview_batch(items, **given):
        if isinstance(event, VolumePlanned):
            planned.append({"name": event.name, "status": status[event.name], **_costs(event.plan)})
            volume_A3 += math.prod(event.plan.volume.extent)
            show.warn(f"{event.name}: {warning}" for warning in event.plan.preflight.warnings)
        else:
            failed[event.name] = event.reason
            show.note(f"failed: {event.name}: {event.reason}")
    speed = seconds_per_A3(read_rows(output, items))
    seconds = None if speed is None else speed * volume_A3
    disk, memory = sum(v["disk_bytes"] for v in planned), max((v["memory_bytes"] for v in planned), default=0)
    counts = dict(Counter(status.values()))
    if as_json:
        totals = {"volumes": len(planned), "disk_bytes": disk, "memory_bytes": memory, "seconds": seconds}
        show.print_json({"counts": counts, "totals": totals, "failed": failed, "volumes": planned})
    else:
        rows = [(v["name"], v["status"], v["windows"], _mib(v["memory_bytes"]), _mib(v["disk_bytes"])) for v in planned]
        show.table(("name", "status", "windows", "memory MiB", "disk MiB"), rows, right=("windows", *_SIZES))
        show.line(f"\nvolumes  {', '.join(f'{count} {name}' for name, count in counts.items())}")
        show.line(f"disk     at most {_mib(disk)} MiB before compression")
        show.line(f"memory   about {_mib(memory)} MiB, for the largest")
        if seconds is not None:
            show.line(f"time     about {show.duration(seconds)}, judged by the volumes that are done")
        show.line("Nothing was scanned.")
    if failed:
        raise typer.Exit(1)


def _costs(plan: "ScanPlan") -> dict[str, Any]:
    return {
        "windows": math.prod(plan.grid.shape),
        "memory_bytes": plan.memory_bytes(),
        "disk_bytes": plan.disk_bytes(),
        "warnings": list(plan.preflight.warnings),
    }


def _mib(size: float) -> str:
    return f"{size / 2**20:,.0f}"

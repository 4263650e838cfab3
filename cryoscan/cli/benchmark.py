"""`cryoscan benchmark`: run a benchmark and print its tables."""

import json
from pathlib import Path
from typing import Annotated

import typer


def benchmark(
    config: Annotated[Path, typer.Argument(help="One of configs/benchmark/*.yaml.")],
    data: Annotated[
        Path | None,
        typer.Option(envvar="CRYOSCAN_DATA", help="Data the DateDB was built from: structures/, labels/, maps/ …"),
    ] = None,
    queries: Annotated[
        Path | None, typer.Option(help="Folder of the same layout to ask for instead of the data.")
    ] = None,
    datedb: Annotated[Path | None, typer.Option(help="DateDB to search; the one that is shipped by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Measure how well domains are named, on your data or ours, and print tables that can be made again."""
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

    from cryoscan.benchmark import BenchmarkConfig, BenchmarkResult, run_benchmark
    from cryoscan.datedb import open_datedb
    from cryoscan.models import InvariantEmbedder

    settings = BenchmarkConfig.read(config)
    db = open_datedb(datedb)
    embedder = InvariantEmbedder(float(db.embedder["voxel_size_A"]))
    result = None
    with Progress(console=Console(stderr=True)) as progress:
        tasks: dict[str, object] = {}
        for event in run_benchmark(settings, data=data, queries=queries, datedb=db, embedder=embedder):
            if isinstance(event, BenchmarkResult):
                result = event
                continue
            if event.stage not in tasks:
                tasks[event.stage] = progress.add_task(event.stage, total=event.total)
            progress.update(tasks[event.stage], completed=event.done)  # type: ignore[arg-type]
    assert result is not None
    if as_json:
        print(json.dumps(result.to_json(), ensure_ascii=False))
        return
    console = Console()
    origin = result.provenance
    console.print(f"cryoscan {origin.version}, {origin.time}, {dict(origin.inputs)}, {dict(origin.config)}")
    for table in result.tables:
        shown = Table(*table.columns, title=table.title)
        for row in table.rows:
            shown.add_row(*row)
        console.print(shown)
    for note in result.notes:
        console.print(f"Note: {note}")

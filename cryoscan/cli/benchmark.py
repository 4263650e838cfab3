"""`cryoscan benchmark`: comparison tables that anyone can make again."""

from pathlib import Path
from typing import Annotated

import typer

from cryoscan.cli import options as o
from cryoscan.cli import show


def benchmark(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="YAML file that says what is asked.", show_default=False)
    ],
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="FOLDER", help="Data the database was built from.", show_default=False),
    ] = None,
    queries: Annotated[
        Path | None, typer.Option("--queries", metavar="FOLDER", help="Data to ask for instead.", show_default=False)
    ] = None,
    datedb: o.DateDBPath = None,
    as_json: o.Json = False,
) -> None:
    """Measure how often domains and regions of real maps are named rightly.

    Example: cryoscan benchmark configs/benchmark/smoke.yaml --data FOLDER
    """
    from cryoscan.benchmark import BenchmarkConfig, BenchmarkResult, run_benchmark
    from cryoscan.datedb import open_datedb
    from cryoscan.datedb.build import embedder_for

    settings = BenchmarkConfig.read(config)
    db = open_datedb(datedb)
    events = run_benchmark(settings, data=data, queries=queries, datedb=db, embedder=embedder_for(db))
    result = show.to_the_end(events, "windows embedded")
    assert isinstance(result, BenchmarkResult)
    if as_json:
        show.print_json(result.to_json())
        return
    show.line(result.origin)
    for table in result.tables:
        show.line(f"\n{table.title}")
        show.table(table.columns, table.rows)
    for note in result.notes:
        show.note(note)

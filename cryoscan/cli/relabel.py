"""`cryoscan relabel`: other thresholds or another DateDB for a finished scan, without scanning again."""

from pathlib import Path
from typing import Annotated, Any

import typer

from cryoscan.cli import options as o
from cryoscan.cli import show


def relabel(
    path: Annotated[Path, typer.Argument(metavar="NAME.scan", help="Folder of a finished scan.", show_default=False)],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="NEW.scan", help="Leave the scan, write another.", show_default=False),
    ] = None,
    datedb: o.DateDBPath = None,
    min_score: Annotated[
        float | None, typer.Option("--min-score", help="Cosine from which on a place is named.", show_default=False)
    ] = None,
    min_confidence: Annotated[
        float | None,
        typer.Option("--min-confidence", help="Probability of being right from which on.", show_default=False),
    ] = None,
    min_distance: Annotated[
        float | None, typer.Option("--min-distance", help="Å between hits.", show_default=False)
    ] = None,
    false_positive_rate: Annotated[
        float | None,
        typer.Option("--false-positive-rate", help="Share of noise regions that may pass.", show_default=False),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option("--recipe", metavar="YAML", help="Thresholds that were saved in the viewer.", show_default=False),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace NEW.scan.")] = False,
    as_json: o.Json = False,
) -> None:
    """Give the places of a finished scan names again.

    Example: cryoscan relabel tomogram.scan --min-confidence 0.8 -o strict.scan
    """
    from cryoscan.batch import read_recipe
    from cryoscan.datedb import open_datedb
    from cryoscan.datedb.build import embedder_for
    from cryoscan.scan import ScanFinished, open_scan, relabel

    given = {
        "min_score": min_score,
        "min_confidence": min_confidence,
        "min_distance_A": min_distance,
        "false_positive_rate": false_positive_rate,
    }
    settings: dict[str, Any] = {} if recipe is None else read_recipe(recipe)
    settings |= {key: value for key, value in given.items() if value is not None}
    own = open_scan(path).manifest.get("datedb")
    db = open_datedb(datedb if datedb is not None or own is None else Path(own))
    events = relabel(path, datedb=db, embedder=embedder_for(db), settings=settings, output=output, overwrite=overwrite)
    last = show.to_the_end(events, "places named again")
    assert isinstance(last, ScanFinished)
    summary = last.result.summary
    if as_json:
        show.print_json({"output": str(last.result.path), **summary})
    else:
        show.line(f"{last.result.path}: {summary['verdict']}")

"""The one way to run any benchmark: which folder it reads and what its result says of its origin."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from cryoscan.benchmark.calibration import run_calibration
from cryoscan.benchmark.cases import run_cases
from cryoscan.benchmark.conditions import run_conditions
from cryoscan.benchmark.config import BenchmarkConfig
from cryoscan.benchmark.cryodomain import run_cryodomain
from cryoscan.benchmark.enhancement import run_enhance
from cryoscan.benchmark.mode2 import run_mode2
from cryoscan.benchmark.real_maps import run_real_maps
from cryoscan.benchmark.result import BenchmarkProgress, BenchmarkResult
from cryoscan.benchmark.retrieval import run_retrieval
from cryoscan.benchmark.scaling import run_scaling
from cryoscan.datedb import DateDB
from cryoscan.embedding import Embedder
from cryoscan.errors import MissingFileError
from cryoscan.provenance import Provenance, fingerprint_file


def run_benchmark(
    config: BenchmarkConfig, *, data: Path | None, queries: Path | None, datedb: DateDB, embedder: Embedder
) -> Iterator[BenchmarkProgress | BenchmarkResult]:
    """Run a benchmark; see the package docstring for what the folders hold.

    Parameters
    ----------
    config : BenchmarkConfig
    data : Path, optional
        The data the DateDB was built from. Gives the sequences by which relatives of a query
        are found and, without `queries`, the queries.
    queries : Path, optional
        Data to ask for instead.
    datedb : DateDB
    embedder : Embedder
        For the queries; must belong to the DateDB.

    Yields
    ------
    BenchmarkProgress, and at the end BenchmarkResult

    Raises
    ------
    MissingFileError
        If no folder is given, or it lacks what the benchmark needs.
    MismatchError
        If the DateDB was written by another embedder.
    """
    if config.kind == "scaling":
        yield from run_scaling(config)
        return
    if config.kind == "cryodomain":
        yield from run_cryodomain(config)
        return
    datedb.require(embedder)
    for folder in (data, queries):
        if folder is not None and not folder.is_dir():
            raise MissingFileError(
                "expected a folder of data", got=f"no such folder: {folder}", hint="Check the spelling of the path."
            )
    asked = queries or data
    if asked is None:
        raise MissingFileError(
            f"expected a folder of data for the benchmark '{config.kind}'",
            got="none",
            hint="Give --data (structures/ and labels/, or maps/ and maps_models/), or --queries.",
        )
    if config.kind == "enhance":
        events = run_enhance(config, asked, data=data, datedb=datedb, embedder=embedder)
    elif config.kind == "cases":
        events = run_cases(config, asked, data=data, datedb=datedb, embedder=embedder)
    elif config.kind == "mode2":
        events = run_mode2(config, asked, datedb=datedb, embedder=embedder)
    elif config.kind == "conditions":
        events = run_conditions(config, asked, datedb=datedb, embedder=embedder)
    elif config.kind == "real_maps":
        events = run_real_maps(config, asked, datedb=datedb, embedder=embedder)
    elif config.kind == "calibration":
        events = run_calibration(config, asked, datedb=datedb, embedder=embedder)
    else:
        events = run_retrieval(config, asked, data=data, datedb=datedb, embedder=embedder)
    for event in events:
        if isinstance(event, BenchmarkResult):
            yield replace(event, provenance=_provenance(config, asked, datedb))
        else:
            yield event


def _provenance(config: BenchmarkConfig, asked: Path, datedb: DateDB) -> Provenance:
    return Provenance(
        f"cryoscan benchmark, kind {config.kind}",
        config=config.model_dump(mode="json"),
        inputs={"datedb": datedb.fingerprint, asked.name: fingerprint_file(asked)},
        seed=config.seed,
    )

"""Domains as they are met: with neighbours, badly cut out, incomplete. Each is to be found among all entries."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from cryoscan.benchmark.config import BenchmarkConfig
from cryoscan.benchmark.ranking import TOPS, best_by_type
from cryoscan.benchmark.result import BenchmarkProgress, BenchmarkResult, Table, percent
from cryoscan.datedb import DateDB
from cryoscan.datedb.build import closer_look
from cryoscan.embedding import Embedder
from cryoscan.errors import FormatError
from cryoscan.metrics import top_k, wilson_interval
from cryoscan.train.conditions import CONDITIONS, ViewConfig
from cryoscan.train.library import AtomLibrary
from cryoscan.train.split import read_library
from cryoscan.train.views import simulate_views

_LEFT_OUT = ("clean_4.5-10A", "tomogram")  # a mixture; and what no bank resolves


def asked_conditions() -> Mapping[str, ViewConfig]:
    """Those that towers are watched under, and the cut out ones once more about the middle of what is visible."""
    plain = {name: config for name, config in CONDITIONS.items() if name not in _LEFT_OUT}
    again = ("missing_30", "neighbours_sphere", "hard")
    return plain | {f"{name}_recentred": replace(plain[name], centred=1.0) for name in again}


def run_conditions(
    config: BenchmarkConfig, asked: Path, *, datedb: DateDB, embedder: Embedder
) -> Iterator[BenchmarkProgress | BenchmarkResult]:
    """Ask for the held-out CATH domains of a data folder under fixed conditions; see `run_benchmark`.

    The domain itself is in the DateDB: its type counts as found through any of its entries.
    Views show the middle of the whole domain to 2 Å along each axis, unless their name says
    that they were recentred.
    """
    library, _ = read_library(asked)
    anchors, entries = _in_both(library, datedb, config.n_queries)
    by_shape, shape_embedder = closer_look(datedb, embedder)
    mine = np.array([entry.scheme == "CATH" for entry in datedb.entries])
    names = sorted({entry.type for entry in datedb.entries if entry.scheme == "CATH"})
    place = {name: index for index, name in enumerate(names)}
    owners = np.array([place[entry.type] for entry in datedb.entries if entry.scheme == "CATH"])
    truth = np.array([place[datedb.entries[index].type] for index in entries])
    rng = torch.Generator().manual_seed(config.seed)
    numbers: dict[str, float | int] = {}
    rows: list[tuple[str, ...]] = []
    conditions = asked_conditions()
    for done, (condition, how) in enumerate(conditions.items()):
        yield BenchmarkProgress(condition, done, len(conditions))
        windows = simulate_views(
            library, anchors, config=how, rng=rng, window=embedder.window, voxel_size=embedder.voxel_size
        ).density_BZYX.numpy()
        resolution = how.resolution_A[1]
        found = {"power spectrum": datedb.similarities(embedder.embed(windows), resolution=resolution)}
        if by_shape.matched:
            vectors = shape_embedder.embed(windows)
            found["shape"] = by_shape.similarities(vectors, resolution=resolution)
            seen = [by_shape.seen(vector[None], resolution=resolution, crowded=True) for vector in vectors]
            found["shape, crowded"] = np.stack(seen)
        for way, similarity in found.items():
            by_type = best_by_type(similarity[:, mine], owners, len(names))
            own = by_type[np.arange(len(truth)), truth]
            ranks = (by_type >= own[:, None]).sum(axis=1)
            key = f"conditions.{condition}.{way.replace(', ', '_').replace(' ', '_')}"
            for k in TOPS:
                numbers[f"{key}.top{k}"] = top_k(ranks, k)
            low, high = wilson_interval(int((ranks <= 1).sum()), len(ranks))
            numbers |= {f"{key}.top1_low": low, f"{key}.top1_high": high, f"{key}.n": len(ranks)}
            interval = f" ({percent(low)}–{percent(high)})"
            tops = [percent(numbers[f"{key}.top{k}"]) for k in TOPS]
            rows.append((condition, way, tops[0] + interval, *tops[1:]))
    chance = [percent(min(1.0, k / len(names))) for k in TOPS]
    rows.append(("any", "chance", *chance))
    title = f"{len(truth)} held-out domains among {len(names)} types of CATH"
    table = Table(title, ("condition", "compared by", "Top-1 (95 %)", "Top-5", "Top-10"), tuple(rows))
    yield BenchmarkResult(numbers, (table,), ())


def _in_both(library: AtomLibrary, datedb: DateDB, most: int) -> tuple[torch.Tensor, list[int]]:
    """Held-out anchors that are entries of CATH too, evenly chosen, and these entries."""
    place = {entry.id: index for index, entry in enumerate(datedb.entries) if entry.scheme == "CATH"}
    both = [
        (int(a), place[library.anchors[int(a)].id])
        for a in library.anchors_of("test")
        if library.anchors[int(a)].id in place
    ]
    if not both:
        raise FormatError(
            "expected held-out domains that are in the DateDB",
            got="none",
            hint="Build the DateDB from the same data.",
        )
    chosen = [both[i] for i in np.unique(np.linspace(0, len(both) - 1, min(most, len(both))).astype(int))]
    return torch.tensor([anchor for anchor, _ in chosen]), [entry for _, entry in chosen]

"""How often a first candidate is right, given its cosine and its lead: fitted on one half, checked on the other."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from scipy.optimize import minimize

from cryoscan.benchmark.config import BenchmarkConfig
from cryoscan.benchmark.folders import open_chains, read_tables
from cryoscan.benchmark.ranking import best_by_type
from cryoscan.benchmark.result import BenchmarkProgress, BenchmarkResult, Table, percent
from cryoscan.benchmark.retrieval import choose_queries, query_window, seeded
from cryoscan.datedb import DateDB
from cryoscan.datedb.build import closer_look
from cryoscan.datedb.store import COARSER, calibrated
from cryoscan.embedding import Embedder
from cryoscan.metrics import wilson_interval

_BATCH = 64
_UNKNOWN = (0.0, 0.0, 0.0)
_EDGES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


def run_calibration(
    config: BenchmarkConfig, asked: Path, *, datedb: DateDB, embedder: Embedder
) -> Iterator[BenchmarkProgress | BenchmarkResult]:
    """Fit and check the confidence of a DateDB's answers.

    Every query (CATH) is asked three times: without its own PDB entry, so that near
    relatives are there; without its sequence cluster as well, so that only remote ones are;
    and without its type, so that every answer is wrong. Their equal shares are the prior.
    For each level a logistic regression predicts from log(1 - cosine) and log(margin) of the
    first candidate whether its type is right. It is fitted on the ``dev`` half of the
    clusters and checked on the ``test`` half.
    """
    datedb, embedder = closer_look(datedb, embedder)
    datedb = replace(datedb, calibration=dict.fromkeys((*datedb.banks, *COARSER), _UNKNOWN))  # so it has all levels
    store = open_chains(asked)
    rows = [row for row in read_tables(asked).rows if row.scheme == "CATH"]
    halves = {
        half: choose_queries(rows, datedb, config.model_copy(update={"half": half}), largest_types=config.cath_types)
        for half in ("dev", "test")
    }
    entries = [entry for entry in datedb.entries if entry.scheme == "CATH"]
    mine = np.array([entry.scheme == "CATH" for entry in datedb.entries])
    types = sorted({entry.type for entry in entries})
    owners = np.array([types.index(entry.type) for entry in entries])
    pdb, cluster = np.array([e.pdb for e in entries]), np.array([e.cluster for e in entries])
    total = len(config.resolutions_A) * sum(len(half) for half in halves.values())
    done = 0
    found: dict[tuple[str, float], list[tuple[float, float, bool]]] = {}
    for half, queries in halves.items():
        for resolution in config.resolutions_A:
            bank = datedb.bank_for(resolution)
            answers = found.setdefault((half, bank), [])
            for start in range(0, len(queries), _BATCH):
                part = queries[start : start + _BATCH]
                windows = [
                    query_window(
                        store.domain(row),
                        embedder,
                        resolution=resolution,
                        noise=config.noise,
                        shift=config.shift_A,
                        rng=seeded(row.id, resolution, config),
                        bank=datedb.blur_for(resolution),
                    )
                    for row in part
                ]
                similarity = datedb.similarities(embedder.embed(np.stack(windows)), resolution=resolution)[:, mine]
                for row, values in zip(part, similarity, strict=True):
                    truth = types.index(row.type)
                    own = pdb == row.pdb
                    for gone in (own, own | (cluster == row.clu40), own | (owners == truth)):
                        best = best_by_type(np.where(gone, -np.inf, values)[None], owners, len(types))[0]
                        first, second = np.argsort(-best, kind="stable")[:2]
                        answers.append((float(best[first]), float(best[first] - best[second]), bool(first == truth)))
                done += len(part)
                yield BenchmarkProgress(f"{half} half at {resolution:g} Å", done, total)
    numbers: dict[str, object] = {}
    tables = []
    for bank in datedb.levels:
        if not found.get(("dev", bank)) or not found.get(("test", bank)):
            continue
        fit = _fit(np.array(found["dev", bank], float))
        check = np.array(found["test", bank], float)
        said = np.array([calibrated(cosine, margin, fit) for cosine, margin, _ in check])
        right = check[:, 2] > 0
        key = f"calibration.{bank:g}A"
        numbers |= {
            f"{key}.fit": [round(value, 4) for value in fit],
            f"{key}.n": len(check),
            f"{key}.brier": float(np.mean((said - right) ** 2)),
            f"{key}.brier_constant": float(right.mean() * (1 - right.mean())),
            f"{key}.named_share": float((said >= 0.5).mean()),
            f"{key}.named_right": float(right[said >= 0.5].mean()) if (said >= 0.5).any() else float("nan"),
        }
        tables.append(_reliability(bank, said, right))
    note = (
        "A third of the questions has no right answer in the database, by design; real maps are noisier than these "
        "simulations, so that on them the confidence errs on the low side."
    )
    yield BenchmarkResult(numbers, tuple(tables), (note,))


def _fit(answers: np.ndarray) -> tuple[float, float, float]:
    """Constant, weight of log(1 - cosine) and weight of log(margin), by maximum likelihood."""
    inputs = np.c_[np.ones(len(answers)), np.log(1.0001 - answers[:, 0]), np.log(answers[:, 1] + 1e-4)]
    sign = 2 * answers[:, 2] - 1
    constant, cosine, margin = minimize(lambda w: np.logaddexp(0, -sign * (inputs @ w)).mean(), np.zeros(3)).x
    return float(constant), float(cosine), float(margin)


def _reliability(bank: float, said: np.ndarray, right: np.ndarray) -> Table:
    rows = []
    for low, high in pairwise(_EDGES):
        inside = (said >= low) & ((said < high) | (high == 1.0))
        if inside.any():
            n, k = int(inside.sum()), int(right[inside].sum())
            bounds = wilson_interval(k, n)
            interval = f"{percent(k / n)} ({percent(bounds[0])}–{percent(bounds[1])})"
            rows.append((f"{low:.2f}–{high:.2f}", str(n), percent(float(said[inside].mean())), interval))
    return Table(
        f"Confidence at the {bank:g} Å level, test half",
        ("confidence", "answers", "said %", "right % (95 %)"),
        tuple(rows),
    )

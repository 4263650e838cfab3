"""How often a first candidate is right, given its cosine and its lead: fitted on one half, checked on the other."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize

from cryoscan.benchmark.config import BenchmarkConfig
from cryoscan.benchmark.folders import open_chains, read_tables
from cryoscan.benchmark.ranking import best_by_type
from cryoscan.benchmark.result import BenchmarkProgress, BenchmarkResult, Table, percent
from cryoscan.benchmark.retrieval import choose_queries, query_window, seeded
from cryoscan.datedb import DateDB
from cryoscan.datedb.build import closer_look
from cryoscan.datedb.held_out import digest
from cryoscan.datedb.store import COARSER, Fit, calibrated
from cryoscan.embedding import Embedder
from cryoscan.metrics import wilson_interval
from cryoscan.structure import Structure

_BATCH = 64
_UNKNOWN = (0.0, 0.0, 0.0, 0.0)
_QUESTIONS = ("near relatives", "remote relatives only", "no relative", "no relative, of which a piece is asked for")
_EDGES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


class Answer(NamedTuple):
    """A first candidate: its cosine, lead and length, whether it is right, and which question it answers."""

    cosine: float
    margin: float
    length: float
    right: bool
    question: int


def run_calibration(
    config: BenchmarkConfig, asked: Path, *, datedb: DateDB, embedder: Embedder
) -> Iterator[BenchmarkProgress | BenchmarkResult]:
    """Fit and check the confidence of a DateDB's answers.

    Every query (CATH) is asked four times: without its own PDB entry, so that near
    relatives are there; without its sequence cluster as well, so that only remote ones are;
    without its type, so that every answer is wrong; and so once more with a piece of it, as a
    segmentation leaves pieces that are no domain (`_piece`). Their equal shares are the prior.
    For each level a logistic regression predicts from log(1 - cosine), log(margin) and the
    log of the length of the first candidate whether its type is right. It is fitted on the
    ``dev`` half of the clusters and checked on the ``test`` half.
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
    lengths = datedb.type_lengths[[datedb.types.index(("CATH", type_)) for type_ in types]]
    pdb, cluster = np.array([e.pdb for e in entries]), np.array([e.cluster for e in entries])

    def answer(values: np.ndarray, gone: np.ndarray, truth: int, question: int) -> Answer:
        best = best_by_type(np.where(gone, -np.inf, values)[None], owners, len(types))[0]
        first, second = np.argsort(-best, kind="stable")[:2]
        return Answer(best[first], best[first] - best[second], lengths[first], first == truth, question)

    total = len(config.resolutions_A) * sum(len(half) for half in halves.values())
    done = 0
    found: dict[tuple[str, float], list[Answer]] = {}
    for half, queries in halves.items():
        for resolution in config.resolutions_A:
            answers = found.setdefault((half, datedb.bank_for(resolution)), [])
            for start in range(0, len(queries), _BATCH):
                part = queries[start : start + _BATCH]
                windows = []
                for row in part:
                    whole, rng = store.domain(row), seeded(row.id, resolution, config)
                    windows += [
                        query_window(
                            structure,
                            embedder,
                            resolution=resolution,
                            noise=config.noise,
                            shift=config.shift_A,
                            rng=rng,
                            bank=datedb.blur_for(resolution),
                        )
                        for structure in (whole, _piece(whole, np.random.default_rng([config.seed, digest(row.id)])))
                    ]
                similarity = datedb.similarities(embedder.embed(np.stack(windows)), resolution=resolution)[:, mine]
                for row, (of_whole, of_piece) in zip(part, similarity.reshape(len(part), 2, -1), strict=True):
                    truth = types.index(row.type)
                    own = pdb == row.pdb
                    remote, strangers = own | (cluster == row.clu40), own | (owners == truth)
                    asked_with = ((of_whole, own), (of_whole, remote), (of_whole, strangers), (of_piece, strangers))
                    answers += [answer(*one, truth, number) for number, one in enumerate(asked_with)]
                done += len(part)
                yield BenchmarkProgress(f"{half} half at {resolution:g} Å", done, total)
    numbers: dict[str, object] = {}
    tables = []
    for bank in datedb.levels:
        if not found.get(("dev", bank)) or not found.get(("test", bank)):
            continue
        fit = _fit(found["dev", bank])
        cosine, margin, length, right, question = _columns(found["test", bank])
        said = calibrated(cosine, margin, length, fit)
        key = f"calibration.{bank:g}A"
        numbers |= {
            f"{key}.fit": [round(value, 4) for value in fit],
            f"{key}.n": len(said),
            f"{key}.brier": float(np.mean((said - right) ** 2)),
            f"{key}.brier_constant": float(right.mean() * (1 - right.mean())),
            f"{key}.named_share": float((said >= 0.5).mean()),
            f"{key}.named_right": float(right[said >= 0.5].mean()) if (said >= 0.5).any() else float("nan"),
        }
        tables += [_reliability(bank, said, right), _named(bank, said, right, question)]
    note = (
        "Half of the questions have no right answer in the database, by design; real maps are noisier than these "
        "simulations, so that on them the confidence errs on the low side."
    )
    yield BenchmarkResult(numbers, tuple(tables), (note,))


def _piece(structure: Structure, rng: np.random.Generator) -> Structure:
    """What lies on one side of a plane through the middle: a half, more or less."""
    protein = structure.protein()
    side = (protein.positions - protein.positions.mean(axis=0)) @ rng.normal(size=3)
    residues = np.unique(protein.residues)
    mean = np.bincount(protein.residues, side) / np.maximum(np.bincount(protein.residues), 1)
    return protein.select(np.isin(protein.residues, residues[mean[residues] > 0]))


def _columns(answers: "list[Answer]") -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    cosine, margin, length, right, question = (np.array(column) for column in zip(*answers, strict=True))
    return cosine, margin, length, right, question


def _fit(answers: "list[Answer]") -> Fit:
    """Constant and weights of log(1 - cosine), log(margin) and log(length), by maximum likelihood."""
    cosine, margin, length, right, _ = _columns(answers)
    inputs = np.c_[np.ones(len(right)), np.log(1.0001 - cosine), np.log(margin + 1e-4), np.log(length / 100)]
    sign = np.where(right, 1, -1)
    constant, *weights = minimize(lambda w: np.logaddexp(0, -sign * (inputs @ w)).mean(), np.zeros(4)).x
    return float(constant), float(weights[0]), float(weights[1]), float(weights[2])


def _named(bank: float, said: np.ndarray, right: np.ndarray, question: np.ndarray) -> Table:
    rows = []
    for number, name in enumerate(_QUESTIONS):
        mine = question == number
        named = said[mine] >= 0.5
        shares = named.mean(), (named & right[mine]).mean(), (named & ~right[mine]).mean()
        rows.append((name, str(int(mine.sum())), *map(percent, shares)))
    return Table(
        f"What is named at the {bank:g} Å level, test half",
        ("in the database", "answers", "named %", "rightly %", "wrongly %"),
        tuple(rows),
    )


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

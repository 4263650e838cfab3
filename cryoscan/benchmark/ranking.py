"""From similarities to the numbers of a retrieval table: ranks of types, and what chance alone would give."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import comb

import numpy as np

from cryoscan.datedb import levels
from cryoscan.metrics import auroc, average_precision, mean_reciprocal_rank, top_k, wilson_interval

TOPS = (1, 5, 10)


@dataclass(frozen=True, eq=False)
class Ranking:
    """Scores of all types for all queries of one scheme.

    Parameters
    ----------
    similarity : float array, `q entries`
        −infinity where an entry does not count for a query.
    owners : int array, `entries`
        Type of each entry, as an index into `types`.
    types : sequence of str
    truth : int array, `q`
        True type, −1 if it is not among `types`.
    scheme : str
    """

    similarity: np.ndarray
    owners: np.ndarray
    types: Sequence[str]
    truth: np.ndarray
    scheme: str

    @cached_property
    def type_scores(self) -> np.ndarray:
        """Similarity of the best entry of each type, `q types`; −infinity where none counts."""
        return best_by_type(self.similarity, self.owners, len(self.types))

    @cached_property
    def possible(self) -> np.ndarray:
        """Queries of whose type an entry is left, `q` bool."""
        own = self.type_scores[np.arange(len(self.truth)), self.truth]
        return np.asarray((self.truth >= 0) & np.isfinite(own))

    def numbers(self, kept: np.ndarray) -> dict[str, float | int]:
        """All numbers over the types in `kept` (indices, all true types of possible queries among them)."""
        rows = np.flatnonzero(self.possible)
        truth = self.truth[rows]
        scores = self.type_scores[np.ix_(rows, kept)]
        own = self.type_scores[rows, truth]
        # Ties count against the query: an empty window is equally similar to everything.
        ranks = (scores >= own[:, None]).sum(axis=1) if len(rows) else np.zeros(0, np.int64)
        counts = np.bincount(self.owners, minlength=len(self.types))
        populous = kept[np.argsort(-counts[kept], kind="stable")]
        found: dict[str, float | int] = {
            "n": len(rows),
            "types": len(kept),
            "impossible": len(self.truth) - len(rows),
        }
        for k in TOPS:
            found[f"top{k}"] = top_k(ranks, k)
            low, high = wilson_interval(int((ranks <= k).sum()), len(rows))
            found |= {f"top{k}_low": low, f"top{k}_high": high}
            found[f"chance_top{k}"] = min(1.0, k / len(kept))
            found[f"majority_top{k}"] = float(np.isin(truth, populous[:k]).mean()) if len(rows) else float("nan")
            found[f"top{k}_all_queries"] = float((ranks <= k).sum()) / max(len(self.truth), 1)
        hit = ranks <= 1
        found["top1_macro"] = _mean([float(hit[truth == type_].mean()) for type_ in np.unique(truth)])
        found["mrr"] = mean_reciprocal_rank(ranks)
        precisions = self._average_precisions(rows, kept)
        found["map"] = _mean(precisions)
        found["map_macro"] = _mean([float(precisions[truth == type_].mean()) for type_ in np.unique(truth)])
        finite = np.isfinite(scores)
        found["auroc"] = auroc(scores[finite], (kept[None] == truth[:, None])[finite])
        return found | self._hierarchy(rows, kept)

    def _average_precisions(self, rows: np.ndarray, kept: np.ndarray) -> np.ndarray:
        """Average precision over all entries, not one per type (CryoDomain's mAP is over structures)."""
        among = np.isin(self.owners, kept)
        found = []
        for row in rows:
            similarity = np.where(among, self.similarity[row], -np.inf)
            order = np.argsort(-similarity, kind="stable")
            order = order[np.isfinite(similarity[order])]
            found.append(average_precision(self.owners[order] == self.truth[row]))
        return np.array(found, np.float64)

    def _hierarchy(self, rows: np.ndarray, kept: np.ndarray) -> dict[str, float]:
        """Queries of which one of the first five types shares the first 1 … 4 levels, and the same by chance."""
        top = kept[np.argsort(-self.type_scores[np.ix_(rows, kept)], axis=1, kind="stable")[:, :5]]
        codes = [levels(self.scheme, type_) for type_ in self.types]
        found = {}
        for level in range(1, 5):
            names = np.array([code[min(level, len(code)) - 1] for code in codes])
            truth = names[self.truth[rows]]
            hits = (names[top] == truth[:, None]).any(axis=1) if len(rows) else np.zeros(0, bool)
            siblings = [int((names[kept] == name).sum()) for name in truth]
            missed = [comb(len(kept) - m, 5) / max(comb(len(kept), 5), 1) for m in siblings]
            found[f"top5_level{level}"] = _mean(hits)
            found[f"chance_top5_level{level}"] = 1 - _mean(missed)
        return found


def best_by_type(similarity: np.ndarray, owners: np.ndarray, count: int) -> np.ndarray:
    """Largest similarity among the entries of each of `count` types, `q types`; every type has an entry."""
    order = np.argsort(owners, kind="stable")
    starts = np.searchsorted(owners[order], np.arange(count))
    return np.asarray(np.maximum.reduceat(similarity[:, order], starts, axis=1))


def types_kept(truth: np.ndarray, counts: np.ndarray, *, size: int, others: np.ndarray) -> np.ndarray:
    """The queries' types and the most populous of `others` up to `size` types; all of the queries' if they are more."""
    own = np.unique(truth[truth >= 0])
    rest = np.setdiff1d(others, own)
    rest = rest[np.argsort(-counts[rest], kind="stable")]
    return np.sort(np.concatenate([own, rest[: max(0, size - len(own))]])).astype(np.int64)


def _mean(values: Sequence[float] | np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else float("nan")

"""What an embedder finds of domains that were held out of training, under named conditions, and signs of collapse."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cryoscan.embedding import Embedder, unit_rows
from cryoscan.metrics import mean_reciprocal_rank, top_k, wilson_interval
from cryoscan.train.conditions import CONDITIONS, ViewConfig
from cryoscan.train.kinship import TYPE, Kinship
from cryoscan.train.library import Anchor, AtomLibrary, Split
from cryoscan.train.views import simulate_views
from cryoscan.units import Angstrom

TOPS = (1, 5, 10)
_BATCH = 128
_BANK_A: tuple[Angstrom, ...] = (6.0, 10.0)
_NEVER = -2.0  # below every cosine


@dataclass(frozen=True, slots=True)
class Outcome:
    """How often one embedder found the right one under one condition.

    Parameters
    ----------
    embedder, condition : str
    question : str
        ``type``: another domain of the type, of another sequence cluster, among those of all
        types that were trained on, each type once. ``domain``: the domain itself among all.
    queries, choices : int
        Views that could be answered, and types or domains to choose from.
    found : tuple of int
        Queries whose right answer was among the first 1, 5, 10.
    mrr : float
        Mean reciprocal rank.
    """

    embedder: str
    condition: str
    question: str
    queries: int
    choices: int
    found: tuple[int, ...]
    mrr: float

    def row(self) -> dict[str, Any]:
        """For tables: fractions with Wilson's intervals at 95 %, and what chance would give."""
        row = {name: value for name, value in asdict(self).items() if name != "found"}
        for top, found in zip(TOPS, self.found, strict=True):
            low, high = wilson_interval(found, self.queries)
            row |= {f"top{top}": found / max(self.queries, 1), f"top{top}_low": low, f"top{top}_high": high}
            row[f"chance_top{top}"] = min(1.0, top / max(self.choices, 1))
        return row


def evaluate(
    embedders: Mapping[str, Embedder],
    library: AtomLibrary,
    *,
    split: Split = "validation",
    conditions: Mapping[str, ViewConfig] = CONDITIONS,
    views: int = 2,
    largest: int | None = None,
    seed: int = 0,
) -> list[Outcome]:
    """Ask for held-out domains in a bank of clean views, all embedders about the same views.

    The bank holds one clean view at 6 and one at 10 Å of every domain that was trained on and
    has a type, and of the held-out domains. The split lies between sequence clusters, so what
    is left of a type is no near relative. Views of one domain are no independent queries: the
    intervals are a little too narrow if `views` is more than 1.

    Parameters
    ----------
    embedders : mapping
        Name → embedder; windows and voxel sizes must agree.
    library : AtomLibrary
    split : str
        Choose settings on ``validation``; ask for ``test`` once, at the end.
    conditions : mapping
        Name → how the queries are made.
    views : int
        Of each held-out domain and condition.
    largest : int, optional
        Domains in the bank; those of the queries' types stay. A smaller bank is quicker and easier.
    seed : int
        Of all views.
    """
    asked = library.anchors_of(split)
    bank = _bank(library, asked, largest=largest, seed=seed)
    rng = torch.Generator(device=library.device).manual_seed(seed)
    clean = CONDITIONS["clean_6A"]
    banks = [
        _embedded(embedders, library, bank, replace(clean, resolution_A=(size, size)), rng=rng) for size in _BANK_A
    ]
    queries = asked.repeat(views)
    found: list[Outcome] = []
    for condition, config in conditions.items():
        vectors = _embedded(embedders, library, queries, config, rng=rng)
        for name in embedders:
            cosines = np.max([vectors[name] @ entries[name].T for entries in banks], axis=0)
            found += outcomes_of(
                name, condition, cosines, queries=queries, bank=bank, anchors=library.anchors, split=split
            )
    return found


def among_structures(
    name: str,
    condition: str,
    vectors: np.ndarray,
    structures: np.ndarray,
    *,
    queries: Tensor,
    anchors: Sequence[Anchor],
    split: Split,
) -> list[Outcome]:
    """Ask for held-out domains among the vectors of structures: of all typed ones of training, and of the held-out.

    Parameters
    ----------
    name, condition : str
        As of `Outcome`.
    vectors : float array, `q k`
        Of the queries; unit rows.
    structures : float array, `d k`
        Of all anchors; unit rows.
    queries : int64 tensor, `q`
        Anchor of each query, of `split`.
    anchors : sequence of Anchor
        All `d`.
    split : str
    """
    known = [i for i, anchor in enumerate(anchors) if anchor.split == "train" and anchor.types]
    asked = [i for i, anchor in enumerate(anchors) if anchor.split == split]
    bank = torch.tensor([*known, *asked], dtype=torch.int64)
    cosines = vectors @ structures[bank.numpy()].T
    return outcomes_of(name, condition, cosines, queries=queries, bank=bank, anchors=anchors, split=split)


def outcomes_of(
    name: str,
    condition: str,
    cosines: np.ndarray,
    *,
    queries: Tensor,
    bank: Tensor,
    anchors: Sequence[Anchor],
    split: Split,
) -> list[Outcome]:
    """Ranks of the domain itself among all, and of its type among those trained on; ties count against.

    Parameters
    ----------
    name, condition : str
        As of `Outcome`.
    cosines : float array, `q n`
        Of each query to each of the bank.
    queries, bank : int64 tensors, `q` and `n`
        Indices into `anchors`.
    anchors : sequence of Anchor
    split : str
        Of the queries.
    """
    kin = Kinship(anchors).depths(queries.cpu(), bank.cpu()).numpy()
    itself = np.where(kin > TYPE, cosines, _NEVER).max(axis=1)
    own = (cosines >= itself[:, None]).sum(axis=1)
    trained = np.array([anchors[index].split != split for index in bank.tolist()])
    names = [anchors[index].types for index in bank.tolist()]
    types = sorted({types[0] for types, is_trained in zip(names, trained, strict=True) if is_trained})
    place = {type_: index for index, type_ in enumerate(types)}
    entries = np.flatnonzero(trained)
    owners = np.array([place[names[entry][0]] for entry in entries])
    order = np.argsort(owners, kind="stable")
    starts = np.searchsorted(owners[order], np.arange(len(types)))
    by_type = np.maximum.reduceat(cosines[:, entries[order]], starts, axis=1)
    right = np.where((kin == TYPE) & trained, cosines, _NEVER).max(axis=1)
    possible = right > _NEVER
    ranks = (by_type[possible] >= right[possible, None]).sum(axis=1)
    return [
        Outcome(name, condition, question, len(found), choices, _counted(found), mean_reciprocal_rank(found))
        for question, found, choices in (("type", ranks, len(types)), ("domain", own, len(bank)))
    ]


def numbers_of(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Fractions by name, for a log: ``invariant/clean_6A/type/top10`` …"""
    return {
        f"{one.embedder}/{one.condition}/{one.question}/top{top}": found / max(one.queries, 1)
        for one in outcomes
        for top, found in zip(TOPS, one.found, strict=True)
        if top != TOPS[1]
    }


def modal_gap(vectors: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """How far the vectors of densities are from those of their structures, both `n k` as they leave the networks.

    Returns
    -------
    dict
        ``gap/raw``: mean over domains and components of the squared difference, which CryoDomain reports to fall from
        3.56 to 0.24 (fig. 6), and which depends on how long vectors are. ``gap/unit``: mean over domains of the squared
        distance of unit vectors, 2 − 2 cos; 2 if they have nothing to do with each other.
    """
    apart = unit_rows(vectors) - unit_rows(targets)
    return {"gap/raw": float(np.square(vectors - targets).mean()), "gap/unit": float(np.square(apart).sum(1).mean())}


def collapse(vectors: np.ndarray, *, neighbours: int = 10) -> dict[str, float]:
    """Signs that embeddings of different domains become alike.

    Parameters
    ----------
    vectors : float array, `n d`
        Of unit length, one for each domain.
    neighbours : int

    Returns
    -------
    dict
        ``spread``: standard deviation of a component, mean over components, times √d: 1 if all
        directions are alike, 0 after collapse; ``spread_min`` the least. ``rank``: exponential
        of the entropy of the singular values (Roy & Vetterli 2007, EUSIPCO). ``hubs``:
        skewness of how often each is among the nearest of others (Radovanović et al. 2010,
        JMLR 11, 2487).
    """
    n, dim = vectors.shape
    deviation = vectors.std(axis=0) * np.sqrt(dim)
    values = np.linalg.svd(vectors - vectors.mean(axis=0), compute_uv=False)
    share = values / max(values.sum(), 1e-12)
    share = share[share > 1e-12]
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, _NEVER)
    nearest = np.argpartition(-cosines, min(neighbours, n - 1) - 1, axis=1)[:, :neighbours]
    counts = np.bincount(nearest.ravel(), minlength=n).astype(np.float64)
    skewness = ((counts - counts.mean()) ** 3).mean() / max(counts.std(), 1e-12) ** 3
    return {
        "spread": float(deviation.mean()),
        "spread_min": float(deviation.min()),
        "rank": float(np.exp(-(share * np.log(share)).sum())),
        "hubs": float(skewness),
    }


# ---------------------------------------------------------------- private


def _bank(library: AtomLibrary, asked: Tensor, *, largest: int | None, seed: int) -> Tensor:
    """Anchors that can be found: the asked for, and typed ones of training, all or some of them."""
    trained = [int(index) for index in library.anchors_of("train") if library.anchors[int(index)].types]
    if largest is not None:
        wanted = {type_ for index in asked.tolist() for type_ in library.anchors[index].types}
        own = [index for index in trained if wanted & set(library.anchors[index].types)]
        rest = np.array(sorted(set(trained) - set(own)), np.int64)
        kept = np.random.default_rng(seed).permutation(rest)[: max(0, largest - len(own))]
        trained = sorted([*own, *kept.tolist()])
    return torch.cat([torch.tensor(trained, dtype=torch.int64, device=library.device), asked])


def _embedded(
    embedders: Mapping[str, Embedder],
    library: AtomLibrary,
    anchors: Tensor,
    config: ViewConfig,
    *,
    rng: torch.Generator,
) -> dict[str, np.ndarray]:
    """Vectors of one view of each anchor, from each embedder."""
    one = next(iter(embedders.values()))
    parts: dict[str, list[np.ndarray]] = {name: [] for name in embedders}
    for some in torch.split(anchors, _BATCH):
        drawn = simulate_views(library, some, config=config, rng=rng, window=one.window, voxel_size=one.voxel_size)
        windows = drawn.density_BZYX.cpu().numpy()
        for name, embedder in embedders.items():
            parts[name].append(embedder.embed(windows))
    return {name: np.concatenate(part) for name, part in parts.items()}


def _counted(ranks: np.ndarray) -> tuple[int, ...]:
    return tuple(round(top_k(ranks, top) * len(ranks)) for top in TOPS) if len(ranks) else (0,) * len(TOPS)

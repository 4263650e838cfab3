"""Training of what counts where shapes are compared, from relatives and strangers where they fit best.

Views of training domains ask a database. Of each, those entries that should be found and those strangers that are found
instead, and some at random, are laid over it as well as they can be; there only their products matter. A comparison is
learned from the products of all; then the views ask once more, by that comparison, as other strangers deceive it.
"""

import functools
import io
import itertools
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from cryoscan.models.checkpoint import save_network
from cryoscan.models.comparison import Comparison, ComparisonConfig
from cryoscan.models.matching import Matcher, surprise
from cryoscan.provenance import Provenance, write_atomically
from cryoscan.train.card import compose_card, fingerprint_line
from cryoscan.train.conditions import CONDITIONS
from cryoscan.train.folder import CARD, NetworkTrained, begun, fingerprint_library, library_of_run
from cryoscan.train.library import AtomLibrary
from cryoscan.train.loop import TrainEvent, generator
from cryoscan.train.objectives import Numbers
from cryoscan.train.views import simulate_views

if TYPE_CHECKING:  # reading YAML needs more than a machine that only trains has
    from cryoscan.datedb import DateDB
    from cryoscan.train.config import CompareTrainConfig

WEIGHTS = "comparison.safetensors"
_ALL = 10**6  # held-out domains of both halves
_REMOTE = {"clean_6A": 0.33, "clean_10A": 0.27}
"""Views by which relatives are looked for, and how often."""
_KNOWN = ("noise", "missing_30", "neighbours_no_mask", "neighbours_sphere", "neighbours_molecular_3A", "hard")
"""Views by which the domain itself and its like are looked for."""
_RELATIVES, _DECEIVERS, _OTHERS = 6, 84, 28
_AT_ONCE = 40  # queries of a file
_BATCH = 32
_LIMITS = """For shapes of two layers, density and helices less strands, on voxels of 2.5 Å. Learned from simulated
density."""


@dataclass(frozen=True, slots=True, eq=False)
class Overlaid:
    """A query and entries that lie over it.

    Parameters
    ----------
    products_NLKK : float16 Tensor
        Of the query's channels with those of the entries, of which the first `found` should be found.
    own_LKK : float32 Tensor
    theirs_NLKK : float16 Tensor
    found : int
    group : int
        Of the types; those of the last fifth are watched and not learned from.
    remote : bool
        Whether relatives are looked for, not the domain itself.
    """

    products_NLKK: Tensor
    own_LKK: Tensor
    theirs_NLKK: Tensor
    found: int
    group: int
    remote: bool


def train_comparison(
    config: "CompareTrainConfig",
    folder: Path | str,
    *,
    data: Path | str | None,
    until: int | None = None,
    device: str = "cpu",
) -> Iterator[TrainEvent | NetworkTrained]:
    """Train a comparison in a folder, or go on there.

    Parameters
    ----------
    config : CompareTrainConfig
    folder : Path
        Of the run: library, what was laid over each other so far, and at the end weights and model card.
    data : Path, optional
        Data folder; needed to begin.
    until : int, optional
        Stop after so many queries.
    device : str
        Where torch computes.

    Yields
    ------
    TrainEvent or NetworkTrained
        The last one of a whole run is `NetworkTrained`.

    Raises
    ------
    MismatchError
        If the folder holds a run with other settings or other data.
    MissingFileError
        If neither the folder has a library nor data are given.
    """
    from cryoscan.datedb import open_datedb
    from cryoscan.datedb.files import default_path

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    library = library_of_run(folder, data, validation=_ALL)
    datedb = open_datedb(None)
    provenance = begun(folder, config, fingerprint_library(library), datedb=default_path() / "shapes.npz")
    asking = _Asking(library, datedb, device=device)
    jobs = asking.choose(config)
    total, done = config.rounds * len(jobs), 0
    comparison, watched = Comparison(ComparisonConfig()), Numbers()
    everything: list[Overlaid] = []
    for turn in range(config.rounds):
        for first in range(0, len(jobs), _AT_ONCE):
            path = folder / f"overlaid-{turn}-{first // _AT_ONCE}.npz"
            if not path.exists():
                if until is not None and done >= until:
                    yield TrainEvent(done, total, {}, stopped=True)
                    return
                _write(path, asking.ask(jobs[first : first + _AT_ONCE], comparison, seed=(config.seed, turn)))
            everything += _read(path)
            done = turn * len(jobs) + min(first + _AT_ONCE, len(jobs))
            yield TrainEvent(done, total, {"queries": float(len(everything))})
        comparison, watched = learn(everything, config)
        yield TrainEvent(done, total, watched)
    save_network(comparison, folder / WEIGHTS, provenance=provenance)
    _write_card(folder / CARD, provenance, datedb.fingerprint, everything, watched)
    yield NetworkTrained(folder / WEIGHTS, folder / CARD, watched)


def learn(everything: Sequence[Overlaid], config: "CompareTrainConfig") -> tuple[Comparison, Numbers]:
    """A comparison by which what should be found comes first, and how often it does.

    Learned is the softmax over -log(1 - g²) of all that lies over a query. It is done twice: once without a fifth of
    the types, which are then asked for, and once with all.

    Returns
    -------
    comparison : Comparison
    watched : dict
        Of the fifth, `remote` and `known` queries: shares found first, by the channels alone (`before`) and as learned.
    """
    kept = [one for one in everything if one.group < 4]
    left = [one for one in everything if one.group == 4]
    watched: Numbers = {}
    for name, comparison in (("before", Comparison(ComparisonConfig())), ("after", _fitted(kept, config))):
        for asked in ("remote", "known"):
            ranks = _ranks([one for one in left if one.remote == (asked == "remote")], comparison)
            watched |= {f"{asked}/{name}/top{k}": float(np.mean(ranks < k)) if len(ranks) else 0.0 for k in (1, 10)}
    return _fitted(everything, config), watched


def _fitted(everything: Sequence[Overlaid], config: "CompareTrainConfig") -> Comparison:
    comparison, sharpness = Comparison(ComparisonConfig()), torch.tensor(2.5).requires_grad_()
    optimiser = torch.optim.Adam(
        [{"params": list(comparison.parameters()), "lr": config.learning_rate}, {"params": [sharpness], "lr": 0.02}]
    )
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.85)
    rng = np.random.default_rng(config.seed)
    for _ in range(config.epochs):
        order = rng.permutation(len(everything))
        for some in np.array_split(order, max(1, len(order) // _BATCH)):
            loss = config.stiffness * comparison.change_LKK.square().sum()
            for place in some.tolist():
                one = everything[place]
                s_N = sharpness.exp() * _surprise(one, comparison)
                loss = loss + (torch.logsumexp(s_N, 0) - torch.logsumexp(s_N[: one.found], 0)) / len(some)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        schedule.step()
    return comparison.eval()


def _surprise(one: Overlaid, comparison: Comparison) -> Tensor:
    return surprise(comparison(one.products_NLKK.float(), one.own_LKK, one.theirs_NLKK.float()))


@torch.no_grad()
def _ranks(everything: Sequence[Overlaid], comparison: Comparison) -> np.ndarray:
    """Of each query, how many that should not be found come before the first that should."""
    ranks = []
    for one in everything:
        s_N = _surprise(one, comparison)
        ranks.append(int((s_N[one.found :] >= s_N[: one.found].max()).sum()))
    return np.array(ranks)


class _Asking:
    """Asks a database with views of a library's training domains."""

    def __init__(self, library: AtomLibrary, datedb: "DateDB", *, device: str) -> None:
        from cryoscan.datedb.build import closer_look, embedder_for

        self._library, self._device = library, device
        datedb, self._embedder = closer_look(datedb, embedder_for(datedb, contour=0.0, device=device), contour=0.0)
        held = [anchor for anchor in library.anchors if anchor.split != "train"]
        clusters, pdb = {anchor.cluster for anchor in held}, {anchor.chain.split("_")[0].lower() for anchor in held}
        self._entries = [e for e in datedb.entries if e.cluster not in clusters and e.pdb.lower() not in pdb]
        rows = np.array([entry.row for entry in self._entries])
        self._shapes = {bank: datedb.banks[bank][rows] for bank in datedb.banks}
        self._bank_for = datedb.bank_for
        self._type = np.array([f"{entry.scheme}:{entry.type}" for entry in self._entries])
        self._scheme = np.array([entry.scheme for entry in self._entries])
        self._cluster = np.array([entry.cluster for entry in self._entries])
        self._pdb = np.array([entry.pdb.lower() for entry in self._entries])
        self._place = {entry.id: place for place, entry in enumerate(self._entries)}

    def choose(self, config: "CompareTrainConfig") -> list[tuple[int, int]]:
        """Anchors to ask with, one of a cluster and not too many of a type, and their groups."""
        rng = np.random.default_rng(config.seed)
        anchors = [
            anchor
            for anchor in self._library.anchors_of("train").tolist()
            if self._library.anchors[anchor].id in self._place
        ]
        families = Counter(self._type[np.unique(np.char.add(self._type, self._cluster), return_index=True)[1]].tolist())
        several = sorted(name for name, clusters in families.items() if clusters > 1)
        groups = dict(zip(rng.permutation(several).tolist(), itertools.cycle(range(5)), strict=False))
        count: Counter[str] = Counter()
        seen, chosen = set(), []
        for anchor in rng.permutation(anchors).tolist():
            place = self._place[self._library.anchors[anchor].id]
            name, cluster = str(self._type[place]), (str(self._type[place]), str(self._cluster[place]))
            if name in groups and count[name] < config.cap and cluster not in seen:
                count[name] += 1
                seen.add(cluster)
                chosen.append((anchor, groups[name]))
        return chosen[: config.queries]

    def ask(self, jobs: Sequence[tuple[int, int]], comparison: Comparison, *, seed: tuple[int, int]) -> list[Overlaid]:
        """What is found by some views, and what should be, laid over each."""
        matchers = {
            bank: Matcher(shapes, comparison=comparison, device=self._device) for bank, shapes in self._shapes.items()
        }
        one = functools.partial(self._one, matchers=matchers, seed=seed)
        with ThreadPoolExecutor(os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return [found for found in pool.map(one, jobs) if found is not None]

    def _one(self, job: tuple[int, int], *, matchers: dict[float, Matcher], seed: tuple[int, int]) -> Overlaid | None:
        anchor, group = job
        place = self._place[self._library.anchors[anchor].id]
        rng = np.random.default_rng([*seed, anchor])
        names = [*_REMOTE, *_KNOWN]
        rest = (1 - sum(_REMOTE.values())) / len(_KNOWN)
        name = str(rng.choice(names, p=[*_REMOTE.values(), *(rest for _ in _KNOWN)]))
        same = self._type == self._type[place]
        own = (self._cluster == self._cluster[place]) | (self._pdb == self._pdb[place])
        wanted = same & ~own if name in _REMOTE else same & own
        gone = (same & ~wanted) | own & ~wanted | (self._scheme != self._scheme[place])
        if not wanted.any():
            return None
        view = simulate_views(
            self._library, torch.tensor([anchor]), config=CONDITIONS[name], rng=generator(seed[0], anchor, seed[1])
        )
        matcher = matchers[self._bank_for(CONDITIONS[name].resolution_A[1])]
        vector = self._embedder.embed(view.density_BZYX.numpy())[0]
        g = matcher.similarities(vector[None])[0]
        first = np.flatnonzero(wanted)[np.argsort(-g[wanted])[:_RELATIVES]]
        strangers = np.flatnonzero(~wanted & ~gone)
        strangers = strangers[np.argsort(-g[strangers])]
        others = rng.choice(strangers[_DECEIVERS:], _OTHERS, replace=False)
        rows = np.concatenate([first, strangers[:_DECEIVERS], others])
        own_LKK = Matcher(vector[None]).powers(np.zeros(1, int))[0]
        return Overlaid(
            torch.from_numpy(matcher.products(vector, rows)).half(),
            torch.from_numpy(own_LKK),
            torch.from_numpy(matcher.powers(rows)).half(),
            len(first),
            group,
            name in _REMOTE,
        )


def _write(path: Path, several: Sequence[Overlaid]) -> None:
    stream = io.BytesIO()
    np.savez(
        stream,
        allow_pickle=False,
        products=np.concatenate([one.products_NLKK.numpy() for one in several] or [np.zeros(0, np.float16)]),
        theirs=np.concatenate([one.theirs_NLKK.numpy() for one in several] or [np.zeros(0, np.float16)]),
        own=np.array([one.own_LKK.numpy() for one in several]),
        about=np.array([(len(one.products_NLKK), one.found, one.group, one.remote) for one in several]).reshape(-1, 4),
    )
    write_atomically(path, stream.getvalue())


def _read(path: Path) -> list[Overlaid]:
    with np.load(path, allow_pickle=False) as arrays:
        products, theirs, own = (torch.from_numpy(arrays[name]) for name in ("products", "theirs", "own"))
        about = arrays["about"]
    sizes = about[:, 0].tolist()
    parts = zip(torch.split(products, sizes), torch.split(theirs, sizes), own, about.tolist(), strict=True)
    return [Overlaid(p, o, t, found, group, bool(remote)) for p, t, o, (_, found, group, remote) in parts]


def _write_card(
    path: Path, provenance: Provenance, datedb: str, everything: Sequence[Overlaid], watched: Numbers
) -> None:
    rows = [
        f"| {asked} | {when} | " + " | ".join(f"{100 * watched[f'{asked}/{when}/top{k}']:.0f}" for k in (1, 10)) + " |"
        for asked in ("remote", "known")
        for when in ("before", "after")
    ]
    data = [
        f"- {len(everything)} questions of training domains, {sum(one.remote for one in everything)} for relatives of "
        "other sequence clusters, the rest for the domain itself, incomplete, noisy or among neighbours",
        f"- entries of the DateDB `{datedb}` that share no sequence cluster and no PDB entry with a held-out domain",
        fingerprint_line(provenance),
    ]
    results = [
        "Of a fifth of the types, learned from the others: first and among the first ten of what was laid over a view,",
        "%. Those are the strangers that deceive most, so that other numbers than these are found in a database.",
        "",
        "| asked for | | Top-1 | Top-10 |",
        "|---|---|---|---|",
        *rows,
    ]
    compose_card(path, "A comparison of shapes", provenance, data=data, results=results, limits=_LIMITS)

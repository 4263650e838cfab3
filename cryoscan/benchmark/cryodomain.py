"""The three-step training of CryoDomain and its ablations, measured: from a folder of trained runs to tables.

After Dai et al. (2025, AAAI), whose numbers stand beside: table 2 (ablations), figure 6 (how the vectors of densities
and structures come together), figure 7 (ROC), figure 8 (levels of the hierarchy), figure 9 (resolution). The question
is theirs: given the density of a domain, find its type among the vectors of *structures*. The queries are the test
domains of the runs' split, of which no sequence cluster was trained on; the structures that are found are those that
were.
"""

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from cryoscan.benchmark.ranking import TOPS, Ranking, types_kept
from cryoscan.benchmark.result import BenchmarkProgress, BenchmarkResult, Table, decimals, percent
from cryoscan.datedb.held_out import is_real_type
from cryoscan.embedding import Embedder, unit_rows
from cryoscan.errors import MismatchError, MissingFileError
from cryoscan.metrics import roc_curve
from cryoscan.models import InvariantEmbedder, ShapeTower, ShapeTowerEmbedder, TowerEmbedder, load_tower
from cryoscan.models.atom_tower import AtomTower, raw_vectors
from cryoscan.models.checkpoint import Tower, load_network
from cryoscan.models.residues import collate
from cryoscan.provenance import Provenance, fingerprint_file
from cryoscan.train.conditions import CONDITIONS, ViewConfig
from cryoscan.train.evaluate import modal_gap
from cryoscan.train.folder import LIBRARY, PROVENANCE
from cryoscan.train.folds import FoldLibrary
from cryoscan.train.library import Anchor, AtomLibrary
from cryoscan.train.run import TARGETS, WEIGHTS
from cryoscan.train.views import simulate_views
from cryoscan.units import Angstrom

if TYPE_CHECKING:
    from cryoscan.benchmark.config import BenchmarkConfig

_SCHEMES = ("CATH", "SCOPe")
_BATCH = 128  # windows at a time
_SNR = 10.0  # as the noise of configs/benchmark/cath.yaml: 0.3 of the signal's standard deviation
_NEAREST = 5
_SHOWN, _PER_TYPE = 4, 40  # types in the picture of figure 6, and domains of each
_BEFORE = "density"  # the run of step 1 that the gap before alignment is measured with

ARMS: Mapping[str, str] = {
    "full": "three steps",
    "without_residual": "without residual branch",
    "without_swinconv": "without Swin-Conv branch",
    "without_ssl": "without self-supervision",
    "without_alignment": "without alignment",
    "full_mse": "three steps, published loss (MSE)",
    "shape": "step 3 with a shape tower",
}
"""Folder of a run → what it is called in tables."""

_NAMES = {**ARMS, "invariant": "untrained invariant"}

PUBLISHED: Mapping[str, Mapping[str, tuple[float, float, float, float]]] = {
    "CATH": {
        "full": (6.76, 41.22, 60.14, 0.15),
        "without_residual": (2.03, 31.76, 43.92, 0.08),
        "without_swinconv": (6.08, 37.16, 44.59, 0.11),
        "without_ssl": (2.03, 7.43, 12.16, 0.02),
        "without_alignment": (0.0, 3.38, 6.76, 0.02),
    },
    "SCOPe": {
        "full": (56.59, 73.64, 88.37, 0.47),
        "without_residual": (32.56, 55.81, 63.57, 0.34),
        "without_swinconv": (39.53, 55.81, 68.22, 0.42),
        "without_ssl": (0.0, 0.0, 6.2, 0.01),
        "without_alignment": (8.53, 8.53, 8.53, 0.01),
    },
}
"""Top-1 / 5 / 10 % and mAP of the paper's table 2, on 148 and 129 experimental maps of 4 to 10 Å."""


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """A receiver operating characteristic.

    Parameters
    ----------
    name : str
    false_rate, true_rate : float arrays
    area : float
    """

    name: str
    false_rate: np.ndarray
    true_rate: np.ndarray
    area: float


@dataclass(frozen=True, slots=True, eq=False)
class Panel:
    """Vectors of structures and densities of a few types after one step.

    Parameters
    ----------
    title : str
    vectors : float array, `n d`
        Unit rows.
    types : tuple of str
        Of each row.
    kinds : tuple of str
        ``structure``, ``density`` (of a domain trained on) or ``held out`` (density) of each row.
    """

    title: str
    vectors: np.ndarray
    types: tuple[str, ...]
    kinds: tuple[str, ...]


def run_cryodomain(config: "BenchmarkConfig") -> Iterator[BenchmarkProgress | BenchmarkResult]:
    """Measure the runs in a folder; see the module.

    Raises
    ------
    MissingFileError
        If the folder has no run ``full``, or that run no library or vectors of structures.
    MismatchError
        If the runs are of different libraries, or were aligned to different towers.
    """
    runs = _Runs.read(config.runs)
    yield BenchmarkProgress("views", 0, len(runs.arms) + 2)
    questions = {scheme: _Question(scheme, runs, config) for scheme in _SCHEMES}
    notes = [*runs.notes, *(f"{scheme}: no queries" for scheme, one in questions.items() if not len(one.rows))]
    questions = {scheme: question for scheme, question in questions.items() if len(question.rows)}
    numbers: dict[str, float | int] = {"queries": len(runs.asked), "structures": len(runs.known)}
    mixed = replace(CONDITIONS["clean_4.5-10A"], noise_free=0.0, snr=(_SNR, _SNR))
    conditions = {"all": mixed} | {
        f"{resolution:g}A": replace(mixed, resolution_A=(resolution, resolution)) for resolution in config.resolutions_A
    }
    views = {
        name: _views(runs.library, runs.asked, condition, config.seed, runs.window, runs.voxel_size)
        for name, condition in conditions.items()
    }
    rankings: dict[tuple[str, str, str], Ranking] = {}
    structures = unit_rows(runs.targets)

    def judge(arm: str, condition: str, similarity: np.ndarray) -> None:
        for scheme, question in questions.items():
            rankings[arm, scheme, condition] = ranking = question.ranking(similarity)
            for size, kept in question.sets.items():
                found = ranking.numbers(kept)
                numbers.update({f"{arm}.{scheme.lower()}.{size}.{condition}.{key}": v for key, v in found.items()})

    done = 0
    for arm, tower in runs.arms.items():
        embedder = _embedder(tower)
        for condition, windows in views.items():
            judge(arm, condition, embedder.embed(windows) @ structures[runs.known].T)
        done += 1
        yield BenchmarkProgress(arm, done, len(runs.arms) + 2)
    judge("structures", "all", structures[runs.asked] @ structures[runs.known].T)
    invariant = InvariantEmbedder(runs.voxel_size, contour=0.0)
    banks = [_bank(runs, invariant, resolution, config.seed) for resolution in (6.0, 10.0)]
    for condition, windows in views.items():
        seen = invariant.embed(windows)
        judge("invariant", condition, np.max([seen @ bank.T for bank in banks], axis=0))
    done += 1
    yield BenchmarkProgress("untrained invariant", done, len(runs.arms) + 2)
    gaps, panels = _coming_together(runs, questions, numbers, config.seed)
    done += 1
    yield BenchmarkProgress("vectors after each step", done, len(runs.arms) + 2)
    tables = [
        *(_ablations(scheme, question, runs, numbers) for scheme, question in questions.items()),
        *(_embedders_of_structures(scheme, question, runs, numbers) for scheme, question in questions.items()),
        gaps,
        _areas(questions, runs, numbers),
        *(_hierarchy(scheme, question, runs, numbers) for scheme, question in questions.items()),
        *(_series(scheme, question, runs, numbers, config.resolutions_A) for scheme, question in questions.items()),
    ]
    if config.pictures is not None:
        _draw(config.pictures, panels, questions, rankings, numbers, config)
    yield BenchmarkResult(numbers, tuple(tables), tuple(notes), runs.provenance(config))


def _draw(
    folder: Path,
    panels: Sequence[Panel],
    questions: Mapping[str, "_Question"],
    rankings: Mapping[tuple[str, str, str], Ranking],
    numbers: Mapping[str, float | int],
    config: "BenchmarkConfig",
) -> None:
    """All pictures, of the arms that were measured."""
    from cryoscan.benchmark import cryodomain_pictures as pictures

    folder.mkdir(parents=True, exist_ok=True)
    arms = dict.fromkeys(arm for arm, _, _ in rankings if arm in _NAMES)
    few = [arm for arm in ("full", "shape", "invariant") if arm in arms]
    curves, levels, series = {}, {}, {}
    for scheme, one in questions.items():
        prefix = f"{scheme.lower()}.{one.size}"
        curves[scheme] = [_curve(_NAMES[arm], rankings[arm, scheme, "all"], one.kept) for arm in few]
        levels[scheme] = {_NAMES[arm]: _levels(arm, scheme, one, numbers) for arm in arms}
        series[scheme] = {
            _NAMES[arm]: [float(numbers[f"{arm}.{prefix}.{r:g}A.top5"]) for r in config.resolutions_A] for arm in few
        }
    pictures.draw_panels(panels, folder / "cryodomain_steps.png", seed=config.seed)
    pictures.draw_curves(curves, folder / "cryodomain_roc.png")
    pictures.draw_levels(levels, folder / "cryodomain_levels.png")
    pictures.draw_series(series, config.resolutions_A, folder / "cryodomain_resolution.png")


# ---------------------------------------------------------------- runs


@dataclass(frozen=True, slots=True, eq=False)
class _Runs:
    """What a folder of runs holds."""

    folder: Path
    library: AtomLibrary
    targets: np.ndarray
    arms: Mapping[str, Tower]
    notes: tuple[str, ...]
    asked: np.ndarray
    known: np.ndarray

    @classmethod
    def read(cls, folder: Path | None) -> "_Runs":
        if folder is None or not (folder / "full" / TARGETS).is_file():
            raise MissingFileError(
                "expected a folder of runs, with a finished run 'full' in it",
                got="none" if folder is None else str(folder),
                hint="Train the configurations in configs/cryodomain, and name their folder under `runs`.",
            )
        about = {arm: _inputs(folder / arm) for arm in ARMS if (folder / arm / WEIGHTS).is_file()}
        for what in ("library", "atom_weights"):
            found = {arm: inputs[what] for arm, inputs in about.items() if what in inputs}
            if len(set(found.values())) > 1:
                raise MismatchError(
                    f"expected runs with the same {what}",
                    got=", ".join(f"{arm} {value}" for arm, value in found.items()),
                    hint="Train all of them from the same library, to the same tower of structures.",
                )
        library = AtomLibrary.load(folder / "full" / LIBRARY)
        targets = np.load(folder / "full" / TARGETS, allow_pickle=False)
        typed = [index for index, anchor in enumerate(library.anchors) if anchor.types]
        split = np.array([anchor.split for anchor in library.anchors])[typed]
        missing = tuple(f"no run '{arm}' in {folder.name}" for arm in ARMS if arm not in about)
        return cls(
            folder,
            library,
            targets,
            {arm: load_tower(folder / arm / WEIGHTS) for arm in about},
            missing,
            np.array(typed)[split == "test"],
            np.array(typed)[split == "train"],
        )

    @property
    def window(self) -> int:
        return int(self.arms["full"].config.window)

    @property
    def voxel_size(self) -> Angstrom:
        return float(self.arms["full"].config.voxel_size_A)

    def provenance(self, config: "BenchmarkConfig") -> Provenance:
        settings = {"resolutions_A": list(config.resolutions_A), "cath_types": config.cath_types,
                    "scope_types": config.scope_types}  # fmt: skip
        inputs = {arm: fingerprint_file(self.folder / arm / WEIGHTS) for arm in self.arms}
        inputs |= {key: value for key, value in _inputs(self.folder / "full").items() if key != "start_from"}
        return Provenance("cryoscan benchmark, kind cryodomain", settings, inputs, config.seed)


def _inputs(run: Path) -> Mapping[str, str]:
    return Provenance.from_json(json.loads((run / PROVENANCE).read_text(encoding="utf-8"))).inputs


def _embedder(tower: Tower) -> Embedder:
    return ShapeTowerEmbedder(tower) if isinstance(tower, ShapeTower) else TowerEmbedder(tower)


def _views(
    library: AtomLibrary, anchors: np.ndarray, condition: ViewConfig, seed: int, window: int, voxel_size: Angstrom
) -> np.ndarray:
    """One view of each anchor, `n z y x`; the same for all networks."""
    rng = torch.Generator().manual_seed(seed)
    drawn = simulate_views(
        library, torch.from_numpy(anchors), config=condition, rng=rng, window=window, voxel_size=voxel_size
    )
    return drawn.density_BZYX.numpy()


def _bank(runs: _Runs, embedder: Embedder, resolution: Angstrom, seed: int) -> np.ndarray:
    """Vectors of clean densities of the structures that can be found."""
    clean = replace(CONDITIONS["clean_6A"], resolution_A=(resolution, resolution))
    parts = np.array_split(runs.known, len(runs.known) // _BATCH + 1)
    return np.concatenate(
        [embedder.embed(_views(runs.library, part, clean, seed, runs.window, runs.voxel_size)) for part in parts]
    )


# ---------------------------------------------------------------- types


class _Question:
    """Which type of one scheme is it: what is known of entries and queries."""

    def __init__(self, scheme: str, runs: _Runs, config: "BenchmarkConfig") -> None:
        self._scheme = scheme
        anchors = runs.library.anchors
        entries = [_type_of(anchors[index], scheme) for index in runs.known]
        self._mine = np.array([place for place, type_ in enumerate(entries) if type_], np.int64)
        self._types, self._owners = np.unique([entries[place] for place in self._mine], return_inverse=True)
        place = {type_: index for index, type_ in enumerate(self._types.tolist())}
        asked = [_type_of(anchors[index], scheme) for index in runs.asked]
        self.rows = np.array([row for row, type_ in enumerate(asked) if type_ in place], np.int64)
        self._truth = np.array([place[asked[row]] for row in self.rows], np.int64)
        self.impossible = sum(bool(type_) for type_ in asked) - len(self.rows)
        counts = np.bincount(self._owners, minlength=len(place))
        real = np.array([index for type_, index in place.items() if is_real_type(scheme, type_)], np.int64)
        size = config.cath_types if scheme == "CATH" else config.scope_types
        kept = types_kept(self._truth, counts, size=size, others=real)
        self.size, self.kept = str(len(kept)), kept
        self.sets = {self.size: kept, "all": np.arange(len(place))}

    def ranking(self, similarity: np.ndarray) -> Ranking:
        """Of the similarities of all queries to all structures, what concerns this scheme."""
        mine = similarity[np.ix_(self.rows, self._mine)].astype(np.float64)
        return Ranking(mine, self._owners, self._types.tolist(), self._truth, self._scheme)


def _type_of(anchor: Anchor, scheme: str) -> str:
    """The anchor's type in a scheme; '' if it has none."""
    return next((type_.partition(":")[2] for type_ in anchor.types if type_.startswith(f"{scheme}:")), "")


# ---------------------------------------------------------------- figure 6


def _coming_together(
    runs: _Runs, questions: Mapping[str, "_Question"], numbers: dict[str, float | int], seed: int
) -> tuple[Table, list[Panel]]:
    """Distances of both vectors of a domain, purity of neighbours, and what the picture shows, after each step."""
    shown, types = _shown(runs)
    clean = functools.partial(
        _views,
        runs.library,
        condition=CONDITIONS["clean_6A"],
        seed=seed,
        window=runs.window,
        voxel_size=runs.voxel_size,
    )
    windows, of_shown = clean(runs.asked), clean(shown)
    steps: dict[str, tuple[Tower, np.ndarray]] = {}
    first, folds = runs.folder / _BEFORE / WEIGHTS, runs.folder / "atom_recover" / "folds.npz"
    if first.is_file() and folds.is_file():
        before = load_tower(first)
        recovered = load_network(runs.folder / "atom_recover" / "atom_tower.safetensors", AtomTower)
        library = FoldLibrary.load(folds)
        steps["1 self-supervision"] = before, _structures_before(library, runs, recovered, numbers, questions)
        steps["2 contrast of structures"] = before, runs.targets
    for arm in ("full", "full_mse", "shape"):
        if arm in runs.arms:
            steps[f"3 alignment: {ARMS[arm]}"] = runs.arms[arm], runs.targets
    rows, panels = [], []
    for title, (tower, structures) in steps.items():
        key = f"together.{title.partition(':')[2].strip() or title[0]}"
        seen = _raw(tower, windows)
        gap = modal_gap(seen, structures[runs.asked])
        same = np.broadcast_to(structures[runs.known].mean(axis=0), seen.shape)
        constant = modal_gap(same, structures[runs.asked])
        purity = _purity(unit_rows(seen) @ unit_rows(structures)[runs.known].T, runs)
        found = {"raw": gap["gap/raw"], "unit": gap["gap/unit"], "raw_of_mean": constant["gap/raw"],
                 "unit_of_mean": constant["gap/unit"], "purity": purity}  # fmt: skip
        numbers.update({f"{key}.{name}": value for name, value in found.items()})
        rows.append((title, *(decimals(found[name]) for name in found)))
        vectors = np.concatenate([unit_rows(structures[shown]), unit_rows(_raw(tower, of_shown))])
        held = ["held out" if runs.library.anchors[index].split != "train" else "density" for index in shown]
        panels.append(Panel(title, vectors, (*types, *types), (*["structure"] * len(shown), *held)))
    columns = ("after step", "raw", "unit", "raw, mean of all", "unit, mean of all", f"purity of {_NEAREST}")
    title = f"Both vectors of {len(runs.asked)} test domains: mean squared difference, and neighbours of the same type"
    return Table(title, columns, tuple(rows)), panels


def _shown(runs: _Runs) -> tuple[np.ndarray, tuple[str, ...]]:
    """Domains of the CATH types with the most, and the type of each; held-out ones first."""
    of_type: dict[str, list[int]] = {}
    for index in (*runs.asked, *runs.known):
        type_ = _type_of(runs.library.anchors[index], "CATH")
        if type_:
            of_type.setdefault(type_, []).append(int(index))
    largest = sorted(of_type, key=lambda type_: (-len(of_type[type_]), type_))[:_SHOWN]
    chosen = [(index, type_) for type_ in largest for index in of_type[type_][:_PER_TYPE]]
    return np.array([index for index, _ in chosen]), tuple(type_ for _, type_ in chosen)


@torch.inference_mode()
def _raw(tower: Tower, windows: np.ndarray) -> np.ndarray:
    """Vectors as they leave the network, `n d`."""
    parts = torch.split(torch.from_numpy(windows), _BATCH)
    return torch.cat([tower(part, reconstruct=False)[0] for part in parts]).numpy()


def _purity(similarity: np.ndarray, runs: _Runs) -> float:
    """Share of the nearest structures that are of a query's type; queries whose type is known at all."""
    anchors = runs.library.anchors
    found = []
    for row, index in zip(similarity, runs.asked, strict=True):
        own = set(anchors[index].types)
        if any(own & set(anchors[other].types) for other in runs.known):
            nearest = runs.known[np.argsort(-row, kind="stable")[:_NEAREST]]
            found.append(np.mean([bool(own & set(anchors[other].types)) for other in nearest]))
    return float(np.mean(found))


def _structures_before(
    library: FoldLibrary,
    runs: _Runs,
    recovered: AtomTower,
    numbers: dict[str, float | int],
    questions: Mapping[str, "_Question"],
) -> np.ndarray:
    """Retrieval of structures by structures, untrained and after step 1; vectors after step 1, `d k`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        untrained = AtomTower(recovered.config).train()
        some = torch.randperm(len(runs.known))[:256].tolist()
        with torch.no_grad():  # only the running mean and deviation of its channels
            for start in range(0, len(some), 8):
                untrained(collate([library.residues[int(runs.known[place])] for place in some[start : start + 8]]))
    wanted = np.concatenate([runs.asked, runs.known])
    vectors = np.zeros((len(library.residues), recovered.dim), np.float32)
    for name, tower in (("untrained", untrained), ("recovered", recovered)):
        vectors[wanted] = raw_vectors(tower, [library.residues[index] for index in wanted], batch=8)
        unit = unit_rows(vectors)
        for scheme, question in questions.items():
            ranking = question.ranking(unit[runs.asked] @ unit[runs.known].T)
            for size, kept in question.sets.items():
                found = ranking.numbers(kept)
                numbers.update({f"structures_{name}.{scheme.lower()}.{size}.all.{k}": v for k, v in found.items()})
    return vectors


# ---------------------------------------------------------------- tables


def _tops(prefix: str, numbers: Mapping[str, float | int]) -> tuple[str, ...]:
    cells = []
    for top in TOPS:
        low, high = numbers[f"{prefix}.top{top}_low"], numbers[f"{prefix}.top{top}_high"]
        cells.append(f"{percent(numbers[f'{prefix}.top{top}'])} ({percent(low)}–{percent(high)})")
    return (*cells, decimals(numbers[f"{prefix}.map"]))


def _ablations(scheme: str, question: _Question, runs: _Runs, numbers: Mapping[str, float | int]) -> Table:
    rows = []
    for arm in (*runs.arms, "invariant"):
        published = PUBLISHED[scheme].get(arm)
        beside = "" if published is None else " / ".join(f"{value:g}" for value in published)
        name = _NAMES[arm]
        rows.append((name, *_tops(f"{arm}.{scheme.lower()}.{question.size}.all", numbers), beside))
    first = f"{next(iter(runs.arms))}.{scheme.lower()}.{question.size}.all"
    for name in ("chance", "majority"):
        rows.append((name, *(percent(numbers[f"{first}.{name}_top{top}"]) for top in TOPS), "", ""))
    title = (
        f"Table 2, {scheme}: {len(question.rows)} test domains at 4.5 to 10 Å among {question.size} types "
        f"({question.impossible} more have no type that was trained on)"
    )
    columns = ("arm", "Top-1 % (95 %)", "Top-5", "Top-10", "mAP", "published: Top-1 / 5 / 10, mAP")
    return Table(title, columns, tuple(rows))


def _embedders_of_structures(
    scheme: str, question: _Question, runs: _Runs, numbers: Mapping[str, float | int]
) -> Table:
    names = {"structures_untrained": "untrained", "structures_recovered": "after step 1", "structures": "after step 2"}
    rows = [
        (name, size, *_tops(f"{key}.{scheme.lower()}.{size}.all", numbers))
        for size in question.sets
        for key, name in names.items()
        if f"{key}.{scheme.lower()}.{size}.all.top1" in numbers
    ]
    title = f"Structures asked for by structures, {scheme}: {len(question.rows)} test domains, AtomTower"
    return Table(title, ("AtomTower", "types", "Top-1 % (95 %)", "Top-5", "Top-10", "mAP"), tuple(rows))


def _areas(questions: Mapping[str, _Question], runs: _Runs, numbers: Mapping[str, float | int]) -> Table:
    rows = [
        (
            _NAMES[arm],
            *(decimals(numbers[f"{arm}.{s.lower()}.{q.size}.all.auroc"]) for s, q in questions.items()),
        )
        for arm in (*runs.arms, "invariant")
    ]
    return Table("Figure 7: area under the ROC curve (published: above .75)", ("arm", *questions), tuple(rows))


def _levels(arm: str, scheme: str, question: _Question, numbers: Mapping[str, float | int]) -> list[float]:
    """Shares of the queries whose best agreement among the first five types is at level 4, 3, 2, 1, none."""
    prefix = f"{arm}.{scheme.lower()}.{question.size}.all.top5_level"
    reached = [float(numbers[f"{prefix}{level}"]) for level in (4, 3, 2, 1)]
    return [*np.diff([0.0, *reached]).tolist(), 1 - reached[-1]]


def _hierarchy(scheme: str, question: _Question, runs: _Runs, numbers: Mapping[str, float | int]) -> Table:
    rows = [
        (_NAMES[arm], *(percent(share) for share in _levels(arm, scheme, question, numbers)))
        for arm in (*runs.arms, "invariant")
    ]
    first = f"full.{scheme.lower()}.{question.size}.all.chance_top5_level"
    reached = [float(numbers[f"{first}{level}"]) for level in (4, 3, 2, 1)]
    rows.append(("chance", *(percent(share) for share in (*np.diff([0.0, *reached]), 1 - reached[-1]))))
    between = ("topology", "architecture") if scheme == "CATH" else ("superfamily", "fold")
    title = f"Figure 8, {scheme}: deepest level that one of the first five types shares, % of queries"
    return Table(title, ("arm", "type", *between, "class", "nothing"), tuple(rows))


def _series(
    scheme: str,
    question: _Question,
    runs: _Runs,
    numbers: Mapping[str, float | int],
    resolutions: Sequence[Angstrom],
) -> Table:
    rows = [
        (
            _NAMES[arm],
            *(percent(numbers[f"{arm}.{scheme.lower()}.{question.size}.{r:g}A.top5"]) for r in resolutions),
        )
        for arm in (*runs.arms, "invariant")
    ]
    title = f"Figure 9, {scheme}: Top-5 %, {len(question.rows)} test domains at each resolution (Å)"
    return Table(title, ("arm", *(f"{resolution:g}" for resolution in resolutions)), tuple(rows))


def _curve(name: str, ranking: Ranking, kept: np.ndarray) -> Curve:
    """Over all pairs of a query and a type, the true ones positive."""
    scores, positive = ranking.type_scores[:, kept], kept[None] == ranking.truth[:, None]
    false_rate, true_rate = roc_curve(scores.ravel(), positive.ravel())
    return Curve(name, false_rate, true_rate, float(np.trapezoid(true_rate, false_rate)))

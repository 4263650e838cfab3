"""From a configuration and a folder of data to a trained tower: what is built, logged, refused and written."""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from cryoscan.embedding import Embedder, unit_rows
from cryoscan.errors import MismatchError, MissingFileError
from cryoscan.models.atom_tower import AtomTower, raw_vectors
from cryoscan.models.checkpoint import load_network, save_network
from cryoscan.models.cleaned import CleanedEmbedder
from cryoscan.models.density_tower import DensityTower, TowerConfig
from cryoscan.models.invariant import InvariantEmbedder
from cryoscan.models.shape_tower import ShapeTower, ShapeTowerConfig, ShapeTowerEmbedder
from cryoscan.models.tower_embedder import TowerEmbedder
from cryoscan.train import objectives
from cryoscan.train.card import draw_curves, write_card
from cryoscan.train.conditions import CONDITIONS
from cryoscan.train.evaluate import Outcome, among_structures, collapse, evaluate, modal_gap, numbers_of
from cryoscan.train.folder import CARD, PICTURE, begun, fingerprint_library, first_weights, library_of_run, to_the_end
from cryoscan.train.kinship import Kinship, Sampler
from cryoscan.train.library import AtomLibrary, Split
from cryoscan.train.loop import TrainEvent, fit, generator
from cryoscan.train.objectives import Numbers, Objective, Pupil
from cryoscan.train.state import CURVES, log_row, read_curves
from cryoscan.train.views import Views, simulate_views

if TYPE_CHECKING:  # reading YAML needs more than a machine that only trains has
    from cryoscan.train.config import TrainConfig

WEIGHTS, TARGETS = "tower.safetensors", "targets.npy"
_ALIGNED = ("clean_6A", "clean_10A", "noise", "missing_30", "neighbours_molecular_3A")
_APIECE = 64  # windows at a time
_WATCHED = ("clean_6A", "missing_30", "neighbours_sphere", "neighbours_molecular_3A", "hard")
_APART = 5  # steps between those in which a view is used: its neighbours in a batch change
_SMALL_BANK = 600  # domains that are watched during a run: a validation takes seconds, not minutes


@dataclass(frozen=True, slots=True)
class TrainFinished:
    """The end of a run.

    Parameters
    ----------
    weights, card : Path
    outcomes : tuple of Outcome
        On all validation domains, under all conditions.
    """

    weights: Path
    card: Path
    outcomes: tuple[Outcome, ...]


def train(
    config: "TrainConfig",
    folder: Path | str,
    *,
    data: Path | str | None = None,
    until: int | None = None,
    device: str = "cpu",
) -> Iterator[TrainEvent | TrainFinished]:
    """Train a tower in a folder, or go on there; the last event of a whole run is `TrainFinished`.

    Parameters
    ----------
    config : TrainConfig
    folder : Path
        Of the run: library, checkpoint, log, and at the end weights, curves and model card.
    data : Path, optional
        Data folder that the library is made from. Only at the beginning.
    until : int, optional
        Stop after this step; the schedule stays that of all steps.
    device : str
        Where torch computes.

    Raises
    ------
    MismatchError
        If the folder holds a run with other settings or other data.
    MissingFileError
        If neither the folder has a library nor data are given.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    library = library_of_run(folder, data)
    provenance = begun(
        folder, config, fingerprint_library(library), start_from=config.start_from, atom_weights=config.atom_weights
    )
    atoms_DK = None if config.atom_weights is None else atom_targets(config, library, folder, data)
    library = library.to(device)
    pupil = build_pupil(config, library, atoms_DK).to(device)
    kinship = Kinship(library.anchors).to(device)
    if atoms_DK is not None and not (folder / CURVES).exists():
        _, gap = evaluate_alignment(pupil.eval(), library, conditions=(), device=device)
        log_row(folder / CURVES, 0, {f"validation/{name}": value for name, value in gap.items()})
    events = fit(
        pupil,
        objective_of(config, kinship),
        SeenAgain(config, library),
        config.fit_settings(),
        folder,
        validate=_validation(config, library, device),
        until=until,
    )
    if not (yield from to_the_end(events)):
        return
    save_network(pupil.tower, folder / WEIGHTS, provenance=provenance)
    draw_curves(folder / CURVES, folder / PICTURE)
    remarks: list[str] = []
    outcomes: list[Outcome] = []
    if atoms_DK is not None:
        outcomes, _ = evaluate_alignment(pupil, library, views=2, device=device)
        remarks.append(_closer(folder / CURVES))
    elif config.judged:
        outcomes = evaluate(embedders_of(config, pupil, device), library)
    write_card(
        folder / CARD,
        provenance=provenance,
        anchors=library.anchors,
        outcomes=outcomes,
        tower=pupil.tower.config,
        remarks=remarks,
    )
    yield TrainFinished(folder / WEIGHTS, folder / CARD, tuple(outcomes))


def build_pupil(config: "TrainConfig", library: AtomLibrary, atoms_DK: torch.Tensor | None = None) -> Pupil:
    """A tower with its first weights, and targets if the objective has any: `atoms_DK`, or others."""
    sizes = config.tower_config()
    tower: DensityTower | ShapeTower = first_weights(
        lambda: ShapeTower(sizes) if isinstance(sizes, ShapeTowerConfig) else DensityTower(sizes),
        seed=config.seed,
        start_from=config.start_from,
    )
    if config.objective in ("reconstruct", "contrast"):
        return Pupil(tower)
    if config.objective == "classify":
        rng = torch.Generator().manual_seed(config.seed)
        nodes = Kinship(library.anchors).nodes
        return Pupil(tower, 0.05 * torch.randn(nodes, sizes.dim, generator=rng), frozen=False)
    if atoms_DK is not None:
        return Pupil(tower, atoms_DK)
    targets_DK = invariant_targets(library, tower.config)
    return Pupil(tower, targets_DK, frozen=config.objective == "align_paper" or config.targets == "invariant")


def objective_of(config: "TrainConfig", kinship: Kinship) -> Objective:
    """The objective with its settings."""
    match config.objective:
        case "reconstruct":
            return functools.partial(objectives.reconstruct, hidden=config.hidden)
        case "contrast":
            return functools.partial(objectives.contrast, kinship=kinship, temperature=config.temperature)
        case "classify":
            return functools.partial(objectives.classify, kinship=kinship, temperature=config.temperature)
        case "align_paper":
            return functools.partial(objectives.align_paper, kinship=kinship)
    return functools.partial(
        objectives.align,
        kinship=kinship,
        temperature=config.temperature,
        hidden=config.hidden,
        reconstruction=config.reconstruction,
    )


class SeenAgain:
    """Draws the views of a step: new ones, and those of some steps before; which, the number of the step says.

    Parameters
    ----------
    config : TrainConfig
    library : AtomLibrary
    """

    def __init__(self, config: "TrainConfig", library: AtomLibrary) -> None:
        self._config, self._library, self._sampler = config, library, Sampler(library, cap=config.cap)
        self._kept: dict[int, Views] = {}

    def __call__(self, step: int, rng: torch.Generator) -> Views:
        """The views of a step; `rng` is that of the step."""
        steps = [step - _APART * back for back in range(self._config.steps_seen) if step >= _APART * back]
        for one in steps:
            if one not in self._kept:  # new, or the run has just gone on
                own = rng if one == step else generator(self._config.seed, one, 0, device=rng.device)
                self._kept[one] = draw_views(self._config, self._sampler, self._library, one, own)
        self._kept = {one: views for one, views in self._kept.items() if one > step - _APART * self._config.steps_seen}
        return _together([self._kept[one] for one in steps])


def draw_views(config: "TrainConfig", sampler: Sampler, library: AtomLibrary, step: int, rng: torch.Generator) -> Views:
    """The new views of a step: at first clean ones, then more and more as they are to be."""
    count = max(1, config.batch // config.steps_seen)
    anchors = sampler.draw(count, per_type=config.per_type, rng=rng)
    spoilt = count
    if step < config.clean_until:
        spoilt = round(count * step / config.clean_until)
    tower = config.tower_config()
    simulate = functools.partial(simulate_views, library, rng=rng, window=tower.window, voxel_size=tower.voxel_size_A)
    views = config.view_config()
    if spoilt == count:
        return simulate(anchors, config=views)
    clean = replace(CONDITIONS["clean_4.5-10A"], resolution_A=views.resolution_A)
    parts = [simulate(anchors[spoilt:], config=clean)]
    if spoilt:
        parts.append(simulate(anchors[:spoilt], config=views))
    return _together(parts)


def invariant_targets(library: AtomLibrary, tower: TowerConfig | ShapeTowerConfig, *, seed: int = 0) -> torch.Tensor:
    """Vectors of all domains from the invariant features of clean views at 6 Å, `domains dim`, of unit length.

    The features are turned to their principal axes about their mean, and the first are taken
    without rescaling: made equally wide, they would tell domains apart worse.
    """
    rng = torch.Generator(device=library.device).manual_seed(seed)
    invariant = InvariantEmbedder(tower.voxel_size_A, contour=0.0)
    everyone = torch.arange(len(library.anchors), device=library.device)
    features = []
    for some in torch.split(everyone, 256):
        views = simulate_views(
            library,
            some,
            config=CONDITIONS["clean_6A"],
            rng=rng,
            window=InvariantEmbedder.window,
            voxel_size=tower.voxel_size_A,
        )
        features.append(invariant.embed(views.density_BZYX.cpu().numpy()))
    centred = np.concatenate(features)
    centred -= centred.mean(axis=0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][: tower.dim]
    targets_DK = torch.zeros(len(centred), tower.dim)
    targets_DK[:, : len(axes)] = torch.from_numpy(centred @ axes.T)
    return torch.nn.functional.normalize(targets_DK, dim=1)


def atom_targets(config: "TrainConfig", library: AtomLibrary, folder: Path, data: Path | str | None) -> torch.Tensor:
    """What an AtomTower says of all domains, `domains dim`, as it leaves the network; kept in the run's folder.

    Raises
    ------
    MismatchError
        If its vectors are of another length than the tower's, or the folder's are of other domains.
    MissingFileError
        If neither the folder has the vectors nor data are given.
    """
    path = folder / TARGETS
    if not path.exists():
        assert config.atom_weights is not None
        atoms = load_network(config.atom_weights, AtomTower)
        _same_length(config, atoms.dim, config.atom_weights)
        if data is None:
            raise MissingFileError(
                f"expected the vectors of the domains' structures in {path}, or data",
                got="neither",
                hint="Give --data FOLDER, with structures/.",
            )
        from cryoscan.train.folds import FoldLibrary  # needs all that reading structures needs

        vectors = raw_vectors(atoms, FoldLibrary.of_folder(data, library.anchors).residues, batch=8)
        beside = path.with_name(f".{path.name}")
        np.save(beside, vectors, allow_pickle=False)
        beside.replace(path)
    targets = np.load(path, allow_pickle=False)
    if targets.ndim != 2 or len(targets) != len(library.anchors):
        raise MismatchError(
            f"expected a vector for each of {len(library.anchors)} domains in {path}",
            got=f"an array of {targets.shape}",
            hint="Train in another folder.",
        )
    _same_length(config, targets.shape[1], path)
    return torch.from_numpy(targets)


def evaluate_alignment(
    pupil: Pupil,
    library: AtomLibrary,
    *,
    split: Split = "validation",
    conditions: Sequence[str] = _ALIGNED,
    views: int = 1,
    seed: int = 0,
    device: str = "cpu",
) -> tuple[list[Outcome], Numbers]:
    """Ask for held-out domains by their density among structures, and how far apart both vectors of a domain are.

    Parameters
    ----------
    pupil : Pupil
        With a target for each domain, on `device`.
    library : AtomLibrary
    split : str
        Choose settings on ``validation``; ask for ``test`` once, at the end.
    conditions : sequence of str
        Names of `CONDITIONS`.
    views : int
        Of each held-out domain and condition.
    seed : int
        Of all views.
    device : str

    Returns
    -------
    outcomes : list of Outcome
    gap : dict
        `modal_gap` of clean views at 6 Å.
    """
    assert isinstance(pupil.targets_DK, torch.Tensor), "nothing to be aligned to"
    tower, targets = pupil.tower, pupil.targets_DK.detach().cpu().numpy()
    asked = library.anchors_of(split)
    simulate = functools.partial(
        simulate_views, library, window=tower.config.window, voxel_size=tower.config.voxel_size_A
    )
    rng = torch.Generator(device=library.device).manual_seed(seed)
    clean = simulate(asked, config=CONDITIONS["clean_6A"], rng=rng)
    with torch.inference_mode():
        seen = [tower(part, reconstruct=False)[0] for part in torch.split(clean.density_BZYX, _APIECE)]
    gap = modal_gap(torch.cat(seen).float().cpu().numpy(), targets[asked.cpu().numpy()])
    embedder, queries, found = _embedder(pupil, device), asked.repeat(views), []
    for condition in conditions:
        drawn = simulate(queries, config=CONDITIONS[condition], rng=rng)
        vectors = embedder.embed(drawn.density_BZYX.cpu().numpy())
        found += among_structures(
            "tower", condition, vectors, unit_rows(targets), queries=queries, anchors=library.anchors, split=split
        )
    return found, gap


def embedders_of(config: "TrainConfig", pupil: Pupil, device: str) -> dict[str, Embedder]:
    """What is evaluated: the invariant, the tower's vectors, and the invariant of its reconstructions."""
    tower = pupil.tower
    found: dict[str, Embedder] = {}
    if tower.config.window == InvariantEmbedder.window:
        found["invariant"] = InvariantEmbedder(tower.config.voxel_size_A, device=device)
        if config.objective in ("reconstruct", "align") and isinstance(tower, DensityTower):
            found["cleaned"] = CleanedEmbedder(tower, device=device)
    if config.objective != "reconstruct":
        found["tower"] = _embedder(pupil, device)
    return found


# ---------------------------------------------------------------- private


def _together(parts: Sequence[Views]) -> Views:
    names = Views.__dataclass_fields__
    return Views(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


def _embedder(pupil: Pupil, device: str) -> ShapeTowerEmbedder | TowerEmbedder:
    tower = pupil.tower
    if isinstance(tower, ShapeTower):
        return ShapeTowerEmbedder(tower, device=device)
    return TowerEmbedder(tower, device=device)


def _same_length(config: "TrainConfig", length: int, path: Path) -> None:
    dim = config.tower_config().dim
    if length != dim:
        raise MismatchError(
            f"expected vectors of structures of {dim} numbers, as the tower gives",
            got=f"{length} in {path}",
            hint="Set `dim` of the tower to that of the AtomTower, or take other weights.",
        )


def _validation(config: "TrainConfig", library: AtomLibrary, device: str) -> Callable[[Pupil], Numbers] | None:
    if config.targets == "atoms":
        return functools.partial(_watch_alignment, library, device)
    return functools.partial(_watch, config, library, device) if config.judged else None


def _watch_alignment(library: AtomLibrary, device: str, pupil: Pupil) -> Numbers:
    """A quick validation against structures, which need not be simulated."""
    outcomes, gap = evaluate_alignment(pupil, library, device=device)
    return numbers_of(outcomes) | gap


def _closer(curves: Path) -> str:
    found = read_curves(curves)
    raw, unit = ([values[0], values[-1]] for _, values in (found[f"validation/gap/{how}"] for how in ("raw", "unit")))
    return (
        "Mean squared difference of the vectors of density and structure of a validation domain: before and after, "
        f"raw, by component, {raw[0]:.4f} and {raw[1]:.4f}; of unit length, in all, {unit[0]:.3f} and {unit[1]:.3f}."
    )


def _watch(config: "TrainConfig", library: AtomLibrary, device: str, pupil: Pupil) -> Numbers:
    """A quick validation: few conditions, a small bank; and signs of collapse."""
    embedders = embedders_of(config, pupil, device)
    conditions = {name: CONDITIONS[name] for name in _WATCHED}
    numbers = numbers_of(evaluate(embedders, library, conditions=conditions, views=1, largest=_SMALL_BANK))
    rng = torch.Generator(device=library.device).manual_seed(0)
    tower = pupil.tower.config
    clean = simulate_views(
        library,
        library.anchors_of("validation"),
        config=CONDITIONS["clean_6A"],
        rng=rng,
        window=tower.window,
        voxel_size=tower.voxel_size_A,
    )
    last = list(embedders)[-1]
    return numbers | collapse(embedders[last].embed(clean.density_BZYX.cpu().numpy()))

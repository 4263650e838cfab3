"""From a configuration and a folder of data to a trained AtomTower: the first two of three steps of CryoDomain.

Self-supervision (`recover`), then the vectors of one type together and those of others apart (`classify`,
`contrast`). The third step, alignment, is a run of a tower of densities whose targets are this tower's vectors.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from cryoscan.embedding import unit_rows
from cryoscan.models.atom_tower import AtomTower, embed_residues
from cryoscan.models.checkpoint import save_network
from cryoscan.models.residues import Residues, collate
from cryoscan.train.atom_objectives import (
    Corruption,
    Prototypes,
    contrast_types,
    cropped,
    disturb,
    prototype_contrast,
    recover_structure,
    seen_through_noise,
    triplet_contrast,
)
from cryoscan.train.card import draw_curves, write_card
from cryoscan.train.evaluate import Outcome, among_structures, collapse, numbers_of
from cryoscan.train.folder import CARD, PICTURE, begun, data_to_begin, first_weights, to_the_end
from cryoscan.train.folds import FoldLibrary
from cryoscan.train.kinship import Kinship, Sampler
from cryoscan.train.library import Split
from cryoscan.train.loop import TrainEvent, fit
from cryoscan.train.objectives import Numbers
from cryoscan.train.run import TrainFinished
from cryoscan.train.state import CURVES

if TYPE_CHECKING:
    from cryoscan.train.config import AtomTrainConfig

FOLDS, WEIGHTS = "folds.npz", "atom_tower.safetensors"
_BATCH = 8  # structures at a time where nothing is learned


@dataclass(frozen=True, slots=True, eq=False)
class FoldBatch:
    """The structures of a step.

    Parameters
    ----------
    parts : tuple of Residues, `b l`
        Structures of like length together.
    anchors_B : int64 tensor
        Of all structures, in the order of the parts.
    """

    parts: tuple[Residues, ...]
    anchors_B: Tensor


class AtomPupil(nn.Module):
    """A tower, and the prototypes that it is to put its vectors beside.

    Parameters
    ----------
    tower : AtomTower
    counts : sequence of sequences of int
        Nodes of each level of each classification; none where types are not classified.
    rng : torch.Generator, optional
        Of the first prototypes.
    """

    def __init__(
        self, tower: AtomTower, counts: Sequence[Sequence[int]] = (), *, rng: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.tower = tower
        self.prototypes = nn.ModuleList(Prototypes(levels, tower.dim, rng=rng) for levels in counts)


def train_atoms(
    config: "AtomTrainConfig",
    folder: Path | str,
    *,
    data: Path | str | None = None,
    until: int | None = None,
    device: str = "cpu",
) -> Iterator[TrainEvent | TrainFinished]:
    """Train an AtomTower in a folder, or go on there; the last event of a whole run is `TrainFinished`.

    Parameters
    ----------
    config : AtomTrainConfig
    folder : Path
        Of the run: structures, checkpoint, log, and at the end weights, curves and model card.
    data : Path, optional
        Data folder that the structures are read from. Only at the beginning.
    until : int, optional
        Stop after this step; the schedule stays that of all steps.
    device : str
        Where the network computes; structures are disturbed there, too.

    Raises
    ------
    MismatchError
        If the folder holds a run with other settings or other data, or the weights to begin with are of other sizes.
    MissingFileError
        If neither the folder has structures nor data are given.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    folds = folds_of_run(folder, data)
    provenance = begun(folder, config, folds.fingerprint, start_from=config.start_from)
    nodes = Kinship(folds.anchors).numbered() if config.objective == "classify" else []
    pupil = build_atom_pupil(config, nodes).to(device)
    events = fit(
        pupil,
        objective_of(config, folds, nodes),
        functools.partial(draw_folds, config, folds, _sampler(config, folds), device),
        config.fit_settings(),
        folder,
        validate=functools.partial(_watch, config, folds, device),
        until=until,
    )
    if not (yield from to_the_end(events)):
        return
    save_network(pupil.tower, folder / WEIGHTS, provenance=provenance)
    draw_curves(folder / CURVES, folder / PICTURE)
    outcomes = evaluate_structures(pupil.tower, folds, device=device)
    remarks = []
    if config.objective == "recover":
        numbers = recovery(pupil.tower, folds, config.corruption(), device=device)
        said = ", ".join(f"{name} {value:.3f}" for name, value in numbers.items())
        remarks.append(f"Recovery of disturbed validation domains: {said}.")
    write_card(
        folder / CARD,
        provenance=provenance,
        anchors=folds.anchors,
        outcomes=outcomes,
        tower=pupil.tower.config,
        remarks=remarks,
    )
    yield TrainFinished(folder / WEIGHTS, folder / CARD, tuple(outcomes))


def folds_of_run(folder: Path, data: Path | str | None) -> FoldLibrary:
    """The structures in a run's folder, or those of a data folder, divided as for towers of densities and put there."""
    path = folder / FOLDS
    if not path.exists():
        from cryoscan.train.split import read_library

        data = data_to_begin(folder, data)
        library, _ = read_library(data)
        FoldLibrary.of_folder(data, library.anchors).save(path)
    return FoldLibrary.load(path)


def build_atom_pupil(config: "AtomTrainConfig", nodes: Sequence[Tensor]) -> AtomPupil:
    """A tower with its first weights, and prototypes for the nodes of `Kinship.numbered`."""
    sizes = config.tower_config()
    tower = first_weights(lambda: AtomTower(sizes), seed=config.seed, start_from=config.start_from)
    counts = [[int(node) + 1 for node in nodes_DL.amax(dim=0)] for nodes_DL in nodes]
    return AtomPupil(tower, counts, rng=torch.Generator().manual_seed(config.seed))


def draw_folds(
    config: "AtomTrainConfig", folds: FoldLibrary, sampler: Sampler, device: str, step: int, rng: torch.Generator
) -> FoldBatch:
    """The structures of a step, cut to size; `rng` is that of the step."""
    rng = rng if rng.device.type == "cpu" else torch.Generator().manual_seed(rng.initial_seed())
    anchors_B = sampler.draw(config.batch, per_type=config.per_type, rng=rng)
    crop = config.corruption().crop
    drawn = [cropped(folds.residues[int(anchor)], crop, rng=rng) for anchor in anchors_B]
    order = np.argsort([len(one) for one in drawn], kind="stable")
    rows = [order[start : start + config.side_by_side] for start in range(0, len(order), config.side_by_side)]
    parts = tuple(collate([drawn[row] for row in some]).to(device) for some in rows)
    return FoldBatch(parts, anchors_B[torch.from_numpy(order)])


AtomObjective = functools.partial[tuple[Tensor, Numbers]]


def objective_of(config: "AtomTrainConfig", folds: FoldLibrary, nodes: Sequence[Tensor]) -> AtomObjective:
    """The objective with its settings: (pupil, batch, generator) → (loss, numbers)."""
    corruption = config.corruption()
    match config.objective:
        case "recover":
            return functools.partial(_recover, corruption=corruption)
        case "contrast":
            kinship = Kinship(folds.anchors)
            return functools.partial(_contrast, kinship=kinship, corruption=corruption, temperature=config.temperature)
        case "contrast_paper":
            return functools.partial(_contrast_paper, kinship=Kinship(folds.anchors), corruption=corruption)
    return functools.partial(_classify, nodes=nodes, corruption=corruption, temperature=config.temperature)


# ---------------------------------------------------------------- judged


def evaluate_structures(
    tower: AtomTower, folds: FoldLibrary, *, split: Split = "validation", seed: int = 0, device: str = "cpu"
) -> list[Outcome]:
    """Ask for held-out domains among all, by the tower's vectors.

    *whole*: which other domain of the type is it, among all types that were trained on; the
    split lies between sequence clusters. *disturbed*: the same of a copy that is disturbed
    as by `Corruption`, and: which domain is it.

    Parameters
    ----------
    tower : AtomTower
        On `device`.
    folds : FoldLibrary
    split : str
        Choose settings on ``validation``; ask for ``test`` once, at the end.
    seed : int
        Of the disturbance.
    device : str
    """
    queries = folds.anchors_of(split)
    wanted = [i for i, anchor in enumerate(folds.anchors) if anchor.split == split or anchor.types]
    vectors = np.zeros((len(folds.anchors), tower.dim), np.float32)
    vectors[wanted] = embed_residues(tower, [folds.residues[i] for i in wanted], batch=_BATCH, device=device)
    rng, parts = torch.Generator(device=device).manual_seed(seed), []
    with torch.inference_mode():
        for some in torch.split(queries, _BATCH):
            batch = collate([folds.residues[int(i)] for i in some]).to(device)
            noisy, hidden = disturb(batch, Corruption(), rng=rng)
            parts.append(tower.eval()(noisy, hidden=hidden).float().cpu().numpy())
    seen = {"whole": vectors[queries.numpy()], "disturbed": unit_rows(np.concatenate(parts))}
    found = []
    for condition, asked in seen.items():
        found += among_structures(
            "atoms", condition, asked, vectors, queries=queries, anchors=folds.anchors, split=split
        )
    return [one for one in found if (one.condition, one.question) != ("whole", "domain")]  # each is its own entry


def recovery(
    tower: AtomTower, folds: FoldLibrary, corruption: Corruption, *, seed: int = 0, device: str = "cpu"
) -> Numbers:
    """Means of the parts of `recover_structure` over the validation domains; see there."""
    rng, rows, sizes = torch.Generator(device=device).manual_seed(seed), [], []
    cut = torch.Generator().manual_seed(seed)
    with torch.inference_mode():
        for some in torch.split(folds.anchors_of("validation"), _BATCH):
            crops = [cropped(folds.residues[int(i)], corruption.crop, rng=cut) for i in some]
            batch = collate(crops).to(device)
            rows.append(recover_structure(tower.eval(), batch, corruption=corruption, rng=rng)[1])
            sizes.append(len(some))
    return {name: float(np.average([row[name] for row in rows], weights=sizes)) for name in rows[0]}


# ---------------------------------------------------------------- private


def _sampler(config: "AtomTrainConfig", folds: FoldLibrary) -> Sampler:
    return Sampler(folds, cap=config.cap, typed=config.objective != "recover")


def _recover(
    pupil: AtomPupil, batch: FoldBatch, rng: torch.Generator, *, corruption: Corruption
) -> tuple[Tensor, Numbers]:
    rng = _beside(batch, rng)
    found = [recover_structure(pupil.tower, part, corruption=corruption, rng=rng) for part in batch.parts]
    shares = [len(part.mask) / len(batch.anchors_B) for part in batch.parts]
    loss = torch.stack([share * one for share, (one, _) in zip(shares, found, strict=True)]).sum()
    names = found[0][1]
    return loss, {
        name: sum(share * numbers[name] for share, (_, numbers) in zip(shares, found, strict=True)) for name in names
    }


def _contrast(
    pupil: AtomPupil,
    batch: FoldBatch,
    rng: torch.Generator,
    *,
    kinship: Kinship,
    corruption: Corruption,
    temperature: float,
) -> tuple[Tensor, Numbers]:
    codes = kinship.codes(batch.anchors_B).to(batch.parts[0].mask.device)
    return contrast_types(
        pupil.tower, batch.parts, codes, corruption=corruption, rng=_beside(batch, rng), temperature=temperature
    )


def _contrast_paper(
    pupil: AtomPupil, batch: FoldBatch, rng: torch.Generator, *, kinship: Kinship, corruption: Corruption
) -> tuple[Tensor, Numbers]:
    raw = seen_through_noise(pupil.tower, batch.parts, corruption=corruption, rng=_beside(batch, rng))
    loss = triplet_contrast(raw, kinship.codes(batch.anchors_B)[:, -1].to(raw.device))
    return loss, {"triplets": float(loss.detach())}


def _classify(
    pupil: AtomPupil,
    batch: FoldBatch,
    rng: torch.Generator,
    *,
    nodes: Sequence[Tensor],
    corruption: Corruption,
    temperature: float,
) -> tuple[Tensor, Numbers]:
    raw = seen_through_noise(pupil.tower, batch.parts, corruption=corruption, rng=_beside(batch, rng))
    loss, right, asked = raw.new_zeros(()), 0.0, 0.0
    for nodes_DL, prototypes in zip(nodes, pupil.prototypes, strict=True):
        assert isinstance(prototypes, Prototypes)
        mine = nodes_DL[batch.anchors_B].to(raw.device)
        has_B = mine[:, -1] >= 0
        if has_B.any():
            loss = loss + has_B.float().mean() * prototype_contrast(raw, mine, prototypes, scale=1 / temperature)
            with torch.no_grad():
                cosines = functional.normalize(raw, dim=1) @ functional.normalize(prototypes.levels[-1], dim=1).T
                right += float((cosines.argmax(dim=1) == mine[:, -1])[has_B].sum())
                asked += float(has_B.sum())
    with torch.no_grad():
        spread = float(functional.normalize(raw, dim=1).std(0).mean() * raw.shape[1] ** 0.5)
    return loss, {"classes": float(loss.detach()), "type_first": right / max(asked, 1.0), "spread": spread}


def _beside(batch: FoldBatch, rng: torch.Generator) -> torch.Generator:
    """The generator where the structures lie."""
    device = batch.parts[0].mask.device
    return rng if rng.device.type == device.type else torch.Generator(device).manual_seed(rng.initial_seed())


def _watch(config: "AtomTrainConfig", folds: FoldLibrary, device: str, pupil: AtomPupil) -> Numbers:
    """A validation: recovery, or what is found among all domains, and signs of collapse."""
    some = [folds.residues[int(i)] for i in folds.anchors_of("validation")]
    signs = collapse(embed_residues(pupil.tower, some, batch=_BATCH, device=device))
    if config.objective == "recover":
        return recovery(pupil.tower, folds, config.corruption(), device=device) | signs
    return numbers_of(evaluate_structures(pupil.tower, folds, device=device)) | signs

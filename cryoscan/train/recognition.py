"""Training of the network that tells helices and strands apart: views whose atoms tell what is where."""

import functools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import torch
from torch import Tensor

from cryoscan.errors import MismatchError
from cryoscan.models.checkpoint import load_network, save_network
from cryoscan.models.secondary import SecondaryNet
from cryoscan.provenance import Provenance
from cryoscan.secondary import KINDS
from cryoscan.train.card import HELD_OUT, compose_card, fingerprint_line
from cryoscan.train.conditions import CONDITIONS
from cryoscan.train.folder import CARD, NetworkTrained, begun, fingerprint_library, library_of_run, to_the_end
from cryoscan.train.kinship import Sampler
from cryoscan.train.library import AtomLibrary, Split
from cryoscan.train.loop import TrainEvent, fit
from cryoscan.train.objectives import Numbers
from cryoscan.train.state import CURVES, read_curves
from cryoscan.train.views import Views, simulate_views

if TYPE_CHECKING:  # reading YAML needs more than a machine that only trains has
    from cryoscan.train.config import RecogniseTrainConfig

WEIGHTS = "secondary.safetensors"
_LEAST_DENSITY = 0.03  # of the largest: below, no kind is known
_WATCHED = ("clean_6A", "clean_10A", "neighbours_no_mask", "hard")
_ALL = 10**6  # held-out domains of both halves: settings of searching are chosen on one of them
_SOME = 64  # domains that a validation looks at
_LIMITS = """Trained on simulated density alone, at 4 to 10 Å on voxels of 2.5 Å; real maps differ. Nucleic acids,
ligands and membranes were never seen. Kinds are told from C-alpha distances, and turns often count as helix."""


def train_recogniser(
    config: "RecogniseTrainConfig",
    folder: Path | str,
    *,
    data: Path | str | None,
    until: int | None = None,
    device: str = "cpu",
) -> Iterator[TrainEvent | NetworkTrained]:
    """Train the secondary-structure network in a folder, or go on there.

    Parameters
    ----------
    config : RecogniseTrainConfig
    folder : Path
        Of the run: library, checkpoint, log, and at the end weights and model card.
    data : Path, optional
        Data folder; needed to begin.
    until : int, optional
        Stop after this step.
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
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    library = library_of_run(folder, data, hold_out=config.hold_out, validation=_ALL)
    provenance = begun(folder, config, fingerprint_library(library), start_from=config.start_from)
    network = _first(config)
    network = network.to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    library = library.to(device)
    sampler, views = Sampler(library, cap=config.cap), config.view_config()

    def draw(step: int, rng: torch.Generator) -> Views:
        anchors = sampler.draw(config.batch, rng=rng)
        return simulate_views(
            library, anchors, config=views, rng=rng, voxel_size=config.network_config().voxel_size_A, kinds=True
        )

    events = fit(
        network,
        functools.partial(recognise, bfloat16=config.bfloat16),
        draw,
        config.fit_settings(),
        folder,
        validate=functools.partial(watch, library),
        until=until,
    )
    if not (yield from to_the_end(events)):
        return
    save_network(network, folder / WEIGHTS, provenance=provenance)
    last = {name: float(values[-1]) for name, (_, values) in read_curves(folder / CURVES).items()}
    _write_card(folder / CARD, provenance, library, last)
    yield NetworkTrained(folder / WEIGHTS, folder / CARD, last)


def recognise(
    network: SecondaryNet, views: Views, rng: torch.Generator, *, bfloat16: bool = False
) -> tuple[Tensor, Numbers]:
    """Cross entropy of the kinds over voxels, weighted by the density that is seen; numbers: share that is right.

    Parameters
    ----------
    network : SecondaryNet
    views : Views
        With densities by kind.
    rng : torch.Generator
        Not used; the views are random enough.
    bfloat16 : bool
        Whether convolutions compute with 16 bits; the weights keep 32.
    """
    with torch.autocast(views.density_BZYX.device.type, torch.bfloat16, enabled=bfloat16):
        logits_BCZYX = network(views.density_BZYX)
    log_BCZYX = torch.log_softmax(logits_BCZYX.float(), dim=1)
    share_BCZYX, weight_BZYX = _told(views)
    loss = -((share_BCZYX * log_BCZYX).sum(dim=1) * weight_BZYX).sum()
    right_BZYX = share_BCZYX.gather(1, log_BCZYX.detach().argmax(dim=1, keepdim=True))[:, 0]
    return loss, {"right": (right_BZYX * weight_BZYX).sum().item()}


@torch.no_grad()
def watch(library: AtomLibrary, network: SecondaryNet) -> Numbers:
    """How often the likeliest kind is right on held-out domains, by condition and kind."""
    anchors = library.anchors_of("validation")
    anchors = anchors[:: max(1, len(anchors) // _SOME)] if len(anchors) else library.anchors_of("train")[:_SOME]
    numbers: Numbers = {}
    for name in _WATCHED:
        rng = torch.Generator(device=library.device).manual_seed(0)
        size = network.config.voxel_size_A
        views = simulate_views(library, anchors, config=CONDITIONS[name], rng=rng, voxel_size=size, kinds=True)
        first_BZYX = network(views.density_BZYX).argmax(dim=1)
        share_BCZYX, weight_BZYX = _told(views)
        of_kind_C = (share_BCZYX * weight_BZYX[:, None]).sum((0, 2, 3, 4))
        right_C = torch.stack([(share_BCZYX[:, k] * weight_BZYX)[first_BZYX == k].sum() for k in range(len(KINDS))])
        numbers[f"{name}/right"] = float(right_C.sum() / of_kind_C.sum())
        for kind, right, all_ in zip(KINDS, right_C.tolist(), of_kind_C.tolist(), strict=True):
            numbers[f"{name}/{kind}"] = right / max(all_, 1e-9)
            numbers[f"{name}/share_{kind}"] = all_ / float(of_kind_C.sum())
    return numbers


def _first(config: "RecogniseTrainConfig") -> SecondaryNet:
    """The network as a run begins with it."""
    sizes = config.network_config()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = SecondaryNet(sizes)
    if config.start_from is None:
        return network
    before = load_network(config.start_from, SecondaryNet)
    if replace(before.config, channels=sizes.channels) != sizes:
        raise MismatchError(
            "expected weights of a network that differs in channels alone",
            got=f"{before.config} in {config.start_from}",
            hint="Give the same sizes under `network`.",
        )
    return before.widened(sizes.channels, rng=torch.Generator().manual_seed(config.seed))


def _told(views: Views) -> tuple[Tensor, Tensor]:
    """Shares of the kinds at each voxel, `b kinds z y x`, and weights of the voxels that sum to 1, `b z y x`."""
    total_BZYX = views.kinds_BCZYX.sum(dim=1)
    there_BZYX = total_BZYX > _LEAST_DENSITY * total_BZYX.amax((1, 2, 3), keepdim=True)
    weight_BZYX = views.density_BZYX.clamp_min(0) * there_BZYX
    weight_BZYX = weight_BZYX / weight_BZYX.sum((1, 2, 3), keepdim=True).clamp_min(1e-12) / len(total_BZYX)
    return views.kinds_BCZYX / total_BZYX.clamp_min(1e-12)[:, None], weight_BZYX


def _write_card(path: Path, provenance: Provenance, library: AtomLibrary, last: Numbers) -> None:
    splits = [anchor.split for anchor in library.anchors]
    rows = [
        f"| {name} | "
        + " | ".join(
            f"{100 * last[f'validation/{name}/{key}']:.0f}"
            for key in ("right", *KINDS, *(f"share_{kind}" for kind in KINDS))
        )
        + " |"
        for name in _WATCHED
        if f"validation/{name}/right" in last
    ]
    data = [
        *(f"- {split}: {splits.count(split)} domains" for split in get_args(Split)),
        fingerprint_line(provenance),
        "",
        HELD_OUT if "validation" in splits else "Everything was trained on: the results are of domains it has seen.",
    ]
    results = [
        "Voxels whose likeliest kind is right, %, weighted by density: all, and of each kind; then the kinds' shares.",
        "",
        "| condition | all | coil | helix | strand | coil is | helix is | strand is |",
        "|---|---|---|---|---|---|---|---|",
        *rows,
    ]
    compose_card(path, "A secondary-structure network", provenance, data=data, results=results, limits=_LIMITS)

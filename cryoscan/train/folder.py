"""The folder of a training run: what it was begun with stays in it, and no other run goes on there."""

import json
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

from cryoscan.errors import MismatchError, MissingFileError
from cryoscan.models.checkpoint import Network, load_network
from cryoscan.provenance import Provenance, fingerprint_arrays, fingerprint_file, write_atomically
from cryoscan.train.library import AtomLibrary
from cryoscan.train.loop import TrainEvent
from cryoscan.train.objectives import Numbers

if TYPE_CHECKING:  # reading YAML needs more than a machine that only trains has
    from cryoscan.train.config import AnyTrainConfig

N = TypeVar("N", bound=Network)

LIBRARY, PROVENANCE, CARD, PICTURE = "library.npz", "provenance.json", "card.md", "curves.png"


@dataclass(frozen=True, slots=True)
class NetworkTrained:
    """The end of the run of a network that was watched, and not judged by what it finds.

    Parameters
    ----------
    weights, card : Path
    watched : dict
        The last validation.
    """

    weights: Path
    card: Path
    watched: Numbers


def library_of_run(
    folder: Path, data: Path | str | None, *, hold_out: bool = True, validation: int = 100
) -> AtomLibrary:
    """The library in a run's folder, or one made from data and put there, see `read_library`.

    Raises
    ------
    MissingFileError
        If neither the folder has a library nor data are given.
    """
    if (folder / LIBRARY).exists():
        return AtomLibrary.load(folder / LIBRARY)
    from cryoscan.train.split import read_library  # needs all that reading structures needs

    library, _ = read_library(data_to_begin(folder, data), hold_out=hold_out, validation=validation)
    library.save(folder / LIBRARY)
    return library


def data_to_begin(folder: Path, data: Path | str | None) -> Path:
    """The data folder of a run that begins.

    Raises
    ------
    MissingFileError
        If none is given.
    """
    if data is None:
        raise MissingFileError(
            f"expected a run in {folder}, or data to begin one",
            got="neither",
            hint="Give --data FOLDER, with structures/ and labels/.",
        )
    return Path(data)


def fingerprint_library(library: AtomLibrary) -> str:
    """Identifies the atoms and the anchors with their splits."""
    return fingerprint_arrays([np.array([str(anchor) for anchor in library.anchors]), library.steps_N3.cpu().numpy()])


def begun(folder: Path, config: "AnyTrainConfig", library: str, **weights: Path | None) -> Provenance:
    """The provenance of the run in a folder; of a new one if none was begun there.

    Parameters
    ----------
    folder : Path
    config : config of a training
    library : str
        Fingerprint of what is trained on.
    **weights : Path, optional
        Files that it begins with, by the settings that name them: their content counts, not their place.

    Raises
    ------
    MismatchError
        If a run with other settings, data or weights was begun there.
    """
    inputs = {"library": library} | {name: fingerprint_file(file) for name, file in weights.items() if file is not None}
    settings = config.model_dump(mode="json", exclude=set(weights))
    now, path = Provenance("cryoscan train", settings, inputs, config.seed), folder / PROVENANCE
    if not path.exists():
        write_atomically(path, json.dumps(now.to_json(), indent=1))
        return now
    before = Provenance.from_json(json.loads(path.read_text(encoding="utf-8")))
    differences = before.differences(now)
    if differences:
        raise MismatchError(
            f"expected the settings and data of the run in {folder}",
            got="; ".join(differences),
            hint="Change them back, or train in another folder.",
        )
    return before


def first_weights(make: Callable[[], N], *, seed: int, start_from: Path | None) -> N:
    """A network as a run begins with it: drawn from a seed, or the weights of another run.

    Raises
    ------
    FormatError
        If that one's network is of another kind, or its file is damaged.
    MismatchError
        If it is of other sizes.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first = make()
    if start_from is not None:
        before = load_network(start_from, type(first))
        if before.config != first.config:
            raise MismatchError(
                "expected weights of a network of the same sizes",
                got=f"{before.config} in {start_from}",
                hint="Give the same sizes in the configuration, or begin with other weights.",
            )
        first.load_state_dict(before.state_dict())
    return first


def to_the_end(events: Iterator[TrainEvent]) -> Generator[TrainEvent, None, bool]:
    """Pass the events of `fit` on; returns whether the run came to its end."""
    for event in events:
        yield event
        if event.stopped:
            return False
    return True

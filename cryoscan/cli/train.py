"""`cryoscan train`: towers of one's own, in runs that go on where they were stopped."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from cryoscan.cli import options as o
from cryoscan.cli import show


def train(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="YAML file that says what is trained.", show_default=False)
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FOLDER", help="Folder of the run.", show_default=False)
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", metavar="FOLDER", help="Structures and labels; needed to begin a run.", show_default=False
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option("--steps", min=1, help="Stop after this step; the same line goes on later.", show_default=False),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="Where torch computes: cpu, cuda, cuda:1 …")] = "cpu",
    as_json: o.Json = False,
) -> None:
    """Train a tower or another network of cryoscan; the same line goes on where the last checkpoint is.

    Example: cryoscan train configs/train/reconstruct.yaml --data FOLDER -o runs/reconstruct
    """
    from cryoscan.train.atom_run import train_atoms
    from cryoscan.train.card import results_table
    from cryoscan.train.comparison import train_comparison
    from cryoscan.train.config import (
        AtomTrainConfig,
        CompareTrainConfig,
        EnhanceTrainConfig,
        RecogniseTrainConfig,
        read_train_config,
    )
    from cryoscan.train.enhance_run import train_enhancer
    from cryoscan.train.folder import NetworkTrained
    from cryoscan.train.recognition import train_recogniser
    from cryoscan.train.run import TrainFinished
    from cryoscan.train.run import train as run

    settings = read_train_config(config)
    events: Iterator[Any]
    if isinstance(settings, EnhanceTrainConfig):
        events = train_enhancer(settings, output, data=data, until=steps, device=device)
    elif isinstance(settings, AtomTrainConfig):
        events = train_atoms(settings, output, data=data, until=steps, device=device)
    elif isinstance(settings, RecogniseTrainConfig):
        events = train_recogniser(settings, output, data=data, until=steps, device=device)
    elif isinstance(settings, CompareTrainConfig):
        events = train_comparison(settings, output, data=data, until=steps, device=device)
    else:
        events = run(settings, output, data=data, until=steps, device=device)
    try:
        last = show.to_the_end(events, "steps")
    except KeyboardInterrupt:
        show.note("Stopped. Give the same command again to go on from the last checkpoint.")
        raise typer.Exit(130) from None
    finished = isinstance(last, TrainFinished | NetworkTrained)
    about: dict[str, Any] = {"output": str(output), "finished": finished}
    if isinstance(last, NetworkTrained):
        about |= {"weights": str(last.weights), "watched": last.watched}
        text = f"{last.weights}: described in {last.card}"
    elif isinstance(last, TrainFinished):
        about |= {"weights": str(last.weights), "results": [one.row() for one in last.outcomes]}
        text = "\n".join([*results_table(last.outcomes), f"{last.weights}: described in {last.card}"])
    else:
        about |= {"step": last.done, "steps": last.total}
        text = f"{output}: {last.done} of {last.total} steps. The same command without --steps does the rest."
    show.print_json(about) if as_json else show.line(text)

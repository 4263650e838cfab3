"""How a pupil is trained: one loop with schedule, average, checkpoints and log, that goes on where it was stopped."""

import math
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from cryoscan.errors import ConfigError
from cryoscan.train.objectives import Numbers
from cryoscan.train.state import CHECKPOINT, CURVES, cut_log, log_row, resume_state, save_state

P = TypeVar("P", bound=nn.Module)  # what is trained
B = TypeVar("B")  # what it sees in a step


@dataclass(frozen=True, slots=True, kw_only=True)
class FitSettings:
    """How the weights are moved; what they are moved for is the objective's business."""

    steps: int
    """Batches in all; the learning rate falls to nothing along them."""
    learning_rate: float = 2e-3
    """Largest step of AdamW (Loshchilov & Hutter 2019)."""
    warm_up: int = 100
    """Steps over which the learning rate rises to its largest."""
    weight_decay: float = 1e-2
    """Of kernels and matrices; gains and targets do not decay."""
    clip: float = 1.0
    """Largest length of the gradient."""
    average: float = 0.999
    """Memory of the running mean of the weights, which is what is kept of a run."""
    seed: int = 0
    """Each step draws with a generator of this and its own number."""
    report_every: int = 20
    """Steps between rows of the log."""
    validate_every: int = 1000
    """Steps between validations."""
    save_every: int = 100
    """Steps between checkpoints."""


@dataclass(frozen=True, slots=True)
class TrainEvent:
    """Where a run is: after a row of the log, and when it ends or is stopped.

    Parameters
    ----------
    done, total : int
        Steps.
    numbers : dict
        Means since the last row; those of a validation begin with ``validation/``.
    stopped : bool
        Whether the run was told to stop before its end.
    """

    done: int
    total: int
    numbers: Numbers
    stopped: bool = False


def fit(
    pupil: P,
    objective: Callable[[P, B, torch.Generator], tuple[Tensor, Numbers]],
    draw: Callable[[int, torch.Generator], B],
    settings: FitSettings,
    folder: Path | str,
    *,
    validate: Callable[[P], Numbers] | None = None,
    until: int | None = None,
) -> Iterator[TrainEvent]:
    """Train, or go on with the run in a folder; bit by bit the same on a processor, however often it is stopped.

    SIGTERM ends the run after the step at hand, with a checkpoint.

    Parameters
    ----------
    pupil : Module
        Moved in place. At the end it holds the running mean of its weights.
    objective : callable
        (pupil, batch, generator) → (loss, numbers); see `cryoscan.train.objectives`.
    draw : callable
        (step, generator) → batch. The generator is on the pupil's device.
    settings : FitSettings
    folder : Path
        Of the checkpoint and the log; made if it does not exist.
    validate : callable, optional
        Pupil with averaged weights, in evaluation → numbers.
    until : int, optional
        Stop after this step and leave the rest of the schedule for later.

    Raises
    ------
    ConfigError
        If the loss or the gradient is no finite number any more.
    FormatError, MismatchError
        If the folder's checkpoint is damaged or belongs to another pupil or other settings.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    optimizer = torch.optim.AdamW(_groups(pupil, settings.weight_decay), betas=(0.9, 0.98))
    average = {name: tensor.detach().clone() for name, tensor in pupil.state_dict().items()}
    first = resume_state(folder / CHECKPOINT, pupil, optimizer, average, asdict(settings))
    cut_log(folder / CURVES, first)
    last, device = min(settings.steps, until or settings.steps), next(pupil.parameters()).device
    since: dict[str, list[float]] = defaultdict(list)
    if last <= first < settings.steps:
        yield TrainEvent(first, settings.steps, {}, stopped=True)
    with _told_to_stop() as stop, ThreadPoolExecutor(1, "draw") as ahead:  # a batch is drawn while one is learned from

        def drawn(step: int) -> "Future[B]":
            return ahead.submit(draw, step, generator(settings.seed, step, 0, device=device))

        following = drawn(first) if first < last else None
        for step in range(first, last):
            pupil.train()
            for group in optimizer.param_groups:
                group["lr"] = rate = learning_rate(settings, step)
            assert following is not None
            batch = following.result()
            following = drawn(step + 1) if step + 1 < last else None
            optimizer.zero_grad()
            with torch.random.fork_rng(devices=[]):  # dropout draws from the global generator
                torch.manual_seed(generator(settings.seed, step, 2).initial_seed())
                loss, numbers = objective(pupil, batch, generator(settings.seed, step, 1))
                loss.backward()  # type: ignore[no-untyped-call]
            slope = torch.nn.utils.clip_grad_norm_(pupil.parameters(), settings.clip).item()
            if not math.isfinite(slope + loss.item()):
                _refuse_not_finite(step, loss.item(), slope, folder)
            optimizer.step()
            _follow(average, pupil, decay=min(settings.average, (1 + step) / (10 + step)))
            for name, value in {"loss": loss.item(), **numbers, "gradient": slope, "rate": rate}.items():
                since[name].append(value)
            done, over = step + 1, stop.is_set() or step + 1 == last
            if over or done % settings.save_every == 0:
                save_state(folder / CHECKPOINT, pupil, optimizer, average, asdict(settings), step=done)
            validates = validate is not None and (done % settings.validate_every == 0 or done == settings.steps)
            if over or validates or done % settings.report_every == 0:
                row = {name: float(np.mean(values)) for name, values in since.items()}
                since.clear()
                if validate is not None and validates:
                    row |= {f"validation/{name}": value for name, value in _with(average, pupil, validate).items()}
                row["processor_s"] = time.process_time()
                log_row(folder / CURVES, done, row)
                yield TrainEvent(done, settings.steps, row, stopped=done < settings.steps and over)
            if over:
                break
    pupil.load_state_dict(average)
    pupil.eval()


def learning_rate(settings: FitSettings, step: int) -> float:
    """Rise in a line, then fall along half a cosine (Loshchilov & Hutter 2017, eq. 5) to a hundredth."""
    if step < settings.warm_up:
        return settings.learning_rate * (step + 1) / settings.warm_up
    passed = (step - settings.warm_up) / max(1, settings.steps - settings.warm_up)
    return settings.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, passed))))


def generator(seed: int, step: int, stream: int, *, device: torch.device | str = "cpu") -> torch.Generator:
    """The generator of one step: a run needs no random state to go on, only the number of its next step."""
    mixed = np.random.SeedSequence([seed, step, stream]).generate_state(1, np.uint64)[0]
    return torch.Generator(device=device).manual_seed(int(mixed >> np.uint64(1)))


# ---------------------------------------------------------------- weights


def _groups(pupil: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    matrices = [weight for name, weight in pupil.named_parameters() if weight.ndim > 1 and name != "targets_DK"]
    others = [weight for name, weight in pupil.named_parameters() if weight.ndim < 2 or name == "targets_DK"]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


@torch.no_grad()
def _follow(average: dict[str, Tensor], pupil: nn.Module, *, decay: float) -> None:
    for name, tensor in pupil.state_dict().items():
        if tensor.is_floating_point():
            average[name].lerp_(tensor, 1 - decay)
        else:
            average[name].copy_(tensor)


def _with(average: dict[str, Tensor], pupil: P, validate: Callable[[P], Numbers]) -> Numbers:
    """What a validation says of the averaged weights; the pupil is left as it was."""
    own = {name: tensor.clone() for name, tensor in pupil.state_dict().items()}
    pupil.load_state_dict(average)
    pupil.eval()
    try:
        with torch.no_grad():
            return validate(pupil)
    finally:
        pupil.load_state_dict(own)


def _refuse_not_finite(step: int, loss: float, slope: float, folder: Path) -> None:
    raise ConfigError(
        f"expected a finite loss and gradient at step {step}",
        got=f"loss {loss:g}, gradient {slope:g}",
        hint=f"Lower learning_rate and start anew, or go on from the checkpoint in {folder}.",
    )


@contextmanager
def _told_to_stop() -> Iterator[threading.Event]:
    """An event that SIGTERM sets; only the main thread may listen to signals."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)

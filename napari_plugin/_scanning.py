"""A scan as the viewer runs it: looked at first, started, paused, gone on with, given up."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from psygnal import Signal

from cryoscan.errors import CryoscanError
from cryoscan.scan import (
    LabelsPainted,
    PlacesNamed,
    ScanFinished,
    TileDone,
    discard_unfinished,
)
from napari_plugin import _tasks
from napari_plugin._background import Background, Job, StoppedError
from napari_plugin._tasks import Outlook, Planned, ScanRequest, SoFar

State: TypeAlias = Literal["idle", "looking", "running", "stopping", "paused", "done", "failed"]

_STEPS: dict[type, int] = {TileDone: 1, PlacesNamed: 2, LabelsPainted: 3}


class Scanning:
    """One scan at a time, in a process of its own; the folder of the scan keeps what is done.

    Parameters
    ----------
    background : Background
    """

    state_changed = Signal(str)
    looked = Signal(object)
    """The `Outlook` of a request."""
    progressed = Signal(object)
    """A `Progress`."""
    begun = Signal(object)
    """Folder of the scan: its lattices can be opened from now on."""
    tile_done = Signal()
    found = Signal(object)
    """`Hits` until now."""
    finished = Signal(object)
    """Folder of the scan."""
    failed = Signal(object)
    """What went wrong, as an exception."""
    warned = Signal(str)

    def __init__(self, background: Background) -> None:
        self._background = background
        self._job: Job | None = None
        self._discard = False
        self.request: ScanRequest | None = None
        self.state: State = "idle"

    def look(self, request: ScanRequest) -> None:
        """Say what a scan would do and need, before it starts."""
        self._become("looking")
        self._job = self._background.run(
            _tasks.outlook, request, on_done=self._on_looked, on_error=self._on_error, kind="look"
        )

    def start(self, request: ScanRequest) -> None:
        """Scan, or go on with an unfinished scan of the same settings."""
        self.request, self._discard = request, False
        self._become("running")
        self._job = self._background.run(
            _tasks.scan, request, on_event=self._on_event, on_error=self._on_error, kind="scan"
        )

    def pause(self) -> None:
        """Stop after what is being computed; `resume` goes on with the first piece that is missing."""
        if self.state == "running" and self._job is not None:
            self._become("stopping")
            self._background.stop(self._job)

    def resume(self) -> None:
        """Go on."""
        if self.state in ("paused", "failed") and self.request is not None:
            self.start(replace(self.request, overwrite=False))

    def cancel(self) -> None:
        """Give the scan up, and remove what there is of it."""
        if self.state == "paused":
            self._remove()
        elif self.state == "running":
            self._discard = True
            self.pause()

    def _on_looked(self, outlook: Outlook) -> None:
        self._become("idle")
        self.looked.emit(outlook)

    def _on_event(self, event: Any) -> None:
        if isinstance(event, Planned):
            self.begun.emit(event.output)
        elif isinstance(event, SoFar):
            self.found.emit(event.hits)
        elif isinstance(event, ScanFinished):
            self._become("done")
            self.finished.emit(event.result.path)
        elif type(event) in _STEPS:
            left = event.seconds_left
            time = "" if left is None else f", about {_duration(left)} left in this step"
            step = _STEPS[type(event)]
            self.progressed.emit(Progress(step, event.done, event.total, f"{event.stage}{time}"))
            if isinstance(event, TileDone):
                self.tile_done.emit()
                if event.error is not None:
                    self.warned.emit(f"A tile failed: {event.error}")

    def _on_error(self, error: BaseException) -> None:
        if isinstance(error, StoppedError):
            self._become("paused")
            if self._discard:
                self._remove()
            return
        self._become("idle" if self.state == "looking" else "failed")
        self.failed.emit(error)

    def _remove(self) -> None:
        assert self.request is not None
        try:
            if Path(self.request.output).exists():
                discard_unfinished(self.request.output)
        except (CryoscanError, OSError) as error:
            self.failed.emit(error)
        self._become("idle")

    def _become(self, state: State) -> None:
        self.state = state
        self.state_changed.emit(state)


class Progress:
    """How far a scan is: step 1 to 3, pieces done of all pieces in this step, and a sentence."""

    steps = 3

    def __init__(self, step: int, done: int, total: int, text: str) -> None:
        self.step, self.done, self.total, self.text = step, done, total, text

    def __repr__(self) -> str:
        return f"Progress(step {self.step} of {self.steps}: {self.done} of {self.total} {self.text})"


def _duration(seconds: float) -> str:
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"

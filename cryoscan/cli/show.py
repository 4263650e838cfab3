"""How answers look: tables and JSON on stdout, progress, notes and warnings on stderr."""

import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

_WIDTH = 100  # columns where the output is no terminal


class _Countable(Protocol):
    @property
    def done(self) -> int: ...
    @property
    def total(self) -> int: ...


Event = TypeVar("Event")


def print_json(value: dict[str, Any]) -> None:
    """Print one JSON object, the only thing on stdout."""
    print(json.dumps(value, ensure_ascii=False))


def line(text: str = "") -> None:
    """Print a line of the answer."""
    print(text)


def note(text: str) -> None:
    """Say something that is not part of the answer."""
    print(text, file=sys.stderr, flush=True)


def warn(warnings: Iterable[str]) -> None:
    """Say what may be wrong."""
    for warning in warnings:
        note(f"warning: {warning}")


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, right: Sequence[str] = ()) -> None:
    """Print a table; columns named in `right` hold numbers and never wrap."""
    shown = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        number = column in right
        shown.add_column(column, justify="right" if number else "left", no_wrap=number, overflow="fold")
    for row in rows:
        shown.add_row(*(Text(str(cell)) for cell in row))
    _console(sys.stdout).print(shown)


def facts(pairs: Iterable[tuple[str, object]]) -> None:
    """Print names and values, one pair a line."""
    pairs = list(pairs)
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        print(f"{name:<{width}}  {value}")


def progress(events: Iterable[Event], what: str) -> Iterator[Event]:
    """Hand events on while showing how far they are and how long the rest will take.

    On a terminal a bar; elsewhere a line at every tenth, so that log files stay short.
    """
    console = _console(sys.stderr)
    start = time.monotonic()
    if not console.is_terminal:
        yield from _in_tenths(events, what, start)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[left]}"))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=None, left="")
        for event in events:
            if hasattr(event, "done") and hasattr(event, "total"):
                stage = getattr(event, "stage", what)
                bar.update(task, description=stage, completed=event.done, total=event.total, left=_left(event, start))
            yield event


def to_the_end(events: Iterable[Event], what: str) -> Event:
    """Show progress until all is done, and give the last event: the one with the result."""
    *_, last = progress(events, what)
    return last


def _in_tenths(events: Iterable[Event], what: str, start: float) -> Iterator[Event]:
    said, stage = 0, what
    for event in events:
        if hasattr(event, "done") and hasattr(event, "total"):
            if getattr(event, "stage", what) != stage:
                said, stage = 0, getattr(event, "stage", what)
            tenth = 10 * event.done // max(event.total, 1)
            if tenth > said:
                said = tenth
                note(f"{stage}: {event.done} of {event.total}  {_left(event, start)}".rstrip())
        yield event


def _left(event: _Countable, start: float) -> str:
    seconds = getattr(event, "seconds_left", None)
    if seconds is None:
        seconds = (time.monotonic() - start) / max(event.done, 1) * (event.total - event.done)
    return "" if seconds < 1 else f"about {duration(seconds)} left"


def duration(seconds: float) -> str:
    """A time span for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _console(stream: Any) -> Console:
    console = Console(file=stream, highlight=False)
    return console if console.is_terminal else Console(file=stream, highlight=False, width=_WIDTH)

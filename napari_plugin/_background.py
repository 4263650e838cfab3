"""Work that takes longer than a blink happens in a process of its own, so that the viewer never waits for it.

A thread would not do: arithmetic in Python holds the interpreter for long stretches, and the window
would freeze. The process runs one function at a time and sends back what it yields and returns. It
starts with the first piece of work, and ends with the viewer, however that ends.
"""

import itertools
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import IO, Any

from cryoscan.errors import CryoscanError, ResourceError

_GRACE = 10.0  # seconds that a process gets to put down its work


@dataclass(eq=False)
class Job:
    """A piece of work: what to call, and whom to tell.

    Parameters
    ----------
    function : function
        Of a module; if it is a generator, `on_event` gets what it yields.
    arguments : tuple
    on_event, on_done, on_error : function
        Called from `Background.poll` with a value, the result, or an exception.
    kind : str
        Of several that wait, only the last of a kind is done.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    on_event: Callable[[Any], None]
    on_done: Callable[[Any], None]
    on_error: Callable[[BaseException], None]
    kind: str = ""
    number: int = field(default=0)
    stopped: bool = field(default=False, init=False)  # asked to stop


class StoppedError(CryoscanError):
    """The work was stopped on request."""


class Background:
    """One process beside the viewer's, and the work that waits for it."""

    def __init__(self) -> None:
        self._waiting: list[Job] = []
        self._running: Job | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._to: Connection | None = None
        self._stops: Connection | None = None
        self._said: queue.SimpleQueue[tuple[int, str, Any]] = queue.SimpleQueue()
        self._listener: threading.Thread | None = None
        self._numbers = itertools.count(1)

    @property
    def busy(self) -> bool:
        """Whether anything is being done or waits."""
        return self._running is not None or bool(self._waiting)

    def run(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        on_event: Callable[[Any], None] = lambda _: None,
        on_done: Callable[[Any], None] = lambda _: None,
        on_error: Callable[[BaseException], None] = lambda _: None,
        kind: str = "",
    ) -> Job:
        """Have a function called in the other process; never waits."""
        if kind:
            self._waiting = [job for job in self._waiting if job.kind != kind]
        job = Job(function, arguments, on_event, on_done, on_error, kind, next(self._numbers))
        self._waiting.append(job)
        self._start_next()
        return job

    def poll(self) -> None:
        """Tell everybody what has come since the last time; call it from the viewer's thread."""
        while True:
            try:
                number, what, value = self._said.get_nowait()
            except queue.Empty:
                return
            job = self._running
            if what == "died":
                self._forget_process()
                if job is not None:
                    self._running = None
                    job.on_error(_stopped() if job.stopped else _death(value))  # it may not have come to listen
            elif job is None or job.number != number:
                continue
            elif what == "event":
                job.on_event(value)
                continue
            else:
                self._running = None
                (job.on_done if what == "done" else job.on_error)(value)
            self._start_next()

    def stop(self, job: Job) -> None:
        """Ask for an end of a piece of work: it gets `StoppedError`; what it has finished stays."""
        if job in self._waiting:
            self._waiting.remove(job)
            job.on_error(_stopped())
        elif job is self._running and self._process is not None and self._stops is not None:
            job.stopped = True
            self._stops.send(job.number)  # it may not have begun yet, and would not mind the signal
            self._process.send_signal(signal.SIGINT)

    def close(self) -> None:
        """End the process; what it was doing is put down cleanly."""
        self._waiting.clear()
        process, self._running = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGINT)
        if self._to is not None:
            self._to.close()
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if self._listener is not None:
            self._listener.join(_GRACE)
        while not self._said.empty():
            self._said.get()
        self._forget_process()

    def _start_next(self) -> None:
        if self._running is not None or not self._waiting:
            return
        self._running = self._waiting.pop(0)
        job = self._running
        try:
            self._connection().send((job.number, job.function, job.arguments))
        except OSError as error:
            self._said.put((job.number, "error", _death(str(error))))

    def _connection(self) -> Connection:
        if self._to is None:
            commands, to = os.pipe()
            stops, stop = os.pipe()
            answers, back = os.pipe()
            complaints = tempfile.TemporaryFile()  # noqa: SIM115 - closed by the listener
            start = f"from napari_plugin._background import work; work({commands}, {stops}, {back})"
            self._process = subprocess.Popen(
                [sys.executable, "-c", start],
                pass_fds=(commands, stops, back),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=complaints,
                start_new_session=True,  # Ctrl-C in the terminal is for the viewer, which then stops us
            )
            for theirs in (commands, stops, back):
                os.close(theirs)
            self._to, self._stops = Connection(to, readable=False), Connection(stop, readable=False)
            said = self._process, Connection(answers, writable=False), complaints
            self._listener = threading.Thread(target=self._listen, args=said, daemon=True)
            self._listener.start()
        return self._to

    def _listen(self, process: subprocess.Popen[bytes], answers: Connection, complaints: IO[bytes]) -> None:
        with answers, complaints:
            while True:
                try:
                    self._said.put(answers.recv())
                except (EOFError, OSError):
                    break
            process.wait()
            complaints.seek(0)
            tail = complaints.read()[-500:].decode(errors="replace").strip().splitlines()
        self._said.put((0, "died", f"exit code {process.returncode}{': ' + tail[-1] if tail else ''}"))

    def _forget_process(self) -> None:
        for pipe in (self._to, self._stops):
            if pipe is not None:
                pipe.close()
        self._process, self._to, self._stops = None, None, None


def _death(how: str) -> CryoscanError:
    return ResourceError(
        "expected the process that does the work to live",
        got=how,
        hint="It may have run out of memory: close other programs, or take a smaller part of the volume; then try "
        "again. What it had finished is kept.",
    )


def _stopped() -> CryoscanError:
    return StoppedError("expected to finish", got="a request to stop", hint="What is finished is kept.")


# ---------------------------------------------------------------- the other process


def work(commands_from: int, stops_from: int, answers_to: int) -> None:
    """Do what comes in through one pipe, and say what came of it through the last, until the first is closed.

    Through the second come the numbers of what is to be stopped, each before its signal: a signal that comes while a
    command is still being read, which imports whatever it needs, stops nothing by itself.
    """
    commands, stops = (Connection(pipe, writable=False) for pipe in (commands_from, stops_from))
    back = Connection(answers_to, readable=False)
    busy = False

    def interrupt(*_: object) -> None:
        if busy:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    while True:
        try:
            number, function, arguments = commands.recv()
        except EOFError:
            return
        try:
            busy = True
            while stops.poll():
                if stops.recv() == number:
                    raise KeyboardInterrupt
            for what, value in _results(function, arguments):
                back.send((number, what, value))
            busy = False
        except KeyboardInterrupt:
            busy = False
            back.send((number, "error", _stopped()))
        except BrokenPipeError:  # the viewer is gone
            return
        except Exception as error:  # whatever goes wrong is the viewer's to say
            busy = False
            back.send((number, "error", error))


def _results(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Iterator[tuple[str, Any]]:
    result = function(*arguments)
    if isinstance(result, Iterator):
        for event in result:
            yield "event", event
        result = None
    yield "done", result

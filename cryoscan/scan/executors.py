"""Where the work of a scan is done: in this process, or by dask workers here, in a cluster or under Slurm.

Each piece of work is a function of a plan, a folder and a number. It leaves its result in
the folder and is the same work wherever and however often it is done, so a worker that dies
costs its piece and nothing else.
"""

import errno
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cryoscan.errors import CryoscanError, MismatchError, ResourceError
from cryoscan.scan.plan import ScanPlan

if TYPE_CHECKING:
    import distributed

_FATAL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
_ATTEMPTS = 3
_PER_WORKER = 2  # pieces handed out per worker: the next waits there while one is worked on
_PATIENCE = 600.0  # seconds after which a piece that others do in far less is taken as hanging
_PATIENCE_FACTOR = 20.0


@dataclass(frozen=True, slots=True)
class Work:
    """A kind of work.

    Parameters
    ----------
    name : str
    read : function of (plan, folder, number)
        Fetches what is needed; may run ahead in another thread.
    process : function of (plan, folder, number, what was read)
        Computes, writes, and returns a small value.
    """

    name: str
    read: Callable[[ScanPlan, Path, int], Any]
    process: Callable[[ScanPlan, Path, int, Any], Any]

    def __call__(self, plan: ScanPlan, path: Path, number: int) -> Any:
        """Do one piece."""
        return self.process(plan, path, number, self.read(plan, path, number))


@dataclass(frozen=True, slots=True)
class Outcome:
    """A piece of work that is done, or that cannot be done.

    Parameters
    ----------
    number : int
    value : object
        What the work returned.
    error : str, optional
        Why it failed every time.
    """

    number: int
    value: Any = None
    error: str | None = None


class Executor(Protocol):
    """Does pieces of work, in any order."""

    @property
    def workers(self) -> int:
        """How many pieces are worked on at once on this machine."""
        ...

    def run(self, work: Work, plan: ScanPlan, path: Path, numbers: Sequence[int]) -> Iterator[Outcome]:
        """Do the pieces and say what became of each.

        Raises
        ------
        ResourceError
            If no piece can be done, e.g. on a full disk.
        """
        ...


class InProcess:
    """One piece after the other in this process, while the next is being read."""

    workers = 1

    def run(self, work: Work, plan: ScanPlan, path: Path, numbers: Sequence[int]) -> Iterator[Outcome]:
        """See `Executor`."""
        with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as reader:
            ahead: Future[Any] | None = None
            for place, number in enumerate(numbers):
                reading = ahead or reader.submit(work.read, plan, path, number)
                following = numbers[place + 1] if place + 1 < len(numbers) else None
                ahead = None if following is None else reader.submit(work.read, plan, path, following)
                yield _attempted(work, plan, path, number, reading)


def _attempted(work: Work, plan: ScanPlan, path: Path, number: int, reading: "Future[Any]") -> Outcome:
    try:
        return Outcome(number, work.process(plan, path, number, reading.result()))
    except MemoryError as error:
        raise _no_memory(error) from error
    except (CryoscanError, OSError, RuntimeError, ValueError) as error:
        raise_if_fatal(error, path)
        return Outcome(number, error=_reason(error))


class Dask:
    """Workers of a dask scheduler, each of which opens the plan for itself.

    Parameters
    ----------
    client : distributed.Client
    threads : int
        Threads per worker for the arithmetic.
    here : int
        Workers on this machine, whose memory must suffice for them.
    patience : float
        Seconds after which a piece is taken as hanging if others take a twentieth of that or less.
    """

    def __init__(
        self, client: "distributed.Client", *, threads: int = 1, here: int = 0, patience: float = _PATIENCE
    ) -> None:
        self._client = client
        self._threads = threads
        self._here = here
        self._patience = patience

    @property
    def workers(self) -> int:
        """See `Executor`; this process itself looks at tiles too while it plans."""
        return max(1, self._here)

    def run(self, work: Work, plan: ScanPlan, path: Path, numbers: Sequence[int]) -> Iterator[Outcome]:
        """See `Executor`."""
        import distributed
        from distributed.protocol.pickle import dumps

        opened = self._client.submit(_open_plan, dumps(plan), self._threads, pure=False)
        waiting = deque((number, 1) for number in numbers)
        running: dict[Any, tuple[int, int, float]] = {}
        longest = 0.0
        while waiting or running:
            while waiting and len(running) < _PER_WORKER * max(1, self._present()):
                number, attempt = waiting.popleft()
                future = self._client.submit(_do, work, opened, path, number, pure=False, retries=0)
                running[future] = (number, attempt, time.monotonic())
            try:
                done = distributed.wait(list(running), timeout=1.0, return_when="FIRST_COMPLETED").done
            except TimeoutError:
                done = set()
            for future in done:
                number, attempt, start = running.pop(future)
                if future.status == "finished":
                    longest = max(longest, time.monotonic() - start)
                    yield Outcome(number, future.result())
                    continue
                error = _error_of(future)
                raise_if_fatal(error, path)
                if isinstance(error, MismatchError) or (isinstance(error, CryoscanError) and opened.status == "error"):
                    raise error
                if isinstance(error, CryoscanError) or attempt == _ATTEMPTS:
                    yield Outcome(number, error=_reason(error))
                else:
                    waiting.append((number, attempt + 1))
            self._free_the_hanging(running, waiting, max(self._patience, _PATIENCE_FACTOR * longest))

    def _present(self) -> int:
        """Workers everywhere; none if they are still on their way."""
        return len(self._client.scheduler_info(n_workers=-1)["workers"])

    def _free_the_hanging(
        self, running: dict[Any, tuple[int, int, float]], waiting: deque[tuple[int, int]], patience: float
    ) -> None:
        """Restart workers whose piece takes far too long, and give the piece to another."""
        late = {f.key: f for f, (_, _, start) in running.items() if time.monotonic() - start > patience}
        if not late:
            return
        for address, keys in self._client.processing().items():
            hanging = [key for key in keys if key in late]
            if hanging:
                for key in hanging:
                    number, attempt, _ = running.pop(late[key])
                    late[key].cancel(force=True)
                    waiting.append((number, attempt + 1))
                self._client.restart_workers([address], raise_for_error=False)
        for future, (number, attempt, _) in list(running.items()):  # the clock of all others starts again
            running[future] = (number, attempt, time.monotonic())


# ---------------------------------------------------------------- who the workers are


@contextmanager
def local_workers(count: int, *, patience: float = _PATIENCE) -> Iterator[Dask]:
    """Processes on this machine; with GPUs, one per GPU is enough.

    Parameters
    ----------
    count : int
    """
    import distributed

    cores = os.cpu_count() or 1
    with (
        _quiet(),
        distributed.LocalCluster(
            n_workers=count, threads_per_worker=1, processes=True, dashboard_address=None, memory_limit=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield Dask(client, threads=max(1, cores // count), here=count, patience=patience)


@contextmanager
def scheduler_workers(address: str) -> Iterator[Dask]:
    """The workers of a scheduler that runs already.

    Raises
    ------
    ResourceError
        If nobody answers at the address.
    """
    import distributed

    try:
        client = distributed.Client(address, timeout=10)
    except (OSError, ValueError) as error:
        raise ResourceError(
            f"expected a dask scheduler at {address}",
            got=str(error),
            hint="Start one with `dask scheduler` and workers with `dask worker`, and give its tcp:// address.",
        ) from error
    with client:
        yield Dask(client)


@contextmanager
def _quiet() -> Iterator[None]:
    """Dask logs every worker that is restarted; what matters is said by the scan's own events."""
    import logging

    loggers = [logging.getLogger(name) for name in ("distributed", "distributed.nanny", "distributed.scheduler")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


# ---------------------------------------------------------------- on the worker


def _open_plan(content: bytes, threads: int) -> ScanPlan:
    """Runs on a worker: open what the plan is about."""
    from distributed.protocol.pickle import loads

    os.environ["OMP_NUM_THREADS"] = str(threads)  # for libraries that are loaded later
    plan = loads(content)
    assert isinstance(plan, ScanPlan)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
    return plan


def _do(work: Work, plan: ScanPlan, path: Path, number: int) -> Any:
    """Runs on a worker: do a piece."""
    return work(plan, path, number)


# ---------------------------------------------------------------- what went wrong


def _error_of(future: Any) -> BaseException:
    try:
        error = future.exception(timeout=10)
    except Exception as lost:  # cancelled, or its worker is gone
        return lost
    return error if isinstance(error, BaseException) else RuntimeError(f"the work was {future.status}")


@contextmanager
def disk_errors_said(path: Path) -> Iterator[None]:
    """Say in three parts that a folder cannot be written.

    Raises
    ------
    ResourceError
        If the disk is full or read-only, or the folder is gone.
    """
    try:
        yield
    except CryoscanError:
        raise
    except OSError as error:
        raise_if_fatal(error, path)
        raise


def raise_if_fatal(error: BaseException, path: Path) -> None:
    """A disk that is full or read-only, or a folder that is gone, fails every piece: stop at once."""
    if not path.is_dir():
        raise ResourceError(
            f"expected the folder {path} to stay while it is written",
            got="none: somebody removed or renamed it",
            hint="Give the same command again to start anew.",
        ) from error
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _FATAL:
            raise ResourceError(
                f"expected to write {path}",
                got=cause.strerror or str(cause),
                hint="Free some space or get the right to write; then give the same command again: what is done is "
                "kept.",
            ) from error
        cause = cause.__cause__ or cause.__context__


def _no_memory(error: BaseException) -> ResourceError:
    return ResourceError(
        "expected enough memory for a tile",
        got=str(error) or "none left",
        hint="Use smaller tiles (tile_points in the settings) or fewer workers.",
    )


def _reason(error: BaseException) -> str:
    if type(error).__name__ == "KilledWorker":
        return "its worker died every time it was tried: probably out of memory"
    text = str(error).replace("\n", " ")
    return text if isinstance(error, CryoscanError) else f"{type(error).__name__}: {text}"

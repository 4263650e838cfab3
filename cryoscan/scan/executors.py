"""Where the work of a scan is done: in this process, or by dask workers here, in a cluster or under Slurm.

Each piece of work is a function of a plan, a folder and a number. It leaves its result in
the folder and is the same work wherever and however often it is done, so a worker that dies
costs its piece and nothing else.
"""

import contextlib
import errno
import logging
import os
import sys
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cryoscan.errors import CryoscanError, ResourceError
from cryoscan.scan.plan import ScanPlan

if TYPE_CHECKING:
    import distributed

_FATAL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
_ATTEMPTS = 3
MEMORY = {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": str(1 << 30), "MALLOC_MMAP_THRESHOLD_": str(1 << 30)}
"""What workers need in their environment: by default dask has them give memory back at once, and threads other than the
first cannot keep large arrays at all. Both cost a tower the same again (measured: 5.6 s a tile instead of 3.4)."""

_PER_WORKER = 2  # pieces handed out per worker: the next waits there while one is worked on
_PATIENCE = 600.0  # seconds after which a piece that others do in far less is taken as hanging
_PATIENCE_FACTOR = 20.0
_ANSWER = 10.0  # seconds within which a scheduler answers


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
        from distributed.protocol.pickle import dumps

        key = f"cryoscan-{uuid.uuid4().hex}"
        self._client.register_plugin(_everywhere(dumps(plan)), name=key)
        try:
            yield from self._run(work, key, path, numbers)
        finally:
            with contextlib.suppress(OSError):
                self._client.unregister_worker_plugin(key)

    def _run(self, work: Work, key: str, path: Path, numbers: Sequence[int]) -> Iterator[Outcome]:
        import distributed

        waiting = deque((number, 1) for number in numbers)
        suspects: deque[tuple[int, int]] = deque()  # were there when a worker died or hung; tried again one by one
        running: dict[Any, tuple[int, int, float]] = {}
        longest = 0.0
        seen: float | None = None  # when there was a worker last; jobs may wait in a queue for long before the first
        while waiting or suspects or running:
            present = self._present()
            seen = time.monotonic() if present else seen
            if seen is not None and time.monotonic() - seen > self._patience:
                raise ResourceError(
                    "expected workers until the scan is finished",
                    got="none any more",
                    hint="See in their logs why they ended; the same command goes on where this one stopped.",
                )
            while waiting and len(running) < _PER_WORKER * max(1, present):
                self._hand_out(waiting.popleft(), running, work, key, path)
            if suspects and not running:
                self._hand_out(suspects.popleft(), running, work, key, path)
            try:
                done = distributed.wait(list(running), timeout=1.0, return_when="FIRST_COMPLETED").done
            except TimeoutError:
                done = set()
            for future in done:
                number, attempt, start = running.pop(future)
                value, error = _answer(future)
                if isinstance(value, _NotOpened):
                    raise value.error
                if isinstance(error, TimeoutError) and future.status != "error":
                    running[future] = (number, attempt, start)  # lost with its worker, and being done again
                    continue
                if error is None:
                    longest = max(longest, time.monotonic() - start)
                    yield Outcome(number, value)
                    continue
                raise_if_fatal(error, path)
                if isinstance(error, CryoscanError) or attempt == _ATTEMPTS:
                    yield Outcome(number, error=_reason(error))
                else:
                    (suspects if _is_death(error) else waiting).append((number, attempt + 1))
            for number, attempt in self._stop_hanging(running, max(self._patience, _PATIENCE_FACTOR * longest)):
                if attempt == _ATTEMPTS:
                    yield Outcome(number, error="it did not end, every time it was tried")
                else:
                    suspects.append((number, attempt + 1))

    def _hand_out(
        self,
        piece: tuple[int, int],
        running: dict[Any, tuple[int, int, float]],
        work: Work,
        key: str,
        path: Path,
    ) -> None:
        number, attempt = piece
        future = self._client.submit(_do, work, key, self._threads, path, number, pure=False, retries=0)
        running[future] = (number, attempt, time.monotonic())

    def _present(self) -> int:
        """Workers everywhere; none if they are still on their way."""
        return len(self._client.scheduler_info(n_workers=-1)["workers"])

    def _stop_hanging(self, running: dict[Any, tuple[int, int, float]], patience: float) -> list[tuple[int, int]]:
        """Restart workers whose pieces take far too long; gives these pieces."""
        late = {f.key: f for f, (_, _, start) in running.items() if time.monotonic() - start > patience}
        if not late:
            return []
        stopped = []
        for address, keys in self._client.processing().items():
            hanging = [key for key in keys if key in late]
            if hanging:
                for key in hanging:
                    number, attempt, _ = running.pop(late[key])
                    late[key].cancel(force=True)
                    stopped.append((number, attempt))
                self._client.restart_workers([address], raise_for_error=False)
        for future, (number, attempt, _) in list(running.items()):  # the clock of all others starts again
            running[future] = (number, attempt, time.monotonic())
        return stopped


# ---------------------------------------------------------------- who the workers are


@contextlib.contextmanager
def local_workers(count: int, *, patience: float = _PATIENCE) -> Iterator[Dask]:
    """Processes on this machine; with GPUs, one per GPU is enough.

    Parameters
    ----------
    count : int
    """
    import dask
    import distributed

    cores = os.cpu_count() or 1
    with (
        _quiet(),
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),  # pieces are tried again here
        dask.config.set({"distributed.deploy.lost-worker-timeout": "1 d"}),  # else two deaths end a worker for good
        dask.config.set({"distributed.nanny.pre-spawn-environ": {**MEMORY, "OMP_NUM_THREADS": "1"}}),
        distributed.LocalCluster(
            n_workers=count,
            threads_per_worker=1,
            processes=True,
            dashboard_address=":0",
            memory_limit=None,
            silence_logs=logging.CRITICAL,
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        client.register_plugin(_one_gpu_each())
        yield Dask(client, threads=max(1, cores // count), here=count, patience=patience)


def _everywhere(content: bytes) -> Any:
    """Gives bytes to all workers, those that come later or are restarted included.

    As an argument they would go with every piece, and as a result of one worker the others
    would have to ask that one.
    """
    import distributed

    class Everywhere(distributed.WorkerPlugin):  # type: ignore[misc]
        def __init__(self) -> None:
            self.content = content

    return Everywhere()


def _one_gpu_each() -> Any:
    """Shows each worker of this machine one GPU, in turn, before torch looks for them; also after a restart."""
    import distributed

    class OneGpuEach(distributed.WorkerPlugin):  # type: ignore[misc]
        name = "one-gpu-each"

        def setup(self, worker: Any) -> None:
            gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
            if gpus == [""]:  # nobody has said which; asking torch would fix what this process sees
                gpus = [str(number) for number, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))]
            if len(gpus) > 1:
                os.environ["CUDA_VISIBLE_DEVICES"] = gpus[int(worker.name) % len(gpus)]

    return OneGpuEach()


@contextlib.contextmanager
def scheduler_workers(address: str) -> Iterator[Dask]:
    """The workers of a scheduler that runs already.

    Raises
    ------
    ResourceError
        If nobody answers at the address.
    """
    import distributed

    try:
        client = distributed.Client(address, timeout=_ANSWER)
    except (OSError, ValueError) as error:
        raise ResourceError(
            f"expected a dask scheduler at {address}",
            got=str(error),
            hint="Start one with `dask scheduler` and workers with `dask worker`, and give its tcp:// address.",
        ) from error
    with client:
        yield Dask(client)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Dask logs every worker that is restarted; what matters is said by the scan's own events."""
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


@dataclass(frozen=True, slots=True)
class _NotOpened:
    """What a worker answers that cannot open the plan: another worker could not either."""

    error: CryoscanError


@lru_cache(maxsize=1)
def _open_plan(content: bytes, threads: int) -> ScanPlan:
    """Runs on a worker, once: open what the plan is about."""
    from distributed.protocol.pickle import loads

    os.environ["OMP_NUM_THREADS"] = str(threads)  # for libraries that are loaded later
    plan = loads(content)
    assert isinstance(plan, ScanPlan)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
    return plan


def _do(work: Work, key: str, threads: int, path: Path, number: int) -> Any:
    """Runs on a worker: do a piece."""
    import distributed

    try:
        plan = _open_plan(distributed.get_worker().plugins[key].content, threads)
    except CryoscanError as error:
        return _NotOpened(error)
    return work(plan, path, number)


# ---------------------------------------------------------------- what went wrong


def _answer(future: Any) -> tuple[Any, BaseException | None]:
    """What a piece returned, or why it did not; the answer lies with a worker, which may have died since."""
    try:
        return future.result(timeout=_ANSWER), None
    except Exception as error:  # the piece's own, or that its worker is gone
        return None, error


@contextlib.contextmanager
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


def _is_death(error: BaseException) -> bool:
    """Whether a piece failed because its worker died, be it its own fault or that of another piece there."""
    return type(error).__name__ == "KilledWorker"


def _reason(error: BaseException) -> str:
    if _is_death(error):
        return "its worker died every time it was tried: probably out of memory"
    text = str(error).replace("\n", " ")
    return text if isinstance(error, CryoscanError) else f"{type(error).__name__}: {text}"

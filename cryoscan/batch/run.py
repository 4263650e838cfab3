"""Running a batch: one volume after the other, whatever happens to any of them."""

import logging
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cryoscan.batch.plan import BatchItem
from cryoscan.batch.record import (
    Status,
    VolumeRecord,
    is_being_written,
    is_whole,
    read_record,
    status_on_disk,
    write_record,
)
from cryoscan.batch.table import SUMMARY, BatchRow, write_summary
from cryoscan.datedb import DateDB
from cryoscan.embedding import Embedder
from cryoscan.errors import ConfigError, CryoscanError, ExistingOutputError, FormatError, ResourceError
from cryoscan.scan import ScanFinished, ScanPlan, ScanResult, TileDone, open_scan
from cryoscan.workflows import scan_tomogram

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class VolumeStarted:
    """Event: a volume's turn; `number` counts from 1 to `total`, the volumes that this process has to do."""

    name: str
    number: int
    total: int


@dataclass(frozen=True, slots=True)
class VolumePlanned:
    """Event: what the scan of a volume will do, or what is left of it."""

    name: str
    plan: ScanPlan


@dataclass(frozen=True, slots=True)
class VolumeProgress:
    """Event of a volume's scan.

    Parameters
    ----------
    name : str
    done, total : int
        As the scan counts.
    stage : str
        What is counted, and of which volume.
    seconds_left : float or None
        Of this stage.
    event : object
        The scan's own.
    """

    name: str
    done: int
    total: int
    stage: str
    seconds_left: float | None
    event: Any


@dataclass(frozen=True, slots=True)
class VolumeDone:
    """Event: a volume is scanned, in 0 s if another process did it; `seconds_left` is for all volumes after it."""

    name: str
    result: ScanResult
    seconds: float = 0.0
    seconds_left: float = 0.0


@dataclass(frozen=True, slots=True)
class VolumeFailed:
    """Event: a volume was left for the next; the same command tries it again."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class VolumeBusy:
    """Event: another process is scanning this volume."""

    name: str


@dataclass(frozen=True, slots=True)
class BatchFinished:
    """Event: every volume has had its turn.

    Parameters
    ----------
    rows : tuple of BatchRow
        Of the whole folder, as in the table.
    path : Path
        Of the table.
    failed : dict
        Name → reason, of the volumes of this process.
    """

    rows: tuple[BatchRow, ...]
    path: Path
    failed: dict[str, str]


BatchEvent = VolumeStarted | VolumePlanned | VolumeProgress | VolumeDone | VolumeFailed | VolumeBusy | BatchFinished


def run_batch(
    items: Sequence[BatchItem],
    *,
    datedb: DateDB,
    embedder: Embedder,
    shard: tuple[int, int] | None = None,
    overwrite: bool = False,
    **run_options: Any,
) -> Generator[BatchEvent, None, None]:
    """Scan what is left of a batch.

    What is done is left alone, what is half done goes on, what failed is tried again. An
    error in one volume does not stop the others. Stop iterating, or Ctrl-C, whenever you
    like: the same call goes on.

    Parameters
    ----------
    items : sequence of BatchItem
        All of the batch, from `plan_batch`, also where a shard is chosen.
    datedb, embedder
        As in `plan_batch`.
    shard : (i, n), optional
        One of n processes, counted from 1 as in `run_scan`: every n-th item from the i-th on.
    overwrite : bool
        Scan anew what was scanned with other settings or from other files; it is an error else.
    **run_options
        For `scan_tomogram`.

    Raises
    ------
    ConfigError
        If there is no such shard.
    ResourceError
        If the folder or the table cannot be written.
    """
    mine, output = of_shard(items, shard), items[0].output.parent
    waiting = [item for item in mine if item.status not in (Status.done, Status.missing)]
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(
            f"expected to create the folder {output}", got=str(error), hint="Check permissions and the disk."
        ) from error
    failed: dict[str, str] = {}
    begun, scanned = time.monotonic(), 0
    try:
        for number, item in enumerate(waiting, start=1):
            yield VolumeStarted(item.name, number, len(waiting))
            turn = _turn(item, datedb=datedb, embedder=embedder, overwrite=overwrite, **run_options)
            with closing(turn) as events:
                for event in events:
                    if isinstance(event, VolumeDone):
                        scanned += 1
                        left = (time.monotonic() - begun) / scanned * (len(waiting) - number)
                        event = replace(event, seconds_left=left)
                    if isinstance(event, VolumeFailed):
                        failed[item.name] = event.reason
                    yield event
            _keep_going(write_summary, output, items)
    except (KeyboardInterrupt, GeneratorExit):
        _keep_going(write_summary, output, items)
        raise
    yield BatchFinished(tuple(write_summary(output, items)), output / SUMMARY, failed)


def preview_batch(
    items: Sequence[BatchItem],
    *,
    datedb: DateDB,
    embedder: Embedder,
    shard: tuple[int, int] | None = None,
) -> Iterator[VolumePlanned | VolumeFailed]:
    """Plan the scan of every volume that is left, and write nothing: what is wrong with a volume shows here."""
    for item in of_shard(items, shard):
        if item.status in (Status.done, Status.missing):
            continue
        try:
            if item.file is None:
                yield VolumeFailed(item.name, item.reason)
                continue
            events = scan_tomogram(**_given(item), datedb=datedb, embedder=embedder)
            plan = next(events)
            assert isinstance(plan, ScanPlan)
            yield VolumePlanned(item.name, plan)
        except (CryoscanError, OSError, MemoryError) as error:
            yield VolumeFailed(item.name, _reason(error))


def of_shard(items: Sequence[BatchItem], shard: tuple[int, int] | None) -> list[BatchItem]:
    """The items of one of n processes.

    Raises
    ------
    ConfigError
        If there is no such shard.
    """
    index, count = shard or (1, 1)
    if not 1 <= index <= count:
        raise ConfigError(
            "expected a shard i/n with i from 1 to n",
            got=f"{index}/{count}",
            hint="Three processes are 1/3, 2/3 and 3/3.",
        )
    return list(items[index - 1 :: count])


def _turn(
    item: BatchItem, *, datedb: DateDB, embedder: Embedder, overwrite: bool, **run_options: Any
) -> Generator[BatchEvent, None, None]:
    """The events of one volume; whatever is wrong with it ends in `VolumeFailed`."""
    before = read_record(item.output) or VolumeRecord(str(item.path))
    status, _ = status_on_disk(item.output, item.provenance, before)
    if status is Status.done:  # by another process, since the plan
        yield VolumeDone(item.name, open_scan(item.output))
        return
    if item.file is None:
        _keep_going(write_record, item.output, replace(before, error=item.reason))
        yield VolumeFailed(item.name, item.reason)
        return
    options = {**run_options, "overwrite": overwrite and status is Status.changed}
    record: VolumeRecord | None = before
    start, reason = time.monotonic(), ""
    try:
        with closing(_scan(item, datedb=datedb, embedder=embedder, **options)) as events:
            for event in events:
                if record is before and not isinstance(event, VolumePlanned):  # now the folder is surely of this scan
                    record = _begun(item, read_record(item.output) or before)
                    _keep_going(write_record, item.output, record)
                yield replace(event, seconds=time.monotonic() - start) if isinstance(event, VolumeDone) else event
    except _BusyError:
        record = None  # it is the other process's
        yield VolumeBusy(item.name)
    except (CryoscanError, OSError, MemoryError) as error:
        reason = _reason(error)
    except Exception as error:  # hundreds of volumes must not wait until morning for a bug that one of them shows
        _log.exception("%s: unexpected error", item.name)
        reason = f"{type(error).__name__}: {error}. This is a bug in cryoscan: please report it."
    finally:
        if record is not None:
            spent = 0.0 if record is before else time.monotonic() - start
            _keep_going(write_record, item.output, replace(record, seconds=record.seconds + spent, error=reason))
    if reason:
        yield VolumeFailed(item.name, reason)


def _scan(item: BatchItem, **options: Any) -> Generator[VolumePlanned | VolumeProgress | VolumeDone, None, None]:
    try:
        failures: list[str] = []
        for event in scan_tomogram(**_given(item), **options):
            if isinstance(event, ScanPlan):
                yield VolumePlanned(item.name, event)
            elif not isinstance(event, ScanFinished):
                if isinstance(event, TileDone) and event.error:
                    failures.append(event.error)
                yield _progress(item.name, event)
            elif is_whole(event.result):
                yield VolumeDone(item.name, event.result)
            else:
                raise FormatError(
                    f"expected every part of {item.path} to be scanned",
                    got="; ".join(dict.fromkeys(failures)) or "parts that failed",
                    hint="Give the same command again: only the parts that failed are tried.",
                )
    except ExistingOutputError as error:
        if is_being_written(item.output):
            raise _BusyError from error
        if status_on_disk(item.output, item.provenance, None)[0] is not Status.done:
            raise
        yield VolumeDone(item.name, open_scan(item.output))  # another process was faster


class _BusyError(Exception):
    """Another process is at work on this volume."""


def _given(item: BatchItem) -> dict[str, Any]:
    """What `scan_tomogram` wants to know about the volume."""
    assert item.file is not None
    given: dict[str, Any] = {"volume": item.file.open(), "path": item.output, "source": item.file}
    given |= {"config": item.config, "enhancer": item.enhancer}
    return given if item.mask is None else {**given, "mask": item.mask.open()}


def _begun(item: BatchItem, before: VolumeRecord) -> VolumeRecord:
    """The record of a scan that goes on, or that starts anew."""
    assert item.provenance is not None
    same = before.provenance is not None and not before.provenance.differences(item.provenance)
    seconds = before.seconds if same else 0.0
    return VolumeRecord(str(item.path), item.provenance, seconds, item.warnings)


def _progress(name: str, event: Any) -> VolumeProgress:
    left = getattr(event, "seconds_left", None)
    return VolumeProgress(name, event.done, event.total, f"{name}: {getattr(event, 'stage', 'tiles')}", left, event)


def _reason(error: BaseException) -> str:
    if isinstance(error, CryoscanError):
        return str(error)
    if isinstance(error, OSError):
        place = f" ({error.filename})" if error.filename else ""
        return f"expected a working disk; got {error.strerror or error}{place}. Check space and permissions."
    return "expected enough memory; got too little. Scan fewer planes (z_range), or bin the volume."


def _keep_going(write: Callable[..., object], *words: object) -> None:
    """What cannot be noted now, on a full disk for example, must not stop the scans; the table is made once more."""
    try:
        write(*words)
    except OSError as error:
        _log.warning("not written for now: %s", error)

"""Running a plan: the lattice tile by tile, then its places, then names and labels; all of it resumable."""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryoscan.errors import ConfigError, MismatchError
from cryoscan.provenance import fingerprint_file, write_atomically
from cryoscan.scan.executors import Executor, InProcess, Outcome, disk_errors_said
from cryoscan.scan.finish import FIND_PLACES, LabelsPainted, PlacesNamed, finish, places_to_find
from cryoscan.scan.folder import alone_among_shards, exclusive, failures, finished_tiles, prepare
from cryoscan.scan.places import forget_places_around, places_file
from cryoscan.scan.plan import ScanPlan
from cryoscan.scan.result import ScanResult, open_scan
from cryoscan.scan.sharpening import FOLDER as SHARPENED
from cryoscan.scan.tile import SCAN_TILE

_WATCH = 20.0  # seconds between looks at whether the volume is still the same


@dataclass(frozen=True, slots=True)
class TileDone:
    """Event: a tile is computed and safe on disk, or cannot be computed.

    Parameters
    ----------
    done, total : int
        Tiles, those of earlier runs included.
    windows : int
        Windows embedded in this tile.
    seconds_left : float or None
        Estimate; None before the first tile of this run.
    error : str, optional
        Why the tile failed. The rest is scanned nevertheless, and the next run tries it again.
    """

    done: int
    total: int
    windows: int
    seconds_left: float | None
    error: str | None = None
    stage: str = "tiles scanned"


@dataclass(frozen=True, slots=True)
class ShardDone:
    """Event: this shard has done its share, others have not; the last of them will finish the scan.

    Parameters
    ----------
    left : int
        Tiles that others still work on.
    """

    left: int


@dataclass(frozen=True, slots=True)
class ScanFinished:
    """Event: the scan is complete, but for tiles that failed."""

    result: ScanResult


ScanEvent = TileDone | PlacesNamed | LabelsPainted | ShardDone | ScanFinished


def run_scan(
    plan: ScanPlan,
    path: Path | str,
    *,
    overwrite: bool = False,
    executor: Executor | None = None,
    shard: tuple[int, int] | None = None,
) -> Iterator[ScanEvent]:
    """Run a plan, or what is left of it.

    Parameters
    ----------
    plan : ScanPlan
    path : Path
        Folder of the scan, ``name.scan``. An unfinished scan of the same plan is continued.
    overwrite : bool
        Start anew in place of an existing scan.
    executor : Executor, optional
        Who does the work; this process by default.
    shard : (i, n), optional
        Do the i-th of n shares, counted from 1; the shard that ends last finishes the scan.

    Raises
    ------
    ConfigError
        If a share is to overwrite.
    MismatchError
        If the folder holds a scan of other settings or inputs, or the volume changes meanwhile.
    ExistingOutputError
        If it is something else, a finished scan, or one that another process is writing.
    ResourceError
        If the disk is full or read-only, or memory does not suffice.
    """
    path = Path(path).absolute()
    executor = executor or InProcess()
    if overwrite and shard is not None:
        raise ConfigError(
            "expected --shard without --overwrite",
            got="both",
            hint="Remove the earlier scan before the first share starts: a later one would remove the others' work.",
        )
    prepare(plan, path, overwrite=overwrite, workers=executor.workers)
    with disk_errors_said(path), exclusive(path, shard=shard):
        plan = plan.kept_in(path)
        active = plan.active.tolist() if plan.scannable else []
        share = active if shard is None else active[shard[0] - 1 :: shard[1]]
        yield from _scan_tiles(plan, path, share, executor)
        failed = failures(path)
        left = len(set(active) - set(finished_tiles(plan, path)) - set(failed))
        if left:
            yield ShardDone(left)
            return
        with alone_among_shards(path, "finish") as mine:
            if not mine:
                yield ShardDone(0)
                return
            yield from _find_places(plan, path, executor)
            yield from finish(plan, path, executor=executor, failed=failures(path))
            shutil.rmtree(path / SHARPENED, ignore_errors=True)
            yield ScanFinished(open_scan(path))


def _scan_tiles(plan: ScanPlan, path: Path, share: Sequence[int], executor: Executor) -> Iterator[TileDone]:
    done = finished_tiles(plan, path)
    waiting = [index for index in share if index not in done]
    for index in waiting:
        if _failure_file(path, index).exists():
            forget_places_around(plan, path, index)
            _failure_file(path, index).unlink()
    before = len(share) - len(waiting)
    start = time.monotonic()
    watch = _Watch(plan, lambda number: path / "tiles" / str(number))
    for count, outcome in enumerate(executor.run(SCAN_TILE, plan, path, waiting), start=1):
        watch.saw(outcome)
        if outcome.error is not None:
            _note_failure(plan, path, outcome)
        left = (time.monotonic() - start) / count * (len(waiting) - count)
        windows = 0 if outcome.error is not None else outcome.value.windows
        yield TileDone(before + count, len(share), windows, left, outcome.error)
    watch.look()


def _find_places(plan: ScanPlan, path: Path, executor: Executor) -> Iterator[PlacesNamed]:
    waiting, before = places_to_find(plan, path)
    for index in waiting:
        _failure_file(path, index).unlink(missing_ok=True)
    start = time.monotonic()
    watch = _Watch(plan, lambda number: places_file(path, number))
    found = 0
    for count, outcome in enumerate(executor.run(FIND_PLACES, plan, path, waiting), start=1):
        watch.saw(outcome)
        if outcome.error is not None:
            _note_failure(plan, path, outcome)
        found += outcome.value or 0
        left = (time.monotonic() - start) / count * (len(waiting) - count)
        yield PlacesNamed(before + count, before + len(waiting), left, found)
    watch.look()


# ---------------------------------------------------------------- what failed


def _failure_file(path: Path, index: int) -> Path:
    return path / "failed" / f"{index}.json"


def _note_failure(plan: ScanPlan, path: Path, outcome: Outcome) -> None:
    """Keep the place and the reason of a tile that failed; the rest goes on."""
    file = _failure_file(path, outcome.number)
    file.parent.mkdir(exist_ok=True)
    step, origin = plan.lattice_geometry
    box = plan.tiling.box(outcome.number) if outcome.number >= 0 else ()
    place = [[o + part.start * step, o + (part.stop - 1) * step] for o, part in zip(origin, box, strict=False)]
    write_atomically(file, json.dumps({"centres_zyx_A": place, "reason": outcome.error}))


class _Watch:
    """Notices that the volume changes while it is scanned, and takes back what was done since it was last the same."""

    def __init__(
        self, plan: ScanPlan, result: Callable[[int], Path], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._plan, self._result, self._clock = plan, result, clock
        self._print = None if plan.source is None else fingerprint_file(plan.source.path)
        self._unsure: list[int] = []
        self._last = clock()

    def saw(self, outcome: Outcome) -> None:
        """Remember a piece, and look at the volume if that was long ago."""
        self._unsure.append(outcome.number)
        if self._clock() - self._last > _WATCH:
            self.look()

    def look(self) -> None:
        """Compare the volume's file with what it was."""
        self._last = self._clock()
        if self._plan.source is None or fingerprint_file(self._plan.source.path) == self._print:
            self._unsure.clear()
            return
        for number in self._unsure:
            self._result(number).unlink(missing_ok=True)
        raise MismatchError(
            f"expected {self._plan.source.path} to stay as it is while it is scanned",
            got="a file that changed",
            hint="Let the program that writes it end first; then scan into a new name, or with --overwrite.",
        )

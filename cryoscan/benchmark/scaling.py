"""What a scan costs and how it grows: time, memory and what interruptions cost, on volumes made for it.

Every measurement runs in a process of its own, so that peaks of memory are its own. The
volumes are smooth noise without empty space, the worst case; the tower has random weights,
which cost as much as trained ones, and the DateDB has random vectors for the entries of the
one that ships with the package.
"""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from cryoscan.benchmark.config import BenchmarkConfig
from cryoscan.benchmark.result import BenchmarkProgress, BenchmarkResult, Table
from cryoscan.datedb import DateDB, open_datedb
from cryoscan.embedding import Embedder, unit_rows
from cryoscan.errors import ResourceError
from cryoscan.filters import lowpass_gaussian
from cryoscan.io import VolumeFile, create_zarr
from cryoscan.scan import ScanConfig, ScanPlan, TileDone, local_workers, plan_scan, run_scan
from cryoscan.tiles import Tiling
from cryoscan.units import Shape

_BLOCK = 128  # voxels; the noise repeats with this period
_WINDOWS = 64  # that are timed one by one
_KILLS = 20
_SMALL = 4  # lattice points per edge of a tile: enough tiles that hardly one is hit twice


def run_scaling(config: BenchmarkConfig) -> Iterator[BenchmarkProgress | BenchmarkResult]:
    """Measure; see the module's docstring and `BenchmarkConfig.parts`."""
    numbers: dict[str, Any] = {}
    tables: list[Table] = []
    for done, part in enumerate(config.parts):
        yield BenchmarkProgress(f"measuring {part}", done, len(config.parts))
        found, table = _PARTS[part](config)
        numbers |= {f"{part}.{name}": value for name, value in found.items()}
        tables.append(table)
    notes = (
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end; seconds are those of the processor, not of "
        "the clock, unless it says wall.",
    )
    yield BenchmarkResult(numbers, tuple(tables), notes)


# ---------------------------------------------------------------- parts


def _dense(config: BenchmarkConfig) -> tuple[dict[str, Any], Table]:
    """Windows one by one against whole blocks."""
    numbers: dict[str, Any] = {}
    rows = []
    for name in ("invariant", "compact"):
        found = _child("dense", embedder=name, edge=128)
        numbers |= {f"{name}.{key}": value for key, value in found.items()}
        rows.append(
            (
                name,
                f"{found['windowed_per_s']:,.0f}",
                f"{found['dense_per_s']:,.0f}",
                f"{found['dense_per_s'] / found['windowed_per_s']:.0f} ×",
                f"{found['cosine']:.3f}",
            )
        )
    columns = ("embedder", "windows/s one by one", "lattice points/s dense", "ratio", "mean centred cosine")
    return numbers, Table("128³ voxels at stride 4, one thread", columns, tuple(rows))


def _growth(config: BenchmarkConfig) -> tuple[dict[str, Any], Table]:
    """Processor time and memory from small volumes to large ones."""
    rows, points, seconds = [], [], []
    numbers: dict[str, Any] = {}
    for shape in config.shapes:
        found = _child("scan", embedder="compact", shape=shape)
        name = "x".join(map(str, shape))
        numbers |= {f"{name}.{key}": value for key, value in found.items()}
        points.append(found["points"])
        seconds.append(found["cpu_s"])
        rows.append(
            (
                name,
                f"{found['points']:,}",
                f"{found['cpu_s']:.0f} s",
                f"{found['wall_s']:.0f} s",
                f"{found['lattice_s'] / found['cpu_s']:.0%}",
                f"{found['peak_bytes'] / 2**30:.2f} GiB",
                f"{found['projected_bytes'] / 2**30:.2f} GiB",
            )
        )
    if len(points) > 2:
        slope, constant = np.polyfit(points, seconds, 1)
        rest = np.asarray(seconds) - (slope * np.asarray(points) + constant)
        numbers["r2"] = float(1 - (rest**2).sum() / ((seconds - np.mean(seconds)) ** 2).sum())
        numbers["microseconds_per_point"] = float(slope * 1e6)
        rows.append(("linear fit", f"r² = {numbers['r2']:.4f}", f"{slope * 1e6:.0f} µs/point", "", "", "", ""))
    columns = ("voxels", "lattice points", "processor", "wall", "of it lattice", "peak memory", "projected")
    return numbers, Table("End to end at stride 4, compact tower, in this process", columns, tuple(rows))


def _workers(config: BenchmarkConfig) -> tuple[dict[str, Any], Table]:
    """Two workers against one; one arithmetic thread each."""
    one, two = (_child("scan", embedder="compact", shape=config.shared, workers=count) for count in (1, 2))
    ratio, overhead = one["tiles_wall_s"] / two["tiles_wall_s"], 1 - one["lattice_s"] / one["tiles_wall_s"]
    numbers = {
        "speedup": ratio,
        "one_s": one["tiles_wall_s"],
        "two_s": two["tiles_wall_s"],
        "engine_overhead": overhead,
        "one_tile_s": one["lattice_s"] / one["active"],
        "two_tile_s": two["lattice_s"] / two["active"],
    }
    rows = (
        ("one worker", f"{numbers['one_s']:.1f} s", ""),
        ("two workers, their start included", f"{numbers['two_s']:.1f} s", f"{ratio:.2f} ×"),
        ("engine of one worker", f"{overhead:.1%}", "of the wall time is neither embedding nor searching"),
    )
    return numbers, Table(f"Tiles of {'x'.join(map(str, config.shared))}, wall", ("", "time", ""), rows)


def _kills(config: BenchmarkConfig) -> tuple[dict[str, Any], Table]:
    """A scan that is killed twenty times against one that is not."""
    shape = config.interrupted
    with tempfile.TemporaryDirectory() as folder:
        task: dict[str, Any] = {"embedder": "compact", "shape": shape, "folder": folder}
        whole = _child("scan", **task, name="whole")
        rng = np.random.default_rng(config.seed)
        killed, scans, same = 0, 0, True
        while killed < _KILLS or not scans:
            limit = float(rng.uniform(0.02, 0.4)) * whole["wall_s"] if killed < _KILLS else None
            answer = _child("scan", **task, name="killed", kill_after=limit)
            if not answer:
                killed += 1
                continue
            scans += 1
            same &= _contents(Path(folder) / "whole.scan") == _contents(Path(folder) / "killed.scan")
            shutil.rmtree(Path(folder) / "killed.scan")
        half = _child("scan", **task, name="half", kill_after=0.6 * whole["wall_s"])
        resumed = half or _child("scan", **task, name="half")
        numbers = {
            "kills": killed,
            "scans": scans,
            "identical": same,
            "undisturbed_wall_s": whole["wall_s"],
            "resume_s": resumed["before_tiles_s"],
        }
    rows = (
        ("killed (kill -9) at random moments", f"{killed} times"),
        ("scans that came of it", str(scans)),
        ("results identical to the undisturbed one, byte for byte", "yes" if same else "NO"),
        ("undisturbed scan", f"{whole['wall_s']:.0f} s wall"),
        ("planning and looking at what is done, when continued", f"{numbers['resume_s']:.1f} s wall"),
    )
    return numbers, Table(f"Killed and continued, {'x'.join(map(str, shape))}", ("", ""), rows)


def _workers_killed(config: BenchmarkConfig) -> tuple[dict[str, Any], Table]:
    """A scan of which workers are killed twenty times against one that is left in peace."""
    z, y, x = (edge // 2 for edge in config.interrupted)
    shape = (z, y, x)
    with tempfile.TemporaryDirectory() as folder:
        task: dict[str, Any] = {"embedder": "invariant", "shape": shape, "folder": folder, "workers": 2, "tile": _SMALL}
        whole = _child("scan", **task, name="whole")
        killed = _child("scan", **task, name="killed", worker_kills=_KILLS)
        same = _contents(Path(folder) / "whole.scan") == _contents(Path(folder) / "killed.scan")
    numbers = {
        "kills": killed["killed"],
        "identical": same,
        "undisturbed_wall_s": whole["wall_s"],
        "killed_wall_s": killed["wall_s"],
    }
    rows = (
        ("workers killed (kill -9) at random moments", f"{killed['killed']} times"),
        ("tiles", f"{whole['active']}"),
        ("results identical to the undisturbed one, byte for byte", "yes" if same else "NO"),
        ("undisturbed scan", f"{whole['wall_s']:.0f} s wall"),
        ("with the deaths of workers", f"{killed['wall_s']:.0f} s wall"),
    )
    return numbers, Table(f"Two workers, killed again and again, {'x'.join(map(str, shape))}", ("", ""), rows)


def _sparse(config: BenchmarkConfig) -> tuple[dict[str, Any], Table]:
    """A huge volume that is mostly empty."""
    found = _child("sparse", embedder="compact", shape=(1024, 4096, 4096))
    rows = (
        ("voxels", "1024 x 4096 x 4096"),
        ("planned in", f"{found['plan_s']:.1f} s wall"),
        ("tiles that may hold anything", f"{found['active']:,} of {found['tiles']:,}"),
        ("scanned in", f"{found['wall_s']:.0f} s wall"),
        ("peak memory", f"{found['peak_bytes'] / 2**30:.2f} GiB"),
        ("windows", f"{found['windows']:,}"),
    )
    return found, Table("A sparse Zarr with three pieces of 128³", ("", ""), rows)


_PARTS: Mapping[str, Callable[[BenchmarkConfig], tuple[dict[str, Any], Table]]] = {
    "dense": _dense,
    "growth": _growth,
    "workers": _workers,
    "kills": _kills,
    "workers_killed": _workers_killed,
    "sparse": _sparse,
}


# ---------------------------------------------------------------- in a process of its own


def _child(what: str, *, kill_after: float | None = None, **task: Any) -> dict[str, Any]:
    """Measure in a new process; nothing if it was killed."""
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    child = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from cryoscan.benchmark.scaling import main; main()",
            json.dumps({"what": what, **task}),
        ],
        stdout=subprocess.PIPE,
        env={**os.environ, **threads},
    )
    assert child.stdout is not None
    if kill_after is not None:
        ready = child.stdout.readline()  # imports are over
        time.sleep(kill_after if ready else 0)
        child.send_signal(signal.SIGKILL)
    output, _ = child.communicate()
    if kill_after is not None and child.returncode == -signal.SIGKILL:
        return {}
    if child.returncode:
        raise ResourceError(
            f"expected the measurement '{what}' to end",
            got=f"exit status {child.returncode}",
            hint="Its messages are above; most often memory or disk does not suffice.",
        )
    answer: dict[str, Any] = json.loads(output.decode().strip().splitlines()[-1])
    return answer


def main() -> None:
    """The process of its own: the task as JSON in the arguments, the answer as JSON in the last line."""
    sys.stdout.write(json.dumps(_measured(json.loads(sys.argv[1]))))


def _measured(task: dict[str, Any]) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    what = task.pop("what")
    embedder = _embedder(task.pop("embedder"))
    if what == "dense":
        return _measure_dense(embedder, task["edge"])
    task["shape"] = tuple(task["shape"])
    folder = task.pop("folder", None)
    if folder is not None:
        return _measure_scan(embedder, Path(folder), **task)
    with tempfile.TemporaryDirectory() as temporary:
        return _measure_scan(embedder, Path(temporary), sparse=what == "sparse", **task)


def _embedder(name: str) -> Embedder:
    if name == "invariant":
        from cryoscan.models import InvariantEmbedder

        return InvariantEmbedder()
    import torch

    from cryoscan.models import TowerEmbedder, choose_device, fastest_precision
    from cryoscan.models.density_tower import DensityTower, TowerConfig

    torch.manual_seed(0)
    embedder = TowerEmbedder(DensityTower(TowerConfig.named(name)), device=choose_device())
    if embedder.device.type == "cpu":  # 16 bits are emulated, or no faster
        return embedder
    return fastest_precision(embedder, _block(embedder, _BLOCK), stride=4)


def _datedb(embedder: Embedder) -> DateDB:
    """The database that ships with the package, with random vectors where the embedder is not its own."""
    shipped = open_datedb()
    if shipped.embedder["fingerprint"] == embedder.fingerprint:
        return shipped
    rows = len(next(iter(shipped.banks.values())))
    vectors = unit_rows(np.random.default_rng(0).normal(size=(rows, embedder.dim)))
    about = {"kind": "random", "fingerprint": embedder.fingerprint}
    return replace(shipped, banks={6.0: vectors}, embedder=about, calibration={}, path=None)


def _noise() -> np.ndarray:
    white = np.random.default_rng(1).normal(size=(_BLOCK,) * 3).astype(np.float32)
    return lowpass_gaussian(white, voxel_size=2.5, sigma=1.35)


def _block(embedder: Embedder, edge: int) -> np.ndarray:
    """Noise around as many windows at stride 4 as fit an edge of so many voxels."""
    around = edge - (edge - embedder.window) % 4 + 2 * embedder.halo
    return np.pad(_noise()[:edge, :edge, :edge], embedder.halo, mode="wrap")[:around, :around, :around]


def _measure_dense(embedder: Embedder, edge: int) -> dict[str, Any]:
    stride, more = 4, embedder.window + 2 * embedder.halo
    points = (edge - embedder.window) // stride + 1
    block = _block(embedder, edge)
    embedder.embed_dense(block[:more, :more, :more], stride=stride)
    start = time.process_time()
    dense = embedder.embed_dense(block, stride=stride)
    dense_s = time.process_time() - start
    places = np.random.default_rng(2).integers(0, points, size=(_WINDOWS, 3))
    corners = places * stride + embedder.halo
    windows = np.stack([block[tuple(slice(c, c + embedder.window) for c in corner)] for corner in corners])
    embedder.embed(windows[:16])
    start = time.process_time()
    single = np.concatenate([embedder.embed(windows[i : i + 16]) for i in range(0, _WINDOWS, 16)])
    single_s = time.process_time() - start
    mean = dense.reshape(-1, dense.shape[-1]).mean(axis=0)
    one, two = unit_rows(dense[tuple(places.T)] - mean), unit_rows(single - mean)
    return {
        "dense_per_s": points**3 / dense_s,
        "windowed_per_s": _WINDOWS / single_s,
        "cosine": float((one * two).sum(axis=1).mean()),
    }


def _measure_scan(
    embedder: Embedder,
    folder: Path,
    *,
    shape: Shape,
    workers: int = 1,
    sparse: bool = False,
    name: str = "a",
    tile: int | None = None,
    worker_kills: int = 0,
) -> dict[str, Any]:
    source = folder / "volume.zarr"
    if not source.exists():
        _write_volume(source, shape, sparse=sparse)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    start, cpu = time.monotonic(), time.process_time()
    path = folder / f"{name}.scan"
    config = ScanConfig(resolution_A=6.0, tile_points=tile, skip_flat=False)
    file = VolumeFile(source)
    plan = plan_scan(file.open(), datedb=_datedb(embedder), embedder=embedder, config=config, source=file, folder=path)
    planned = time.monotonic() - start
    projected = plan.memory_bytes()
    marks = _follow(plan, path, workers, worker_kills)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    reports = [json.loads(f.read_text()) for f in (path / "tiles").iterdir() if f.name.isdigit()]
    return {
        "points": int(np.prod(plan.grid.shape)),
        "tiles": len(plan.tiling),
        "active": len(plan.active),
        "windows": sum(report["windows"] for report in reports),
        "plan_s": planned,
        "before_tiles_s": marks["begin"] - start,
        "wall_s": time.monotonic() - start,
        "tiles_wall_s": marks["tiles"] - marks["begin"],
        "killed": marks["killed"],
        "cpu_s": time.process_time() - cpu + children.ru_utime + children.ru_stime,
        "lattice_s": sum(report["seconds"] for report in reports),
        "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "projected_bytes": projected,
    }


def _follow(plan: ScanPlan, path: Path, workers: int, worker_kills: int) -> dict[str, float]:
    """Run a scan and note when it began its tiles and ended them; kill workers on the way if asked to."""
    marks: dict[str, float] = {"killed": 0}
    tiles = len(plan.active)
    doomed = set(np.linspace(0, 0.9 * tiles, worker_kills + 1).astype(int).tolist()[1:])
    delay = np.random.default_rng(0)

    def run(executor: Any) -> None:
        marks["begin"] = time.monotonic()
        for event in run_scan(plan, path, executor=executor):
            if isinstance(event, TileDone) and event.stage == "tiles scanned":
                marks["tiles"] = time.monotonic()
                if event.done in doomed:
                    time.sleep(float(delay.uniform(0, 0.2)))
                    marks["killed"] += _kill_a_worker()

    if workers > 1:
        with local_workers(workers) as executor:
            run(executor)
    else:
        run(None)
    marks.setdefault("tiles", time.monotonic())
    return marks


def _kill_a_worker() -> int:
    """Kill the youngest worker; 0 if there is none just now."""
    workers = [
        p for p in psutil.Process().children(recursive=True) if any("spawn_main" in part for part in p.cmdline())
    ]
    if not workers:
        return 0
    max(workers, key=lambda process: process.create_time()).kill()
    return 1


def _write_volume(path: Path, shape: Shape, *, sparse: bool) -> None:
    noise = _noise()
    array = create_zarr(
        path, shape=shape, dtype=np.float32, voxel_size=2.5, origin=(0, 0, 0), chunks=(64,) * 3, shards=(_BLOCK,) * 3
    )
    boxes = list(Tiling(shape, (_BLOCK,) * 3))
    if sparse:
        boxes = [boxes[i] for i in np.random.default_rng(3).choice(len(boxes), 3, replace=False)]
    for box in boxes:
        array[box] = noise[tuple(slice(0, part.stop - part.start) for part in box)]


def _contents(folder: Path) -> dict[str, bytes]:
    """Everything that a scan answers, byte for byte."""
    wanted: Sequence[str] = ("score.zarr", "margin.zarr", "topk.zarr", "labels.zarr", "instances.zarr", "hits.json")
    files = [file for name in wanted for file in [folder / name, *sorted((folder / name).rglob("*"))] if file.is_file()]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}

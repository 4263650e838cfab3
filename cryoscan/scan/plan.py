"""What a scan will do, worked out before it starts: grids, tiles, cost and warnings."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import scipy.ndimage

from cryoscan.datedb import DateDB, open_datedb
from cryoscan.datedb.build import closer_look
from cryoscan.embedding import Embedder
from cryoscan.errors import CryoscanError, MismatchError, ResourceError
from cryoscan.filters import resample_onto
from cryoscan.io import VolumeFile, stored_parts
from cryoscan.preflight import Preflight, inspect
from cryoscan.provenance import Provenance, cryoscan_version, fingerprint_arrays, fingerprint_file, fingerprint_json
from cryoscan.scan.config import ScanConfig
from cryoscan.scan.sharpening import Sharpening, plan_sharpening
from cryoscan.segment import check_same_grid, contour_level
from cryoscan.tiles import Tiling, WindowGrid
from cryoscan.units import SIGMA_PER_RESOLUTION, Angstrom, Box, Shape, Vector
from cryoscan.volume import Volume

if TYPE_CHECKING:
    from cryoscan.io.omezarr import StoredParts

_PROBE = 96  # voxels of the embedder's grid; edge of the blocks that are looked at for the contour
_FLAT = 16  # voxels; edge of the cubes whose spread tells specimen from vacuum
_TELLS_APART = 3.0  # ratio of the spreads of two kinds of places that are surely different
_SMALL_LATTICE = 100_000  # points; above, tiles are larger: fewer files
_NOT_GIVEN_BACK = 1.2  # what the allocator keeps between tiles (measured, with the compact tower)
_PLANES_AT_ONCE = 16  # of a mask
_WORKING_COPIES = 4  # of a block: resampling, blurring and smoothing each hold one or two


@dataclass(frozen=True, slots=True, eq=False)
class ScanPlan:
    """A scan that is ready to run, here or in another process.

    Parameters
    ----------
    volume : Volume
        Protein positive, on its own grid.
    datedb, embedder, config
    preflight : Preflight
    bank : Angstrom
        Resolution of the bank that is searched.
    blur : Angstrom
        Width of the Gaussian that takes the volume to the bank's resolution.
    background : float
        Value of solvent; it is subtracted.
    contour : float
        Density above the background, on the embedder's grid, from which on a voxel may be protein.
    flat : float
        Local spread below which a place is taken as empty.
    grid : WindowGrid
        Windows over the volume resampled to the embedder's voxel size.
    tiling : Tiling
        Units of work, in lattice points.
    active : int array
        Tiles that may hold anything: what is not stored, or masked out, is not read.
    provenance : Provenance
        What a resumed run must agree with.
    source : VolumeFile, optional
        Where the volume comes from.
    mask : Volume, optional
        Nothing is looked for where it is 0.
    sharpening : Sharpening, optional
        How the volume is sharpened before anything is looked for.
    """

    volume: Volume
    datedb: DateDB
    embedder: Embedder
    config: ScanConfig
    preflight: Preflight
    bank: Angstrom
    blur: Angstrom
    background: float
    contour: float
    flat: float
    grid: WindowGrid
    tiling: Tiling
    active: np.ndarray
    provenance: Provenance
    source: VolumeFile | None = None
    mask: Volume | None = None
    sharpening: Sharpening | None = None
    seen: Volume = field(init=False)
    """The volume as it is searched: sharpened where it is read, or as it is."""

    def __post_init__(self) -> None:
        seen = self.volume if self.sharpening is None else self.sharpening.of(self.volume)
        object.__setattr__(self, "seen", seen)

    def __getstate__(self) -> dict[str, Any]:
        """Without the arrays of files: another process opens them by itself, and checks that they are the same."""
        state = {name: getattr(self, name) for name in self.__slots__ if name != "seen"}
        state["version"] = cryoscan_version()
        if self.source is not None:
            state["volume"] = None
        if self.datedb.path is not None:
            state["datedb"] = (self.datedb.path, self.datedb.fingerprint)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        version = state.pop("version")
        if version != cryoscan_version():
            raise MismatchError(
                f"expected cryoscan {version} on every worker",
                got=f"version {cryoscan_version()}",
                hint="Install the same version everywhere.",
            )
        if state["volume"] is None:
            state["volume"] = state["source"].open()
        if isinstance(state["datedb"], tuple):
            path, fingerprint = state["datedb"]
            state["datedb"] = _same_datedb(path, fingerprint, state["config"])
        for name, value in state.items():
            object.__setattr__(self, name, value)
        self.__post_init__()

    def kept_in(self, path: Path) -> "ScanPlan":
        """The same plan for a folder: what is sharpened, or has been for the plan, is kept there."""
        return self if self.sharpening is None else replace(self, sharpening=self.sharpening.kept_in(path))

    @property
    def working_shape(self) -> Shape:
        """Size of the volume on the embedder's grid."""
        return self.grid.volume_shape

    @property
    def lattice_geometry(self) -> tuple[Angstrom, Vector]:
        """Voxel size and origin of the lattice."""
        return self.grid.geometry(self.embedder.voxel_size, self.volume.origin)

    @property
    def cell(self) -> int:
        """Lattice points per edge of the cells in which the embedder works."""
        return max(1, self.embedder.cell // self.config.stride_voxels)

    @property
    def naming(self) -> tuple[DateDB, Embedder]:
        """What regions that were cut out are named with: the closest look that the database has."""
        return _naming(self.datedb, self.embedder)

    @property
    def level(self) -> float:
        """Resolution at which `naming` compares them."""
        return self.naming[0].bank_for(max(self.bank, _finest(self.preflight, self.datedb)))

    @property
    def flat_edge(self) -> int:
        """Edge of the cubes whose spread is looked at, voxels; no more than a window sees with its halo."""
        return min(_FLAT, 2 * (self.embedder.window // 2 + self.embedder.halo))

    @property
    def signature(self) -> str:
        """Identifies the inputs and all settings that the tiles depend on; done-markers carry it."""
        settings = {k: v for k, v in self.provenance.config.items() if k not in ScanConfig.labelling}
        return fingerprint_json([settings, dict(self.provenance.inputs)])

    @property
    def scannable(self) -> bool:
        """Whether the volume resolves what the database needs, or the user does not mind."""
        return self.preflight.can_identify or self.config.ignore_resolution

    @property
    def active_share(self) -> float:
        """Share of the tiles that are looked at."""
        return len(self.active) / max(1, len(self.tiling))

    def disk_bytes(self) -> int:
        """Upper bound of what the scan writes."""
        points = len(self.active) * int(np.prod(self.tiling.core))
        per_point = 8 + 8 * self.config.candidates + (self.embedder.dim if self.config.keep_embeddings else 0)
        # types, instances, their pyramids
        labels = int(np.prod(self.volume.shape)) * self.active_share * (2 + 4) * 8 / 7
        sharpened = 0 if self.sharpening is None else self.sharpening.disk_bytes(self.volume) * self.active_share
        return int(points * per_point + labels + sharpened)

    def memory_bytes(self, *, workers: int = 1) -> int:
        """Projected peak of all workers together: what a process holds now, and what a tile adds."""
        return int(workers * _NOT_GIVEN_BACK * (psutil.Process().memory_info().rss + self.tile_bytes()))

    def tile_bytes(self) -> int:
        """What one tile adds at its peak, and the copies of the database that searching needs."""
        stride, window, halo = self.config.stride_voxels, self.embedder.window, self.embedder.halo
        edges = [(core - 1) * stride + window + 2 * halo for core in self.tiling.core]
        block = int(np.prod(edges)) * 4 * _WORKING_COPIES
        points = int(np.prod(self.tiling.core))
        vectors = min(points, self.cell**3 if self.embedder.cell > 1 else points) * self.embedder.dim * 4
        answers = points * (8 + 8 * self.config.candidates)
        search = max(db.search_bytes(self.bank) for db in (self.datedb, self.naming[0]))
        sharpened = 0 if self.sharpening is None else self.sharpening.tile_bytes(self.volume)
        return block + vectors + answers + self.embedder.working_bytes + search + sharpened

    def read_working(self, box: Box, *, as_it_is: bool = False) -> Volume:
        """A box of the volume on the embedder's grid, blurred to the bank's resolution, solvent at 0.

        Every value depends on a fixed neighbourhood of the volume, so boxes may be read in any
        order and any size (law L1).

        Parameters
        ----------
        box : Box
            On the embedder's grid; may reach beyond the volume.
        as_it_is : bool
            Not sharpened, though the scan sharpens.
        """
        source, background = (self.volume, self.preflight.background) if as_it_is else (self.seen, self.background)
        voxel = self.embedder.voxel_size
        reach = int(np.ceil(4 * self.blur / voxel))
        start = [part.start - reach for part in box]
        shape = [part.stop - part.start + 2 * reach for part in box]
        origin = np.asarray(self.volume.origin) + np.asarray(start) * voxel
        part = resample_onto(
            source,
            voxel_size=voxel,
            origin=(float(origin[0]), float(origin[1]), float(origin[2])),
            shape=(shape[0], shape[1], shape[2]),
            fill=background,
        )
        data = part.load() - np.float32(background)
        if self.blur > 0:
            data = scipy.ndimage.gaussian_filter(data, self.blur / voxel, mode="constant", truncate=4.0)
        inner = tuple(slice(reach, size - reach) for size in shape)
        corner = part.to_position([reach, reach, reach])
        return Volume(data[inner], voxel, (float(corner[0]), float(corner[1]), float(corner[2])))

    def lines(self, *, workers: int = 1, speed: "Speed | None" = None) -> list[str]:
        """The plan for people."""
        z, y, x = self.volume.shape
        points = int(np.prod(self.grid.shape))
        step, _ = self.lattice_geometry
        empty = len(self.tiling) - len(self.active)
        skipped = f", {empty:,} of them empty" if empty else ""
        time_needed = [] if speed is None else [f"time       {speed.describe(self, workers=workers)}"]
        network = [] if self.sharpening is None else [f"sharpened  {self._sharpening_costs(workers, speed)}"]
        return [
            f"volume     {z} × {y} × {x} voxels of {self.volume.voxel_size:g} Å (z, y, x)",
            f"windows    {points:,} of {self.embedder.window * self.embedder.voxel_size:g} Å every {step:g} Å, "
            f"in {len(self.tiling):,} tiles{skipped}; those without density are skipped",
            *network,
            f"search     {len(self.datedb):,} entries of {len(self.datedb.types):,} types at {self.bank:g} Å",
            f"memory     about {self.memory_bytes(workers=workers) / 2**30:.1f} GiB"
            + (f" for {workers} workers" if workers > 1 else ""),
            f"disk       at most {self.disk_bytes() / 2**20:.0f} MiB before compression",
            *time_needed,
            *(f"warning    {warning}" for warning in self.preflight.warnings),
        ]

    def _sharpening_costs(self, workers: int, speed: "Speed | None") -> str:
        assert self.sharpening is not None
        disk = self.sharpening.disk_bytes(self.volume) * self.active_share
        memory = workers * _NOT_GIVEN_BACK * self.sharpening.tile_bytes(self.volume)
        spent = "" if speed is None else f"{_duration(speed.sharpening * self.active_share / workers)} of the time, "
        return (
            f"by {self.sharpening.weights.name}, tile by tile: {spent}{memory / 2**30:.1f} GiB of the memory and "
            f"{disk / 2**20:.0f} MiB of the disk"
        )


@dataclass(frozen=True, slots=True)
class Speed:
    """What a few seconds of work on this machine told.

    Parameters
    ----------
    tiles : int
        That were tried.
    seconds_per_tile : float
        Mean over all tiles, the empty ones included.
    occupied : float
        Share of the lattice points that were embedded.
    sharpening : float
        Projected seconds of sharpening the whole volume in one process; 0 where that is not asked for.
    """

    tiles: int
    seconds_per_tile: float
    occupied: float
    sharpening: float = 0.0

    def seconds(self, plan: ScanPlan, *, workers: int = 1) -> float:
        """Projected time of the lattice, and of sharpening what it needs."""
        return (self.seconds_per_tile * len(plan.active) + self.sharpening * plan.active_share) / workers

    def describe(self, plan: ScanPlan, *, workers: int = 1) -> str:
        """For people."""
        return (
            f"about {_duration(self.seconds(plan, workers=workers))}, from {self.tiles} "
            f"tile{'s' * (self.tiles != 1)} tried here; {self.occupied:.0%} of the lattice holds density; "
            f"{'sharpening is included, ' if self.sharpening else ''}naming the places comes on top"
        )


def plan_scan(
    volume: Volume,
    *,
    datedb: DateDB,
    embedder: Embedder,
    config: ScanConfig,
    source: VolumeFile | None = None,
    mask: Volume | None = None,
    folder: Path | None = None,
    enhancer: Path | None = None,
) -> ScanPlan:
    """Work out a scan.

    Parameters
    ----------
    volume : Volume
        Protein positive.
    datedb, embedder
        Must belong together.
    config : ScanConfig
    source : VolumeFile, optional
        Where the volume comes from: its fingerprint guards a resumed run, and other processes open it there.
    mask : Volume, optional
        On the volume's grid; nothing is looked for where it is 0.
    folder : Path, optional
        Where the scan goes to. If it was begun there, what was found out about the volume then is taken over.
    enhancer : Path, optional
        Weights of a network of one's own, where the settings say that the volume is sharpened.

    Raises
    ------
    MismatchError
        If the DateDB was written by another embedder.
    GeometryError
        If the mask lies on another grid.
    FormatError
        If the volume holds NaN or is constant.
    """
    datedb.require(embedder)
    datedb = datedb.in_scheme(config.scheme)
    if mask is not None:
        check_same_grid(volume, mask)
    named_by, _ = _naming(datedb, embedder)
    preflight = inspect(volume, resolution=config.resolution_A, coarsest=named_by.levels[-1])
    sharpening = None
    if config.enhance:
        sharpening, warnings = plan_sharpening(
            volume, weights=enhancer, resolution=config.resolution_A, device=str(embedder.device)
        )
        preflight = replace(preflight, warnings=(*preflight.warnings, *warnings))
    background = preflight.background if sharpening is None else sharpening.background
    finest = _finest(preflight, datedb)
    bank = datedb.bank_for(finest)
    ratio = volume.voxel_size / embedder.voxel_size
    z, y, x = (int(np.floor((size - 1) * ratio + 1e-6)) + 1 for size in volume.shape)
    grid = WindowGrid((z, y, x), embedder.window, config.stride_voxels)
    tiling = Tiling(grid.shape, _core(grid, config, embedder))
    plan = ScanPlan(
        volume,
        datedb,
        embedder,
        config,
        preflight,
        bank=bank,
        blur=SIGMA_PER_RESOLUTION * float(np.sqrt(max(0.0, bank**2 - finest**2))),
        background=background,
        contour=0.0 if config.contour is None else config.contour - background,
        flat=0.0,
        grid=grid,
        tiling=tiling,
        active=np.arange(len(tiling)),
        provenance=_provenance(volume, datedb, embedder, config, preflight, source, mask, sharpening),
        source=source,
        mask=mask,
        sharpening=sharpening,
    )
    plan = replace(plan, active=_active(plan))
    if not plan.scannable or not len(plan.active):
        return plan
    before = None if folder is None else _found_before(folder, plan.provenance)
    if before is not None:
        return replace(plan, contour=before["contour"], flat=before["flat"])
    if sharpening is not None:  # what is sharpened to find the contour is not sharpened again by the scan
        plan = replace(plan, sharpening=sharpening.drafted())
    blocks = [block.load() for block in probe_blocks(plan, per_axis=3 if sharpening is None else 2)]
    if config.contour is None:
        plan = replace(plan, contour=contour_level(np.concatenate([block.ravel() for block in blocks])))
    return replace(plan, flat=_flat_below(blocks, plan.flat_edge)) if config.skip_flat else plan


def _naming(datedb: DateDB, embedder: Embedder) -> tuple[DateDB, Embedder]:
    return closer_look(datedb, embedder) if embedder.needs_mask else (datedb, embedder)


def _finest(preflight: Preflight, datedb: DateDB) -> Angstrom:
    """What the volume is taken to resolve: no more than the database knows, if nobody has said it."""
    return preflight.finest if preflight.resolution_known else max(preflight.nyquist, min(datedb.banks))


def probe_blocks(plan: ScanPlan, *, per_axis: int = 3) -> list[Volume]:
    """Blocks of the working grid spread evenly over what is not empty; the whole of it if it is small."""
    finite = plan.seen.filled(plan.background)  # tiles with holes will fail and say so, statistics must not
    plan = replace(plan, volume=finite, sharpening=None)
    if int(np.prod(plan.working_shape)) <= 4 * _PROBE**3:
        z, y, x = plan.working_shape
        return [plan.read_working((slice(0, z), slice(0, y), slice(0, x)))]
    if len(plan.active) == len(plan.tiling):
        axes = [
            np.unique(np.linspace(0, max(0, size - _PROBE), per_axis).astype(int)) + _PROBE / 2
            for size in plan.working_shape
        ]
        centres = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    else:
        some = plan.active[np.unique(np.linspace(0, len(plan.active) - 1, per_axis**3).astype(int))]
        middles = [[(part.start + part.stop - 1) / 2 for part in plan.tiling.box(int(index))] for index in some]
        centres = plan.grid.centres(np.asarray(middles))
    edges = [min(_PROBE, size) for size in plan.working_shape]
    boxes = []
    for centre in centres:
        start = [
            int(np.clip(c - edge / 2, 0, size - edge))
            for c, edge, size in zip(centre, edges, plan.working_shape, strict=True)
        ]
        boxes.append(tuple(slice(s, s + edge) for s, edge in zip(start, edges, strict=True)))
    return [plan.read_working((z, y, x)) for z, y, x in boxes]


def local_spread(block: np.ndarray, edge: int) -> np.ndarray:
    """Standard deviation in a cube of some edge (voxels) about every voxel, `z y x` float32."""
    mean = scipy.ndimage.uniform_filter(block, edge, mode="nearest")
    square = scipy.ndimage.uniform_filter(block * block, edge, mode="nearest")
    return np.asarray(np.sqrt(np.maximum(square - mean * mean, 0)), np.float32)


def check_resources(plan: ScanPlan, folder: Path, *, workers: int = 1) -> None:
    """Refuse a scan that does not fit the disk or the memory of this machine.

    Raises
    ------
    ResourceError
    """
    free, needed = shutil.disk_usage(folder).free, plan.disk_bytes()
    if needed > free:
        raise ResourceError(
            f"expected at least {needed / 2**20:.0f} MiB of free disk for the scan",
            got=f"{free / 2**20:.0f} MiB in {folder}",
            hint="Free some space, choose another folder, or a larger --stride.",
        )
    own = psutil.Process().memory_info().rss
    memory, available = plan.memory_bytes(workers=workers), available_memory() + own
    if memory > available:
        raise ResourceError(
            f"expected at least {memory / 2**30:.1f} GiB of memory for {workers} worker{'s' if workers > 1 else ''}",
            got=f"{available / 2**30:.1f} GiB available",
            hint="Use fewer --workers or smaller tiles (tile_points in the settings), or close other programs.",
        )


def available_memory() -> int:
    """Bytes that a process may still take: what the machine has free, or the limit of its control group."""
    free = int(psutil.virtual_memory().available)
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    try:
        return min(free, int(limit.read_text()) - int(used.read_text()))
    except (OSError, ValueError):  # no control group, or "max": no limit
        return free


# ---------------------------------------------------------------- private


def _duration(seconds: float) -> str:
    scale, unit = next((s, u) for s, u in ((3600, "h"), (60, "min"), (1, "s")) if seconds >= 2 * s or s == 1)
    return f"{seconds / scale:.0f} {unit}"


def _same_datedb(path: Path, fingerprint: str, config: ScanConfig) -> DateDB:
    datedb = open_datedb(path).in_scheme(config.scheme)
    if datedb.fingerprint != fingerprint:
        raise MismatchError(
            "expected the DateDB with which the scan was planned",
            got=f"another one in {path}",
            hint="Leave a DateDB in place while it is used; give a new one another name.",
        )
    return datedb


def _core(grid: WindowGrid, config: ScanConfig, embedder: Embedder) -> Shape:
    """Lattice points per edge of a tile: whole cells, so that no cell is computed twice."""
    cell = max(1, embedder.cell // config.stride_voxels)
    wanted = config.tile_points or (12 if int(np.prod(grid.shape)) <= _SMALL_LATTICE else 24)
    core = max(1, round(wanted / cell)) * cell
    z, y, x = (min(core, size) for size in grid.shape)
    return z, y, x


def _provenance(
    volume: Volume,
    datedb: DateDB,
    embedder: Embedder,
    config: ScanConfig,
    preflight: Preflight,
    source: VolumeFile | None,
    mask: Volume | None,
    sharpening: Sharpening | None,
) -> Provenance:
    file = None if source is None else [fingerprint_file(source.path), source.z_range]
    inputs = {
        "volume": fingerprint_json([volume.shape, volume.voxel_size, volume.origin, file]),
        "contrast": fingerprint_json([preflight.mean]),
        "datedb": datedb.fingerprint,
        "embedder": embedder.fingerprint,
    }
    if mask is not None:
        inputs["mask"] = fingerprint_arrays(_slabs(mask))
    if sharpening is not None:
        inputs["enhancer"] = sharpening.fingerprint
    return Provenance("cryoscan scan", config=config.model_dump(mode="json"), inputs=inputs)


def _slabs(mask: Volume) -> Iterator[np.ndarray]:
    """Where a mask lets through, a few planes at a time: it may be as large as the tomogram."""
    for z in range(0, mask.shape[0], _PLANES_AT_ONCE):
        slab = np.asarray(mask.data[z : z + _PLANES_AT_ONCE]) > 0
        yield np.array(slab.shape)
        yield np.packbits(slab)


def _found_before(folder: Path, provenance: Provenance) -> dict[str, float] | None:
    """What an earlier run of the same scan found out; anything else in the folder is for `prepare` to refuse."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        same = not Provenance.from_json(manifest["provenance"]).differences(provenance)
        return {name: float(manifest["planned"][name]) for name in ("contour", "flat")} if same else None
    except (OSError, ValueError, KeyError, TypeError, CryoscanError):
        return None


def _active(plan: ScanPlan) -> np.ndarray:
    """Tiles near whose window centres something is stored, of the volume and of the mask."""
    active = np.ones(plan.tiling.counts, bool)
    for volume in (plan.volume, plan.mask):
        stored = None if volume is None else stored_parts(volume.data)
        if stored is not None and not stored.present.all():
            active &= _tiles_that_touch(stored, plan)
    return np.flatnonzero(active)


def _tiles_that_touch(stored: "StoredParts", plan: ScanPlan) -> np.ndarray:
    """Tiles whose window centres lie in or close to parts that are stored, `z y x` bool."""
    touched = stored.present.astype(np.float32)
    reach = max(2, plan.config.stride_voxels) + 4 * plan.blur / plan.embedder.voxel_size + 3
    ratio = plan.embedder.voxel_size / plan.volume.voxel_size
    for axis in range(3):
        edges = np.minimum(np.arange(plan.tiling.counts[axis] + 1) * plan.tiling.core[axis], plan.grid.shape[axis])
        first = plan.grid.first[axis] + (plan.grid.window - 1) / 2
        low = ((edges[:-1] * plan.config.stride_voxels + first - reach) * ratio) // stored.size[axis]
        high = (((edges[1:] - 1) * plan.config.stride_voxels + first + reach) * ratio) // stored.size[axis]
        index = np.arange(stored.present.shape[axis])
        matrix = (index >= low[:, None]) & (index <= high[:, None])
        touched = np.moveaxis(np.tensordot(matrix.astype(np.float32), touched, axes=(1, axis)), 0, axis)
    return np.asarray(touched > 0.5)


def _flat_below(blocks: list[np.ndarray], edge: int) -> float:
    """Spread that parts vacuum from specimen by Otsu's method; 0 where there are not clearly two kinds of places."""
    from skimage.filters import threshold_otsu

    spread = np.concatenate([local_spread(block, edge)[::8, ::8, ::8].ravel() for block in blocks])
    values = np.log(spread[spread > 0])
    if values.size < 64 or np.ptp(values) < 1e-6:
        return 0.0
    threshold = float(threshold_otsu(values))
    low, high = values[values <= threshold], values[values > threshold]
    apart = min(low.size, high.size) >= 0.02 * values.size and np.exp(high.mean() - low.mean()) >= _TELLS_APART
    return float(np.exp(threshold)) if apart else 0.0

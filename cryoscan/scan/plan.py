"""What a scan will do, worked out before it starts: grids, tiles, cost and warnings."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cryoscan.datedb import DateDB
from cryoscan.embedding import Embedder
from cryoscan.errors import ResourceError
from cryoscan.filters import resample_onto
from cryoscan.preflight import Preflight, inspect
from cryoscan.provenance import Provenance, fingerprint_file, fingerprint_json
from cryoscan.scan.config import ScanConfig
from cryoscan.segment import contour_level
from cryoscan.tiles import Tiling, WindowGrid
from cryoscan.units import SIGMA_PER_RESOLUTION, Angstrom, Box, Shape, Vector
from cryoscan.volume import Volume

_LABEL_BYTES = 2
_PROBE = 96  # voxels of the embedder's grid; edge of the blocks that are looked at for the contour


@dataclass(frozen=True, slots=True, eq=False)
class ScanPlan:
    """A scan that is ready to run.

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
    contour : float
        Density on the embedder's grid from which on a voxel may be protein.
    grid : WindowGrid
        Windows over the volume resampled to the embedder's voxel size.
    tiling : Tiling
        Units of work, in lattice points.
    provenance : Provenance
        What a resumed run must agree with.
    """

    volume: Volume
    datedb: DateDB
    embedder: Embedder
    config: ScanConfig
    preflight: Preflight
    bank: Angstrom
    blur: Angstrom
    contour: float
    grid: WindowGrid
    tiling: Tiling
    provenance: Provenance

    @property
    def working_shape(self) -> Shape:
        """Size of the volume on the embedder's grid."""
        return self.grid.volume_shape

    @property
    def lattice_geometry(self) -> tuple[Angstrom, Vector]:
        """Voxel size and origin of the lattice."""
        return self.grid.geometry(self.embedder.voxel_size, self.volume.origin)

    @property
    def signature(self) -> str:
        """Identifies settings and inputs; done-markers carry it."""
        return fingerprint_json([dict(self.provenance.config), dict(self.provenance.inputs)])

    def disk_bytes(self) -> int:
        """Upper bound of what the scan writes."""
        points = int(np.prod(self.grid.shape))
        return points * (8 + 6 * self.config.candidates) + int(np.prod(self.volume.shape)) * _LABEL_BYTES

    def memory_bytes(self) -> int:
        """Estimate of the largest amount held at once."""
        tile = [(core - 1) * self.config.stride_voxels + self.embedder.window for core in self.tiling.core]
        block = int(np.prod(tile)) * 4 * 6
        windows = int(np.prod(self.tiling.core)) * (self.embedder.dim * 4 + len(self.datedb) * 4 // 8)
        bank = sum(vectors.nbytes for vectors in self.datedb.banks.values())
        return block + windows + bank + 512 * len(self.datedb) * 8

    def read_working(self, box: Box) -> Volume:
        """A box of the volume on the embedder's grid, blurred to the bank's resolution.

        Every value depends on a fixed neighbourhood of the volume, so boxes may be read in any
        order and any size (law L1).
        """
        voxel = self.embedder.voxel_size
        reach = int(np.ceil(4 * self.blur / voxel))
        start = [part.start - reach for part in box]
        shape = [part.stop - part.start + 2 * reach for part in box]
        origin = np.asarray(self.volume.origin) + np.asarray(start) * voxel
        part = resample_onto(
            self.volume,
            voxel_size=voxel,
            origin=(float(origin[0]), float(origin[1]), float(origin[2])),
            shape=(shape[0], shape[1], shape[2]),
        )
        data = part.load()
        if self.blur > 0:
            from scipy.ndimage import gaussian_filter

            data = gaussian_filter(data, self.blur / voxel, mode="constant", truncate=4.0)
        inner = tuple(slice(reach, size - reach) for size in shape)
        corner = part.to_position([reach, reach, reach])
        return Volume(data[inner], voxel, (float(corner[0]), float(corner[1]), float(corner[2])))

    def lines(self) -> list[str]:
        """The plan for people."""
        z, y, x = self.volume.shape
        points = int(np.prod(self.grid.shape))
        step, _ = self.lattice_geometry
        return [
            f"volume     {z} × {y} × {x} voxels of {self.volume.voxel_size:g} Å (z, y, x)",
            f"windows    {points:,} of {self.embedder.window * self.embedder.voxel_size:g} Å every {step:g} Å, "
            f"in {len(self.tiling)} tiles; those without density are skipped",
            f"search     {len(self.datedb):,} entries of {len(self.datedb.types):,} types at {self.bank:g} Å",
            f"memory     about {self.memory_bytes() / 2**30:.1f} GiB",
            f"disk       at most {self.disk_bytes() / 2**20:.0f} MiB before compression",
            *(f"warning    {warning}" for warning in self.preflight.warnings),
        ]


def plan_scan(
    volume: Volume, *, datedb: DateDB, embedder: Embedder, config: ScanConfig, source: Path | None = None
) -> ScanPlan:
    """Work out a scan.

    Parameters
    ----------
    volume : Volume
        Protein positive.
    datedb, embedder
        Must belong together.
    config : ScanConfig
    source : Path, optional
        The volume's file; its fingerprint guards a resumed run.

    Raises
    ------
    MismatchError
        If the DateDB was written by another embedder.
    FormatError
        If the volume holds NaN or is constant.
    """
    datedb.require(embedder)
    datedb = datedb.in_scheme(config.scheme)
    preflight = inspect(volume, resolution=config.resolution_A, coarsest=max(datedb.banks))
    finest = preflight.finest if preflight.resolution_known else max(preflight.nyquist, min(datedb.banks))
    bank = datedb.bank_for(finest)
    blur = SIGMA_PER_RESOLUTION * float(np.sqrt(max(0.0, bank**2 - finest**2)))
    ratio = volume.voxel_size / embedder.voxel_size
    z, y, x = (int(np.floor((size - 1) * ratio + 1e-6)) + 1 for size in volume.shape)
    grid = WindowGrid((z, y, x), embedder.window, config.stride_voxels)
    core = config.tile_points
    tiling = Tiling(grid.shape, (core, core, core))
    provenance = Provenance(
        "cryoscan scan",
        config=config.model_dump(mode="json"),
        inputs={
            "volume": fingerprint_json(
                [volume.shape, volume.voxel_size, volume.origin, fingerprint_file(source) if source else None]
            ),
            "contrast": fingerprint_json([preflight.mean]),
            "datedb": datedb.fingerprint,
            "embedder": embedder.fingerprint,
        },
    )
    plan = ScanPlan(
        volume, datedb, embedder, config, preflight, bank, blur, config.contour or 0.0, grid, tiling, provenance
    )
    if config.contour is None and (preflight.can_identify or config.ignore_resolution):
        contour = contour_level(np.concatenate([block.load().ravel() for block in probe_blocks(plan)]))
        plan = ScanPlan(volume, datedb, embedder, config, preflight, bank, blur, contour, grid, tiling, provenance)
    return plan


def probe_blocks(plan: ScanPlan, *, per_axis: int = 3) -> list[Volume]:
    """Blocks of the working grid spread evenly over the volume; the whole of it if it is small."""
    starts = []
    for size in plan.working_shape:
        edge = min(size, _PROBE)
        starts.append([(start, start + edge) for start in np.unique(np.linspace(0, size - edge, per_axis).astype(int))])
    if int(np.prod(plan.working_shape)) <= 4 * _PROBE**3:
        starts = [[(0, size)] for size in plan.working_shape]
    return [
        plan.read_working((slice(*z), slice(*y), slice(*x))) for z in starts[0] for y in starts[1] for x in starts[2]
    ]


def check_resources(plan: ScanPlan, folder: Path) -> None:
    """Refuse a scan whose output does not fit the disk.

    Raises
    ------
    ResourceError
    """
    free = shutil.disk_usage(folder).free
    needed = plan.disk_bytes()
    if needed > free:
        raise ResourceError(
            f"expected at least {needed / 2**20:.0f} MiB of free disk for the scan",
            got=f"{free / 2**20:.0f} MiB in {folder}",
            hint="Free some space, choose another folder, or a larger --stride.",
        )

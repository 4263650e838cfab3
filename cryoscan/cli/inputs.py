"""What the words of a command line mean: volumes and their odd headers, and the region of a map to name."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cryoscan.errors import ConfigError, FormatError, GeometryError
from cryoscan.hits import Candidate
from cryoscan.io import VolumeFile, describe, open_labels, open_volume, read_structure
from cryoscan.labels import LabelMap
from cryoscan.units import Box, Vector
from cryoscan.volume import Volume

if TYPE_CHECKING:
    from cryoscan.datedb import DateDB
    from cryoscan.scan import Executor
    from cryoscan.workflows import RegionMask

_SAME_SIZE = 0.01


@dataclass(frozen=True, slots=True)
class Given:
    """A volume as it was given: its file, what replaces its header, and what is odd about that."""

    file: VolumeFile
    volume: Volume
    warnings: list[str] = field(default_factory=list)

    @property
    def path(self) -> Path:
        """The file."""
        return self.file.path

    @property
    def voxel_size(self) -> float | None:
        """What replaces the header's voxel size."""
        return self.file.voxel_size


def open_given(path: Path, *, voxel_size: float | None, contrast: str, z_range: tuple[int, int] | None = None) -> Given:
    """Open a volume, protein positive, and compare the given voxel size with the file's."""
    file = VolumeFile(path, voxel_size, "dark" if contrast == "dark" else "bright", z_range)
    volume = file.open()
    odd = describe(path).disagreement(voxel_size) if voxel_size is not None else None
    return Given(file, volume, [odd] if odd else [])


def open_mask(given: Given, path: Path) -> Volume:
    """A mask on the grid of a volume, lazily."""
    return VolumeFile(path, _companion_size(given, path), "bright", given.file.z_range).open()


def parse_planes(text: str | None) -> tuple[int, int] | None:
    """Read ``first:stop``."""
    if text is None:
        return None
    try:
        first, stop = map(int, text.split(":"))
    except ValueError as error:
        raise ConfigError(
            "expected planes such as 40:200", got=f"'{text}'", hint="Write --z-range first:stop, counted from 0."
        ) from error
    return first, stop


def parse_shard(text: str | None) -> tuple[int, int] | None:
    """Read ``i/n``, i counted from 1."""
    if text is None:
        return None
    try:
        number, count = map(int, text.split("/"))
        if not 1 <= number <= count:
            raise ValueError
    except ValueError as error:
        raise ConfigError(
            "expected a share such as 3/16",
            got=f"'{text}'",
            hint="Write --shard i/n with i from 1 to n, e.g. $SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT.",
        ) from error
    return number, count


def only_one(**options: object) -> None:
    """Refuse two ways to say the same thing at once."""
    given = [f"--{name}" for name, value in options.items() if value not in (None, False)]
    if len(given) > 1:
        raise ConfigError(
            f"expected one of {', '.join(f'--{name}' for name in options)}",
            got=" and ".join(given),
            hint="Give one of them, or none.",
        )


def chosen_regions(
    given: Given,
    *,
    mask: Path | None,
    labels: Path | None,
    label: int | None,
    box: str | None,
    center: str | None,
    radius: float | None,
) -> "Sequence[RegionMask] | None":
    """The regions that the options ask for; None if they ask for none."""
    from cryoscan.segment import region_from_box, region_from_labels, region_from_sphere
    from cryoscan.workflows import RegionMask

    if label is not None and labels is None:
        raise ConfigError("expected --labels with --label", got="--label alone", hint="Say which file has the labels.")
    if (radius is None) != (center is None):
        lone = "--radius" if center is None else "--center"
        raise ConfigError("expected --center and --radius together", got=f"{lone} alone", hint="Give both, in Å.")
    if mask is not None:
        return [RegionMask(1, _read_mask(given, mask))]
    if labels is not None:
        found = open_labels(labels, voxel_size=_companion_size(given, labels))
        if label is not None:
            return [RegionMask(label, region_from_labels(given.volume, found, label))]
        return _EveryLabel(given.volume, found)
    if box is not None:
        return [RegionMask(1, region_from_box(given.volume, parse_box(box)))]
    if center is not None and radius is not None:
        return [RegionMask(1, region_from_sphere(given.volume, parse_center(center), radius=radius))]
    return None


def search_query(
    db: "DateDB", path: Path, *, top: int, voxel_size: float | None, contrast: str, resolution: float | None
) -> Sequence[Candidate]:
    """Candidates for a structure file, simulated like the entries, or for a whole volume."""
    from cryoscan.datedb.build import closer_look, embed_structures, embedder_for

    if not path.name.lower().removesuffix(".gz").endswith((".pdb", ".ent", ".cif", ".mmcif")):
        from cryoscan.workflows import RegionMask, identify

        volume = open_given(path, voxel_size=voxel_size, contrast=contrast).volume
        whole = RegionMask(1, np.ones(volume.shape, bool))
        answer = identify(volume, [whole], datedb=db, embedder=embedder_for(db), resolution=resolution, top=top)
        return answer.regions[0].candidates
    db, embedder = closer_look(db, embedder_for(db, contour=0.0), contour=0.0)
    bank = db.bank_for(resolution)
    vectors = embed_structures([read_structure(path)], embedder, resolutions=[bank])[bank]
    return db.search(vectors, top=top, resolution=bank)[0]


def parse_box(text: str) -> Box:
    """Read ``z0:z1,y0:y1,x0:x1``."""
    try:
        (z0, z1), (y0, y1), (x0, x1) = (map(int, part.split(":")) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(
            "expected a box of voxels such as 10:60,20:70,0:50",
            got=f"'{text}'",
            hint="Write --box z0:z1,y0:y1,x0:x1 with whole numbers.",
        ) from error
    return slice(z0, z1), slice(y0, y1), slice(x0, x1)


def parse_center(text: str) -> Vector:
    """Read ``x,y,z`` in Å, as other programs show it, and give z, y, x."""
    try:
        x, y, z = map(float, text.split(","))
    except ValueError as error:
        raise ConfigError(
            "expected a place such as 120.5,88,64", got=f"'{text}'", hint="Write --center x,y,z in Å, without blanks."
        ) from error
    return z, y, x


@contextmanager
def executor_for(workers: int | None, scheduler: str | None, cluster: Path | None) -> "Iterator[Executor]":
    """Who does the work of a scan."""
    from cryoscan.scan import InProcess, local_workers, scheduler_workers
    from cryoscan.scan.cluster import ClusterConfig, cluster_workers

    if workers is not None and workers > 1:
        with local_workers(workers) as local:
            yield local
    elif scheduler is not None:
        with scheduler_workers(scheduler) as remote:
            yield remote
    elif cluster is not None:
        with cluster_workers(ClusterConfig.read(cluster)) as jobs:
            yield jobs
    else:
        yield InProcess()


class _EveryLabel(Sequence["RegionMask"]):
    """One region per label, cut out only when asked for: hundreds of masks of a large map do not fit memory."""

    def __init__(self, volume: Volume, labels: LabelMap) -> None:
        from cryoscan.segment import check_same_grid

        check_same_grid(volume, labels.volume)
        self._data = labels.labels()
        self._labels = [int(label) for label in np.unique(self._data) if label]
        if not self._labels:
            raise GeometryError("expected labels in the label volume", got="0 everywhere", hint="Is it the right file?")

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> "RegionMask":  # type: ignore[override]
        from cryoscan.workflows import RegionMask

        return RegionMask(self._labels[index], self._data == self._labels[index])


def _read_mask(given: Given, path: Path) -> np.ndarray:
    """A mask on the map's grid: bool if it has two values, else weights of 0 … 1."""
    from cryoscan.segment import check_same_grid

    mask = open_volume(path, voxel_size=_companion_size(given, path))
    check_same_grid(given.volume, mask)
    values = mask.load()
    low, high = float(values.min()), float(values.max())
    if not low < high:
        raise FormatError("expected a mask of two values or more", got=f"{low:g} everywhere", hint="Check the mask.")
    if ((values == low) | (values == high)).all():
        return np.asarray(values == high)
    if low < -0.01 or high > 1.01:
        raise FormatError(
            f"expected a mask of values from 0 to 1 in {path}",
            got=f"{low:g} to {high:g}",
            hint="This looks like a density or a label volume: threshold it first, or give it as --labels.",
        )
    return np.asarray(np.clip(values, 0, 1))


def _companion_size(given: Given, path: Path) -> float | None:
    """The given voxel size holds for a mask too if the two files' headers agree (both unset included)."""
    if given.voxel_size is None:
        return None
    map_size, own = describe(given.path).voxel_size, describe(path).voxel_size
    if map_size is None or own is None:
        return given.voxel_size if own is None else None
    return given.voxel_size if abs(own / map_size - 1) <= _SAME_SIZE else None

"""What is left to do for each volume, told from its header and from what is on disk: no volume is read for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cryoscan.batch.config import BatchConfig
from cryoscan.batch.inputs import BatchVolume, find_volumes
from cryoscan.batch.record import Status, read_record, status_on_disk
from cryoscan.datedb import DateDB
from cryoscan.embedding import Embedder
from cryoscan.errors import ConfigError, CryoscanError, FormatError, GeometryError
from cryoscan.io import VolumeFile, VolumeInfo, describe, planes
from cryoscan.provenance import Provenance, fingerprint_file
from cryoscan.scan import ScanConfig
from cryoscan.scan.sharpening import fingerprint_enhancer
from cryoscan.units import Angstrom
from cryoscan.volume import Volume

_SAME_SIZE = 0.01


@dataclass(frozen=True, slots=True)
class BatchItem:
    """One volume of a batch.

    Parameters
    ----------
    name : str
    path : Path
        Of the volume.
    output : Path
        Of its scan.
    status : Status
    reason : str
        Why it has changed, failed or is missing.
    file, mask : VolumeFile, optional
        How the volume and its mask are opened.
    config : ScanConfig, optional
        Its settings.
    grid : Volume, optional
        Of the whole volume, also where planes are chosen; without values.
    provenance : Provenance, optional
        What the scan is made from.
    warnings : tuple of str
        About the header.
    enhancer : Path, optional
        Network of one's own that the volume is sharpened with, if it is.
    """

    name: str
    path: Path
    output: Path
    status: Status
    reason: str = ""
    file: VolumeFile | None = None
    mask: VolumeFile | None = None
    config: ScanConfig | None = None
    grid: Volume | None = None
    provenance: Provenance | None = None
    warnings: tuple[str, ...] = ()
    enhancer: Path | None = None


def plan_batch(
    inputs: Sequence[str | Path],
    output: Path | str,
    *,
    datedb: DateDB,
    embedder: Embedder,
    config: BatchConfig | None = None,
    enhancer: Path | None = None,
) -> list[BatchItem]:
    """Find volumes and say what is left to do for each.

    Parameters
    ----------
    inputs : sequence of str or Path
        See `find_volumes`.
    output : Path
        Folder of all scans; it need not be there.
    datedb, embedder
        Must belong together.
    config : BatchConfig, optional
    enhancer : Path, optional
        Weights of a network of one's own, for the volumes whose settings say that they are sharpened.

    Returns
    -------
    list of BatchItem
        In the order of the inputs, which is what shards count in.

    Raises
    ------
    MissingFileError, ConfigError, FormatError
        See `find_volumes`. What is wrong with a single volume is told by its item. Also if there is no such network,
        or no volume that is to be sharpened with it.
    MismatchError
        If the DateDB was written by another embedder.
    """
    output, config = Path(output), config or BatchConfig()
    datedb.require(embedder)
    if output.exists() and not output.is_dir():
        raise FormatError("expected a folder for the scans", got=f"the file {output}", hint="Choose another name.")
    found = find_volumes(inputs, config=config)
    made_by = {"datedb": datedb.fingerprint, "embedder": embedder.fingerprint}
    if any(volume.settings.scan.get("enhance", config.scan.enhance) for volume in found):
        made_by["enhancer"] = fingerprint_enhancer(enhancer)
    elif enhancer is not None:
        raise ConfigError(
            "expected volumes to sharpen with the network that was given",
            got="none whose settings say enhance: true",
            hint="Give --enhance as well, or leave the network out.",
        )
    return [_item(volume, output, config, made_by, enhancer) for volume in found]


def _item(
    volume: BatchVolume, output: Path, config: BatchConfig, made_by: dict[str, str], enhancer: Path | None
) -> BatchItem:
    scan = output / f"{volume.name}.scan"
    if volume.missing:
        return BatchItem(volume.name, volume.path, scan, Status.missing, volume.missing)
    try:
        return _readable_item(volume, scan, config, made_by, enhancer)
    except CryoscanError as error:
        reason = str(error)
    except OSError as error:
        reason = f"expected to read {volume.path}; got {error.strerror or error}. Check permissions and the disk."
    status, _ = status_on_disk(scan, None, None)  # the volume of a finished scan may be gone
    return BatchItem(volume.name, volume.path, scan, Status.done if status is Status.done else Status.failed, reason)


def _readable_item(
    volume: BatchVolume, scan: Path, config: BatchConfig, made_by: dict[str, str], enhancer: Path | None
) -> BatchItem:
    settings = volume.settings
    info = describe(volume.path)
    voxel_size, replaced, warnings = _voxel_size(volume, info)
    whole = Volume(np.broadcast_to(np.float32(0), info.shape), voxel_size, info.origin)
    if settings.z_range is not None:
        planes(whole, settings.z_range)  # refuses planes that are not there
    contrast = settings.contrast or config.contrast
    file = VolumeFile(volume.path, replaced, contrast, settings.z_range)
    mask = None
    if settings.mask is not None:
        own = describe(settings.mask).voxel_size
        same = own is None or (info.voxel_size is not None and abs(own / info.voxel_size - 1) <= _SAME_SIZE)
        mask = VolumeFile(Path(settings.mask), voxel_size if same else None, z_range=settings.z_range)
    chosen = {**settings.scan, **({} if settings.resolution is None else {"resolution_A": settings.resolution})}
    scan_config = ScanConfig.build(**{**config.scan.model_dump(), **chosen})
    provenance = Provenance(
        "cryoscan batch",
        config={
            **scan_config.model_dump(mode="json"),
            "voxel_size": voxel_size,
            "contrast": contrast,
            "z_range": None if settings.z_range is None else list(settings.z_range),
        },
        inputs={
            "volume": fingerprint_file(volume.path),
            **({"mask": fingerprint_file(mask.path)} if mask else {}),
            **{name: value for name, value in made_by.items() if name != "enhancer" or scan_config.enhance},
        },
    )
    status, reason = status_on_disk(scan, provenance, read_record(scan))
    return BatchItem(
        volume.name,
        volume.path,
        scan,
        status,
        reason,
        file=file,
        mask=mask,
        config=scan_config,
        grid=whole,
        provenance=provenance,
        warnings=tuple(warnings),
        enhancer=enhancer if scan_config.enhance else None,
    )


def _voxel_size(volume: BatchVolume, info: VolumeInfo) -> tuple[Angstrom, Angstrom | None, list[str]]:
    """Voxel size, what replaces that of the file, and what is odd; the folder's counts if the file has none."""
    given, folder, header = volume.settings.voxel_size, volume.folder_voxel_size, info.voxel_size
    if given is not None:
        disagreement = info.disagreement(given)
        return given, given, [disagreement] if disagreement else []
    if header is not None:
        if folder is not None and abs(header / folder - 1) > _SAME_SIZE:
            return (
                header,
                None,
                [f"The file says {header:g} Å per voxel, its folder {folder:g} Å; {header:g} Å is used."],
            )
        return header, None, []
    why = " ".join(info.warnings)
    if folder is not None:
        return folder, folder, [f"{why} The {folder:g} Å of the folder's name are used.".strip()]
    raise GeometryError(
        "expected a voxel size in the header",
        got=f"none that can be used in {volume.path} ({why})" if why else f"none in {volume.path}",
        hint="Give --voxel-size for all volumes, or voxel_size in a list or in overrides.",
    )

"""What the folder of a batch says about one volume: its scan, and a record of what the scan does not say."""

import json
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from cryoscan.errors import ExistingOutputError
from cryoscan.provenance import Provenance, write_atomically
from cryoscan.scan import ScanResult, open_scan
from cryoscan.scan.folder import exclusive

RECORDS = "batch"
"""Folder of the records, beside the scans."""


class Status(StrEnum):
    """How far a volume is."""

    new = "new"
    unfinished = "unfinished"
    done = "done"
    changed = "changed"  # settings or inputs are not those of the scan that is there
    failed = "failed"  # cannot be opened, or the last try ended with an error
    missing = "missing"  # a run without the tomogram that was asked for


@dataclass(frozen=True, slots=True)
class VolumeRecord:
    """What a scan's own folder does not say.

    Parameters
    ----------
    path : str
        Of the volume.
    provenance : Provenance, optional
        What the scan in the folder is made from; None if there is none.
    seconds : float
        Spent on the scan, by all runs together.
    warnings : tuple of str
    error : str
        Why the last try failed; empty if it did not.
    """

    path: str
    provenance: Provenance | None = None
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()
    error: str = ""


def read_record(scan: Path) -> VolumeRecord | None:
    """The record of a volume by the path of its scan; None if there is none that can be read."""
    try:
        values = json.loads(_record_path(scan).read_text(encoding="utf-8"))
        provenance = values["provenance"]
        return VolumeRecord(
            str(values["path"]),
            None if provenance is None else Provenance.from_json(provenance),
            float(values["seconds"]),
            tuple(values["warnings"]),
            str(values["error"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_record(scan: Path, record: VolumeRecord) -> None:
    """Write the record of a volume."""
    path = _record_path(scan)
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, json.dumps({"format_version": 1, **asdict(record)}, indent=1))


def status_on_disk(scan: Path, provenance: Provenance | None, record: VolumeRecord | None) -> tuple[Status, str]:
    """How far the scan of a volume is, and what has changed or failed.

    Parameters
    ----------
    scan : Path
        Folder of the scan.
    provenance : Provenance, optional
        What it should be made from. Nothing is compared without, nor for a scan without
        record: that was made by `cryoscan scan` and is taken as it is.
    record : VolumeRecord, optional
    """
    there = (scan / "manifest.json").is_file()
    try:
        complete = there and is_whole(open_scan(scan))
    except (OSError, ValueError) as error:  # damaged, or of another version
        return Status.changed, str(error)
    if there and provenance is not None and record is not None and record.provenance is not None:
        differences = record.provenance.differences(provenance)
        if differences:
            return Status.changed, "; ".join(differences)
    if complete:
        return Status.done, ""
    if record is not None and record.error:
        return Status.failed, record.error
    return (Status.unfinished if there else Status.new), ""


def is_whole(result: ScanResult) -> bool:
    """Whether a scan is complete, and none of its tiles failed."""
    return result.is_complete and not result.summary.get("failed")


def is_being_written(scan: Path) -> bool:
    """Whether a process is at work on a scan."""
    if not scan.is_dir():
        return False
    try:
        with exclusive(scan):
            return False
    except ExistingOutputError:
        return True


def _record_path(scan: Path) -> Path:
    return scan.parent / RECORDS / f"{scan.name.removesuffix('.scan')}.json"

"""Who made a file and from what: versions, configuration and fingerprints, as JSON."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

import numpy as np

from cryoscan.errors import FormatError


def cryoscan_version() -> str:
    """Return the version of the installed package."""
    try:
        return version("cryoscan")
    except PackageNotFoundError:  # a checkout that was put on the path by hand
        return "0+unknown"


@dataclass(frozen=True, slots=True)
class Provenance:
    """The origin of a result.

    Parameters
    ----------
    command : str
        What was done, in one line.
    config : mapping
        The settings, JSON-able.
    inputs : mapping
        Name of an input -> its fingerprint.
    seed : int, optional
        Of the random generator, where one was used.
    """

    command: str
    config: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    seed: int | None = None
    version: str = field(default_factory=cryoscan_version)
    time: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-able dictionary."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_json` gave."""
        try:
            return cls(**values)
        except TypeError as error:
            raise FormatError(
                "expected a provenance record", got=str(error), hint="The file is damaged or of a newer version."
            ) from error

    def differences(self, other: "Provenance") -> list[str]:
        """Say what differs in settings and inputs; times and versions are no difference."""
        found = [
            f"setting '{key}': {self.config.get(key)!r} before, {other.config.get(key)!r} now"
            for key in sorted({*self.config, *other.config})
            if self.config.get(key) != other.config.get(key)
        ]
        found += [
            f"input '{key}' is not the same"
            for key in sorted({*self.inputs, *other.inputs})
            if self.inputs.get(key) != other.inputs.get(key)
        ]
        return found


def fingerprint_json(values: Any) -> str:
    """Return 16 hexadecimal digits that identify a JSON-able value."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fingerprint_arrays(arrays: Iterable[np.ndarray]) -> str:
    """Return 16 hexadecimal digits that identify the values, types and shapes of arrays."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def fingerprint_file(path: Path) -> str:
    """Identify a file, or a folder such as a Zarr store, by size and sampled content.

    A tomogram of 100 GB must not be read twice: of a large file the first and the last
    MiB and its size and time of change are taken; of a folder its files' sizes and times
    and the content of its JSON files.
    """
    digest = hashlib.sha256()
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.is_file():
                state = file.stat()
                digest.update(f"{file.relative_to(path)}{state.st_size}".encode())
                if file.suffix == ".json" or file.name.startswith(".z"):
                    digest.update(file.read_bytes())
                else:
                    digest.update(str(state.st_mtime_ns).encode())
        return digest.hexdigest()[:16]
    state = path.stat()
    digest.update(str(state.st_size).encode())
    mebibyte = 1 << 20
    with path.open("rb") as stream:
        digest.update(stream.read(mebibyte))
        if state.st_size > 2 * mebibyte:
            digest.update(str(state.st_mtime_ns).encode())
            stream.seek(-mebibyte, os.SEEK_END)
            digest.update(stream.read(mebibyte))
    return digest.hexdigest()[:16]


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write beside, then rename: a reader sees the old file or the new one, never half."""
    data = content.encode() if isinstance(content, str) else content
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with beside.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)

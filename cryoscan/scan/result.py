"""A scan on disk, read back as values."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cryoscan.errors import CryoscanError, FormatError, MissingFileError
from cryoscan.hits import Hits
from cryoscan.io import open_labels, open_volume
from cryoscan.labels import LabelMap
from cryoscan.provenance import Provenance
from cryoscan.units import Angstrom, Shape, Vector
from cryoscan.volume import Volume

FORMAT_VERSION = 4


@dataclass(frozen=True, eq=False)
class ScanResult:
    """A finished or unfinished scan; volumes are opened lazily."""

    path: Path
    manifest: dict[str, Any]

    def __repr__(self) -> str:
        return f"ScanResult({self.path.name}, {'complete' if self.is_complete else 'unfinished'})"

    @property
    def is_complete(self) -> bool:
        """Whether the last step has been written."""
        return (self.path / "summary.json").is_file()

    @property
    def provenance(self) -> Provenance:
        """Settings and fingerprints of the inputs."""
        return Provenance.from_json(self.manifest["provenance"])

    @property
    def volume_geometry(self) -> tuple[Shape, Angstrom, Vector]:
        """Shape, voxel size (Å) and origin (z, y, x, Å) of the scanned volume."""
        volume = self.manifest["volume"]
        z, y, x = volume["shape"]
        oz, oy, ox = volume["origin_A"]
        return (z, y, x), volume["voxel_size_A"], (oz, oy, ox)

    @property
    def grid(self) -> Volume:
        """The scanned volume's grid without its values: for what only asks where things are."""
        shape, voxel_size, origin = self.volume_geometry
        return Volume(np.broadcast_to(np.float32(0), shape), voxel_size, origin)

    @property
    def whole_grid(self) -> Volume:
        """The grid of the volume that the scanned planes are of; as `grid` if all were scanned."""
        whole = self.manifest.get("whole")
        if whole is None:
            return self.grid
        values = np.broadcast_to(np.float32(0), tuple(whole["shape"]))
        return Volume(values, self.manifest["volume"]["voxel_size_A"], tuple(whole["origin_A"]))

    @property
    def score(self) -> Volume:
        """Cosine of the best type at every lattice point; 0 where no density is."""
        return open_volume(self.path / "score.zarr")

    @property
    def margin(self) -> Volume:
        """Best cosine minus second best at every lattice point."""
        return open_volume(self.path / "margin.zarr")

    def top_types(self, index: tuple[int, int, int]) -> list[tuple[str, str, str, float]]:
        """Scheme, type, name and cosine of the best types at a lattice point, best first."""
        import zarr

        group = zarr.open_group(self.path / "topk.zarr", mode="r")
        z, y, x = index
        types = np.asarray(group["types"][:, z, y, x])
        scores = np.asarray(group["scores"][:, z, y, x])
        return [
            (*self.manifest["types"][t], self.manifest["names"][t], float(s))
            for t, s in zip(types, scores, strict=True)
            if t >= 0
        ]

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Numbers of a complete scan: windows, threshold, hits per type, verdict, warnings."""
        self.require_complete()
        return dict(json.loads((self.path / "summary.json").read_text(encoding="utf-8")))

    @cached_property
    def hits(self) -> Hits:
        """Places found, best first."""
        self.require_complete()
        return read_hits(self.path / "hits.json")

    def labels(self) -> LabelMap:
        """Domain type per voxel of the scanned volume."""
        self.require_complete()
        return open_labels(self.path / "labels.zarr")

    def instances(self) -> Volume:
        """Number of the hit, or of the connected piece, that each voxel belongs to; 0 for none."""
        self.require_complete()
        return open_volume(self.path / "instances.zarr")

    def require_complete(self) -> None:
        """Refuse an unfinished scan.

        Raises
        ------
        FormatError
        """
        if not self.is_complete:
            raise FormatError(
                "expected a complete scan",
                got=f"{self.path}, which is unfinished",
                hint="Run the same `cryoscan scan` command again: it continues where it stopped.",
            )


def open_scan(path: Path | str) -> ScanResult:
    """Open a scan.

    Raises
    ------
    MissingFileError, FormatError
        If it is not there, no scan, or of another format version.
    """
    path = Path(path)
    manifest = path / "manifest.json"
    if not path.is_dir():
        raise MissingFileError(
            "expected the folder of a scan (name.scan)", got=f"no such folder: {path}", hint="Check the spelling."
        )
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        if content["format"] != "cryoscan scan":
            raise KeyError("format")
        if content["format_version"] != FORMAT_VERSION:
            raise FormatError(
                f"expected scan format version {FORMAT_VERSION}",
                got=str(content["format_version"]),
                hint="Open it with the version of cryoscan that wrote it, or scan again.",
            )
    except CryoscanError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FormatError(
            f"expected a scan in {path}",
            got=f"no readable manifest ({type(error).__name__})",
            hint="Give a .scan folder.",
        ) from error
    return ScanResult(path, content)


def hits_to_json(hits: Hits) -> str:
    """Hits as JSON, every number in full precision."""
    return json.dumps(
        {
            "positions_zyx_A": hits.positions.tolist(),
            "labels": hits.labels.tolist(),
            "types": hits.types,
            "schemes": hits.schemes,
            "names": hits.names,
            "entries": hits.entries,
            "scores": [float(score) for score in hits.scores],
            "margins": [float(margin) for margin in hits.margins],
        }
    )


def read_hits(path: Path) -> Hits:
    """Read what `hits_to_json` gave."""
    return hits_from_json(json.loads(path.read_text(encoding="utf-8")))


def hits_from_json(values: Mapping[str, Any]) -> Hits:
    """The inverse of `hits_to_json`, of values that are no text any more."""
    return Hits(
        np.asarray(values["positions_zyx_A"], np.float64).reshape(-1, 3),
        np.asarray(values["labels"], np.int64),
        values["types"],
        values["schemes"],
        values["names"],
        values["entries"],
        np.asarray(values["scores"], np.float64),
        np.asarray(values["margins"], np.float64),
    )

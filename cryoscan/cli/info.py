"""`cryoscan info`: what is this file, and can anything be found in it?"""

from pathlib import Path
from typing import Annotated, Any

import typer

from cryoscan.cli import show
from cryoscan.cli.options import Contrast, ContrastOption, Json, VoxelSize


def info(
    path: Annotated[
        Path, typer.Argument(metavar="VOLUME", help="MRC, OME-Zarr, .datedb or .scan.", show_default=False)
    ],
    voxel_size: VoxelSize = None,
    contrast: ContrastOption = Contrast.bright,
    as_json: Json = False,
) -> None:
    """Say what a file holds: shape, voxel size, place, contrast, and whatever is odd.

    Example: cryoscan info tomogram.mrc --contrast dark
    """
    if (path / "manifest.json").is_file():
        about, warnings = _about_folder(path)
    else:
        about, warnings = _about_volume(path, voxel_size, contrast)
    if as_json:
        show.print_json({**about, "warnings": warnings})
        return
    show.facts((key.replace("_A", " (Å)").replace("_", " "), _text(value)) for key, value in about.items())
    show.warn(warnings)


def _about_volume(path: Path, voxel_size: float | None, contrast: str) -> tuple[dict[str, Any], list[str]]:
    from cryoscan.cli.inputs import open_given
    from cryoscan.datedb.store import COARSER
    from cryoscan.io import describe
    from cryoscan.preflight import inspect

    header = describe(path)
    warnings = list(header.warnings)
    size = voxel_size or header.voxel_size
    about: dict[str, Any] = {
        "kind": "volume",
        "path": str(path),
        "format": header.format,
        "shape_zyx": list(header.shape),
        "voxel_size_A": size,
        "extent_xyz_A": [round(n * size, 2) for n in reversed(header.shape)] if size else None,
        "origin_xyz_A": list(reversed(header.origin)),
        "dtype": header.dtype,
        "axis_order": header.axis_order,
        "levels": [list(shape) for shape in header.levels],
        "labels": list(header.labels),
        "file_size_bytes": header.file_size,
    }
    if size is None:
        warnings.append("Nothing can be measured without a voxel size: give it with --voxel-size.")
        return about, warnings
    given = open_given(path, voxel_size=voxel_size, contrast=contrast)
    look = inspect(given.volume, resolution=None, coarsest=max(COARSER))
    about |= {
        "mean": look.mean,
        "standard_deviation": look.spread,
        "skewness": round(look.skewness, 3),
        "contour": look.contour,
        "finest_resolution_A": look.nyquist,
        "domains_can_be_told_apart": look.can_identify,
    }
    return about, [*warnings, *given.warnings, *look.warnings]


def _about_folder(path: Path) -> tuple[dict[str, Any], list[str]]:
    import json

    from cryoscan.cli.datedb import about_datedb
    from cryoscan.datedb import open_datedb
    from cryoscan.scan import open_scan

    text = (path / "manifest.json").read_text(encoding="utf-8", errors="replace")
    if '"cryoscan datedb"' in text:
        db = open_datedb(path)
        return {"kind": "datedb", "path": str(path), **about_datedb(db)}, []
    result = open_scan(path)
    shape, voxel, origin = result.volume_geometry
    about: dict[str, Any] = {
        "kind": "scan",
        "path": str(path),
        "complete": result.is_complete,
        "shape_zyx": list(shape),
        "voxel_size_A": voxel,
        "origin_xyz_A": list(reversed(origin)),
        "settings": dict(result.provenance.config),
        "made": result.provenance.time,
    }
    if result.is_complete:
        about["summary"] = result.summary
    return json.loads(json.dumps(about)), list(result.manifest.get("warnings", []))


def _text(value: object) -> str:
    if value is None:
        return "not set"
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    return f"{value:.6g}" if isinstance(value, float) else " ".join(str(value).split())

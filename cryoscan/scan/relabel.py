"""Naming a finished scan again, under other thresholds or another DateDB, from what the scan has stored.

Places keep their vectors, so their names are found again in seconds and without the volume.
The lattice can be searched again where its vectors were kept (`keep_embeddings`); elsewhere
its scores stay those of the earlier DateDB, which the summary says.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cryoscan.datedb import DateDB
from cryoscan.embedding import Embedder, unit_rows
from cryoscan.errors import ConfigError, FormatError, MismatchError
from cryoscan.io import VolumeFile
from cryoscan.io.replacing import replacing
from cryoscan.preflight import Preflight
from cryoscan.scan.config import ScanConfig
from cryoscan.scan.engine import ScanEvent, ScanFinished, TileDone
from cryoscan.scan.executors import InProcess
from cryoscan.scan.finish import PlacesNamed, finish
from cryoscan.scan.folder import (
    all_reports,
    exclusive,
    failures,
    file_sizes,
    mark_tile,
    write_lattice,
    write_manifest,
)
from cryoscan.scan.places import NULL, add_places, named, peaks, read_places, write_places
from cryoscan.scan.plan import ScanPlan
from cryoscan.scan.result import ScanResult, open_scan
from cryoscan.scan.sharpening import FOLDER as SHARPENED
from cryoscan.scan.sharpening import Sharpening
from cryoscan.tiles import Tiling, WindowGrid
from cryoscan.units import Box
from cryoscan.volume import Volume


def relabel(
    path: Path | str,
    *,
    datedb: DateDB,
    embedder: Embedder,
    settings: Mapping[str, Any] | None = None,
    output: Path | None = None,
    overwrite: bool = False,
) -> Iterator[ScanEvent]:
    """Name a finished scan again.

    Parameters
    ----------
    path : Path
        Folder of a finished scan.
    datedb : DateDB
        The scan's own, or one that was written by the same embedder.
    embedder : Embedder
    settings : mapping, optional
        New values of `ScanConfig.labelling` settings.
    output : Path, optional
        Copy the scan there and leave `path` as it is.
    overwrite : bool
        Replace `output`.

    Raises
    ------
    ConfigError
        If a setting would need a new scan.
    FormatError
        If the scan is unfinished.
    MismatchError
        If the DateDB was written by another embedder.
    """
    path = Path(path).absolute()
    settings = dict(settings or {})
    before = open_scan(path)
    if not before.is_complete:
        raise FormatError(
            "expected a complete scan to name again",
            got=f"{path}, which is unfinished",
            hint="Finish it with the `cryoscan scan` command that began it.",
        )
    wrong = sorted(set(settings) - ScanConfig.labelling)
    if wrong:
        raise ConfigError(
            f"expected settings of the labels: {', '.join(sorted(ScanConfig.labelling))}",
            got=", ".join(wrong),
            hint="Others change what is computed: scan again into a new name.",
        )
    datedb.require(embedder)
    target = path if output is None else output.absolute()
    plan = plan_again(before, datedb=datedb, embedder=embedder, settings=settings)
    if plan.naming[1].fingerprint != before.manifest["named_by"]:
        raise MismatchError(
            "expected a DateDB that names places as the scan's own does",
            got="one with shapes, or one without",
            hint="Build it anew with this version of cryoscan (`cryoscan datedb build`), or scan again.",
        )
    with exclusive(path), replacing(target, overwrite=overwrite or target == path) as beside:
        shutil.copytree(path, beside, copy_function=_link, ignore=_IGNORED, dirs_exist_ok=True)
        yield from _search_again(plan, beside, before.manifest["types"])
        yield from _places_again(plan, beside)
        write_manifest(plan, beside)
        yield from finish(plan, beside, executor=InProcess(), failed=failures(beside))
    yield ScanFinished(open_scan(target))


_IGNORED = shutil.ignore_patterns("lock", "*.lock", "labels.zarr", "instances.zarr", "*.part", SHARPENED)


def _link(source: str, target: str) -> str:
    """Share a file with the earlier scan: nothing in a scan is changed in place, only replaced."""
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        shutil.copy2(source, target)
    return target


def plan_again(
    result: ScanResult, *, datedb: DateDB, embedder: Embedder, settings: Mapping[str, Any] | None = None
) -> ScanPlan:
    """The plan of a scan, from its manifest; the volume is there if its file, and what sharpens it, still is."""
    manifest, provenance = result.manifest, result.provenance
    config = ScanConfig.build(**{**provenance.config, **(settings or {})})
    datedb = datedb.in_scheme(config.scheme)
    planned = manifest["planned"]
    about = manifest["volume"]
    z, y, x = about["shape"]
    volume = Volume(np.broadcast_to(np.float32(0), (z, y, x)), about["voxel_size_A"], tuple(about["origin_A"]))
    source = None if manifest["source"] is None else VolumeFile.from_json(manifest["source"])
    inputs = {**provenance.inputs, "datedb": datedb.fingerprint}
    stored = planned["sharpening"]
    sharpening = None if stored is None else Sharpening.from_json(stored, device=str(embedder.device))
    there = source is not None and source.path.exists() and (sharpening is None or sharpening.weights.is_file())
    if source is not None and there:
        volume = source.open()
    grid = WindowGrid(tuple(planned["working_shape"]), embedder.window, config.stride_voxels)
    preflight = Preflight(**{**planned["preflight"], "shape": (z, y, x), "warnings": tuple(manifest["warnings"])})
    return ScanPlan(
        volume,
        datedb,
        embedder,
        config,
        preflight,
        bank=datedb.bank_for(manifest["bank_A"]),
        blur=planned["blur_A"],
        background=planned["background"],
        contour=planned["contour"],
        flat=planned["flat"],
        grid=grid,
        tiling=Tiling(grid.shape, tuple(planned["tile"])),
        active=np.zeros(0, np.int64),
        provenance=replace(provenance, config=config.model_dump(mode="json"), inputs=inputs),
        sharpening=sharpening,
        source=source if there else None,
    )


# ---------------------------------------------------------------- the lattice


def _search_again(plan: ScanPlan, path: Path, types: list[list[str]]) -> Iterator[TileDone]:
    """Search the kept vectors in another DateDB; without them only the types' numbers are translated."""
    reports = {n: r for n, r in all_reports(path).items() if r.signature != plan.signature}
    known = {key: number for number, key in enumerate(plan.datedb.types)}
    translation = np.array([known.get((scheme, type_), -1) for scheme, type_ in types] + [-1], np.int32)
    for done, (index, report) in enumerate(sorted(reports.items()), start=1):
        if report.windows:
            box = plan.tiling.box(index)
            answers = (
                _from_vectors(plan, path, box) if plan.config.keep_embeddings else _renumbered(path, box, translation)
            )
            write_lattice(plan, path, box, *answers)
        again = replace(report, signature=plan.signature, sizes=file_sizes(plan, path, index))
        mark_tile(path, index, again)
        yield TileDone(done, len(reports), report.windows, None, stage="tiles searched again")


def _from_vectors(plan: ScanPlan, path: Path, box: Box) -> tuple[np.ndarray, np.ndarray]:
    import zarr

    vectors = np.asarray(zarr.open_array(path / "embeddings.zarr", mode="r")[box])
    alive = vectors.any(axis=-1)
    k = plan.config.candidates
    types, scores = np.full((k, *alive.shape), -1, np.int32), np.zeros((k, *alive.shape), np.float32)
    if alive.any():
        found = plan.datedb.assign(unit_rows(vectors[alive]), top=k, resolution=plan.bank, representatives=False)
        types[: found.types.shape[1], alive] = found.types.T
        scores[: found.scores.shape[1], alive] = found.scores.T
    return types, scores


def _renumbered(path: Path, box: Box, translation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    import zarr

    group = zarr.open_group(path / "topk.zarr", mode="r")
    types, scores = (np.asarray(group[name][(slice(None), *box)]) for name in ("types", "scores"))
    return translation[types], scores


# ---------------------------------------------------------------- places


def _places_again(plan: ScanPlan, path: Path) -> Iterator[PlacesNamed]:
    """Take over the places of the lattice's best points; new ones are cut out of the volume, if it is there."""
    tiles = [NULL, *(index for index, report in sorted(all_reports(path).items()) if report.windows)]
    total = 0
    for done, index in enumerate(tiles, start=1):
        if read_places(plan, path, index) is None:
            places = read_places(plan, path, index, of_any_plan=True)
            if places is not None:
                places = named(plan, places)
                if index != NULL:
                    places = add_places(plan, path, places, peaks(plan, path, plan.tiling.box(index)))
                write_places(plan, path, index, places)
                total += len(places)
        yield PlacesNamed(done, len(tiles), 0.0, total, stage="tiles whose places are named again")

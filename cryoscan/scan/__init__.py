"""Scanning a volume: intent and data are resolved into a plan, running it yields events and fills a folder.

A scan is a folder::

    name.scan/
        manifest.json        settings and fingerprints of volume, DateDB and embedder
        score.zarr           OME-Zarr on the lattice: cosine of the best type
        margin.zarr          … minus that of the second type
        topk.zarr            best types per lattice point and their cosines
        embeddings.zarr      vectors of the lattice as bytes, if they are kept
        tiles/<n>            done-marker of each tile, written after its data
        places/<n>.npz       regions at the best points of each tile, and their vectors
        sharpened/<n>.npy    tiles of the network, where the volume is sharpened; gone at the end
        failed/<n>.json      tiles that cannot be computed, and why
        hits.json            places found, Å
        found.json           … and those without a name: what thresholds choose from
        found.zarr           number of the place that a voxel belongs to, painted for those who look again
        points.zarr          … and the lattice point that speaks for it, where places are not cut out
        edited/<n>.zarr      found.zarr as somebody drew it anew
        journal.jsonl        what people changed
        labels.zarr          OME-Zarr: domain type per voxel of the volume's own grid
        instances.zarr       OME-Zarr: which hit, or connected piece, a voxel belongs to
        summary.json

A lattice point is a window of the embedder; the lattice is itself a volume whose voxel size
is stride × the embedder's voxel size. The work is done in pieces (tiles of the lattice, then
their places, then blocks of labels), each written whole before it is marked as done: a killed
scan continues with the first piece that is missing. Changed settings or inputs are refused.
"""

from cryoscan.scan.config import ScanConfig, TypeThresholds
from cryoscan.scan.engine import ScanEvent, ScanFinished, ShardDone, TileDone, run_scan
from cryoscan.scan.executors import Executor, InProcess, local_workers, scheduler_workers
from cryoscan.scan.finish import LabelsPainted, PlacesNamed, hits_so_far
from cryoscan.scan.folder import discard_unfinished
from cryoscan.scan.found import FoundPlaces, read_found
from cryoscan.scan.journal import (
    Change,
    Corrected,
    Journal,
    corrected,
    corrected_labels,
    corrected_result,
    write_changes_csv,
)
from cryoscan.scan.plan import ScanPlan, Speed, plan_scan
from cryoscan.scan.relabel import relabel
from cryoscan.scan.result import ScanResult, open_scan
from cryoscan.scan.review import likeness, likeness_at, paint_places, place_numbers, project

__all__ = [
    "Change",
    "Corrected",
    "Executor",
    "FoundPlaces",
    "InProcess",
    "Journal",
    "LabelsPainted",
    "PlacesNamed",
    "ScanConfig",
    "ScanEvent",
    "ScanFinished",
    "ScanPlan",
    "ScanResult",
    "ShardDone",
    "Speed",
    "TileDone",
    "TypeThresholds",
    "corrected",
    "corrected_labels",
    "corrected_result",
    "discard_unfinished",
    "hits_so_far",
    "likeness",
    "likeness_at",
    "local_workers",
    "open_scan",
    "paint_places",
    "place_numbers",
    "plan_scan",
    "project",
    "read_found",
    "relabel",
    "run_scan",
    "scheduler_workers",
    "write_changes_csv",
]

"""Scanning a volume: intent and data are resolved into a plan, running it yields events and fills a folder.

A scan is a folder::

    name.scan/
        manifest.json        settings and fingerprints of volume, DateDB and embedder
        score.zarr           OME-Zarr on the lattice: cosine of the best type
        margin.zarr          … minus that of the second type
        topk.zarr            best types per lattice point and their cosines
        tiles/<n>            done-marker of each tile, written after its data
        hits.json            places found, Å
        labels.zarr          OME-Zarr labels on the volume's own grid
        summary.json

A lattice point is a window of the embedder; the lattice is itself a volume whose voxel size
is stride × the embedder's voxel size. A killed scan continues with the first tile that has
no marker; changed settings or inputs are refused.
"""

from cryoscan.scan.config import ScanConfig
from cryoscan.scan.engine import ScanFinished, TileDone, run_scan
from cryoscan.scan.finish import RegionNamed
from cryoscan.scan.plan import ScanPlan, plan_scan
from cryoscan.scan.result import ScanResult, open_scan

__all__ = [
    "RegionNamed",
    "ScanConfig",
    "ScanFinished",
    "ScanPlan",
    "ScanResult",
    "TileDone",
    "open_scan",
    "plan_scan",
    "run_scan",
]

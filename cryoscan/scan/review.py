"""What people who look at a finished scan again need: the region of every place, and which places are alike."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import zarr

from cryoscan.datedb import DateDB
from cryoscan.embedding import Embedder, unit_rows
from cryoscan.errors import ConfigError, FormatError
from cryoscan.io import build_pyramid, open_labels, open_zarr_array
from cryoscan.io.replacing import replacing
from cryoscan.scan.finish import LabelsPainted, create_numbers, paint_regions, touched_blocks
from cryoscan.scan.folder import all_reports
from cryoscan.scan.found import FoundPlaces, PlaceTable, apart, read_found, table_of
from cryoscan.scan.places import read_places, vector_at
from cryoscan.scan.plan import ScanPlan
from cryoscan.scan.relabel import plan_again
from cryoscan.scan.result import ScanResult
from cryoscan.units import Vector
from cryoscan.volume import Volume

_FOUND = "found.zarr"


def place_numbers(result: ScanResult) -> Volume | None:
    """Number of the place, counted from 1 as in `read_found`, of every voxel; None if it is not painted yet."""
    path = result.path / _FOUND
    if not path.is_dir() or zarr.open_group(path, mode="r").attrs.get("places") != read_found(result).digest:
        return None
    return open_labels(path).volume


def paint_places(result: ScanResult, *, datedb: DateDB, embedder: Embedder) -> Iterator[LabelsPainted]:
    """Write the volume that `place_numbers` gives, so that a change of thresholds is a change of colours.

    Parameters
    ----------
    result : ScanResult
        Finished, of an embedder that cuts places out.
    datedb, embedder
        Those of the scan.

    Raises
    ------
    FormatError
        If the embedder cuts no places out, or the DateDB is not the scan's.
    """
    found, plan = read_found(result), plan_again(result, datedb=datedb, embedder=embedder)
    table = _table(plan, result.path, found)
    if not embedder.needs_mask:
        raise FormatError(
            "expected a scan whose places are cut out",
            got=f"one with {type(embedder).__name__}, whose labels belong to lattice points",
            hint="Change its thresholds with `cryoscan relabel`.",
        )
    with replacing(result.path / _FOUND, overwrite=True) as beside:
        blocks = create_numbers(beside, plan)
        touched = touched_blocks(plan, table, blocks)
        for done, number in enumerate(touched, start=1):
            _, numbers = paint_regions(plan, result.path, blocks.box(number), table)
            open_zarr_array(beside, writable=True)[blocks.box(number)] = numbers
            yield LabelsPainted(done, len(touched), 0.0, stage="blocks of regions painted")
        build_pyramid(beside, average=False)
        zarr.open_group(beside, mode="r+").attrs["places"] = found.digest


def likeness(result: ScanResult, queries: Sequence[int], *, datedb: DateDB, embedder: Embedder) -> np.ndarray:
    """How alike some places of a scan are to all of its places: their cosine, or how well their shapes fit.

    Parameters
    ----------
    result : ScanResult
        Finished.
    queries : sequence of int
        Indices into `read_found`, counted from 0.
    datedb, embedder
        Those of the scan.

    Returns
    -------
    float array, `q n`
        Up to 1.
    """
    found, plan = read_found(result), plan_again(result, datedb=datedb, embedder=embedder)
    vectors = _vectors(plan, result.path, found)
    return _alike(plan, vectors[list(queries)], vectors)


def likeness_at(result: ScanResult, position: Vector, *, datedb: DateDB, embedder: Embedder) -> np.ndarray:
    """How alike what is at any position is to all places of a scan: `likeness` of what the scan may have passed over.

    Parameters
    ----------
    result : ScanResult
        Finished, and its volume where it was.
    position : (z, y, x) in Å
    datedb, embedder
        Those of the scan.

    Returns
    -------
    float array, `n`

    Raises
    ------
    GeometryError
        If there is no density.
    FormatError
        If the volume, or the network that sharpened it, is not where it was.
    """
    found, plan = read_found(result), plan_again(result, datedb=datedb, embedder=embedder)
    if plan.source is None:
        sharpened = "" if plan.sharpening is None else ", and the network that sharpened it,"
        raise FormatError(
            f"expected the volume of {result.path}{sharpened} to embed another place",
            got="none where it was",
            hint="Put it back, or select a hit: the scan has kept the vectors of those.",
        )
    query = vector_at(plan, position)
    return _alike(plan, query[None], _vectors(plan, result.path, found))[0]


def project(similarity: np.ndarray, *, method: Literal["pca", "umap"] = "pca") -> np.ndarray:
    """Things in a plane where those that are alike lie close together.

    Parameters
    ----------
    similarity : float array, `n n`
        Of each to each, e.g. from `likeness`.
    method : {"pca", "umap"}
        The two largest principal components of the centred similarities (kernel PCA; Schölkopf et al. 1998), or
        UMAP, where the package umap-learn is installed.

    Returns
    -------
    float array, `n 2`

    Raises
    ------
    ConfigError
        If UMAP is asked for and not there.
    """
    both = (similarity + similarity.T) / 2
    if len(both) < 3:
        return np.stack([np.arange(len(both), dtype=np.float64), np.zeros(len(both))], axis=1)
    if method == "umap":
        try:
            from umap import UMAP
        except ImportError as error:
            raise ConfigError(
                "expected the package umap-learn for UMAP",
                got="an installation without it",
                hint="Install it (pip install umap-learn), or use PCA.",
            ) from error
        neighbours = min(15, len(both) - 1)
        fit = UMAP(metric="precomputed", n_neighbors=neighbours, random_state=0, init="random")
        return np.asarray(fit.fit_transform(np.clip(1 - both, 0, None)), np.float64)
    centred = both - both.mean(axis=0) - both.mean(axis=1)[:, None] + both.mean()
    values, vectors = np.linalg.eigh(centred)
    plane = vectors[:, [-1, -2]] * np.sqrt(np.clip(values[[-1, -2]], 0, None))
    signs = np.sign(plane[np.abs(plane).argmax(axis=0), [0, 1]])  # an axis has no direction of its own
    return np.asarray(plane * np.where(signs == 0, 1, signs))


def _alike(plan: ScanPlan, queries: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """How alike unit rows are to others, `q n`."""
    if not plan.naming[0].matched:
        return np.asarray(queries @ vectors.T)
    from cryoscan.models.matching import Matcher

    return Matcher(vectors, device=str(plan.embedder.device)).similarities(queries)


def _vectors(plan: ScanPlan, path: Path, found: FoundPlaces) -> np.ndarray:
    """Vectors of the places, unit rows, `n d`."""
    vectors = np.zeros((len(found), plan.naming[1].dim), np.float32)
    for tile in np.unique(found.tile):
        places = read_places(plan, path, int(tile))
        if places is None:
            raise _other_database()
        mine = found.tile == tile
        vectors[mine] = places.vector[found.region[mine]]
    return unit_rows(vectors)


def _table(plan: ScanPlan, path: Path, found: FoundPlaces) -> PlaceTable:
    tiles = sorted(index for index, report in all_reports(path).items() if report.windows)
    table = apart(table_of(plan, path, tiles), plan)
    if table.digest != found.digest:
        raise _other_database()
    return table


def _other_database() -> FormatError:
    return FormatError(
        "expected the DateDB with which the scan was made",
        got="another one, or places that are damaged",
        hint="Give the scan's own DateDB, or name the scan again with this one (`cryoscan relabel`).",
    )

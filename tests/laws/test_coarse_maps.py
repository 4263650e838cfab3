"""Laws of maps that are coarser than all banks: named as far as that is known to go, and said to be unknown beyond."""

from pathlib import Path

import numpy as np
import pytest

from cryoscan import Volume
from cryoscan.datedb import DateDB, open_datedb
from cryoscan.datedb.build import embedder_for
from cryoscan.datedb.previews import Preview, read_previews
from cryoscan.filters import resample_onto
from cryoscan.scan import ScanConfig, ScanFinished, plan_scan, run_scan
from cryoscan.windows import blurred
from cryoscan.workflows import RegionMask, identify

ORIGIN = (-31.5, 12.25, 407.125)
VOXEL_SIZE = 4.3
PLACED = {0: (70.0, 66.0, 80.0), 3: (90.0, 130.0, 62.0), 7: (62.0, 96.0, 165.0)}  # Å from the origin


@pytest.fixture(scope="module")
def db() -> DateDB:
    return open_datedb()


@pytest.fixture(scope="module")
def previews(db: DateDB) -> dict[int, Preview]:
    found = read_previews(db)
    return {index: found[index] for index in PLACED}


def blunt(previews: dict[int, Preview], resolution: float) -> Volume:
    """Entries of the database, turned by a quarter and blurred, in mild noise."""
    shape = (36, 45, 54)
    total = np.zeros(shape, np.float32)
    for index, preview in previews.items():
        turned = Volume(np.rot90(preview.volume.load(), axes=(0, 2)).copy(), preview.volume.voxel_size)
        coarse = blurred(turned, resolution=6.0, target=resolution)
        middle = (np.array(turned.shape) - 1) / 2 * turned.voxel_size
        corner = tuple(float(m - at) for m, at in zip(middle, PLACED[index], strict=True))
        total += resample_onto(coarse, voxel_size=VOXEL_SIZE, origin=corner, shape=shape).load()  # type: ignore[arg-type]
    noise = blurred(
        Volume(np.random.default_rng(2).normal(size=shape).astype(np.float32), VOXEL_SIZE),
        resolution=2.0,
        target=resolution,
    ).load()
    return Volume(total + 0.1 * total.std() / noise.std() * noise, VOXEL_SIZE, ORIGIN)


def around(volume: Volume, at: tuple[float, float, float]) -> np.ndarray:
    places = volume.to_position(np.indices(volume.shape).reshape(3, -1).T) - np.add(ORIGIN, at)
    return np.asarray(np.linalg.norm(places, axis=1).reshape(volume.shape) < 30)


def test_regions_of_a_map_at_15_are_named_and_at_24_are_not(db: DateDB, previews: dict[int, Preview]) -> None:
    sharp, dull = blunt(previews, 15.0), blunt(previews, 24.0)
    regions = [RegionMask(index + 1, around(sharp, at)) for index, at in PLACED.items()]
    seen = identify(sharp, regions, datedb=db, embedder=embedder_for(db), resolution=15.0, schemes=["CATH"])
    assert seen.preflight.can_identify
    assert [r.candidates[0].type for r in seen.regions] == [previews[index].entry.type for index in PLACED]
    assert [r.verdict for r in seen.regions] == ["named"] * 3
    lost = identify(dull, regions[:1], datedb=db, embedder=embedder_for(db), resolution=24.0)
    assert not lost.preflight.can_identify
    assert "20 Å or better" in " ".join(lost.preflight.warnings)
    assert lost.regions[0].verdict == "unknown"


def test_a_scan_names_at_the_level_of_its_volume(db: DateDB, previews: dict[int, Preview], tmp_path: Path) -> None:
    embedder, config = embedder_for(db), ScanConfig(resolution_A=14.0)
    plan = plan_scan(blunt(previews, 14.0), datedb=db, embedder=embedder, config=config)
    assert (plan.bank, plan.level, plan.scannable) == (10.0, 15.0, True)
    *_, last = run_scan(plan, tmp_path / "a.scan")
    assert isinstance(last, ScanFinished)
    hits = last.result.hits
    assert sorted(hits.types) == sorted(preview.entry.type for preview in previews.values())
    for index, at in PLACED.items():
        mine = hits.positions[hits.types.index(previews[index].entry.type)]
        assert np.linalg.norm(mine - np.add(ORIGIN, at)) < 10
    fine = plan_scan(blunt(previews, 8.0), datedb=db, embedder=embedder, config=ScanConfig(resolution_A=9.0))
    assert (fine.bank, fine.level) == (10.0, 10.0)
    coarse = plan_scan(blunt(previews, 24.0), datedb=db, embedder=embedder, config=ScanConfig(resolution_A=24.0))
    assert not coarse.scannable

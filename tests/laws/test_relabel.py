"""Laws of naming a scan again: the same as scanning again, and the earlier scan is left alone."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import zarr

from cryoscan import Volume
from cryoscan.datedb import DateDB
from cryoscan.errors import ConfigError, ExistingOutputError, FormatError, MismatchError
from cryoscan.filters import resample_onto
from cryoscan.io import VolumeFile, write_volume
from cryoscan.scan import ScanConfig, ScanFinished, ScanResult, open_scan, plan_scan, relabel, run_scan
from cryoscan.testing import ToyEmbedder, crowded_volume, toy_datedb

ORIGIN = (-31.5, 12.25, 407.125)
SETTINGS = {"stride_voxels": 2, "candidates": 2, "min_score": 0.9, "contour": 0.2, "resolution_A": 5.8}


def ball(radius: float, hollow: float = 0.0) -> Volume:
    z, y, x = (np.arange(-13, 14) * 2.0 for _ in range(3))
    r = np.sqrt(z[:, None, None] ** 2 + y[:, None] ** 2 + x**2)
    data = 1 / (1 + np.exp((r - radius) / 1.5)) - (1 / (1 + np.exp((r - hollow) / 1.5)) if hollow else 0)
    return Volume(data.astype(np.float32), 2.0, (-26.0, -26.0, -26.0))


SHAPES = {"solid": ball(16.0), "shell": ball(19.0, hollow=11.0), "small": ball(10.5)}


def database(embedder: ToyEmbedder, names: list[str]) -> DateDB:
    corner = -(embedder.window - 1) / 2 * 4.0
    edge = (embedder.window,) * 3
    windows = {n: resample_onto(SHAPES[n], voxel_size=4.0, origin=(corner,) * 3, shape=edge) for n in names}  # type: ignore[arg-type]
    return toy_datedb(embedder, windows, bank=9.0)


@pytest.fixture(scope="module", params=[True, False], ids=["masked", "lattice"])
def embedder(request: pytest.FixtureRequest) -> ToyEmbedder:
    return ToyEmbedder(window=12, voxel_size=4.0, needs_mask=request.param)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> VolumeFile:
    volume, _ = crowded_volume(
        list(SHAPES.values()), n=6, shape=(63, 71, 80), voxel_size=2.9, origin=ORIGIN, gap=9.0, noise=0.02, seed=3
    )
    path = tmp_path_factory.mktemp("volume") / "v.mrc"
    write_volume(volume, path)
    return VolumeFile(path)


def scan(source: VolumeFile, path: Path, db: DateDB, embedder: ToyEmbedder, **settings: object) -> ScanResult:
    config = ScanConfig.build(**{**SETTINGS, **settings})
    *_, last = run_scan(plan_scan(source.open(), datedb=db, embedder=embedder, config=config, source=source), path)
    assert isinstance(last, ScanFinished)
    return last.result


def again(path: Path, db: DateDB, embedder: ToyEmbedder, output: Path | None = None, **settings: object) -> ScanResult:
    *_, last = relabel(path, datedb=db, embedder=embedder, settings=settings, output=output)
    assert isinstance(last, ScanFinished)
    return last.result


def assert_same(one: ScanResult, two: ScanResult) -> None:
    assert one.hits.types == two.hits.types
    assert np.array_equal(one.hits.positions, two.hits.positions)
    assert np.allclose(one.hits.scores, two.hits.scores, atol=2e-3)
    assert np.array_equal(one.labels().labels(), two.labels().labels())
    assert np.array_equal(one.instances().load(), two.instances().load())
    assert one.labels().classes == two.labels().classes


def contents(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file() and "lock" not in file.name)
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_other_thresholds_give_what_a_new_scan_gives(source: VolumeFile, embedder: ToyEmbedder, tmp_path: Path) -> None:
    db = database(embedder, list(SHAPES))
    scan(source, tmp_path / "a.scan", db, embedder)
    for number, settings in enumerate([{"min_score": 0.985}, {"min_distance_A": 60.0}]):
        fresh = scan(source, tmp_path / f"fresh{number}.scan", db, embedder, **settings)
        named = again(tmp_path / "a.scan", db, embedder, tmp_path / f"again{number}.scan", **settings)
        assert_same(fresh, named)
        assert named.provenance.config == fresh.provenance.config
    assert len(fresh.hits) < len(open_scan(tmp_path / "a.scan").hits)  # the settings do something


def test_a_grown_database_gives_what_a_new_scan_gives(
    source: VolumeFile, embedder: ToyEmbedder, tmp_path: Path
) -> None:
    all_ = database(embedder, list(SHAPES))
    few = all_.without_entries(["shell"])  # numbers the types differently
    scan(source, tmp_path / "few.scan", few, embedder, keep_embeddings=True)
    fresh = scan(source, tmp_path / "all.scan", all_, embedder, keep_embeddings=True)
    named = again(tmp_path / "few.scan", all_, embedder)
    assert "shell" in named.hits.names
    assert fresh.hits.types == named.hits.types
    assert np.array_equal(fresh.hits.positions, named.hits.positions)
    one, two = fresh.labels().labels(), named.labels().labels()
    either = (one > 0) | (two > 0)  # bytes for vectors: a few points cross a threshold
    assert (one == two)[either].mean() > (0.999 if embedder.needs_mask else 0.98)
    assert np.allclose(fresh.score.load(), named.score.load(), atol=5e-3)


def test_without_kept_vectors_the_types_of_the_lattice_keep_their_names(
    source: VolumeFile, embedder: ToyEmbedder, tmp_path: Path
) -> None:
    all_ = database(embedder, list(SHAPES))
    few = all_.without_entries(["shell"])  # numbers the types differently
    before = scan(source, tmp_path / "few.scan", few, embedder)
    index = np.unravel_index(before.score.load().argmax(), before.score.shape)
    place = (int(index[0]), int(index[1]), int(index[2]))
    wanted = before.top_types(place)
    assert again(tmp_path / "few.scan", all_, embedder).top_types(place) == wanted


def test_the_earlier_scan_is_left_as_it_was(source: VolumeFile, embedder: ToyEmbedder, tmp_path: Path) -> None:
    all_ = database(embedder, list(SHAPES))
    few = all_.without_entries(["shell"])  # numbers the types differently
    scan(source, tmp_path / "a.scan", few, embedder, keep_embeddings=True)
    before = contents(tmp_path / "a.scan")
    again(tmp_path / "a.scan", all_, embedder, tmp_path / "b.scan")
    assert contents(tmp_path / "a.scan") == before
    with pytest.raises(ExistingOutputError):
        again(tmp_path / "a.scan", all_, embedder, tmp_path / "b.scan")


def test_thresholds_need_no_volume(tmp_path: Path, source: VolumeFile) -> None:
    embedder = ToyEmbedder(window=12, voxel_size=4.0)
    db = database(embedder, list(SHAPES))
    moved = VolumeFile(tmp_path / "moved.mrc")
    moved.path.write_bytes(source.path.read_bytes())
    scan(moved, tmp_path / "a.scan", db, embedder)
    fresh = scan(source, tmp_path / "fresh.scan", db, embedder, min_score=0.985)
    moved.path.unlink()
    assert_same(fresh, again(tmp_path / "a.scan", db, embedder, min_score=0.985))


def test_what_needs_a_new_scan_is_refused(source: VolumeFile, embedder: ToyEmbedder, tmp_path: Path) -> None:
    db = database(embedder, list(SHAPES))
    scan(source, tmp_path / "a.scan", db, embedder)
    with pytest.raises(ConfigError, match="scan again"):
        again(tmp_path / "a.scan", db, embedder, stride_voxels=4)
    with pytest.raises(MismatchError, match="embedder"):
        again(tmp_path / "a.scan", db, ToyEmbedder(window=14, voxel_size=4.0))
    (tmp_path / "a.scan" / "summary.json").unlink()
    with pytest.raises(FormatError, match="unfinished"):
        again(tmp_path / "a.scan", db, embedder)


def test_a_database_that_names_in_another_way_is_refused(source: VolumeFile, tmp_path: Path) -> None:
    embedder = ToyEmbedder(window=12, voxel_size=4.0)
    db = database(embedder, list(SHAPES))
    scan(source, tmp_path / "a.scan", db, embedder)
    manifest = tmp_path / "a.scan" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "named_by": "something else"}))
    with pytest.raises(MismatchError, match="names places as the scan's own does"):
        again(tmp_path / "a.scan", db, embedder)


def test_a_database_of_more_types_than_before_is_taken(source: VolumeFile, tmp_path: Path) -> None:
    embedder = ToyEmbedder(window=12, voxel_size=4.0)
    all_ = database(embedder, list(SHAPES))
    one = all_.without_entries(["shell", "small"])
    scan(source, tmp_path / "one.scan", one, embedder)
    fresh, named = scan(source, tmp_path / "all.scan", all_, embedder), again(tmp_path / "one.scan", all_, embedder)
    assert fresh.hits.types == named.hits.types
    assert fresh.hits.positions == pytest.approx(named.hits.positions, abs=1e-4)


def test_kept_vectors_lose_little(source: VolumeFile, embedder: ToyEmbedder, tmp_path: Path) -> None:
    db = database(embedder, list(SHAPES))
    result = scan(source, tmp_path / "a.scan", db, embedder, keep_embeddings=True)
    plan = plan_scan(source.open(), datedb=db, embedder=embedder, config=ScanConfig.build(**SETTINGS), source=source)
    kept = np.asarray(zarr.open_array(tmp_path / "a.scan" / "embeddings.zarr", mode="r")[...], np.float32)
    z, y, x = np.argwhere(result.score.load() > 0)[7]
    box = plan.grid.read_box((slice(z, z + 1), slice(y, y + 1), slice(x, x + 1)))
    true = embedder.embed(plan.read_working(box).load()[None])[0]
    vector = kept[z, y, x]
    assert vector @ true / np.linalg.norm(vector) / np.linalg.norm(true) > 0.999

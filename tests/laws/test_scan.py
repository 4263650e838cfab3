"""Laws of the scan: tiling does not matter (L1), a killed scan continues (L11), places are right (L3)."""

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import zarr

import cryoscan.scan.plan
from cryoscan import Volume
from cryoscan.datedb import DateDB
from cryoscan.errors import ExistingOutputError, FormatError, GeometryError, MismatchError, MissingFileError
from cryoscan.io import VolumeFile, open_volume, write_volume
from cryoscan.scan import ScanConfig, ScanFinished, ScanPlan, ScanResult, TileDone, open_scan, plan_scan, run_scan
from cryoscan.testing import ToyEmbedder, crowded_volume, toy_datedb

Scene = tuple[Volume, list[tuple[str, tuple[float, float, float]]]]
ORIGIN = (-31.5, 12.25, 407.125)


def ball(radius: float, hollow: float = 0.0, stretch: float = 1.0) -> Volume:
    """A density centred on 0 Å; `hollow` Å of it are empty."""
    z, y, x = (np.arange(-13, 14) * 2.0 for _ in range(3))
    r = np.sqrt((z[:, None, None] / stretch) ** 2 + y[:, None] ** 2 + x**2)
    data = 1 / (1 + np.exp((r - radius) / 1.5)) - (1 / (1 + np.exp((r - hollow) / 1.5)) if hollow else 0)
    return Volume(data.astype(np.float32), 2.0, (-26.0, -26.0, -26.0))


SHAPES = {"solid": ball(16.0), "shell": ball(19.0, hollow=11.0), "small": ball(10.5)}


@pytest.fixture(scope="module")
def embedder() -> ToyEmbedder:
    return ToyEmbedder(window=12, voxel_size=4.0)


@pytest.fixture(scope="module")
def db(embedder: ToyEmbedder) -> DateDB:
    from cryoscan.filters import resample_onto

    corner = -(embedder.window - 1) / 2 * 4.0
    edge = (embedder.window,) * 3
    return toy_datedb(
        embedder,
        {
            name: resample_onto(v, voxel_size=4.0, origin=(corner, corner, corner), shape=edge)
            for name, v in SHAPES.items()
        },
        bank=9.0,  # coarser than the scene: the scan has to blur, and needs a halo for it
    )


@pytest.fixture(scope="module")
def scene() -> Scene:
    volume, planted = crowded_volume(
        list(SHAPES.values()), n=6, shape=(63, 71, 80), voxel_size=2.9, origin=ORIGIN, gap=9.0, noise=0.02, seed=3
    )
    assert len(planted) == 6
    return volume, [(list(SHAPES)[p.index], p.position) for p in planted]


def scan(
    volume: Volume, path: Path, db: DateDB, embedder: ToyEmbedder, source: VolumeFile | None = None, **settings: object
) -> ScanResult:
    config = ScanConfig.build(
        **{"stride_voxels": 2, "candidates": 2, "min_score": 0.9, "contour": 0.2, "resolution_A": 5.8, **settings}
    )
    *_, last = run_scan(plan_scan(volume, datedb=db, embedder=embedder, config=config, source=source), path)
    assert isinstance(last, ScanFinished)
    return last.result


def arrays(path: Path) -> dict[str, np.ndarray]:
    group = zarr.open_group(path / "topk.zarr", mode="r")
    return {
        "score": open_volume(path / "score.zarr").load(),
        "margin": open_volume(path / "margin.zarr").load(),
        "types": np.asarray(group["types"][...]),
        "labels": open_scan(path).labels().labels(),
    }


# ---------------------------------------------------------------- it finds


def test_planted_shapes_are_found_named_and_labelled_where_they_are(
    scene: Scene,
    db: DateDB,
    embedder: ToyEmbedder,
    tmp_path: Path,
) -> None:
    volume, planted = scene
    result = scan(volume, tmp_path / "a.scan", db, embedder)
    hits = result.hits
    labels = result.labels()
    assert labels.volume.shape == volume.shape
    assert labels.volume.to_position((1, 2, 3)) == pytest.approx(volume.to_position((1, 2, 3)))
    for name, position in planted:
        distance = np.linalg.norm(hits.positions - position, axis=1)
        nearest = int(distance.argmin())
        assert distance[nearest] < 3.0
        assert hits.names[nearest] == name
        index = tuple(np.rint(volume.to_index(hits.positions[nearest])).astype(int))
        if name != "shell":  # the middle of the shell is empty
            assert labels.classes[int(labels.labels()[index])].name == name
    assert len(hits) == len(planted)
    assert result.summary["hits"] == 6


def test_score_map_is_a_volume_on_the_lattice(
    scene: Scene,
    db: DateDB,
    embedder: ToyEmbedder,
    tmp_path: Path,
) -> None:
    volume, planted = scene
    score = scan(volume, tmp_path / "a.scan", db, embedder).score
    assert score.voxel_size == pytest.approx(8.0)
    places = score.to_position(np.moveaxis(np.indices(score.shape), 0, -1))
    offsets = []
    for _, position in planted:
        near = np.linalg.norm(places - position, axis=-1) < 20
        values = np.where(near, score.load(), 0)
        weight = (values - (values.max() - 0.05)).clip(0)
        centre = (weight[..., None] * places).sum(axis=(0, 1, 2)) / weight.sum()
        offsets.append(centre - position)
    assert np.abs(np.mean(offsets, axis=0)).max() < 2.5  # Å: a lattice shifted by one voxel would show


def test_the_best_types_of_a_lattice_point_can_be_asked_for(
    scene: Scene, db: DateDB, embedder: ToyEmbedder, tmp_path: Path
) -> None:
    volume, _ = scene
    result = scan(volume, tmp_path / "a.scan", db, embedder)
    score, margin = result.score.load(), result.margin.load()
    z, y, x = (int(i) for i in np.unravel_index(score.argmax(), score.shape))
    (scheme, type_, name, first), (*_, second) = result.top_types((z, y, x))
    assert (scheme, db.name(scheme, type_)) == ("CATH", name)
    assert first == pytest.approx(score[z, y, x])
    assert first - second == pytest.approx(margin[z, y, x], abs=1e-6)
    empty = np.argwhere(score == 0)[0]
    assert result.top_types(tuple(int(i) for i in empty)) == []  # type: ignore[arg-type]


# ---------------------------------------------------------------- L1


@pytest.mark.parametrize("tile_points", [5, 64])
def test_scan_does_not_depend_on_tiling(
    scene: Scene,
    db: DateDB,
    embedder: ToyEmbedder,
    tmp_path: Path,
    tile_points: int,
) -> None:
    volume, _ = scene
    scan(volume, tmp_path / "a.scan", db, embedder, tile_points=9)
    scan(volume, tmp_path / "b.scan", db, embedder, tile_points=tile_points)
    one, two = arrays(tmp_path / "a.scan"), arrays(tmp_path / "b.scan")
    for name in one:
        assert np.allclose(one[name], two[name], rtol=1e-6, atol=2e-6), name
    hits = [open_scan(tmp_path / name).hits for name in ("a.scan", "b.scan")]
    assert hits[0].positions == pytest.approx(hits[1].positions, abs=1e-3)
    assert hits[0].types == hits[1].types


def test_scan_does_not_depend_on_the_chunks_of_its_input(
    scene: Scene,
    db: DateDB,
    embedder: ToyEmbedder,
    tmp_path: Path,
) -> None:
    volume, _ = scene
    write_volume(volume, tmp_path / "v.zarr")
    write_volume(volume, tmp_path / "v.mrc")
    found = []
    for name in ("v.zarr", "v.mrc"):
        scan(open_volume(tmp_path / name), tmp_path / f"{name}.scan", db, embedder)
        found.append(arrays(tmp_path / f"{name}.scan"))
    for name in found[0]:
        assert np.allclose(found[0][name], found[1][name], rtol=1e-6, atol=2e-6), name


# ---------------------------------------------------------------- L11


def test_a_killed_scan_continues_and_equals_an_uninterrupted_one(
    scene: Scene,
    db: DateDB,
    embedder: ToyEmbedder,
    tmp_path: Path,
) -> None:
    volume, _ = scene
    scan(volume, tmp_path / "whole.scan", db, embedder)
    config = ScanConfig(stride_voxels=2, candidates=2, min_score=0.9, contour=0.2, resolution_A=5.8)
    plan = plan_scan(volume, datedb=db, embedder=embedder, config=config)
    total = len(plan.tiling)
    assert total > 3
    events = run_scan(plan, tmp_path / "part.scan")
    list(islice(events, 2))
    events.close()  # type: ignore[attr-defined]
    assert not open_scan(tmp_path / "part.scan").is_complete
    with pytest.raises(FormatError, match="continues where it stopped"):
        open_scan(tmp_path / "part.scan").labels()
    rest = list(run_scan(plan, tmp_path / "part.scan"))
    assert [event.done for event in rest if isinstance(event, TileDone)] == list(range(3, total + 1))
    one, two = arrays(tmp_path / "whole.scan"), arrays(tmp_path / "part.scan")
    assert all(np.array_equal(one[name], two[name]) for name in one)


def test_what_planning_found_out_is_taken_over_by_the_same_scan_alone(
    scene: Scene, db: DateDB, embedder: ToyEmbedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume, _ = scene
    path = tmp_path / "a.scan"

    def plan(**settings: object) -> ScanPlan:
        config = ScanConfig.build(**{"stride_voxels": 2, "candidates": 2, "contour": None, **settings})
        return plan_scan(volume, datedb=db, embedder=embedder, config=config, folder=path)

    first = plan()
    list(islice(run_scan(first, path), 1))
    monkeypatch.setattr(cryoscan.scan.plan, "contour_level", lambda _: 123.0)
    assert (plan().contour, plan().flat) == (first.contour, first.flat)
    assert plan(stride_voxels=3).contour == 123.0
    (path / "manifest.json").write_text("{}")
    assert plan().contour == 123.0


def test_a_tile_without_its_marker_is_computed_again(
    scene: Scene,
    db: DateDB,
    embedder: ToyEmbedder,
    tmp_path: Path,
) -> None:
    volume, _ = scene
    plan = plan_scan(volume, datedb=db, embedder=embedder, config=ScanConfig(stride_voxels=2, candidates=2))
    list(islice(run_scan(plan, tmp_path / "a.scan"), 3))
    (tmp_path / "a.scan" / "tiles" / "1").write_text("of another run")
    again = [e for e in run_scan(plan, tmp_path / "a.scan") if isinstance(e, TileDone)]
    assert len(again) == len(plan.tiling) - 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"stride_voxels": 3}, "'stride_voxels': 2 before, 3 now"), ({"min_score": 0.5}, "min_score")],
)
def test_changed_settings_do_not_mix(
    scene: Scene,
    db: DateDB,
    embedder: ToyEmbedder,
    tmp_path: Path,
    settings: dict[str, object],
    message: str,
) -> None:
    volume, _ = scene
    config = ScanConfig(stride_voxels=2, candidates=2, min_score=0.9, contour=0.2, resolution_A=5.8)
    list(islice(run_scan(plan_scan(volume, datedb=db, embedder=embedder, config=config), tmp_path / "a.scan"), 1))
    with pytest.raises(MismatchError, match=message):
        scan(volume, tmp_path / "a.scan", db, embedder, **settings)


def test_another_volume_or_database_does_not_mix(
    scene: Scene,
    db: DateDB,
    embedder: ToyEmbedder,
    tmp_path: Path,
) -> None:
    volume, _ = scene
    config = ScanConfig(stride_voxels=2, candidates=2, min_score=0.9, contour=0.2, resolution_A=5.8)
    list(islice(run_scan(plan_scan(volume, datedb=db, embedder=embedder, config=config), tmp_path / "a.scan"), 1))
    moved = Volume(volume.data, volume.voxel_size, (0.0, 0.0, 1.0))
    with pytest.raises(MismatchError, match="input 'volume'"):
        scan(moved, tmp_path / "a.scan", db, embedder)
    inverted = Volume(-volume.load(), volume.voxel_size, volume.origin)
    with pytest.raises(MismatchError, match="input 'contrast'"):
        scan(inverted, tmp_path / "a.scan", db, embedder)
    with pytest.raises(MismatchError, match="input 'datedb'"):
        scan(volume, tmp_path / "a.scan", db.without_entries(["small"]), embedder)


# ---------------------------------------------------------------- refusals


def test_a_complete_scan_and_other_folders_are_not_overwritten(
    scene: Scene,
    db: DateDB,
    embedder: ToyEmbedder,
    tmp_path: Path,
) -> None:
    volume, _ = scene
    scan(volume, tmp_path / "a.scan", db, embedder)
    with pytest.raises(ExistingOutputError, match="complete"):
        scan(volume, tmp_path / "a.scan", db, embedder)
    (tmp_path / "b.scan").mkdir()
    (tmp_path / "b.scan" / "x").write_text("precious")
    with pytest.raises(ExistingOutputError, match="something else"):
        scan(volume, tmp_path / "b.scan", db, embedder)
    assert (tmp_path / "b.scan" / "x").exists()


def test_noise_alone_is_not_named(db: DateDB, embedder: ToyEmbedder, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(size=(40, 45, 50)).astype(np.float32)
    plan = plan_scan(Volume(noise, 3.0), datedb=db, embedder=embedder, config=ScanConfig(candidates=2, min_score=0.999))
    *_, last = run_scan(plan, tmp_path / "a.scan")
    assert isinstance(last, ScanFinished)
    assert last.result.summary["verdict"].startswith("nothing can be named with confidence")
    assert (last.result.labels().labels() == 0).all()


def test_a_volume_too_coarse_for_the_database_stays_unknown(
    scene: Scene,
    db: DateDB,
    embedder: ToyEmbedder,
    tmp_path: Path,
) -> None:
    coarse = Volume(scene[0].load()[::4, ::4, ::4], 11.6, ORIGIN)
    result = scan(coarse, tmp_path / "a.scan", db, embedder)
    assert "does not resolve" in result.summary["verdict"]
    assert any("23.2 Å" in warning for warning in result.summary["warnings"])
    assert len(result.hits) == 0
    assert result.labels().labels().shape == coarse.shape


def test_what_is_no_scan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no such folder"):
        open_scan(tmp_path / "no.scan")
    with pytest.raises(FormatError, match=r"\.scan folder"):
        open_scan(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"format": "cryoscan scan", "format_version": 77}))
    with pytest.raises(FormatError, match="version 4; got 77"):
        open_scan(tmp_path)


def test_nan_and_constant_volumes_are_refused_before_the_scan(db: DateDB, embedder: ToyEmbedder) -> None:
    data = np.random.default_rng(0).normal(size=(30, 31, 32)).astype(np.float32)
    data[3, 4, 5] = np.nan
    with pytest.raises(FormatError, match="nan_to_num"):
        plan_scan(Volume(data, 3.0), datedb=db, embedder=embedder, config=ScanConfig())
    with pytest.raises(FormatError, match="everywhere"):
        plan_scan(Volume(np.ones((9, 9, 9)), 3.0), datedb=db, embedder=embedder, config=ScanConfig())
    with pytest.raises(GeometryError, match="positive voxel size"):
        Volume(data, 0.0)

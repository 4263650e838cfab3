"""Laws of the scan at scale: who does the work, in how many pieces and in which order does not matter."""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import ome_zarr_models
import pytest
import scan_worker
import zarr
from scan_worker import EMBEDDERS, contents, plan_of, results

import cryoscan.scan.finish
import cryoscan.scan.plan
from cryoscan import Volume
from cryoscan.embedding import unit_rows
from cryoscan.errors import ConfigError, ResourceError
from cryoscan.io import VolumeFile, create_zarr, open_volume, stored_parts, write_volume
from cryoscan.scan import InProcess, ScanFinished, ShardDone, local_workers, open_scan, run_scan
from cryoscan.scan.executors import Dask, Executor
from cryoscan.scan.folder import finished_tiles
from cryoscan.scan.tile import answer_tile, read_tile
from cryoscan.segment import label_block


@pytest.fixture(scope="module")
def volume() -> Volume:
    return scan_worker.scene()


@pytest.fixture(scope="module")
def whole(volume: Volume, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A scan in one tile per embedder: nothing was cut."""
    folder = tmp_path_factory.mktemp("whole")
    for kind in EMBEDDERS:
        plan = plan_of(kind, volume, tile_points=64)
        assert len(plan.tiling) == 1
        finished(run_scan(plan, folder / f"{kind}.scan"))
    return {kind: folder / f"{kind}.scan" for kind in EMBEDDERS}


@pytest.fixture(scope="module")
def tiled(volume: Volume, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An undisturbed scan in many tiles by this process alone, per embedder."""
    folder = tmp_path_factory.mktemp("tiled")
    for kind in EMBEDDERS:
        finished(run_scan(plan_of(kind, volume), folder / f"{kind}.scan"))
    return {kind: folder / f"{kind}.scan" for kind in EMBEDDERS}


@pytest.fixture(scope="module")
def dask() -> Iterator[Executor]:
    with local_workers(2) as executor:
        yield executor


def finished(events) -> Path:
    *_, last = events
    assert isinstance(last, ScanFinished)
    return last.result.path


def assert_equal_within_rounding(one: Path, two: Path) -> None:
    """Sums in another order differ in the last digit; what is named and where does not."""
    here, there = contents(one), contents(two)
    for name in ("score", "margin", "scores"):
        assert np.allclose(here[name], there[name], rtol=1e-5, atol=2e-6), name
    sure = here["margin"] > 1e-5
    assert sure.any()
    assert np.array_equal(here["types"][0][sure], there["types"][0][sure])
    for name in ("labels", "instances"):
        assert here[name].any()
        assert np.array_equal(here[name], there[name]), name
    hits = [open_scan(path).hits for path in (one, two)]
    assert len(hits[0]) == 6
    assert hits[0].positions == pytest.approx(hits[1].positions, abs=1e-3)
    assert hits[0].names == hits[1].names
    assert hits[0].scores == pytest.approx(hits[1].scores, abs=1e-5)


# ---------------------------------------------------------------- L1: tilings


@pytest.mark.parametrize("tile_points", [7, 13])
@pytest.mark.parametrize("kind", EMBEDDERS)
def test_scan_does_not_depend_on_tiling(
    volume: Volume, whole: dict[str, Path], tmp_path: Path, kind: str, tile_points: int
) -> None:
    plan = plan_of(kind, volume, tile_points=tile_points)
    assert min(plan.tiling.counts) > 1
    path = finished(run_scan(plan, tmp_path / "a.scan"))
    assert_equal_within_rounding(whole[kind], path)


@pytest.mark.parametrize("stride", [2, 7])
@pytest.mark.parametrize("kind", ["windows", "cells"])
def test_what_is_looked_at_does_not_depend_on_tiling(volume: Volume, tmp_path: Path, kind: str, stride: int) -> None:
    """Also where points are further apart than windows reach, and windows smaller than flat places."""
    small = Volume(volume.load()[:23, :30, :35], volume.voxel_size, volume.origin)
    scores = []
    for tile_points in (64, 3):
        plan = replace(plan_of(kind, small, tile_points=tile_points, stride_voxels=stride, contour=0.05), flat=0.12)
        scores.append(open_scan(finished(run_scan(plan, tmp_path / f"{tile_points}.scan"))).score.load())
    assert 0 < np.count_nonzero(scores[0]) < scores[0].size
    assert np.array_equal(scores[0] > 0, scores[1] > 0)
    assert np.allclose(*scores, rtol=1e-5, atol=2e-6)


# ---------------------------------------------------------------- L1: executors


@pytest.mark.slow
@pytest.mark.parametrize("kind", EMBEDDERS)
def test_processes_give_what_one_process_gives(
    volume: Volume, tiled: dict[str, Path], dask: Executor, tmp_path: Path, kind: str
) -> None:
    path = finished(run_scan(plan_of(kind, volume), tmp_path / "a.scan", executor=dask))
    assert results(path) == results(tiled[kind])


@pytest.mark.parametrize(("kind", "order"), [("masked", (3, 1, 2)), ("windows", (2, 3, 1)), ("cells", (1, 2, 3))])
def test_shards_in_any_order_give_what_one_process_gives(
    volume: Volume, tiled: dict[str, Path], tmp_path: Path, kind: str, order: tuple[int, ...]
) -> None:
    plan = plan_of(kind, volume)
    for number in order:
        *_, last = run_scan(plan, tmp_path / "a.scan", shard=(number, 3))
        assert isinstance(last, ScanFinished if number == order[-1] else ShardDone)
    assert results(tmp_path / "a.scan") == results(tiled[kind])


@pytest.mark.parametrize("kind", ["masked", "cells"])
def test_shards_at_the_same_time_give_what_one_process_gives(
    volume: Volume, tiled: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    shards = [scan_worker.start(kind, tmp_path / "a.scan", shard=(number, 3)) for number in (1, 2, 3)]
    assert [scan_worker.end(shard) for shard in shards] == [0, 0, 0]
    assert results(tmp_path / "a.scan") == results(tiled[kind])


def test_a_share_does_not_overwrite_what_others_do(volume: Volume, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Remove the earlier scan"):
        list(run_scan(plan_of("masked", volume), tmp_path / "a.scan", shard=(1, 3), overwrite=True))


class Shuffled:
    """Does pieces in a random order, and one in five of them twice."""

    workers = 1

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def run(self, work, plan, path, numbers):
        order = random.Random(self._seed).sample(list(numbers), len(numbers))
        for number in order[::5]:
            work(plan, path, number)
        yield from InProcess().run(work, plan, path, order)


@pytest.mark.parametrize("kind", EMBEDDERS)
def test_order_and_repetition_of_pieces_do_not_matter(
    volume: Volume, tiled: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    path = finished(run_scan(plan_of(kind, volume), tmp_path / "a.scan", executor=Shuffled(4)))
    assert results(path) == results(tiled[kind])


# ---------------------------------------------------------------- blocks of labels


@pytest.mark.parametrize("edge", [16, 48])
@pytest.mark.parametrize("kind", ["masked", "cells"])
def test_labels_do_not_depend_on_the_blocks_in_which_they_are_painted(
    volume: Volume, tiled: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, edge: int
) -> None:
    monkeypatch.setattr(cryoscan.scan.finish, "_SHARD", edge)
    monkeypatch.setattr(cryoscan.scan.finish, "_CHUNK", 16)
    path = finished(run_scan(plan_of(kind, volume), tmp_path / "a.scan"))
    parts = stored_parts(zarr.open_array(path / "labels.zarr" / "0"))
    assert parts is not None
    assert parts.size == tuple(min(edge, -(-size // 16) * 16) for size in volume.shape)
    one, two = contents(tiled[kind]), contents(path)
    for name in ("labels", "instances"):
        assert np.array_equal(one[name], two[name]), name


@pytest.mark.parametrize("kind", ["windows", "cells"])
def test_instances_are_the_connected_pieces_of_the_labels(tiled: dict[str, Path], kind: str) -> None:
    found = contents(tiled[kind])
    assert np.array_equal(found["instances"], label_block(found["labels"]))


def test_instances_of_cut_out_places_are_the_hits(tiled: dict[str, Path]) -> None:
    result = open_scan(tiled["masked"])
    labels, instances = result.labels().labels(), result.instances().load()
    assert set(np.unique(instances)) == set(range(len(result.hits) + 1))
    for number, position in enumerate(result.hits.positions, start=1):
        assert set(labels[instances == number]) == {result.hits.labels[number - 1]}
        middle = np.argwhere(instances == number).mean(axis=0)
        assert np.linalg.norm(result.instances().to_position(middle) - position) < 6


@pytest.mark.parametrize("name", ["labels.zarr", "instances.zarr"])
def test_pyramids_take_every_second_voxel_and_store_only_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(cryoscan.scan.finish, "_SHARD", 32)
    monkeypatch.setattr(cryoscan.scan.finish, "_CHUNK", 16)
    long = np.zeros((41, 52, 301), np.float32)
    long[:, :, :63] = scan_worker.scene().load()
    volume = Volume(long, scan_worker.VOXEL_SIZE, scan_worker.ORIGIN)
    path = finished(run_scan(plan_of("masked", volume), tmp_path / "a.scan"))
    group = zarr.open_group(path / name, mode="r")
    finest = np.asarray(group["0"][...])
    assert finest.any()
    for level in range(1, len(list(group.array_keys()))):
        array = group[str(level)]
        assert np.array_equal(array[...], finest[:: 2**level, :: 2**level, :: 2**level])
    parts = stored_parts(group["0"])
    assert parts is not None
    assert parts.present.any()
    assert not parts.present[:, :, 3:].any()  # of 10 along x; the shapes end at 196 Å = voxel 63


@pytest.mark.parametrize("name", ["labels.zarr", "instances.zarr"])
def test_other_readers_accept_labels(tiled: dict[str, Path], name: str) -> None:
    image = ome_zarr_models.open_ome_zarr(zarr.open_group(tiled["masked"] / name, mode="r"))
    (multiscale,) = image.attributes.ome.multiscales
    assert [axis.name for axis in multiscale.axes] == ["z", "y", "x"]
    scale, translation = multiscale.datasets[0].coordinateTransformations
    assert scale.scale == pytest.approx([scan_worker.VOXEL_SIZE] * 3)
    assert translation.translation == pytest.approx(scan_worker.ORIGIN)


# ---------------------------------------------------------------- what is not there is not looked at


@pytest.mark.parametrize("ngff", ["0.4", "0.5"])
def test_a_sparse_store_gives_what_its_dense_copy_gives(volume: Volume, tmp_path: Path, ngff: str) -> None:
    shape, corner = (90, 104, 170), (41, 52, 63)
    options = {"chunks": (41, 26, 21)} | ({"shards": (41, 52, 63)} if ngff == "0.5" else {})
    array = create_zarr(
        tmp_path / "v.zarr",
        shape=shape,
        dtype=np.float32,
        voxel_size=volume.voxel_size,
        origin=volume.origin,
        ngff=ngff,
        **options,
    )
    array[tuple(slice(c, 2 * c) for c in corner)] = volume.load()
    sparse = open_volume(tmp_path / "v.zarr")
    found = []
    for number, data in enumerate((sparse, sparse.loaded())):
        plan = plan_of("windows", data, stride_voxels=4)
        assert (len(plan.active) < 0.5 * len(plan.tiling)) is (number == 0)
        found.append(finished(run_scan(plan, tmp_path / f"{number}.scan")))
    for name, values in contents(found[0]).items():
        assert np.array_equal(values, contents(found[1])[name]), name
        assert values.any(), name
    assert (found[0] / "hits.json").read_bytes() == (found[1] / "hits.json").read_bytes()
    assert len(open_scan(found[0]).hits) > 0


@pytest.mark.parametrize("kind", ["masked", "cells"])
def test_nothing_is_found_outside_the_mask(volume: Volume, tiled: dict[str, Path], tmp_path: Path, kind: str) -> None:
    inside = np.zeros(volume.shape, np.float32)
    inside[:, :, 34:] = 1  # x from 105 Å: one shape of each kind, and the second shell at its border
    mask = Volume(inside, volume.voxel_size, volume.origin)
    path = finished(run_scan(plan_of(kind, volume, mask=mask), tmp_path / "a.scan"))
    score, whole = open_scan(path).score, open_scan(tiled[kind]).score.load()
    x = score.to_position(np.moveaxis(np.indices(score.shape), 0, -1))[..., 2] - volume.origin[2]
    outside = np.rint(x / volume.voxel_size) < 34
    assert not score.load()[outside].any()
    assert np.allclose(score.load()[~outside], whole[~outside], atol=2e-6)
    positions = open_scan(path).hits.positions - volume.origin
    assert (positions[:, 2] > 100).all()
    for name in ("solid", "small"):
        middles = np.array([middle for middle in scan_worker.PLANTED[name] if middle[2] > 110])
        assert np.linalg.norm(positions - middles[0], axis=1).min() < 8


def test_a_scan_goes_on_only_inside_the_same_mask(volume: Volume) -> None:
    inside = np.zeros(volume.shape, np.float32)
    inside[3:-2, 5:30, 7:40] = 1
    prints = []
    for change in (None, "deeper", "elsewhere", "same in other numbers"):
        other = inside.copy()
        if change == "deeper":
            other[-2] = other[-3]
        elif change == "elsewhere":  # as many voxels in each plane
            other = np.roll(other, 1, axis=2)
        elif change == "same in other numbers":
            other *= 7
        plan = plan_of("windows", volume, mask=Volume(other, volume.voxel_size, volume.origin))
        prints.append(plan.provenance.inputs["mask"])
    assert len(set(prints[:3])) == 3
    assert prints[3] == prints[0]


@pytest.mark.parametrize("kind", ["masked", "windows"])
def test_planes_of_a_volume_are_where_they_were(volume: Volume, tmp_path: Path, kind: str) -> None:
    write_volume(volume, tmp_path / "v.zarr")
    source = VolumeFile(tmp_path / "v.zarr", z_range=(9, 41))
    path = finished(run_scan(plan_of(kind, source.open(), source=source), tmp_path / "a.scan"))
    result = open_scan(path)
    corner = volume.to_position((9, 0, 0))
    assert result.labels().volume.shape == (32, 52, 63)
    assert result.labels().volume.origin == pytest.approx(corner)
    for name, middles in scan_worker.PLANTED.items():
        for middle in middles:
            if middle[0] > 70:  # far from the cut
                distance = np.linalg.norm(result.hits.positions - volume.origin - middle, axis=1)
                nearest = int(distance.argmin())
                assert distance[nearest] < (3 if kind == "masked" else 8)
                assert result.hits.names[nearest] == name
                if name != "shell":  # the middle of the shell is empty
                    index = tuple(np.rint(np.array(middle) / volume.voxel_size).astype(int) - (9, 0, 0))
                    assert result.labels().classes[int(result.labels().labels()[index])].name == name


def test_vacuum_is_skipped_and_specimen_is_not(volume: Volume, tmp_path: Path) -> None:
    data = volume.load()
    rng = np.random.default_rng(5)
    noise = rng.normal(scale=0.3, size=data.shape)
    noise[:, :, 32:] *= 0.01
    data = np.where(np.arange(data.shape[2]) < 32, data, 0) + noise
    lamella = Volume(data.astype(np.float32), volume.voxel_size, volume.origin)
    scores = []
    for skip in (True, False):
        plan = plan_of("windows", lamella, skip_flat=skip, contour=-0.5)  # every place is above the contour
        assert (plan.flat > 0) is skip
        scores.append(open_scan(finished(run_scan(plan, tmp_path / f"{skip}.scan"))).score)
    x = scores[0].to_position(np.moveaxis(np.indices(scores[0].shape), 0, -1))[..., 2] - volume.origin[2]
    border = 32 * volume.voxel_size
    skipped, every = (score.load() for score in scores)
    assert (every != 0).all()
    assert (skipped[x > border + 30] == 0).all()
    assert np.array_equal(skipped[x < border - 15], every[x < border - 15])


def test_kept_vectors_point_where_the_embedder_said(volume: Volume, tmp_path: Path) -> None:
    plan = plan_of("cells", volume, keep_embeddings=True)
    path = finished(run_scan(plan, tmp_path / "a.scan"))
    stored = zarr.open_array(path / "embeddings.zarr", mode="r")
    assert stored.dtype == np.int8
    assert stored.shape == (*plan.grid.shape, plan.embedder.dim)
    occupied = [index for index, report in sorted(finished_tiles(plan, path).items()) if report.windows]
    for index in occupied[:: len(occupied) // 3]:
        vectors = answer_tile(plan, index, read_tile(plan, path, index)).vectors
        assert vectors is not None
        kept = np.asarray(stored[plan.tiling.box(index)], np.float64)
        alive = vectors.any(axis=-1)
        assert np.array_equal(kept.any(axis=-1), alive)
        assert ((unit_rows(kept) * unit_rows(vectors)).sum(axis=-1)[alive] > 0.99).all()


# ---------------------------------------------------------------- what does not fit is refused


def test_a_scan_that_does_not_fit_the_disk_is_refused_with_both_numbers(
    volume: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of("masked", volume)
    free = plan.disk_bytes() - 1
    monkeypatch.setattr(cryoscan.scan.plan.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    numbers = rf"at least {plan.disk_bytes() / 2**20:.0f} MiB .*; got {free / 2**20:.0f} MiB in .*\. Free some space"
    with pytest.raises(ResourceError, match=numbers):
        list(run_scan(plan, tmp_path / "a.scan"))
    assert list(tmp_path.iterdir()) == []


class Claims(InProcess):
    """Says that it has more workers than one."""

    workers = 7


def test_a_scan_that_does_not_fit_the_memory_is_refused_with_both_numbers(
    volume: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of("masked", volume)
    monkeypatch.setattr(cryoscan.scan.plan, "available_memory", lambda: 3 * plan.memory_bytes())
    numbers = r"at least [1-9]\d*\.\d GiB of memory for 7 workers; got [\d.]+ GiB available\. Use fewer --workers"
    with pytest.raises(ResourceError, match=numbers):
        list(run_scan(plan, tmp_path / "a.scan", executor=Claims()))
    assert list(tmp_path.iterdir()) == []
    finished(run_scan(plan, tmp_path / "a.scan"))  # one worker fits


@pytest.mark.slow
def test_the_memory_of_other_machines_is_not_counted_here(dask: Executor) -> None:
    assert dask.workers == 2
    assert Dask(dask._client).workers == 1  # type: ignore[attr-defined]

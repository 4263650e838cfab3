"""What of a sparse store is read and written: only what is there."""

from pathlib import Path

import numpy as np
import pytest
import zarr
import zarr.storage

from cryoscan import Volume
from cryoscan.io import build_pyramid, create_zarr, open_volume, stored_parts, write_volume
from cryoscan.io.lazy import LazyArray
from cryoscan.preflight import sample
from cryoscan.scan import ScanConfig, plan_scan
from cryoscan.testing import ToyEmbedder, toy_datedb

VOXEL_SIZE = 3.3
ORIGIN = (-31.5, 12.25, 407.125)
LAYOUTS = {
    "3, shards": {"zarr_format": 3, "shards": True},
    "3, chunks": {"zarr_format": 3},
    "2, nested": {"zarr_format": 2, "chunk_key_encoding": {"name": "v2", "separator": "/"}},
    "2, flat": {"zarr_format": 2, "chunk_key_encoding": {"name": "v2", "separator": "."}},
}


def empty_store(path: Path, shape: tuple[int, ...], part: tuple[int, ...], layout: str) -> zarr.Array:
    """An OME-Zarr image in which nothing is stored, as other programs make them; parts are shards or chunks."""
    options = dict(LAYOUTS[layout])
    chunks = part
    if options.pop("shards", False):
        options["shards"], chunks = part, (*part[:-3], *(edge // 2 for edge in part[-3:]))
    format_ = options.pop("zarr_format")
    group = zarr.create_group(path, zarr_format=format_)
    array = group.create_array("0", shape=shape, chunks=chunks, dtype=np.float32, fill_value=0, **options)
    names = "tczyx"[-len(shape) :]
    axes = [{"name": n, **({"type": "space", "unit": "angstrom"} if n in "zyx" else {})} for n in names]
    lead = [1.0] * (len(shape) - 3)
    transforms = [
        {"type": "scale", "scale": [*lead, *[VOXEL_SIZE] * 3]},
        {"type": "translation", "translation": [*(0.0 for _ in lead), *ORIGIN]},
    ]
    multiscale = {"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": transforms}]}
    if format_ == 2:
        group.attrs.update({"multiscales": [{**multiscale, "version": "0.4"}]})
    else:
        group.attrs.update({"ome": {"version": "0.5", "multiscales": [multiscale]}})
    return array


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keys of the chunks and shards that are asked for, whether they exist or not."""
    keys: list[str] = []
    get = zarr.storage.LocalStore.get

    async def counted(self, key, *args, **kwargs):
        if key.rsplit("/", 1)[-1].replace(".", "").isdigit():
            keys.append(key)
        return await get(self, key, *args, **kwargs)

    monkeypatch.setattr(zarr.storage.LocalStore, "get", counted)
    return keys


# ---------------------------------------------------------------- what is stored


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("lead", [(), (1, 1)])
def test_stored_parts_are_those_that_were_written(tmp_path: Path, layout: str, lead: tuple[int, ...]) -> None:
    array = empty_store(tmp_path / "v.zarr", (*lead, 21, 35, 50), (*lead, 6, 8, 10), layout)
    first = (0,) * len(lead)
    assert not stored_parts(array).present.any()
    array[(*first, slice(6, 12), slice(32, 35), slice(40, 50))] = 1.0
    array[(*first, 20, 0, 0)] = 2.0
    for source in (array, open_volume(tmp_path / "v.zarr").data):
        parts = stored_parts(source)
        assert parts.size == (6, 8, 10)
        assert parts.present.shape == (4, 5, 5)
        assert np.argwhere(parts.present).tolist() == [[1, 4, 4], [3, 0, 0]]
        assert parts.touch((slice(11, 13), slice(30, 33), slice(39, 41)))
        assert not parts.touch((slice(12, 18), slice(8, 32), slice(10, 40)))


def test_left_over_files_of_killed_writers_are_no_parts(tmp_path: Path) -> None:
    array = empty_store(tmp_path / "v.zarr", (6, 8, 10), (6, 8, 10), "3, chunks")
    folder = tmp_path / "v.zarr" / "0" / "c" / "0" / "0"
    folder.mkdir(parents=True)
    (folder / "0.6a1c.partial").write_bytes(b"half")
    assert not stored_parts(array).present.any()


def test_what_is_no_folder_of_chunks_has_no_stored_parts(ugly_volume: Volume, tmp_path: Path) -> None:
    in_memory = zarr.create_array({}, shape=(3, 4, 5), dtype=np.float32)
    write_volume(ugly_volume, tmp_path / "v.mrc")
    for data in (ugly_volume.data, in_memory, open_volume(tmp_path / "v.mrc").data):
        assert stored_parts(data) is None
        assert stored_parts(LazyArray(data, np.dtype(np.float32))) is None


# ---------------------------------------------------------------- pyramids


@pytest.mark.parametrize("average", [True, False])
def test_pyramid_of_a_sparse_image_is_that_of_a_dense_one_and_as_sparse(
    tmp_path: Path, rng: np.random.Generator, average: bool
) -> None:
    shape, shards = (70, 131, 600), (64, 64, 64)
    block = rng.integers(1, 1000, size=(40, 30, 20)).astype(np.uint16)
    box = (slice(30, 70), slice(100, 130), slice(270, 290))
    pyramids = []
    for name in ("sparse.zarr", "dense.zarr"):
        options = {"dtype": np.uint16, "voxel_size": VOXEL_SIZE, "origin": ORIGIN}
        array = create_zarr(tmp_path / name, shape=shape, chunks=(32, 32, 32), shards=shards, pyramid=True, **options)
        if name == "dense.zarr":
            array[...] = 0
        array[box] = block
        build_pyramid(tmp_path / name, average=average)
        group = zarr.open_group(tmp_path / name, mode="r")
        pyramids.append([group[str(level)] for level in range(len(list(group.array_keys())))])
    assert len(pyramids[0]) == 4
    for sparse, dense in zip(*pyramids, strict=True):
        assert np.array_equal(sparse[...], dense[...])
    parts = stored_parts(pyramids[0][0]).present
    assert np.argwhere(parts).tolist() == [[0, 1, 4], [0, 2, 4], [1, 1, 4], [1, 2, 4]]
    files = [stored_parts(level).present for level in pyramids[0][1:]]
    assert [f.sum() for f in files] == [1, 1, 1]
    assert files[0].size > 1
    assert pyramids[0][1][...].any()


# ---------------------------------------------------------------- a look at a large volume


@pytest.mark.parametrize("layout", LAYOUTS)
def test_preflight_looks_only_at_what_is_stored(tmp_path: Path, layout: str, reads: list[str]) -> None:
    array = empty_store(tmp_path / "v.zarr", (256, 512, 513), (64, 64, 64), layout)
    places = [(1, 2, 3), (3, 7, 8), (0, 0, 0)]
    for place in places:
        array[tuple(slice(64 * p, 64 * p + 64) for p in place)] = 5.0
    reads.clear()
    values = sample(open_volume(tmp_path / "v.zarr"))
    assert values.size > 0
    assert (values == 5.0).mean() > 0.7  # the last part reaches beyond the volume
    assert {tuple(int(n) for n in key.replace("/", ".").split(".")[-3:]) for key in reads} == set(places)


def test_preflight_sees_what_lies_anywhere_in_a_shard(tmp_path: Path) -> None:
    array = empty_store(tmp_path / "v.zarr", (512, 512, 513), (256, 256, 256), "3, shards")
    array[300:500, 20:200, 280:500] = 5.0
    values = sample(open_volume(tmp_path / "v.zarr"))
    assert 0.1 < (values == 5.0).mean() < 0.9


def test_a_huge_sparse_volume_is_planned_from_its_few_parts(tmp_path: Path, reads: list[str]) -> None:
    array = create_zarr(
        tmp_path / "v.zarr",
        shape=(1024, 4096, 4096),
        dtype=np.float32,
        voxel_size=VOXEL_SIZE,
        origin=ORIGIN,
        chunks=(64, 64, 64),
        shards=(128, 128, 128),
    )
    noise = np.random.default_rng(0).normal(size=(128, 128, 128)).astype(np.float32)
    noise[40:60, 40:60, 40:60] += 8
    places = [(2, 3, 5), (7, 31, 31), (0, 17, 4)]
    for place in places:
        array[tuple(slice(128 * p, 128 * p + 128) for p in place)] = noise
    embedder = ToyEmbedder(window=12)
    db = toy_datedb(embedder, {"a": Volume(noise[40:60, 40:60, 40:60], 4.0)}, bank=9.0)
    reads.clear()
    volume = open_volume(tmp_path / "v.zarr")
    plan = plan_scan(volume, datedb=db, embedder=embedder, config=ScanConfig(stride_voxels=4, resolution_A=7.0))
    step, origin = plan.lattice_geometry
    assert len(plan.tiling) > 10_000
    assert 0 < len(plan.active) < 3 * 5**3
    assert set(places) <= {tuple(int(n) for n in key.split("/")[-3:]) for key in reads}
    assert len(set(reads)) < 150  # of 8,192 shards
    for place in places:  # the middle of each part is in an active tile
        middle = np.asarray(ORIGIN) + (128 * np.asarray(place) + 64) * VOXEL_SIZE
        point = np.rint((middle - origin) / step).astype(int)
        tile = np.ravel_multi_index(tuple(point // plan.tiling.core), plan.tiling.counts)
        assert tile in plan.active

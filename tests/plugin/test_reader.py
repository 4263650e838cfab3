"""What the reader takes and what it makes of it, without a viewer."""

import json

import numpy as np
import pytest

from cryoscan import CryoscanError, LabelClass, LabelMap, Volume
from cryoscan.io import write_labels, write_volume
from cryoscan.scan import open_scan
from napari_plugin._reader import get_reader, missing_source


@pytest.fixture
def labels(ugly_volume):
    data = np.zeros(ugly_volume.shape, np.uint8)
    data[3, 11, 6] = 7
    return LabelMap(Volume(data, ugly_volume.voxel_size, ugly_volume.origin), {7: LabelClass("Globin-like")})


@pytest.mark.parametrize("name", ["a.mrc", "a.map", "a.zarr"])
def test_density_arrives_at_its_place(ugly_volume, tmp_path, name):
    write_volume(ugly_volume, tmp_path / name)
    path = str(tmp_path / name)
    ((data, settings, kind),) = get_reader(path)(path)
    assert (kind, settings["name"]) == ("image", "a")
    np.testing.assert_allclose(settings["translate"], ugly_volume.origin, atol=1e-4)
    np.testing.assert_allclose(settings["scale"], [1.37] * 3, rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(data), ugly_volume.load())


@pytest.mark.parametrize("name", ["a.mrc", "a.zarr"])
def test_label_map_is_recognised(labels, tmp_path, name):
    write_labels(labels, tmp_path / name)
    path = str(tmp_path / name)
    ((data, settings, kind),) = get_reader(path)(path)
    assert kind == "labels"
    assert np.argwhere(np.asarray(data) == 7).tolist() == [[3, 11, 6]]
    assert "Globin-like" in list(settings["features"]["name"])


@pytest.mark.parametrize("name", ["a.mrc", "a.zarr"])
def test_integers_without_meaning_are_a_density(ugly_volume, tmp_path, name):
    volume = Volume((ugly_volume.load() * 10).astype(np.int8), 2.5, (1.0, 2.0, 3.0))
    write_volume(volume, tmp_path / name, dtype=np.int8)
    path = str(tmp_path / name)
    assert [kind for _, _, kind in get_reader(path)(path)] == ["image"]


def test_labels_inside_an_image_come_with_it(ugly_volume, labels, tmp_path):
    import zarr

    write_volume(ugly_volume, tmp_path / "a.zarr")
    group = zarr.open_group(tmp_path / "a.zarr", mode="a").create_group("labels")
    group.attrs["ome"] = {"version": "0.5", "labels": ["domains"]}
    write_labels(labels, tmp_path / "domains.zarr")
    (tmp_path / "domains.zarr").rename(tmp_path / "a.zarr" / "labels" / "domains")
    path = str(tmp_path / "a.zarr")
    layers = get_reader(path)(path)
    assert [(settings["name"], kind) for _, settings, kind in layers] == [("a", "image"), ("domains", "labels")]


def test_what_is_no_volume_is_left_to_others(tmp_path):
    (tmp_path / "a.mrc").write_text("no map")
    (tmp_path / "b.zarr").mkdir()
    assert get_reader(str(tmp_path / "a.mrc")) is None
    assert get_reader(str(tmp_path / "b.zarr")) is None
    assert get_reader(str(tmp_path / "missing.mrc")) is None
    assert get_reader([str(tmp_path / "a.mrc"), str(tmp_path / "a.mrc")]) is None


def test_unset_voxel_size_is_asked_for_and_not_guessed(tmp_path):
    import mrcfile

    with mrcfile.new(tmp_path / "a.mrc") as file:
        file.set_data(np.random.default_rng(0).normal(size=(5, 7, 9)).astype(np.float32))
    path = str(tmp_path / "a.mrc")
    with pytest.raises(CryoscanError, match="voxel size"):
        get_reader(path)(path)


# ---------------------------------------------------------------- pyramids and scans


def test_a_pyramid_arrives_with_all_its_levels(tmp_path, rng):
    volume = Volume(rng.normal(size=(150, 131, 137)).astype(np.float32), 2.5, (1.0, 2.0, 3.0))
    write_volume(volume, tmp_path / "a.zarr")
    path = str(tmp_path / "a.zarr")
    ((levels, settings, kind),) = get_reader(path)(path)
    assert kind == "image"
    assert len(levels) > 1
    np.testing.assert_array_equal(np.asarray(levels[0][70]), volume.load()[70])
    assert settings["metadata"]["cryoscan"]["file"]["path"] == str(tmp_path / "a.zarr")


def test_a_scan_arrives_as_volume_scores_domains_and_hits(toy_folder):
    path = str(toy_folder / "scene.scan")
    layers = get_reader(path)(path)
    roles = [settings["metadata"]["cryoscan"].get("role", "volume") for _, settings, _ in layers]
    assert roles == ["volume", "score", "margin", "places", "hits"]
    assert [kind for *_, kind in layers] == ["image", "image", "image", "labels", "points"]
    hits = layers[-1]
    numbers, settings, _ = layers[3]
    for number, (position, name) in enumerate(zip(hits[0], hits[1]["features"]["name"], strict=True), start=1):
        colour = settings["colormap"][number][:3]
        meaning = LabelClass(name, hits[1]["features"]["type"][number - 1], "CATH")
        np.testing.assert_allclose(np.array(colour) * 255, meaning.colour)
        voxels = np.argwhere(np.asarray(numbers[0] if isinstance(numbers, list) else numbers) == number)
        middle = voxels.mean(axis=0) * settings["scale"] + settings["translate"]
        assert np.linalg.norm(middle - position) < 6


def test_a_scan_whose_volume_moved_arrives_without_it(folder):
    manifest = folder / "scene.scan" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["source"]["path"] = str(folder / "moved.mrc")
    manifest.write_text(json.dumps(content))
    path = str(folder / "scene.scan")
    assert [kind for *_, kind in get_reader(path)(path)] == ["image", "image", "labels", "points"]
    assert "not where it was" in missing_source(open_scan(path))


def test_an_unfinished_scan_shows_its_scores(folder):
    (folder / "scene.scan" / "summary.json").unlink()
    path = str(folder / "scene.scan")
    layers = get_reader(path)(path)
    assert [settings["name"] for _, settings, _ in layers] == ["scene", "scene score", "scene margin"]
    assert layers[1][1]["visible"]


def test_an_empty_folder_of_that_name_is_left_to_others(tmp_path):
    (tmp_path / "a.scan").mkdir()
    assert get_reader(str(tmp_path / "a.scan")) is None

"""Laws of scans that sharpen: as if the whole volume had been sharpened first; each place says what that changed."""

import gc
import json
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from scan_worker import EMBEDDERS, PLANTED, SETTINGS, VOXEL_SIZE, ball, database, scene

import cryoscan.enhance
from cryoscan import Volume
from cryoscan.enhance import enhanced, open_network
from cryoscan.errors import MismatchError, MissingFileError
from cryoscan.io import VolumeFile, open_volume, write_volume
from cryoscan.models.checkpoint import save_network
from cryoscan.models.cryosamu import CryoSamu, CryoSamuConfig
from cryoscan.provenance import Provenance
from cryoscan.redrawn import reviewed
from cryoscan.scan import (
    Journal,
    ScanConfig,
    ScanPlan,
    open_scan,
    paint_places,
    place_numbers,
    plan_scan,
    read_found,
    relabel,
    run_scan,
)
from cryoscan.scan.sharpening import Sharpening
from cryoscan.scan.tile import probe_speed
from cryoscan.workflows import redraw_regions

KINDS = sorted(EMBEDDERS)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A network that changes what it sees a little, far less than a molecule."""
    torch.manual_seed(2)
    network = CryoSamu(CryoSamuConfig(channels=(4, 8), residues=16, width=8, heads=2, voxel_size_A=4.3))
    torch.nn.init.normal_(network.head.weight, std=0.06)
    path = tmp_path_factory.mktemp("network") / "small.safetensors"
    save_network(network, path, provenance=Provenance("test"))
    return path


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Many tiles of the network in a small volume, as in a large one: 41 × 52 × 63 voxels of 3.1 Å are 3 × 4 × 5."""
    monkeypatch.setattr(cryoscan.enhance, "_CORE", 10)
    monkeypatch.setattr(cryoscan.enhance, "_HALO", 8)
    monkeypatch.setattr(cryoscan.enhance, "_FADE", 4)


def planned(kind, volume, weights, *, folder=None, source=None, **settings):
    embedder = EMBEDDERS[kind]()
    config = ScanConfig.build(**{**SETTINGS, **settings})
    return plan_scan(
        volume,
        datedb=database(embedder),
        embedder=embedder,
        config=config,
        source=source,
        enhancer=weights,
        folder=folder,
    )


def finished(plan, path, **how):
    *_, last = run_scan(plan, path, **how)
    return last.result


def test_there_are_many_tiles(weights):
    plan = planned("masked", scene(), weights, enhance=True)
    assert len(plan.sharpening._sharpener(plan.volume).tiles()) >= 3 * 4 * 5


@pytest.mark.parametrize("kind", KINDS)
def test_a_scan_that_sharpens_is_a_scan_of_the_sharpened_volume(kind, weights, tmp_path):
    volume = scene()
    first = enhanced(volume, open_network(weights), resolution=6.2)
    assert np.abs(first.load() - volume.load()).max() > 0.05 * volume.load().max()
    plan = planned(kind, volume, weights, enhance=True)
    whole = planned(kind, first, None)
    # solvent is the most frequent value to one and the median to the other
    whole = replace(whole, background=plan.background, contour=plan.contour)
    box = slice(-3, 17), slice(9, 30), slice(20, 51)
    here, there = plan.read_working(box), whole.read_working(box)
    assert here.origin == there.origin
    np.testing.assert_allclose(here.load(), there.load(), atol=1e-5)
    one, other = finished(plan, tmp_path / "one.scan"), finished(whole, tmp_path / "other.scan")
    np.testing.assert_allclose(one.score.load(), other.score.load(), atol=1e-5)
    assert one.hits.types == other.hits.types
    assert len(one.hits) >= 4
    np.testing.assert_allclose(one.hits.positions, other.hits.positions, atol=1e-3)
    np.testing.assert_array_equal(one.labels().labels(), other.labels().labels())


def test_what_is_read_does_not_depend_on_how(weights, tmp_path):
    plan = planned("masked", scene(), weights, enhance=True)
    whole = plan.seen.load()
    np.testing.assert_allclose(whole, enhanced(scene(), open_network(weights)).load(), atol=1e-6)
    kept = plan.kept_in(tmp_path)
    for box in ((slice(30, 41), slice(0, 7), slice(11, 60)), (slice(0, 41, 3), slice(5, 6), slice(None))):
        np.testing.assert_allclose(kept.seen.data[box], whole[box], atol=1e-6)
    again = plan.kept_in(tmp_path)  # from what is on disk now, some of it cut short
    files = sorted((tmp_path / "sharpened").iterdir())
    assert files
    files[0].write_bytes(files[0].read_bytes()[:-20])
    files[1].write_bytes(b"")
    np.testing.assert_array_equal(again.seen.load(), whole)
    assert len(list((tmp_path / "sharpened").iterdir())) >= 3 * 4 * 5


def test_tiles_are_computed_once_and_gone_at_the_end(weights, tmp_path, monkeypatch):
    computed = []
    real = cryoscan.enhance.Sharpener.tile

    def counted(self, core, wide):
        computed.append(str(core))
        return real(self, core, wide)

    monkeypatch.setattr(cryoscan.enhance.Sharpener, "tile", counted)
    plan = planned("masked", scene(), weights, enhance=True)
    draft = plan.sharpening.folder
    assert len(list(draft.iterdir())) == len(computed) > 0  # for the contour
    events = run_scan(plan, tmp_path / "a.scan")
    assert len(list(islice(events, 2))) == 2
    assert (tmp_path / "a.scan" / "sharpened").is_dir()
    assert [*events]
    assert len(computed) == len(set(computed))
    assert not (tmp_path / "a.scan" / "sharpened").exists()
    del events, plan
    gc.collect()
    assert not draft.exists()


# ---------------------------------------------------------------- what it changed


@pytest.mark.parametrize("kind", ["masked", "windows"])
def test_a_network_that_adds_nothing_changes_no_label(kind, tmp_path):
    network = CryoSamu(CryoSamuConfig(channels=(4, 8), residues=16, width=8, heads=2, voxel_size_A=2.6))
    save_network(network, tmp_path / "idle.safetensors", provenance=Provenance("test"))
    result = finished(planned(kind, scene(), tmp_path / "idle.safetensors", enhance=True), tmp_path / "a.scan")
    found = read_found(result)
    assert len(found.plain) == len(found)
    assert not found.changed.any()
    named = found.named()
    assert named.sum() >= 4
    for hit, plain in zip(found.hits.types, found.plain, strict=True):
        assert plain is not None
        assert plain[1] == hit
    assert result.summary["changed_by_sharpening"] == []
    assert "changed the label of 0 of" in result.summary["verdict"]


def test_a_place_whose_name_is_changed_says_so(tmp_path, weights, monkeypatch):
    """What is searched is another scene: its bodies are solid where the volume's are shells."""
    volume = scene()
    plan = planned("masked", volume, weights, enhance=True)
    other = Volume(filled(volume), volume.voxel_size, volume.origin)
    monkeypatch.setattr(Sharpening, "of", lambda self, _: other)
    plan = replace(plan, background=plan.preflight.background)
    result = finished(plan, tmp_path / "a.scan")
    plain = finished(planned("masked", volume, None), tmp_path / "plain.scan")
    found = read_found(result)
    met = 0
    for position, as_it_is in zip(plain.hits.positions, plain.hits.types, strict=True):
        apart = np.linalg.norm(found.hits.positions - position, axis=1)
        row = int(apart.argmin())
        if apart[row] < 6:
            met += 1
            assert found.plain[row][1] == as_it_is
            assert found.changed[row] == (found.hits.types[row] != as_it_is)
    assert met >= 5
    told = result.summary["changed_by_sharpening"]
    assert len(told) == int(found.changed.sum())
    assert {one["as_it_is"] for one in told if one["as_it_is"]} <= {f"CATH {t}" for t in plain.hits.types}
    assert any(one["sharpened"] and one["as_it_is"] and one["sharpened"] != one["as_it_is"] for one in told)
    assert json.loads((tmp_path / "a.scan" / "summary.json").read_text())["changed_by_sharpening"] == told


def test_regions_drawn_by_hand_are_named_as_places_are_and_say_both_answers(tmp_path, weights, monkeypatch):
    write_volume(scene(), tmp_path / "volume.mrc")
    source, embedder = VolumeFile(tmp_path / "volume.mrc"), EMBEDDERS["masked"]()
    volume, about = source.open(), {"datedb": database(embedder), "embedder": embedder}
    other = Volume(filled(volume), volume.voxel_size, volume.origin)
    monkeypatch.setattr(Sharpening, "of", lambda self, _: other)
    plan = planned("masked", volume, weights, source=source, enhance=True)
    result = finished(replace(plan, background=plan.preflight.background), tmp_path / "a.scan")
    assert [*paint_places(result, **about)]
    found, numbers = read_found(result), np.asarray(place_numbers(result).data[:, :, :]).astype(int)
    (shell, _), (small, _) = (
        np.linalg.norm(found.hits.positions - (np.add(PLANTED[name], volume.origin))[:, None], axis=-1).argmin(axis=1)
        for name in ("shell", "small")
    )
    first = len(found) + 1
    drawn = np.select([numbers == shell + 1, numbers == small + 1], [first, first + 1], numbers)

    def follow():
        voxels = np.flatnonzero(drawn != numbers)
        *_, last = redraw_regions(result, voxels, drawn.flat[voxels], **about)
        Journal(result.path / "journal.jsonl").add("labels", last.positions, note=last.note)
        return reviewed(result)

    now = follow()
    names = {entry: database(embedder).entry(entry).type for entry in PLANTED}
    assert now.places.hits.types[-2:] == [names["solid"], names["small"]]
    assert [now.found.plain[row][1] for row in (-2, -1)] == [names["shell"], names["small"]]
    assert now.found.changed[-2:].tolist() == [True, False]
    assert all(region.sharpened for region in now.redrawing.regions)

    # without the network, they are looked at as they are, and that is known
    def gone(_):
        raise MissingFileError("expected a network", got="none", hint="Put it back.")

    monkeypatch.setattr(Sharpening, "network", gone)
    Journal(result.path / "journal.jsonl").undo()
    now = follow()
    assert now.places.hits.types[-2:] == [names["shell"], names["small"]]
    assert now.found.plain[-2:] == (None, None)
    assert not now.found.changed[-2:].any()
    assert not any(region.sharpened for region in now.redrawing.regions)


def filled(volume):
    """The scene with solid bodies in place of its shells."""
    data = volume.load().copy()
    places = np.moveaxis(np.indices(volume.shape), 0, -1) * VOXEL_SIZE
    for middle in PLANTED["shell"]:
        distance = np.linalg.norm(places - middle, axis=-1)
        data += ball(distance, "solid") - ball(distance, "shell")
    return data.astype(np.float32)


def test_naming_again_keeps_both_answers(weights, tmp_path):
    write_volume(scene(), tmp_path / "volume.mrc")
    source = VolumeFile(tmp_path / "volume.mrc")
    plan = planned("masked", source.open(), weights, source=source, enhance=True)
    before = read_found(finished(plan, tmp_path / "a.scan"))
    again = relabel(
        tmp_path / "a.scan",
        datedb=database(EMBEDDERS["masked"]()),
        embedder=EMBEDDERS["masked"](),
        settings={"min_score": 0.999, "min_distance_A": 31.0},
        output=tmp_path / "b.scan",
    )
    *_, last = again
    after = read_found(last.result)
    assert last.result.summary["hits"] < before.named().sum()
    assert len(after.plain) == len(after) == len(after.changed)
    rows = [int(np.linalg.norm(before.hits.positions - p, axis=1).argmin()) for p in after.hits.positions]
    assert [after.plain[i] for i in range(len(after))] == [before.plain[row] for row in rows]
    assert not (tmp_path / "b.scan" / "sharpened").exists()


# ---------------------------------------------------------------- before, and again


def test_a_scan_goes_on_only_with_the_same_sharpening(weights, tmp_path):
    volume, path = scene(), tmp_path / "a.scan"
    plan = planned("masked", volume, weights, enhance=True)
    whole = finished(plan, tmp_path / "whole.scan")
    assert len(list(islice(run_scan(plan, path), 3))) == 3
    with pytest.raises(MismatchError, match="enhance"):
        list(run_scan(planned("masked", volume, weights), path))
    torch.manual_seed(7)
    other = CryoSamu(CryoSamuConfig(channels=(4, 8), residues=16, width=8, heads=2, voxel_size_A=4.3))
    save_network(other, tmp_path / "other.safetensors", provenance=Provenance("test"))
    with pytest.raises(MismatchError, match="enhancer"):
        list(run_scan(planned("masked", volume, tmp_path / "other.safetensors", enhance=True), path))
    again = planned("masked", volume, weights, folder=path, enhance=True)
    assert (again.contour, again.background) == (plan.contour, plan.background)
    result = finished(again, path)
    np.testing.assert_array_equal(result.score.load(), whole.score.load())
    assert result.summary["changed_by_sharpening"] == whole.summary["changed_by_sharpening"]
    with pytest.raises(MismatchError, match="enhance"):
        list(run_scan(plan, finished(planned("masked", volume, None), tmp_path / "plain.scan").path))


def test_another_process_sharpens_the_same_and_refuses_another_network(weights, tmp_path):
    write_volume(scene(), tmp_path / "volume.mrc")
    source = VolumeFile(tmp_path / "volume.mrc")
    plan = planned("masked", open_volume(tmp_path / "volume.mrc"), weights, source=source, enhance=True)
    sent = plan.kept_in(tmp_path).__getstate__()
    assert "seen" not in sent
    there = ScanPlan.__new__(ScanPlan)
    there.__setstate__(sent)
    np.testing.assert_allclose(there.seen.load(), plan.seen.load(), atol=1e-6)
    changed = replace(plan, sharpening=replace(plan.sharpening, fingerprint="0" * 16))
    with pytest.raises(MismatchError, match="another one"):
        changed.seen.load()
    gone = replace(plan, sharpening=replace(plan.sharpening, weights=tmp_path / "gone.safetensors"))
    with pytest.raises(MissingFileError):
        gone.seen.load()


def test_the_plan_warns_and_counts_what_sharpening_costs(weights, tmp_path):
    plain, plan = (planned("masked", scene(), weights, enhance=on) for on in (False, True))
    assert plan.disk_bytes() > plain.disk_bytes()
    assert plan.tile_bytes() > plain.tile_bytes()
    assert any("small.safetensors" in line for line in plan.lines())
    speed = probe_speed(plan, seconds=0.1)
    assert speed.sharpening > 0
    assert speed.seconds(plan) > speed.sharpening
    assert "sharpening is included" in speed.describe(plan)
    assert probe_speed(plain, seconds=0.1).sharpening == 0
    assert not any("trained for" in warning for warning in plan.preflight.warnings)
    far = planned("masked", scene(), weights, enhance=True, resolution_A=9.0)
    assert any("likely to be invented" in warning for warning in far.preflight.warnings)
    assert any("likely to be invented" in line for line in far.lines())
    kept = finished(plan, tmp_path / "a.scan")
    assert open_scan(kept.path).provenance.inputs["enhancer"] == plan.sharpening.fingerprint


@pytest.mark.parametrize("hole", [np.nan, np.inf])
def test_a_hole_fails_the_tiles_that_see_it_as_without_sharpening_and_the_rest_is_scanned(weights, tmp_path, hole):
    volume = scene()
    data = volume.load().copy()
    data[40, 51, 62] = hole
    broken = Volume(data, volume.voxel_size, volume.origin)
    failed = {}
    for enhance in (False, True):
        plan = replace(planned("windows", volume, weights, enhance=enhance), volume=broken)
        if enhance:  # what was sharpened for the plan had no hole
            plan = replace(plan, sharpening=replace(plan.sharpening, folder=None, draft=None))
        result = finished(plan, tmp_path / f"{enhance}.scan")
        failed[enhance] = [one["reason"] for one in result.summary["failed"]]
        assert 0 < len(failed[enhance]) < len(plan.active)
        assert all("NaN" in reason for reason in failed[enhance])
        assert len(result.hits) >= 1
    assert failed[True] == failed[False]

"""The benchmark of sharpening on a small folder, and its parts against known answers."""

import gzip
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_proteins import helices

import cryoscan.benchmark.enhancement as module
from cryoscan import Volume
from cryoscan.benchmark import BenchmarkConfig, BenchmarkResult
from cryoscan.benchmark.enhancement import (
    ARMS,
    METRICS,
    _held_out,
    _learned,
    _simulated,
    perturbed,
    rescaled,
    run_enhance,
)
from cryoscan.benchmark.homologues import Relatives
from cryoscan.datedb import open_datedb
from cryoscan.datedb.build import embedder_for
from cryoscan.datedb.held_out import sequence_of
from cryoscan.enhance import open_network
from cryoscan.errors import MissingFileError
from cryoscan.filters import frequency_grid, lowpass_gaussian
from cryoscan.io import read_structure, write_structure, write_volume
from cryoscan.metrics import fsc
from cryoscan.models.checkpoint import save_network
from cryoscan.models.cryosamu import CryoSamu, CryoSamuConfig
from cryoscan.models.structure_embedding import embedder_named
from cryoscan.provenance import Provenance
from cryoscan.simulate import density


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A network that blurs: worse than nothing, and known to be."""
    torch.manual_seed(0)
    network = CryoSamu(CryoSamuConfig(channels=(2, 4), residues=8, width=4, heads=2))
    torch.nn.init.normal_(network.head.weight, std=0.5)
    path = tmp_path_factory.mktemp("weights") / "a.safetensors"
    save_network(network, path, provenance=Provenance("test", {"real_train": ["learned"]}))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three maps: one that was learned from, the same protein again, another protein."""
    root = tmp_path_factory.mktemp("data")
    for name in ("maps", "maps_models"):
        (root / name).mkdir()
    other = helices(30, 22, at=(20.0, 40.0, 7.5), chains="B")
    other.residue_names[:] = np.resize(np.repeat(["GLY", "TRP", "HIS", "CYS"], 5), len(other))
    records = {}
    for name, model in (("learned", helices(22, 24)), ("again", helices(22, 24)), ("new", other)):
        volume = density(model, voxel_size=1.9, resolution=4.6)
        noise = np.random.default_rng(1).normal(0, 0.02, volume.shape).astype(np.float32)
        path = root / "maps" / f"{name}.mrc"
        write_volume(Volume(volume.load() + noise, 1.9, volume.origin), path)
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes(), 1))
        path.unlink()
        write_structure(model, root / "maps_models" / f"{name}.pdb")
        records[name] = {"res": 4.6, "vox": [1.9, 1.9, 1.9]}
    (root / "maps" / "maps.json").write_text(json.dumps(records))
    return root


@pytest.fixture(scope="module")
def result(folder, weights):
    config = BenchmarkConfig.build(
        kind="enhance", weights=weights, resolutions_A=(4.5, 5.0, 8.0), speed_voxels=(20,), n_queries=1
    )
    datedb = open_datedb()
    *_, last = run_enhance(config, folder, data=folder, datedb=datedb, embedder=embedder_for(datedb))
    assert isinstance(last, BenchmarkResult)
    return last


def test_only_maps_of_unknown_proteins_are_asked_and_only_what_they_resolve(result):
    asked = {(row["map"], row["resolution"]) for row in result.numbers["enhance.details"]}
    assert asked == {("new", 5.0), ("new", 8.0)}
    assert any("again" in note and "learned" in note for note in result.notes)


def test_every_number_is_there_for_every_arm_before_and_after(result):
    for part in ("experimental", "blurred"):
        for prefix in ("", "5A.", "8A."):
            for metric in METRICS:
                for end in ("before", "after"):
                    assert np.isfinite(result.numbers[f"enhance.{part}.{prefix}{metric}.{end}"])
                for arm in ("classical", "perturbed", "deposited"):
                    assert f"enhance.{part}.{prefix}{arm}.{metric}.after" in result.numbers
    assert result.numbers["enhance.speed.20.wall_s"] > 0
    assert json.loads(json.dumps(result.to_json()))["enhance.experimental.n"] == 2


def test_means_are_of_the_rows_and_what_got_worse_is_named(result):
    rows = [row for row in result.numbers["enhance.details"] if row["part"] == "experimental"]
    mean = np.mean([row["none"]["cc_mask"] for row in rows])
    assert result.numbers["enhance.experimental.cc_mask.after"] == pytest.approx(mean)
    worse = [row for row in rows if row["none"]["cc_mask"] < row["before"]["cc_mask"]]
    assert result.numbers["enhance.experimental.worse"] == len(worse) / len(rows)
    assert len(result.numbers["enhance.experimental.worse_maps"]) == len(worse)


def test_a_relative_is_an_arm_of_its_own(folder, weights, monkeypatch):
    model = read_structure(folder / "maps_models" / "new.pdb")
    other = model.residues % 2 == 0
    relative = replace(model, residue_names=np.where(other, "MET", model.residue_names)).moved(offset=(300, 0, 0))
    learned = read_structure(folder / "maps_models" / "learned.pdb")
    kin = replace(learned, residue_names=np.where(learned.residues % 2 == 0, "MET", learned.residue_names))
    monkeypatch.setattr(module, "relatives_of_store", lambda _: Relatives([("rel", relative), ("kin", kin)]))
    monkeypatch.setattr(module, "open_chains", lambda _: None)
    (folder / "structures").mkdir()
    config = BenchmarkConfig.build(kind="enhance", weights=weights, resolutions_A=(8.0,), speed_voxels=(), n_queries=1)
    datedb = open_datedb()
    *_, last = run_enhance(config, folder, data=folder, datedb=datedb, embedder=embedder_for(datedb))
    (folder / "structures").rmdir()
    row = next(row for row in last.numbers["enhance.details"] if row["part"] == "experimental")
    assert row["homologues"][0].startswith("rel for B: 50% identical, TM-score 1.00, 0.0 Å")
    found = last.numbers["enhance.experimental.homologue.cc_mask.after"]
    assert found == pytest.approx(row["homologue"]["cc_mask"])
    assert last.numbers["enhance.experimental.homologue.cc_mask.gain_over_none_n"] == 1
    assert any("rel for B" in note for note in last.notes)
    assert "homologue" in last.tables[0].columns
    known = [row for row in last.numbers["enhance.details"] if row["part"] == "known"]
    assert {row["map"] for row in known} == {"learned", "again"}
    assert all(row["homologues"][0].startswith("kin for A") for row in known)
    assert last.numbers["enhance.known.homologue.cc_mask.gain_over_none_n"] == 2
    assert last.numbers["enhance.experimental.n"] == 1


def test_a_simulated_domain_is_told_of_its_relative_if_it_has_one(weights):
    domain = helices(22, 24)
    relative = replace(domain, residue_names=np.where(domain.residues % 2 == 0, "MET", domain.residue_names))
    config = BenchmarkConfig.build(kind="enhance", resolutions_A=(8.0,))
    network = open_network(weights)
    teller = embedder_named(network.config.structure)
    (row,) = _simulated(domain, config, network, teller, Relatives([("rel", relative)]), seed=0)
    assert {"before", *ARMS} <= row.keys()
    assert row["homologues"][0].startswith("rel for A")
    (row,) = _simulated(domain, config, network, teller, None, seed=0)
    assert "homologue" not in row


def test_it_is_said_where_relatives_cannot_be_recognised(folder, weights, tmp_path):
    for name in ("maps", "maps_models"):
        (tmp_path / name).mkdir()
        for path in (folder / name).glob("new*"):
            (tmp_path / name / path.name).write_bytes(path.read_bytes())
    found, _, notes = _held_out(tmp_path, None, {"learned": set()})
    assert [source.name for source in found] == ["new"]
    assert any("learned are not at hand" in note for note in notes)
    found, _, notes = _held_out(tmp_path, folder, {"learned": set()})
    assert not any("not at hand" in note for note in notes)


def test_weights_remember_the_proteins_of_maps_that_are_not_at_hand(folder, tmp_path):
    for name in ("maps", "maps_models"):
        (tmp_path / name).mkdir()
        for path in (*(folder / name).glob("new*"), *(folder / name).glob("again*")):
            (tmp_path / name / path.name).write_bytes(path.read_bytes())
    protein = read_structure(folder / "maps_models" / "again.pdb").protein()
    network = CryoSamu(CryoSamuConfig(channels=(2, 4), residues=8, width=4, heads=2))
    kept = Provenance("test", {"real_train": ["gone"]}, {"gone": sequence_of(protein)})
    save_network(network, tmp_path / "kept.safetensors", provenance=kept)
    found, kin, notes = _held_out(tmp_path, None, _learned(tmp_path / "kept.safetensors"))
    assert ([source.name for source in found], [source.name for source in kin]) == (["new"], ["again"])
    assert not any("not at hand" in note for note in notes)


def test_the_network_that_was_given_is_the_one_that_is_measured(result, folder, tmp_path):
    torch.manual_seed(0)
    network = CryoSamu(CryoSamuConfig(channels=(2, 4), residues=8, width=4, heads=2))
    path = tmp_path / "idle.safetensors"
    save_network(network, path, provenance=Provenance("test", {"real_train": ["learned"]}))
    config = BenchmarkConfig.build(kind="enhance", weights=path, resolutions_A=(5.0,), speed_voxels=(), n_queries=1)
    datedb = open_datedb()
    *_, idle = run_enhance(config, folder, data=None, datedb=datedb, embedder=embedder_for(datedb))
    before, after = (idle.numbers[f"enhance.experimental.cc_mask.{end}"] for end in ("before", "after"))
    assert after == pytest.approx(before, abs=0.02)  # an untrained one gives its input back
    assert abs(result.numbers["enhance.experimental.5A.cc_mask.after"] - before) > 0.02


def test_a_folder_without_anything_is_refused(weights, tmp_path):
    config = BenchmarkConfig.build(kind="enhance", weights=tmp_path / "none.safetensors")
    datedb = open_datedb()
    with pytest.raises(MissingFileError):
        list(run_enhance(config, tmp_path, data=None, datedb=datedb, embedder=embedder_for(datedb)))


def test_the_classical_map_has_the_spectrum_of_proteins_and_its_own_phases():
    rng = np.random.default_rng(0)
    data = lowpass_gaussian(rng.normal(size=(40, 44, 36)).astype(np.float32), voxel_size=1.5, sigma=2.0)
    found = rescaled(Volume(data, 1.5), 6.0)
    shells = np.rint(frequency_grid((40, 44, 36), 1.5) * 66)
    spectrum = np.abs(np.fft.rfftn(found))
    low, high = (np.sqrt((spectrum[shells == number] ** 2).mean()) for number in (7, 10))
    expected = np.interp([7 / 66, 10 / 66], [0.10, 0.12, 0.14, 0.16], [1.0, 0.812, 0.692, 0.672])
    expected *= np.exp(-((np.array([7, 10]) / 66 * 6.0) ** 2))
    assert high / low == pytest.approx(expected[1] / expected[0], rel=1e-3)
    assert spectrum[shells > 12].max() < 1e-3 * spectrum.max()
    frequencies, correlation = fsc(found, data, voxel_size=1.5)
    np.testing.assert_allclose(correlation[frequencies < 1 / 6.1], 1, atol=1e-3)


def test_a_perturbed_model_is_bent_by_3_angstrom_and_has_lost_its_side_chains():
    structure = helices(24, 22)
    poor = perturbed(structure, seed=1)
    assert set(poor.residue_names.tolist()) <= {"ALA", "GLY"}
    shift = poor.positions - structure.positions
    assert np.sqrt((shift**2).sum(axis=1).mean()) == pytest.approx(3.0)
    ca = poor.positions[poor.names == "CA"]
    step = np.linalg.norm(np.diff(ca[:24], axis=0), axis=1)
    assert 3.0 < step.mean() < 4.6
    assert not np.allclose(poor.positions, perturbed(structure, seed=2).positions)

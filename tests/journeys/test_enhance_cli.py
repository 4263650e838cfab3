"""`cryoscan enhance` from a file to a file, and every mistake in its words."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_esm_if1 import checkpoint
from small_proteins import helices

from cryoscan import Volume
from cryoscan.cli import main
from cryoscan.io import open_volume, write_structure, write_volume
from cryoscan.models.checkpoint import save_network
from cryoscan.models.cryosamu import CryoSamu, CryoSamuConfig
from cryoscan.provenance import Provenance
from cryoscan.simulate import density

DATA = Path(__file__).resolve().parents[1] / "data"


@pytest.fixture
def cryoscan(monkeypatch, capsys):
    """Run a command in this process: exit code, stdout, stderr."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["cryoscan", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        return end.value.code, out, err

    return run


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """A map, its model, half-maps, masks, and a network."""
    folder = tmp_path_factory.mktemp("enhance")
    torch.manual_seed(0)
    network = CryoSamu(CryoSamuConfig(channels=(4, 8), residues=16, width=8, heads=2))
    torch.nn.init.normal_(network.head.weight, std=0.3)
    save_network(network, folder / "network.safetensors", provenance=Provenance("test"))
    protein = helices(26, 24, 22, at=(-12.0, 30.5, 7.25))
    write_structure(protein, folder / "model.pdb")
    write_structure(protein.moved(offset=(700, 0, 0)), folder / "away.pdb")
    plain = density(protein, voxel_size=1.37, resolution=6.0)
    rng = np.random.default_rng(0)

    def write(name, data, origin=plain.origin):
        write_volume(Volume(np.asarray(data, np.float32), 1.37, origin), folder / name)

    build = ["datedb", "build", folder / "small.datedb", DATA / "ugly.pdb", DATA / "ugly.cif", folder / "model.pdb"]
    table = (DATA / "domains.tsv").read_text(encoding="utf-8").rstrip("\n")
    own = "model\tthree helices\t\t-\tmodel.pdb\tits own density leads clearly"
    (folder / "domains.tsv").write_text(f"{table}\n{own}\n", encoding="utf-8")
    build += ["--labels", folder / "domains.tsv"]
    subprocess.run([sys.executable, "-m", "cryoscan", *map(str, build)], check=True, capture_output=True)
    write("map.mrc", plain.load())
    write("half1.mrc", plain.load() + rng.normal(0, 0.02, plain.shape))
    write("half2.mrc", plain.load() + rng.normal(0, 0.02, plain.shape))
    write("mask.mrc", plain.load() > 0.05)
    write("small.mrc", plain.load()[1:])
    write("moved.mrc", plain.load(), origin=(0.0, 0.0, 0.0))
    write("flat.mrc", np.full(plain.shape, 2.5))
    write_volume(Volume(plain.load(), 1.5, plain.origin), folder / "stretched.mrc")
    bases = np.array(["A", "C", "G", "U"])
    write_structure(replace(protein, residue_names=bases[protein.residues % 4]), folder / "rna.pdb")
    (folder / "huge.pdb").write_text("".join(traces(2, 5001)))
    return folder


def traces(chains, length):
    """Lines of a PDB file of C-alpha atoms alone."""
    for number in range(chains * length):
        chain, residue = "AB"[number // length], number % length + 1
        place = "".join(f"{value:8.3f}" for value in (number % 90, number // 90 % 90, number // 8100))
        yield f"ATOM  {number + 1:5d}  CA  ALA {chain}{residue:4d}    {place}  1.00  0.00           C\n"


def test_a_map_in_a_map_out_on_the_same_grid(cryoscan, bench, tmp_path):
    words = ["enhance", bench / "map.mrc", "--weights", bench / "network.safetensors", "-o", tmp_path / "out.mrc"]
    code, out, err = cryoscan(*words, "--difference", tmp_path / "changed.mrc", "--resolution", 6)
    assert code == 0, err
    assert "from the density alone" in out
    before, after, changed = (
        open_volume(path) for path in (bench / "map.mrc", tmp_path / "out.mrc", tmp_path / "changed.mrc")
    )
    assert (after.shape, after.voxel_size, after.origin) == (before.shape, before.voxel_size, before.origin)
    np.testing.assert_allclose(after.load() - before.load(), changed.load(), atol=1e-5)
    assert np.abs(changed.load()).max() > 0.01 * before.load().max()


def test_everything_at_once_as_json_and_zarr(cryoscan, bench, tmp_path):
    code, out, err = cryoscan(
        *["enhance", bench / "map.mrc", "--weights", bench / "network.safetensors", "-o", tmp_path / "out.zarr"],
        *["--structure", bench / "model.pdb", "--mask", bench / "mask.mrc", "--json"],
        *["--half-map", bench / "half1.mrc", "--half-map", bench / "half2.mrc"],
    )
    assert code == 0, err
    about = json.loads(out)
    assert about["structure"] == "model"
    assert about["resolution_from"] == "half-maps"
    assert about["origin_zyx_A"] == pytest.approx(open_volume(bench / "map.mrc").origin)
    assert open_volume(tmp_path / "out.zarr").shape == open_volume(bench / "map.mrc").shape


def test_holes_of_a_map_are_told_and_stay(cryoscan, bench, tmp_path):
    data = open_volume(bench / "map.mrc").load().copy()
    data[5, 6, 7:9] = np.nan
    write_volume(Volume(data, 1.37, open_volume(bench / "map.mrc").origin), tmp_path / "holes.mrc")
    words = ["enhance", tmp_path / "holes.mrc", "--weights", bench / "network.safetensors", "-o", tmp_path / "out.mrc"]
    code, out, err = cryoscan(*words, "--difference", tmp_path / "changed.zarr", "--json")
    assert code == 0, err
    assert "2 voxels are NaN or infinite, between" in json.loads(out)["warnings"][0]
    for written in ("out.mrc", "changed.zarr"):
        found = open_volume(tmp_path / written).load()
        np.testing.assert_array_equal(np.isnan(found), np.isnan(data))


def test_a_relative_need_not_lie_in_the_map(cryoscan, bench, tmp_path):
    words = ["enhance", bench / "map.mrc", "--weights", bench / "network.safetensors", "-o", tmp_path / "out.mrc"]
    code, _, err = cryoscan(*words, "--structure", bench / "away.pdb")
    assert code == 1
    assert "--unplaced" in err
    assert "go without --structure" in err
    assert not (tmp_path / "out.mrc").exists()
    code, _, err = cryoscan(*words, "--structure", bench / "away.pdb", "--unplaced")
    assert code == 0
    assert "must not be used to judge" in err


def test_a_scan_sharpens_and_says_what_that_changed(cryoscan, bench, tmp_path):
    (tmp_path / "scan.yaml").write_text("min_score: 0.8\nmin_confidence: 0\n")
    words = ["scan", bench / "map.mrc", "--datedb", bench / "small.datedb", "--resolution", 9, "--enhance"]
    words += ["--config", tmp_path / "scan.yaml"]
    words += ["--enhancer", bench / "network.safetensors", "-o", tmp_path / "a.scan"]
    code, out, err = cryoscan(*words, "--dry-run", "--json")
    assert code == 0, err
    about = json.loads(out)
    assert "likely to be invented" in " ".join(about["warnings"])
    assert any("network.safetensors" in line for line in about["plan"])
    assert not (tmp_path / "a.scan").exists()
    code, out, err = cryoscan(*words, "--json")
    assert code == 0, err
    summary = json.loads(out)
    assert "sharpening changed the label of" in summary["verdict"]
    assert err.count("sharpening changed") - 1 <= len(summary["changed_by_sharpening"])
    code, _, err = cryoscan(*[word for word in words if word != "--enhance"])
    assert code == 1
    assert "--enhance with --enhancer" in err


def test_a_network_that_was_trained_with_esm_if1_takes_its_weights(cryoscan, bench, tmp_path):
    torch.manual_seed(0)
    network = CryoSamu(
        CryoSamuConfig(channels=(4, 8), residues=16, width=8, heads=2, structure="esm_if1", structure_dim=512)
    )
    torch.nn.init.normal_(network.head.weight, std=0.3)
    torch.nn.init.normal_(network.attention.answer.weight, std=0.5)
    save_network(network, tmp_path / "network.safetensors", provenance=Provenance("test"))
    torch.save(checkpoint(), tmp_path / "esm_if1.pt")
    words = ["enhance", bench / "map.mrc", "--weights", tmp_path / "network.safetensors"]
    code, _, err = cryoscan(*words, "-o", tmp_path / "plain.mrc")
    assert code == 0, err
    words += ["--structure", bench / "model.pdb", "-o", tmp_path / "told.mrc"]
    code, _, err = cryoscan(*words, "--embedder-weights", tmp_path / "esm_if1.pt")
    assert code == 0, err
    plain, told = (open_volume(tmp_path / name).load() for name in ("plain.mrc", "told.mrc"))
    assert np.abs(told - plain).max() > 1e-3 * plain.max()
    code, _, err = cryoscan(*words, "--embedder", "proteinmpnn", "--overwrite")
    assert code == 1
    assert "'esm_if1'; got 'proteinmpnn'" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--structure", "model.pdb", "--embedder", "esm_if1"], "'geometry'; got 'esm_if1'"),
        (["--structure", "model.pdb", "--embedder-weights", "map.mrc"], "'geometry'; got weights of another one"),
        (["--embedder", "geometry"], "--structure"),
        (["--half-map", "half1.mrc"], "both half-maps"),
        (["--half-map", "half1.mrc", "--half-map", "small.mrc"], "expected a half-map of the map's shape"),
        (["--half-map", "half1.mrc", "--half-map", "stretched.mrc"], "expected a half-map with the map's voxel size"),
        (["--half-map", "moved.mrc", "--half-map", "half1.mrc"], "expected a half-map at the map's origin"),
        (["--mask", "moved.mrc"], "expected a mask at the map's origin"),
        (["--mask", "small.mrc"], "expected a mask of the map's shape"),
        (["--structure", "rna.pdb"], "got nucleic acid alone. Give the protein of the complex, or go without"),
        (["--structure", "huge.pdb"], "at most 10,000 residues; got 10,002 in 'huge'. Give one copy of each chain"),
        (["--structure", "absent.pdb"], "absent.pdb"),
    ],
)
def test_mistakes_end_in_a_sentence(cryoscan, bench, tmp_path, words, said):
    words = [bench / word if "." in word else word for word in words]
    code, _, err = cryoscan(
        *["enhance", bench / "map.mrc", "--weights", bench / "network.safetensors", "-o", tmp_path / "out.mrc"], *words
    )
    assert code == 1
    assert said in err
    assert "Traceback" not in err
    assert not (tmp_path / "out.mrc").exists()


def test_a_constant_map_and_an_output_that_exists_are_refused(cryoscan, bench, tmp_path):
    words = ["--weights", bench / "network.safetensors", "-o", tmp_path / "out.mrc"]
    code, _, err = cryoscan("enhance", bench / "flat.mrc", *words)
    assert code == 1
    assert "2.5 in every voxel" in err
    assert cryoscan("enhance", bench / "map.mrc", *words)[0] == 0
    code, _, err = cryoscan("enhance", bench / "map.mrc", *words)
    assert code == 1
    assert "--overwrite" in err
    assert cryoscan("enhance", bench / "map.mrc", *words, "--overwrite")[0] == 0


# ---------------------------------------------------------------- asked again


@pytest.fixture
def with_network(bench, monkeypatch):
    """Whoever asks for the network that ships gets this one."""

    def use(network):
        monkeypatch.setattr("cryoscan.enhance.open_network", lambda: network.eval())

    return use


def idle():
    """An untrained network gives the map back."""
    return CryoSamu(CryoSamuConfig(channels=(2, 4), residues=8, width=4, heads=2))


def turned_over():
    """A network that turns bright into dark: nothing looks as before."""
    network = idle()
    torch.nn.init.zeros_(network.head.weight)
    network.stem.weight.data.zero_()
    network.stem.weight.data[:, :, 1, 1, 1] = torch.tensor([[1.0], [-1.0]])
    for block in (*network.encode, *network.decode, network.last):
        block.second.gain.data.zero_()
    for up in network.up:
        up.gain.data.zero_()
    network.head.weight.data[0, :, 1, 1, 1] = torch.tensor([-3.0, 3.0])
    return network


def test_regions_are_asked_again_and_it_is_said_whether_the_answer_stays(cryoscan, bench, with_network):
    words = ["identify", bench / "map.mrc", "--mask", bench / "mask.mrc", "--resolution", "6", "--enhance"]
    words += ["--datedb", bench / "small.datedb"]
    with_network(idle())
    code, out, err = cryoscan(*words, "--json")
    assert code == 0, err
    (region,) = json.loads(out)["regions"]
    assert region["enhanced"]["changed"] is False
    assert region["enhanced"]["candidate"]["cosine"] == pytest.approx(region["candidates"][0]["cosine"], abs=0.02)
    with_network(turned_over())
    code, out, err = cryoscan(*words)
    assert code == 0, err
    assert "After sharpening the map the answer of region 1 changes to nothing: neither answer is safe." in out


def test_without_the_option_nothing_is_asked_twice(cryoscan, bench, monkeypatch):
    monkeypatch.setattr("cryoscan.enhance.open_network", lambda: pytest.fail("not asked for"))
    words = ["--mask", bench / "mask.mrc", "--resolution", "6", "--datedb", bench / "small.datedb", "--json"]
    code, out, _ = cryoscan("identify", bench / "map.mrc", *words)
    assert code == 0
    assert "enhanced" not in json.loads(out)["regions"][0]

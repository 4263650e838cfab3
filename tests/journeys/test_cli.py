"""The command line: what it prints, what it writes, and that every mistake ends in a sentence with exit code 1."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from raw_mrc import raw_mrc

from cryoscan import LabelMap, Volume
from cryoscan.cli import main
from cryoscan.datedb import open_datedb
from cryoscan.datedb.build import embed_structures, embedder_for
from cryoscan.io import open_labels, open_volume, read_structure, write_labels, write_volume
from cryoscan.testing import ToyEmbedder, toy_datedb

DATA = Path(__file__).resolve().parents[1] / "data"
CANDIDATE_KEYS = ["rank", "type", "scheme", "name", "entry", "cosine"]
REGION_KEYS = {
    "id",
    "center_xyz",
    "volume_A3",
    "candidates",
    "mass_kDa",
    "verdict",
    "margin",
    "resolution_A",
    "hierarchy",
}


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
    """A folder with a small database, a map, and masks and labels that fit it."""
    folder = tmp_path_factory.mktemp("bench")
    words = ["datedb", "build", folder / "small.datedb", DATA / "ugly.pdb", DATA / "ugly.cif"]
    words += ["--labels", DATA / "domains.tsv"]
    python("-m", "cryoscan", *words)
    python(
        *["-m", "cryoscan", "simulate", "density", DATA / "ugly.pdb", "-o", folder / "map.mrc"],
        *["--resolution", "6", "--voxel-size", "1.5"],
    )
    volume = open_volume(folder / "map.mrc")
    mask = (volume.load() > 0.05).astype(np.float32)
    write_volume(Volume(mask, volume.voxel_size, volume.origin), folder / "mask.mrc")
    write_volume(Volume(mask, 1.7, volume.origin), folder / "mask_of_another_size.mrc")
    labels = np.zeros(volume.shape, np.uint8)
    labels[mask > 0] = 3
    labels[: labels.shape[0] // 2][labels[: labels.shape[0] // 2] > 0] = 7
    write_labels(LabelMap(Volume(labels, volume.voxel_size, volume.origin), {}), folder / "labels.zarr")
    (folder / "unset.mrc").write_bytes(raw_mrc(volume.load(), voxel_size=0))
    (folder / "text.mrc").write_text("This is no map." * 100)
    (folder / "wrong_key.yaml").write_text("strid_voxels: 4\n")
    toy = ToyEmbedder()
    toy_datedb(toy, {"a": Volume(np.random.default_rng(0).normal(size=(9, 9, 9)), 4.0)}).write(folder / "toy.datedb")
    (folder / "taken.mrc").write_text("keep me")
    (folder / "folder.pdb").mkdir()
    (folder / "table.tsv").write_text("id\ttype\nnobody\t1.10.8.10\nnobody2\t1.10.8.10\n")
    return folder


def python(*words, **settings):
    done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, check=False, **settings)
    assert done.returncode == 0, done.stderr
    return done.stdout


MISTAKES = {
    "missing file": ("identify nope.mrc", "Check the spelling"),
    "missing structure": ("simulate density nope.pdb -o o.mrc --resolution 6 --voxel-size 2", "Check the spelling"),
    "missing database": ("identify map.mrc --datedb nope.datedb", "Give the path of a .datedb folder"),
    "missing scan": ("export nope.scan --hits h.star", "Check the spelling"),
    "folder in place of a map": ("identify folder.pdb --datedb small.datedb", "folder"),
    "folder in place of a structure": ("datedb add small.datedb folder.pdb", "Give the path of a file"),
    "folder in place of a scan": ("export folder.pdb --hits h.star", "Give a .scan folder"),
    "wrong format": ("info text.mrc", "text.mrc"),
    "wrong ending": ("info table.tsv", "Convert the volume"),
    "database that is none": ("datedb info folder.pdb", "rebuild"),
    "mask of another voxel size": (
        "identify map.mrc --mask mask_of_another_size.mrc --datedb small.datedb",
        "Give the right voxel size",
    ),
    "labels of another voxel size": (
        "identify map.mrc --labels labels.zarr --voxel-size 1.8 --resolution 6 --box 0:3,0:3,0:3",
        "Give one of them",
    ),
    "density as mask": ("identify map.mrc --mask map.mrc --datedb small.datedb", "threshold it first"),
    "database of another embedder": ("identify map.mrc --datedb toy.datedb", "matching embedder"),
    "scan with another embedder": ("scan map.mrc -o o.scan --datedb toy.datedb", "matching embedder"),
    "existing output": ("segment map.mrc -o taken.mrc", "--overwrite"),
    "existing density": (
        f"simulate density {DATA}/ugly.pdb -o taken.mrc --resolution 6 --voxel-size 2",
        "--overwrite",
    ),
    "existing report": ("identify map.mrc --report taken.mrc --datedb small.datedb", "--overwrite"),
    "existing database": (f"datedb build small.datedb {DATA}/ugly.pdb", "--overwrite"),
    "output in no folder": ("segment map.mrc -o nowhere/o.mrc", "Create the folder"),
    "unset voxel size": ("identify unset.mrc --datedb small.datedb", "voxel_size"),
    "unknown setting": ("scan map.mrc -o o.scan --config wrong_key.yaml", "Did you mean 'stride_voxels'?"),
    "unknown setting of a database": (
        f"datedb build o.datedb {DATA}/ugly.pdb --config wrong_key.yaml",
        "Known keys",
    ),
    "two regions": ("identify map.mrc --mask mask.mrc --box 0:3,0:3,0:3", "Give one of them"),
    "half a sphere": ("identify map.mrc --center 1,2,3", "Give both"),
    "label of nothing": ("identify map.mrc --label 3", "Say which file"),
    "label that is not there": (
        "identify map.mrc --labels labels.zarr --label 4 --datedb small.datedb",
        "Labels present: 0, 3, 7",
    ),
    "unreadable box": ("identify map.mrc --box 1-2,3-4,5-6 --datedb small.datedb", "z0:z1,y0:y1,x0:x1"),
    "box outside": ("identify map.mrc --box 0:3,0:3,900:903 --datedb small.datedb", "each start below its stop"),
    "unreadable place": ("identify map.mrc --center 1,2 --radius 5 --datedb small.datedb", "x,y,z"),
    "place outside": ("identify map.mrc --center 9e4,0,0 --radius 5 --datedb small.datedb", "coordinate system"),
    "unknown scheme": ("identify map.mrc --scheme ECOD --datedb small.datedb", "It has CATH, SCOPe, user"),
    "crowded, but no region": ("identify map.mrc --segment --crowded --datedb small.datedb", "Give a region"),
    "unknown chain": (
        f"simulate density {DATA}/ugly.pdb -o o.mrc --resolution 6 --voxel-size 2 --chain Q",
        "It has H, L",
    ),
    "unknown entry": ("datedb remove small.datedb nobody", "datedb info --entries"),
    "nothing to build from": ("datedb build o.datedb", "datedb add"),
    "nothing to export": ("export folder.pdb", "Give a .scan folder"),
    "unknown level": ("segment map.mrc -o o.mrc --level 13", "more --steps"),
    "unknown command": ("scann", "Did you mean"),
    "missing option": ("scan map.mrc", "cryoscan scan --help"),
    "unknown contrast": ("identify map.mrc --contrast grey", "cryoscan identify --help"),
    "missing structures to dock": ("identify map.mrc --dock nope --datedb small.datedb", "Give a folder of"),
    "unusable table": (f"datedb build o.datedb {DATA}/ugly.pdb {DATA}/ugly.cif --labels table.tsv", "column 'file'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_ends_with_a_hint_and_exit_code_1(mistake, bench, cryoscan, monkeypatch):
    words, hint = MISTAKES[mistake]
    monkeypatch.chdir(bench)
    before = sorted(path.name for path in bench.iterdir())
    code, out, err = cryoscan(*words.split())
    assert code == 1, err
    assert hint in err
    assert "Traceback" not in err
    assert not out
    assert sorted(path.name for path in bench.iterdir()) == before  # nothing half-written
    assert (bench / "taken.mrc").read_text() == "keep me"


def test_an_output_that_cannot_be_written_is_a_mistake(bench, cryoscan, tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    if os.access(folder, os.W_OK):  # the superuser may write anywhere but there
        folder = Path("/proc")
    code, _, err = cryoscan("segment", bench / "map.mrc", "-o", folder / "labels.mrc")
    assert code == 1
    assert "where you may write" in err


@pytest.mark.parametrize(
    ("what", "code", "said"),
    [
        ("OSError(28, 'No space left on device')", 1, "the disk is not full"),
        ("MemoryError()", 1, "bin it"),
        ("KeyboardInterrupt()", 130, ""),
        ("ZeroDivisionError('x')", 2, "This is a bug in cryoscan"),
    ],
)
def test_every_end_has_its_exit_code(what, code, said):
    script = (
        "import sys; from cryoscan import cli\n"
        "@cli.app.command('burst')\n"
        f"def burst(): raise {what}\n"
        "sys.argv = ['cryoscan', 'burst']; cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert said in done.stderr
    assert ("Traceback" in done.stderr) is (code == 2)


def test_help_of_every_command_loads_nothing_heavy(commands):
    script = (
        "import sys; from typer.testing import CliRunner; from cryoscan.cli import app\n"
        f"for name in {sorted(commands)!r}:\n"
        "    assert CliRunner().invoke(app, [*name.split(), '--help']).exit_code == 0\n"
        "print(*{'torch', 'zarr', 'faiss', 'skimage', 'scipy', 'gemmi', 'matplotlib'} & sys.modules.keys())"
    )
    assert python("-c", script).split() == []


def test_info_says_where_a_map_is(bench, cryoscan):
    code, out, _ = cryoscan("info", bench / "map.mrc", "--json")
    about = json.loads(out)
    volume = open_volume(bench / "map.mrc")
    assert code == 0
    assert about["shape_zyx"] == list(volume.shape)
    assert about["origin_xyz_A"] == pytest.approx(volume.origin[::-1])
    assert about["voxel_size_A"] == pytest.approx(1.5)


def test_info_of_an_unset_voxel_size_asks_for_it(bench, cryoscan):
    code, out, err = cryoscan("info", bench / "unset.mrc")
    assert code == 0
    assert "not set" in out
    assert "--voxel-size" in err
    code, out, _ = cryoscan("info", bench / "unset.mrc", "--voxel-size", "1.5", "--json")
    assert json.loads(out)["finest_resolution_A"] == 3.0


def test_info_knows_a_database(bench, cryoscan):
    _, out, _ = cryoscan("info", bench / "small.datedb", "--json")
    assert json.loads(out)["kind"] == "datedb"


def test_a_simulated_map_is_named_after_its_structure(bench, cryoscan):
    words = ["identify", bench / "map.mrc", "--resolution", "6", "--datedb", bench / "small.datedb", "--json"]
    code, out, err = cryoscan(*words)
    assert code == 0, err
    (region,) = json.loads(out)["regions"]
    assert region.keys() >= REGION_KEYS
    assert list(region["candidates"][0])[:6] == CANDIDATE_KEYS
    assert region["candidates"][0]["type"] == "my protein"
    assert region["verdict"] == "named"
    centre = read_structure(DATA / "ugly.pdb").positions.mean(axis=0)
    assert region["center_xyz"] == pytest.approx(centre[::-1], abs=1.5)
    assert region["resolution_A"] == 6.0
    assert [node["level"] for node in region["hierarchy"]["CATH"]] == [1, 2, 3, 4]
    assert "one region" in err


def test_the_command_and_the_library_give_the_same_answer(bench, cryoscan):
    from cryoscan.workflows import RegionMask, identify

    db, volume = open_datedb(bench / "small.datedb"), open_volume(bench / "map.mrc")
    mask = open_volume(bench / "mask.mrc").load() > 0
    answer = identify(volume, [RegionMask(1, mask)], datedb=db, embedder=embedder_for(db), resolution=6)
    words = ["--mask", bench / "mask.mrc", "--resolution", "6", "--datedb", bench / "small.datedb", "--json"]
    _, out, _ = cryoscan("identify", bench / "map.mrc", *words)
    assert json.loads(out)["regions"][0]["candidates"] == [c.to_json() for c in answer.regions[0].candidates]


def test_every_label_is_a_region_and_keeps_its_number(bench, cryoscan, tmp_path):
    words = ["identify", bench / "map.mrc", "--labels", bench / "labels.zarr", "--datedb", bench / "small.datedb"]
    _, out, _ = cryoscan(*words, "--json", "-o", tmp_path / "named.mrc")
    assert [region["id"] for region in json.loads(out)["regions"]] == [3, 7]
    assert sorted(open_labels(tmp_path / "named.mrc").classes) == [3, 7]
    _, out, _ = cryoscan(*words, "--label", "7", "--json", "--scheme", "scope")
    (region,) = json.loads(out)["regions"]
    assert region["id"] == 7
    assert {candidate["scheme"] for candidate in region["candidates"]} == {"SCOPe"}


def test_a_sphere_is_given_in_x_y_z_and_a_box_in_voxels(bench, cryoscan):
    common = ["--datedb", bench / "small.datedb", "--resolution", "6", "--json"]
    volume = open_volume(bench / "map.mrc")
    place = read_structure(DATA / "ugly.pdb").positions[0]
    text = ",".join(f"{value:.2f}" for value in place[::-1])
    _, out, err = cryoscan("identify", bench / "map.mrc", f"--center={text}", "--radius", "6", *common)
    assert json.loads(out)["regions"][0]["center_xyz"] == pytest.approx(place[::-1], abs=6), err
    z, y, x = (int(i) for i in np.rint(volume.to_index(place)))
    box = ",".join(f"{max(0, i - 4)}:{i + 4}" for i in (z, y, x))
    _, out, err = cryoscan("identify", bench / "map.mrc", f"--box={box}", *common)
    assert json.loads(out)["regions"][0]["center_xyz"] == pytest.approx(place[::-1], abs=7), err


def test_tables_fit_a_hundred_columns(bench, cryoscan):
    _, out, _ = cryoscan("identify", bench / "map.mrc", "--datedb", bench / "small.datedb", "--resolution", "6")
    assert max(map(len, out.splitlines())) <= 100
    for word in ("rank", "representative", "cosine", "what the candidates agree on", "named: my protein"):
        assert word in out


def test_docking_writes_models_and_notes_what_is_missing(bench, cryoscan, tmp_path):
    structures = tmp_path / "structures"
    structures.mkdir()
    (structures / "whole.pdb").write_bytes((DATA / "ugly.pdb").read_bytes())
    words = ["--datedb", bench / "small.datedb", "--resolution", "6", "--top", "2", "--mask", bench / "mask.mrc"]
    words += ["--dock", structures, "--models", tmp_path / "docked", "--report", tmp_path / "report.html"]
    code, out, err = cryoscan("identify", bench / "map.mrc", *words, "--json")
    assert code == 0, err
    first, second = json.loads(out)["regions"][0]["candidates"]
    assert first["docking"]["cc_mask"] > 0.8
    model = read_structure(first["docking"]["model"])
    assert model.positions.mean(axis=0) == pytest.approx(
        read_structure(DATA / "ugly.pdb").positions.mean(axis=0), abs=3
    )
    assert second["docking"] is None
    assert second["entry"] in err
    assert "my protein" in (tmp_path / "report.html").read_text()


def test_a_database_of_files_keeps_what_its_settings_say_of_confidence(cryoscan, tmp_path):
    fit = {6.0: (-1.0, 2.0, 3.0), 10.0: (-2.0, 1.0, 0.5, 4.0)}
    written = {size: list(numbers) for size, numbers in fit.items()}
    (tmp_path / "own.yaml").write_text(json.dumps({"calibration": written, "shape_calibration": written}))
    words = ["datedb", "build", tmp_path / "own.datedb", DATA / "ugly.pdb", "--config", tmp_path / "own.yaml"]
    assert cryoscan(*words)[0] == 0
    db = open_datedb(tmp_path / "own.datedb")
    assert db.calibration == db.shape_calibration == fit


def test_segmentation_numbers_regions_without_gaps(bench, cryoscan, tmp_path):
    words = ["segment", bench / "map.mrc", "-o", tmp_path / "regions.zarr", "--level", "0", "--json"]
    _, out, _ = cryoscan(*words)
    present = np.unique(open_labels(tmp_path / "regions.zarr").labels())
    assert present.tolist() == list(range(json.loads(out)["regions"] + 1))


def test_a_database_grows_and_shrinks(bench, cryoscan, tmp_path):
    path = tmp_path / "mine.datedb"
    code, out, err = cryoscan("datedb", "add", path, DATA / "ugly.pdb", "--empty", "--json")
    assert code == 0, err
    assert "starts empty" in err
    assert json.loads(out)["entries"] == 2
    code, _, err = cryoscan("datedb", "add", path, DATA / "ugly.pdb")
    assert code == 1
    assert "Remove them first" in err
    _, out, _ = cryoscan("datedb", "remove", path, "ugly_L", "--json")
    assert json.loads(out) == {"path": str(path), "removed": ["ugly_L"], "entries": 1}
    _, out, _ = cryoscan("datedb", "info", path, "--entries", "--json")
    assert [entry["id"] for entry in json.loads(out)["entry_list"]] == ["ugly_H"]
    code, out, _ = cryoscan("datedb", "verify", path, "--json")
    assert (code, json.loads(out)["problems"]) == (0, [])


def test_a_new_database_starts_as_a_copy_of_the_shipped_one(cryoscan, tmp_path):
    code, out, err = cryoscan("datedb", "add", tmp_path / "mine.datedb", DATA / "ugly.pdb", "--json")
    assert code == 0, err
    assert "copy of the shipped database" in err
    assert json.loads(out)["entries"] == len(open_datedb()) + 2
    assert open_datedb().path != tmp_path / "mine.datedb"
    mine = open_datedb(tmp_path / "mine.datedb")
    assert (
        json.loads((mine.path / "manifest.json").read_text())["dtype"]
        == json.loads((open_datedb().path / "manifest.json").read_text())["dtype"]
    )


def test_a_structure_and_its_density_find_their_entry(bench, cryoscan):
    words = ["datedb", "search", bench / "small.datedb", DATA / "ugly.pdb", bench / "map.mrc", "--top", "2", "--json"]
    _, out, _ = cryoscan(*words)
    queries = json.loads(out)["queries"]
    assert [query["candidates"][0]["entry"] for query in queries] == ["whole", "whole"]
    assert queries[0]["candidates"][0]["cosine"] > 0.9  # rotations are tried every 20 degrees
    db = open_datedb(bench / "small.datedb")
    entry = db.entry("whole")
    vectors = embed_structures([read_structure(DATA / "ugly.pdb")], embedder_for(db, contour=0.0), resolutions=[6.0])
    assert vectors[6.0][0] @ db.banks[6.0][entry.row] == pytest.approx(1, abs=1e-3)  # simulated as the entry was


def test_a_damaged_database_fails_verification(bench, cryoscan, tmp_path):
    db = open_datedb(bench / "small.datedb")
    db.banks[6.0][1] = db.banks[6.0][0] * 1.0
    doubled = type(db)((*db.entries, db.entries[0]), db.banks, db.embedder, db.names)
    doubled.write(tmp_path / "doubled.datedb")
    code, out, _ = cryoscan("datedb", "verify", tmp_path / "doubled.datedb")
    assert code == 1
    assert "more than once" in out


@pytest.fixture(scope="module")
def crowd(bench):
    """A volume with the map's density planted in noise, large enough for several tiles."""
    rng = np.random.default_rng(4)
    data = rng.normal(scale=0.02, size=(44, 52, 70)).astype(np.float32)
    part = open_volume(bench / "map.mrc").load()
    data[8 : 8 + part.shape[0], 12 : 12 + part.shape[1], 30 : 30 + part.shape[2]] += part
    write_volume(Volume(data, 2.0, (10.0, -20.0, 300.0)), bench / "crowd.mrc")
    (bench / "scan.yaml").write_text("tile_points: 5\nmin_score: 0.5\n")
    return bench / "crowd.mrc"


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(crowd, bench, cryoscan, tmp_path):
    words = ["scan", crowd, "-o", tmp_path / "a.scan", "--datedb", bench / "small.datedb", "--dry-run", "--json"]
    code, out, err = cryoscan(*words)
    assert code == 0, err
    assert json.loads(out)["disk_bytes"] > 0
    assert "windows" in err
    assert list(tmp_path.iterdir()) == []


def test_a_stopped_scan_continues_and_is_exported(crowd, bench, cryoscan, tmp_path):
    scan = tmp_path / "crowd.scan"
    words = [
        crowd,
        "-o",
        scan,
        "--datedb",
        bench / "small.datedb",
        "--resolution",
        "6",
        "--config",
        bench / "scan.yaml",
    ]
    words = ["scan", *words, "--stride", "2"]
    with subprocess.Popen(
        [sys.executable, "-m", "cryoscan", *map(str, words)], stderr=subprocess.PIPE, text=True
    ) as run:
        until = time.monotonic() + 120
        while not any(scan.glob("tiles/[0-9]*")) and run.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        run.send_signal(signal.SIGINT)
        _, err = run.communicate(timeout=120)
    assert run.returncode == 130, err
    assert "give the same command again" in err
    code, _, err = cryoscan("export", scan, "--hits", tmp_path / "hits.csv")
    assert code == 1
    assert "Run the same `cryoscan scan` command again" in err
    kept = len(list(scan.glob("tiles/[0-9]*")))
    assert kept > 0
    code, out, err = cryoscan(*words, "--json")
    assert code == 0, err
    assert json.loads(out)["hits"] == len(json.loads((scan / "hits.json").read_text())["types"])
    outputs = ["--labels", tmp_path / "labels.mrc", "--hits", tmp_path / "hits.star"]
    for _ in range(2):
        code, _, err = cryoscan("export", scan, *outputs, "--json")
        outputs.append("--overwrite")
    assert code == 0, err
    assert open_labels(tmp_path / "labels.mrc").volume.origin == pytest.approx((10.0, -20.0, 300.0))
    assert "rlnCenteredCoordinateXAngst" in (tmp_path / "hits.star").read_text()


def test_results_are_not_overwritten_unless_told(crowd, bench, cryoscan, tmp_path):
    words = [
        "scan",
        crowd,
        "-o",
        tmp_path / "c.scan",
        "--datedb",
        bench / "small.datedb",
        "--config",
        bench / "scan.yaml",
    ]
    assert cryoscan(*words)[0] == 0
    code, _, err = cryoscan(*words)
    assert code == 1
    assert "--overwrite" in err
    assert cryoscan(*words, "--overwrite")[0] == 0
    (tmp_path / "hits.csv").write_text("mine")
    code, _, err = cryoscan("export", tmp_path / "c.scan", "--hits", tmp_path / "hits.csv")
    assert code == 1
    assert "--overwrite" in err
    assert (tmp_path / "hits.csv").read_text() == "mine"

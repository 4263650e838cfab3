"""Training in three steps: structures recovered and told apart, densities aligned to them, databases of structures."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_library import small_library
from small_proteins import helices
from typer.testing import CliRunner

from cryoscan.benchmark.config import BenchmarkConfig
from cryoscan.benchmark.cryodomain import ARMS, run_cryodomain
from cryoscan.benchmark.cryodomain_pictures import neighbour_map
from cryoscan.cli import app
from cryoscan.datedb import open_datedb
from cryoscan.datedb.build import embedder_for
from cryoscan.datedb.config import DateDBConfig
from cryoscan.datedb.own import add_structures, build_from_files
from cryoscan.errors import ConfigError, FormatError, MismatchError, MissingFileError
from cryoscan.io import write_structure
from cryoscan.metrics import auroc, roc_curve
from cryoscan.models import ShapeTower, ShapeTowerConfig, ShapeTowerEmbedder, load_tower
from cryoscan.models.atom_tower import AtomTower, AtomTowerConfig, embed_structures
from cryoscan.models.checkpoint import load_network, save_network
from cryoscan.models.residues import residues_of
from cryoscan.provenance import Provenance, fingerprint_file
from cryoscan.train import CONDITIONS, Anchor, simulate_views
from cryoscan.train.atom_run import FOLDS, build_atom_pupil, recovery, train_atoms
from cryoscan.train.config import AtomTrainConfig, TrainConfig, read_train_config
from cryoscan.train.evaluate import modal_gap
from cryoscan.train.folder import LIBRARY
from cryoscan.train.folds import FoldLibrary
from cryoscan.train.kinship import Kinship
from cryoscan.train.run import TARGETS, train
from cryoscan.train.state import CHECKPOINT, CURVES, read_curves

SHAPES = {"CATH:1.10.8.10": (14, 14), "CATH:1.20.5.30": (34,), "CATH:1.10.20.40": (10, 11, 12)}
DENSE = {"encoder": "dense", "dim": 8, "width": 16, "pair_width": 8, "layers": 1, "heads": 4,
         "structure_iterations": 2, "fusion_blocks": 1}  # fmt: skip
GRAPH = {"dim": 8, "width": 16, "layers": 1, "neighbours": 8}


@pytest.fixture(scope="module")
def folds():
    """Three shapes in one type each, of five slightly different domains; two more without a type."""
    anchors, residues = [], []
    for number in range(17):
        types = (list(SHAPES)[number % 3],) if number < 15 else ()
        split = "validation" if 9 <= number < 12 else "test" if 12 <= number < 15 else "train"
        lengths = SHAPES[types[0]] if types else (12, 20)
        structure = helices(*lengths, at=(3.0 * number, -7.5, 400.0))
        jitter = np.random.default_rng(number).normal(0, 0.15, structure.positions.shape)
        residues.append(residues_of(replace(structure, positions=structure.positions + jitter)))
        anchors.append(Anchor(f"d{number}", types, f"k{number}", f"{number}abc_A", ((0, sum(lengths)),), split))
    return FoldLibrary(tuple(anchors), tuple(residues))


def atom_config(objective, **others):
    tower = DENSE if objective == "recover" else GRAPH
    values = {"kind": "atom", "objective": objective, "tower": {**tower, "dropout": 0.2}, "batch": 6, "side_by_side": 4,
              "per_type": 2, "disturbed": {"crop": 26}, "steps": 4, "validate_every": 4}  # fmt: skip
    return AtomTrainConfig.build(**{**values, **others})


def run_atoms(config, folder, folds, **others):
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / FOLDS).exists():
        folds.save(folder / FOLDS)
    return list(train_atoms(config, folder, **others))


# ---------------------------------------------------------------- structures


def test_folds_come_back_from_their_file(folds, tmp_path):
    folds.save(tmp_path / FOLDS)
    again = FoldLibrary.load(tmp_path / FOLDS)
    assert again.anchors == folds.anchors
    for mine, other in zip(folds.residues, again.residues, strict=True):
        torch.testing.assert_close(other.frames.origins, mine.frames.origins, atol=0.0051, rtol=0)
        torch.testing.assert_close(other.frames.rotations, mine.frames.rotations, atol=2e-5, rtol=0)
        torch.testing.assert_close(other.torsions, mine.torsions, atol=2e-5, rtol=0)
        for name in ("has_torsion", "two_fold", "amino_acids", "chains", "places", "mask"):
            assert torch.equal(getattr(other, name), getattr(mine, name)), name
    again.save(tmp_path / "twice.npz")
    assert FoldLibrary.load(tmp_path / "twice.npz").fingerprint == again.fingerprint


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 half a file", None])
def test_damaged_folds_are_refused(folds, tmp_path, content):
    folds.save(tmp_path / FOLDS)
    whole = (tmp_path / FOLDS).read_bytes()
    (tmp_path / FOLDS).write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(FormatError, match="expected cryoscan fold library"):
        FoldLibrary.load(tmp_path / FOLDS)


def test_folds_of_a_data_folder_are_those_of_its_chains(data_folder):
    first = Anchor("1p3qQ00", (), "k", "1p3q_Q", ((0, 30), (33, 45)), "train")
    library = FoldLibrary.of_folder(data_folder, [first])
    assert len(library.residues[0]) == 42
    short = replace(first, ranges=((0, 12),))
    with pytest.raises(FormatError, match=r"at least 20 residues .* got 12 of 12"):
        FoldLibrary.of_folder(data_folder, [short])


@pytest.mark.parametrize("objective", ["recover", "contrast", "contrast_paper", "classify"])
def test_a_run_in_two_halves_is_the_whole_run_to_the_last_bit(objective, folds, tmp_path):
    config = atom_config(objective)
    run_atoms(config, tmp_path / "whole", folds)
    torch.manual_seed(5)  # dropout must not depend on it
    *_, stopped = run_atoms(config, tmp_path / "halves", folds, until=2)
    assert (stopped.done, stopped.stopped) == (2, True)
    torch.manual_seed(77)
    run_atoms(config, tmp_path / "halves", folds)
    with np.load(tmp_path / "whole" / CHECKPOINT) as whole, np.load(tmp_path / "halves" / CHECKPOINT) as halves:
        for name in whole.files:
            np.testing.assert_array_equal(whole[name], halves[name], err_msg=name)
    one, other = (load_network(tmp_path / run / "atom_tower.safetensors", AtomTower) for run in ("whole", "halves"))
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_recovery_gets_better_on_domains_that_were_not_learned_from(folds, tmp_path):
    disturbed = {"crop": 26, "hidden": 0.05, "without_torsions": 0.0}
    config = atom_config(
        "recover",
        steps=100,
        validate_every=100,
        learning_rate=1.5e-2,
        tower={**DENSE, "dropout": 0.0},
        disturbed=disturbed,
    )
    before = recovery(build_atom_pupil(config, []).tower, folds, config.corruption())
    *_, finished = run_atoms(config, tmp_path, folds)
    curves = read_curves(tmp_path / CURVES)
    for part, share in (("fape", 0.9), ("torsion", 0.3), ("distogram", 0.9)):
        assert curves[f"validation/{part}"][1][-1] < share * before[part], part
    assert "Recovery of disturbed validation domains: torsion" in finished.card.read_text(encoding="utf-8")


def test_types_are_learned_and_found_in_domains_that_were_not(folds, tmp_path):
    config = atom_config("classify", steps=140, validate_every=140, learning_rate=4e-3, tower=GRAPH)
    *_, finished = run_atoms(config, tmp_path, folds)
    curves = read_curves(tmp_path / CURVES)
    assert curves["type_first"][1][-1] > 0.9 > curves["type_first"][1][0]
    (whole,) = [one for one in finished.outcomes if one.condition == "whole"]
    assert (whole.question, whole.queries, whole.choices, whole.found[0]) == ("type", 3, 3, 3)
    assert "An atom tower" in finished.card.read_text(encoding="utf-8")


def test_nodes_are_numbered_within_their_level(folds):
    (nodes,) = Kinship(folds.anchors).numbered()
    assert nodes[:3].tolist() == [[0, 0, 0, 0], [0, 1, 1, 1], [0, 0, 2, 2]]
    assert (nodes[15:] == -1).all()
    for level in range(4):
        assert sorted(set(nodes[:15, level].tolist())) == list(range(int(nodes[:, level].max()) + 1))


def test_a_run_of_structures_begins_with_the_weights_of_another(folds, tmp_path):
    run_atoms(atom_config("contrast"), tmp_path / "first", folds)
    weights = tmp_path / "first" / "atom_tower.safetensors"
    run_atoms(atom_config("classify", start_from=weights), tmp_path / "second", folds, until=1)
    assert set(json.loads((tmp_path / "second" / "provenance.json").read_text())["inputs"]) == {"library", "start_from"}
    with pytest.raises(MismatchError, match="Give the same sizes"):
        run_atoms(atom_config("recover", start_from=weights), tmp_path / "third", folds)
    with pytest.raises(MismatchError, match="setting 'batch'"):
        run_atoms(atom_config("contrast", batch=4), tmp_path / "first", folds)
    with pytest.raises(MissingFileError, match="Give --data FOLDER"):
        list(train_atoms(atom_config("recover"), tmp_path / "empty"))


def test_the_command_trains_an_atom_tower(folds, tmp_path):
    folds.save(tmp_path / FOLDS)
    atom_config("classify").write(tmp_path / "config.yaml")
    assert isinstance(read_train_config(tmp_path / "config.yaml"), AtomTrainConfig)
    answer = CliRunner().invoke(app, ["train", str(tmp_path / "config.yaml"), "-o", str(tmp_path), "--json"])
    about = json.loads(answer.stdout)
    assert about["finished"]
    assert {row["condition"] for row in about["results"]} == {"whole", "disturbed"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objective": "contrast", "per_type": 1}, "contrast needs per_type"),
        ({"tower": {"widht": 3}}, "widht"),
        ({"disturbed": {"shfit": 1.0}}, "shfit"),
        ({"views": {}}, "views"),
    ],
)
def test_impossible_runs_of_structures_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        AtomTrainConfig.build(**{"kind": "atom", "objective": "recover", **change})


# ---------------------------------------------------------------- alignment

ALIGNED = {
    "kind": "shape", "objective": "align", "targets": "atoms", "hidden": 0.0, "reconstruction": 0.0,
    "batch": 12, "steps_seen": 3,
    "tower": {"dim": 8, "channels": 24, "hidden": 32, "blocks": 2, "dropout": 0.0, "voxel_size_A": 2.8},
    "views": {"scenes": {"isolated": 1.0}, "resolution_A": [6.0, 6.0], "incomplete": 0.0, "noise_free": 1.0,
              "distorted": 0.0, "shift_A": 2.0},
    "steps": 150, "validate_every": 150, "learning_rate": 6e-3,
}  # fmt: skip


@pytest.fixture(scope="module")
def library():
    return small_library()


@pytest.fixture
def atom_weights(tmp_path):
    path = tmp_path / "atoms.safetensors"
    torch.manual_seed(1)
    save_network(AtomTower(AtomTowerConfig(**GRAPH)), path, provenance=Provenance("test"))
    return path


def aligned_run(library, folder, atom_weights, targets, **others):
    folder.mkdir(exist_ok=True)
    library.save(folder / LIBRARY)
    np.save(folder / TARGETS, targets)
    config = TrainConfig.build(**{**ALIGNED, "atom_weights": atom_weights, **others})
    return list(train(config, folder))


@pytest.mark.parametrize("objective", ["align", "align_paper"])
def test_an_aligned_tower_finds_its_own_domains_among_structures(objective, library, atom_weights, tmp_path):
    targets = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))[0][: len(library.anchors)].astype(np.float32)
    targets[[1, 5]], targets[6] = targets[0], targets[3]  # those of one type
    *_, finished = aligned_run(library, tmp_path / "run", atom_weights, 3 * targets, objective=objective)
    tower = load_tower(finished.weights)
    windows = simulate_views(
        library, torch.arange(5), config=CONDITIONS["clean_6A"], rng=torch.Generator().manual_seed(9), voxel_size=2.8
    ).density_BZYX.numpy()
    cosines = ShapeTowerEmbedder(tower).embed(windows) @ targets[:5].T
    right = [library.anchors[i].types[:1] == library.anchors[j].types[:1] for i, j in enumerate(cosines.argmax(axis=1))]
    assert sum(right) >= 4
    seen = tower(torch.from_numpy(windows))[0].detach().numpy()
    same = np.broadcast_to(3 * targets[:5].mean(axis=0), seen.shape)
    how = "gap/unit" if objective == "align" else "gap/raw"
    assert modal_gap(seen, 3 * targets[:5])[how] < 0.5 * modal_gap(same, 3 * targets[:5])[how]
    curves = read_curves(tmp_path / "run" / CURVES)
    assert curves["validation/gap/raw"][0].tolist() == curves["validation/gap/unit"][0].tolist() == [0, 150]
    inputs = json.loads((tmp_path / "run" / "provenance.json").read_text())["inputs"]
    assert inputs["atom_weights"] == fingerprint_file(atom_weights)
    card = finished.card.read_text(encoding="utf-8")
    assert "Mean squared difference of the vectors of density and structure" in card


def test_the_gap_is_the_formula(rng):
    vectors, targets = rng.normal(size=(5, 7)), rng.normal(size=(5, 7))
    gap = modal_gap(vectors, targets)
    assert gap["gap/raw"] == pytest.approx(np.mean((vectors - targets) ** 2))
    cosines = (vectors * targets).sum(1) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(targets, axis=1)
    assert gap["gap/unit"] == pytest.approx(np.mean(2 - 2 * cosines), rel=1e-5)


def test_vectors_of_another_length_are_refused(library, atom_weights, tmp_path):
    tower = {**ALIGNED["tower"], "dim": 6}
    library.save(tmp_path / LIBRARY)
    config = TrainConfig.build(**{**ALIGNED, "atom_weights": atom_weights, "tower": tower})
    with pytest.raises(MismatchError, match=r"expected vectors of structures of 6 numbers.*got 8 in .*Set `dim`"):
        next(train(config, tmp_path))
    with pytest.raises(MismatchError, match="expected a vector for each of 7 domains"):
        aligned_run(library, tmp_path / "other", atom_weights, np.zeros((3, 8), np.float32))


def test_other_weights_than_those_of_structures_are_refused(library, atom_weights, tmp_path):
    library.save(tmp_path / LIBRARY)
    whole = atom_weights.read_bytes()
    atom_weights.write_bytes(whole[: len(whole) // 2])
    config = TrainConfig.build(**{**ALIGNED, "atom_weights": atom_weights})
    with pytest.raises(FormatError, match=r"expected a whole \.safetensors file"):
        next(train(config, tmp_path))
    (tmp_path / "provenance.json").unlink()
    save_network(ShapeTower(ShapeTowerConfig(dim=8)), atom_weights, provenance=Provenance("test"))
    with pytest.raises(FormatError, match="expected an atom tower of cryoscan"):
        next(train(config, tmp_path))


def test_a_run_needs_data_for_the_vectors_of_structures(library, atom_weights, tmp_path):
    library.save(tmp_path / LIBRARY)
    with pytest.raises(MissingFileError, match=r"vectors of the domains' structures in .*Give --data"):
        next(train(TrainConfig.build(**{**ALIGNED, "atom_weights": atom_weights}), tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"atom_weights": None}, "need atom_weights"),
        ({"targets": "prototypes"}, "need atom_weights"),
        ({"objective": "classify", "per_type": 2}, "has no targets"),
    ],
)
def test_impossible_alignments_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig.build(**{**ALIGNED, "atom_weights": "atoms.safetensors", **change})


# ---------------------------------------------------------------- databases of structures


@pytest.fixture
def files(tmp_path):
    found = []
    for name, lengths in (("two", (14, 14)), ("one", (34,)), ("three", (10, 11, 12)), ("more", (16, 22))):
        found.append(tmp_path / f"{name}.pdb")
        write_structure(helices(*lengths, id_=name), found[-1])
    return found


def towers(atom_weights, *, aligned_to=None, dim=8):
    path = atom_weights.with_name("tower.safetensors")
    inputs = {"atom_weights": aligned_to or fingerprint_file(atom_weights)}
    torch.manual_seed(2)
    sizes = ShapeTowerConfig(dim=dim, channels=8, hidden=8, blocks=1)
    save_network(ShapeTower(sizes), path, provenance=Provenance("test", inputs=inputs))
    return DateDBConfig(resolutions_A=(6.0,), atom_weights=atom_weights, tower_weights=path, dtype="float32")


def test_a_database_of_structures_brings_its_towers_along(files, atom_weights, tmp_path):
    config, path = towers(atom_weights), tmp_path / "atoms.datedb"
    list(build_from_files(files[:3], path, config=config))
    atom_weights.unlink()
    config.tower_weights.unlink()
    db = open_datedb(path)
    tower = load_network(path / "atom_tower.safetensors", AtomTower)
    expected = embed_structures(tower, [helices(14, 14), helices(34), helices(10, 11, 12)])
    of_entries = db.banks[6.0][[entry.row for entry in db.entries]]
    np.testing.assert_allclose(of_entries, expected, atol=2e-2)  # files round places
    asks = embedder_for(db, contour=0.0)
    assert isinstance(asks, ShapeTowerEmbedder)
    assert db.verify() == []
    *_, last = add_structures(db, files[3:], tmp_path / "more.datedb")
    more = open_datedb(tmp_path / "more.datedb")
    assert len(more) == len(last.result) == 4
    (row,) = {entry.row for entry in more.entries} - {entry.row for entry in db.entries}
    np.testing.assert_allclose(more.banks[6.0][row], embed_structures(tower, [helices(16, 22)])[0], atol=2e-2)
    assert embedder_for(more, contour=0.0).fingerprint == asks.fingerprint
    (tmp_path / "more.datedb" / "tower.safetensors").unlink()
    with pytest.raises(MissingFileError, match="a tower that belongs to the DateDB"):
        embedder_for(more)


def test_towers_that_do_not_belong_together_are_refused(files, atom_weights, tmp_path):
    with pytest.raises(MismatchError, match=r"aligned to the AtomTower .* aligned to somethingelse"):
        list(build_from_files(files, tmp_path / "a.datedb", config=towers(atom_weights, aligned_to="somethingelse")))
    with pytest.raises(MismatchError, match="one of 6 numbers, 8 wanted"):
        list(build_from_files(files, tmp_path / "a.datedb", config=towers(atom_weights, dim=6)))
    with pytest.raises(ConfigError, match="give both or neither"):
        DateDBConfig.build(atom_weights="a.safetensors", resolutions_A=(6.0,))
    with pytest.raises(ConfigError, match="give one under resolutions_A"):
        DateDBConfig.build(atom_weights="a.safetensors", tower_weights="b.safetensors")


def test_peptides_are_left_out_of_a_database_of_structures(files, atom_weights, tmp_path):
    write_structure(helices(12, id_="short"), tmp_path / "short.pdb")
    *_, last = build_from_files([*files, tmp_path / "short.pdb"], tmp_path / "a.datedb", config=towers(atom_weights))
    assert len(last.result) == 4
    ((_, why),) = last.skipped
    assert "at least 20 residues" in why


# ---------------------------------------------------------------- the benchmark


@pytest.fixture
def runs(library, atom_weights, tmp_path):
    """Two arms whose tower is untrained, and vectors of structures that are those of the arm ``full``."""
    folder = tmp_path / "runs"
    anchors = tuple(replace(a, split="test" if a.split == "validation" else a.split) for a in library.anchors)
    library = replace(library, anchors=anchors)
    torch.manual_seed(3)
    sizes = ShapeTowerConfig(dim=8, channels=8, hidden=8, blocks=1, voxel_size_A=2.8)
    told = ShapeTower(sizes)
    views = simulate_views(
        library, torch.arange(7), config=CONDITIONS["clean_6A"], rng=torch.Generator().manual_seed(0), voxel_size=2.8
    )
    with torch.inference_mode():
        targets = told.eval()(views.density_BZYX)[0].numpy()
    inputs = {"library": "one", "atom_weights": "two"}
    for arm, tower in (("full", told), ("without_ssl", ShapeTower(sizes))):
        run = folder / arm
        run.mkdir(parents=True)
        library.save(run / LIBRARY)
        np.save(run / TARGETS, targets)
        made = Provenance("test", inputs=inputs)
        (run / "provenance.json").write_text(json.dumps(made.to_json()))
        save_network(tower, run / "tower.safetensors", provenance=made)
    return folder


def test_the_benchmark_measures_every_arm_that_is_there(runs, tmp_path):
    config = BenchmarkConfig.build(
        kind="cryodomain", runs=runs, pictures=tmp_path / "pictures", resolutions_A=(6.0, 9.0), cath_types=3
    )
    *_, result = run_cryodomain(config)
    numbers = result.to_json()
    assert numbers["structures.cath.3.all.n"] == 2
    assert numbers["structures.cath.3.all.top1"] == numbers["full.cath.3.6A.top1"]  # its vectors are those of densities
    for arm in ("full", "without_ssl", "invariant"):
        assert {f"{arm}.cath.all.{bin_}.auroc" for bin_ in ("all", "6A", "9A")} <= numbers.keys()
    together = f"together.{ARMS['full']}"
    assert numbers[f"{together}.unit"] < 0.3 * numbers[f"{together}.unit_of_mean"]
    titles = [table.title for table in result.tables]
    assert [title.split(",")[0].split(":")[0] for title in titles if "CATH" in title] == [
        "Table 2", "Structures asked for by structures", "Figure 8", "Figure 9",
    ]  # fmt: skip
    assert "no run 'shape' in runs" in result.notes
    for name in ("steps", "roc", "levels", "resolution"):
        assert (tmp_path / "pictures" / f"cryodomain_{name}.png").stat().st_size > 5000


def test_runs_that_cannot_be_compared_are_refused(runs, tmp_path):
    other = Provenance("test", inputs={"library": "another", "atom_weights": "two"})
    (runs / "without_ssl" / "provenance.json").write_text(json.dumps(other.to_json()))
    with pytest.raises(MismatchError, match="runs with the same library"):
        list(run_cryodomain(BenchmarkConfig.build(kind="cryodomain", runs=runs)))
    with pytest.raises(MissingFileError, match="Train the configurations"):
        list(run_cryodomain(BenchmarkConfig.build(kind="cryodomain", runs=tmp_path)))


def test_the_area_under_the_curve_is_that_of_the_ranks(rng):
    scores, positives = np.round(rng.normal(size=300), 1), rng.random(300) < 0.2
    false_rate, true_rate = roc_curve(scores + positives, positives)
    assert np.trapezoid(true_rate, false_rate) == pytest.approx(auroc(scores + positives, positives))
    assert (false_rate[0], true_rate[0], false_rate[-1], true_rate[-1]) == (0, 0, 1, 1)


def test_neighbours_stay_neighbours_in_the_map(rng):
    middles = rng.normal(size=(4, 16))
    members = np.repeat(np.arange(4), 25)
    vectors = middles[members] + 0.2 * rng.normal(size=(100, 16))
    places = neighbour_map(vectors, perplexity=10)
    apart = np.linalg.norm(places[:, None] - places[None], axis=-1) + np.where(np.eye(100), np.inf, 0)
    assert np.isfinite(places).all()
    assert (members[apart.argmin(axis=1)] == members).mean() > 0.95

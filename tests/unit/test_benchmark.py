"""Benchmarks: chance where nothing is known, failure where relatives are struck, and words where data are missing."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import gemmi
import numpy as np
import pytest

from cryoscan import Structure, Volume
from cryoscan.benchmark import BenchmarkConfig, BenchmarkProgress, BenchmarkResult, run_benchmark
from cryoscan.benchmark.ranking import Ranking, types_kept
from cryoscan.benchmark.real_maps import group_entities, soft_weights
from cryoscan.benchmark.relatives import relatives
from cryoscan.benchmark.retrieval import choose_queries, query_window
from cryoscan.datedb import DateDB, Entry
from cryoscan.datedb.build import describe_embedder, structure_window
from cryoscan.datedb.held_out import identity, sequence_of
from cryoscan.errors import ConfigError, FormatError, GeometryError, MismatchError, MissingFileError
from cryoscan.io import read_domains, write_structure, write_volume
from cryoscan.simulate import density
from cryoscan.testing import ToyEmbedder

LETTERS = "ACDEFGHIKLMNPQRSTVWY"
RESIDUES = dict(zip(LETTERS, gemmi.expand_one_letter_sequence(LETTERS, gemmi.ResidueKind.AA), strict=True))
TYPES = ["1.10.8.10", "1.10.8.20", "2.40.50.140", "2.60.40.10", "3.30.70.20", "3.40.50.300"]
EMBEDDER = ToyEmbedder(window=20, voxel_size=3.7)


def fold(seed: int, n: int = 60) -> np.ndarray:
    """A compact random walk of `n` residues with four atoms each, `(4 n) 3` in Å; seeds have different shapes."""
    rng = np.random.default_rng(seed)
    steps = rng.normal(size=(n, 3)) * (0.6 + 0.5 * rng.random(3) ** 2 * 4)
    places = np.cumsum(steps, axis=0)
    places = places - places.mean(axis=0)
    places *= (8 + 2 * (seed % 6)) / np.sqrt((places**2).sum(axis=1).mean())
    return (places[:, None] + rng.normal(scale=0.8, size=(n, 4, 3))).reshape(-1, 3)


def letters(seed: int, n: int = 60) -> str:
    return "".join(np.random.default_rng(1000 + seed).choice(list(LETTERS), n))


def structure(seed: int, chain: str = "A", offset: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Structure:
    positions, sequence = fold(seed), letters(seed)
    n = len(sequence)
    return Structure(
        id=f"s{seed}",
        positions=positions + offset,
        elements=np.tile(np.array([7, 6, 6, 8], np.uint8), n),
        names=np.tile(["N", "CA", "C", "O"], n),
        residue_names=np.repeat([RESIDUES[letter] for letter in sequence], 4),
        residue_numbers=np.repeat(np.arange(1, n + 1), 4),
        insertion_codes=np.full(4 * n, ""),
        chains=np.full(4 * n, chain),
        residues=np.repeat(np.arange(n), 4),
        b_factors=np.zeros(4 * n, np.float32),
        nucleic=np.zeros(4 * n, bool),
    )


def write_store(folder: Path, name: str = "fullatom_chains_0.npz") -> None:
    """Six chains in the layout of the store, delta-coded steps of 0.01 Å."""
    chains = [structure(seed) for seed in range(6)]
    steps, origins = [], []
    for chain in chains:
        xyz = np.rint(chain.positions[:, ::-1] * 100).astype(int)
        origins.append(xyz[0] / 100)
        steps.append(np.diff(xyz, axis=0, prepend=xyz[:1]))
    names, atoms = np.unique(np.concatenate([chain.names for chain in chains]), return_inverse=True)
    vocabulary, residues = np.unique(
        np.concatenate([chain.residue_names[::4] for chain in chains]), return_inverse=True
    )
    folder.mkdir(parents=True)
    np.savez_compressed(
        folder / name,
        key=np.array([f"{seed}abc_A" for seed in range(6)]),
        chain=np.array(["A"] * 6),
        source=np.array(["test"] * 6),
        resolution=np.full(6, 2.0, np.float32),
        origin=np.array(origins, np.float32),
        atom_off=np.arange(7) * 240,
        res_off=np.arange(7) * 60,
        dxyz=np.concatenate(steps).astype(np.int16),
        natom=np.full(360, 4, np.uint16),
        resname=residues.astype(np.uint16),
        resname_vocab=vocabulary,
        resnum=np.tile(np.arange(1, 61), 6).astype(np.int32),
        icode=np.zeros(360, np.uint8),
        atomname=atoms.astype(np.uint16),
        atomname_vocab=names,
        element=np.tile([1, 0, 0, 2], 360).astype(np.uint16),
        element_vocab=np.array(["C", "N", "O"]),
    )


def write_table(path: Path, seeds=range(6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = "domain_id\tpdb\tsuperfamily_or_family\tsegments_pdb\tparts\tnres\tclu40\tsequence"
    lines = [
        f"q{seed}\t{seed}abc\t{TYPES[seed]}\t1-60:A\t{seed}abc_A=0:60\t60\tq-cluster-{seed}\t{letters(seed)}"
        for seed in seeds
    ]
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six domains of six types."""
    write_store(tmp_path / "unseen" / "structures")
    write_table(tmp_path / "unseen" / "labels" / "cath_domains.tsv")
    return tmp_path / "unseen"


def datedb(*, clusters: list[str] | None = None, same: bool = True) -> DateDB:
    """The six domains themselves under other names (`same`), or six others of the same types; and two more types."""
    seeds = [*range(6), 20, 21] if same else [*range(10, 16), 20, 21]
    entries = tuple(
        Entry(f"e{i}", "CATH", [*TYPES, "4.10.10.10", "4.10.20.10"][i], i, pdb=f"9xy{i}", cluster=cluster)
        for i, cluster in enumerate(clusters or [f"c{i}" for i in range(8)])
    )
    banks = {
        resolution: EMBEDDER.embed(
            np.stack([structure_window(structure(seed), EMBEDDER, resolution=resolution) for seed in seeds])
        )
        for resolution in (7.0, 11.0)
    }
    return DateDB(entries, banks, describe_embedder(EMBEDDER))


def config(**values) -> BenchmarkConfig:
    return BenchmarkConfig.build(**{"kind": "retrieval", "resolutions_A": (7.0, 11.0), "cath_types": 7, **values})


def result_of(settings: BenchmarkConfig, db: DateDB, **folders: Path | None) -> BenchmarkResult:
    events = list(run_benchmark(settings, **{"data": None, "queries": None, **folders}, datedb=db, embedder=EMBEDDER))
    assert all(isinstance(event, BenchmarkProgress) for event in events[:-1])
    assert isinstance(events[-1], BenchmarkResult)
    return events[-1]


# ---------------------------------------------------------------- metrics


def test_random_similarities_score_as_chance_says(rng):
    n_types, n = 40, 3000
    owners = np.repeat(np.arange(n_types), 3)
    types = [f"{i % 4 + 1}.{i % 10}.{i}.1" for i in range(n_types)]
    ranking = Ranking(rng.normal(size=(n, 120)), owners, types, rng.integers(0, n_types, n), "CATH")
    found = ranking.numbers(np.arange(n_types))
    for k in (1, 5, 10):
        assert found[f"top{k}"] == pytest.approx(found[f"chance_top{k}"], abs=0.03)
        assert found[f"majority_top{k}"] == pytest.approx(found[f"chance_top{k}"], abs=0.03)
    for level in range(1, 5):
        assert found[f"top5_level{level}"] == pytest.approx(found[f"chance_top5_level{level}"], abs=0.03)
    assert found["auroc"] == pytest.approx(0.5, abs=0.01)
    assert found["top1_low"] < 1 / n_types < found["top1_high"]


def test_equal_similarities_never_count_as_found():
    """An empty window gives a vector of zeros, which is equally similar to everything."""
    ranking = Ranking(np.zeros((4, 6)), np.arange(6), TYPES, np.arange(4), "CATH")
    assert ranking.numbers(np.arange(6))["top1"] == 0


def test_impossible_queries_leave_the_denominator_and_count_as_failures_beside_it():
    similarity = np.eye(4, 6)
    similarity[2, 2] = -np.inf  # the only entry of its type is struck
    truth = np.array([0, 1, 2, -1])  # the last type is unknown to the database
    found = Ranking(similarity, np.arange(6), TYPES, truth, "CATH").numbers(np.arange(6))
    assert (found["n"], found["impossible"]) == (2, 2)
    assert found["top1"] == 1
    assert found["top1_all_queries"] == 0.5


def test_mean_average_precision_counts_every_structure():
    """Two entries of the type, at places 1 and 4: (1/1 + 2/4) / 2, though the type itself is first."""
    ranking = Ranking(np.array([[0.9, 0.2, 0.8, 0.7]]), np.array([0, 0, 1, 2]), TYPES[:3], np.array([0]), "CATH")
    found = ranking.numbers(np.arange(3))
    assert found["map"] == pytest.approx(0.75)
    assert found["mrr"] == 1


def test_hierarchy_counts_the_levels_that_are_shared():
    """The best five types are all of the same topology, but not the type itself."""
    types = ["1.10.8.10", *(f"1.10.8.{i}" for i in range(20, 70, 10)), "2.1.1.1"]
    ranking = Ranking(np.array([[0.1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.0]]), np.arange(7), types, np.array([0]), "CATH")
    found = ranking.numbers(np.arange(7))
    assert [found[f"top5_level{level}"] for level in range(1, 5)] == [1, 1, 1, 0]


def test_kept_types_are_those_asked_for_and_the_most_populous_others():
    counts = np.array([1, 9, 5, 7, 2])
    assert types_kept(np.array([0, 0, -1]), counts, size=3, others=np.arange(5)).tolist() == [0, 1, 3]
    assert types_kept(np.array([0, 2, 4]), counts, size=2, others=np.arange(5)).tolist() == [0, 2, 4]


# ---------------------------------------------------------------- relatives


def test_relatives_are_found_by_cluster_pdb_and_sequence(folder):
    query = read_domains(folder / "labels" / "cath_domains.tsv")[0]
    entries = [
        Entry("cluster", "CATH", "9.9.9.9", 0, cluster=query.clu40),
        Entry("pdb", "CATH", "9.9.9.9", 0, pdb="0ABC"),
        Entry("sequence", "CATH", query.type, 0),
        Entry("other-type", "CATH", TYPES[1], 0),
        Entry("stranger", "CATH", query.type, 0),
    ]
    part = letters(0)[10:55]
    sequences = {"sequence": part, "other-type": part, "stranger": letters(77)}
    struck = relatives([query], entries, sequences=sequences, max_identity=0.3)
    assert struck.tolist() == [[True, True, True, False, False]]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (letters(1, 120), letters(1, 120), 1.0),
        (letters(1, 120)[40:80], letters(1, 120), 1.0),  # a fragment: of the shorter
        (letters(1, 30), letters(2, 300), 0.0),  # unrelated and short: spread over the long one it would agree
        ("", "ACD", 0.0),
    ],
)
def test_identity_is_that_of_the_shorter_sequence(first, second, expected):
    assert identity(first, second) == pytest.approx(expected, abs=0.02)


def test_copies_with_other_ends_are_one_protein():
    whole = letters(3, 100)
    assert group_entities([whole, letters(4, 100), whole[4:-3], whole[:50]]).tolist() == [0, 1, 0, 2]


# ---------------------------------------------------------------- retrieval


def test_domains_that_are_in_the_datedb_are_found(folder):
    found = result_of(config(max_identity=1.0, noise=0.0, shift_A=0.0), datedb(), queries=folder).numbers
    assert found["cath.7.7A.top1"] == 1
    assert found["cath.7.7A.n"] == 6
    assert found["cath.7.7A.types"] == 7
    assert found["cath.all.7A.types"] == 8


@pytest.mark.parametrize("how", ["sequence", "cluster"])
def test_relatives_are_struck_from_the_datedb(folder, tmp_path, how):
    """The same data as above, where every query finds itself: struck, nothing is left to find."""
    db, data = datedb(), None
    if how == "cluster":
        db = datedb(clusters=[f"q-cluster-{i}" for i in range(8)])
    else:
        data = tmp_path / "data"
        write_table(data / "labels" / "cath_domains.tsv")
        table = data / "labels" / "cath_domains.tsv"
        table.write_text(table.read_text().replace("\nq", "\ne"))  # ids of the entries
    found = result_of(config(noise=0.0), db, queries=folder, data=data).numbers
    assert found["cath.7.7A.n"] == 0
    assert found["cath.7.7A.impossible"] == 6
    assert found["cath.7.7A.top1_all_queries"] == 0


def test_names_of_the_numbers_are_stable(folder):
    result = result_of(config(), datedb(), queries=folder)
    names = ["n", "types", "impossible", "top1", "top5", "top10", "top1_low", "top1_high", "mrr", "map", "auroc"]
    names += ["top1_macro", "top1_all_queries", "chance_top1", "majority_top1", "top5_level1", "top5_level4"]
    for size in ("7", "all"):
        for resolution in ("7A", "11A"):
            assert not [name for name in names if f"cath.{size}.{resolution}.{name}" not in result.numbers]
    flat = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert flat["cath.7.11A.top1"] == pytest.approx(result.numbers["cath.7.11A.top1"], abs=1e-6)
    assert flat["provenance.inputs"]["datedb"] == datedb().fingerprint
    assert datedb().fingerprint in result.origin
    assert all(len(row) == len(table.columns) for table in result.tables for row in table.rows)


def test_results_do_not_depend_on_which_queries_are_asked_beside(folder):
    """Rotations, shifts and noise hang on the domain's id, not on its place in a list."""
    (folder / "labels" / "cath_queries.txt").write_text("# by hand\nq4\nq1\nnobody\n\n")
    result = result_of(config(), datedb(same=False), queries=folder)
    assert result.numbers["cath.7.7A.n"] == 2
    assert any("1 of 3 named queries are in no table: nobody" in note for note in result.notes)
    window = [
        query_window(structure(1), EMBEDDER, resolution=7.0, noise=0.3, shift=2.0, rng=np.random.default_rng([0, 5]))
        for _ in range(2)
    ]
    np.testing.assert_array_equal(*window)


def test_query_is_turned_shifted_and_noisy_within_its_bounds():
    still = structure_window(structure(2), EMBEDDER, resolution=7.0)
    rng = np.random.default_rng(4)
    clean = query_window(structure(2), EMBEDDER, resolution=7.0, noise=0.0, shift=2.0, rng=rng)
    centre = np.array(np.meshgrid(*[np.arange(20) - 9.5] * 3, indexing="ij"))
    offset = (centre * clean).sum(axis=(1, 2, 3)) / clean.sum() * EMBEDDER.voxel_size
    assert (np.abs(offset) <= 2.05).all()
    assert np.abs(offset).max() > 0.1
    assert clean.sum() == pytest.approx(still.sum(), rel=0.01)
    assert np.corrcoef(clean.ravel(), still.ravel())[0, 1] < 0.95
    noisy = query_window(structure(2), EMBEDDER, resolution=7.0, noise=0.3, shift=2.0, rng=np.random.default_rng(4))
    outside = clean < 1e-6 * clean.max()
    assert np.abs((noisy - clean)[outside]).max() < 0.02 * clean.max()  # noise stays within the mask
    assert (noisy - clean).std() > 0


def test_query_is_blurred_to_what_it_is_compared_with_as_maps_are():
    def asked(resolution, bank):
        rng = np.random.default_rng(4)
        return query_window(
            structure(2), EMBEDDER, resolution=resolution, noise=0.0, shift=2.0, rng=rng, bank=bank
        ).ravel()

    as_it_is, coarse = asked(7.0, None), asked(12.0, None)
    assert np.array_equal(asked(7.0, 6.0), as_it_is)
    assert np.corrcoef(asked(7.0, 12.0), coarse)[0, 1] > 0.998
    assert np.corrcoef(as_it_is, coarse)[0, 1] < 0.99


def test_choice_of_queries_obeys_clusters_types_and_halves(folder):
    rows = read_domains(folder / "labels" / "cath_domains.tsv")
    rows += [replace(rows[0], id="copy")]  # of the same cluster
    rows += [replace(rows[1], id="small", clu40="s", n_residues=12)]
    rows += [replace(rows[2], id="unknown", clu40="u", type="1.1.1.1")]
    db = datedb()
    both = choose_queries(rows, db, config(half="both"), largest_types=99)
    assert sorted(row.type for row in both) == TYPES
    halves = [choose_queries(rows, db, config(half=half), largest_types=99) for half in ("test", "dev")]
    assert sorted(row.id for half in halves for row in half) == sorted(row.id for row in both)
    assert not {row.clu40 for row in halves[0]} & {row.clu40 for row in halves[1]}
    assert len(choose_queries(rows, db, config(half="both"), largest_types=4)) == 4
    own = replace(db, entries=tuple(replace(entry, pdb=f"{i}abc") for i, entry in enumerate(db.entries)))
    assert not choose_queries(rows, own, config(half="both"), largest_types=99)  # no other PDB entry of any type


def test_shards_of_any_name_are_read(tmp_path):
    write_store(tmp_path / "structures", "others.npz")
    write_table(tmp_path / "labels" / "anything.tsv")
    assert result_of(config(), datedb(), queries=tmp_path).numbers["cath.7.7A.n"] == 6


# ---------------------------------------------------------------- real maps


def write_map(folder: Path, name: str, seeds: list[int], *, record: dict | None = None) -> None:
    """A map of some structures side by side and their model, at an odd voxel size away from 0 Å."""
    (folder / "maps").mkdir(parents=True, exist_ok=True)
    (folder / "maps_models").mkdir(exist_ok=True)
    parts = [structure(seed, "ABCDEF"[i], (55.0 * i + 31.0, -20.5, 12.25)) for i, seed in enumerate(seeds)]
    arrays = {
        field: np.concatenate([getattr(part, field) for part in parts])
        for field in Structure.__dataclass_fields__
        if field not in ("id", "domains", "residues")
    }
    whole = Structure(id=name, residues=np.repeat(np.arange(60 * len(parts)), 4), **arrays)
    volume = density(whole, voxel_size=2.3, resolution=5.0)
    noise = np.random.default_rng(0).normal(scale=0.02 * volume.load().max(), size=volume.shape)
    noisy = Volume((volume.load() + noise).astype(np.float32), volume.voxel_size, volume.origin)
    write_volume(noisy, folder / "maps" / f"{name}.mrc")
    write_structure(whole, folder / "maps_models" / f"{name}.pdb")
    pdb = folder / "maps_models" / f"{name}.pdb"
    (folder / "maps_models" / f"{name}.pdb.gz").write_bytes(gzip.compress(pdb.read_bytes()))
    pdb.unlink()
    path = folder / "maps" / "maps.json"
    records = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**records, name: {"res": 5.0, "vox": [2.3] * 3} if record is None else record}))


def test_chains_of_maps_are_named_and_every_number_is_there(tmp_path):
    write_map(tmp_path, "pair", [1, 4])
    write_map(tmp_path, "alone", [3], record={"note": "nothing is known"})
    db = datedb(same=False)
    result = result_of(config(kind="real_maps", residues=(50, 560)), db, queries=tmp_path)
    for prefix in ("real_maps", "real_maps.first4"):
        for mask in ("mask3A", "mask6A", "sphere", "none"):
            for name in ("top1", "top5", "top10", "top1_low", "top1_high", "chance_top1", "n", "mrr"):
                assert f"{prefix}.{mask}.{name}" in result.numbers
    assert result.numbers["real_maps.mask3A.n"] == 3
    assert result.numbers["real_maps.mask3A.top1"] == 1
    details = result.to_json()["real_maps.details"]
    assert [(row["map"], row["chain"]) for row in details] == [("pair", "A"), ("pair", "B"), ("alone", "A")]
    assert all(row["cc_mask"] > 0.9 for row in details[:2])
    assert all(bool(row["reason"]) == (row["fails_from"] != "") for row in details)
    assert any("alone: resolution unknown" in note for note in result.notes)


def test_map_shifted_against_its_model_is_told_by_its_correlation(tmp_path):
    """The origin in the header counts: a map moved by 6 Å no longer agrees, and the reason says so."""
    write_map(tmp_path, "pair", [1, 4])
    from cryoscan.io import open_volume

    path = tmp_path / "maps" / "pair.mrc"
    volume = open_volume(path).loaded()
    z, y, x = volume.origin
    write_volume(Volume(volume.load(), volume.voxel_size, (z + 11.0, y - 11.0, x)), path, overwrite=True)
    details = result_of(config(kind="real_maps"), datedb(same=False), queries=tmp_path).numbers["real_maps.details"]
    assert all(row["cc_mask"] < 0.6 for row in details)
    failed = [row for row in details if row["fails_from"]]
    assert failed
    assert all("poor agreement of map and model" in row["causes"] for row in failed)


def test_weights_fall_from_one_to_zero_over_three_angstrom():
    np.testing.assert_allclose(soft_weights(np.array([0, 3, 4.5, 6, np.inf]), 3.0), [1, 1, 0.5, 0, 0], atol=1e-6)


def test_sequence_is_that_of_the_residues():
    assert sequence_of(structure(5)) == letters(5)


# ---------------------------------------------------------------- what is missing


def test_missing_folders_and_parts_are_named(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    for settings, path, error, words in [
        (config(), None, MissingFileError, "Give --data"),
        (config(), tmp_path / "absent", MissingFileError, "no such folder"),
        (config(), tmp_path / "empty", MissingFileError, "labels"),
        (config(kind="real_maps"), folder, MissingFileError, "maps_models"),
    ]:
        with pytest.raises(error, match=words):
            result_of(settings, datedb(), queries=path)
    write_table(tmp_path / "bare" / "labels" / "cath_domains.tsv")
    with pytest.raises(MissingFileError, match="fullatom_chains"):
        result_of(config(), datedb(), queries=tmp_path / "bare")


def test_damaged_parts_are_noted_and_the_rest_is_measured(folder):
    (folder / "labels" / "broken.tsv").write_text("nonsense\nx\n")
    write_table(folder / "labels" / "cath_domains.tsv", range(5))
    with (folder / "labels" / "cath_domains.tsv").open("a") as table:
        table.write(f"lost\t8abc\t{TYPES[0]}\t1-60:A\t8abc_A=0:60\t60\tz\t\n")
    result = result_of(config(), datedb(), queries=folder)
    assert result.numbers["cath.7.7A.n"] == 5
    notes = "\n".join(result.notes)
    for words in ("broken.tsv was left out", "1 of 6 queries cannot be read", "SCOPe: no entries in the DateDB"):
        assert words in notes


def test_damaged_map_is_noted_and_the_rest_is_measured(tmp_path):
    write_map(tmp_path, "good", [1])
    write_map(tmp_path, "bad", [2])
    write_map(tmp_path, "lonely", [3])
    (tmp_path / "maps" / "bad.mrc").write_bytes(b"no map")
    (tmp_path / "maps_models" / "lonely.pdb.gz").unlink()
    result = result_of(config(kind="real_maps"), datedb(same=False), queries=tmp_path)
    assert result.numbers["real_maps.mask3A.n"] == 1
    notes = "\n".join(result.notes)
    assert "bad cannot be read" in notes
    assert "1 maps without a model are not asked for: lonely" in notes


@pytest.mark.parametrize("text", ["[1, 2]", "{", '"maps"'])
def test_damaged_list_of_maps_is_refused_in_words(tmp_path, text):
    write_map(tmp_path, "good", [1])
    (tmp_path / "maps" / "maps.json").write_text(text)
    with pytest.raises(FormatError, match=r"maps\.json"):
        result_of(config(kind="real_maps"), datedb(), queries=tmp_path)


def test_another_embedder_is_refused(folder):
    other = ToyEmbedder(window=10, voxel_size=5.0)
    with pytest.raises(MismatchError):
        list(run_benchmark(config(), data=None, queries=folder, datedb=datedb(), embedder=other))


def test_resolution_finer_than_the_windows_is_refused_in_words(folder):
    with pytest.raises(GeometryError, match="resolution"):
        result_of(config(resolutions_A=(3.0,)), datedb(), queries=folder)


@pytest.mark.parametrize("name", ["cath", "real_maps", "smoke"])
def test_shipped_configurations_are_read(name):
    root = Path(__file__).resolve().parents[2]
    assert BenchmarkConfig.read(root / "configs" / "benchmark" / f"{name}.yaml")


def test_unknown_kind_is_refused():
    with pytest.raises(ConfigError, match="kind"):
        BenchmarkConfig.build(kind="guessing")

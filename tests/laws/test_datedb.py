"""Law L10: the database answers what brute force answers, survives its caches, and refuses strangers."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cryoscan.datedb import DateDB, Entry, levels, open_datedb, roll_up
from cryoscan.datedb.files import write_indices
from cryoscan.embedding import unit_rows
from cryoscan.errors import (
    ConfigError,
    ExistingOutputError,
    FormatError,
    GeometryError,
    MismatchError,
    MissingFileError,
)
from cryoscan.models import InvariantEmbedder


@pytest.fixture
def db(rng: np.random.Generator) -> DateDB:
    """Ugly on purpose: shared rows, unequal types, two schemes and a user's own."""
    kinds = [
        ("CATH", "1.10.8.10"),
        ("CATH", "1.10.8.20"),
        ("CATH", "2.60.40.10"),
        ("SCOPe", "a.1.1.2"),
        ("user", "mine"),
    ]
    owner = rng.integers(0, 5, 57)
    owner[:5] = range(5)
    entries = tuple(
        Entry(
            f"e{i}",
            *kinds[k],
            row=int(i if i % 7 else i // 2),
            pdb=f"{i:04d}",
            chain="A",
            ranges="1-9:A",
            length=60 + i,
        )
        for i, k in enumerate(owner)
    )
    banks = {r: unit_rows(rng.normal(size=(57, 33)) + 0.4) for r in (6.0, 10.0)}
    about = {"kind": "test", "fingerprint": "f00", "dim": 33, "window": 8, "voxel_size_A": 4.0}
    names = {"CATH:1.10": "Orthogonal Bundle", "SCOPe:a.1.1": "Globin-like", "CATH:2.60.40.10": "Immunoglobulins"}
    return DateDB(entries, banks, about, names)


def brute_force(db: DateDB, vector: np.ndarray, bank: float) -> list[tuple[str, str, str, float]]:
    best: dict[tuple[str, str], tuple[float, str]] = {}
    for entry in db.entries:
        cosine = float(vector @ db.banks[bank][entry.row])
        if cosine > best.get((entry.scheme, entry.type), (-2.0, ""))[0]:
            best[entry.scheme, entry.type] = (cosine, entry.id)
    return sorted(((s, t, e, c) for (s, t), (c, e) in best.items()), key=lambda item: -item[3])


@pytest.mark.parametrize(("resolution", "bank"), [(6.0, 6.0), (9.0, 10.0), (25.0, 10.0), (None, 6.0), (4.0, 6.0)])
def test_search_is_brute_force_grouped_by_type(
    db: DateDB, rng: np.random.Generator, resolution: float | None, bank: float
) -> None:
    for vector in unit_rows(rng.normal(size=(9, 33))):
        expected = brute_force(db, vector, bank)
        found = db.search(vector, top=10, resolution=resolution)[0]
        # a row may belong to several types: their order is free, their cosines are not
        assert {(c.scheme, c.type): round(c.cosine, 5) for c in found} == {
            (s, t): round(c, 5) for s, t, _, c in expected
        }
        assert [c.rank for c in found] == [1, 2, 3, 4, 5]
        assert [c.cosine for c in found] == pytest.approx([c for *_, c in expected], abs=1e-5)
        rows = {e.id: e.row for e in db.entries}
        assert {rows[c.entry] for c in found} == {rows[e] for _, _, e, _ in expected}


def test_assign_agrees_with_search(db: DateDB, rng: np.random.Generator) -> None:
    vectors = unit_rows(rng.normal(size=(1100, 33)))  # more than one chunk
    assigned = db.assign(vectors, top=3, resolution=6.0)
    for i in range(0, 1100, 97):
        found = db.search(vectors[i], top=3, resolution=6.0)[0]
        of_type = {(s, t): c for s, t, _, c in brute_force(db, vectors[i], 6.0)}
        assert assigned.scores[i] == pytest.approx([of_type[db.types[t]] for t in assigned.types[i]], abs=1e-5)
        assert assigned.scores[i] == pytest.approx([c.cosine for c in found], abs=1e-5)
        assert db.entries[assigned.entries[i]].row == db.entry(found[0].entry).row
    assert db.assign(np.zeros((0, 33)), top=3).types.shape == (0, 3)


def test_every_row_finds_itself_with_cosine_one(db: DateDB) -> None:
    cosines, rows = db.nearest(db.banks[10.0], top=1, resolution=10.0)
    assert rows[:, 0].tolist() == list(range(57))
    assert cosines[:, 0] == pytest.approx(np.ones(57), abs=1e-5)
    assert db.verify() == []


def test_index_is_a_cache(db: DateDB, tmp_path: Path, rng: np.random.Generator) -> None:
    stored = db.write(tmp_path / "a.datedb", dtype="float32")
    queries = unit_rows(rng.normal(size=(5, 33)))
    fresh = stored.nearest(queries, top=7)
    write_indices(stored)
    caches = sorted((tmp_path / "a.datedb").glob("index-*.faiss"))
    assert len(caches) == 2
    contents = [cache.read_bytes() for cache in caches]
    cached = stored.nearest(queries, top=7)
    for cache in caches:
        cache.unlink()
    write_indices(stored)
    assert [cache.read_bytes() for cache in caches] == contents
    caches[0].write_bytes(b"garbage")
    caches[1].write_bytes(contents[0])  # of the other bank
    damaged = open_datedb(tmp_path / "a.datedb").nearest(queries, top=7)
    for other in (cached, damaged):
        assert np.array_equal(fresh[1], other[1])
        assert fresh[0] == pytest.approx(other[0], abs=1e-6)


@pytest.mark.parametrize(("dtype", "loss"), [("float32", 1e-6), ("float16", 1e-3), ("int8", 1e-2)])
def test_write_then_open_gives_the_same(db: DateDB, tmp_path: Path, dtype: str, loss: float) -> None:
    back = db.write(tmp_path / "a.datedb", dtype=dtype)
    assert back.entries == db.entries
    assert back.names == db.names
    assert back.provenance == db.provenance
    for bank, vectors in db.banks.items():
        assert np.abs(back.banks[bank] - vectors).max() < loss
        assert np.linalg.norm(back.banks[bank], axis=1) == pytest.approx(np.ones(57), abs=1e-5)
    assert back.write(tmp_path / "b.datedb", dtype=dtype).fingerprint == open_datedb(tmp_path / "b.datedb").fingerprint


def test_added_entries_are_found_and_removed_ones_are_gone(db: DateDB, rng: np.random.Generator) -> None:
    new = {r: unit_rows(rng.normal(size=(2, 33))) for r in (6.0, 10.0)}
    grown = db.with_entries([Entry("n0", "user", "zz", 0), Entry("n1", "CATH", "1.10.8.10", 1)], new)
    assert len(grown) == len(db) + 2
    assert len(db.entries) == 57
    found = grown.search(new[6.0], top=1)
    assert [answer[0].entry for answer in found] == ["n0", "n1"]
    small = grown.without_entries(["n1", "e0"])
    assert {"n1", "e0"}.isdisjoint(e.id for e in small.entries)
    assert small.search(new[6.0][0], top=1)[0][0].entry == "n0"
    assert small.verify() == []


def test_an_entry_that_is_there_already_is_refused(db: DateDB, rng: np.random.Generator) -> None:
    vectors = {r: unit_rows(rng.normal(size=(1, 33))) for r in (6.0, 10.0)}
    with pytest.raises(GeometryError, match=r"e3.*Remove them first"):
        db.with_entries([Entry("e3", "user", "zz", 0)], vectors)
    with pytest.raises(GeometryError, match="Simulate at these resolutions"):
        db.with_entries([Entry("n", "user", "zz", 0)], {6.0: vectors[6.0]})


def test_excluded_entries_do_not_answer(db: DateDB) -> None:
    query = db.banks[6.0][db.entries[8].row]
    exclude = np.array([[entry.row == db.entries[8].row for entry in db.entries]])
    assert db.search(query, top=1)[0][0].cosine == pytest.approx(1, abs=1e-5)
    assert db.search(query, top=1, exclude=exclude)[0][0].cosine < 0.99


def test_schemes_can_be_chosen(db: DateDB) -> None:
    found = db.search(db.banks[6.0][:3], top=10, schemes=["SCOPe"])
    assert all([c.scheme for c in answer] == ["SCOPe"] for answer in found)
    one = db.in_scheme("CATH")
    assert {e.scheme for e in one.entries} == {"CATH", "user"}
    assert len(one.in_scheme("SCOPe").entries) > 0
    assert {e.scheme for e in db.in_scheme("scope").entries} == {"SCOPe", "user"}
    with pytest.raises(ConfigError, match=r"CATH, SCOPe, user; got SCOP\."):
        db.in_scheme("SCOP")


def test_a_stranger_is_refused_by_name(db: DateDB) -> None:
    with pytest.raises(MismatchError, match=r"f00.*rebuild the database"):
        db.require(InvariantEmbedder())
    with pytest.raises(MismatchError, match="33 dimensions"):
        db.search(np.zeros(34))


def test_verify_names_what_is_wrong(db: DateDB) -> None:
    bank = db.banks[6.0].copy()
    bank[4] = 1.5 * bank[5]
    twice = replace(db, entries=(*db.entries, replace(db.entries[0], type="1.10")), banks={6.0: bank})
    text = "\n".join(twice.verify())
    assert "more than once" in text
    assert "not of unit length" in text
    assert "'1.10' is not a type of four levels" in text
    assert "do not find themselves" in text


# ---------------------------------------------------------------- files


def test_existing_databases_and_other_folders_are_not_replaced(db: DateDB, tmp_path: Path) -> None:
    db.write(tmp_path / "a.datedb")
    with pytest.raises(ExistingOutputError, match="--overwrite"):
        db.write(tmp_path / "a.datedb")
    db.write(tmp_path / "a.datedb", overwrite=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious.txt").write_text("x")
    with pytest.raises(FormatError, match="something else"):
        db.write(tmp_path / "other", overwrite=True)
    assert (tmp_path / "other" / "precious.txt").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.datedb", "other"]


@pytest.mark.parametrize("file", ["manifest.json", "embeddings.npz", "entries.csv.gz", "names.json"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut"])
def test_a_damaged_database_is_refused(db: DateDB, tmp_path: Path, file: str, damage: str) -> None:
    db.write(tmp_path / "a.datedb")
    path = tmp_path / "a.datedb" / file
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(b"" if damage == "empty" else content[: len(content) // 2])
    with pytest.raises(FormatError, match="damaged"):
        open_datedb(tmp_path / "a.datedb")


def test_changed_embeddings_are_noticed(db: DateDB, tmp_path: Path) -> None:
    db.write(tmp_path / "a.datedb", dtype="float32")
    path = tmp_path / "a.datedb" / "embeddings.npz"
    rows = np.load(path)["embeddings"]
    rows[0, 0, 0] += 0.1
    np.savez(path, embeddings=rows)
    with pytest.raises(FormatError, match="match the manifest"):
        open_datedb(tmp_path / "a.datedb")


def test_another_format_version_is_refused(db: DateDB, tmp_path: Path) -> None:
    db.write(tmp_path / "a.datedb")
    path = tmp_path / "a.datedb" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 99}))
    with pytest.raises(FormatError, match="format version 2; got 99"):
        open_datedb(tmp_path / "a.datedb")


def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="leave --datedb out"):
        open_datedb(tmp_path / "no.datedb")
    (tmp_path / "f").write_text("x")
    with pytest.raises(FormatError):
        open_datedb(tmp_path / "f")


# ---------------------------------------------------------------- hierarchy


def test_levels_of_both_schemes() -> None:
    assert levels("CATH", "1.10.8.10") == ("1", "1.10", "1.10.8", "1.10.8.10")
    assert levels("SCOPe", "a.1.1.2") == ("a", "a.1", "a.1.1", "a.1.1.2")
    assert levels("user", "my.type") == ("my.type",)


def test_roll_up_agrees_above_the_type(db: DateDB) -> None:
    candidates = [
        replace(db.candidate(0, rank=1, cosine=0.90), scheme="CATH", type="2.60.40.10"),
        replace(db.candidate(1, rank=2, cosine=0.89), scheme="CATH", type="1.10.8.10"),
        replace(db.candidate(1, rank=3, cosine=0.885), scheme="CATH", type="1.10.8.20"),
    ]
    nodes = roll_up(candidates, db.names)["CATH"]
    assert [n.code for n in nodes] == ["1", "1.10", "1.10.8", "1.10.8.10"]  # each below the one before
    assert nodes[1].name == "Orthogonal Bundle"
    assert 0.5 < nodes[0].share < 1
    assert nodes[3].share < nodes[0].share


# ---------------------------------------------------------------- the database that ships


def test_the_shipped_database_is_sound_and_small() -> None:
    shipped = open_datedb()
    assert shipped.path is not None
    assert sum(f.stat().st_size for f in shipped.path.iterdir()) <= 20 * 2**20
    assert len(shipped) > 12_000
    shipped.require(InvariantEmbedder())
    assert shipped.verify() == []
    named = sum(shipped.name(*key) != key[1] for key in shipped.types)
    assert named == len(shipped.types)


@pytest.mark.parametrize("rows", [(), (2, 3)])
def test_banks_must_be_there_and_of_equal_length(rows):
    banks = {6.0 + place: np.eye(count, 4, dtype=np.float32) for place, count in enumerate(rows)}
    with pytest.raises(FormatError, match="banks of equal length"):
        DateDB((), banks, {"fingerprint": "x"})

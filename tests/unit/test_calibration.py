"""How sure an answer is said to be: what counts, and that it is learned."""

from pathlib import Path

import numpy as np
import pytest

from cryoscan.benchmark.calibration import Answer, _fit, _piece
from cryoscan.datedb import DateDB, Entry, open_datedb
from cryoscan.datedb.store import calibrated
from cryoscan.io import read_structure

DATA = Path(__file__).resolve().parents[1] / "data"


def test_longer_domains_are_believed_more_if_that_was_fitted() -> None:
    lengths = np.array([50, 100, 200])
    said = calibrated(0.8, 0.05, lengths, (0.0, -1.0, 1.0, 2.0))
    assert said[0] < said[1] < said[2]
    three = calibrated(0.8, 0.05, lengths, (0.0, -1.0, 1.0))
    assert three == pytest.approx(said[1])  # 100 residues are what the others are measured by
    assert calibrated(0.8, 0.05, 0, (0.0, -1.0, 1.0, 2.0)) == pytest.approx(said[1])  # nobody knows how long


def test_a_candidate_is_as_long_as_its_type_usually_is() -> None:
    entries = tuple(
        Entry(f"e{row}", "CATH", type_, row, length=length)
        for row, (type_, length) in enumerate([("b", 300), ("a", 80), ("a", 400), ("a", 100)])
    )
    bank = np.eye(4, dtype=np.float32)
    db = DateDB(entries, {6.0: bank}, {"fingerprint": "x"}, calibration={6.0: (0.0, -1.0, 1.0, 2.0)})
    assert db.type_lengths.tolist() == [100, 300]
    (first, second) = db.search(bank[:1], top=2)[0]
    assert [first.type, second.type] == ["b", "a"]
    expected = calibrated(1.0, 1.0, 300, db.calibration[6.0])
    assert db.confidence(first, 1.0, bank=6.0) == pytest.approx(float(expected))
    several = db.confidences(np.ones(2), np.ones(2), np.array([1, 0]), bank=6.0)
    assert several is not None
    assert several[0] == pytest.approx(float(expected))
    assert several[1] < several[0]


def test_the_fit_finds_what_made_the_answers(rng: np.random.Generator) -> None:
    n, fit = 20_000, (1.0, -2.0, 1.5, 3.0)
    cosine, margin = rng.uniform(0.5, 0.99, n), rng.exponential(0.05, n)
    length = rng.uniform(40, 300, n)
    right = rng.random(n) < calibrated(cosine, margin, length, fit)
    answers = [Answer(*one, 0) for one in zip(cosine, margin, length, right, strict=True)]
    assert _fit(answers) == pytest.approx(fit, abs=0.25)


def test_a_piece_is_one_side_of_a_structure() -> None:
    whole = read_structure(DATA / "ugly.pdb").protein()
    piece = _piece(whole, np.random.default_rng(3))
    assert 0.2 < piece.n_residues / whole.n_residues < 0.8
    direction = np.random.default_rng(3).normal(size=3)
    for number in range(piece.n_residues):
        middle = piece.positions[piece.residues == number].mean(axis=0) - whole.positions.mean(axis=0)
        assert middle @ direction > 0


def test_the_shipped_database_knows_how_long_its_types_are() -> None:
    db = open_datedb()
    assert (db.type_lengths > 10).all()
    assert {len(fit) for fit in db.shape_calibration.values()} == {4}

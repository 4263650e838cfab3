"""The demo finds most of what it planted, and writes what it says."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cryoscan.demo import PlantedDomain, compare
from cryoscan.hits import Hits


@pytest.mark.slow
def test_the_demo_finds_what_it_planted(tmp_path):
    words = [sys.executable, "-m", "cryoscan", "demo", "-o", tmp_path / "demo", "--json"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer.keys() >= {"planted", "found", "recall", "precision", "f1", "seconds", "outputs"}
    assert answer["planted"] == len(answer["planted_domains"]) >= 16
    assert answer["found"] == len(answer["found_domains"])
    assert 0 < answer["seconds"] == pytest.approx(sum(answer["seconds_per_step"].values()), abs=0.1)
    assert answer["recall"] >= 0.6
    assert answer["precision"] >= 0.8
    assert all(Path(output).exists() for output in answer["outputs"])
    assert {Path(output).name for output in answer["outputs"]} >= {
        "labels.mrc",
        "labels.zarr",
        "hits.star",
        "report.html",
    }
    assert "<img" in (tmp_path / "demo" / "report.html").read_text()


@pytest.mark.parametrize(
    ("offset", "type_", "scheme", "placed", "named"),
    [
        ((0, 0, 14.9), "1.10.8.10", "CATH", 1, 1),
        ((0, 15.1, 0), "1.10.8.10", "CATH", 0, 0),
        ((3.0, 0, 0), "1.10.8.20", "CATH", 1, 0),
        ((3.0, 0, 0), "1.10.8.10", "SCOPe", 1, 0),
    ],
)
def test_a_hit_counts_by_place_and_by_place_and_type(offset, type_, scheme, placed, named):
    planted = [
        PlantedDomain("1.10.8.10", "CATH", "A", "a", (10.0, -20.0, 30.0)),
        PlantedDomain("2.40.10.10", "CATH", "B", "b", (200.0, 0.0, 0.0)),
    ]
    position = np.array([planted[0].position]) + offset
    hits = Hits(position, np.array([1]), [type_], [scheme], ["A"], ["x"], np.array([0.9]), np.array([0.1]))
    compared, found, right = compare(planted, hits)
    assert (found, right) == (placed, named)
    assert compared[0].found == (f"{type_} A" if placed else "nothing")
    assert compared[1].found == "nothing"

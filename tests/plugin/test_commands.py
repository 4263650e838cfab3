"""What is decided in the viewer is what the commands take: recipes, corrections, journals."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from cryoscan.cli import app
from cryoscan.scan import open_scan
from napari_plugin._review import Review


@pytest.fixture
def review(folder):
    made = Review()
    assert made.open(folder / "scene.scan")
    return made


def run(*words):
    answer = CliRunner().invoke(app, [str(word) for word in words])
    assert answer.exit_code == 0, answer.output
    return json.loads(answer.stdout.splitlines()[-1])


def test_a_recipe_names_other_scans_as_it_did_this_one(review, folder, tmp_path):
    review.tune(min_score=float(np.sort(review.found.hits.scores)[2:4].mean()))
    review.tune(review.legend()[0].type, min_score=1.0)
    review.save_recipe(tmp_path / "recipe.yaml")
    words = ("relabel", folder / "scene.scan", "--recipe", tmp_path / "recipe.yaml", "-o", tmp_path / "b.scan")
    said = run(*words, "--datedb", folder / "toy.datedb", "--json")
    assert said["hits"] == len(review.places.answer)
    np.testing.assert_array_equal(open_scan(tmp_path / "b.scan").hits.positions, review.places.answer.positions)


def test_exported_is_what_was_corrected(review, folder, tmp_path):
    review.select([0, 1])
    review.reject()
    words = ("export", folder / "scene.scan", "--json", "--hits")
    assert run(*words, tmp_path / "a.csv", "--labels", tmp_path / "a.mrc", "--journal", tmp_path / "j.csv")["hits"] == 4
    assert run(*words, tmp_path / "b.csv", "--as-scanned")["hits"] == 6
    assert len((tmp_path / "j.csv").read_text().splitlines()) == 3

"""Laws of what counts where shapes are compared: it is symmetric, turns with the shapes, and is learned."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from cryoscan.datedb import open_datedb
from cryoscan.datedb.build import closer_look, embedder_for
from cryoscan.datedb.sources import rows_of_store
from cryoscan.errors import ConfigError, MismatchError
from cryoscan.models.checkpoint import load_network, save_network
from cryoscan.models.comparison import Comparison, ComparisonConfig, shipped_comparison
from cryoscan.models.harmonics import DEGREES, SHELLS, rotation_table
from cryoscan.models.matching import Matcher
from cryoscan.provenance import Provenance
from cryoscan.train import AtomLibrary
from cryoscan.train.comparison import Overlaid, learn, train_comparison
from cryoscan.train.config import CompareTrainConfig
from cryoscan.train.folder import LIBRARY
from cryoscan.train.split import _anchors

CHANNELS = 2 * SHELLS
SETTINGS = CompareTrainConfig(objective="compare", rounds=1, queries=10)


def some(seed: int) -> Comparison:
    comparison = Comparison(ComparisonConfig())
    torch.manual_seed(seed)
    torch.nn.init.normal_(comparison.change_LKK, std=0.15)
    return comparison.eval().requires_grad_(False)


def shapes(count: int, seed: int = 0) -> np.ndarray:
    """Harmonics of two layers that fall with degree, `n 1944`."""
    rng = np.random.default_rng(seed)
    fall = np.repeat(0.7 ** np.arange(DEGREES), 2 * np.arange(DEGREES) + 1)[:, None]
    return (rng.normal(size=(count, 2, DEGREES**2, SHELLS)) * fall).reshape(count, -1).astype(np.float32)


def turned(vectors: np.ndarray, turn: np.ndarray) -> np.ndarray:
    (row,), first = rotation_table(turn[None], DEGREES), 0
    c = vectors.reshape(len(vectors), 2, DEGREES**2, SHELLS).copy()
    for l in range(DEGREES):
        m, size = slice(l * l, (l + 1) ** 2), (2 * l + 1) ** 2
        c[:, :, m] = np.einsum("ab,nsbk->nsak", row[first : first + size].reshape(2 * l + 1, -1), c[:, :, m])
        first += size
    return c.reshape(len(vectors), -1)


def test_weights_are_symmetric_without_negative_eigenvalues_and_come_back_from_a_file(tmp_path):
    comparison = some(1)
    w_LKK = comparison.weights_LKK
    assert torch.equal(w_LKK, w_LKK.mT)
    assert torch.linalg.eigvalsh(w_LKK).min() > -1e-5
    save_network(comparison, tmp_path / "c.safetensors", provenance=Provenance("a test"))
    again = load_network(tmp_path / "c.safetensors", Comparison)
    assert again.fingerprint == comparison.fingerprint != some(2).fingerprint
    with pytest.raises(ConfigError, match="'layers' of a comparison; got shells"):
        ComparisonConfig.from_json({"shells": 3})
    with pytest.raises(ConfigError, match="positive number"):
        ComparisonConfig(0)


def test_a_comparison_of_equal_weights_is_none():
    vectors = shapes(5)
    one_layer = vectors[:, : vectors.shape[1] // 2]
    plain = Matcher(one_layer).similarities(one_layer[:2])
    equal = Comparison(ComparisonConfig(1)).eval()
    assert Matcher(one_layer, comparison=equal).similarities(one_layer[:2]) == pytest.approx(plain, abs=1e-6)


def test_a_turned_shape_is_alike_by_any_weights():
    vectors, comparison = shapes(4), some(3)
    matcher = Matcher(vectors, comparison=comparison)
    turn = Rotation.from_euler("zyx", [40, -75, 110], degrees=True).as_matrix()
    found = matcher.similarities(turned(vectors, turn))
    assert np.diag(found) == pytest.approx(1, abs=0.01)
    assert (found - np.diag(np.diag(found))).max() < 0.9


def test_products_where_shapes_fit_best_give_their_similarity():
    vectors, comparison = shapes(6), some(4)
    matcher, query = Matcher(vectors, comparison=comparison), shapes(1, seed=9) + 0.7 * vectors[:1]
    rows = np.array([0, 4, 2])
    with torch.no_grad():
        found = comparison(
            torch.from_numpy(matcher.products(query[0], rows)),
            torch.from_numpy(Matcher(query).powers(np.zeros(1, int))[0]),
            torch.from_numpy(matcher.powers(rows)),
        )
    assert found.numpy() == pytest.approx(matcher.similarities(query)[0, rows], abs=2e-3)
    assert found[0] > 0.4


def test_weights_change_who_is_most_alike():
    """The first layer says one entry, the second the other; whoever counts alone decides."""
    vectors = shapes(2)
    half = vectors.shape[1] // 2
    mixed = np.concatenate([vectors[0, :half], vectors[1, half:]])
    for layer in (0, 1):
        comparison = Comparison(ComparisonConfig()).eval()
        counts = torch.zeros(CHANNELS)
        counts[layer * SHELLS : (layer + 1) * SHELLS] = 1
        comparison.change_LKK.data += torch.diag(counts - 1)
        (found,) = Matcher(vectors, comparison=comparison).similarities(mixed[None])
        assert found.argmax() == layer


def overlaid(rng: np.random.Generator, group: int) -> Overlaid:
    """Strangers share the first channel with a query, relatives the last: by equal weights strangers come first."""
    n, found = 20, 2
    products = np.zeros((n, DEGREES, CHANNELS, CHANNELS))
    products[:, :, 0, 0] = rng.uniform(0.7, 0.9, (n, 1))
    products[:found, :, 0, 0] = 0.4
    products[:found, :, -1, -1] = 0.3
    own = np.zeros((DEGREES, CHANNELS, CHANNELS))
    own[:, 0, 0], own[:, -1, -1] = 1, 0.3
    theirs = torch.from_numpy(np.broadcast_to(own, products.shape).copy())
    return Overlaid(torch.from_numpy(products).half(), torch.from_numpy(own).float(), theirs.half(), found, group, True)


def test_what_tells_relatives_from_strangers_is_learned():
    rng = np.random.default_rng(0)
    everything = [overlaid(rng, group % 5) for group in range(100)]
    comparison, watched = learn(everything, SETTINGS.model_copy(update={"epochs": 12, "learning_rate": 0.05}))
    assert watched["remote/before/top1"] == 0
    assert watched["remote/after/top1"] == 1
    w_LKK = comparison.weights_LKK
    assert (w_LKK[:, -1, -1] > 2 * w_LKK[:, 0, 0]).all()


def test_a_database_of_another_comparison_is_refused():
    db = open_datedb()
    embedder = embedder_for(db)
    assert closer_look(db, embedder)[1].dim == DEGREES**2 * CHANNELS
    with pytest.raises(MismatchError, match=f"comparison network .{shipped_comparison().fingerprint}.*another one .x"):
        closer_look(replace(db, embedder={**db.embedder, "comparison": "x"}), embedder)


def few_domains(data_folder) -> AtomLibrary:
    """Some domains of the shipped database, of types of which it holds several clusters."""
    rows, store = rows_of_store(data_folder, ca_only=False)
    known = {entry.id for entry in open_datedb().entries}
    rows = [r for r in rows if r.id in known and r.scheme == "CATH" and r.n_residues < 120 and r.parts.count("=") == 1]
    largest = [type_ for type_, _ in Counter(row.type for row in rows).most_common(6)]
    anchors = [anchor for anchor, row in _anchors(rows, {}, Counter()) if row.type in largest][:40]
    keys = sorted({anchor.chain for anchor in anchors})
    return AtomLibrary.of_chains(((key, store.chain(key)) for key in keys), anchors=anchors, neighbours=keys[:10])


def test_a_training_goes_on_where_it_was_stopped(data_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("cryoscan.train.comparison._AT_ONCE", 5)
    few_domains(data_folder).save(tmp_path / LIBRARY)
    *_, stopped = train_comparison(SETTINGS, tmp_path, data=None, until=5)
    assert (stopped.done, stopped.total, stopped.stopped) == (5, 10, True)
    first = (tmp_path / "overlaid-0-0.npz").stat().st_mtime_ns
    *events, last = train_comparison(SETTINGS, tmp_path, data=None)
    assert (tmp_path / "overlaid-0-0.npz").stat().st_mtime_ns == first
    assert [event.done for event in events] == [5, 10, 10]
    assert load_network(last.weights, Comparison).fingerprint != Comparison(ComparisonConfig()).fingerprint
    assert "remote | after" in last.card.read_text()
    with pytest.raises(MismatchError, match="stiffness"):
        next(train_comparison(SETTINGS.model_copy(update={"stiffness": 1.0}), tmp_path, data=None))

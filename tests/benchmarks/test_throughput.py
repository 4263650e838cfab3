"""Windows embedded and places named a second, and what naming begins with; timed with ``pytest --benchmark-enable``."""

import numpy as np
import pytest

pytest.importorskip("pytest_benchmark")


@pytest.mark.parametrize("count", [64])
def test_invariant_embedder_embeds_windows(benchmark, rng, count):
    from cryoscan.models import InvariantEmbedder

    embedder = InvariantEmbedder()
    windows = rng.normal(size=(count, 32, 32, 32)).astype(np.float32)
    vectors = benchmark(embedder.embed, windows)
    assert vectors.shape == (count, embedder.dim)
    if benchmark.stats is not None:
        benchmark.extra_info["windows_per_second"] = count / benchmark.stats.stats.median


@pytest.mark.parametrize("count", [12])
def test_places_are_named_by_shape(benchmark, count):
    from cryoscan.datedb import open_datedb

    db = open_datedb().in_scheme("CATH").by_shape
    assert db is not None
    vectors = db.banks[6.0][:: len(db.banks[6.0]) // count][:count]
    answer = benchmark(db.assign, vectors, top=3, resolution=6.0)
    assert (answer.scores[:, 0] > 0.8).mean() > 0.5
    if benchmark.stats is not None:
        benchmark.extra_info["places_per_second"] = count / benchmark.stats.stats.median


def test_a_process_gets_ready_to_name(benchmark):
    """What every process that names does once: bases, rotations, derivatives along shifts, and the entries' shapes."""
    from cryoscan.datedb import open_datedb
    from cryoscan.models import harmonics, matching, refinement

    db = open_datedb().in_scheme("CATH")

    def ready():
        for cached in (
            harmonics.harmonics,
            harmonics.octant,
            harmonics.mirror_classes,
            harmonics.dual_functions,
            harmonics.blur_matrices,
            matching._table,
            refinement._shift_derivatives,
        ):
            cached.cache_clear()
        db.__dict__.pop("by_shape", None)
        assert db.by_shape is not None
        refinement._shift_derivatives("cpu")
        return db.by_shape.similarities(db.by_shape.banks[6.0][:1], resolution=6.0)

    assert benchmark.pedantic(ready, rounds=3).argmax() == 0

"""How many windows per second the invariant embedder takes; timed only on demand (``pytest --benchmark-enable``)."""

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

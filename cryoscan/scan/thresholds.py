"""Which places get their name: the one rule that scans, relabelling and live tuning share."""

from collections.abc import Sequence

import numpy as np

from cryoscan.scan.config import ScanConfig, TypeThresholds


def is_named(
    config: ScanConfig,
    *,
    threshold: float,
    types: Sequence[str],
    type_: np.ndarray,
    score: np.ndarray,
    margin: np.ndarray,
    confidence: np.ndarray | None,
    volume_A3: np.ndarray | None = None,
) -> np.ndarray:
    """Whether places stand out of the noise, and their names are more likely right than not.

    Parameters
    ----------
    config : ScanConfig
        Its `labelling` settings.
    threshold : float
        Cosine from which on, for types without one of their own.
    types : sequence of str
        What the numbers in `type_` mean.
    type_ : int array, any shape
    score, margin : float array, of the same shape
    confidence : float array, of the same shape, optional
        Probability of being right; None where the DateDB is not calibrated.
    volume_A3 : float array, of the same shape, optional
        Of the regions; None where places have none.

    Returns
    -------
    bool array, of the same shape
    """
    least_score = np.full(score.shape, threshold)
    least_margin = np.full(score.shape, -np.inf if config.min_margin is None else config.min_margin)
    least_volume = np.full(score.shape, config.min_volume_A3 or 0.0)
    for name, own in (config.per_type or {}).items():
        mine = np.isin(type_, [number for number, known in enumerate(types) if known == name])
        for least, value in _each(own, least_score, least_margin, least_volume):
            least[mine] = value
    passed = (score >= least_score) & (margin >= least_margin)
    if volume_A3 is not None:
        passed &= volume_A3 >= least_volume
    if confidence is not None:
        passed &= confidence >= config.min_confidence
    return np.asarray(passed)


def _each(own: TypeThresholds, *least: np.ndarray) -> list[tuple[np.ndarray, float]]:
    values = (own.min_score, own.min_margin, own.min_volume_A3)
    return [(array, value) for array, value in zip(least, values, strict=True) if value is not None]

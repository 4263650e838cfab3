"""Pictures of the three-step training: a map of vectors, curves, levels and resolutions."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cryoscan.benchmark.cryodomain import Curve, Panel
from cryoscan.units import Angstrom

_DPI = 90
_MARKS = {"structure": ("^", 14, 0.45), "density": ("o", 12, 0.45), "held out": ("*", 70, 1.0)}


def draw_panels(panels: Sequence[Panel], picture: Path, *, seed: int) -> None:
    """Neighbour maps of the vectors after each step, beside each other; colours are types, marks are kinds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(panels), 4.4), layout="constrained")
    for axes, panel in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
        places = neighbour_map(panel.vectors, seed=seed)
        types, kinds = np.array(panel.types), np.array(panel.kinds)
        for number, type_ in enumerate(dict.fromkeys(panel.types)):
            for kind, (mark, size, opacity) in _MARKS.items():
                some = places[(types == type_) & (kinds == kind)]
                label = type_ if kind == "structure" else None
                edge = "black" if kind == "held out" else "none"
                axes.scatter(
                    some[:, 0], some[:, 1], marker=mark, s=size, alpha=opacity, color=f"C{number}", label=label,
                    edgecolors=edge, linewidths=0.5,
                )  # fmt: skip
        axes.set(xticks=[], yticks=[])
        axes.set_title(panel.title, fontsize=9)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    figure.savefig(picture, dpi=_DPI)


def draw_curves(curves: Mapping[str, Sequence[Curve]], picture: Path) -> None:
    """ROC curves, one panel for each scheme."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    for axes, (scheme, some) in zip(np.atleast_1d(figure.subplots(1, len(curves))), curves.items(), strict=True):
        for curve in some:
            axes.plot(curve.false_rate, curve.true_rate, label=f"{curve.name}, {curve.area:.2f}")
        axes.plot([0, 1], [0, 1], color="grey", linewidth=0.7, linestyle=":")
        axes.set(title=scheme, xlabel="false positive rate", ylabel="true positive rate")
        axes.legend(fontsize=7, loc="lower right")
    figure.savefig(picture, dpi=_DPI)


def draw_levels(shares: Mapping[str, Mapping[str, Sequence[float]]], picture: Path) -> None:
    """Stacked bars of the deepest level shared: type first, nothing last."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(shares), sharey=True))
    for axes, (scheme, arms) in zip(panels, shares.items(), strict=True):
        left = np.zeros(len(arms))
        for number, name in enumerate(("level 4 (type)", "level 3", "level 2", "level 1", "nothing")):
            widths = np.array([values[number] for values in arms.values()])
            colour = "lightgrey" if name == "nothing" else f"C{number}"
            axes.barh(list(arms), widths, left=left, label=name, color=colour)
            left = left + widths
        axes.set(title=scheme, xlabel="share of the queries", xlim=(0, 1))
    panels[0].invert_yaxis()  # the panels share it
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
    figure.savefig(picture, dpi=_DPI)


def draw_series(
    found: Mapping[str, Mapping[str, Sequence[float]]], resolutions: Sequence[Angstrom], picture: Path
) -> None:
    """Top-5 against resolution, one panel for each scheme."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(found), sharey=True))
    for axes, (scheme, arms) in zip(panels, found.items(), strict=True):
        for name, values in arms.items():
            axes.plot(resolutions, values, marker="o", markersize=4, label=name)
        axes.set(title=scheme, xlabel="resolution, Å", ylabel="Top-5", ylim=(0, 1))
        axes.legend(fontsize=7)
    figure.savefig(picture, dpi=_DPI)


def neighbour_map(vectors: np.ndarray, *, perplexity: float = 20.0, steps: int = 500, seed: int = 0) -> np.ndarray:
    """Places in the plane that keep neighbours together: t-SNE (van der Maaten & Hinton 2008, JMLR 9, 2579).

    Exact, for a few hundred vectors; it begins with the first two principal axes, so that the
    seed only breaks ties.

    Parameters
    ----------
    vectors : float array, `n d`
    perplexity : float
        Neighbours that count, in effect; at most a third of `n`.
    steps : int
    seed : int

    Returns
    -------
    float array, `n 2`
    """
    n = len(vectors)
    apart = np.square(vectors[:, None] - vectors[None]).sum(axis=-1)
    shares = _affinities(apart, min(perplexity, (n - 1) / 3))
    shares = np.maximum((shares + shares.T) / (2 * n), 1e-12)
    centred = vectors - vectors.mean(axis=0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:2]
    places = centred @ axes.T
    places = 1e-2 * places / max(places.std(), 1e-12)
    places = places + np.random.default_rng(seed).normal(0, 1e-4, places.shape)
    speed, gains = np.zeros_like(places), np.ones_like(places)
    for step in range(steps):
        early = step < steps // 4
        close = 1 / (1 + np.square(places[:, None] - places[None]).sum(axis=-1))
        np.fill_diagonal(close, 0)
        pull = ((12 if early else 1) * shares - close / close.sum()) * close
        slope = 4 * (pull.sum(axis=1)[:, None] * places - pull @ places)
        gains = np.maximum(np.where(np.sign(slope) == np.sign(speed), 0.8 * gains, gains + 0.2), 0.01)
        speed = (0.5 if early else 0.8) * speed - max(n / 12, 50.0) * gains * slope
        places = places + speed
        places = places - places.mean(axis=0)
    return places


def _affinities(apart: np.ndarray, perplexity: float) -> np.ndarray:
    """Shares of the neighbours of each row, whose entropy is that of `perplexity` equal ones; found by bisection."""
    n = len(apart)
    apart = apart + np.where(np.eye(n, dtype=bool), np.inf, 0)
    nearest = apart - apart.min(axis=1, keepdims=True)
    low, high = np.full((n, 1), -30.0), np.full((n, 1), 30.0)  # logarithms of the inverse widths
    for _ in range(60):
        middle = (low + high) / 2
        weights = np.exp(-nearest * np.exp(middle))
        shares = weights / weights.sum(axis=1, keepdims=True)
        entropy = -(shares * np.log(np.maximum(shares, 1e-300))).sum(axis=1, keepdims=True)
        wide = entropy > np.log(perplexity)
        low, high = np.where(wide, middle, low), np.where(wide, high, middle)
    return shares

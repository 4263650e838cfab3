"""What is written about a trained tower for people: its curves and its card."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import get_args

from cryoscan.models.atom_tower import AtomTowerConfig
from cryoscan.models.density_tower import TowerConfig
from cryoscan.models.shape_tower import ShapeTowerConfig
from cryoscan.provenance import Provenance, write_atomically
from cryoscan.train.evaluate import TOPS, Outcome
from cryoscan.train.library import Anchor, Split
from cryoscan.train.state import read_curves

_KINDS: dict[type, str] = {TowerConfig: "density", ShapeTowerConfig: "shape", AtomTowerConfig: "atom"}
HELD_OUT = "Nothing that is trained on is of a sequence cluster, PDB entry or chain of a held-out domain."

_OF_DENSITY = """Trained on simulated density alone: domains of 40 to 300 residues under made-up masks, neighbours,
noise and filters. Real maps differ. Larger domains than a window are cut off. The validation domains are few and
chose the settings: expect less on others."""
_LIMITS = {
    "density": _OF_DENSITY,
    "shape": _OF_DENSITY,
    "atom": """Trained on domains of 40 to 300 residues, most of them from crystals. Fewer than 20 residues have no
vector. The validation domains are few: expect less, or more, on others.""",
}


def draw_curves(curves: Path, picture: Path) -> None:
    """Draw a run's log: losses and rates above, how often the domain itself was found in validations below."""
    from matplotlib.figure import Figure

    found = read_curves(curves)
    plain = {name: points for name, points in found.items() if "/" not in name and name != "processor_s"}
    watched = {
        name: points for name, points in found.items() if name.startswith("validation/") and name.endswith("/top10")
    }
    figure = Figure(figsize=(9, 9), layout="constrained")
    above, below = figure.subplots(2, 1)
    for name, (steps, values) in plain.items():
        above.plot(steps, values, label=name)
    above.set(ylabel="mean since the last row", yscale="log")
    for name, (steps, values) in watched.items():
        below.plot(steps, values, label=name.removeprefix("validation/"), marker=".")
    below.set(xlabel="step", ylabel="found among the first 10", ylim=(0, 1))
    for axes in (above, below):
        if axes.lines:
            axes.legend(fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(picture, dpi=120)


def write_card(
    path: Path,
    *,
    provenance: Provenance,
    anchors: Sequence[Anchor],
    outcomes: Sequence[Outcome],
    tower: TowerConfig | ShapeTowerConfig | AtomTowerConfig,
    remarks: Sequence[str] = (),
) -> None:
    """Write the model card: data, settings, seed, results and remarks on them, limits."""
    kind = _KINDS[type(tower)]
    data = [
        *(f"- {split}: {[anchor.split for anchor in anchors].count(split)} domains" for split in get_args(Split)),
        fingerprint_line(provenance),
        "",
        HELD_OUT,
        "The test domains were not looked at.",
    ]
    results = [
        "Validation domains, Top-1 / 5 / 10 in percent with Wilson's 95 % interval of Top-10; chance is of Top-10.",
        "",
        *results_table(outcomes),
        "",
        *(line for remark in remarks for line in (remark, "")),
        "Curves: `curves.png`, numbers: `curves.csv`.",
    ]
    sizes = {f"tower `{key}`": value for key, value in tower.to_json().items()}
    what = f"{'An' if kind == 'atom' else 'A'} {kind} tower"
    compose_card(path, what, provenance, data=data, sizes=sizes, results=results, limits=_LIMITS[kind])


def compose_card(
    path: Path,
    what: str,
    provenance: Provenance,
    *,
    data: Sequence[str],
    sizes: Mapping[str, object] = MappingProxyType({}),
    results: Sequence[str],
    limits: str,
) -> None:
    """Write the model card of any network.

    Parameters
    ----------
    path : Path
    what : str
        It is, with its article.
    provenance : Provenance
        Settings are told from it.
    data, results : sequence of str
        Lines.
    sizes : mapping
        More settings, by their names in Markdown.
    limits : str
    """
    lines = [
        "# Model card",
        "",
        f"{what} of cryoscan {provenance.version}, begun {provenance.time}, seed {provenance.seed}.",
        "",
        "## Data",
        "",
        *data,
        "",
        "## Settings",
        "",
        *(f"- `{key}`: {value}" for key, value in provenance.config.items()),
        *(f"- {key}: {value}" for key, value in sizes.items()),
        "",
        "## Results",
        "",
        *results,
        "",
        "## Limits",
        "",
        limits,
        "",
    ]
    write_atomically(path, "\n".join(lines))


def fingerprint_line(provenance: Provenance) -> str:
    """What was trained on."""
    return f"- fingerprint of the library: `{provenance.inputs.get('library', '')}`"


def results_table(outcomes: Sequence[Outcome]) -> list[str]:
    """Markdown rows, one for each condition and question, embedders side by side."""
    if not outcomes:
        return ["Not judged."]
    names = list(dict.fromkeys(one.embedder for one in outcomes))
    found = {(one.condition, one.question, one.embedder): one for one in outcomes}
    rows = [
        f"| condition | question | n | chance | {' | '.join(names)} |",
        f"|---|---|---|---|{'---|' * len(names)}",
    ]
    for condition, question in dict.fromkeys((one.condition, one.question) for one in outcomes):
        cells = []
        for name in names:
            row = found[condition, question, name].row()
            tops = " / ".join(f"{100 * row[f'top{top}']:.1f}" for top in TOPS)
            cells.append(f"{tops} ({100 * row['top10_low']:.0f}–{100 * row['top10_high']:.0f})")
        first = found[condition, question, names[0]].row()
        chance = f"{100 * first['chance_top10']:.2f}"
        rows.append(f"| {condition} | {question} | {first['queries']} | {chance} | {' | '.join(cells)} |")
    return rows

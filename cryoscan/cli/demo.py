"""`cryoscan demo`: the whole journey on made-up data whose answer is known."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cryoscan.cli import options as o
from cryoscan.cli import show

if TYPE_CHECKING:
    from cryoscan.demo import DemoResult


def demo(
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FOLDER", help="Where everything is written; replaced if there.")
    ] = Path("cryoscan-demo"),
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the made-up volume.")] = 0,
    as_json: o.Json = False,
) -> None:
    """Make a small crowded volume, scan it, export the answer, and compare it with what was put in.

    Example: cryoscan demo -o cryoscan-demo --seed 3
    """
    from cryoscan.demo import DemoResult, StepDone, run_demo

    for event in show.progress(run_demo(output, seed=seed), "tiles scanned"):
        if isinstance(event, StepDone):
            show.note(f"{event.name}: {event.seconds:.1f} s. {event.text}")
        elif isinstance(event, DemoResult):
            if as_json:
                show.print_json(event.to_json())
            else:
                _print(event)


def _print(result: "DemoResult") -> None:
    rows = [
        (i, item.type, item.name, *(f"{value:.0f}" for value in item.position[::-1]), item.found)
        for i, item in enumerate(result.planted, start=1)
    ]
    from cryoscan.demo import CAVEAT

    precision, recall, f1 = result.scores
    show.line("\nPlanted, and what was found there (positions x, y, z in Å)")
    show.table(("", "type", "name", "x", "y", "z", "found there"), rows, right=("", "x", "y", "z"))
    show.line(
        f"\n{len(result.planted)} planted, {len(result.found)} found; {result.placed} at the right place, "
        f"{result.named} of them with the right name."
    )
    show.line(f"recall {recall:.2f}, precision {precision:.2f}, F1 {f1:.2f} (place and name)")
    show.line(CAVEAT)
    show.line(f"seconds: {', '.join(f'{name} {value:.1f}' for name, value in result.seconds.items())}\n")
    for output in result.outputs:
        show.line(f"  {output}")

"""`cryoscan identify`: name a map, or regions of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cryoscan.cli import options as o
from cryoscan.cli import show

if TYPE_CHECKING:
    from cryoscan.cli.inputs import Given
    from cryoscan.datedb import DateDB
    from cryoscan.hits import Region
    from cryoscan.workflows import Identification, RegionMask

_Dock = Annotated[
    Path | None,
    typer.Option(
        "--dock", metavar="FOLDER", help="Check candidates by docking their structures from here.", show_default=False
    ),
]


_Mask = Annotated[Path | None, typer.Option("--mask", help="Mask on the map's grid: the region.", show_default=False)]
_Labels = Annotated[
    Path | None,
    typer.Option("--labels", help="Label volume on the map's grid: each label a region.", show_default=False),
]
_Label = Annotated[int | None, typer.Option("--label", min=1, help="Only this label of --labels.", show_default=False)]
_Box = Annotated[
    str | None, typer.Option("--box", metavar="z0:z1,y0:y1,x0:x1", help="Box in voxels.", show_default=False)
]
_Center = Annotated[
    str | None, typer.Option("--center", metavar="x,y,z", help="Centre of a sphere, Å.", show_default=False)
]
_Radius = Annotated[
    float | None, typer.Option("--radius", metavar="Å", min=0.1, help="Of the sphere.", show_default=False)
]
_Scheme = Annotated[
    str | None, typer.Option("--scheme", help="Only types of this scheme: CATH or SCOPe.", show_default=False)
]
_Models = Annotated[
    Path, typer.Option("--models", metavar="FOLDER", help="With --dock: where docked models (mmCIF) go.")
]
_Output = Annotated[
    Path | None, typer.Option("-o", "--output", help="Write the regions as labels: .mrc or .zarr.", show_default=False)
]
_Report = Annotated[Path | None, typer.Option("--report", metavar="HTML", help="Write a report.", show_default=False)]


def identify(
    path: o.VolumePath,
    mask: _Mask = None,
    labels: _Labels = None,
    label: _Label = None,
    box: _Box = None,
    center: _Center = None,
    radius: _Radius = None,
    crowded: Annotated[
        bool, typer.Option("--crowded", help="Neighbours in contact are in the region, and no mask cuts them off.")
    ] = False,
    enhance: Annotated[
        bool, typer.Option("--enhance", help="Ask again in the sharpened map, and say where the answer changes.")
    ] = False,
    segment: Annotated[bool, typer.Option("--segment", help="Cut the map into regions and name each.")] = False,
    threshold: o.Threshold = None,
    step: o.Step = None,
    steps: o.Steps = 12,
    voxel_size: o.VoxelSize = None,
    contrast: o.ContrastOption = o.Contrast.bright,
    resolution: o.Resolution = None,
    datedb: o.DateDBPath = None,
    scheme: _Scheme = None,
    top: o.Top = 10,
    dock: _Dock = None,
    models: _Models = Path("docked"),
    output: _Output = None,
    report: _Report = None,
    overwrite: o.Overwrite = False,
    as_json: o.Json = False,
) -> None:
    """Name a map or regions of it; without a region the whole map, cut up if it holds more than one chain.

    Example: cryoscan identify map.mrc --resolution 6 --mask region.mrc
    """
    from cryoscan.cli import answers
    from cryoscan.cli.docked import docked
    from cryoscan.cli.inputs import chosen_regions, only_one, open_given
    from cryoscan.datedb import open_datedb
    from cryoscan.errors import refuse_existing
    from cryoscan.io import write_labels

    only_one(mask=mask, labels=labels, box=box, center=center, segment=segment)
    for path_out in (output, report):
        if path_out is not None:
            refuse_existing(path_out, overwrite=overwrite)
    given = open_given(path, voxel_size=voxel_size, contrast=contrast)
    regions = chosen_regions(given, mask=mask, labels=labels, label=label, box=box, center=center, radius=radius)
    db = open_datedb(datedb)
    settings = {"resolution": resolution, "top": top, "schemes": _schemes(db, scheme)}
    grouping = {"threshold": threshold, "step": step, "steps": steps}
    answer = _answer(given, regions, db, segment=segment, crowded=crowded, settings=settings, grouping=grouping)
    again = _asked_again(given, answer, db, crowded=crowded, settings=settings) if enhance else {}
    checks = docked(given.volume, answer, dock, models, overwrite=overwrite) if dock is not None else {}
    warnings = [*given.warnings, *answer.preflight.warnings]
    show.warn(warnings)
    if output is not None and answer.labels is not None:
        write_labels(answer.labels, output, overwrite=overwrite)
        show.note(f"regions written to {output}")
    if report is not None:
        answers.write_identification_report(
            report, answer, given=given, names=db.names, checks=checks, overwrite=overwrite
        )
        show.note(f"report written to {report}")
    if as_json:
        found = [answers.region_json(region, db.names, checks) for region in answer.regions]
        if again:
            pairs = zip(found, answer.regions, strict=True)
            found = [answers.with_second_answer(about, region, again[region.id]) for about, region in pairs]
        show.print_json({"regions": found, "warnings": warnings})
        return
    for region in answer.regions:
        answers.print_region(region, db.names, checks)
        if again:
            answers.print_second_answer(region, again[region.id])


def _answer(
    given: "Given",
    regions: "Sequence[RegionMask] | None",
    db: "DateDB",
    *,
    segment: bool,
    crowded: bool,
    settings: dict[str, Any],
    grouping: dict[str, Any],
) -> "Identification":
    """Identify given regions, or those that the map falls into; says which where nobody chose."""
    from dataclasses import replace

    from cryoscan import workflows
    from cryoscan.datedb.build import embedder_for
    from cryoscan.errors import ConfigError

    embedder = embedder_for(db)
    if regions is None and not segment:
        one = workflows.whole_map_region(
            given.volume, resolution=settings["resolution"], target=min(db.banks), threshold=grouping["threshold"]
        )
        regions = None if one is None else [one]
        taken = "is taken as one region" if one else "holds more than one chain and is cut into regions (--segment)"
        show.note(f"No region was given: the map {taken}.")
    if regions is not None:
        answer = workflows.identify(given.volume, regions, datedb=db, embedder=embedder, crowded=crowded, **settings)
        return replace(answer, labels=workflows.region_labels(given.volume, regions, answer))
    if crowded:
        raise ConfigError(
            "expected a region with --crowded (--mask, --labels, --box or --center)",
            got="a map that is cut into regions",
            hint="Give a region, or leave --crowded out.",
        )
    events = workflows.identify_map(given.volume, datedb=db, embedder=embedder, **settings, **grouping)
    last = show.to_the_end(events, "regions compared")
    assert isinstance(last, workflows.Identification)
    return last


def _asked_again(
    given: "Given", answer: "Identification", db: "DateDB", *, crowded: bool, settings: dict[str, Any]
) -> "dict[int, Region]":
    """What the regions are called in the sharpened map."""
    from cryoscan import workflows
    from cryoscan.datedb.build import embedder_for
    from cryoscan.enhance import open_network

    return workflows.ask_again(
        given.volume, answer, open_network(), datedb=db, embedder=embedder_for(db), crowded=crowded, **settings
    )


def _schemes(db: "DateDB", scheme: str | None) -> list[str] | None:
    """The scheme as the DateDB spells it."""
    from cryoscan.errors import ConfigError

    if scheme is None:
        return None
    known = sorted({name for name, _ in db.types})
    found = [name for name in known if name.lower() == scheme.lower()]
    if not found:
        raise ConfigError("expected a scheme of the DateDB", got=scheme, hint=f"It has {', '.join(known)}.")
    return found

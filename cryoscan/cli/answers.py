"""What an identification says: the same facts as text, as JSON and as an HTML report."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryoscan.cli import show
from cryoscan.hits import Candidate, Region

if TYPE_CHECKING:
    from cryoscan.workflows import Identification

Checks = Mapping[int, Mapping[int, dict[str, Any] | None]]
"""Region → rank → what docking said; None where the structure is not at hand."""

_COLUMNS = ("rank", "type", "scheme", "name", "representative", "cosine")
_LONGEST_RANGES = 20  # letters; longer ones would wrap in the table (JSON has them all)
_NUMBERS = ("rank", "cosine", "CC mask", "CC box")


def region_json(region: Region, names: Mapping[str, str], checks: Checks) -> dict[str, Any]:
    """A region as JSON; these keys are fixed, others script against them."""
    docked = checks.get(region.id)
    candidates = [candidate.to_json() for candidate in region.candidates]
    if docked is not None:
        for candidate in candidates:
            candidate["docking"] = docked.get(candidate["rank"])
    return {
        "id": region.id,
        "center_xyz": [round(value, 3) for value in reversed(region.centre)],
        "volume_A3": round(region.volume_A3, 1),
        "mass_kDa": round(region.mass_kDa, 2),
        "verdict": region.verdict,
        "reason": reason(region),
        "margin": round(region.margin, 4),
        "resolution_A": region.resolution,
        "confidence": None if region.confidence is None else round(region.confidence, 3),
        "hierarchy": hierarchy_json(region.support, names),
        "candidates": candidates,
    }


def with_second_answer(about: dict[str, Any], region: Region, again: Region) -> dict[str, Any]:
    """A region's JSON with what it is called in the sharpened map."""
    best = again.candidates[0].to_json() if again.candidates else None
    return about | {"enhanced": {"candidate": best, "verdict": again.verdict, "changed": is_changed(region, again)}}


def is_changed(region: Region, again: Region) -> bool:
    """Whether sharpening the map changes the first candidate, or whether it counts as a name."""
    first, second = (one.candidates[0] if one.candidates else None for one in (region, again))
    same = (first and (first.scheme, first.type)) == (second and (second.scheme, second.type))
    return not same or region.verdict != again.verdict


def print_second_answer(region: Region, again: Region) -> None:
    """Say in one line whether the answer is another one in the sharpened map."""
    best = (
        f"{again.candidates[0].scheme} {again.candidates[0].type}, {again.verdict}" if again.candidates else "nothing"
    )
    told = f"changes to {best}: neither answer is safe" if is_changed(region, again) else "stays"
    show.line(f"  After sharpening the map the answer of region {region.id} {told}.\n")


def hierarchy_json(candidates: Iterable[Candidate], names: Mapping[str, str]) -> dict[str, list[dict[str, Any]]]:
    """What the candidates agree on, level by level, for each scheme."""
    from cryoscan.datedb import roll_up

    found = roll_up(list(candidates), names)
    return {
        scheme: [
            {
                "level": node.level,
                "code": node.code,
                "name": node.name,
                "cosine": round(node.cosine, 4),
                "share": round(node.share, 3),
            }
            for node in nodes
        ]
        for scheme, nodes in found.items()
    }


def reason(region: Region) -> str:
    """Why a region is named, or is not."""
    if not region.candidates:
        return "the database has no entry to compare with"
    best = region.candidates[0]
    if not region.resolved:
        return "the map is too coarse to tell domains apart, so the list below means little"
    facts = f"cosine {best.cosine:.3f}, {region.margin:.3f} above the next type"
    if region.confidence is None:
        return f"{best.name}, {facts}"
    if region.verdict == "unknown":
        return f"the best candidate is right with a probability of {region.confidence:.0%} only ({facts})"
    return f"{best.name}, right with a probability of {region.confidence:.0%} ({facts})"


def print_region(region: Region, names: Mapping[str, str], checks: Checks) -> None:
    """Print verdict, candidates and what they agree on."""
    x, y, z = reversed(region.centre)
    show.line(f"Region {region.id} at x {x:.1f}, y {y:.1f}, z {z:.1f} Å, {region.mass_kDa:.1f} kDa")
    show.line(f"  {region.verdict}: {reason(region)}")
    docked = checks.get(region.id)
    extra = () if docked is None else ("CC mask", "CC box")
    print_candidates(region.candidates, extra=extra, docked=docked or {})
    for scheme, nodes in hierarchy_json(region.support, names).items():
        show.line(f"\n  {scheme}: what the candidates agree on")
        show.table(
            ("level", "code", "share", "name"),
            [(f"  {node['level']}", node["code"], f"{node['share']:.0%}", node["name"]) for node in nodes],
            right=("share",),
        )
    show.line()


def print_candidates(
    candidates: Iterable[Candidate],
    *,
    extra: tuple[str, ...] = (),
    docked: Mapping[int, dict[str, Any] | None] | None = None,
) -> None:
    """Print ranked candidates as a table that fits 100 columns."""
    rows = []
    for item in candidates:
        cells = [item.rank, item.type, item.scheme, item.name, representative(item), f"{item.cosine:.3f}"]
        check = (docked or {}).get(item.rank)
        values = ["–", "–"] if check is None else [f"{check['cc_mask']:.3f}", f"{check['cc_box']:.3f}"]
        rows.append([*cells, *(values if extra else [])])
    show.table((*_COLUMNS, *extra), rows, right=_NUMBERS)


def representative(item: Candidate) -> str:
    """PDB entry, residues and chain, shortened to fit a table; the entry's own id where it is not from the PDB."""
    if not item.pdb:
        return item.entry
    ranges = item.ranges.split(",")
    if len(item.ranges) > _LONGEST_RANGES:
        return f"{item.pdb} {ranges[0]} + {len(ranges) - 1} more"
    return f"{item.pdb} {item.ranges or item.chain}".strip()


def write_identification_report(
    path: Path,
    answer: "Identification",
    *,
    given: Any,
    names: Mapping[str, str],
    checks: Checks,
    overwrite: bool,
) -> None:
    """Write an identification as one HTML page."""
    from cryoscan.export import Section, candidates_table, slices_figure, write_report

    overview = slices_figure(given.volume, answer.labels, caption="Central slices with the regions that were compared.")
    sections = [Section("Map", (overview,))]
    for region in answer.regions:
        docked = checks.get(region.id)
        extra = None
        if docked is not None:
            values = [docked.get(candidate.rank) or {} for candidate in region.candidates]
            extra = {key: [value.get(key, "–") for value in values] for key in ("cc_mask", "cc_box")}
        agreed = [
            f"{scheme}: " + " › ".join(f"{node['code']} {node['name']} ({node['share']:.0%})" for node in nodes)
            for scheme, nodes in hierarchy_json(region.support, names).items()
        ]
        table = candidates_table(region.candidates, extra=extra)
        sections.append(Section(f"Region {region.id}: {region.verdict}", (f"{reason(region)}.", table, *agreed)))
    look = answer.preflight
    summary = {
        "map": given.path.name,
        "voxel size": f"{look.voxel_size:g} Å",
        "regions": len(answer.regions),
        "warnings": " ".join(look.warnings) or "none",
    }
    write_report(
        path, title=f"Identification of {given.path.name}", summary=summary, sections=sections, overwrite=overwrite
    )

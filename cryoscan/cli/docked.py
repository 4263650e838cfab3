"""Docking as a second opinion on candidates: where structures come from and where models go."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryoscan.cli import show
from cryoscan.volume import Volume

if TYPE_CHECKING:
    from cryoscan.workflows import Identification


def docked(
    volume: Volume, answer: "Identification", structures: Path, models: Path, *, overwrite: bool
) -> dict[int, dict[int, dict[str, Any] | None]]:
    """Dock the candidates of every region and write the models: region → rank → correlations.

    A candidate whose structure is not in the folder is skipped, with a note.
    """
    from cryoscan.datedb.sources import structures_of_folder
    from cryoscan.errors import refuse_existing
    from cryoscan.io import write_structure
    from cryoscan.workflows import dock_candidates

    structure_of = structures_of_folder(structures)
    models = refuse_existing(models, overwrite=overwrite or models.is_dir())
    models.mkdir(exist_ok=True)
    assert answer.labels is not None
    checks: dict[int, dict[int, dict[str, Any] | None]] = {}
    for region in answer.regions:
        mask = answer.labels.mask(region.id)
        found = checks.setdefault(region.id, {})
        missing = []
        events = dock_candidates(volume, mask, region, structure_of=structure_of)
        for event in show.progress(events, f"region {region.id}: candidates docked"):
            found[event.candidate.rank] = None
            if event.docking is None:
                missing.append(event.candidate.entry)
                continue
            model = models / f"region{region.id}_{event.candidate.rank:02d}_{event.candidate.entry}.cif"
            write_structure(event.docking.structure, model, overwrite=overwrite)
            cc_mask, cc_box = round(event.docking.cc_mask, 4), round(event.docking.cc_box, 4)
            found[event.candidate.rank] = {"cc_mask": cc_mask, "cc_box": cc_box, "model": str(model)}
        if missing:
            show.note(f"region {region.id}: not docked, {structures} has no such residues: {', '.join(missing)}")
    return checks

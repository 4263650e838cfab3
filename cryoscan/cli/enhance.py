"""`cryoscan enhance`: sharpen a map of 4 to 8 Å, with or without a structure."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cryoscan.cli import options as o
from cryoscan.cli import show

if TYPE_CHECKING:
    from cryoscan.cli.inputs import Given
    from cryoscan.models.cryosamu import CryoSamu
    from cryoscan.models.structure_embedding import StructureEmbedder
    from cryoscan.volume import Volume

_Output = Annotated[
    Path, typer.Option("-o", "--output", metavar="FILE", help="The sharpened map: .mrc or .zarr.", show_default=False)
]
_Structure = Annotated[
    Path | None,
    typer.Option(
        "--structure",
        metavar="FILE",
        help="PDB or mmCIF of the protein, a relative or a prediction, fitted into the map.",
        show_default=False,
    ),
]
_Embedder = Annotated[
    str | None,
    typer.Option(
        "--embedder",
        metavar="NAME",
        help="How residues are told to the network: geometry, proteinmpnn or esm_if1. It must be the one that the "
        "network was trained with, which is the default.",
        show_default=False,
    ),
]
_EmbedderWeights = Annotated[
    Path | None,
    typer.Option(
        "--embedder-weights",
        metavar="FILE",
        help="Weights of ESM-IF1 as published; otherwise those that fair-esm has downloaded.",
        show_default=False,
    ),
]
_HalfMaps = Annotated[
    list[Path] | None,
    typer.Option(
        "--half-map", metavar="FILE", help="Give twice: both half-maps, to measure the resolution.", show_default=False
    ),
]
_Mask = Annotated[
    Path | None,
    typer.Option("--mask", metavar="FILE", help="Mask on the map's grid; outside is solvent.", show_default=False),
]
_Difference = Annotated[
    Path | None,
    typer.Option("--difference", metavar="FILE", help="Write what was changed: .mrc or .zarr.", show_default=False),
]
_Weights = Annotated[
    Path | None,
    typer.Option(
        "--weights", metavar="FILE", help="A network of one's own; the one that ships otherwise.", show_default=False
    ),
]


def enhance(
    path: o.VolumePath,
    output: _Output,
    structure: _Structure = None,
    unplaced: Annotated[
        bool, typer.Option("--unplaced", help="The structure is a relative that need not lie in the map.")
    ] = False,
    embedder: _Embedder = None,
    embedder_weights: _EmbedderWeights = None,
    half_map: _HalfMaps = None,
    mask: _Mask = None,
    difference: _Difference = None,
    voxel_size: o.VoxelSize = None,
    contrast: o.ContrastOption = o.Contrast.bright,
    resolution: o.Resolution = None,
    weights: _Weights = None,
    device: o.Device = None,
    overwrite: o.Overwrite = False,
    as_json: o.Json = False,
) -> None:
    """Sharpen a map of 4 to 8 Å; what the network adds may be wrong, so keep the original.

    Example: cryoscan enhance map.mrc -o sharp.mrc --difference added.mrc
    """
    from cryoscan.cli.inputs import open_given, open_mask
    from cryoscan.enhance import Enhancement, open_network
    from cryoscan.enhance import enhance as run
    from cryoscan.errors import ConfigError, refuse_existing
    from cryoscan.io import read_structure, write_volume
    from cryoscan.models.device import choose_device

    for target in (output, *([difference] if difference is not None else [])):
        refuse_existing(target, overwrite=overwrite)
    given = open_given(path, voxel_size=voxel_size, contrast=contrast)
    network = open_network(weights).to(choose_device(device))
    atoms = read_structure(structure) if structure is not None else None
    if atoms is None and (embedder, embedder_weights) != (None, None):
        raise ConfigError(
            "expected a structure to embed",
            got="none",
            hint="Give --structure FILE, or leave --embedder and --embedder-weights out.",
        )
    events = run(
        given.volume,
        network,
        structure=atoms,
        embedder=_embedder(network, embedder, embedder_weights) if atoms is not None else None,
        placed=not unplaced,
        half_maps=_half_maps(given, half_map),
        mask=open_mask(given, mask) if mask is not None else None,
        resolution=resolution,
    )
    found = show.to_the_end(events, "tiles")
    assert isinstance(found, Enhancement)
    warnings = [*given.warnings, *found.warnings]
    show.warn(warnings)
    write_volume(found.volume, output, overwrite=overwrite)
    if difference is not None:
        write_volume(found.difference, difference, overwrite=overwrite)
        show.note(f"what was changed is in {difference}")
    if as_json:
        show.print_json(_about(found, output, difference, warnings))
        return
    told = f"with what the structure {found.structure} tells" if found.structure else "from the density alone"
    show.line(f"{output}: sharpened {told}.")
    if found.structure:
        show.note("A map that was sharpened with a structure must not be used to judge that structure.")


def _embedder(network: "CryoSamu", name: str | None, weights: Path | None) -> "StructureEmbedder":
    """The embedder of structures; another one than the network's is refused before its weights are read."""
    from cryoscan.errors import MismatchError
    from cryoscan.models.structure_embedding import embedder_named

    wanted = network.config.structure
    if name not in (None, wanted) or (weights is not None and wanted != "esm_if1"):
        raise MismatchError(
            f"expected the embedder of structures that the network was trained with, '{wanted}'",
            got=f"'{name}'" if name not in (None, wanted) else f"weights of another one, {weights}",
            hint="Leave it out, or give a network that was trained with it (--weights).",
        )
    return embedder_named(wanted, weights=weights)


def _half_maps(given: "Given", paths: list[Path] | None) -> "tuple[Volume, Volume] | None":
    from cryoscan.cli.inputs import open_mask
    from cryoscan.errors import ConfigError

    if not paths:
        return None
    if len(paths) != 2:
        raise ConfigError(
            "expected both half-maps", got=f"{len(paths)}", hint="Give --half-map twice: one half, then the other."
        )
    return open_mask(given, paths[0]), open_mask(given, paths[1])


def _about(found: Any, output: Path, difference: Path | None, warnings: list[str]) -> dict[str, Any]:
    return {
        "output": str(output),
        "difference": None if difference is None else str(difference),
        "structure": found.structure or None,
        "resolution_A": None if found.resolution is None else round(found.resolution, 2),
        "resolution_from": found.measured_by,
        "voxel_size_A": found.volume.voxel_size,
        "origin_zyx_A": list(found.volume.origin),
        "shape_zyx": list(found.volume.shape),
        "warnings": warnings,
    }

"""`cryoscan simulate`: densities of which the answer is known."""

from pathlib import Path
from typing import Annotated

import typer

from cryoscan.cli import show
from cryoscan.cli.options import Json, Overwrite

app = typer.Typer(help="Make densities from structures.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Make densities from structures."""


@app.command("density")
def density(
    structure: Annotated[Path, typer.Argument(metavar="STRUCTURE", help="PDB or mmCIF file.", show_default=False)],
    output: Annotated[Path, typer.Option("-o", "--output", help="MRC or .zarr to write.", show_default=False)],
    resolution: Annotated[
        float, typer.Option("--resolution", metavar="Å", min=0.1, help="Of the density.", show_default=False)
    ],
    voxel_size: Annotated[
        float, typer.Option("--voxel-size", metavar="Å", min=0.01, help="Of the density.", show_default=False)
    ],
    chain: Annotated[str | None, typer.Option(help="Only this chain.", show_default=False)] = None,
    assembly: Annotated[
        str | None, typer.Option(help="This biological assembly, usually 1.", show_default=False)
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Turn a structure into the density it would have at a resolution, at the place of its atoms.

    Example: cryoscan simulate density 1abc.cif -o 1abc.mrc --resolution 6 --voxel-size 1.5
    """
    from cryoscan.errors import GeometryError
    from cryoscan.io import read_structure, write_volume
    from cryoscan.simulate import atoms_from_trace, is_trace
    from cryoscan.simulate import density as simulated

    atoms = read_structure(structure, assembly=assembly)
    if chain is not None:
        chains = sorted(set(atoms.chains.tolist()))
        if chain not in chains:
            raise GeometryError(f"expected a chain of {structure}", got=chain, hint=f"It has {', '.join(chains)}.")
        atoms = atoms.select(atoms.chains == chain)
    volume = simulated(
        atoms_from_trace(atoms) if is_trace(atoms) else atoms, voxel_size=voxel_size, resolution=resolution
    )
    write_volume(volume, output, overwrite=overwrite)
    z, y, x = volume.shape
    about = {"output": str(output), "shape_zyx": [z, y, x], "voxel_size_A": voxel_size, "resolution_A": resolution}
    if as_json:
        show.print_json({**about, "origin_xyz_A": list(reversed(volume.origin)), "residues": atoms.n_residues})
    else:
        show.line(f"{output}: {atoms.n_residues} residues at {resolution:g} Å in {z} × {y} × {x} voxels (z, y, x)")

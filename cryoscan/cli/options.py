"""Options that several commands share: the same word means the same everywhere."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Contrast(StrEnum):
    """What protein is in a file."""

    bright = "bright"
    dark = "dark"


VolumePath = Annotated[Path, typer.Argument(metavar="VOLUME", help="MRC file or OME-Zarr folder.", show_default=False)]
VoxelSize = Annotated[
    float | None,
    typer.Option(
        "--voxel-size", metavar="Å", min=0.01, help="In place of the file's own voxel size.", show_default=False
    ),
]
ContrastOption = Annotated[
    Contrast, typer.Option("--contrast", help="What protein is in the file; raw tomograms are mostly dark.")
]
Resolution = Annotated[
    float | None,
    typer.Option(
        "--resolution", metavar="Å", min=0.1, help="Resolution of the volume, if it is known.", show_default=False
    ),
]
DateDBPath = Annotated[
    Path | None,
    typer.Option("--datedb", metavar="DB", help="DateDB folder; the one that ships otherwise.", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist.")]
Threshold = Annotated[
    float | None,
    typer.Option(
        "--threshold", help="Density from which on the map counts; found from the map otherwise.", show_default=False
    ),
]
Step = Annotated[
    float | None,
    typer.Option(
        "--step",
        min=0.01,
        help="Grouping: voxels of Gaussian width added per step; as many as 1 Å otherwise.",
        show_default=False,
    ),
]
Steps = Annotated[int, typer.Option("--steps", min=0, help="Grouping: number of smoothing steps.")]
Top = Annotated[int, typer.Option("--top", min=1, help="Number of candidates per answer.")]

EnhanceScan = Annotated[
    bool, typer.Option("--enhance", help="Sharpen the volume first, and say which names that changed.")
]
Enhancer = Annotated[
    Path | None,
    typer.Option(
        "--enhancer", metavar="FILE", help="Network to sharpen with; the one that ships otherwise.", show_default=False
    ),
]

Workers = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="Processes on this machine.", show_default=False),
]
Scheduler = Annotated[
    str | None,
    typer.Option("--scheduler", metavar="tcp://…", help="Use the workers of a dask scheduler.", show_default=False),
]
ClusterFile = Annotated[
    Path | None,
    typer.Option("--cluster", metavar="YAML", help="Submit workers as jobs (Slurm …).", show_default=False),
]
Device = Annotated[
    str | None,
    typer.Option("--device", metavar="NAME", help="cpu, cuda or cuda:N; a GPU if there is one.", show_default=False),
]

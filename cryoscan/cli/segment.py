"""`cryoscan segment`: which voxels of a map belong together."""

from pathlib import Path
from typing import Annotated

import typer

from cryoscan.cli import show
from cryoscan.cli.options import (
    Contrast,
    ContrastOption,
    Json,
    Overwrite,
    Step,
    Steps,
    Threshold,
    VolumePath,
    VoxelSize,
)


def segment(
    path: VolumePath,
    output: Annotated[Path, typer.Option("-o", "--output", help="Labels to write: .mrc or .zarr.", show_default=False)],
    threshold: Threshold = None,
    step: Step = None,
    steps: Steps = 12,
    level: Annotated[int, typer.Option(help="Which grouping to write: 0 is the watershed, -1 the last.")] = -1,
    voxel_size: VoxelSize = None,
    contrast: ContrastOption = Contrast.bright,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Segment a map by watershed and scale-space grouping (Segger); names nothing.

    Example: cryoscan segment map.mrc -o regions.mrc --steps 3
    """
    from skimage.segmentation import relabel_sequential

    from cryoscan.cli.inputs import open_given
    from cryoscan.errors import ConfigError, refuse_existing
    from cryoscan.io import require_usable, write_labels
    from cryoscan.labels import LabelMap
    from cryoscan.segment import contour_level, grouping_step, segment_map
    from cryoscan.volume import Volume

    refuse_existing(output, overwrite=overwrite)
    if not -steps - 1 <= level <= steps:
        raise ConfigError(f"expected a --level from 0 to {steps}, or -1", got=str(level), hint="Or give more --steps.")
    given = open_given(path, voxel_size=voxel_size, contrast=contrast)
    show.warn(given.warnings)
    data = require_usable(given.volume.load(), path)
    contour = contour_level(data) if threshold is None else threshold
    step = grouping_step(given.volume.voxel_size) if step is None else step
    tree = segment_map(data, threshold=contour, step=step, steps=steps)
    labels, _, _ = relabel_sequential(tree.labels_at(level))
    found = LabelMap(Volume(labels, given.volume.voxel_size, given.volume.origin), {})
    write_labels(found, output, overwrite=overwrite)
    about = {
        "output": str(output),
        "regions": int(labels.max()),
        "threshold": float(contour),
        "warnings": given.warnings,
    }
    if as_json:
        show.print_json(about)
    else:
        show.line(f"{output}: {about['regions']} regions above {contour:.4g}")

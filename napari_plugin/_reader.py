"""What napari can open, and whether a path holds a density, labels, or both."""

from collections.abc import Callable, Sequence
from pathlib import Path

from napari_plugin._layers import LayerData, label_layer, volume_layer


def get_reader(path: str | Sequence[str]) -> Callable[[str], list[LayerData]] | None:
    """Return the function that reads `path`, or None if napari should ask another plug-in.

    A list of paths means "one stack of these" in napari, which volumes in Å are not.
    """
    if not isinstance(path, str):
        return None
    from cryoscan import CryoscanError
    from cryoscan.io import describe

    try:
        describe(path)
    except CryoscanError:
        return None  # somebody else's Zarr, or a damaged file
    return read


def read(path: str) -> list[LayerData]:
    """Read a density or a label map, and the label maps inside an OME-Zarr image.

    Integers are labels where the file declares them so or says what they mean, else a density.

    Raises
    ------
    CryoscanError
        If the voxel size is unset or not the same on every axis, or the file is damaged.
    """
    from cryoscan.io import describe, open_labels, open_volume

    place, name = Path(path), Path(path).name.split(".")[0]
    info = describe(place)
    if "int" in info.dtype:
        declared = "labels" in info.format
        if declared or not place.is_dir():
            labels = open_labels(place)
            if declared or labels.classes:
                return [label_layer(labels, name=name)]
    inside = _label_maps_inside(place)
    return [
        volume_layer(open_volume(place), name=name),
        *(label_layer(open_labels(folder), name=folder.name) for folder in inside),
    ]


def _label_maps_inside(place: Path) -> list[Path]:
    if not place.is_dir():
        return []
    from cryoscan.io.omezarr import labels_inside

    return [place / "labels" / name for name in labels_inside(place)]

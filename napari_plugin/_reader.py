"""What napari can open, and whether a path holds a density, labels, both, or a scan."""

from collections.abc import Callable, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_plugin._layers import LayerData, hits_layer, label_layer, looked_up_layer, score_layer, volume_layer

if TYPE_CHECKING:
    from cryoscan.io import VolumeFile
    from cryoscan.redrawn import Reviewed
    from cryoscan.scan import ScanResult


UNSAFE = "diamond"
"""Symbol of a hit whose label sharpening changed."""


def get_reader(path: str | Sequence[str]) -> Callable[[str], list[LayerData]] | None:
    """Return the function that reads `path`, or None if napari should ask another plug-in.

    A list of paths means "one stack of these" in napari, which volumes in Å are not.
    """
    if not isinstance(path, str):
        return None
    from cryoscan import CryoscanError
    from cryoscan.io import describe

    if _is_scan(Path(path)):
        return read_scan
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
    from cryoscan.io import VolumeFile, describe, open_labels, open_levels

    place, name = Path(path), Path(path).name.split(".")[0]
    info = describe(place)
    if "int" in info.dtype:
        declared = "labels" in info.format
        if declared or not place.is_dir():
            labels = open_labels(place)
            if declared or labels.classes:
                return [label_layer(labels, name=name, coarser=open_levels(place)[1:] if declared else ())]
    inside = _label_maps_inside(place)
    return [
        _with_file(volume_layer, VolumeFile(place), name),
        *(label_layer(open_labels(folder), name=folder.name) for folder in inside),
    ]


def read_scan(path: str) -> list[LayerData]:
    """Read a scan: its volume, scores, domains and hits; of an unfinished one what there is.

    Raises
    ------
    CryoscanError
        If the folder is no scan, or one of another version of cryoscan.
    """
    from cryoscan.scan import open_scan

    return list(scan_layers(open_scan(Path(path))).values())


def scan_layers(
    result: "ScanResult", now: "Reviewed | None" = None, *, besides: Set[str] = frozenset()
) -> dict[str, LayerData]:
    """The layers of a scan by what they are: volume, score, margin, places and hits, as far as they exist.

    Parameters
    ----------
    result : ScanResult
    now : Reviewed, optional
        What people did to it, where that is known already.
    besides : set of str
        Those that are there already, and need not be described: to find the contrast of a volume, it is read.
    """
    from cryoscan.io import VolumeFile
    from cryoscan.redrawn import reviewed

    name = result.path.stem
    layers: dict[str, LayerData] = {}
    source = result.manifest["source"]
    if "volume" not in besides and source is not None and missing_source(result) is None:
        layers["volume"] = _with_file(volume_layer, VolumeFile.from_json(source), name)
    limits = {"score": (0.4, 1.0), "margin": (0.0, 0.2)}
    for kind, bounds in limits.items():
        if kind in besides:
            continue
        lattice = getattr(result, kind)
        visible = kind == "score" and not result.is_complete
        layers[kind] = _of_scan(
            result, kind, score_layer(lattice, name=f"{name} {kind}", limits=bounds, visible=visible)
        )
    if not result.is_complete:
        return layers
    now = now or reviewed(result)
    painted = now.numbers is not None or now.lattice is not None
    drawn = None if now.redrawing is None else now.redrawing.path.name
    if "places" not in besides:
        layers["places"] = _of_scan(result, "places", _places_layer(now), numbers=painted, drawn=drawn)
    if "hits" not in besides:
        layers["hits"] = _of_scan(result, "hits", _hits_layer(now), drawn=drawn)
    return layers


def missing_source(result: "ScanResult") -> str | None:
    """A sentence if the volume of a scan is not where it was."""
    source = result.manifest["source"]
    if source is None or Path(source["path"]).exists():
        return None
    return (
        f"The volume of {result.path.name} is not where it was ({source['path']}), so its density cannot be shown. "
        "Open it from where it is now."
    )


def _places_layer(now: "Reviewed") -> LayerData:
    """Numbers of the places, where they are painted, in the colours of their types; else the labels."""
    from cryoscan import LabelClass, LabelMap
    from cryoscan.io import open_levels
    from cryoscan.lattice import POINTS

    path, numbers = now.result.path, now.numbers
    name = f"{path.stem} domains"
    if now.lattice is not None:
        table = now.lattice.table(now.found, now.places)
        labels = LabelMap(now.lattice.numbers, now.lattice.classes(now.result, now.places))
        return looked_up_layer(labels, table, name=name, coarser=open_levels(path / POINTS)[1:])
    if numbers is None:
        return label_layer(now.result.labels(), name=name, coarser=open_levels(path / "labels.zarr")[1:])
    hits = now.places.hits
    classes = {
        place + 1: LabelClass(hits.names[place], hits.types[place], hits.schemes[place])
        for place in np.flatnonzero(now.places.kept).tolist()
    }
    coarser = open_levels(path / "found.zarr" if now.redrawing is None else now.redrawing.path)[1:]
    data, settings, kind = label_layer(LabelMap(numbers, classes), name=name, coarser=coarser)
    if "colormap" in settings:
        settings["colormap"][None] = (0.0, 0.0, 0.0, 0.0)  # places without a name
    return data, {**settings, "opacity": 0.7}, kind


def _hits_layer(now: "Reviewed") -> LayerData:
    """All places as points; shown are those that are hits."""
    data, settings, kind = hits_layer(now.found.hits, name=f"{now.result.path.stem} hits", diameter=12.0)
    settings |= {"border_width": 0.1, "shown": now.places.kept}
    if now.found.changed is not None:
        settings["symbol"] = np.where(now.found.changed, UNSAFE, "disc")
        settings["features"] = settings["features"].assign(
            without_sharpening=["" if plain is None else f"{plain[1]} {plain[2]}" for plain in now.found.plain or ()],
            changed_by_sharpening=now.found.changed,
        )
    return data, settings, kind


def _with_file(layer: Any, file: "VolumeFile", name: str) -> LayerData:
    """An image layer that knows its file, so that other processes can open it."""
    from cryoscan.io import open_levels, planes

    finest, *coarser = open_levels(file.path, voxel_size=file.voxel_size)
    if file.z_range is not None:
        finest, coarser = planes(finest, file.z_range), []
    data, settings, kind = layer(finest, name=name, coarser=coarser)
    return data, {**settings, "metadata": {"cryoscan": {"file": file.to_json()}}}, kind


def _of_scan(result: "ScanResult", role: str, layer: LayerData, **more: Any) -> LayerData:
    data, settings, kind = layer
    about = {"scan": str(result.path), "role": role, **more}
    return data, {**settings, "metadata": {"cryoscan": about}}, kind


def _is_scan(place: Path) -> bool:
    return place.suffix == ".scan" and (place / "manifest.json").is_file()


def _label_maps_inside(place: Path) -> list[Path]:
    if not place.is_dir():
        return []
    from cryoscan.io.omezarr import labels_inside

    return [place / "labels" / name for name in labels_inside(place)]

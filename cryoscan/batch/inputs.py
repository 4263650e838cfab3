"""Which volumes are meant: by files, patterns, folders, lists and projects, each once and with a name of its own."""

import csv
import glob
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

from cryoscan.batch.config import BatchConfig, VolumeSettings, fill_words, words_of
from cryoscan.errors import ConfigError, FormatError, MissingFileError, require_file
from cryoscan.io import is_project, read_project
from cryoscan.units import Angstrom

_VOLUMES = (".mrc", ".map", ".rec", ".ccp4")  # tilt series (.st, .ali) are taken only by name
_LISTS = (".yaml", ".yml", ".csv", ".tsv", ".txt", ".lst")


@dataclass(frozen=True, slots=True)
class BatchVolume:
    """One volume to scan, as it was found.

    Parameters
    ----------
    path : Path
    words : dict
        What `naming` may be filled with.
    settings : VolumeSettings
        Of this volume, those of patterns and of the whole batch included.
    name : str
        Unique in the batch.
    folder_voxel_size : Angstrom, optional
        As a project's folder says.
    missing : str
        Why there is no such volume; empty if there may be one.
    """

    path: Path
    words: dict[str, str]
    settings: VolumeSettings
    name: str = ""
    folder_voxel_size: Angstrom | None = None
    missing: str = ""


def find_volumes(inputs: Sequence[str | Path], *, config: BatchConfig) -> list[BatchVolume]:
    """Find volumes, in the order of the inputs, within each sorted by name.

    Parameters
    ----------
    inputs : sequence of str or Path
        Volumes; patterns with ``*``, ``?``, ``**``; folders of volumes; lists (text with one
        path a line; YAML or CSV with settings per volume); copick's configuration or a
        project's folder; a folder of the CryoET Data Portal. In a list, paths are relative to it.
    config : BatchConfig

    Raises
    ------
    MissingFileError
        If nothing is found for an input.
    ConfigError
        If two volumes would have one name, or a pattern of the settings fits none.
    FormatError
        If a list cannot be read.
    """
    found = [volume for text in inputs for volume in _expand(str(text), Path(), VolumeSettings(), config)]
    if not found:
        raise MissingFileError("expected volumes", got="no input", hint="Give files, folders, patterns or a list.")
    unused = [pattern for pattern in config.overrides if not any(_fits(volume, pattern) for volume in found)]
    if unused:
        raise ConfigError(
            "expected every pattern of 'overrides' to fit a volume",
            got=", ".join(f"'{pattern}'" for pattern in unused),
            hint="A pattern is compared with path, file name and run: mend it, or take it out.",
        )
    return _named([_with_settings(volume, config) for volume in found], config)


def _expand(text: str, base: Path, settings: VolumeSettings, config: BatchConfig) -> Iterator[BatchVolume]:
    """The volumes that one word of the user's stands for; `base` is the folder of the list it stands in."""
    path = base / Path(text).expanduser()
    if any(letter in text for letter in "*?[") and not path.exists():
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        matches = [match for match in matches if not _is_inside_a_store(match)]
        if not matches:
            raise MissingFileError(
                f"expected volumes that fit '{text}'", got=f"none in {base.resolve()}", hint="Check the pattern."
            )
        for match in matches:
            yield from _at(match, settings, config)
    else:
        yield from _at(path, settings, config)


def _at(path: Path, settings: VolumeSettings, config: BatchConfig) -> Iterator[BatchVolume]:
    """The volumes of a file or folder."""
    suffix = path.suffix.lower()
    if suffix in (*_LISTS, ".json") and settings.model_fields_set:
        raise FormatError("expected volumes in a list", got=str(path), hint="Give several lists one after the other.")
    if suffix in _LISTS and not path.is_dir():
        yield from _from_list(require_file(path, what="a list of volumes"), config)
    elif suffix == ".json" or (path.is_dir() and not _is_store(path) and is_project(path)):
        yield from _from_project(path, settings, config)
    elif path.is_dir() and not _is_store(path):
        yield from _from_folder(path, settings)
    else:  # what is not there or no volume is found when it is opened, and does not stop the others
        yield BatchVolume(path, words_of(path), settings)


def _from_folder(folder: Path, settings: VolumeSettings) -> Iterator[BatchVolume]:
    paths = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".") and _is_volume(path)]
    if not paths:
        raise MissingFileError(
            f"expected volumes ({', '.join(_VOLUMES)}, .zarr) in {folder}",
            got="none",
            hint=f"For folders within folders give a pattern: '{folder}/**/*.mrc'.",
        )
    for path in paths:
        yield BatchVolume(path, words_of(path), settings)


def _from_project(path: Path, settings: VolumeSettings, config: BatchConfig) -> Iterator[BatchVolume]:
    project = read_project(path)
    chosen, without = project.choose(voxel_spacing=config.voxel_spacing, tomogram=config.tomogram)
    for found in chosen:
        words = words_of(found.path, dataset=found.dataset, run=found.run, tomogram=found.tomogram)
        yield BatchVolume(found.path, words, settings, folder_voxel_size=found.voxel_size)
    for dataset, run in without:
        words = words_of(project.root, dataset=dataset, run=run, tomogram="none")
        yield BatchVolume(project.root / run, words, settings, missing="the run has no tomogram that was asked for")


def _from_list(path: Path, config: BatchConfig) -> Iterator[BatchVolume]:
    rows = list(_rows(path))
    if not rows:
        raise FormatError(f"expected volumes in {path}", got="none", hint="Write one path per line.")
    for where, values in rows:
        place = values.pop("path", None)
        if not isinstance(place, str):
            raise FormatError(f"expected a path in {path}, {where}", got=repr(place), hint="Each volume needs one.")
        try:
            if values.get("mask"):
                values["mask"] = str(path.parent / Path(str(values["mask"])).expanduser())
            yield from _expand(place, path.parent, VolumeSettings.build(**values), config)
        except ConfigError as error:
            raise ConfigError(f"{error.expected} in {path}, {where}", got=error.got, hint=error.hint) from error


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place in the list and values of each volume; what is empty is left out."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() in (".yaml", ".yml"):
            yield from _yaml_rows(yaml.safe_load(text), path)
            return
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise FormatError(
            f"expected a list of volumes in {path}", got=str(error).replace("\n", " "), hint="Mend the file's syntax."
        ) from error
    lines = [(f"line {n}", line) for n, line in enumerate(text.splitlines(), start=1)]
    lines = [(where, line) for where, line in lines if line.strip() and not line.lstrip().startswith("#")]
    if path.suffix.lower() in (".txt", ".lst"):
        yield from ((where, {"path": line.strip()}) for where, line in lines)
        return
    if not lines:
        return
    delimiter = "\t" if "\t" in lines[0][1] else ","
    header, *cells = ([cell.strip() for cell in row] for row in csv.reader([t for _, t in lines], delimiter=delimiter))
    if "path" not in header:
        raise FormatError(
            f"expected a column 'path' in {path}", got=f"columns {', '.join(header)}", hint="Name it in the first line."
        )
    for (where, _), row in zip(lines[1:], cells, strict=True):
        if len(row) != len(header):
            raise FormatError(f"expected {len(header)} values in {path}, {where}", got=str(len(row)), hint="Mend it.")
        yield where, {key: cell for key, cell in zip(header, row, strict=True) if cell}


def _yaml_rows(values: Any, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if not isinstance(values, list):
        raise FormatError(
            f"expected a list of volumes in {path}",
            got="settings" if isinstance(values, dict) else type(values).__name__,
            hint="Write '- path: a.mrc' for each volume; settings of the batch are given with --config.",
        )
    for number, value in enumerate(values, start=1):
        yield f"entry {number}", dict(value) if isinstance(value, dict) else {"path": value}


def _with_settings(volume: BatchVolume, config: BatchConfig) -> BatchVolume:
    settings = VolumeSettings(contrast=config.contrast)
    if config.voxel_size is not None:
        settings = settings.replaced_by(VolumeSettings(voxel_size=config.voxel_size))
    for pattern, override in config.overrides.items():
        if _fits(volume, pattern):
            settings = settings.replaced_by(override)
    settings = settings.replaced_by(volume.settings)
    if settings.mask is not None:
        filled = fill_words(settings.mask, volume.words, what="the path of a mask")
        settings = settings.replaced_by(VolumeSettings(mask=filled))
    return replace(volume, settings=settings)


def _fits(volume: BatchVolume, pattern: str) -> bool:
    words = (str(volume.path), volume.path.name, volume.words["run"])
    return any(fnmatch(word, pattern) for word in words)


def _named(volumes: list[BatchVolume], config: BatchConfig) -> list[BatchVolume]:
    """Volumes with their names; the same volume with the same settings is taken once."""
    named: dict[str, BatchVolume] = {}
    for volume in volumes:
        plain = re.sub(r"[^\w.+-]+", "_", fill_words(config.naming, volume.words, what="the naming of scans"))
        name = volume.settings.name or plain
        before = named.setdefault(name.casefold(), replace(volume, name=name))  # some disks know no capitals
        if before.path.resolve() == volume.path.resolve() and before.settings == volume.settings:
            continue
        raise ConfigError(
            "expected a name of its own for every volume",
            got=f"'{name}' for {before.path} and {volume.path}"
            + (" with other settings" if before.path.resolve() == volume.path.resolve() else ""),
            hint="Choose another --naming, e.g. '{folder}_{stem}' or '{dataset}_{run}', or give names in a list.",
        )
    return list(named.values())


def _is_volume(path: Path) -> bool:
    name = path.name.lower().removesuffix(".gz").removesuffix(".bz2")
    return name.endswith(".zarr") or (path.is_file() and name.endswith(_VOLUMES))


def _is_store(path: Path) -> bool:
    return path.suffix.lower() == ".zarr" or any((path / name).is_file() for name in ("zarr.json", ".zattrs"))


def _is_inside_a_store(path: Path) -> bool:
    return any(parent.suffix in (".zarr", ".scan") for parent in path.parents)

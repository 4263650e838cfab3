"""Where projects keep their tomograms: the folders of copick and of the CryoET Data Portal."""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from cryoscan.errors import ConfigError, FormatError, MissingFileError, require_file
from cryoscan.units import Angstrom

_SPACING = re.compile(r"VoxelSpacing(\d+(?:\.\d+)?)")
_SAME_SPACING = 0.01
_LISTED = 8  # names in a message


@dataclass(frozen=True, slots=True)
class ProjectTomogram:
    """One tomogram of a project.

    Parameters
    ----------
    path : Path
        MRC file or OME-Zarr folder.
    dataset, run : str
        Names of the folders above it; copick has no data sets: there it is the project's folder.
    tomogram : str
        copick's type of tomogram (``wbp``, ``denoised``), or the portal's number.
    voxel_size : Angstrom
        As the folder ``VoxelSpacing…`` says, which is rounded to 0.001 Å.
    """

    path: Path
    dataset: str
    run: str
    tomogram: str
    voxel_size: Angstrom


@dataclass(frozen=True, slots=True)
class Project:
    """What a project's folders hold.

    Parameters
    ----------
    root : Path
    runs : tuple of (dataset, run)
        All, with and without tomograms.
    tomograms : tuple of ProjectTomogram
    """

    root: Path
    runs: tuple[tuple[str, str], ...]
    tomograms: tuple[ProjectTomogram, ...]

    def choose(
        self, *, voxel_spacing: Angstrom | None = None, tomogram: str | None = None
    ) -> tuple[list[ProjectTomogram], list[tuple[str, str]]]:
        """One tomogram per run, and the runs that have none that was asked for.

        Parameters
        ----------
        voxel_spacing : Angstrom, optional
            To 1 %; the closest is taken.
        tomogram : str, optional
            Name or pattern such as ``den*``.

        Raises
        ------
        ConfigError
            If a run has several, or none of them fits in any run.
        """
        fitting: dict[tuple[str, str], list[ProjectTomogram]] = defaultdict(list)
        for found in self.tomograms:
            if tomogram is None or fnmatch(found.tomogram, tomogram) or fnmatch(_stem(found.path), tomogram):
                fitting[found.dataset, found.run].append(found)
        chosen = {run: _closest(found, voxel_spacing) for run, found in fitting.items()}
        for (_, run), several in chosen.items():
            if len(several) > 1:
                raise ConfigError(
                    "expected one tomogram per run",
                    got=f"{_described(several)} in run {run} of {self.root}",
                    hint="Choose one with --voxel-spacing and --tomogram (voxel_spacing and tomogram in the settings).",
                )
        if not any(chosen.values()):
            raise ConfigError(
                f"expected a tomogram {_wish(voxel_spacing, tomogram)} in {self.root}",
                got=_described(self.tomograms) or f"{len(self.runs)} runs without tomograms",
                hint="Choose one that is there, or check the folder.",
            )
        return [found[0] for found in chosen.values() if found], [run for run in self.runs if not chosen.get(run)]


def is_project(folder: Path) -> bool:
    """Whether a folder is laid out like a copick project, or like a part of the CryoET Data Portal."""
    return (folder / "ExperimentRuns").is_dir() or any(_reconstructions(folder))


def read_project(path: Path) -> Project:
    """List the tomograms of a project.

    Parameters
    ----------
    path : Path
        copick's configuration (JSON) or the folder that holds ``ExperimentRuns``; or a
        folder of the portal: all data sets, one, or one run.

    Raises
    ------
    MissingFileError, FormatError
        If there is no such file or folder, or it is no project on this machine's disks.
    """
    if path.is_dir():
        if (path / "ExperimentRuns").is_dir():
            return _copick(path, [path])
        return _portal(path)
    return _copick(path, _copick_roots(require_file(path, what="copick's configuration or a project's folder")))


def _copick_roots(path: Path) -> list[Path]:
    """The folders of a copick configuration; the overlay comes first, because it wins over the static one."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        places = [values["overlay_root"], values.get("static_root")]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(
            f"expected copick's configuration in {path}",
            got="something that is no JSON" if isinstance(error, ValueError) else "JSON without 'overlay_root'",
            hint="Give the JSON file with which copick opens the project, or the project's folder.",
        ) from error
    roots = []
    for place in places:
        if place is None:
            continue
        scheme, _, rest = str(place).rpartition("://")
        if scheme not in ("", "local", "file"):
            raise FormatError(
                "expected copick's roots on this machine's disks",
                got=f"'{place}' in {path}",
                hint="Mount or download the project first, and give its folder.",
            )
        root = Path(rest).expanduser()
        if root not in roots:
            roots.append(root)
    if not any(root.is_dir() for root in roots):
        raise MissingFileError(
            f"expected the folders that {path} names",
            got=f"no such folder: {', '.join(map(str, roots))}",
            hint="Mend overlay_root and static_root, or mount the disk.",
        )
    return roots


def _copick(path: Path, roots: list[Path]) -> Project:
    dataset = roots[0].resolve().name
    found: dict[tuple[str, float, str], ProjectTomogram] = {}
    runs = set()
    for root in roots:
        for run in _folders(root / "ExperimentRuns"):
            runs.add((dataset, run.name))
            for spacing, size in _spacings(run):
                for store in _folders(spacing, "*.zarr"):
                    type_ = store.name.removesuffix(".zarr")
                    if "features" not in type_:  # copick's own rule: such stores hold features of a tomogram
                        tomogram = ProjectTomogram(store, dataset, run.name, type_, size)
                        found.setdefault((run.name, size, type_), tomogram)
    return Project(path, tuple(sorted(runs)), tuple(found[key] for key in sorted(found)))


def _portal(folder: Path) -> Project:
    runs, tomograms = [], []
    for place in _reconstructions(folder):
        run = place.parent.resolve()
        key = (run.parent.name, run.name)
        runs.append(key)
        for spacing, size in _spacings(place):
            for number in _folders(spacing / "Tomograms"):
                stores = _folders(number, "*.zarr")
                beside = {store.name.removesuffix(".zarr") for store in stores}  # the same values once more as MRC
                files = [file for file in sorted(number.glob("*.mrc")) if file.stem not in beside]
                tomograms += [ProjectTomogram(path, *key, number.name, size) for path in [*stores, *files]]
    return Project(folder, tuple(runs), tuple(tomograms))


def _reconstructions(folder: Path) -> Iterator[Path]:
    """``Reconstructions`` folders of a run, a data set or several data sets."""
    for depth in ("", "*/", "*/*/"):
        yield from (path for path in sorted(folder.glob(f"{depth}Reconstructions")) if path.is_dir())


def _spacings(folder: Path) -> list[tuple[Path, Angstrom]]:
    matched = [(path, _SPACING.fullmatch(path.name)) for path in _folders(folder)]
    return [(path, float(match[1])) for path, match in matched if match]


def _folders(folder: Path, pattern: str = "*") -> list[Path]:
    return [path for path in sorted(folder.glob(pattern)) if path.is_dir() and not path.name.startswith(".")]


def _closest(found: list[ProjectTomogram], voxel_spacing: Angstrom | None) -> list[ProjectTomogram]:
    if voxel_spacing is None:
        return found
    distance = {f.voxel_size: abs(f.voxel_size / voxel_spacing - 1) for f in found}
    best = min(distance.values())
    return [f for f in found if distance[f.voxel_size] == best and best <= _SAME_SPACING]


def _wish(voxel_spacing: Angstrom | None, tomogram: str | None) -> str:
    parts = [f"'{tomogram}'"] if tomogram is not None else []
    return " ".join([*parts, *([f"of {voxel_spacing:g} Å voxels"] if voxel_spacing is not None else [])])


def _described(tomograms: Iterable[ProjectTomogram]) -> str:
    names = sorted({f"{t.tomogram} at {t.voxel_size:g} Å" for t in tomograms})
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _stem(path: Path) -> str:
    return path.name.removesuffix(".zarr").removesuffix(".mrc")

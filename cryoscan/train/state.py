"""What a run keeps on disk while it goes on, and how it comes back: checkpoint and log."""

import csv
import json
import os
import zipfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cryoscan.errors import FormatError, MismatchError
from cryoscan.train.objectives import Numbers

CHECKPOINT, CURVES = "checkpoint.npz", "curves.csv"
_VERSION = 1


def save_state(
    path: Path,
    pupil: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Mapping[str, Tensor],
    settings: Mapping[str, Any],
    *,
    step: int,
) -> None:
    """Write weights, their average and the optimizer's memory to one .npz file, beside, then renamed."""
    arrays = {f"weights/{name}": tensor for name, tensor in pupil.state_dict().items()}
    arrays |= {f"average/{name}": tensor for name, tensor in average.items()}
    for index, memory in optimizer.state_dict()["state"].items():
        arrays |= {f"optimizer/{index}/{name}": torch.as_tensor(value) for name, value in memory.items()}
    header = {"version": _VERSION, "step": step, "settings": dict(settings), "names": list(average)}
    beside = path.with_name(f".{path.name}.part")
    with beside.open("wb") as stream:
        found = {name: tensor.detach().cpu().numpy() for name, tensor in arrays.items()}
        np.savez(stream, allow_pickle=False, header=np.array(json.dumps(header)), **found)
        stream.flush()
        os.fsync(stream.fileno())
    beside.replace(path)


def resume_state(
    path: Path,
    pupil: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: dict[str, Tensor],
    settings: Mapping[str, Any],
) -> int:
    """Put everything as it was at a checkpoint, if there is one; returns the number of steps done."""
    if not path.exists():
        return 0
    header, arrays = _read(path)
    before = header["settings"]
    if before != settings:
        changed = [name for name in settings if settings[name] != before.get(name)]
        raise MismatchError(
            f"expected the settings of the run in {path.parent}",
            got=", ".join(f"{name} {settings[name]!r} instead of {before.get(name)!r}" for name in changed),
            hint="Change them back, or train in another folder.",
        )
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    _fill(pupil, {name: tensors[f"weights/{name}"] for name in header["names"]})
    for name in average:
        average[name].copy_(tensors[f"average/{name}"])
    state: dict[int, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        if name.startswith("optimizer/"):
            _, index, key = name.split("/")
            state[int(index)][key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": dict(state)})
    return int(header["step"])


def averaged(folder: Path | str, pupil: nn.Module) -> int:
    """Give a pupil the averaged weights of a run's checkpoint; returns the step."""
    header, arrays = _read(Path(folder) / CHECKPOINT)
    _fill(pupil, {name: torch.from_numpy(arrays[f"average/{name}"]) for name in header["names"]})
    pupil.eval()
    return int(header["step"])


def log_row(path: Path, step: int, row: Numbers) -> None:
    """Append numbers to the log, one a line: step, name, value."""
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as stream:
        if new:
            stream.write("step,name,value\n")
        stream.writelines(f"{step},{name},{value:.6g}\n" for name, value in row.items())


def cut_log(path: Path, step: int) -> None:
    """Forget rows after the checkpoint: their steps are done again."""
    if path.exists():
        head, *rows = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [row for row in rows if row.endswith("\n") and int(row.split(",")[0]) <= step]
        path.write_text(head + "".join(kept), encoding="utf-8")


def read_curves(path: Path | str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name of each logged number → steps and values."""
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    with Path(path).open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            found[row["name"]].append((float(row["step"]), float(row["value"])))
    return {name: (np.array(points)[:, 0], np.array(points)[:, 1]) for name, points in found.items()}


# ---------------------------------------------------------------- private


def _read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            arrays = dict(archive)
        header = json.loads(str(arrays.pop("header")))
        if header["version"] != _VERSION:
            raise ValueError(f"version {header['version']}")
    except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise FormatError(
            f"expected a training checkpoint, version {_VERSION}: {path}",
            got=str(error) or type(error).__name__,
            hint="The file is missing, damaged or of another version; start the run in a new folder.",
        ) from error
    return header, arrays


def _fill(pupil: nn.Module, tensors: dict[str, Tensor]) -> None:
    mine = {name: tuple(tensor.shape) for name, tensor in pupil.state_dict().items()}
    theirs = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if mine != theirs:
        odd = sorted(name for name in {*mine, *theirs} if mine.get(name) != theirs.get(name))
        raise MismatchError(
            "expected the checkpoint of the same pupil",
            got=f"{len(odd)} tensors that differ, e.g. '{odd[0]}'",
            hint="The tower's sizes or the library changed; train in another folder.",
        )
    pupil.load_state_dict(tensors)

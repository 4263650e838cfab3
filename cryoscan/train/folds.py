"""The structures that the AtomTower learns from: the residues of every anchor, in one file."""

import json
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from cryoscan.errors import FormatError, require_file
from cryoscan.io import StructureStore
from cryoscan.models.invariant_points import Frames
from cryoscan.models.residues import Residues, residues_of
from cryoscan.provenance import fingerprint_arrays
from cryoscan.train.library import Anchor, Split, anchor_of
from cryoscan.units import Angstrom

_FORMAT = "cryoscan fold library"
_VERSION = 1
_UNIT = 32767  # steps of a direction cosine
_STEP: Angstrom = 0.01  # of positions: 16 bits reach 327 Å from the middle of a domain
_ARRAYS = ("sizes", "rotations", "origins", "torsions", "flags", "amino_acids", "chains", "places")


@dataclass(frozen=True, slots=True, eq=False)
class FoldLibrary:
    """Anchors, and each one's residues as the AtomTower sees them.

    Parameters
    ----------
    anchors : tuple of Anchor
    residues : tuple of Residues
        Of each anchor.
    """

    anchors: tuple[Anchor, ...]
    residues: tuple[Residues, ...]

    @classmethod
    def of_folder(cls, folder: Path | str, anchors: Sequence[Anchor]) -> Self:
        """Read the structures of anchors from a data folder.

        Parameters
        ----------
        folder : Path
            With `structures/`.
        anchors : sequence of Anchor
            E.g. those of an `AtomLibrary`.

        Raises
        ------
        MismatchError
            If the folder does not hold an anchor's chain.
        FormatError
            If an anchor has fewer than 20 residues with a backbone.
        """
        structures = Path(folder) / "structures"
        store = StructureStore(
            structures,
            ca_only=(structures / "ca_only_chains.npz").is_file(),
            unlabelled=(structures / "unlabelled_chains.npz").is_file(),
        )
        found = []
        for anchor in anchors:
            chain = store.chain(anchor.chain)
            inside = np.zeros(int(chain.residues[-1]) + 1, bool)
            for first, last in anchor.ranges:
                inside[first:last] = True
            found.append(residues_of(chain.select(inside[chain.residues])))
        return cls(tuple(anchors), tuple(found))

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a library that `save` wrote.

        Raises
        ------
        MissingFileError, FormatError
            If the file is not there, is damaged, or is something else.
        """
        path = require_file(Path(path), what="a fold library (.npz)")
        try:
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
                header = json.loads(str(archive["header"]))
                if header["format"] != _FORMAT or header["version"] != _VERSION:
                    raise ValueError(f"{header['format']}, version {header['version']}")
                arrays = {name: archive[name] for name in _ARRAYS}
            anchors = tuple(anchor_of(values) for values in header["anchors"])
            return cls(anchors, _parts(arrays))
        except (OSError, EOFError, KeyError, TypeError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
            raise FormatError(
                f"expected {_FORMAT}, version {_VERSION}: {path}",
                got=str(error),
                hint="The file is damaged, cut short, or something else: make it again.",
            ) from error

    def save(self, path: Path | str) -> None:
        """Write one compressed .npz file; directions are rounded to 2°/1,000 and places to 0.005 Å."""
        path = Path(path)

        def joined(name: str) -> np.ndarray:
            return torch.cat([getattr(one, name) for one in self.residues]).numpy()

        flags = np.concatenate([joined("has_torsion"), joined("two_fold")], axis=1)
        arrays = {
            "sizes": np.array([len(one) for one in self.residues], np.int32),
            "rotations": _steps([one.frames.rotations.flatten(1) for one in self.residues], 1 / _UNIT),
            "origins": _steps([one.frames.origins for one in self.residues], _STEP),
            "torsions": _steps([one.torsions.flatten(1) for one in self.residues], 1 / _UNIT),
            "flags": np.packbits(flags, axis=1),
            "amino_acids": joined("amino_acids").astype(np.uint8),
            "chains": joined("chains").astype(np.uint8),
            "places": joined("places").astype(np.int32),
        }
        header = {
            "format": _FORMAT,
            "version": _VERSION,
            "anchors": [tuple(asdict(anchor).values()) for anchor in self.anchors],
        }
        beside = path.with_name(path.name + ".part")
        with beside.open("wb") as stream:
            np.savez_compressed(stream, allow_pickle=False, header=np.array(json.dumps(header)), **arrays)
        beside.replace(path)

    def __repr__(self) -> str:
        return f"FoldLibrary({len(self.anchors)} anchors, {sum(map(len, self.residues))} residues)"

    @property
    def device(self) -> torch.device:
        """Where the residues lie: with the processor."""
        return torch.device("cpu")

    @property
    def fingerprint(self) -> str:
        """Identifies the anchors with their splits, and where their residues are."""
        origins = [one.frames.origins.numpy() for one in self.residues]
        return fingerprint_arrays([np.array([str(anchor) for anchor in self.anchors]), *origins])

    def anchors_of(self, split: Split) -> Tensor:
        """Indices of the anchors of a split, int64."""
        return torch.tensor([i for i, anchor in enumerate(self.anchors) if anchor.split == split], dtype=torch.int64)


def _steps(parts: Sequence[Tensor], step: float) -> np.ndarray:
    return torch.cat(list(parts)).div(step).round().clamp(-_UNIT, _UNIT).to(torch.int16).numpy()


def _parts(arrays: dict[str, np.ndarray]) -> tuple[Residues, ...]:
    sizes = [int(size) for size in arrays["sizes"]]
    flags = torch.from_numpy(np.unpackbits(arrays["flags"], axis=1, count=14).astype(bool))
    rotations = torch.from_numpy(arrays["rotations"].astype(np.float32) / _UNIT).reshape(-1, 3, 3)
    origins = torch.from_numpy(arrays["origins"].astype(np.float32) * _STEP)
    everything = Residues(
        frames=Frames(rotations, origins),
        torsions=torch.from_numpy(arrays["torsions"].astype(np.float32) / _UNIT).reshape(-1, 7, 2),
        has_torsion=flags[:, :7],
        two_fold=flags[:, 7:],
        amino_acids=torch.from_numpy(arrays["amino_acids"].astype(np.int64)),
        chains=torch.from_numpy(arrays["chains"].astype(np.int64)),
        places=torch.from_numpy(arrays["places"].astype(np.int64)),
        mask=torch.ones(sum(sizes), dtype=torch.bool),
    )
    ends = np.cumsum(sizes)
    return tuple(everything.part(slice(int(end) - size, int(end))) for end, size in zip(ends, sizes, strict=True))

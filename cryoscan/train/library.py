"""The atoms that training draws from: all chains as a few flat arrays that one file carries and one device holds."""

import json
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch

from cryoscan.errors import FormatError, GeometryError, MismatchError, require_file
from cryoscan.secondary import secondary_structure
from cryoscan.structure import Structure
from cryoscan.units import Angstrom

Split = Literal["train", "validation", "test"]

_FORMAT = "cryoscan atom library"
_VERSION = 2  # 1: without secondary structure
_STEP: Angstrom = 0.02  # of stored positions: far below any voxel, and 16 bits reach 655 Å
_ARRAYS = ("steps", "numbers", "residue_sizes", "residue_kinds", "chain_sizes", "chain_residues", "neighbours")


@dataclass(frozen=True, slots=True)
class Anchor:
    """A domain that views are made of.

    Parameters
    ----------
    id : str
        E.g. ``1p3qQ00``.
    types : tuple of str
        With their schemes, e.g. ``("CATH:1.10.8.10", "SCOPe:a.5.2.1")``; empty if no scheme classifies it.
    cluster : str
        Representative of its sequence cluster at 40 % identity.
    chain : str
        Key of the chain that holds it, e.g. ``1p3q_Q``.
    ranges : tuple of (int, int)
        0-based residues of the chain, the last one excluded.
    split : str
        ``train``, ``validation`` or ``test``.
    """

    id: str
    types: tuple[str, ...]
    cluster: str
    chain: str
    ranges: tuple[tuple[int, int], ...]
    split: Split


def anchor_of(values: Sequence[object]) -> Anchor:
    """The anchor whose fields were written as a list."""
    id_, types, cluster, chain, ranges, split = values
    pairs = tuple((int(first), int(last)) for first, last in ranges)  # type: ignore[attr-defined]
    return Anchor(str(id_), tuple(types), str(cluster), str(chain), pairs, split)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True, eq=False)
class AtomLibrary:
    """Heavy atoms of many chains and where the anchors lie in them; made by `AtomLibrary.of_chains`.

    Parameters
    ----------
    chains : tuple of str
        Keys of the `c` chains.
    anchors : tuple of Anchor
        The `d` anchors.
    steps_N3 : int16 tensor, `atoms 3`
        Positions in steps of 0.02 Å, z y x, from a point of each chain's own.
    numbers_N : uint8 tensor, `atoms`
        Atomic numbers.
    residues_N : int16 tensor, `atoms`
        0-based residue within the chain.
    kinds_N : uint8 tensor, `atoms`
        Secondary structure of the residue, see `cryoscan.secondary`.
    chain_starts : int64 tensor, `c + 1`
        First atom of each chain, and the number of atoms.
    neighbours : int64 tensor
        Chains that may stand beside an anchor.
    anchor_chains : int64 tensor, `d`
    segments_S2 : int64 tensor, `segments 2`
        Atoms of the anchors: first and behind the last.
    segment_starts : int64 tensor, `d + 1`
        First segment of each anchor.
    centres_D3 : float32 tensor, `d 3`
        Centres of mass of the anchors (by atomic number), Å from the point of their chain.
    radii_D : float32 tensor, `d`
        Distance of the farthest atom from the centre, Å.
    """

    chains: tuple[str, ...]
    anchors: tuple[Anchor, ...]
    steps_N3: torch.Tensor
    numbers_N: torch.Tensor
    residues_N: torch.Tensor
    kinds_N: torch.Tensor
    chain_starts: torch.Tensor
    neighbours: torch.Tensor
    anchor_chains: torch.Tensor
    segments_S2: torch.Tensor
    segment_starts: torch.Tensor
    centres_D3: torch.Tensor
    radii_D: torch.Tensor

    @classmethod
    def of_chains(
        cls, structures: Iterable[tuple[str, Structure]], *, anchors: Sequence[Anchor], neighbours: Iterable[str]
    ) -> Self:
        """Collect the atoms of chains.

        Parameters
        ----------
        structures : iterable of (key, Structure)
            Each key once. Atoms of unknown elements are kept and weigh nothing.
        anchors : sequence of Anchor
            In chains among the keys.
        neighbours : iterable of str
            Keys of the chains that may stand beside an anchor.

        Raises
        ------
        GeometryError
            If a chain is too long for 16-bit positions.
        MismatchError
            If an anchor or a neighbour names a chain or residues that are not there.
        """
        keys: list[str] = []
        parts: dict[str, list[np.ndarray]] = {name: [] for name in _ARRAYS[:4]}
        for key, structure in structures:
            keys.append(key)
            parts["steps"].append(_steps(key, structure))
            parts["numbers"].append(structure.elements.astype(np.uint8))
            parts["residue_sizes"].append(np.bincount(structure.residues).astype(np.uint8))
            parts["residue_kinds"].append(secondary_structure(structure).astype(np.uint8))
        place = {key: index for index, key in enumerate(keys)}
        arrays = {name: np.concatenate(part) for name, part in parts.items()}
        arrays["chain_sizes"] = np.array([len(part) for part in parts["numbers"]], np.int32)
        arrays["chain_residues"] = np.array([len(part) for part in parts["residue_sizes"]], np.int32)
        arrays["neighbours"] = np.array(sorted(_placed(key, place) for key in neighbours), np.int32)
        return cls._of_arrays(tuple(keys), tuple(anchors), arrays)

    @classmethod
    def load(cls, path: Path | str, *, device: torch.device | str = "cpu") -> Self:
        """Read a library that `save` wrote.

        Raises
        ------
        MissingFileError, FormatError
            If the file is not there, is damaged, or is something else.
        """
        path = require_file(Path(path), what="an atom library (.npz)")
        try:
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
                header = json.loads(str(archive["header"]))
                if header["format"] != _FORMAT or header["version"] != _VERSION:
                    raise ValueError(f"{header['format']}, version {header['version']}")
                arrays = {name: archive[name] for name in _ARRAYS}
            anchors = tuple(anchor_of(values) for values in header["anchors"])
            arrays["steps"] = np.cumsum(arrays["steps"], axis=0, dtype=np.int16)
            return cls._of_arrays(tuple(header["chains"]), anchors, arrays).to(device)
        except (OSError, EOFError, KeyError, TypeError, ValueError, IndexError, zipfile.BadZipFile) as error:
            raise FormatError(
                f"expected {_FORMAT}, version {_VERSION}: {path}",
                got=str(error),
                hint="The file is damaged, cut short, or something else: make it again.",
            ) from error

    def save(self, path: Path | str) -> None:
        """Write one compressed .npz file; nothing in it can run code."""
        path = Path(path)
        chain_starts = self.chain_starts.cpu().numpy()
        residues = self.residues_N.cpu().numpy()
        first = np.diff(residues, prepend=-1) != 0
        first[chain_starts[:-1]] = True
        starts = np.flatnonzero(first)
        steps = self.steps_N3.cpu().numpy()
        arrays: dict[str, Any] = {
            # differences are small and compress well; they wrap round 16 bits, and so does their sum
            "steps": np.diff(steps, axis=0, prepend=np.zeros((1, 3), np.int16)),
            "numbers": self.numbers_N.cpu().numpy(),
            "residue_sizes": np.diff(starts, append=len(residues)).astype(np.uint8),
            "residue_kinds": self.kinds_N.cpu().numpy()[starts],
            "chain_sizes": np.diff(chain_starts).astype(np.int32),
            "chain_residues": np.add.reduceat(first, chain_starts[:-1], dtype=np.int32),
            "neighbours": self.neighbours.cpu().numpy().astype(np.int32),
        }
        header = {
            "format": _FORMAT,
            "version": _VERSION,
            "chains": self.chains,
            "anchors": [tuple(asdict(anchor).values()) for anchor in self.anchors],
        }
        beside = path.with_name(path.name + ".part")
        with beside.open("wb") as stream:
            np.savez_compressed(stream, header=np.array(json.dumps(header)), **arrays)
        beside.replace(path)

    def __repr__(self) -> str:
        return (
            f"AtomLibrary({len(self.anchors)} anchors, {len(self.chains)} chains, "
            f"{len(self.numbers_N)} atoms on {self.device})"
        )

    @property
    def device(self) -> torch.device:
        """Where the tensors lie."""
        return self.steps_N3.device

    def to(self, device: torch.device | str) -> Self:
        """The library on another device."""
        moved = {
            field.name: getattr(self, field.name).to(device)
            for field in fields(self)
            if isinstance(getattr(self, field.name), torch.Tensor)
        }
        return replace(self, **moved)

    def anchors_of(self, split: Split) -> torch.Tensor:
        """Indices of the anchors of a split, int64."""
        found = [index for index, anchor in enumerate(self.anchors) if anchor.split == split]
        return torch.tensor(found, dtype=torch.int64, device=self.device)

    def atoms_of_anchors(self, anchors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Atoms of some anchors, one anchor after the other, and for each atom whose it is (0, 1, 2 …)."""
        first, last = self.segment_starts[anchors], self.segment_starts[anchors + 1]
        segments, owners = _ranges(first, last - first)
        bounds = self.segments_S2[segments]
        atoms, owned = _ranges(bounds[:, 0], bounds[:, 1] - bounds[:, 0])
        return atoms, owners[owned]

    def atoms_of_chains(self, chains: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Atoms of some chains, one chain after the other, and for each atom whose it is (0, 1, 2 …)."""
        first = self.chain_starts[chains]
        return _ranges(first, self.chain_starts[chains + 1] - first)

    def positions(self, atoms: torch.Tensor) -> torch.Tensor:
        """Positions of atoms from their chain's own point, z y x in Å, float32 `n 3`."""
        return self.steps_N3[atoms].to(torch.float32) * _STEP

    @classmethod
    def _of_arrays(cls, chains: tuple[str, ...], anchors: tuple[Anchor, ...], arrays: dict[str, np.ndarray]) -> Self:
        chain_starts = np.cumsum([0, *arrays["chain_sizes"]])
        residue_starts = np.cumsum(arrays["residue_sizes"], dtype=np.int64) - arrays["residue_sizes"]
        first_residues = np.cumsum([0, *arrays["chain_residues"]])
        place = {key: index for index, key in enumerate(chains)}
        anchor_chains = np.array([_placed(anchor.chain, place) for anchor in anchors], np.int64)
        ends = np.append(residue_starts, chain_starts[-1])
        segments = []
        for anchor, chain in zip(anchors, anchor_chains, strict=True):
            base, top = first_residues[chain : chain + 2]
            for first, last in anchor.ranges:
                if not 0 <= first < last <= top - base:
                    raise MismatchError(
                        f"expected residues below {top - base} of chain '{anchor.chain}'",
                        got=f"{first}:{last} in anchor '{anchor.id}'",
                        hint="The anchors belong to other chains; make both from the same folder.",
                    )
                segments.append((ends[base + first], ends[base + last]))
        within = np.arange(len(residue_starts)) - np.repeat(first_residues[:-1], arrays["chain_residues"])
        library = cls(
            chains=chains,
            anchors=anchors,
            steps_N3=torch.from_numpy(np.ascontiguousarray(arrays["steps"])),
            numbers_N=torch.from_numpy(arrays["numbers"]),
            residues_N=torch.from_numpy(np.repeat(within, arrays["residue_sizes"]).astype(np.int16)),
            kinds_N=torch.from_numpy(np.repeat(arrays["residue_kinds"], arrays["residue_sizes"])),
            chain_starts=torch.from_numpy(chain_starts.astype(np.int64)),
            neighbours=torch.from_numpy(arrays["neighbours"].astype(np.int64)),
            anchor_chains=torch.from_numpy(anchor_chains),
            segments_S2=torch.from_numpy(np.array(segments, np.int64).reshape(-1, 2)),
            segment_starts=torch.from_numpy(np.cumsum([0, *(len(a.ranges) for a in anchors)]).astype(np.int64)),
            centres_D3=torch.zeros(len(anchors), 3),
            radii_D=torch.zeros(len(anchors)),
        )
        return library._measured()

    def _measured(self) -> Self:
        """The library with its anchors' centres and radii."""
        atoms, owners = self.atoms_of_anchors(torch.arange(len(self.anchors)))
        positions = self.positions(atoms).to(torch.float64)
        weights = self.numbers_N[atoms].to(torch.float64)
        sums = torch.zeros(len(self.anchors), 3, dtype=torch.float64)
        sums.index_add_(0, owners, positions * weights[:, None])
        masses = torch.zeros(len(self.anchors), dtype=torch.float64).index_add_(0, owners, weights)
        centres = sums / masses.clamp_min(1)[:, None]
        distances = torch.linalg.vector_norm(positions - centres[owners], dim=1)
        radii = torch.zeros(len(self.anchors), dtype=torch.float64).scatter_reduce_(0, owners, distances, "amax")
        return replace(self, centres_D3=centres.float(), radii_D=radii.float())


def _ranges(first: torch.Tensor, sizes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The integers of several ranges, one range after the other, and for each whose it is."""
    owners = torch.repeat_interleave(torch.arange(len(sizes), device=sizes.device), sizes)
    skipped = torch.cumsum(sizes, 0) - sizes
    return torch.arange(len(owners), device=sizes.device) + (first - skipped)[owners], owners


def _steps(key: str, structure: Structure) -> np.ndarray:
    """Positions of a chain in 16-bit steps from the middle of its bounding box."""
    positions = structure.positions
    middle = (positions.min(axis=0) + positions.max(axis=0)) / 2
    steps = np.rint((positions - middle) / _STEP)
    if np.abs(steps).max() > np.iinfo(np.int16).max:
        raise GeometryError(
            f"expected a chain of less than {2 * _STEP * np.iinfo(np.int16).max:.0f} Å",
            got=f"'{key}' of {np.ptp(positions, axis=0).max():.0f} Å",
            hint="Leave it out; its parts lie too far from each other to be one chain.",
        )
    return steps.astype(np.int16)


def _placed(key: str, place: dict[str, int]) -> int:
    if key not in place:
        raise MismatchError(
            "expected a chain of the library", got=f"'{key}'", hint="Give the chain's atoms, or leave the anchor out."
        )
    return place[key]

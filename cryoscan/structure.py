"""Atoms of a structure, and the named parts (domains) of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from cryoscan.errors import GeometryError

ResidueId = tuple[int, str]
"""Author residue number and insertion code ('' where there is none)."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Residues `first` to `last` of a chain, both included; None = to the chain's end."""

    chain: str
    first: ResidueId | None = None
    last: ResidueId | None = None

    def __str__(self) -> str:
        if self.first is None or self.last is None:
            return f"{self.chain}:"
        return f"{self.first[0]}{self.first[1]}-{self.last[0]}{self.last[1]}:{self.chain}"


@dataclass(frozen=True, slots=True)
class Domain:
    """A named part of a structure.

    Parameters
    ----------
    name : str
        Identifier of the domain, e.g. ``1p3qQ00`` or ``d1a6ka_``.
    scheme : str
        ``CATH``, ``SCOPe`` or a user's own word.
    type : str
        Place in the scheme, e.g. ``1.10.8.10`` or ``a.1.1.2``.
    segments : tuple of Segment
        May be discontinuous and may span chains.
    """

    name: str
    scheme: str
    type: str
    segments: tuple[Segment, ...]

    @property
    def ranges(self) -> str:
        """The segments in CATH notation, e.g. ``1-158:A,329-397:A``."""
        return ",".join(str(segment) for segment in self.segments)


@dataclass(frozen=True, slots=True, eq=False)
class Structure:
    """Atoms with the little that is needed to simulate and to name them.

    Parameters
    ----------
    id : str
    positions : float64 array, `n 3`
        z, y, x in Å.
    elements : uint8 array, `n`
        Atomic numbers.
    names, residue_names, chains, insertion_codes : string arrays, `n`
    residue_numbers : int array, `n`
        As the author numbered them.
    residues : int array, `n`
        Index 0, 1, 2 … of each atom's residue in the order of the file.
    b_factors : float32 array, `n`
        Å².
    domains : tuple of Domain
    nucleic : bool array, `n`
        Atoms of DNA or RNA; kept apart so that protein alone can be taken.
    """

    id: str
    positions: np.ndarray
    elements: np.ndarray
    names: np.ndarray
    residue_names: np.ndarray
    residue_numbers: np.ndarray
    insertion_codes: np.ndarray
    chains: np.ndarray
    residues: np.ndarray
    b_factors: np.ndarray
    nucleic: np.ndarray
    domains: tuple[Domain, ...] = field(default=())

    def __post_init__(self) -> None:
        n = len(self.positions)
        if n == 0 or self.positions.shape != (n, 3):
            raise GeometryError(
                f"expected at least one atom in structure '{self.id}'",
                got=f"positions of shape {self.positions.shape}",
                hint="Check that the file holds ATOM records and that the selection is not empty.",
            )
        for name in _PER_ATOM[1:]:
            if len(getattr(self, name)) != n:
                raise GeometryError(
                    f"expected {n} values of '{name}', one per atom",
                    got=str(len(getattr(self, name))),
                    hint="Arrays of one structure must have equal lengths.",
                )
        if not np.isfinite(self.positions).all():
            raise GeometryError(
                f"expected finite coordinates in structure '{self.id}'", got="NaN or infinity", hint="Mend the file."
            )

    def __len__(self) -> int:
        return len(self.positions)

    def __repr__(self) -> str:
        chains = "".join(sorted({str(chain) for chain in self.chains}))
        return f"Structure({self.id}: {len(self)} atoms, {self.n_residues} residues, chains {chains})"

    @property
    def n_residues(self) -> int:
        """Number of residues."""
        return len(np.unique(self.residues))

    def select(self, mask: np.ndarray) -> "Structure":
        """The atoms where `mask` is true; residues are renumbered from 0."""
        arrays = {name: getattr(self, name)[mask] for name in _PER_ATOM}
        arrays["residues"] = np.unique(arrays["residues"], return_inverse=True)[1].astype(np.int64)
        return replace(self, **arrays)

    def protein(self) -> "Structure":
        """The atoms that are not DNA or RNA."""
        return self.select(~self.nucleic)

    def domain(self, domain: Domain | str) -> "Structure":
        """The atoms of one of the structure's domains, or of a given one."""
        if isinstance(domain, str):
            found = [candidate for candidate in self.domains if candidate.name == domain]
            if not found:
                raise GeometryError(
                    f"expected a domain of structure '{self.id}'",
                    got=domain,
                    hint=f"Known domains: {', '.join(d.name for d in self.domains) or 'none'}.",
                )
            domain = found[0]
        part = self.select(self.atoms_of(domain))
        return replace(part, id=domain.name, domains=(domain,))

    def atoms_of(self, domain: Domain) -> np.ndarray:
        """Which atoms a domain has, `n` bool; at least one."""
        mask = np.zeros(len(self), bool)
        for segment in domain.segments:
            mask |= self._segment_mask(segment)
        if not mask.any():
            raise GeometryError(
                f"expected atoms in domain '{domain.name}' ({domain.ranges}) of '{self.id}'",
                got="none",
                hint="Check chain names and residue numbers; author numbering is used.",
            )
        return mask

    def centred(self) -> "Structure":
        """The structure with its mean position moved to 0."""
        return self.moved(offset=-self.positions.mean(axis=0))

    def moved(
        self, *, rotation: np.ndarray | None = None, offset: Sequence[float] | np.ndarray = (0, 0, 0)
    ) -> "Structure":
        """Rotate about 0 by a 3×3 matrix (acting on z, y, x columns), then shift by `offset` Å."""
        positions = self.positions if rotation is None else self.positions @ np.asarray(rotation, np.float64).T
        return replace(self, positions=positions + np.asarray(offset, np.float64))

    def _segment_mask(self, segment: Segment) -> np.ndarray:
        chain = self.chains == segment.chain
        if segment.first is None or segment.last is None:
            return chain
        exact_first = chain & (self.residue_numbers == segment.first[0]) & (self.insertion_codes == segment.first[1])
        exact_last = chain & (self.residue_numbers == segment.last[0]) & (self.insertion_codes == segment.last[1])
        if exact_first.any() and exact_last.any():
            # File order, not numbers: insertion codes and odd numberings are legal inside a range.
            first, last = self.residues[exact_first].min(), self.residues[exact_last].max()
            return chain & (self.residues >= first) & (self.residues <= last)
        return chain & (self.residue_numbers >= segment.first[0]) & (self.residue_numbers <= segment.last[0])


def joined(parts: Sequence[Structure]) -> Structure:
    """Several structures as one, of the first one's name; residues count on."""
    starts = np.cumsum([0, *(part.n_residues for part in parts[:-1])])
    return Structure(
        id=parts[0].id,
        positions=np.concatenate([part.positions for part in parts]),
        elements=np.concatenate([part.elements for part in parts]),
        names=np.concatenate([part.names for part in parts]),
        residue_names=np.concatenate([part.residue_names for part in parts]),
        residue_numbers=np.concatenate([part.residue_numbers for part in parts]),
        insertion_codes=np.concatenate([part.insertion_codes for part in parts]),
        chains=np.concatenate([part.chains for part in parts]),
        residues=np.concatenate([part.residues + start for part, start in zip(parts, starts, strict=True)]),
        b_factors=np.concatenate([part.b_factors for part in parts]),
        nucleic=np.concatenate([part.nucleic for part in parts]),
    )


_PER_ATOM = (
    "positions",
    "elements",
    "names",
    "residue_names",
    "residue_numbers",
    "insertion_codes",
    "chains",
    "residues",
    "b_factors",
    "nucleic",
)

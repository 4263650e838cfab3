"""Which atoms a view shows: the anchor turned at random, parts of it missing, its chain, and others that touch it."""

from dataclasses import dataclass

import torch

from cryoscan.train.library import AtomLibrary
from cryoscan.units import Angstrom

_POINTS = 96  # of a neighbour, spread evenly along its chain: enough to see where it touches
_CELL: Angstrom = 5.0  # two atoms in one cell clash
_CELLS = 36  # along an axis: what lies further out than 90 Å cannot be touched
_STEP: Angstrom = 2.5
_STEPS = 44
_CLASHES = 0.02  # fraction of a neighbour's points that may clash


@dataclass(frozen=True, slots=True, eq=False)
class Atoms:
    """Atoms of several views, one view after the other or mixed.

    Parameters
    ----------
    positions : float32 tensor, `n 3`
        z y x in Å from the centre of the view's anchor.
    weights : float32 tensor, `n`
        Electrons.
    views : int64 tensor, `n`
        View of each atom.
    kinds : uint8 tensor, `n`
        Secondary structure of each atom's residue.
    """

    positions: torch.Tensor
    weights: torch.Tensor
    views: torch.Tensor
    kinds: torch.Tensor

    def where(self, mask: torch.Tensor) -> "Atoms":
        """The atoms where `mask` is true."""
        return Atoms(self.positions[mask], self.weights[mask], self.views[mask], self.kinds[mask])

    def and_(self, other: "Atoms") -> "Atoms":
        """These atoms and others."""
        return Atoms(
            torch.cat([self.positions, other.positions]),
            torch.cat([self.weights, other.weights]),
            torch.cat([self.views, other.views]),
            torch.cat([self.kinds, other.kinds]),
        )


def random_rotations(count: int, *, rng: torch.Generator) -> torch.Tensor:
    """Rotations drawn evenly from SO(3), never reflections: unit quaternions of normal numbers, `count 3 3`."""
    q = torch.randn(count, 4, generator=rng, device=rng.device)
    w, z, y, x = (q / torch.linalg.vector_norm(q, dim=1, keepdim=True)).unbind(1)
    rows = (
        (1 - 2 * (y * y + x * x), 2 * (z * y - x * w), 2 * (z * x + y * w)),
        (2 * (z * y + x * w), 1 - 2 * (z * z + x * x), 2 * (y * x - z * w)),
        (2 * (z * x - y * w), 2 * (y * x + z * w), 1 - 2 * (z * z + y * y)),
    )
    return torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)


def random_directions(count: int, *, rng: torch.Generator) -> torch.Tensor:
    """Unit vectors drawn evenly from the sphere, `count 3`."""
    return torch.nn.functional.normalize(torch.randn(count, 3, generator=rng, device=rng.device), dim=1)


def anchor_atoms(
    library: AtomLibrary,
    anchors: torch.Tensor,
    rotation_B33: torch.Tensor,
    *,
    missing_B: torch.Tensor,
    rng: torch.Generator,
) -> tuple[Atoms, torch.Tensor]:
    """Atoms of the anchors, turned about their centres, and which of them are there.

    Parameters
    ----------
    library : AtomLibrary
    anchors : int64 tensor, `b`
    rotation_B33 : float tensor
    missing_B : float tensor
        Fraction of the atoms that is not there: with equal chance a stretch of residues or
        what lies beyond a random plane.
    rng : torch.Generator

    Returns
    -------
    Atoms, bool tensor `n`
    """
    index, views = library.atoms_of_anchors(anchors)
    positions = _turned(library.positions(index) - library.centres_D3[anchors][views], rotation_B33, views)
    atoms = Atoms(positions, library.numbers_N[index].to(torch.float32), views, library.kinds_N[index])
    in_sequence_B = torch.rand(len(anchors), generator=rng, device=rng.device) < 0.5
    normal_B3 = random_directions(len(anchors), rng=rng)
    start_B = torch.rand(len(anchors), generator=rng, device=rng.device)
    if not bool((missing_B > 0).any()):
        return atoms, torch.ones(len(views), dtype=torch.bool, device=views.device)
    counts_B = torch.bincount(views, minlength=len(anchors))
    first_B = torch.cumsum(counts_B, 0) - counts_B
    lost_B = (missing_B * counts_B).round().to(torch.int64)
    plane = _rank((positions * normal_B3[views]).sum(dim=1), views, first_B) < lost_B[views]
    begin_B = (start_B * (counts_B - lost_B + 1)).to(torch.int64).minimum(counts_B - lost_B)
    residues = library.residues_N[index]
    from_B = residues[first_B + begin_B.minimum(counts_B - 1)]
    until_B = residues[first_B + (begin_B + lost_B - 1).clamp_min(0)]
    stretch = (residues >= from_B[views]) & (residues <= until_B[views])
    lost = torch.where(in_sequence_B[views], stretch, plane) & (lost_B[views] > 0)
    return atoms, ~lost


def chain_atoms(library: AtomLibrary, anchors: torch.Tensor, rotation_B33: torch.Tensor) -> Atoms:
    """Atoms of the anchors' chains that belong to other parts of them, in the anchors' frame."""
    index, views = library.atoms_of_chains(library.anchor_chains[anchors])
    own, owners = library.atoms_of_anchors(anchors)
    counts_B = torch.bincount(views, minlength=len(anchors))
    first_B = torch.cumsum(counts_B, 0) - counts_B
    other = torch.ones(len(index), dtype=torch.bool, device=index.device)
    other[first_B[owners] + own - index[first_B[owners]]] = False
    index, views = index[other], views[other]
    positions = _turned(library.positions(index) - library.centres_D3[anchors][views], rotation_B33, views)
    return Atoms(positions, library.numbers_N[index].to(torch.float32), views, library.kinds_N[index])


def touching_atoms(
    library: AtomLibrary, scene: Atoms, number_B: torch.Tensor, *, reach: Angstrom, rng: torch.Generator
) -> Atoms:
    """Atoms of other chains that touch what is there, one chain after the other.

    Each chain is turned at random and moved away from the anchor's centre in a random
    direction until it clashes no more with the atoms that are there.

    Parameters
    ----------
    library : AtomLibrary
        Chains are drawn from its `neighbours`.
    scene : Atoms
        What is there.
    number_B : int64 tensor, `b`
        Chains per view.
    reach : Angstrom
        Atoms further than this from the anchor's centre along an axis are left out.
    rng : torch.Generator
    """
    count = len(number_B)
    taken = torch.zeros(count * _CELLS**3, dtype=torch.bool, device=scene.positions.device)
    taken[_cells(scene.positions, scene.views)] = True
    taken[:: _CELLS**3] = False  # the first cell of a view stands for all that lies outside
    found = scene.where(torch.zeros_like(scene.views, dtype=torch.bool))
    for nth in range(int(number_B.max()) if count else 0):
        drawn = torch.randint(len(library.neighbours), (count,), generator=rng, device=rng.device)
        chains = library.neighbours[drawn]
        rotation_B33 = random_rotations(count, rng=rng)
        direction_B3 = random_directions(count, rng=rng)
        views = torch.nonzero(number_B > nth)[:, 0]
        chains, rotation_B33, direction_B3 = chains[views], rotation_B33[views], direction_B3[views]
        points_BP3, middle_B3 = _outline(library, chains, rotation_B33)
        distance_B = _first_free(points_BP3, direction_B3, taken, views)
        shift_B3 = direction_B3 * distance_B[:, None]
        placed = (points_BP3 + shift_B3[:, None]).reshape(-1, 3)
        taken[_cells(placed, views.repeat_interleave(_POINTS))] = True
        taken[:: _CELLS**3] = False
        index, owners = library.atoms_of_chains(chains)
        positions = _turned(library.positions(index) - middle_B3[owners], rotation_B33, owners) + shift_B3[owners]
        near = (positions.abs() < reach).all(dim=1)
        weights = library.numbers_N[index[near]].to(torch.float32)
        found = found.and_(Atoms(positions[near], weights, views[owners[near]], library.kinds_N[index[near]]))
    return found


# ---------------------------------------------------------------- private


def _turned(positions: torch.Tensor, rotation_B33: torch.Tensor, views: torch.Tensor) -> torch.Tensor:
    rows_3B3 = rotation_B33.transpose(0, 1)
    return torch.stack([(positions * rows_B3[views]).sum(dim=1) for rows_B3 in rows_3B3], dim=1)


def _rank(values: torch.Tensor, views: torch.Tensor, first_B: torch.Tensor) -> torch.Tensor:
    """Rank of each value among those of its view; views lie one after the other."""
    order = torch.argsort(values)
    order = order[torch.argsort(views[order], stable=True)]
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    return rank - first_B[views]


def _outline(
    library: AtomLibrary, chains: torch.Tensor, rotation_B33: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Some atoms of each chain, turned about their mean, `b points 3`, and the mean before turning."""
    first_B, last_B = library.chain_starts[chains], library.chain_starts[chains + 1]
    part_P = (torch.arange(_POINTS, device=chains.device) + 0.5) / _POINTS
    index_BP = first_B[:, None] + (part_P * (last_B - first_B)[:, None]).to(torch.int64)
    points_BP3 = library.positions(index_BP.reshape(-1)).view(len(chains), _POINTS, 3)
    middle_B3 = points_BP3.mean(dim=1)
    return torch.bmm(points_BP3 - middle_B3[:, None], rotation_B33.transpose(1, 2)), middle_B3


def _first_free(
    points_BP3: torch.Tensor, direction_B3: torch.Tensor, taken: torch.Tensor, views: torch.Tensor
) -> torch.Tensor:
    """Smallest distance along each direction at which few enough points clash."""
    distances_S = torch.arange(_STEPS, device=views.device) * _STEP
    moved = points_BP3[:, None] + (direction_B3[:, None] * distances_S[:, None])[:, :, None]
    owners = views[:, None, None].expand(-1, _STEPS, _POINTS).reshape(-1)
    clashes_BS = taken[_cells(moved.reshape(-1, 3), owners)].view(len(views), _STEPS, _POINTS).sum(dim=2)
    free_BS = (clashes_BS <= _CLASHES * _POINTS).to(torch.int64)
    step_B = torch.where(free_BS.any(dim=1), free_BS.argmax(dim=1), _STEPS - 1)
    return distances_S[step_B]


def _cells(positions: torch.Tensor, views: torch.Tensor) -> torch.Tensor:
    """Flat index of the cell of each position in its view; the first cell for positions outside."""
    cell = (positions / _CELL + _CELLS / 2).floor()
    inside = ((cell >= 0) & (cell < _CELLS)).all(dim=1)
    z, y, x = cell.to(torch.int64).unbind(1)
    return views * _CELLS**3 + torch.where(inside, (z * _CELLS + y) * _CELLS + x, 0)

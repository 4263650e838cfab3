"""Pairs to learn sharpening from: a map as it is measured and filtered, and the density of the same atoms, sharp.

Simulated pairs are drawn from an `AtomLibrary`: a chain with the chains that touch it,
mobile in places, noisy as a map is, sharpened, low-passed and sometimes masked. Real pairs
are windows of experimental maps, low-passed, beside the density of their models. The target
has the form that EMReady trains on (He et al. 2023): every atom a Gaussian of one width.

Letters of shapes: B windows, Z Y X their voxels, K frequencies of the last axis.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from cryoscan.models.cryosamu import Informants
from cryoscan.structure import Structure
from cryoscan.train.library import AtomLibrary
from cryoscan.train.rendering import (
    densities,
    filtered,
    frequency_grids,
    soft_mask,
    surface_distance,
)
from cryoscan.train.scenes import (
    Atoms,
    anchor_atoms,
    chain_atoms,
    random_directions,
    random_rotations,
    touching_atoms,
)
from cryoscan.units import SIGMA_PER_RESOLUTION, Angstrom, Voxels
from cryoscan.volume import Volume

TARGET_SIGMA: Angstrom = (2.4 + 0.8 * 3.0) / (math.pi * math.sqrt(2))
"""Width of an atom in the target: k = (π / (2.4 + 0.8 R0))² with R0 = 3 Å, exp(-k r²)."""

_MARGIN = 4  # voxels on each side while a window is filtered
_SHARPEST = 1.6  # voxels: what a grid carries
_MASK_RESOLUTION: Angstrom = 6.0
_BODY_RESOLUTION: Angstrom = 8.0
_PROTEIN = 0.39  # electrons of heavy atoms / Å³: 52 a residue of 136 Å³
_COARSE_B = 250.0  # Å²


@dataclass(frozen=True, slots=True)
class PairConfig:
    """How unlike the sharp density of its atoms a map may be; ranges are drawn from evenly."""

    resolution_A: tuple[float, float] = (3.8, 8.5)
    """Å, beyond which a map holds nothing."""
    noise_limited: float = 0.5
    """Fraction of the maps whose signal meets the noise at their resolution; the others are low-passed better ones."""
    best_A: Angstrom = 3.2
    """Where signal meets noise in the best of the better maps."""
    noise_power: tuple[float, float] = (0.4, 2.0)
    """Power of the noise in units of the signal's at the resolution of the map."""
    acquired_b_A2: tuple[float, float] = (60.0, 250.0)
    """B of the signal's fall before sharpening: the steeper, the faster noise takes over."""
    remaining_b_A2: tuple[float, float] = (-40.0, 200.0)
    """B of the fall that sharpening leaves."""
    mobile_b_A2: tuple[float, float] = (20.0, 250.0)
    """B that is added in the less and the most mobile parts, Å²."""
    uneven: tuple[float, float] = (0.1, 0.5)
    """Standard deviation of the density's gain from residue to residue, relative."""
    charged: tuple[float, float] = (0.2, 1.0)
    """Weight of oxygen atoms beside the others: negative charge scatters electrons little."""
    solvent: tuple[float, float] = (0.0, 0.35)
    """Density of the bulk solvent that protein displaces, in units of protein's mean density."""
    coarse_power: tuple[float, float] = (0.02, 0.4)
    """Power of the coarse part of the noise, which is as smooth as the protein's shape, in units of the signal's at
    7 Å."""
    neighbours: tuple[int, int] = (0, 3)
    """Fewest and most chains that touch the chain."""
    masked: float = 0.5
    """Fraction of the maps cut out by a mask around the chain."""
    mask_offset_A: tuple[float, float] = (1.0, 6.0)
    """How far outside the surface the mask has fallen to a half, Å."""
    clipped: float = 0.1
    """Fraction of the maps without negative values."""
    real: float = 0.25
    """Fraction of the windows that come from experimental maps, where there are any."""
    overstated: float = 0.0
    """Fraction of the maps, simulated and experimental, whose signal meets the noise well before their resolution."""
    overstated_by: tuple[float, float] = (1.1, 1.8)
    """Where it does, in units of the resolution that is claimed."""
    real_b_A2: tuple[float, float] = (0.0, 0.0)
    """B of a fall that is added to experimental maps."""
    real_masked: float = 0.0
    """Fraction of the windows of experimental maps that are cut out by a mask around the model."""


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Windows of maps and what they should become.

    Parameters
    ----------
    map_BZYX, sharp_BZYX : float32 tensors
        Of scales that fit each other; the sharp density has a root mean square of 1.
    weight_BZYX : float32 tensor
        0 where nothing is known of the truth: beyond a model that does not explain the map.
    resolution_B : float32 tensor
        Å.
    informants : Informants, optional
        Residues of each window's chain.
    """

    map_BZYX: Tensor
    sharp_BZYX: Tensor
    weight_BZYX: Tensor
    resolution_B: Tensor
    informants: Informants | None = None

    def __len__(self) -> int:
        return len(self.map_BZYX)

    def to(self, device: torch.device | str) -> "Pairs":
        """The same on another device."""
        return Pairs(
            self.map_BZYX.to(device),
            self.sharp_BZYX.to(device),
            self.weight_BZYX.to(device),
            self.resolution_B.to(device),
            None if self.informants is None else self.informants.to(device),
        )


@dataclass(frozen=True, slots=True, eq=False)
class RealPair:
    """An experimental map ready for windows: a smooth array, its grid, its model.

    Parameters
    ----------
    name : str
    volume : Volume
        In memory, solvent 0.
    structure : Structure
        In the map's frame.
    complete : bool
        Whether the model explains all density; otherwise only what is near the model counts.
    resolution : Angstrom
        Of the map as it is.
    """

    name: str
    volume: Volume
    structure: Structure
    complete: bool
    resolution: Angstrom


def simulated_pairs(
    library: AtomLibrary,
    anchors: Tensor,
    *,
    config: PairConfig,
    rng: torch.Generator,
    window: Voxels,
    voxel_size: Angstrom,
) -> Pairs:
    """Draw one window of each anchor's chain.

    Parameters
    ----------
    library : AtomLibrary
        On a processor.
    anchors : int64 tensor, `b`
    config : PairConfig
    rng : torch.Generator
    window : Voxels
        Edge, even.
    voxel_size : Angstrom
    """
    count, edge = len(anchors), window + 2 * _MARGIN

    def even(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=rng)

    reach = 0.5 * edge * voxel_size
    rotation_B33 = random_rotations(count, rng=rng)
    own, _ = anchor_atoms(library, anchors, rotation_B33, missing_B=torch.zeros(count), rng=rng)
    own = own.and_(chain_atoms(library, anchors, rotation_B33))
    neighbours_B = even(config.neighbours[0], config.neighbours[1] + 1).long().clamp_max(config.neighbours[1])
    others = touching_atoms(library, own, neighbours_B, reach=reach + 30, rng=rng)
    offset_B3 = _some_place(own, count, rng) + 6 * torch.randn(count, 3, generator=rng)
    own, others = _moved(own, -offset_B3), _moved(others, -offset_B3)
    everything = own.and_(others)
    sharp_BZYX = _sharp(everything, count, edge, voxel_size)
    seen = _scattering(everything, even(*config.uneven), even(*config.charged), rng)
    signal_BZYX = _mobile(seen, even(*config.mobile_b_A2), count, edge, voxel_size, rng)
    body_BZYX = _at(everything, _BODY_RESOLUTION, count, edge, voxel_size)
    signal_BZYX -= even(*config.solvent)[:, None, None, None] * body_BZYX.clamp_max(_PROTEIN)
    resolution_B = even(*config.resolution_A)
    limited_B = torch.rand(count, generator=rng) < config.noise_limited
    meets_B = torch.where(limited_B, resolution_B, config.best_A + (resolution_B - config.best_A) * even(0, 1))
    if config.overstated:
        overstated_B = torch.rand(count, generator=rng) < config.overstated
        meets_B = torch.where(overstated_B, resolution_B * even(*config.overstated_by), meets_B)
    map_BZYX = _measured(
        signal_BZYX,
        meets_B.clamp_min(config.best_A),
        power_B=even(*config.noise_power),
        coarse_B=even(*config.coarse_power),
        acquired_B=even(*config.acquired_b_A2),
        remaining_B=even(*config.remaining_b_A2),
        voxel_size=voxel_size,
        rng=rng,
    )
    map_BZYX = _low_passed(map_BZYX, resolution_B, torch.rand(count, generator=rng) < 0.5, voxel_size)
    masked_B = torch.rand(count, generator=rng) < config.masked
    offset_B, width_B = even(*config.mask_offset_A), even(2.0, 6.0)
    mask_BZYX = _mask_around(own, masked_B, offset_B, width_B, edge, voxel_size)
    map_BZYX, sharp_BZYX = map_BZYX * mask_BZYX, sharp_BZYX * mask_BZYX
    clipped_B = torch.rand(count, generator=rng) < config.clipped
    map_BZYX = torch.where(clipped_B[:, None, None, None], map_BZYX.clamp_min(0), map_BZYX)
    inner = slice(_MARGIN, _MARGIN + window)
    map_BZYX, sharp_BZYX = (part[:, inner, inner, inner].contiguous() for part in (map_BZYX, sharp_BZYX))
    return _scaled(map_BZYX, sharp_BZYX, torch.ones_like(map_BZYX), resolution_B)


def real_pairs(
    sources: Sequence[RealPair],
    chosen: Tensor,
    *,
    config: PairConfig,
    rng: torch.Generator,
    window: Voxels,
    voxel_size: Angstrom,
) -> Pairs:
    """Draw a window of each chosen map, turned at random and low-passed."""
    count, edge = len(chosen), window + 2 * _MARGIN
    rotation_B33 = random_rotations(count, rng=rng)
    low, high = config.resolution_A
    finest_B = torch.tensor([max(low, sources[int(i)].resolution) for i in chosen])
    resolution_B = finest_B + (high - finest_B).clamp_min(0) * torch.rand(count, generator=rng)
    maps, atoms, weights = [], [], []
    for place, index in enumerate(chosen.tolist()):
        source = sources[index]
        atom = int(torch.randint(len(source.structure), (1,), generator=rng))
        centre = source.structure.positions[atom] + 6 * torch.randn(3, generator=rng).numpy()
        turn = rotation_B33[place].double().numpy()
        maps.append(_window_of(source.volume, centre, turn, edge, voxel_size))
        positions = torch.from_numpy((source.structure.positions - centre) @ turn.T).float()
        electrons = torch.from_numpy(source.structure.elements.astype(np.float32))
        atoms.append(
            Atoms(
                positions,
                electrons,
                torch.full((len(positions),), place),
                torch.zeros(len(positions), dtype=torch.uint8),
            )
        )
        weights.append(0.0 if source.complete else 1.0)
    model = atoms[0]
    for part in atoms[1:]:
        model = model.and_(part)
    sharp_BZYX = _sharp(model, count, edge, voxel_size)
    map_BZYX = torch.from_numpy(np.stack(maps)).float()
    partial_B = torch.tensor(weights) > 0
    two_B = torch.full((count,), 2.0)
    known_BZYX = _mask_around(model, partial_B, two_B, two_B, edge, voxel_size)
    map_BZYX = _spoilt(map_BZYX, resolution_B, config, voxel_size, rng)
    map_BZYX = _low_passed(map_BZYX, resolution_B, torch.rand(count, generator=rng) < 0.5, voxel_size)
    if config.real_masked:
        masked_B = torch.rand(count, generator=rng) < config.real_masked
        low, high = config.mask_offset_A
        offset_B = low + (high - low) * torch.rand(count, generator=rng)
        mask_BZYX = _mask_around(
            model, masked_B, offset_B, 2.0 + 4.0 * torch.rand(count, generator=rng), edge, voxel_size
        )
        map_BZYX, sharp_BZYX = map_BZYX * mask_BZYX, sharp_BZYX * mask_BZYX
    inner = slice(_MARGIN, _MARGIN + window)
    map_BZYX, sharp_BZYX, known_BZYX = (
        part[:, inner, inner, inner].contiguous() for part in (map_BZYX, sharp_BZYX, known_BZYX)
    )
    return _scaled(map_BZYX, sharp_BZYX, known_BZYX, resolution_B)


def together(parts: Sequence[Pairs]) -> Pairs:
    """Several batches as one; informants are left out."""
    return Pairs(
        torch.cat([part.map_BZYX for part in parts]),
        torch.cat([part.sharp_BZYX for part in parts]),
        torch.cat([part.weight_BZYX for part in parts]),
        torch.cat([part.resolution_B for part in parts]),
    )


# ---------------------------------------------------------------- what is there


def _some_place(own: Atoms, count: int, rng: torch.Generator) -> Tensor:
    """Position of one atom of each view, drawn at random, `count 3`."""
    order = torch.randperm(len(own.views), generator=rng)
    place_B3 = torch.zeros(count, 3)
    place_B3[own.views[order]] = own.positions[order]  # of several the last one stays
    return place_B3


def _moved(atoms: Atoms, offset_B3: Tensor) -> Atoms:
    return replace(atoms, positions=atoms.positions + offset_B3[atoms.views])


def _sharp(atoms: Atoms, count: int, edge: Voxels, voxel_size: Angstrom) -> Tensor:
    return _at(atoms, max(TARGET_SIGMA / SIGMA_PER_RESOLUTION, _SHARPEST * voxel_size), count, edge, voxel_size)


def _at(atoms: Atoms, resolution: Angstrom, count: int, edge: Voxels, voxel_size: Angstrom) -> Tensor:
    at_B = torch.full((count,), resolution)
    return densities(atoms.positions, atoms.weights, atoms.views, at_B, edge=edge, voxel_size=voxel_size)


def _scattering(atoms: Atoms, uneven_B: Tensor, charged_B: Tensor, rng: torch.Generator) -> Atoms:
    """Atoms with the weights of a map in place of numbers of electrons: oxygen weaker, residues uneven."""
    oxygen = atoms.weights == 8
    residue = torch.arange(len(atoms.weights)) // 8  # atoms of a residue follow each other
    drawn = torch.randn(int(residue[-1]) + 1, generator=rng)[residue] if len(residue) else atoms.weights
    gain = torch.exp(uneven_B[atoms.views] * drawn) * torch.where(oxygen, charged_B[atoms.views], 1.0)
    return replace(atoms, weights=atoms.weights * gain)


def _mobile(
    atoms: Atoms, most_B: Tensor, count: int, edge: Voxels, voxel_size: Angstrom, rng: torch.Generator
) -> Tensor:
    """Density of atoms that are fixed, a little mobile or very mobile: along a direction, outwards, part by part."""
    direction_B3 = random_directions(count, rng=rng)
    slope_B = torch.rand(count, generator=rng)
    along = (atoms.positions * direction_B3[atoms.views]).sum(dim=1) / 25.0
    outward = atoms.positions.norm(dim=1) / 25.0 - 1
    parts = torch.randn(count, 6, 6, 6, generator=rng)
    cell = (atoms.positions / 8.0 + 3).floor().long().clamp(0, 5)
    patch = parts[atoms.views, cell[:, 0], cell[:, 1], cell[:, 2]]
    field = slope_B[atoms.views] * along + 0.5 * outward + 0.6 * patch + 0.2 * torch.randn(len(along), generator=rng)
    level = (field > 0.2).long() + (field > 1.0).long()
    total = torch.zeros(count, edge, edge, edge)
    base = _SHARPEST * voxel_size
    for number, share in enumerate((0.0, 0.4, 1.0)):
        mine = atoms.where(level == number)
        extra_B = share * most_B / (8 * math.pi**2) / SIGMA_PER_RESOLUTION**2
        at_B = (base**2 + extra_B).sqrt()
        total += densities(mine.positions, mine.weights, mine.views, at_B, edge=edge, voxel_size=voxel_size)
    return total


# ---------------------------------------------------------------- what is measured


def _measured(
    signal_BZYX: Tensor,
    meets_B: Tensor,
    *,
    power_B: Tensor,
    coarse_B: Tensor,
    acquired_B: Tensor,
    remaining_B: Tensor,
    voxel_size: Angstrom,
    rng: torch.Generator,
) -> Tensor:
    """Signal and noise after sharpening.

    In the measurement the signal falls with `acquired_B` and the noise is white; its power is
    `power_B` times that of the signal at the resolution `meets_B`. Sharpening lifts both until
    the signal falls with `remaining_B`.
    """
    edge = signal_BZYX.shape[-1]
    s2_ZYK = (frequency_grids(edge, voxel_size, device=signal_BZYX.device) ** 2).sum(dim=0)
    transform_BZYK = torch.fft.rfftn(signal_BZYX, dim=(1, 2, 3))

    def power_at(s_B: Tensor) -> Tensor:
        shell_BZYK = ((s2_ZYK.sqrt() - s_B[:, None, None, None]).abs() < 1.5 / (edge * voxel_size)).float()
        return (transform_BZYK.abs().square() * shell_BZYK).sum(dim=(1, 2, 3)) / shell_BZYK.sum(dim=(1, 2, 3))

    s_B = 1 / meets_B
    noise_B = (power_B * power_at(s_B) * torch.exp(-acquired_B * s_B**2 / 2) / edge**3).sqrt()
    white_BZYX = noise_B[:, None, None, None] * torch.randn(signal_BZYX.shape, generator=rng)
    coarse_B = (coarse_B * power_at(torch.full_like(s_B, 1 / 7.0)) / edge**3).sqrt()
    fall_ZYK = torch.exp(-_COARSE_B * (s2_ZYK - 1 / 49) / 4)
    coarse_BZYX = coarse_B[:, None, None, None] * torch.randn(signal_BZYX.shape, generator=rng)
    transform_BZYK = transform_BZYK + torch.fft.rfftn(coarse_BZYX, dim=(1, 2, 3)) * fall_ZYK
    b_acquired, b_remaining = acquired_B[:, None, None, None], remaining_B[:, None, None, None]
    # beyond where noise has taken over long ago nobody sharpens on: the lift is bounded
    lift_BZYK = torch.exp((b_acquired * s2_ZYK / 4).clamp_max(9.0))
    seen_BZYK = transform_BZYK * torch.exp(-b_acquired * s2_ZYK / 4) + torch.fft.rfftn(white_BZYX, dim=(1, 2, 3))
    seen_BZYK = seen_BZYK * lift_BZYK * torch.exp(-b_remaining * s2_ZYK / 4)
    return torch.fft.irfftn(seen_BZYK, s=(edge, edge, edge), dim=(1, 2, 3))


def _low_passed(map_BZYX: Tensor, resolution_B: Tensor, cut_B: Tensor, voxel_size: Angstrom) -> Tensor:
    """Low-pass at the resolution: cut off with a soft edge, or by the Gaussian of the house."""
    s2_ZYK = (frequency_grids(map_BZYX.shape[-1], voxel_size, device=map_BZYX.device) ** 2).sum(dim=0)
    relative_BZYK = s2_ZYK.sqrt() * resolution_B[:, None, None, None]
    edge_BZYK = 0.5 + 0.5 * torch.cos(math.pi * ((relative_BZYK - 1) / 0.1).clamp(0, 1))
    # the fall of the house's Gaussian beyond that of the sharpest map, in addition to a cut further out
    smooth_BZYK = torch.exp(-(relative_BZYK**2)) * (relative_BZYK < 1.6)
    return filtered(map_BZYX, torch.where(cut_B[:, None, None, None], edge_BZYK, smooth_BZYK))


def _spoilt(
    map_BZYX: Tensor, resolution_B: Tensor, config: PairConfig, voxel_size: Angstrom, rng: torch.Generator
) -> Tensor:
    """Windows of experimental maps with another fall, and some with noise from well before their resolution on."""
    count = len(map_BZYX)

    def even(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=rng)

    if config.real_b_A2 != (0.0, 0.0):
        s2_ZYK = (frequency_grids(map_BZYX.shape[-1], voxel_size, device=map_BZYX.device) ** 2).sum(dim=0)
        fall_BZYK = torch.exp(-even(*config.real_b_A2)[:, None, None, None] * s2_ZYK / 4)
        map_BZYX = filtered(map_BZYX, fall_BZYK)
    if config.overstated:
        noisy_BZYX = _measured(
            map_BZYX,
            resolution_B * even(*config.overstated_by),
            power_B=even(*config.noise_power),
            coarse_B=torch.zeros(count),
            acquired_B=even(*config.acquired_b_A2),
            remaining_B=torch.zeros(count),
            voxel_size=voxel_size,
            rng=rng,
        )
        overstated_B = torch.rand(count, generator=rng) < config.overstated
        map_BZYX = torch.where(overstated_B[:, None, None, None], noisy_BZYX, map_BZYX)
    return map_BZYX


def _mask_around(
    atoms: Atoms, masked_B: Tensor, offset_B: Tensor, width_B: Tensor, edge: Voxels, voxel_size: Angstrom
) -> Tensor:
    """A soft mask in the windows that are to have one, so far outside the atoms' surface; 1 in the others."""
    count = len(masked_B)
    if not bool(masked_B.any()):
        return torch.ones(count, edge, edge, edge)
    shape_BZYX = _at(atoms, _MASK_RESOLUTION, count, edge, voxel_size)
    distance_BZYX = surface_distance(shape_BZYX, torch.full((count,), _MASK_RESOLUTION), voxel_size=voxel_size)
    mask_BZYX = soft_mask(distance_BZYX, offset_B[:, None, None, None], width_B)
    return torch.where(masked_B[:, None, None, None], mask_BZYX, torch.ones_like(mask_BZYX))


def _window_of(volume: Volume, centre: np.ndarray, turn: np.ndarray, edge: Voxels, voxel_size: Angstrom) -> np.ndarray:
    """A cubic window of a map about a place, turned: window axes are the rows of `turn`; outside the map is 0."""
    u = (np.arange(edge) - (edge - 1) / 2) * voxel_size
    grid = np.stack(np.meshgrid(u, u, u, indexing="ij"), axis=-1).reshape(-1, 3)
    places = volume.to_index(grid @ turn + centre)
    values = ndimage.map_coordinates(np.asarray(volume.data), places.T, order=3, mode="constant", cval=0.0)
    return np.asarray(values, np.float32).reshape(edge, edge, edge)


def _scaled(map_BZYX: Tensor, sharp_BZYX: Tensor, weight_BZYX: Tensor, resolution_B: Tensor) -> Pairs:
    """The sharp density with a root mean square of 1, and the map scaled to fit it best (least squares)."""
    sharp_BZYX = sharp_BZYX * weight_BZYX
    rms_B = sharp_BZYX.square().mean(dim=(1, 2, 3)).sqrt().clamp_min(1e-6)
    sharp_BZYX = sharp_BZYX / rms_B[:, None, None, None]
    known_BZYX = map_BZYX * weight_BZYX
    both_B = (known_BZYX * sharp_BZYX).sum(dim=(1, 2, 3))
    own_B = sharp_BZYX.square().sum(dim=(1, 2, 3)).clamp_min(1e-6)
    # a map that hardly resembles its model must not be blown up
    least_B = 0.1 * known_BZYX.square().mean(dim=(1, 2, 3)).sqrt() + 1e-8
    slope_B = (both_B / own_B).maximum(least_B)
    return Pairs(map_BZYX / slope_B[:, None, None, None], sharp_BZYX, weight_BZYX, resolution_B)

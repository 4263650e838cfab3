"""From atoms to views: in which order a domain is drawn, surrounded, measured, cut out and centred."""

from dataclasses import dataclass, fields, replace

import torch

from cryoscan.errors import GeometryError, MismatchError
from cryoscan.secondary import COIL, HELIX, STRAND
from cryoscan.train.conditions import SCENES, Range, ViewConfig
from cryoscan.train.library import AtomLibrary
from cryoscan.train.rendering import (
    densities,
    filtered,
    frequency_grids,
    gaussian_blur,
    missing_wedge,
    phase_flipped_transfer,
    radius_grid,
    sharpening,
    smooth_field,
    soft_mask,
    surface_distance,
)
from cryoscan.train.scenes import Atoms, anchor_atoms, chain_atoms, random_directions, random_rotations, touching_atoms
from cryoscan.units import SIGMA_PER_RESOLUTION, Angstrom, Voxels

_FINEST = 1.6  # voxels: the finest resolution of a view
_MARGIN: Voxels = 4  # on each side of the window while the view is made
_CHUNK = 8  # views at a time on a CPU: what fits into its cache
_ENVELOPE_A = (3.0, 4.0)  # how far outside the surface solvent is flattened, and over which width
_EQUAL_POWER: Angstrom = 20.0  # of the two parts of a tomogram's noise
_FIELD_NODES = 6  # of the mask's errors along an axis: they vary over 15 to 20 Å


@dataclass(frozen=True, slots=True, eq=False)
class Views:
    """Views of domains and how each was made.

    Parameters
    ----------
    density_BZYX : float32 tensor
        What is seen. Protein positive, solvent 0; root mean square 1.
    clean_BZYX : float32 tensor
        The whole domain alone in the same place and at the same resolution; root mean square 1.
    kinds_BCZYX : float32 tensor
        Density of all that is there, by the kinds of `cryoscan.secondary`; any scale. Without channels if not
        asked for.
    anchors_B : int64 tensor
        Index of the anchor in the library.
    resolution_B : float32 tensor
        Å.
    scene_B : int64 tensor
        Index into `SCENES`.
    missing_B : float32 tensor
        Fraction of the domain's electrons that is missing.
    neighbours_B : int64 tensor
        Number of other chains.
    snr_B : float32 tensor
        Infinite without noise.
    shift_B3 : float32 tensor
        Centre of the domain from the centre of the window, z y x in Å.
    """

    density_BZYX: torch.Tensor
    clean_BZYX: torch.Tensor
    kinds_BCZYX: torch.Tensor
    anchors_B: torch.Tensor
    resolution_B: torch.Tensor
    scene_B: torch.Tensor
    missing_B: torch.Tensor
    neighbours_B: torch.Tensor
    snr_B: torch.Tensor
    shift_B3: torch.Tensor

    def __len__(self) -> int:
        return len(self.anchors_B)


def simulate_views(
    library: AtomLibrary,
    anchors: torch.Tensor,
    *,
    config: ViewConfig,
    rng: torch.Generator,
    window: Voxels = 32,
    voxel_size: Angstrom = 2.5,
    kinds: bool = False,
) -> Views:
    """Draw one view of each anchor, in a random orientation.

    The same state of `rng` gives the same views on the same kind of device; on a GPU up to
    the order of floating-point sums.

    Parameters
    ----------
    library : AtomLibrary
        Views are made where it lies.
    anchors : int64 tensor, `b`
        Indices of the library's anchors; repeat an index for several views.
    config : ViewConfig
    rng : torch.Generator
        On the library's device.
    window : Voxels
        Edge of the views, even.
    voxel_size : Angstrom
    kinds : bool
        Whether to tell apart the densities of helices, strands and the rest.

    Raises
    ------
    GeometryError
        If the voxels are too coarse for the finest resolution, or the edge is odd.
    MismatchError
        If the library has no such anchors, or no chains to stand beside them.
    """
    _check(library, anchors, config, rng, window, voxel_size)
    anchors = anchors.to(library.device)
    chunk = _CHUNK if library.device.type == "cpu" else max(len(anchors), 1)
    parts = [
        _views(library, part, _Drawn.of(config, len(part), rng=rng), config, rng, window, voxel_size, kinds)
        for part in torch.split(anchors, chunk)
    ]
    return Views(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Views)))


def _check(
    library: AtomLibrary,
    anchors: torch.Tensor,
    config: ViewConfig,
    rng: torch.Generator,
    window: Voxels,
    voxel_size: Angstrom,
) -> None:
    scenes = {scene for scene, frequency in config.scenes.items() if frequency > 0}
    coarse, fine = config.tomogram_resolution_A[0], config.resolution_A[0]
    finest = coarse if scenes == {"tomogram"} else min(coarse, fine)
    if window % 2 or finest < _FINEST * voxel_size:
        raise GeometryError(
            f"expected an even window and resolutions of at least {_FINEST} voxels ({_FINEST * voxel_size:.2f} Å)",
            got=f"{window} voxels, {finest:g} Å",
            hint="Choose a smaller voxel size or lower resolutions.",
        )
    if len(anchors) == 0 or int(anchors.min()) < 0 or int(anchors.max()) >= len(library.anchors):
        raise MismatchError(
            f"expected indices of the library's {len(library.anchors)} anchors",
            got=f"{len(anchors)} from {anchors.min()} to {anchors.max()}" if len(anchors) else "none",
            hint="Take them from AtomLibrary.anchors_of, for instance.",
        )
    if config.neighbours[1] > 0 and len(library.neighbours) == 0 and scenes != {"isolated"}:
        raise MismatchError(
            "expected chains that may stand beside an anchor",
            got="a library without",
            hint="Name neighbours when the library is made, or set neighbours to (0, 0).",
        )
    if rng.device.type != library.device.type:
        raise MismatchError(
            f"expected random numbers on {library.device}",
            got=str(rng.device),
            hint="Make the generator with torch.Generator(device=library.device).",
        )


# ---------------------------------------------------------------- what is drawn for each view


@dataclass(frozen=True, slots=True, eq=False)
class _Drawn:
    """All random numbers of some views but those of places and voxels, `b` each."""

    scene_B: torch.Tensor
    resolution_B: torch.Tensor
    snr_B: torch.Tensor
    shift_B3: torch.Tensor
    magnification_B: torch.Tensor
    missing_B: torch.Tensor
    neighbours_B: torch.Tensor
    whole_chain_B: torch.Tensor
    centred_B: torch.Tensor
    mask_offset_B: torch.Tensor
    mask_edge_B: torch.Tensor
    best_B: torch.Tensor
    worst_B: torch.Tensor
    b_factor_B: torch.Tensor
    flattened_B: torch.Tensor
    gamma_B: torch.Tensor
    tilt_B: torch.Tensor
    defocus_B: torch.Tensor

    @classmethod
    def of(cls, config: ViewConfig, count: int, *, rng: torch.Generator) -> "_Drawn":
        def even(low: float, high: float, *shape: int) -> torch.Tensor:
            return low + (high - low) * torch.rand(count, *shape, generator=rng, device=rng.device)

        def with_chance(chance: float) -> torch.Tensor:
            return even(0, 1) < chance

        frequencies = torch.tensor([config.scenes.get(scene, 0.0) for scene in SCENES], device=rng.device)
        scene_B = torch.multinomial(frequencies, count, replacement=True, generator=rng)
        tomogram_B = scene_B == SCENES.index("tomogram")
        map_B, alone_B = ~tomogram_B, scene_B == SCENES.index("isolated")
        fewest, most = config.neighbours
        # one more than the range: `even` never reaches its upper end
        neighbours_B = even(fewest, most + 1).to(torch.int64).clamp_max(most)
        snr_B = torch.where(tomogram_B, _spread(even(0, 1), config.tomogram_snr), _spread(even(0, 1), config.snr))
        none = torch.ones(count, device=rng.device)
        uneven_B, rescaled_B = with_chance(config.distorted) & map_B, with_chance(config.distorted) & map_B
        in_view_B = alone_B | (scene_B == SCENES.index("molecular")) | (scene_B == SCENES.index("sphere"))
        return cls(
            scene_B=scene_B,
            resolution_B=torch.where(tomogram_B, even(*config.tomogram_resolution_A), even(*config.resolution_A)),
            snr_B=snr_B.masked_fill(with_chance(config.noise_free) & map_B, torch.inf),
            shift_B3=even(-config.shift_A, config.shift_A, 3),
            magnification_B=1 + even(-config.magnification, config.magnification),
            missing_B=torch.where(with_chance(config.incomplete), even(*config.missing), 0 * none),
            neighbours_B=neighbours_B.masked_fill(alone_B, 0),
            whole_chain_B=with_chance(config.whole_chain) & ~alone_B,
            centred_B=with_chance(config.centred) & in_view_B,
            mask_offset_B=even(*config.mask_offset_A),
            mask_edge_B=even(*config.mask_edge_A),
            best_B=torch.where(uneven_B, even(min(config.uneven[0], 1), 1), none),
            worst_B=torch.where(uneven_B, even(1, max(config.uneven[1], 1)), none),
            b_factor_B=torch.where(rescaled_B, even(*config.b_factor_A2), 0 * none),
            flattened_B=with_chance(config.distorted) & map_B,
            gamma_B=torch.where(with_chance(config.distorted) & map_B, even(*config.gamma), none),
            tilt_B=even(*config.tilt_degrees),
            defocus_B=even(*config.defocus_um),
        )


def _spread(unit: torch.Tensor, bounds: Range) -> torch.Tensor:
    """Even on a logarithmic scale."""
    low, high = (torch.tensor(max(bound, 1e-6), device=unit.device).log() for bound in bounds)
    return torch.exp(low + (high - low) * unit)


# ---------------------------------------------------------------- from atoms to views


def _views(
    library: AtomLibrary,
    anchors: torch.Tensor,
    drawn: _Drawn,
    config: ViewConfig,
    rng: torch.Generator,
    window: Voxels,
    voxel_size: Angstrom,
    kinds: bool,
) -> Views:
    edge = window + 2 * _MARGIN
    reach = 0.5 * edge * voxel_size * (1 + config.magnification) + config.shift_A
    whole, scene, missing_B = _atoms(library, anchors, drawn, reach=reach, rng=rng)
    clean_BZYX = densities(*_placed(whole, drawn), drawn.resolution_B, edge=edge, voxel_size=voxel_size)
    signal_BZYX = _signal(clean_BZYX, scene, drawn, missing_B, voxel_size=voxel_size, rng=rng)
    signal_BZYX, noise_BZYX = _as_measured(signal_BZYX, clean_BZYX, drawn, voxel_size, rng)
    radius_B = library.radii_D[anchors]
    density_BZYX = _cut_out(signal_BZYX, noise_BZYX, clean_BZYX, radius_B, drawn, config, voxel_size, rng)
    density_BZYX = _with_gamma(density_BZYX, drawn.gamma_B)
    offset_B3 = _offset(density_BZYX, drawn.centred_B)
    by_kind = _by_kind(scene, drawn, edge=edge, voxel_size=voxel_size) if kinds else [clean_BZYX]
    parts = [_cropped(part_BZYX, offset_B3, window) for part_BZYX in by_kind]
    return Views(
        density_BZYX=_standardised(_cropped(density_BZYX, offset_B3, window)),
        clean_BZYX=_standardised(_cropped(clean_BZYX, offset_B3, window)),
        kinds_BCZYX=torch.stack(parts, dim=1) if kinds else parts[0][:, None][:, :0],
        anchors_B=anchors,
        resolution_B=drawn.resolution_B,
        scene_B=drawn.scene_B,
        missing_B=missing_B,
        neighbours_B=drawn.neighbours_B,
        snr_B=drawn.snr_B,
        shift_B3=drawn.shift_B3 - (offset_B3 - _MARGIN) * voxel_size,
    )


def _atoms(
    library: AtomLibrary, anchors: torch.Tensor, drawn: _Drawn, *, reach: Angstrom, rng: torch.Generator
) -> tuple[Atoms, Atoms, torch.Tensor]:
    """The whole domains, all that is there, and the fraction of each domain that is missing."""
    rotation_B33 = random_rotations(len(anchors), rng=rng)
    whole, present = anchor_atoms(library, anchors, rotation_B33, missing_B=drawn.missing_B, rng=rng)
    electrons_B = torch.zeros(len(anchors), device=library.device).index_add_(0, whole.views, whole.weights)
    scene = whole.where(present)
    kept_B = torch.zeros(len(anchors), device=library.device).index_add_(0, scene.views, scene.weights)
    crowded = torch.nonzero(drawn.whole_chain_B)[:, 0]
    if len(crowded):
        chain = chain_atoms(library, anchors[crowded], rotation_B33[crowded])
        scene = scene.and_(replace(chain, views=crowded[chain.views]))
    scene = scene.and_(touching_atoms(library, scene, drawn.neighbours_B, reach=reach, rng=rng))
    return whole, scene, 1 - kept_B / electrons_B.clamp_min(1)


def _placed(atoms: Atoms, drawn: _Drawn) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    positions = atoms.positions * drawn.magnification_B[atoms.views, None] + drawn.shift_B3[atoms.views]
    return positions, atoms.weights, atoms.views


def _by_kind(scene: Atoms, drawn: _Drawn, *, edge: Voxels, voxel_size: Angstrom) -> list[torch.Tensor]:
    """Density of all that is there, `b z y x` for each kind."""
    parts = []
    for kind in (COIL, HELIX, STRAND):
        some = scene.where(scene.kinds == kind)
        parts.append(densities(*_placed(some, drawn), drawn.resolution_B, edge=edge, voxel_size=voxel_size))
    return parts


def _signal(
    clean_BZYX: torch.Tensor,
    scene: Atoms,
    drawn: _Drawn,
    missing_B: torch.Tensor,
    *,
    voxel_size: Angstrom,
    rng: torch.Generator,
) -> torch.Tensor:
    """Density of all that is there, at the local resolution."""
    other_B = (drawn.neighbours_B > 0) | drawn.whole_chain_B | (missing_B > 0) | (drawn.worst_B > drawn.best_B)
    views = torch.nonzero(other_B)[:, 0]
    if len(views) == 0:
        return clean_BZYX
    place_B = torch.cumsum(other_B, 0) - 1
    positions, weights, owners = _placed(scene.where(other_B[scene.views]), drawn)
    # the grid carries no finer detail, however good the map is in places
    best_B = (drawn.best_B * drawn.resolution_B)[views].clamp_min(_FINEST * voxel_size)
    edge = clean_BZYX.shape[-1]
    part_BZYX = densities(positions, weights, place_B[owners], best_B, edge=edge, voxel_size=voxel_size)
    signal_BZYX = clean_BZYX.index_put((views,), part_BZYX)
    uneven = torch.nonzero(drawn.worst_B > drawn.best_B)[:, 0]
    if len(uneven):
        best_B = best_B[place_B[uneven]]
        worst_B = (drawn.worst_B * drawn.resolution_B)[uneven].maximum(best_B)
        signal_BZYX[uneven] = _uneven(signal_BZYX[uneven], best_B, worst_B, voxel_size, rng)
    return signal_BZYX


def _uneven(
    sharp_BZYX: torch.Tensor, best_B: torch.Tensor, worst_B: torch.Tensor, voxel_size: Angstrom, rng: torch.Generator
) -> torch.Tensor:
    """Resolution that falls from best to worst along a random direction, over most of the window."""
    more_B = SIGMA_PER_RESOLUTION * (worst_B**2 - best_B**2).sqrt()
    blurred_BZYX = gaussian_blur(sharp_BZYX, more_B, voxel_size=voxel_size)
    direction_B3 = random_directions(len(best_B), rng=rng)
    u = torch.linspace(-1, 1, sharp_BZYX.shape[-1], device=sharp_BZYX.device)
    z, y, x = (u * direction_B3[:, axis, None] for axis in range(3))
    along_BZYX = z[:, :, None, None] + y[:, None, :, None] + x[:, None, None, :]
    return torch.lerp(sharp_BZYX, blurred_BZYX, (0.5 + along_BZYX).clamp_(0, 1))


def _as_measured(
    signal_BZYX: torch.Tensor, clean_BZYX: torch.Tensor, drawn: _Drawn, voxel_size: Angstrom, rng: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Signal after filters, and noise of the drawn strength."""
    edge, device = signal_BZYX.shape[-1], signal_BZYX.device
    tomograms = torch.nonzero(drawn.scene_B == SCENES.index("tomogram"))[:, 0]
    rescaled = torch.nonzero(drawn.b_factor_B != 0)[:, 0]
    s_3ZYK = frequency_grids(edge, voxel_size, device=device)
    s2_ZYK = (s_3ZYK**2).sum(dim=0)
    if len(rescaled):
        response_BZYK = sharpening(s2_ZYK, drawn.b_factor_B[rescaled], drawn.resolution_B[rescaled])
        signal_BZYX = signal_BZYX.index_put((rescaled,), filtered(signal_BZYX[rescaled], response_BZYK))
    noise_BZYX = torch.zeros_like(signal_BZYX)
    smooth = torch.nonzero(drawn.snr_B.isfinite() & (drawn.scene_B != SCENES.index("tomogram")))[:, 0]
    if len(smooth):
        white_BZYX = _white(len(smooth), edge, rng)
        sigma_B = SIGMA_PER_RESOLUTION * drawn.resolution_B[smooth]
        noise_BZYX[smooth] = gaussian_blur(white_BZYX, sigma_B, voxel_size=voxel_size)
    if len(tomograms):
        wedge_BZYK = missing_wedge(s_3ZYK, random_rotations(len(tomograms), rng=rng), drawn.tilt_B[tomograms])
        transfer_BZYK = phase_flipped_transfer(s2_ZYK, drawn.defocus_B[tomograms], box=edge * voxel_size)
        signal_BZYX = signal_BZYX.index_put((tomograms,), filtered(signal_BZYX[tomograms], wedge_BZYK * transfer_BZYK))
        colour_BZYK = _tomogram_noise(s2_ZYK, drawn.resolution_B[tomograms])
        noise_BZYX[tomograms] = filtered(_white(len(tomograms), edge, rng), wedge_BZYK * colour_BZYK)
    level_B = _deviation(signal_BZYX, _body(clean_BZYX)) / drawn.snr_B.sqrt()
    level_B /= _deviation(noise_BZYX).clamp_min(1e-12)
    return signal_BZYX, noise_BZYX.mul_(level_B[:, None, None, None])


def _tomogram_noise(s2_ZYK: torch.Tensor, resolution_B: torch.Tensor) -> torch.Tensor:
    """Amplitude of white noise plus noise of power 1/f, equal at `_EQUAL_POWER`, low-passed at the resolution."""
    step = s2_ZYK[0, 0, 1].sqrt()  # the mean of the window takes the power of the lowest frequency
    power = 1 + 1 / (_EQUAL_POWER * s2_ZYK.sqrt().maximum(step))
    sigma_B = SIGMA_PER_RESOLUTION * resolution_B[:, None, None, None]
    return power.sqrt() * torch.exp(-2 * (torch.pi * sigma_B) ** 2 * s2_ZYK)


def _cut_out(
    signal_BZYX: torch.Tensor,
    noise_BZYX: torch.Tensor,
    clean_BZYX: torch.Tensor,
    radius_B: torch.Tensor,
    drawn: _Drawn,
    config: ViewConfig,
    voxel_size: Angstrom,
    rng: torch.Generator,
) -> torch.Tensor:
    """Signal and noise under the mask of the scene."""
    edge = signal_BZYX.shape[-1]
    alone = torch.nonzero((drawn.scene_B == SCENES.index("isolated")) & drawn.snr_B.isfinite())[:, 0]
    if len(alone):  # a domain by itself was cut out of something: noise stays near it
        near_BZYX = _envelope(clean_BZYX[alone], drawn.resolution_B[alone], voxel_size)
        noise_BZYX = noise_BZYX.index_put((alone,), noise_BZYX[alone] * near_BZYX)
    total_BZYX = signal_BZYX + noise_BZYX
    flat = torch.nonzero(drawn.flattened_B)[:, 0]
    if len(flat):
        total_BZYX[flat] *= _envelope(signal_BZYX[flat], drawn.resolution_B[flat], voxel_size)
    shaped = torch.nonzero(drawn.scene_B == SCENES.index("molecular"))[:, 0]
    if len(shaped):
        distance_BZYX = surface_distance(clean_BZYX[shaped], drawn.resolution_B[shaped], voxel_size=voxel_size)
        offset_BZYX = drawn.mask_offset_B[shaped][:, None, None, None].expand_as(distance_BZYX)
        if config.mask_roughness_A > 0:
            rough_BZYX = smooth_field(len(shaped), edge, nodes=_FIELD_NODES, rng=rng)
            offset_BZYX = offset_BZYX + config.mask_roughness_A * rough_BZYX
        total_BZYX[shaped] *= soft_mask(distance_BZYX, offset_BZYX, drawn.mask_edge_B[shaped])
    balls = torch.nonzero(drawn.scene_B == SCENES.index("sphere"))[:, 0]
    if len(balls):
        r_ZYX = radius_grid(edge, voxel_size, device=total_BZYX.device)
        middle_B = (
            radius_B[balls] * drawn.magnification_B[balls] + config.sphere_margin_A + drawn.mask_edge_B[balls] / 2
        )
        total_BZYX[balls] *= soft_mask(r_ZYX, middle_B[:, None, None, None], drawn.mask_edge_B[balls])
    return total_BZYX


def _envelope(density_BZYX: torch.Tensor, resolution_B: torch.Tensor, voxel_size: Angstrom) -> torch.Tensor:
    distance_BZYX = surface_distance(density_BZYX, resolution_B, voxel_size=voxel_size)
    offset, width = _ENVELOPE_A
    widths_B = torch.full((len(density_BZYX),), width, device=density_BZYX.device)
    return soft_mask(distance_BZYX, torch.tensor(offset, device=density_BZYX.device), widths_B)


# ---------------------------------------------------------------- voxels


def _white(count: int, edge: Voxels, rng: torch.Generator) -> torch.Tensor:
    return torch.randn(count, edge, edge, edge, generator=rng, device=rng.device)


def _body(clean_BZYX: torch.Tensor) -> torch.Tensor:
    """Where the domain is: above a tenth of its largest density, as in the retrieval benchmark."""
    return clean_BZYX > 0.1 * clean_BZYX.amax(dim=(1, 2, 3), keepdim=True)


def _deviation(data_BZYX: torch.Tensor, where_BZYX: torch.Tensor | None = None) -> torch.Tensor:
    """Standard deviation of each window, or of a part of it."""
    values = data_BZYX.flatten(1)
    count: torch.Tensor | int = values.shape[1]
    if where_BZYX is not None:
        values = values * where_BZYX.flatten(1)  # what is left out adds nothing to either sum
        count = where_BZYX.flatten(1).sum(dim=1).clamp_min(1)
    mean = values.sum(dim=1) / count
    return ((values * values).sum(dim=1) / count - mean * mean).clamp_min(0).sqrt()


def _with_gamma(data_BZYX: torch.Tensor, gamma_B: torch.Tensor) -> torch.Tensor:
    """Sign and the absolute value, in units of the largest, to the power of gamma."""
    views = torch.nonzero(gamma_B != 1)[:, 0]
    if len(views) == 0:
        return data_BZYX
    part = data_BZYX[views]
    largest = part.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)
    curved = torch.sign(part) * (part.abs() / largest) ** gamma_B[views, None, None, None] * largest
    return data_BZYX.index_put((views,), curved)


def _offset(data_BZYX: torch.Tensor, centred_B: torch.Tensor) -> torch.Tensor:
    """First voxel of the crop: the margin, or what centres the mass above half a standard deviation, `b 3`."""
    edge = data_BZYX.shape[-1]
    offset_B3 = torch.full((len(data_BZYX), 3), _MARGIN, device=data_BZYX.device)
    views = torch.nonzero(centred_B)[:, 0]
    if len(views):
        part = data_BZYX[views]
        mass = torch.relu(part - 0.5 * _deviation(part)[:, None, None, None])
        u = torch.arange(edge, device=part.device) - (edge - 1) / 2
        total = mass.sum(dim=(1, 2, 3)).clamp_min(1e-12)
        over_z = mass.sum(dim=1)
        profiles = (mass.flatten(2).sum(dim=2), over_z.sum(dim=2), over_z.sum(dim=1))
        centre_B3 = torch.stack([profile @ u / total for profile in profiles], dim=1)
        offset_B3[views] = (centre_B3.round().to(torch.int64) + _MARGIN).clamp(0, 2 * _MARGIN)
    return offset_B3


def _cropped(data_BZYX: torch.Tensor, offset_B3: torch.Tensor, window: Voxels) -> torch.Tensor:
    return torch.stack(
        [
            data_ZYX[z : z + window, y : y + window, x : x + window]
            for data_ZYX, (z, y, x) in zip(data_BZYX, offset_B3.tolist(), strict=True)
        ]
    )


def _standardised(data_BZYX: torch.Tensor) -> torch.Tensor:
    square = (data_BZYX * data_BZYX).mean(dim=(1, 2, 3), keepdim=True)
    return data_BZYX * torch.rsqrt(square.clamp_min(1e-20))

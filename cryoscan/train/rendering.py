"""What a microscope makes of atoms, in torch for batches of small cubic windows: densities, envelopes, noise, filters.

Letters of shapes: B windows, N atoms, Z Y X voxels of a window; K frequencies of the last axis.
Positions are z y x in Å from the window's centre, which lies between the two middle voxels
of an even edge.
"""

import math

import torch

from cryoscan.units import A3_PER_RESIDUE, SIGMA_PER_RESOLUTION, Angstrom, Voxels

_LEAST_WIDTH = 0.6  # voxels: a narrower Gaussian is not represented by its values at the voxels
_ELECTRONS_PER_RESIDUE = 52.0  # of the heavy atoms, mean over the residues of proteins
_ENVELOPE_RESOLUTION: Angstrom = 10.0
_KEV = 300.0
_SPHERICAL_ABERRATION: Angstrom = 2.7e7
_AMPLITUDE_CONTRAST = 0.1

# ---------------------------------------------------------------- densities


def densities(
    positions: torch.Tensor,
    weights: torch.Tensor,
    owners: torch.Tensor,
    resolution_B: torch.Tensor,
    *,
    edge: Voxels,
    voxel_size: Angstrom,
) -> torch.Tensor:
    """Densities as of `cryoscan.simulate.density`: each atom a Gaussian of sigma = 0.225 × resolution.

    Atoms are laid on a grid by trilinear weights, which widens each by a sixth of the grid's
    spacing squared on average; the Gaussian that follows is narrower by as much. The grid is
    twice as fine as the voxels where the resolution asks for it.

    Parameters
    ----------
    positions : float tensor, `n 3`
        Å; atoms outside the window are left out.
    weights : float tensor, `n`
        Number of electrons.
    owners : int64 tensor, `n`
        Window of each atom.
    resolution_B : float tensor, `b`
        Å, at least 1.6 voxels.
    edge, voxel_size
        Of the windows.

    Returns
    -------
    float32 tensor, `b z y x`
        Electrons/Å³.
    """
    sigma_B = SIGMA_PER_RESOLUTION * resolution_B
    fine_B = sigma_B**2 < (_LEAST_WIDTH**2 + 1 / 6) * voxel_size**2
    total_BZYX = torch.zeros(len(sigma_B), edge, edge, edge, device=positions.device)
    for oversampling, chosen_B in ((2, fine_B), (1, ~fine_B)):
        windows = torch.nonzero(chosen_B)[:, 0]
        if len(windows) == 0:
            continue
        place_B = torch.cumsum(chosen_B, 0) - 1
        mine = chosen_B[owners]
        spacing = voxel_size / oversampling
        places = positions[mine] / spacing
        reach = int(places.abs().max()) + 2 if len(places) else 1  # most domains are smaller than the window
        count = min(oversampling * edge, 2 * reach)
        grid = _splat(places, weights[mine], place_B[owners[mine]], count=len(windows), edge=count)
        rest_B = (sigma_B[windows] ** 2 - spacing**2 / 6).clamp_min((0.5 * spacing) ** 2).sqrt()
        matrix_BIJ = _gaussian_matrix(rest_B, edge, voxel_size, count=count, spacing=spacing)
        total_BZYX[windows] = along_axes(matrix_BIJ, grid)
    return total_BZYX


def gaussian_blur(density_BZYX: torch.Tensor, sigma_B: torch.Tensor, *, voxel_size: Angstrom) -> torch.Tensor:
    """Convolve each window with a Gaussian of `sigma_B` Å; outside the windows is nothing.

    The kernel is the Gaussian's Fourier transform up to the Nyquist frequency, so that narrow
    ones are right too: the values of a Gaussian at the voxels would not be.
    """
    edge = density_BZYX.shape[-1]
    s = torch.fft.rfftfreq(2 * edge, voxel_size, device=sigma_B.device)
    kernel_BU = torch.fft.irfft(torch.exp(-2 * (torch.pi * sigma_B[:, None] * s) ** 2), n=2 * edge)
    u = torch.arange(edge, device=sigma_B.device)
    return along_axes(kernel_BU[:, (u[:, None] - u).abs()], density_BZYX)


def along_axes(matrix_BIJ: torch.Tensor, data_BJJJ: torch.Tensor) -> torch.Tensor:
    """Multiply each axis of each window by the window's matrix."""
    b, i, j = matrix_BIJ.shape
    data = torch.bmm(data_BJJJ.reshape(b, j * j, j), matrix_BIJ.transpose(1, 2)).view(b, j, j, i)
    data = torch.matmul(matrix_BIJ[:, None], data)
    return torch.bmm(matrix_BIJ, data.reshape(b, j, i * i)).view(b, i, i, i)


# ---------------------------------------------------------------- masks


def surface_distance(density_BZYX: torch.Tensor, resolution_B: torch.Tensor, *, voxel_size: Angstrom) -> torch.Tensor:
    """Approximate distance from the molecular surface in Å, negative inside; good within about 8 Å of it.

    At 10 Å protein is a body of even density with blurred edges: across a flat surface the
    density falls like a normal distribution function of the distance, whose inverse is
    approximated by logit / 1.702 (Haley 1952; Camilli 1994, J. Educ. Behav. Stat. 19, 293).

    Parameters
    ----------
    density_BZYX : float tensor
        Electrons/Å³.
    resolution_B : float tensor
        Of the density, Å.
    voxel_size : Angstrom
    """
    sigma = SIGMA_PER_RESOLUTION * _ENVELOPE_RESOLUTION
    present_B = SIGMA_PER_RESOLUTION * resolution_B
    more_B = (sigma**2 - present_B**2).clamp_min(0).sqrt()
    inside = gaussian_blur(density_BZYX, more_B, voxel_size=voxel_size)
    inside *= A3_PER_RESIDUE / _ELECTRONS_PER_RESIDUE
    inside.clamp_(1e-5, 1 - 1e-5)
    reach_B = present_B.clamp_min(sigma) / 1.702
    return torch.logit(inside).mul_(-reach_B[:, None, None, None])


def soft_mask(distance_BZYX: torch.Tensor, offset: torch.Tensor, edge_B: torch.Tensor) -> torch.Tensor:
    """A mask that is 1/2 where the distance equals `offset` and falls from 1 to 0 over `edge_B` Å."""
    return (0.5 - (distance_BZYX - offset) / edge_B[:, None, None, None]).clamp_(0, 1)


def smooth_field(count: int, edge: Voxels, *, nodes: int, rng: torch.Generator) -> torch.Tensor:
    """Random fields that vary smoothly over a window, mean 0 and standard deviation about 0.6, `b z y x`."""
    coarse = torch.randn(count, nodes, nodes, nodes, generator=rng, device=rng.device)
    u = torch.linspace(0, nodes - 1, edge, device=rng.device)[:, None] - torch.arange(nodes, device=rng.device)
    return along_axes((1 - u.abs()).clamp_min(0).expand(count, -1, -1), coarse)


def radius_grid(edge: Voxels, voxel_size: Angstrom, *, device: torch.device) -> torch.Tensor:
    """Distance of each voxel from the window's centre in Å, `z y x`."""
    u = _places(edge, voxel_size, device) ** 2
    return (u[:, None, None] + u[None, :, None] + u[None, None, :]).sqrt()


# ---------------------------------------------------------------- Fourier space


def frequency_grids(edge: Voxels, voxel_size: Angstrom, *, device: torch.device) -> torch.Tensor:
    """Spatial frequency of each coefficient of `rfftn`, `3 z y k` in 1/Å."""
    full = torch.fft.fftfreq(edge, voxel_size, device=device)
    half = torch.fft.rfftfreq(edge, voxel_size, device=device)
    return torch.stack(torch.meshgrid(full, full, half, indexing="ij"))


def filtered(density_BZYX: torch.Tensor, response_BZYK: torch.Tensor) -> torch.Tensor:
    """Multiply the Fourier transform of each window, taken as periodic, by a real response."""
    shape = density_BZYX.shape[1:]
    return torch.fft.irfftn(torch.fft.rfftn(density_BZYX, dim=(1, 2, 3)) * response_BZYK, s=shape, dim=(1, 2, 3))


def sharpening(s2_ZYK: torch.Tensor, b_factor_B: torch.Tensor, resolution_B: torch.Tensor) -> torch.Tensor:
    """exp(-B s²/4), times a Butterworth low-pass (order 8) at the resolution where B is negative.

    A sharpened map is always low-passed: what lies beyond its resolution is noise.
    """
    b, r = b_factor_B[:, None, None, None], resolution_B[:, None, None, None]
    low_pass = torch.rsqrt(1 + (s2_ZYK * r * r) ** 8)
    return torch.exp(-b * s2_ZYK / 4) * torch.where(b < 0, low_pass, torch.ones_like(low_pass))


def missing_wedge(s_3ZYK: torch.Tensor, rotation_B33: torch.Tensor, tilt_B: torch.Tensor) -> torch.Tensor:
    """1 where tilts from -t to +t degrees measure a frequency, 0 in the wedge that they miss.

    Parameters
    ----------
    s_3ZYK : float tensor
    rotation_B33 : float tensor
        Rows: direction of the beam, direction across the tilt axis, tilt axis.
    tilt_B : float tensor
        Largest tilt, degrees.

    Notes
    -----
    By the projection theorem a tilt measures the plane perpendicular to the beam; a frequency
    whose component along the untilted beam exceeds tan(t) times that across the axis lies in
    none of these planes (e.g. Frank, Electron Tomography, 2006).
    """
    along_BZYK, across_BZYK = torch.einsum("brc,czyk->rbzyk", rotation_B33[:, :2], s_3ZYK).abs()
    slope_B = torch.tan(torch.deg2rad(tilt_B))
    return (along_BZYK <= slope_B[:, None, None, None] * across_BZYK + 1e-6).to(torch.float32)


def phase_flipped_transfer(s2_ZYK: torch.Tensor, defocus_um_B: torch.Tensor, *, box: Angstrom) -> torch.Tensor:
    """Contrast transfer at 300 kV after phase flipping, |CTF|, averaged over a voxel of Fourier space.

    CTF(s) = -sin(χ(s) + α), χ = π λ Δz s² - π/2 Cs λ³ s⁴, sin α = amplitude contrast (e.g. Penczek
    2010, Methods Enzymol. 482, 73). Where χ turns by more than a half within one voxel of
    Fourier space, the rings belong to signal that has left the box; their mean, 2/π, remains.

    Parameters
    ----------
    s2_ZYK : float tensor
        Squared spatial frequency, 1/Å².
    defocus_um_B : float tensor
        Underfocus is positive.
    box : Angstrom
        Edge of the window: Fourier space is sampled at steps of its inverse.
    """
    wavelength = electron_wavelength(_KEV)
    defocus = 1e4 * defocus_um_B[:, None, None, None]
    chi = math.pi * wavelength * s2_ZYK * (defocus - _SPHERICAL_ABERRATION * wavelength**2 * s2_ZYK / 2)
    slope = 2 * math.pi * wavelength * s2_ZYK.sqrt() * (defocus - _SPHERICAL_ABERRATION * wavelength**2 * s2_ZYK)
    kept = torch.sinc(slope / (math.pi * box)).clamp_min(0) * (slope.abs() < math.pi * box)
    mean = 2 / math.pi
    return mean + (torch.sin(chi + math.asin(_AMPLITUDE_CONTRAST)).abs() - mean) * kept


def electron_wavelength(kilovolt: float) -> Angstrom:
    """Relativistic de Broglie wavelength: 12.2643 / sqrt(V + 0.978476e-6 V²) Å, V in volts."""
    volt = 1000 * kilovolt
    return 12.2643 / math.sqrt(volt + 0.978476e-6 * volt * volt)


# ---------------------------------------------------------------- private


def _splat(
    places: torch.Tensor, weights: torch.Tensor, owners: torch.Tensor, *, count: int, edge: Voxels
) -> torch.Tensor:
    """Trilinear weights of points on grids, `count edge edge edge`; `places` in voxels from the centre."""
    places = places + (edge - 1) / 2
    inside = torch.all((places >= 0) & (places < edge - 1), dim=1)
    places, weights, owners = places[inside], weights[inside], owners[inside]
    corner = places.floor()
    high = places - corner
    low = 1 - high
    z, y, x = corner.to(torch.int64).unbind(1)
    index = ((owners * edge + z) * edge + y) * edge + x
    grid = torch.zeros(count * edge**3, device=places.device)
    for dz, part_z in ((0, low[:, 0]), (1, high[:, 0])):
        for dy, part_y in ((0, low[:, 1]), (1, high[:, 1])):
            part = weights * part_z * part_y
            for dx, part_x in ((0, low[:, 2]), (1, high[:, 2])):
                grid.index_add_(0, index + (dz * edge + dy) * edge + dx, part * part_x)
    return grid.view(count, edge, edge, edge)


def _gaussian_matrix(
    sigma_B: torch.Tensor, edge: Voxels, voxel_size: Angstrom, *, count: Voxels, spacing: Angstrom
) -> torch.Tensor:
    """Normalised Gaussians in 1/Å from `count` grid points to `edge` voxels with a common centre, `b edge count`."""
    to = _places(edge, voxel_size, sigma_B.device)
    source = _places(count, spacing, sigma_B.device)
    u = (to[:, None] - source) / sigma_B[:, None, None]
    return torch.exp(-0.5 * u * u) / (sigma_B[:, None, None] * math.sqrt(2 * math.pi))


def _places(edge: Voxels, voxel_size: Angstrom, device: torch.device) -> torch.Tensor:
    return (torch.arange(edge, device=device) - (edge - 1) / 2) * voxel_size

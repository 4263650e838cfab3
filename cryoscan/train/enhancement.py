"""What the enhancing network is trained for: the sharp density, its local structure, and its agreement shell by shell.

Loss: SmoothL1 + 0.5 (1 - SSIM) + 0.25 (1 - mean Fourier shell correlation).
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from cryoscan.models.cryosamu import CryoSamu
from cryoscan.train.objectives import Numbers
from cryoscan.train.pairs import Pairs
from cryoscan.train.rendering import frequency_grids
from cryoscan.units import Angstrom, Voxels

EnhancementObjective = Callable[[CryoSamu, Pairs, torch.Generator], tuple[Tensor, Numbers]]

_SSIM_WINDOW: Voxels = 7
_SSIM_C1, _SSIM_C2 = 0.01**2, 0.03**2
_TAPER: Voxels = 4


def enhance_objective(
    network: CryoSamu,
    pairs: Pairs,
    rng: torch.Generator,
    *,
    dropout: float = 0.3,
    ssim: float = 0.5,
    shells: float = 0.25,
) -> tuple[Tensor, Numbers]:
    """Loss of a batch.

    Parameters
    ----------
    network : CryoSamu
    pairs : Pairs
    rng : torch.Generator
        On a processor.
    dropout : float
        Share of the windows whose structure is hidden, so that the network does without, too.
    ssim, shells : float
        Weights beside the SmoothL1.
    """
    informants = pairs.informants
    if informants is not None:
        dropped_B = torch.rand(len(pairs), generator=rng) < dropout
        informants = informants.without(dropped_B.to(pairs.map_BZYX.device))
    found_BZYX = network(pairs.map_BZYX, informants) * pairs.weight_BZYX
    smooth_l1 = functional.smooth_l1_loss(found_BZYX, pairs.sharp_BZYX, beta=0.5)
    unlike = 1 - ssim_3d(found_BZYX, pairs.sharp_BZYX).mean()
    curve_BS = shell_correlation(found_BZYX, pairs.sharp_BZYX, voxel_size=network.config.voxel_size_A)
    apart = 1 - curve_BS.mean()
    with torch.no_grad():
        before = functional.smooth_l1_loss(pairs.map_BZYX * pairs.weight_BZYX, pairs.sharp_BZYX, beta=0.5)
    numbers = {
        "smooth_l1": smooth_l1.item(),
        "smooth_l1_before": before.item(),
        "ssim": 1 - unlike.item(),
        "shells": 1 - apart.item(),
    }
    return smooth_l1 + ssim * unlike + shells * apart, numbers


def ssim_3d(first_BZYX: Tensor, second_BZYX: Tensor) -> Tensor:
    """Structural similarity of each window in cubes of 7 voxels (Wang et al. 2004, IEEE Trans. Image Process. 13, 600).

    The range of the values is that of the second map, from its least to its greatest value.
    """
    range_B = second_BZYX.amax(dim=(1, 2, 3)) - second_BZYX.amin(dim=(1, 2, 3))
    range_B = range_B.clamp_min(1e-6)[:, None, None, None]

    def mean(values: Tensor) -> Tensor:
        return functional.avg_pool3d(values[:, None], _SSIM_WINDOW, stride=2)[:, 0]

    a, b = first_BZYX / range_B, second_BZYX / range_B
    mean_a, mean_b = mean(a), mean(b)
    var_a, var_b = (mean(a * a) - mean_a**2).clamp_min(0), (mean(b * b) - mean_b**2).clamp_min(0)
    both = mean(a * b) - mean_a * mean_b
    light = (2 * mean_a * mean_b + _SSIM_C1) / (mean_a**2 + mean_b**2 + _SSIM_C1)
    contrast = (2 * both + _SSIM_C2) / (var_a + var_b + _SSIM_C2)
    return (light * contrast).mean(dim=(1, 2, 3))


def shell_correlation(first_BZYX: Tensor, second_BZYX: Tensor, *, voxel_size: Angstrom) -> Tensor:
    """Fourier shell correlation up to the Nyquist frequency, `b shells`, without frequency 0.

    The windows are faded out at their borders, where the jump between opposite faces would
    reach all shells; in a shell without power the correlation is 0.
    """
    edge = first_BZYX.shape[-1]
    s_ZYK = (frequency_grids(edge, voxel_size, device=first_BZYX.device) ** 2).sum(dim=0).sqrt()
    number = (s_ZYK * edge * voxel_size).round().long().flatten()
    count = edge // 2 + 1
    twice = torch.full((edge // 2 + 1,), 2.0, device=first_BZYX.device)
    twice[0] = 1.0
    if edge % 2 == 0:
        twice[-1] = 1.0
    ramp = ((torch.arange(edge, device=first_BZYX.device) + 0.5) / _TAPER).clamp_max(1)
    ramp = ramp * ramp.flip(0)
    fade_ZYX = ramp[:, None, None] * ramp[None, :, None] * ramp[None, None, :]
    a, b = (torch.fft.rfftn(part * fade_ZYX, dim=(1, 2, 3)) for part in (first_BZYX, second_BZYX))

    def sums(values_BZYK: Tensor) -> Tensor:
        rows = (values_BZYK * twice).flatten(1)
        keep = number < count
        return rows.new_zeros(len(rows), count).index_add(1, number[keep], rows[:, keep])[:, 1:]

    cross = sums((a * b.conj()).real)
    power = (sums(a.abs().square()) * sums(b.abs().square())).clamp_min(1e-12).sqrt()
    return cross / power

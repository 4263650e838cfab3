"""The layers of a network that has no offsets: scaling the input scales every feature by the same factor.

Without offsets, with ReLU, and with norms that only divide by constants, a network is
homogeneous of degree 1, f(c x) = c f(x) for c > 0 (Mohan et al. 2020, ICLR, arXiv 1906.05478):
what it has learned at one contrast holds at every other, and empty space, zero, stays zero,
so zero padding and empty solvent are the same thing.

Letters of shapes: B batch, C channels, Z Y X the grid.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional

_MOMENTUM = 0.05
_TINY = 1e-20


class NormedConv(nn.Module):
    """A convolution whose output channels have a root mean square of `gain`.

    Batch normalisation that neither subtracts a mean nor adds an offset. In training the
    root mean square is that of the batch; in evaluation it is the running one, a constant,
    and part of the kernel, so that evaluation is one convolution.

    Parameters
    ----------
    channels_in, channels_out : int
    kernel : int
        Edge in voxels of the input grid; 3 keeps the grid, others are padded to divide it by `stride`.
    stride : int
    transposed : bool
        Multiply the grid by `stride` instead of dividing it.
    """

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int, *, stride: int = 1, transposed: bool = False
    ) -> None:
        super().__init__()
        self.stride, self.padding, self.transposed = stride, (kernel - stride) // 2, transposed
        first, second = (channels_in, channels_out) if not transposed else (channels_out, channels_in)
        fan_in = channels_in * (kernel**3 if not transposed else (kernel // stride) ** 3)
        weight = torch.randn(second, first, kernel, kernel, kernel) * (2 / fan_in) ** 0.5
        self.weight = nn.Parameter(weight)
        self.gain = nn.Parameter(torch.ones(channels_out))
        self.register_buffer("mean_square", torch.ones(channels_out))
        self.mean_square: torch.Tensor

    def forward(self, x_BCZYX: torch.Tensor) -> torch.Tensor:
        """`b channels_in z y x` → `b channels_out z' y' x'`."""
        if not self.training:
            scale = self.gain * torch.rsqrt(self.mean_square.clamp_min(_TINY))
            return self._convolved(
                x_BCZYX,
                self.weight * (scale[:, None, None, None] if self.transposed else scale[:, None, None, None, None]),
            )
        y_BCZYX = self._convolved(x_BCZYX, self.weight)
        x_BCZYX, mean_square = _ByRootMeanSquare.apply(y_BCZYX, self.gain)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            self.mean_square.lerp_(mean_square, _MOMENTUM)
        return x_BCZYX

    def _convolved(self, x_BCZYX: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if weight.shape[2] == 1:  # torch has no quick path for these in a batch of one
            return functional.linear(x_BCZYX.permute(0, 2, 3, 4, 1), weight[:, :, 0, 0, 0]).permute(0, 4, 1, 2, 3)
        if self.transposed:
            return functional.conv_transpose3d(x_BCZYX, weight, stride=self.stride, padding=self.padding)
        return functional.conv3d(x_BCZYX, weight, stride=self.stride, padding=self.padding)


class ResidualBlock(nn.Module):
    """relu(x + conv(relu(conv(x)))), 3³ kernels (He et al. 2016, figure 2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = NormedConv(channels, channels, 3)
        self.second = NormedConv(channels, channels, 3)

    def forward(self, x_BCZYX: torch.Tensor, rng: torch.Generator | None = None) -> torch.Tensor:
        """Keep the shape; `rng` is for blocks that draw."""
        return torch.relu_(self.second(torch.relu_(self.first(x_BCZYX))) + x_BCZYX)


@torch.no_grad()
def widen_kernels(narrow: nn.Module, wide: nn.Module, *, apart: float, rng: torch.Generator) -> None:
    """Give a wider copy of a network the kernels of the narrow one: channels are repeated and do together what one did.

    Parameters
    ----------
    narrow, wide : Module
        Of the same modules in the same order; `wide` is changed.
    apart : float
        Standard deviation of what is added to tell the copies apart, in units of that of a kernel.
    rng : torch.Generator

    References
    ----------
    Chen, Goodfellow & Shlens 2016, ICLR, arXiv 1511.05641, section 2.2.
    """
    for old, new in zip(narrow.modules(), wide.modules(), strict=True):
        if isinstance(old, NormedConv) and isinstance(new, NormedConv):
            new.weight.copy_(_repeated(old.weight, new.weight, inputs=0 if old.transposed else 1))
            place = torch.arange(len(new.gain)) % len(old.gain)
            new.gain.copy_(old.gain[place])
            new.mean_square.copy_(old.mean_square[place])
        elif isinstance(old, nn.ConvTranspose3d | nn.Conv3d) and isinstance(new, nn.ConvTranspose3d | nn.Conv3d):
            inputs = 0 if isinstance(old, nn.ConvTranspose3d) else 1
            new.load_state_dict(old.state_dict() | {"weight": _repeated(old.weight, new.weight, inputs=inputs)})
    for kernel in wide.parameters():
        if kernel.ndim == 5:
            kernel.add_(apart * kernel.std() * torch.randn(kernel.shape, generator=rng))


def _repeated(old: torch.Tensor, new: torch.Tensor, *, inputs: int) -> torch.Tensor:
    """A kernel for more channels: outputs again and again; what comes in several times counts as once."""
    places = [torch.arange(many) % few for few, many in zip(old.shape[:2], new.shape[:2], strict=True)]
    times = torch.bincount(places[inputs])[places[inputs]].float()
    shares = times[:, None] if inputs == 0 else times[None, :]
    return old[places[0]][:, places[1]] / shares[..., None, None, None]


class _ByRootMeanSquare(torch.autograd.Function):
    """y gain / rms(y), channel by channel, with the gradient written out: half of the passes over memory."""

    @staticmethod
    def forward(ctx: Any, y_BCZYX: torch.Tensor, gain: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean_square = y_BCZYX.square().mean(dim=(0, 2, 3, 4), dtype=torch.float32)
        inverse = torch.rsqrt(mean_square.clamp_min(_TINY))
        ctx.save_for_backward(y_BCZYX, gain, inverse)
        ctx.mark_non_differentiable(mean_square)
        return y_BCZYX * _column(gain * inverse, y_BCZYX), mean_square

    @staticmethod
    def backward(ctx: Any, slope_BCZYX: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y_BCZYX, gain, inverse = ctx.saved_tensors
        along = (slope_BCZYX * y_BCZYX).sum(dim=(0, 2, 3, 4), dtype=torch.float32)
        count = y_BCZYX.numel() // len(gain)
        slope = slope_BCZYX * _column(gain * inverse, y_BCZYX)
        slope.addcmul_(y_BCZYX, _column(gain * along * inverse**3 / count, y_BCZYX), value=-1)
        return slope, along * inverse


def _column(values_C: torch.Tensor, like_BCZYX: torch.Tensor) -> torch.Tensor:
    return values_C.to(like_BCZYX.dtype)[:, None, None, None]

"""The Swin-Conv block in three dimensions: half of the channels convolve, the other half attend within windows.

After Zhang et al. 2023 (Machine Intelligence Research 20, 822, figure 3), with three changes
that scanning asks for. Nothing has an offset, and queries and keys are made from features divided
by their local magnitude while values are not, so that the block is homogeneous of degree 1.
Attention windows are counted from the first voxel of the grid, or, in training, from a
random one, so that what is learned does not lean on where a window begins.

Letters of shapes: B batch, C channels, Z Y X the grid, N attention windows, H heads, T voxels of a window, D
channels of a head.
"""

from itertools import repeat

import torch
from torch import nn
from torch.nn import functional

from cryoscan.models.bias_free import NormedConv

_FAINT = 0.01  # of the mean square nearby: voxels fainter than a tenth of that magnitude hardly ask or answer
_AT_ONCE = 1 << 19  # logits computed together on a processor: what its cache holds (measured: 1.3 times as fast)
_APART = 80.0  # exp(-80) is nothing, and logits of this size still have five digits
_TINY = 1e-20


class SwinConvBlock(nn.Module):
    """A Swin-Conv block.

    Parameters
    ----------
    channels : int
        Even.
    window : int
        Edge of an attention window in voxels of the block's grid.
    head_channels : int
        Channels of an attention head, where there are as many.
    shifted : bool
        In evaluation, move the windows by half of their edge.
    """

    def __init__(self, channels: int, *, window: int, head_channels: int = 16, shifted: bool = False) -> None:
        super().__init__()
        half = channels // 2
        self.to_conv, self.to_attention = NormedConv(channels, half, 1), NormedConv(channels, half, 1)
        self.conv_first, self.conv_second = NormedConv(half, half, 3), NormedConv(half, half, 3)
        self.attention = WindowAttention(half, window=window, head_channels=head_channels, shifted=shifted)
        self.mlp_first, self.mlp_second = NormedConv(half, channels, 1), NormedConv(channels, half, 1)
        self.merge = NormedConv(channels, channels, 1)

    def forward(self, x_BCZYX: torch.Tensor, rng: torch.Generator | None = None) -> torch.Tensor:
        """Keep the shape; in training the windows' first voxel is drawn from `rng`."""
        local = self.to_conv(x_BCZYX)
        local = local + self.conv_second(torch.relu_(self.conv_first(local)))
        distant = self.to_attention(x_BCZYX)
        distant = distant + self.attention(distant, rng)
        distant = distant + self.mlp_second(torch.relu_(self.mlp_first(distant)))
        return x_BCZYX + self.merge(torch.cat([local, distant], dim=1))


class WindowAttention(nn.Module):
    """Multi-head attention within cubes of `window`³ voxels, with a learned bias for relative positions.

    Parameters as of `SwinConvBlock`.
    """

    def __init__(self, channels: int, *, window: int, head_channels: int, shifted: bool) -> None:
        super().__init__()
        self.window, self.shifted = window, shifted
        self.heads = max(1, channels // head_channels)
        self.ask_answer_give = nn.Linear(channels, 3 * channels, bias=False)
        self.position_bias = nn.Parameter(0.02 * torch.randn(self.heads, (2 * window - 1) ** 3))
        self.project = NormedConv(channels, channels, 1)
        self.register_buffer("relative", _relative_positions(window), persistent=False)
        self.relative: torch.Tensor

    def forward(self, x_BCZYX: torch.Tensor, rng: torch.Generator | None = None) -> torch.Tensor:
        """Keep the shape."""
        if self.training:
            first = torch.randint(self.window, (3,), generator=rng).tolist()
        else:
            first = [self.window // 2 * self.shifted] * 3
        z, y, x = x_BCZYX.shape[2:]
        beyond = [-size % self.window for size in (z, y, x)]
        x_BZYXC = torch.cat([x_BCZYX, self._levels(x_BCZYX)], dim=1).permute(0, 2, 3, 4, 1)
        if any(beyond):
            x_BZYXC = functional.pad(x_BZYXC, (0, 0, 0, beyond[2], 0, beyond[1], 0, beyond[0]))
        if any(first):
            x_BZYXC = x_BZYXC.roll([-start for start in first], (1, 2, 3))
        sides = self._sides((z, y, x), first, x_BZYXC) if any(first) or any(beyond) else None
        x_NTC = _to_windows(x_BZYXC, self.window)
        part = max(1, _AT_ONCE // self.window**6) if x_NTC.device.type == "cpu" else len(x_NTC)
        parts = zip(torch.split(x_NTC, part), torch.split(sides, part) if sides is not None else repeat(None))
        given_NTC = torch.cat([self._attended(some, theirs) for some, theirs in parts])
        given = _from_windows(given_NTC, x_BZYXC.shape[:4], self.window)
        if any(first):
            given = given.roll(first, (1, 2, 3))
        return self.project(given[:, :z, :y, :x].permute(0, 4, 1, 2, 3))

    def _levels(self, x_BCZYX: torch.Tensor) -> torch.Tensor:
        """One over the magnitude of every voxel, for which that of its surroundings sets a floor, `b 1 z y x`."""
        square = x_BCZYX.square().mean(dim=1, keepdim=True)
        reach = self.window // 2
        nearby = functional.pad(square, [reach] * 6)  # the pooling's own padding has no gradient on small grids
        for axis in range(3):
            nearby = functional.avg_pool3d(nearby, [2 * reach + 1 if a == axis else 1 for a in range(3)], 1)
        return torch.rsqrt(square + _FAINT * nearby + _TINY)

    def _attended(self, x_NTC: torch.Tensor, sides_NTD: torch.Tensor | None) -> torch.Tensor:
        x_NTC, level_NT1 = x_NTC[..., :-1], x_NTC[..., -1:]
        ask, answer, give = (
            part.tensor_split(self.heads, dim=2) for part in self.ask_answer_give(x_NTC).chunk(3, dim=2)
        )
        bias_HTT = self.position_bias[:, self.relative]
        given = []
        for head in range(self.heads):
            ask_NTD = ask[head] * (level_NT1 * ask[head].shape[2] ** -0.5)
            answer_NTD = answer[head] * level_NT1
            if sides_NTD is not None:
                ask_NTD, answer_NTD = torch.cat([ask_NTD, sides_NTD], 2), torch.cat([answer_NTD, sides_NTD], 2)
            logits_NTT = torch.baddbmm(bias_HTT[head], ask_NTD, answer_NTD.transpose(1, 2))
            given.append(logits_NTT.softmax(dim=2) @ give[head])
        return torch.cat(given, dim=2) if self.heads > 1 else given[0]

    def _sides(self, shape: tuple[int, int, int], first: list[int], x_BZYXC: torch.Tensor) -> torch.Tensor:
        """Channels that keep apart what only rolling or padding brought together in a window, `n t 9`.

        Their product adds `_APART` to the logit of two voxels for each axis on which they lie on the same side
        of the grid's border; a mask would say the same with t² numbers for every window.
        """
        b, *padded, _ = x_BZYXC.shape
        parts = []
        for axis, (size, length, start) in enumerate(zip(shape, padded, first, strict=True)):
            place = torch.arange(length, device=x_BZYXC.device) + start
            side = torch.where(place % length < size, place // length, 2)
            shown = functional.one_hot(side, 3).to(x_BZYXC.dtype) * _APART**0.5
            parts.append(shown.reshape([length if a == axis else 1 for a in range(3)] + [3]).expand(*padded, 3))
        return _to_windows(torch.cat(parts, dim=3)[None], self.window).repeat(b, 1, 1)


def _to_windows(x_BZYXC: torch.Tensor, edge: int) -> torch.Tensor:
    b, z, y, x, c = x_BZYXC.shape
    cut = x_BZYXC.reshape(b, z // edge, edge, y // edge, edge, x // edge, edge, c)
    return cut.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, edge**3, c)


def _from_windows(x_NTC: torch.Tensor, shape: torch.Size, edge: int) -> torch.Tensor:
    b, z, y, x = shape
    cut = x_NTC.reshape(b, z // edge, y // edge, x // edge, edge, edge, edge, -1)
    return cut.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(b, z, y, x, -1)


def _relative_positions(edge: int) -> torch.Tensor:
    """Index of the relative position of every two voxels of a window, `t t`, in (2 edge - 1)³ positions."""
    places = torch.cartesian_prod(*[torch.arange(edge)] * 3)
    apart = places[:, None] - places[None] + edge - 1
    span = 2 * edge - 1
    return (apart[..., 0] * span + apart[..., 1]) * span + apart[..., 2]

"""The DensityTower: from a window of density to an embedding, and from a block to those of all its windows at once.

After CryoDomain (Dai et al. 2025, AAAI): a residual U-Net and a Swin-Conv U-Net beside each
other, a Conv module that merges them and reconstructs the density, and a Compress module that
gives the embedding. The published sizes are not public; those here are ours. Two properties
are built in, because a scan needs them:

- the network is homogeneous of degree 1 (see `cryoscan.models.bias_free`), so the direction of
  an embedding does not depend on the map's contrast and no window needs a normalisation of its own;
- a window's embedding is a fixed Gaussian mean over a grid of codes every 4 voxels, so all windows
  of a block share one pass through the network, and `forward` is that pass over a block of one window.

Letters of shapes: B batch, C channels, Z Y X the grid, D the embedding.
"""

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, NoReturn, Self

import torch
from torch import nn

from cryoscan.errors import ConfigError, GeometryError
from cryoscan.models.bias_free import NormedConv, ResidualBlock
from cryoscan.models.swin_conv import SwinConvBlock
from cryoscan.units import Angstrom, Voxels

CODE_STRIDE: Voxels = 4
"""Distance of the codes in voxels, and so of the windows that one pass can embed."""

_TINY = 1e-20
_LARGEST = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class TowerConfig:
    """The sizes of a DensityTower; the defaults are those of ``compact``."""

    window: Annotated[Voxels, "Edge of a window."] = 32
    voxel_size_A: Annotated[Angstrom, "Voxel size that windows must have, Å."] = 2.5
    dim: Annotated[int, "Length of an embedding."] = 128
    channels: Annotated[int, "Channels of the finest level; each coarser level has twice as many."] = 16
    stem_stride: Annotated[Voxels, "Voxel size of the finest level in voxels of the window: 1 or 2."] = 2
    levels: Annotated[int, "Levels of the U-Nets; a level coarser than 4 voxels makes scans depend on the grid."] = 2
    blocks: Annotated[int, "Blocks in a level, on the way down and again on the way up."] = 1
    attention_window: Annotated[int, "Edge of an attention window in voxels of its level."] = 4
    head_channels: Annotated[int, "Channels of an attention head."] = 16
    pool_sigma: Annotated[float, "Width of the Gaussian mean over a window, voxels."] = 6.0
    use_residual: Annotated[bool, "Whether there is a residual U-Net."] = True
    use_swinconv: Annotated[bool, "Whether there is a Swin-Conv U-Net."] = True

    def __post_init__(self) -> None:
        for setting in fields(self):
            value, default = getattr(self, setting.name), setting.default
            if isinstance(default, bool):
                fits = isinstance(value, bool)
            else:
                kinds = (int, float) if isinstance(default, float) else int
                fits = isinstance(value, kinds) and not isinstance(value, bool) and 0 < value < _LARGEST
            if not fits:
                wanted = "true or false" if isinstance(default, bool) else f"a number between 0 and {_LARGEST}"
                _refuse(f"expected {wanted} for {setting.name}", repr(value))
        if not (self.use_residual or self.use_swinconv):
            _refuse("expected at least one branch", "use_residual and use_swinconv both false")
        if self.stem_stride > 2 or self.channels % 2:
            _refuse("expected stem_stride 1 or 2 and an even number of channels", (self.stem_stride, self.channels))
        if self.period < CODE_STRIDE or self.window % self.period:
            _refuse(
                f"expected levels down to a stride of {CODE_STRIDE} or more, which divides the window",
                f"stride {self.period} after {self.levels} levels, window {self.window}",
            )

    @classmethod
    def named(cls, name: str) -> Self:
        """``compact``, ``compact24`` or ``paper``."""
        if name not in _NAMED:
            _refuse(f"expected one of {', '.join(_NAMED)}", repr(name))
        return cls(**_NAMED[name])

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_json` gave; unknown keys are refused."""
        unknown = sorted(set(values) - {setting.name for setting in fields(cls)})
        if unknown:
            _refuse("expected settings of a DensityTower", ", ".join(unknown))
        return cls(**values)

    @property
    def period(self) -> Voxels:
        """Stride of the coarsest level: convolutions are the same again after so many voxels."""
        return self.stem_stride * 2 ** (self.levels - 1)

    @property
    def attention_period(self) -> Voxels:
        """Edge of the largest attention window in voxels: the whole network is the same again after so many."""
        return self.period * self.attention_window if self.use_swinconv else self.period

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-able dictionary."""
        return asdict(self)


_NAMED: dict[str, dict[str, Any]] = {
    "compact": {},
    "compact24": {"channels": 24},
    "paper": {
        "window": 48,
        "voxel_size_A": 2.0,
        "dim": 512,
        "channels": 32,
        "stem_stride": 1,
        "levels": 4,
        "blocks": 2,
        "attention_window": 6,
        "pool_sigma": 9.0,
    },
}


class DensityTower(nn.Module):
    """Windows of density to embeddings and reconstructions.

    Density is protein positive with solvent at zero: what the caller subtracts decides what
    counts as empty. Any factor is welcome.
    """

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.config = config
        c, s = config.channels, config.stem_stride
        branches = config.use_residual + config.use_swinconv
        self.stem = NormedConv(1, c, 4, stride=2) if s == 2 else NormedConv(1, c, 3)
        self.branches = nn.ModuleDict()
        if config.use_residual:
            self.branches["residual"] = _UNet(config, lambda channels, _: ResidualBlock(channels))
        if config.use_swinconv:
            self.branches["swinconv"] = _UNet(
                config,
                lambda channels, shifted: SwinConvBlock(
                    channels,
                    window=config.attention_window,
                    head_channels=config.head_channels,
                    shifted=shifted,
                ),
            )
        self.merge = NormedConv(branches * c, c, 3)
        self.reconstruct = (
            nn.ConvTranspose3d(c, 1, 2, stride=2, bias=False) if s == 2 else nn.Conv3d(c, 1, 1, bias=False)
        )
        down = CODE_STRIDE // s  # from the finest level to the codes
        self.code_level = int(math.log2(down))
        self.gather = NormedConv(c, 4 * c, down, stride=down)
        self.code = NormedConv(4 * c + branches * c * down, 16 * c, 1)
        self.compress = nn.Sequential(
            nn.Linear(32 * c, 16 * c, bias=False), nn.ReLU(), nn.Linear(16 * c, config.dim, bias=False)
        )
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # missing in its stub

    def forward(
        self, x_BZYX: torch.Tensor, *, reconstruct: bool = True, rng: torch.Generator | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Embed windows.

        Parameters
        ----------
        x_BZYX : Tensor
            Windows, `b z y x`.
        reconstruct : bool
            Whether the density is reconstructed as well.
        rng : torch.Generator, optional
            On the CPU; where attention windows begin in training.

        Returns
        -------
        z_BD, reconstruction_BZYX
            Embeddings as they come, of no particular length, and the densities or None.
        """
        edge = self.config.window
        if x_BZYX.shape[1:] != (edge, edge, edge):
            raise GeometryError(
                f"expected windows of {edge}³ voxels", got=str(tuple(x_BZYX.shape)), hint="Use `lattice` for blocks."
            )
        scale, finest, codes = self._features(x_BZYX, rng)
        z_BD = self._pooled(codes, 0, 1)[:, 0, 0, 0] * scale[:, :, 0, 0, 0]
        return z_BD, (self.reconstruct(finest) * scale)[:, 0] if reconstruct else None

    def lattice(
        self,
        x_BZYX: torch.Tensor,
        *,
        stride: Voxels = CODE_STRIDE,
        halo: Voxels = 0,
        rng: torch.Generator | None = None,
    ) -> torch.Tensor:
        """Embed all windows of blocks in one pass.

        Parameters
        ----------
        x_BZYX : Tensor
            Blocks of window + (n - 1) stride + 2 halo voxels on each axis.
        stride, halo : Voxels
            Multiples of 4. Within the halo nothing begins or ends; it is context.
        rng : torch.Generator, optional
            As of `forward`.

        Returns
        -------
        Tensor
            `b n n' n'' d`, as of `forward`.
        """
        edge = self.config.window
        if stride % CODE_STRIDE or halo % CODE_STRIDE or any(n < edge + 2 * halo for n in x_BZYX.shape[1:]):
            raise GeometryError(
                f"expected a stride and a halo of multiples of {CODE_STRIDE} and blocks of at least {edge} + 2 halo",
                got=f"stride {stride}, halo {halo}, shape {tuple(x_BZYX.shape)}",
                hint="Use TowerEmbedder.embed_dense for other strides.",
            )
        scale, _, codes = self._features(x_BZYX, rng)
        return self._pooled(codes, halo // CODE_STRIDE, stride // CODE_STRIDE) * scale

    def _features(
        self, x_BZYX: torch.Tensor, rng: torch.Generator | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Scale of the input `b 1 1 1 1`, features of the finest level and codes every 4 voxels."""
        # a magnitude of 1 inside keeps cubes within the range of floats and samples of a batch alike
        square = x_BZYX.square().mean(dim=(1, 2, 3), keepdim=True)
        scale = torch.where(square > 0, square, 1.0).sqrt()
        shape = x_BZYX.shape[1:]
        after = [-size % self.config.period for size in shape]
        x_BCZYX = nn.functional.pad(x_BZYX / scale, (0, after[2], 0, after[1], 0, after[0]))[:, None]
        x_BCZYX = torch.relu_(self.stem(x_BCZYX.contiguous(memory_format=torch.channels_last_3d)))
        levels = [branch(x_BCZYX, rng) for branch in self.branches.values()]
        finest = torch.relu_(self.merge(torch.cat([level[0] for level in levels], dim=1)))
        gathered = torch.relu_(self.gather(finest))
        codes = torch.relu_(self.code(torch.cat([gathered, *[level[self.code_level] for level in levels]], dim=1)))
        z, y, x = (size // CODE_STRIDE for size in shape)
        return scale[..., None], finest, codes[:, :, :z, :y, :x]

    def _pooled(self, codes_BCZYX: torch.Tensor, margin: int, step: int) -> torch.Tensor:
        """Gaussian mean and third-power mean of the codes of every window, compressed, `b z y x d`.

        The third-power mean is GeM of Radenović et al. 2019 (IEEE TPAMI 41, 1655, eq. 3), p = 3.
        """
        mean = codes_BCZYX.permute(0, 2, 3, 4, 1)
        cubes = mean * mean * mean
        for axis in (1, 2, 3):
            mean, cubes = (self._pooled_along(part, axis, margin, step) for part in (mean, cubes))
        cubes = torch.where(cubes > _TINY, cubes.clamp_min(_TINY) ** (1 / 3), 0.0)
        return self.compress(torch.cat([mean, cubes], dim=4))

    def _pooled_along(self, x_BZYXC: torch.Tensor, axis: int, margin: int, step: int) -> torch.Tensor:
        shape = x_BZYXC.shape
        taps = self.config.window // CODE_STRIDE
        places = (torch.arange(taps) - (taps - 1) / 2) * CODE_STRIDE
        weights = torch.softmax(-0.5 * (places / self.config.pool_sigma) ** 2, dim=0).to(x_BZYXC)
        points = (shape[axis] - 2 * margin - taps) // step + 1
        band = x_BZYXC.new_zeros(points, shape[axis])
        for point in range(points):
            start = margin + point * step
            band[point, start : start + taps] = weights
        flat = x_BZYXC.reshape(math.prod(shape[:axis]), shape[axis], -1)
        return (band @ flat).reshape(*shape[:axis], points, *shape[axis + 1 :])


class _UNet(nn.Module):
    """A U-Net whose skips are added; gives the features of every level on the way up, finest first."""

    def __init__(self, config: TowerConfig, block: Callable[[int, bool], nn.Module]) -> None:
        super().__init__()
        widths = [config.channels * 2**level for level in range(config.levels)]

        def stack(width: int, first: int) -> _Level:
            return _Level(block(width, bool((first + i) % 2)) for i in range(config.blocks))

        self.down = nn.ModuleList(stack(width, 0) for width in widths)
        self.up = nn.ModuleList(stack(width, 1) for width in widths[:-1])
        self.shrink = nn.ModuleList(NormedConv(a, b, 2, stride=2) for a, b in itertools.pairwise(widths))
        self.grow = nn.ModuleList(NormedConv(b, a, 2, stride=2, transposed=True) for a, b in itertools.pairwise(widths))

    def forward(self, x_BCZYX: torch.Tensor, rng: torch.Generator | None) -> list[torch.Tensor]:
        skips = [self.down[0](x_BCZYX, rng)]
        for shrink, down in zip(self.shrink, self.down[1:], strict=True):
            skips.append(down(shrink(skips[-1]), rng))
        result = [skips.pop()]
        for grow, up in zip(reversed(self.grow), reversed(self.up), strict=True):
            result.insert(0, up(skips.pop() + grow(result[0]), rng))
        return result


class _Level(nn.ModuleList):
    """Blocks one after the other."""

    def forward(self, x_BCZYX: torch.Tensor, rng: torch.Generator | None) -> torch.Tensor:
        for block in self:
            x_BCZYX = block(x_BCZYX, rng)
        return x_BCZYX


def _refuse(expected: str, got: object) -> NoReturn:
    raise ConfigError(expected, got=str(got), hint="See TowerConfig for what each size means.")

"""A 3-D U-Net that sharpens density and may attend to the residues of a structure: after CryoSAMU (Zhang & Duc 2025).

The network is homogeneous: it has no offsets, so scaling the input scales the output, and
empty space stays empty (see `cryoscan.models.bias_free`). What it finds is added to its
input; before training it adds nothing.

Letters of shapes: B batch, C channels, Z Y X the grid, L residues, D length of a residue's vector.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from cryoscan.errors import ConfigError, GeometryError
from cryoscan.models.bias_free import NormedConv, ResidualBlock, widen_kernels
from cryoscan.units import Angstrom, Voxels

_TINY = 1e-12
_APART = 0.02  # standard deviation of what tells repeated channels apart, in units of a kernel's


@dataclass(frozen=True, slots=True)
class CryoSamuConfig:
    """Sizes of the network."""

    channels: tuple[int, ...] = (16, 32, 64, 128)
    """Of each level; each level's grid is half as fine as the one before."""
    voxel_size_A: Angstrom = 1.75
    """Of the grid that it works on: carries 3.5 Å."""
    structure: str = "geometry"
    """Name of the embedder of structures that it was trained with, see `cryoscan.models.structure_embedding`."""
    structure_dim: int = 42
    """Length of a residue's vector."""
    residues: int = 256
    """Residues that are attended to."""
    width: int = 128
    """Of queries, keys and values together."""
    heads: int = 4
    """Of the attention."""

    def __post_init__(self) -> None:
        if len(self.channels) < 2 or min(self.channels) < 1 or not self.voxel_size_A > 0:
            raise ConfigError(
                "expected two or more levels with channels, and a voxel size in Å",
                got=f"channels {self.channels}, voxel size {self.voxel_size_A}",
                hint="Take the sizes of a configuration in configs/train/.",
            )
        if min(self.structure_dim, self.residues, self.heads) < 1 or self.width % self.heads:
            raise ConfigError(
                "expected a width that its heads divide, and vectors and residues to attend to",
                got=f"width {self.width}, {self.heads} heads, {self.residues} residues of {self.structure_dim} numbers",
                hint="Take the sizes of a configuration in configs/train/.",
            )

    @property
    def period(self) -> Voxels:
        """Edges of a block must be multiples of this."""
        return int(2 ** (len(self.channels) - 1))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """From plain values; unknown names are refused."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ConfigError(
                "expected sizes of the enhancing network", got=f"'{unknown[0]}'", hint=f"Known: {', '.join(known)}."
            )
        plain: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        return cls(**plain)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


@dataclass(frozen=True, slots=True, eq=False)
class Informants:
    """Residues that a network may attend to, of a batch of structures.

    Parameters
    ----------
    vectors_BLD : float tensor
    weights_BL : float tensor
        How informative each residue is: their mean over the real residues is 1.
    mask_BL : bool tensor
        Real residues; a row without any is "no structure".
    """

    vectors_BLD: Tensor
    weights_BL: Tensor
    mask_BL: Tensor

    def to(self, device: torch.device | str) -> "Informants":
        """The same on another device."""
        return Informants(self.vectors_BLD.to(device), self.weights_BL.to(device), self.mask_BL.to(device))

    def without(self, dropped_B: Tensor) -> "Informants":
        """Some structures of the batch taken away."""
        return Informants(self.vectors_BLD, self.weights_BL, self.mask_BL & ~dropped_B[:, None])


class CryoSamu(nn.Module):
    """Residual U-Net with cross-attention from its coarsest voxels to residues.

    Parameters
    ----------
    config : CryoSamuConfig
    """

    def __init__(self, config: CryoSamuConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.channels
        self.stem = NormedConv(1, widths[0], 3)
        self.encode = nn.ModuleList(ResidualBlock(width) for width in widths)
        self.decode = nn.ModuleList(ResidualBlock(width) for width in widths[:-1])
        pairs = list(pairwise(widths))
        self.down = nn.ModuleList(NormedConv(fine, coarse, 2, stride=2) for fine, coarse in pairs)
        self.up = nn.ModuleList(NormedConv(coarse, fine, 2, stride=2, transposed=True) for fine, coarse in pairs)
        self.attention = ResidueAttention(widths[-1], config)
        self.last = ResidualBlock(widths[-1])
        self.head = nn.Conv3d(widths[0], 1, 3, padding=1, bias=False)
        nn.init.zeros_(self.head.weight)

    def forward(self, x_BZYX: Tensor, informants: Informants | None = None) -> Tensor:
        """Sharpen blocks, `b z y x` → `b z y x`.

        Parameters
        ----------
        x_BZYX : float tensor
            Solvent 0, protein positive, of any scale; edges are multiples of `period`.
        informants : Informants, optional
            Of the structure; without, the network relies on the density alone.

        Raises
        ------
        GeometryError
            If the edges are no multiples of `period`.
        """
        if any(size % self.config.period or size == 0 for size in x_BZYX.shape[1:]):
            raise GeometryError(
                f"expected edges that are multiples of {self.config.period} voxels",
                got=str(tuple(x_BZYX.shape[1:])),
                hint="Pad the block with zeros.",
            )
        x_BCZYX = torch.relu(self.stem(x_BZYX[:, None].contiguous(memory_format=torch.channels_last_3d)))
        skips = []
        for block, down in zip(self.encode, self.down, strict=False):
            x_BCZYX = block(x_BCZYX)
            skips.append(x_BCZYX)
            x_BCZYX = torch.relu(down(x_BCZYX))
        x_BCZYX = self.last(self.attention(self.encode[-1](x_BCZYX), informants))
        for block, up, skip in zip(reversed(self.decode), reversed(self.up), reversed(skips), strict=True):
            x_BCZYX = block(torch.relu(up(x_BCZYX) + skip))
        found: Tensor = self.head(x_BCZYX)[:, 0]
        return x_BZYX + found

    @torch.no_grad()
    def widened(self, config: CryoSamuConfig, *, rng: torch.Generator) -> "CryoSamu":
        """A network with more channels that begins where this one stands: channels are repeated, a little apart.

        Parameters
        ----------
        config : CryoSamuConfig
            Of the wider network; the same gives a copy.
        rng : torch.Generator
            Of what tells the copies apart.

        Raises
        ------
        ConfigError
            If a level is to be narrower, or anything but the channels of the finer levels is to be different.

        References
        ----------
        Chen, Goodfellow & Shlens 2016, ICLR, arXiv 1511.05641, section 2.2.
        """
        few, many = self.config.channels, config.channels
        fits = replace(config, channels=few) == self.config and len(few) == len(many) and few[-1] == many[-1]
        if not fits or any(old > new for old, new in zip(few, many, strict=True)):
            raise ConfigError(
                "expected the sizes of the network that is begun with, or more channels before the last level",
                got=f"{config} after {self.config}",
                hint="Give the same sizes under `network`, or begin with another network.",
            )
        wide = CryoSamu(config)
        wide.attention.load_state_dict(self.attention.state_dict())
        widen_kernels(self, wide, apart=_APART if many != few else 0.0, rng=rng)
        return wide


class ResidueAttention(nn.Module):
    """Each voxel asks the residues what they know (Vaswani et al. 2017); the answer is added through a closed gate.

    Voxels are normalised before they ask, and what they hear is scaled by their own root mean
    square: the layer stays homogeneous, and empty voxels hear nothing. A learned null token is
    always among the answers, so that there is one without a structure.
    """

    def __init__(self, channels: int, config: CryoSamuConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.ask = nn.Linear(channels, config.width, bias=False)
        self.read = nn.Sequential(nn.LayerNorm(config.structure_dim), nn.Linear(config.structure_dim, config.width))
        self.null_W = nn.Parameter(0.02 * torch.randn(config.width))
        self.keys_values = nn.Linear(config.width, 2 * config.width, bias=False)
        self.answer = nn.Linear(config.width, channels, bias=False)
        nn.init.zeros_(self.answer.weight)

    def forward(self, x_BCZYX: Tensor, informants: Informants | None) -> Tensor:
        """Keep the shape."""
        b, c, z, y, x = x_BCZYX.shape
        voxels_BNC = x_BCZYX.permute(0, 2, 3, 4, 1).reshape(b, z * y * x, c)
        power_BN1 = voxels_BNC.square().mean(dim=-1, keepdim=True)
        scale_BN1 = power_BN1.clamp_min(_TINY).sqrt()  # the root of 0 has no slope
        queries_BNW = self.ask(voxels_BNC / scale_BN1)
        tokens_BLW = self.null_W.expand(b, 1, -1)
        bias_BL = tokens_BLW.new_zeros(b, 1)
        if informants is not None:
            tokens_BLW = torch.cat([tokens_BLW, self.read(informants.vectors_BLD)], dim=1)
            heard_BL = informants.weights_BL.clamp_min(_TINY).log().masked_fill(~informants.mask_BL, -torch.inf)
            bias_BL = torch.cat([bias_BL, heard_BL], dim=1)
        keys_BLW, values_BLW = self.keys_values(tokens_BLW).chunk(2, dim=-1)
        answers = functional.scaled_dot_product_attention(
            self._by_head(queries_BNW),
            self._by_head(keys_BLW),
            self._by_head(values_BLW),
            attn_mask=bias_BL[:, None, None].expand(b, self.heads, z * y * x, -1),
        )
        heard_BNC = self.answer(answers.transpose(1, 2).reshape(b, z * y * x, -1)) * scale_BN1 * (power_BN1 > _TINY)
        return x_BCZYX + heard_BNC.view(b, z, y, x, c).permute(0, 4, 1, 2, 3)

    def _by_head(self, rows: Tensor) -> Tensor:
        return rows.view(*rows.shape[:-1], self.heads, -1).transpose(1, 2)

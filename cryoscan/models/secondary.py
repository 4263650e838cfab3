"""Where density is helix, strand or neither: a small U-Net that reads it off maps of 4 to 10 Å.

Remote relatives overlap no better than strangers do: what they share is which helices and strands lie where, and a
correlation of densities does not see that (measured on relatives below 30 % identity at 6 Å: Top-10 .58 by density,
.81 if the atoms tell helices and strands apart). Helices are rods and sheets are slabs down to 8 Å and more, in every
fold alike, so that this can be learned from a few thousand chains (after Emap2sec: Maddhuri Venkata Subramaniya et al.
2019, Nature Methods 16, 911).
"""

import functools
import itertools
from dataclasses import asdict, dataclass, fields, replace
from importlib.resources import files
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cryoscan.errors import ConfigError
from cryoscan.models.bias_free import NormedConv, ResidualBlock, widen_kernels
from cryoscan.provenance import fingerprint_arrays
from cryoscan.secondary import HELIX, KINDS, STRAND
from cryoscan.units import Angstrom

_APART = 0.1  # of the spread of a kernel: what tells copies of a channel apart
_HALF_TURNS = ((), (2, 3), (1, 3), (1, 2))
"""Axes of z y x that are reversed. What the network sees depends on how a density lies: the mean of these four has a
correlation of .775 with the truth at 6 Å, of all 24 turns of a cube .780, and of one .759 (decision 17)."""


@dataclass(frozen=True, slots=True)
class SecondaryConfig:
    """Sizes of a `SecondaryNet`.

    Parameters
    ----------
    channels : int
        At every second voxel; each coarser level has twice as many.
    blocks : int
        Residual blocks of a level.
    voxel_size_A : Angstrom
    """

    channels: int = 16
    blocks: int = 1
    voxel_size_A: Angstrom = 2.5

    window = 32

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not value > 0 or (field.type in (int, "int") and value != int(value)):
                raise ConfigError(
                    f"expected a positive '{field.name}' of a secondary-structure network",
                    got=str(value),
                    hint="Mend the settings.",
                )

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "SecondaryConfig":
        """From the values that differ from the defaults."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ConfigError(
                f"expected sizes of a secondary-structure network: {', '.join(sorted(known))}",
                got=", ".join(unknown),
                hint="Mend the settings, or name another kind of network.",
            )
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """All values."""
        return asdict(self)


class SecondaryNet(nn.Module):
    """Probabilities of coil, helix and strand at every voxel of a density.

    Parameters
    ----------
    config : SecondaryConfig
    """

    def __init__(self, config: SecondaryConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.channels * 2**level for level in range(3)]
        self.stem = NormedConv(1, widths[0], 4, stride=2)
        self.down = nn.ModuleList(_stack(width, config.blocks) for width in widths)
        self.up = nn.ModuleList(_stack(width, config.blocks) for width in widths[:-1])
        pairs = list(itertools.pairwise(widths))
        self.shrink = nn.ModuleList(NormedConv(fine, coarse, 2, stride=2) for fine, coarse in pairs)
        self.grow = nn.ModuleList(NormedConv(coarse, fine, 2, stride=2, transposed=True) for fine, coarse in pairs)
        self.tell = nn.ConvTranspose3d(widths[0], len(KINDS), 4, stride=2, padding=1)
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # missing in its stub

    def forward(self, x_BZYX: Tensor) -> Tensor:
        """Logits of the kinds, `b z y x` → `b kinds z y x`; edges are multiples of 8.

        Any factor is welcome: densities are divided by what is usual where there is much of it.
        """
        power = x_BZYX.square()
        usual = power.square().sum((1, 2, 3), keepdim=True) / power.sum((1, 2, 3), keepdim=True).clamp_min(1e-30)
        x_BCZYX = (x_BZYX / usual.sqrt().clamp_min(1e-15))[:, None]
        x_BCZYX = torch.relu_(self.stem(x_BCZYX.contiguous(memory_format=torch.channels_last_3d)))
        skips = [self.down[0](x_BCZYX)]
        for shrink, down in zip(self.shrink, self.down[1:], strict=True):
            skips.append(down(shrink(skips[-1])))
        y_BCZYX = skips.pop()
        for grow, up in zip(reversed(self.grow), reversed(self.up), strict=True):
            y_BCZYX = up(skips.pop() + grow(y_BCZYX))
        logits: Tensor = self.tell(y_BCZYX)
        return logits

    @property
    def fingerprint(self) -> str:
        """Identifies the weights, and how they are asked."""
        state = self.state_dict()
        weights = [state[name].cpu().numpy() for name in sorted(state)]
        return fingerprint_arrays([*weights, *(np.array(axes, np.int64) for axes in _HALF_TURNS)])

    def signed(self, x_BZYX: Tensor) -> Tensor:
        """Density of helices less that of strands, `b z y x`; the mean of what is seen in four orientations."""
        signed_BZYX = torch.zeros_like(x_BZYX)
        for axes in _HALF_TURNS:
            p_BCZYX = torch.softmax(self(x_BZYX.flip(axes)), dim=1)
            signed_BZYX += (p_BCZYX[:, HELIX] - p_BCZYX[:, STRAND]).flip(axes)
        return x_BZYX * signed_BZYX / len(_HALF_TURNS)

    @torch.no_grad()
    def widened(self, channels: int, *, rng: torch.Generator) -> "SecondaryNet":
        """A network of more channels that begins where this one stands: channels are repeated, a little apart.

        Parameters
        ----------
        channels : int
            Of the wider network; as many as here gives a copy.
        rng : torch.Generator
            Of what tells the copies apart.

        Raises
        ------
        ConfigError
            If it is to be narrower.

        References
        ----------
        Chen, Goodfellow & Shlens 2016, ICLR, arXiv 1511.05641, section 2.2.
        """
        if channels < self.config.channels:
            raise ConfigError(
                f"expected at least the {self.config.channels} channels of the network that is begun with",
                got=str(channels),
                hint="Ask for more channels, or begin with another network.",
            )
        wide = SecondaryNet(replace(self.config, channels=channels))
        widen_kernels(self, wide, apart=_APART if channels > self.config.channels else 0.0, rng=rng)
        return wide


def _stack(width: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(*(ResidualBlock(width) for _ in range(blocks)))


@functools.lru_cache(maxsize=2)
def shipped_secondary(device: str = "cpu") -> SecondaryNet:
    """The network that comes with cryoscan."""
    from cryoscan.models.checkpoint import load_network

    path = files("cryoscan") / "weights" / "secondary.safetensors"
    return load_network(str(path), SecondaryNet).to(device).requires_grad_(False)

"""What counts where shapes are compared: a scalar product for each degree, learned from relatives and strangers.

A correlation of densities is ruled by what all proteins share, their bulk: low degrees and middle shells. With a
positive matrix W_l among the channels (the shells of all layers) of each degree l, shapes are compared by

    g = max over R, s of <W q_s, R t> / (|q|_W |t|_W),    <W q, t> = sum over l, m of q_lm · W_l t_lm.

Rotations mix only the m of a degree, so that turning and searching stay what they are. The matrices are learned at
the best rotation and shift, where q and R t enter only through their products (`cryoscan.train.comparison`); it is
metric learning from neighbours (Weinberger & Saul 2009, JMLR 10, 207), each degree for itself.
"""

import functools
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor, nn

from cryoscan.errors import ConfigError
from cryoscan.models.harmonics import DEGREES, SHELLS
from cryoscan.provenance import fingerprint_arrays


@dataclass(frozen=True, slots=True)
class ComparisonConfig:
    """Sizes of a `Comparison`.

    Parameters
    ----------
    layers : int
        Densities that turn together.
    """

    layers: int = 2

    def __post_init__(self) -> None:
        if isinstance(self.layers, bool) or not isinstance(self.layers, int) or self.layers < 1:
            raise ConfigError(
                "expected a positive number of 'layers' of a comparison",
                got=str(self.layers),
                hint="Mend the settings.",
            )

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "ComparisonConfig":
        """From the values that differ from the defaults."""
        if set(values) - {"layers"}:
            raise ConfigError(
                "expected 'layers' of a comparison", got=", ".join(sorted(values)), hint="Name another kind of network."
            )
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """All values."""
        return asdict(self)


class Comparison(nn.Module):
    """Matrices among the channels of each degree; at first every channel counts for itself.

    Parameters
    ----------
    config : ComparisonConfig
    """

    def __init__(self, config: ComparisonConfig) -> None:
        super().__init__()
        self.config = config
        channels = SHELLS * config.layers
        self.change_LKK = nn.Parameter(torch.zeros(DEGREES, channels, channels))

    @property
    def weights_LKK(self) -> Tensor:
        """Symmetric and without negative eigenvalues: (1 + A)(1 + A)ᵀ."""
        root_LKK = torch.eye(self.change_LKK.shape[1], device=self.change_LKK.device) + self.change_LKK
        return root_LKK @ root_LKK.mT

    def forward(self, products_NLKK: Tensor, own_LKK: Tensor, theirs_NLKK: Tensor) -> Tensor:
        """Similarities of a shape to others, `n`.

        Parameters
        ----------
        products_NLKK : Tensor
            Of its harmonics (rows) with theirs (columns) where they fit best, summed over m.
        own_LKK, theirs_NLKK : Tensor
            Of each with itself.
        """
        w_LKK = self.weights_LKK
        product_N = torch.einsum("lab,nlab->n", w_LKK, products_NLKK)
        theirs_N = torch.einsum("lab,nlab->n", w_LKK, theirs_NLKK).clamp_min(1e-9)
        return product_N / (theirs_N * (w_LKK * own_LKK).sum().clamp_min(1e-9)).sqrt()

    @property
    def fingerprint(self) -> str:
        """Identifies the weights."""
        return fingerprint_arrays([self.change_LKK.detach().cpu().numpy()])


@functools.lru_cache(maxsize=1)
def shipped_comparison() -> Comparison:
    """The one that comes with cryoscan, for shapes of two layers."""
    from cryoscan.models.checkpoint import load_network

    path = files("cryoscan") / "weights" / "comparison.safetensors"
    return load_network(str(path), Comparison).requires_grad_(False)

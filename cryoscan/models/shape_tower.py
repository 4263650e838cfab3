"""A network on harmonics that need not learn what turning is: its vectors stay the same when the density turns.

The coefficients of a density (`cryoscan.models.harmonics`) are mixed by linear maps within each degree l, the same for
all orders m, which commute with rotations, and by a pointwise non-linearity on directions of the sphere, which does so
up to what the directions cannot carry (after Cohen et al. 2018, ICLR, "Spherical CNNs"; Esteves et al. 2018, ECCV). At
the end, scalar products of two sets of channels are summed over m: rotations cannot change these.
"""

import copy
import math
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from cryoscan.embedding import check_block, unit_rows
from cryoscan.errors import ConfigError
from cryoscan.models.harmonics import DEGREES, SHELLS, WINDOW, harmonics, real_harmonics
from cryoscan.models.shape import ShapeEmbedder
from cryoscan.provenance import fingerprint_arrays, fingerprint_json
from cryoscan.units import Angstrom, Voxels

_VERSION = 1  # raise when the same weights come to mean other vectors
_DIRECTIONS = 17  # order of Lebedev's rule: 110 directions, exact for products of two of the harmonics
_PRODUCTS = 24  # scalar products of each degree
_HIDDEN = 512
_BATCH = 256


@dataclass(frozen=True, slots=True)
class ShapeTowerConfig:
    """Sizes of a `ShapeTower`.

    Parameters
    ----------
    dim : int
        Length of a vector.
    channels : int
        Functions on the sphere between blocks.
    hidden : int
        Functions on the sphere within a block.
    blocks : int
    dropout : float
        Share of the values that are dropped at the end, in training.
    voxel_size_A : Angstrom
    """

    dim: int = 128
    channels: int = 48
    hidden: int = 64
    blocks: int = 3
    dropout: float = 0.2
    voxel_size_A: Angstrom = 2.5

    window = WINDOW

    def __post_init__(self) -> None:
        for field in fields(self):
            value, least = getattr(self, field.name), 0 if field.name == "dropout" else 1e-9
            whole = field.type is int or field.type == "int"
            if isinstance(value, bool) or not value >= least or (whole and value != int(value)):
                raise ConfigError(
                    f"expected a positive '{field.name}' of a shape tower", got=str(value), hint="Mend the settings."
                )
        if not self.dropout < 1:
            raise ConfigError("expected a dropout below 1", got=str(self.dropout), hint="0.2 is a good value.")

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "ShapeTowerConfig":
        """From the values that differ from the defaults."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ConfigError(
                f"expected sizes of a shape tower: {', '.join(sorted(known))}",
                got=", ".join(unknown),
                hint="Mend the settings, or name another kind of tower.",
            )
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """All values."""
        return asdict(self)


class ShapeTower(nn.Module):
    """Vectors of densities that do not depend on their orientation.

    Parameters
    ----------
    config : ShapeTowerConfig
    """

    def __init__(self, config: ShapeTowerConfig) -> None:
        super().__init__()
        self.config = config
        self.enter = _Mixed(SHELLS, config.channels)
        self.blocks = nn.ModuleList(_Block(config.channels, config.hidden) for _ in range(config.blocks))
        self.norm = _Norm(config.channels)
        self.left, self.right = (_Mixed(config.channels, _PRODUCTS) for _ in range(2))
        features = DEGREES * _PRODUCTS + config.channels
        self.head = nn.Sequential(
            nn.LayerNorm(features),
            nn.Dropout(config.dropout),
            nn.Linear(features, _HIDDEN),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(_HIDDEN, config.dim),
        )

    def forward(
        self, density_BZYX: Tensor, *, reconstruct: bool = False, rng: torch.Generator | None = None
    ) -> tuple[Tensor, None]:
        """Vectors of windows, `b z y x` → `b d`; called as a `DensityTower` is, but nothing is reconstructed."""
        return self.of_harmonics(harmonics(str(density_BZYX.device)).expand(density_BZYX)), None

    def of_harmonics(self, c_BHK: Tensor) -> Tensor:
        """Vectors of harmonics of any scale, `b lm k` → `b d`."""
        length_B11 = torch.linalg.vector_norm(c_BHK, dim=(1, 2), keepdim=True).clamp_min(1e-12)
        x_BHC = self.enter(c_BHK * math.sqrt(c_BHK[0].numel()) / length_B11)
        for block in self.blocks:
            x_BHC = block(x_BHC)
        x_BHC = self.norm(x_BHC)
        products_BHP = self.left(x_BHC) * self.right(x_BHC)
        sums = [products_BHP[:, l * l : (l + 1) ** 2].mean(dim=1) for l in range(DEGREES)]
        features_BF = torch.cat([*sums, x_BHC[:, 0]], dim=1)
        z_BD: Tensor = self.head(features_BF.sign() * (features_BF.abs() + 1e-4).sqrt())
        return z_BD


class ShapeTowerEmbedder:
    """Unit vectors of a `ShapeTower`, of windows cut out about the middle of what they show.

    Parameters
    ----------
    tower : ShapeTower
    contour : float
        As of `ShapeEmbedder`.
    device : str
        Where torch computes.
    """

    window: Voxels = WINDOW
    cell: Voxels = 1
    halo: Voxels = 0
    needs_mask: bool = False
    working_bytes: int = 256 * 2**20

    def __init__(self, tower: ShapeTower, *, contour: float = 0.0, device: str = "cpu") -> None:
        self.device = torch.device(device)
        self._tower = copy.deepcopy(tower).to(self.device).eval().requires_grad_(False)
        self._shapes = ShapeEmbedder(tower.config.voxel_size_A, contour=contour, device=device)
        weights = tower.state_dict()
        arrays = fingerprint_arrays(weights[name].cpu().numpy() for name in sorted(weights))
        self._fingerprint = fingerprint_json(
            ["shape tower", _VERSION, self._shapes.fingerprint, tower.config.to_json(), arrays]
        )

    def __repr__(self) -> str:
        return f"ShapeTowerEmbedder({self.dim}-d, windows {self.window}³ of {self.voxel_size:g} Å)"

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self._tower.config.dim

    @property
    def voxel_size(self) -> Angstrom:
        """Voxel size that windows must have, Å."""
        return self._tower.config.voxel_size_A

    @property
    def fingerprint(self) -> str:
        """Identifies harmonics, sizes and weights."""
        return self._fingerprint

    def embed(self, windows: np.ndarray) -> np.ndarray:
        """Embed windows, `b z y x` → `b d`; windows without signal give zeros."""
        return self.of_shapes(self._shapes.embed(windows))

    @torch.inference_mode()
    def of_shapes(self, shapes: np.ndarray) -> np.ndarray:
        """Vectors of what a `ShapeEmbedder` gave, `b 972` → `b d`."""
        parts = [np.zeros((0, self.dim), np.float32)]
        for start in range(0, len(shapes), _BATCH):
            some = torch.from_numpy(np.ascontiguousarray(shapes[start : start + _BATCH], np.float32)).to(self.device)
            z_BD = self._tower.of_harmonics(some.reshape(len(some), DEGREES**2, SHELLS))
            parts.append((functional.normalize(z_BD, dim=1) * some.any(dim=1, keepdim=True)).cpu().numpy())
        return unit_rows(np.concatenate(parts))

    def embed_dense(self, block: np.ndarray, *, stride: Voxels) -> np.ndarray:
        """Embed all windows of a block, `z y x` → `z' y' x' d`; exactly what `embed` gives for each."""
        check_block(block, self, stride=stride)
        shapes = self._shapes.embed_dense(block, stride=stride)
        return self.of_shapes(shapes.reshape(-1, shapes.shape[-1])).reshape(*shapes.shape[:3], self.dim)


# ---------------------------------------------------------------- layers


class _Mixed(nn.Module):
    """Mixes channels within each degree, `b lm c` → `b lm d`; only what does not turn has an offset."""

    degree_H: Tensor

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.weight_LCD = nn.Parameter(torch.randn(DEGREES, channels, outputs) / math.sqrt(channels))
        self.offset_D = nn.Parameter(torch.zeros(outputs))
        self.register_buffer("degree_H", _degrees(), persistent=False)

    def forward(self, x_BHC: Tensor) -> Tensor:
        y_BHD = torch.bmm(x_BHC.transpose(0, 1), self.weight_LCD[self.degree_H]).transpose(0, 1)
        return torch.cat([y_BHD[:, :1] + self.offset_D, y_BHD[:, 1:]], dim=1)


class _Norm(nn.Module):
    """Makes the mean square of all coefficients of a sample 1, then scales each channel of each degree."""

    degree_H: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale_LC = nn.Parameter(torch.ones(DEGREES, channels))
        self.register_buffer("degree_H", _degrees(), persistent=False)

    def forward(self, x_BHC: Tensor) -> Tensor:
        size_B11 = x_BHC.square().mean(dim=(1, 2), keepdim=True).add(1e-6).sqrt()
        return x_BHC / size_B11 * self.scale_LC[self.degree_H]


class _Block(nn.Module):
    """Coefficients to functions on the sphere, a small network at every direction, and back; added to what came in."""

    values_PH: Tensor
    back_HP: Tensor

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.norm = _Norm(channels)
        self.enter, self.leave = _Mixed(channels, hidden), _Mixed(hidden, channels)
        self.inside = nn.Linear(hidden, hidden)
        from scipy.integrate import lebedev_rule  # takes a second, and this tower is rarely asked for

        directions, weights = lebedev_rule(_DIRECTIONS)
        values_PH = torch.from_numpy(real_harmonics(directions.T, DEGREES)).to(torch.float32)
        self.register_buffer("values_PH", values_PH, persistent=False)
        self.register_buffer(
            "back_HP", (values_PH * torch.from_numpy(weights).float()[:, None]).T.contiguous(), persistent=False
        )

    def forward(self, x_BHC: Tensor) -> Tensor:
        y_BPC = functional.gelu(self.values_PH @ self.enter(self.norm(x_BHC)))
        y_BPC = functional.gelu(self.inside(y_BPC))
        moved: Tensor = self.leave(self.back_HP @ y_BPC)
        return x_BHC + moved


def _degrees() -> Tensor:
    """Degree l of each coefficient, int64 `lm`."""
    return torch.cat([torch.full((2 * l + 1,), l) for l in range(DEGREES)])

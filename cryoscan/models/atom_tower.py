"""The AtomTower: from an atomic structure to one vector that no rotation or shift changes."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn

from cryoscan.embedding import unit_rows
from cryoscan.errors import ConfigError
from cryoscan.models.graph_encoder import Encoding, GraphEncoder
from cryoscan.models.invariant_points import Frames, InvariantPointAttention
from cryoscan.models.pair_encoder import PairBlock, PairEncoder
from cryoscan.models.residues import UNKNOWN, Residues, collate, residues_of
from cryoscan.structure import Structure

DISTOGRAM_BINS = 64
LDDT_BINS = 50
_POOL_HEADS = 4
_SCALE = 10.0  # Å per unit of length inside the Structure Module


@dataclass(frozen=True, slots=True)
class AtomTowerConfig:
    """Architecture of an AtomTower; `GRAPH`, `COMPACT` and `PAPER` are the ones in use.

    Parameters
    ----------
    encoder : "graph" or "dense"
        Messages between neighbours (fast), or attention between all residues, which alone can
        recover whole structures.
    dim : int
        Length of the embedding.
    width : int
        Channels of residues (and of the graph's edges).
    pair_width : int
        Channels of pairs of residues (dense).
    layers : int
        Rounds of messages, or blocks of attention.
    heads : int
        Of attention between residues (dense).
    neighbours : int
        Of each residue (graph).
    structure_iterations : int
        Passes through the Structure Module, whose weights are shared (dense).
    fusion_blocks : int
        Blocks of the Fusion Module (dense).
    dropout : float
    use_sequence : bool
        Whether amino acids and side-chain angles, which betray them, are looked at.
    """

    encoder: Literal["graph", "dense"] = "graph"
    dim: int = 128
    width: int = 128
    pair_width: int = 32
    layers: int = 3
    heads: int = 8
    neighbours: int = 30
    structure_iterations: int = 4
    fusion_blocks: int = 2
    dropout: float = 0.1
    use_sequence: bool = False

    def __post_init__(self) -> None:
        if self.encoder not in ("graph", "dense"):
            raise ConfigError(
                "expected the encoder 'graph' or 'dense'", got=repr(self.encoder), hint="Choose one of them."
            )
        for name in ("dim", "width", "pair_width", "layers", "heads", "neighbours", "structure_iterations"):
            if getattr(self, name) < 1:
                raise ConfigError(f"expected a positive '{name}'", got=str(getattr(self, name)), hint="Use 1 or more.")
        if self.width % self.heads or self.width % _POOL_HEADS:
            raise ConfigError(
                f"expected a width divisible by {self.heads} heads and by {_POOL_HEADS}",
                got=str(self.width),
                hint="Change 'width' or 'heads'.",
            )
        if not 0 <= self.dropout < 1 or self.fusion_blocks < 0:
            raise ConfigError(
                "expected a dropout within 0 … 1 and no negative 'fusion_blocks'",
                got=f"{self.dropout} and {self.fusion_blocks}",
                hint="Mend the configuration.",
            )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_json` gave."""
        unknown = sorted(values.keys() - {field.name for field in fields(cls)})
        if unknown:
            raise ConfigError(
                "expected the settings of an AtomTower",
                got=f"'{unknown[0]}'",
                hint=f"Known are {', '.join(field.name for field in fields(cls))}.",
            )
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-able dictionary."""
        return asdict(self)


GRAPH = AtomTowerConfig()
COMPACT = AtomTowerConfig(encoder="dense", pair_width=16)
PAPER = AtomTowerConfig(
    encoder="dense", dim=512, width=256, pair_width=64, layers=6, structure_iterations=8, fusion_blocks=4
)


@dataclass(frozen=True, slots=True, eq=False)
class Recovery:
    """What the tower believes the undisturbed structure to be.

    Parameters
    ----------
    frames : tuple of Frames, `b l`
        After each pass through the Structure Module; empty for the graph encoder.
    torsions : float tensor, `b l 7 2`
        Sine and cosine, not yet of unit length.
    distogram : float tensor, `b l m 64`
        Logits of C-beta distances to each residue's partners.
    lddt : float tensor, `b l 50`, or None
        Logits of the predicted lDDT of each residue.
    encoding : Encoding
        Whose partners the distogram is about.
    """

    frames: tuple[Frames, ...]
    torsions: Tensor
    distogram: Tensor
    lddt: Tensor | None
    encoding: Encoding


class AtomTower(nn.Module):
    """Encoder, Fusion Module and the heads that self-supervision trains.

    The embedding does not change when a structure is rotated, shifted, padded, or when its
    chains come in another order (order *within* a chain counts). It does change when a
    structure is mirrored.

    Parameters
    ----------
    config : AtomTowerConfig
    """

    def __init__(self, config: AtomTowerConfig = GRAPH) -> None:
        super().__init__()
        self.config = config
        is_dense = config.encoder == "dense"
        pair_width = config.pair_width if is_dense else config.width
        self.encoder: GraphEncoder | PairEncoder
        if is_dense:
            self.encoder = PairEncoder(
                width=config.width, pair_width=pair_width, blocks=config.layers, heads=config.heads,
                dropout=config.dropout,
            )  # fmt: skip
        else:
            self.encoder = GraphEncoder(
                width=config.width, layers=config.layers, neighbours=config.neighbours, dropout=config.dropout
            )
        self.fusion = _Fusion(config, pair_width)
        self.structure = _StructureModule(config) if is_dense else None
        self.torsions = nn.Sequential(
            nn.LayerNorm(config.width), nn.Linear(config.width, config.width), nn.ReLU(), nn.Linear(config.width, 14)
        )
        self.distogram = _Distogram(config.width, pair_width)

    @property
    def dim(self) -> int:
        """Length of the embedding."""
        return self.config.dim

    def forward(self, residues: Residues, *, hidden: Tensor | None = None) -> Tensor:
        """Embeddings Z_a as they leave the network, `b d`; compare them by their direction.

        Parameters
        ----------
        residues : Residues, `b l`
        hidden : bool tensor, `b l`, optional
            Residues of which only the place along the chain may be known.
        """
        residues = self._told(residues)
        return self.fusion(self.encoder(residues, _hidden(residues, hidden)), residues.mask)

    def recover(self, residues: Residues, *, hidden: Tensor | None = None) -> Recovery:
        """Predict the undisturbed structure from a disturbed one; parameters as of `forward`."""
        residues = self._told(residues)
        encoding = self.encoder(residues, _hidden(residues, hidden))
        frames: tuple[Frames, ...] = ()
        single, lddt = encoding.single, None
        if self.structure is not None:
            single, frames, lddt = self.structure(encoding, residues.mask)
        torsions = self.torsions(single).unflatten(-1, (7, 2))
        return Recovery(frames, torsions, self.distogram(encoding), lddt, encoding)

    def _told(self, residues: Residues) -> Residues:
        """Without the sequence, if the tower does not look at it."""
        if self.config.use_sequence:
            return residues
        backbone = torch.arange(7, device=residues.mask.device) < 3
        return Residues(
            frames=residues.frames,
            torsions=residues.torsions,
            has_torsion=residues.has_torsion & backbone,
            two_fold=residues.two_fold,
            amino_acids=torch.full_like(residues.amino_acids, UNKNOWN),
            chains=residues.chains,
            places=residues.places,
            mask=residues.mask,
        )


def raw_vectors(
    tower: AtomTower, items: Iterable[Residues], *, batch: int = 4, device: torch.device | str = "cpu"
) -> np.ndarray:
    """Vectors Z_a of structures as they leave the network, `n d`; parameters as of `embed_residues`."""
    listed = list(items)
    order = np.argsort([len(item) for item in listed], kind="stable")
    vectors = np.zeros((len(listed), tower.dim), np.float32)
    was_training = tower.training
    tower.eval()
    try:
        with torch.inference_mode():
            for start in range(0, len(order), batch):
                rows = order[start : start + batch]
                vectors[rows] = tower(collate([listed[row] for row in rows]).to(device)).float().cpu().numpy()
    finally:
        tower.train(was_training)
    return vectors


def embed_residues(
    tower: AtomTower, items: Iterable[Residues], *, batch: int = 4, device: torch.device | str = "cpu"
) -> np.ndarray:
    """Embed structures described by `residues_of`, `n d` of unit length, in the order given.

    Parameters
    ----------
    tower : AtomTower
        On `device`; it is evaluated without dropout.
    items : iterable of Residues
    batch : int
        Structures at a time; those of like length go together.
    device : str
    """
    return unit_rows(raw_vectors(tower, items, batch=batch, device=device))


def embed_structures(
    tower: AtomTower, structures: Iterable[Structure], *, batch: int = 4, device: torch.device | str = "cpu"
) -> np.ndarray:
    """Embed structures, `n d` of unit length, in the order given; parameters as of `embed_residues`.

    Raises
    ------
    FormatError
        If a structure has fewer than 20 residues with a backbone.
    """
    return embed_residues(tower, [residues_of(structure) for structure in structures], batch=batch, device=device)


# ---------------------------------------------------------------- modules


class _Fusion(nn.Module):
    """Single and pair representations to one vector: attention over residues and a mean over pairs."""

    def __init__(self, config: AtomTowerConfig, pair_width: int) -> None:
        super().__init__()
        blocks = config.fusion_blocks if config.encoder == "dense" else 0
        self.blocks = nn.ModuleList(
            PairBlock(config.width, pair_width, heads=config.heads, dropout=config.dropout, updates_pairs=False)
            for _ in range(blocks)
        )
        self.scores = nn.Linear(config.width, _POOL_HEADS)
        self.values = nn.Linear(config.width, config.width)
        self.pairs = nn.Sequential(nn.LayerNorm(pair_width), nn.Linear(pair_width, config.width), nn.ReLU())
        self.standard = _Standardised(2 * config.width + 1)
        # the mean over residues and pairs forgets how many there were; types have their sizes
        self.out = nn.Sequential(
            nn.Linear(2 * config.width + 1, 2 * config.width), nn.ReLU(), nn.Dropout(config.dropout),
            nn.Linear(2 * config.width, config.dim),
        )  # fmt: skip

    def forward(self, encoding: Encoding, mask_BL: Tensor) -> Tensor:
        s_BLW, z_BLMP = encoding.single, encoding.pair
        for block in self.blocks:
            s_BLW, _ = block(s_BLW, z_BLMP, mask_BL)
        scores_BLH = self.scores(s_BLW).masked_fill(~mask_BL[..., None], -1e9)
        values_BLHW = self.values(s_BLW).unflatten(-1, (_POOL_HEADS, -1))
        pooled = torch.einsum("blh,blhw->bhw", scores_BLH.softmax(dim=1), values_BLHW).flatten(1)
        weights = encoding.has_partner.to(s_BLW.dtype)
        weights = weights / weights.sum((1, 2), keepdim=True).clamp_min(1)
        pairs = torch.einsum("blmp,blm->bp", self.pairs(z_BLMP), weights)
        size = mask_BL.sum(1, keepdim=True).to(s_BLW.dtype).log() - 5
        return self.out(self.standard(torch.cat([pooled, pairs, size], dim=1)))


class _Standardised(nn.Module):
    """Channels less their running mean, over their running deviation; training updates both, and only them.

    Means over a whole protein hardly differ between proteins: the cosine of two untrained
    embeddings would be 0.98, and losses on cosines would have next to no gradient. Unlike in
    batch normalisation no vector depends on the others of its batch.
    """

    mean: Tensor
    variance: Tensor
    seen: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x_BW: Tensor) -> Tensor:
        if self.training and len(x_BW) > 1:
            with torch.no_grad():
                self.seen += 1
                share = torch.maximum(1 / self.seen, torch.full_like(self.seen, 0.01))
                self.mean += share * (x_BW.mean(0) - self.mean)
                self.variance += share * ((x_BW - self.mean).square().mean(0) - self.variance)
        return (x_BW - self.mean) / (self.variance + 1e-8).sqrt()


class _StructureModule(nn.Module):
    """Frames from representations, starting with all residues at the origin (Jumper et al. 2021, algorithm 20)."""

    def __init__(self, config: AtomTowerConfig) -> None:
        super().__init__()
        width = config.width
        self.iterations = config.structure_iterations
        self.norm, self.pair_norm = nn.LayerNorm(width), nn.LayerNorm(config.pair_width)
        self.input = nn.Linear(width, width)
        self.attention = InvariantPointAttention(width, config.pair_width)
        self.attention_norm, self.transition_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transition = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)
        )
        self.dropout = nn.Dropout(config.dropout)
        self.update = nn.Linear(width, 6)
        nn.init.zeros_(self.update.weight)
        nn.init.zeros_(self.update.bias)
        self.lddt = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, LDDT_BINS))

    def forward(self, encoding: Encoding, mask_BL: Tensor) -> tuple[Tensor, tuple[Frames, ...], Tensor]:
        z_BLLP = self.pair_norm(encoding.pair)
        s_BLW = self.input(self.norm(encoding.single))
        b, length, _ = s_BLW.shape
        eye = torch.eye(3, dtype=s_BLW.dtype, device=s_BLW.device).expand(b, length, 3, 3)
        frames = Frames(eye, s_BLW.new_zeros(b, length, 3))
        found = []
        for _ in range(self.iterations):
            s_BLW = self.attention_norm(s_BLW + self.dropout(self.attention(s_BLW, z_BLLP, frames, mask_BL)))
            s_BLW = self.transition_norm(s_BLW + self.dropout(self.transition(s_BLW)))
            turn, shift = self.update(s_BLW).split(3, dim=-1)
            frames = frames.then(Frames(_rotation(turn), shift))
            found.append(Frames(frames.rotations, frames.origins * _SCALE))
            frames = Frames(frames.rotations.detach(), frames.origins)
        return s_BLW, tuple(found), self.lddt(s_BLW)


class _Distogram(nn.Module):
    """Logits of the distance between the C-betas of a residue and of each of its partners; symmetric in the two."""

    def __init__(self, width: int, pair_width: int) -> None:
        super().__init__()
        self.ends = nn.Linear(width, pair_width)
        self.pair = nn.Linear(pair_width, pair_width)
        self.out = nn.Sequential(nn.LayerNorm(pair_width), nn.ReLU(), nn.Linear(pair_width, DISTOGRAM_BINS))

    def forward(self, encoding: Encoding) -> Tensor:
        b, length, partners = encoding.partners.shape
        ends_BLP = self.ends(encoding.single)
        rows = torch.arange(b, device=ends_BLP.device)[:, None, None]
        z_BLMP = self.pair(encoding.pair)
        if partners == length:  # all pairs: both directions are there
            z_BLMP = z_BLMP + z_BLMP.transpose(1, 2)
        return self.out(z_BLMP + ends_BLP[:, :, None] + ends_BLP[rows, encoding.partners])


def _hidden(residues: Residues, hidden: Tensor | None) -> Tensor:
    return torch.zeros_like(residues.mask) if hidden is None else hidden


def _rotation(turn: Tensor) -> Tensor:
    """Rotation matrix of the quaternion (1, b, c, d), normalised (Jumper et al. 2021, algorithm 23)."""
    quaternion = nn.functional.normalize(torch.cat([torch.ones_like(turn[..., :1]), turn], dim=-1), dim=-1)
    a, b, c, d = quaternion.unbind(-1)
    rows = [
        (a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)),
        (2 * (b * c + a * d), a * a - b * b + c * c - d * d, 2 * (c * d - a * b)),
        (2 * (b * d - a * c), 2 * (c * d + a * b), a * a - b * b - c * c + d * d),
    ]
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)

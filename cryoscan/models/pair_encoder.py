"""The thorough encoder of a structure: attention between all residues, biased by a representation of all pairs."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from cryoscan.models.graph_encoder import Encoding
from cryoscan.models.residues import AMINO_ACIDS, BACKBONE, FAR, Residues

_EDGES = torch.linspace(3.25, 50.75, 39)  # Å, bins of C-beta distances as in AlphaFold2's templates
_RANK = 16  # of the outer product


class PairEncoder(nn.Module):
    """Single and pair representations without triangle updates, whose cost is cubic.

    Parameters
    ----------
    width, pair_width : int
        Channels of residues and pairs.
    blocks, heads : int
    dropout : float
    """

    edges: Tensor
    backbone: Tensor

    def __init__(self, *, width: int, pair_width: int, blocks: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.amino_acids = nn.Embedding(len(AMINO_ACIDS) + 1, width)
        self.nodes = nn.Linear(7 * 3 + 1, width)
        self.distances = nn.Embedding(len(_EDGES) + 2, pair_width)
        self.separations = nn.Embedding(2 * FAR + 2, pair_width)
        self.directions = nn.Linear(3, pair_width, bias=False)
        self.blocks = nn.ModuleList(
            PairBlock(width, pair_width, heads=heads, dropout=dropout, updates_pairs=True) for _ in range(blocks)
        )
        self.register_buffer("edges", _EDGES.clone(), persistent=False)
        self.register_buffer("backbone", torch.tensor(BACKBONE), persistent=False)

    def forward(self, residues: Residues, hidden_BL: Tensor) -> Encoding:
        """Encode a batch; of hidden residues only the place along the chain is known.

        Shapes: b structures, l residues, w width, p pair width.
        """
        known_BL1 = ~hidden_BL[..., None]
        seen = (residues.has_torsion & known_BL1).float()
        torsions = (residues.torsions * seen[..., None]).flatten(2)
        s_BLW = self.nodes(torch.cat([torsions, seen, known_BL1.float()], dim=-1))
        s_BLW = s_BLW + self.amino_acids(residues.amino_acids)
        z_BLLP = self._pair_features(residues, hidden_BL)
        for block in self.blocks:
            s_BLW, z_BLLP = block(s_BLW, z_BLLP, residues.mask)
        b, length = residues.mask.shape
        partners = torch.arange(length, device=s_BLW.device).expand(b, length, length)
        has_partner = residues.mask[:, :, None] & residues.mask[:, None]
        return Encoding(s_BLW * residues.mask[..., None], z_BLLP, partners, has_partner)

    def _pair_features(self, residues: Residues, hidden_BL: Tensor) -> Tensor:
        betas = residues.frames.to_global(self.backbone[3:]).squeeze(-2)
        apart = (betas[:, :, None] - betas[:, None]).norm(dim=-1)
        bins = torch.bucketize(apart, self.edges)
        unknown = hidden_BL[:, :, None] | hidden_BL[:, None]
        bins = bins.masked_fill(unknown, len(_EDGES) + 1)
        everyone = betas[:, None].expand(-1, betas.shape[1], -1, -1)
        way = functional.normalize(residues.frames.to_local(everyone), dim=-1, eps=1e-6) * ~unknown[..., None]
        places = residues.places
        along = (places[:, None] - places[:, :, None]).clamp(-FAR, FAR) + FAR
        along = along.masked_fill(residues.chains[:, None] != residues.chains[:, :, None], 2 * FAR + 1)
        return self.distances(bins) + self.separations(along) + self.directions(way)


class PairBlock(nn.Module):
    """Gated attention with a bias from pairs, a transition, and an outer product back to pairs.

    Parameters
    ----------
    width, pair_width : int
    heads : int
    dropout : float
    updates_pairs : bool
        Without, pairs stay as they are.
    """

    def __init__(self, width: int, pair_width: int, *, heads: int, dropout: float, updates_pairs: bool) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.pair_norm = nn.LayerNorm(width), nn.LayerNorm(pair_width)
        self.inputs = nn.Linear(width, 4 * width, bias=False)
        self.bias = nn.Linear(pair_width, heads, bias=False)
        self.out = nn.Linear(width, width)
        self.transition = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width)
        )
        self.dropout = nn.Dropout(dropout)
        self.factors = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * _RANK)) if updates_pairs else None
        self.product = nn.Linear(_RANK * _RANK, pair_width) if updates_pairs else None
        self.pair_transition = nn.Sequential(
            nn.LayerNorm(pair_width), nn.Linear(pair_width, 2 * pair_width), nn.ReLU(),
            nn.Linear(2 * pair_width, pair_width),
        ) if updates_pairs else None  # fmt: skip

    def forward(self, s_BLW: Tensor, z_BLLP: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Both representations, updated; shapes as of `PairEncoder.forward`, h heads."""
        b, length, width = s_BLW.shape
        q, k, v, gate = self.inputs(self.norm(s_BLW)).view(b, length, 4, self.heads, -1).permute(2, 0, 3, 1, 4)
        logits_BHLL = (q * (width // self.heads) ** -0.5) @ k.transpose(-1, -2)
        logits_BHLL = logits_BHLL + self.bias(self.pair_norm(z_BLLP)).permute(0, 3, 1, 2)
        logits_BHLL = logits_BHLL + (mask_BL[:, None, None].to(s_BLW.dtype) - 1) * 1e9
        heard = (logits_BHLL.softmax(dim=-1) @ v) * gate.sigmoid()
        s_BLW = s_BLW + self.dropout(self.out(heard.transpose(1, 2).reshape(b, length, width)))
        s_BLW = s_BLW + self.dropout(self.transition(s_BLW))
        if self.factors is None or self.product is None or self.pair_transition is None:
            return s_BLW, z_BLLP
        left, right = self.factors(s_BLW).chunk(2, dim=-1)
        # (left_i ⊗ right_j) W as (left_i W) right_j: the outer product itself is never stored
        weight_PRR = self.product.weight.view(-1, _RANK, _RANK)
        turned = torch.einsum("blr,prt->bltp", left, weight_PRR)
        z_BLLP = z_BLLP + torch.einsum("bltp,bmt->blmp", turned, right) + self.product.bias
        return s_BLW, z_BLLP + self.pair_transition(z_BLLP)

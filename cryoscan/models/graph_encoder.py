"""The fast encoder of a structure: messages between each residue and its nearest neighbours in space."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from cryoscan.models.residues import AMINO_ACIDS, BACKBONE, FAR, Residues
from cryoscan.units import Angstrom

_SHELLS: tuple[Angstrom, ...] = (8.0, 12.0, 16.0, 24.0)
_DISTANCES = torch.linspace(2, 22, 16)
_CHANNELS = 2 * len(_DISTANCES) + 3 + 3 + 9 + 1
_STEP: Angstrom = 3.8  # between neighbours along a chain


@dataclass(frozen=True, slots=True, eq=False)
class Encoding:
    """Representations of a batch of structures.

    Parameters
    ----------
    single : float tensor, `b l w`
        One vector per residue; zeros at padding.
    pair : float tensor, `b l m p`
        One vector per pair of a residue and each of its `m` partners.
    partners : integer tensor, `b l m`
        Which residues those are.
    has_partner : bool tensor, `b l m`
    """

    single: Tensor
    pair: Tensor
    partners: Tensor
    has_partner: Tensor


class GraphEncoder(nn.Module):
    """Message passing on the graph of the nearest C-alphas.

    Edges carry the whole rigid relation of two frames: distances of C-alphas and C-betas in
    Gaussian bins, each residue's direction in the other's frame, the rotation between them, and
    their separation along the chain. Layers follow the encoder of Ingraham et al. (2019,
    NeurIPS 32) with sums taken before the last linear map, which makes a layer three times as
    fast and leaves it the same function.

    Parameters
    ----------
    width : int
        Channels of residues and edges.
    layers, neighbours : int
    dropout : float
    """

    centres: Tensor
    backbone: Tensor
    shells: Tensor

    def __init__(self, *, width: int, layers: int, neighbours: int, dropout: float) -> None:
        super().__init__()
        self.neighbours = neighbours
        self.amino_acids = nn.Embedding(len(AMINO_ACIDS) + 1, width)
        self.nodes = nn.Linear(7 * 3 + len(_SHELLS) + 1, width)
        self.edges = nn.Linear(_CHANNELS, width)
        self.separations = nn.Embedding(2 * FAR + 2, width)
        self.edge_out = nn.Linear(width, width)
        self.layers = nn.ModuleList(_Messages(width, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.register_buffer("centres", _DISTANCES.clone(), persistent=False)
        self.register_buffer("backbone", torch.tensor(BACKBONE), persistent=False)
        self.register_buffer("shells", torch.tensor(_SHELLS), persistent=False)

    def forward(self, residues: Residues, hidden_BL: Tensor) -> Encoding:
        """Encode a batch; of hidden residues only the place along the chain is known.

        Shapes: b structures, l residues, n real residues of all structures, k neighbours, w width.
        """
        b, length = residues.mask.shape
        distances_BLL, partners_BLK, has_BLK = self._nearest(residues, hidden_BL)
        kept = residues.mask.flatten().nonzero().squeeze(1)
        flat_of = torch.zeros(b * length, dtype=torch.long, device=kept.device)
        flat_of[kept] = torch.arange(len(kept), device=kept.device)
        offsets = torch.arange(b, device=kept.device)[:, None, None] * length
        sources_NK = (partners_BLK + offsets).flatten(0, 1)[kept]
        has_NK = has_BLK.flatten(0, 1)[kept]

        e_NKW = self._edge_features(residues, hidden_BL, kept, sources_NK)
        h_NW = self._node_features(residues, hidden_BL, distances_BLL).flatten(0, 1)[kept]
        weights_NK = has_NK / has_NK.sum(1, keepdim=True).clamp_min(1)
        senders_NK = flat_of[sources_NK]
        for layer in self.layers:
            h_NW = layer(h_NW, e_NKW, senders_NK, weights_NK)
        h_NW = self.norm(h_NW)

        single = h_NW.new_zeros(b * length, h_NW.shape[1]).index_copy(0, kept, h_NW)
        pair = e_NKW.new_zeros(b * length, *e_NKW.shape[1:]).index_copy(0, kept, e_NKW)
        return Encoding(single.view(b, length, -1), pair.view(b, length, *e_NKW.shape[1:]), partners_BLK, has_BLK)

    def _nearest(self, residues: Residues, hidden_BL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Distances between C-alphas, the nearest residues and which of them exist."""
        places = residues.places.to(residues.frames.origins.dtype)
        along_BLL = _STEP * (places[:, :, None] - places[:, None]).abs()
        along_BLL = along_BLL + 1e3 * (residues.chains[:, :, None] != residues.chains[:, None])
        # differences, not |a|² + |b|² - 2 ab: the graph must not depend on rounding
        through_BLL = (residues.frames.origins[:, :, None] - residues.frames.origins[:, None]).norm(dim=-1)
        unknown = hidden_BL[:, :, None] | hidden_BL[:, None]
        distances_BLL = torch.where(unknown, along_BLL, through_BLL)
        real = residues.mask[:, :, None] & residues.mask[:, None]
        itself = torch.eye(places.shape[1], dtype=torch.bool, device=places.device)
        distances_BLL = distances_BLL.masked_fill(~real | itself, torch.inf)
        nearest, partners = distances_BLL.topk(min(self.neighbours, places.shape[1]), dim=2, largest=False)
        return distances_BLL, partners, nearest.isfinite()

    def _node_features(self, residues: Residues, hidden_BL: Tensor, distances_BLL: Tensor) -> Tensor:
        known_BL1 = ~hidden_BL[..., None]
        seen = (residues.has_torsion & known_BL1).float()
        around = (distances_BLL[..., None] < self.shells).float().sum(2) / 20 * known_BL1
        torsions = (residues.torsions * seen[..., None]).flatten(2)
        h_BLW = self.nodes(torch.cat([torsions, seen, around, known_BL1.float()], dim=-1))
        return h_BLW + self.amino_acids(residues.amino_acids)

    def _edge_features(self, residues: Residues, hidden_BL: Tensor, kept: Tensor, sources_NK: Tensor) -> Tensor:
        rotations = residues.frames.rotations.flatten(0, 1)
        origins = residues.frames.origins.flatten(0, 1)
        betas = residues.frames.to_global(self.backbone[3:]).flatten(0, 2)
        r_N33, r_NK33 = rotations[kept], rotations[sources_NK]
        step_NK3 = origins[sources_NK] - origins[kept][:, None]
        length_NK1 = step_NK3.norm(dim=-1, keepdim=True)
        way_NK3 = step_NK3 / length_NK1.clamp_min(1e-6)
        beta_NK1 = (betas[sources_NK] - betas[kept][:, None]).norm(dim=-1, keepdim=True)
        turn_NK33 = r_N33[:, None].transpose(-1, -2) @ r_NK33
        width = self.centres[1] - self.centres[0]
        features = [
            torch.exp(-(((length_NK1 - self.centres) / width) ** 2)),
            torch.exp(-(((beta_NK1 - self.centres) / width) ** 2)),
            way_NK3 @ r_N33,
            -(way_NK3[..., None, :] @ r_NK33).squeeze(-2),
            turn_NK33.flatten(2),
        ]
        hidden = hidden_BL.flatten()
        known_NK1 = ~(hidden[kept][:, None] | hidden[sources_NK])[..., None]
        features_NKF = torch.cat([*features, torch.ones_like(length_NK1)], dim=-1) * known_NK1
        places, chains = residues.places.flatten(), residues.chains.flatten()
        apart = (places[sources_NK] - places[kept][:, None]).clamp(-FAR, FAR) + FAR
        apart = apart.masked_fill(chains[sources_NK] != chains[kept][:, None], 2 * FAR + 1)
        e_NKW = functional.relu(self.edges(features_NKF) + self.separations(apart))
        return functional.relu(self.edge_out(e_NKW))


class _Messages(nn.Module):
    """One round of messages and a transition."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.ends = nn.Linear(width, 2 * width)
        self.edge = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.transition = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, h_NW: Tensor, e_NKW: Tensor, senders_NK: Tensor, weights_NK: Tensor) -> Tensor:
        receiver, sender = self.ends(self.norm(h_NW)).chunk(2, dim=1)
        m_NKW = functional.relu(receiver[:, None] + sender[senders_NK] + self.edge(e_NKW))
        heard = torch.einsum("nkw,nk->nw", m_NKW, weights_NK)
        h_NW = h_NW + self.dropout(self.out(heard))
        return h_NW + self.dropout(self.transition(h_NW))

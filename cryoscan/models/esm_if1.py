"""The encoder of ESM-IF1 in torch alone, and how its published file of weights is read.

ESM-IF1 (Hsu et al. 2022, ICML) guesses a sequence from a backbone. Its encoder joins a graph
network of geometric vector perceptrons (GVP; Jing et al. 2021, ICLR), which carries scalars
and vectors, with a transformer; what the graph finds is told to the transformer in each
residue's own frame. Names of modules are those of ``esm_if1_gvp4_t16_142M_UR50.pt``, so that
its encoder's part loads whole; the decoder's is left.

Letters of shapes: L residues, T tokens (the residues between a first and a last that have no
coordinates), E edges, C channels, 3 coordinates x, y, z.
"""

import math
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor, nn
from torch.nn import functional

from cryoscan.errors import FormatError, require_file

_PAD = 1  # token of what is not there
_MASK = 32  # token of a residue whose amino acid is not told
_BINS = 16  # of distances, confidences and places along the chain
_NODE_INPUT, _EDGE_INPUT = (7, 3), (34, 1)  # scalars and vectors that are measured
_REACH = 20.0  # Å, of the last bin of distances
_TINY = 1e-8
_FLOOR = 1e-4  # of the vectors' norms
_AT_ONCE = 8192  # edges whose messages are computed together, which bounds the memory
_LATER_NAMES = (  # as trained → as published in code; the order matters
    ("W_v", "embed_graph.embed_node"),
    ("W_e", "embed_graph.embed_edge"),
    ("embed_scores.0", "embed_confidence"),
    ("embed_score.", "embed_graph.embed_confidence."),
    ("embed_ingraham_features", "embed_dihedrals"),
    ("embed_gvp_in_local_frame.0", "embed_gvp_output"),
    ("embed_features_in_local_frame.0", "embed_gvp_input_features"),
)
_NOT_WEIGHTS = ("version", "_float_tensor")  # in names of the file that say nothing about the network
_HINT = (
    "Take esm_if1_gvp4_t16_142M_UR50.pt as its makers publish it, for instance from "
    "https://dl.fbaipublicfiles.com/fair-esm/models/esm_if1_gvp4_t16_142M_UR50.pt."
)

Pair = tuple[Tensor, Tensor]
"""Scalars, `… C`, and vectors, `… C 3`."""


@dataclass(frozen=True, slots=True)
class EsmIf1Sizes:
    """Sizes of the encoder, as its file tells them."""

    dim: int = 512
    """Of a token."""
    layers: int = 8
    """Of the transformer."""
    heads: int = 8
    hidden: int = 2048
    """Of the transformer's perceptrons."""
    node: tuple[int, int] = (1024, 256)
    """Scalars and vectors of a residue in the graph."""
    edge: tuple[int, int] = (32, 1)
    """Scalars and vectors of an edge."""
    graph_layers: int = 4
    neighbours: int = 30
    """Of a residue in the graph, itself included."""

    @classmethod
    def from_namespace(cls, found: Namespace) -> Self:
        """From the settings that are stored beside the weights."""
        return cls(
            dim=int(found.encoder_embed_dim),
            layers=int(found.encoder_layers),
            heads=int(found.encoder_attention_heads),
            hidden=int(found.encoder_ffn_embed_dim),
            node=(int(found.gvp_node_hidden_dim_scalar), int(found.gvp_node_hidden_dim_vector)),
            edge=(int(found.gvp_edge_hidden_dim_scalar), int(found.gvp_edge_hidden_dim_vector)),
            graph_layers=int(found.gvp_num_encoder_layers),
            neighbours=int(found.gvp_top_k_neighbors),
        )


class EsmIf1Encoder(nn.Module):
    """Backbone → a vector per residue.

    Parameters
    ----------
    sizes : EsmIf1Sizes
    tokens : int
        Kinds of tokens that the weights know.
    """

    def __init__(self, sizes: EsmIf1Sizes, *, tokens: int = 35) -> None:
        super().__init__()
        self.sizes = sizes
        scalars, vectors = sizes.node
        self.embed_tokens = nn.Embedding(tokens, sizes.dim, _PAD)
        self.embed_gvp_input_features = nn.Linear(_NODE_INPUT[0] - 1 + 3 * _NODE_INPUT[1], sizes.dim)
        self.embed_confidence = nn.Linear(_BINS, sizes.dim)
        self.embed_dihedrals = _Torsions(sizes.dim)
        self.gvp_encoder = _Graph(sizes)
        self.embed_gvp_output = nn.Linear(scalars + 3 * vectors, sizes.dim)
        self.layers = nn.ModuleList(_TransformerLayer(sizes) for _ in range(sizes.layers))
        self.layer_norm = nn.LayerNorm(sizes.dim)

    def forward(self, backbone_L33: Tensor) -> Tensor:
        """Vectors of the residues of one chain, `L dim`.

        Parameters
        ----------
        backbone_L33 : float tensor
            Places of N, CA and C, x y z in Å; NaN where an atom is missing. A residue without
            N is not attended to, and its vector means nothing; one that lacks another atom has a
            place in the chain and none in space. Since the tokens before the first and after the last residue
            lie at the origin, the vectors of the ends depend on where the chain is: put its
            centre there.
        """
        places_T33 = functional.pad(backbone_L33, (0, 0, 0, 0, 1, 1), value=math.inf)
        there_T = torch.isfinite(places_T33).flatten(1).all(dim=1)
        absent_T = torch.isnan(places_T33[:, 0, 0])
        places_T33 = torch.where(torch.isfinite(places_T33), places_T33, 0.0)
        confidence_T = there_T.float() - absent_T.float()

        frames_T33 = _frames(places_T33)
        torsions_T6 = _torsions(places_T33)
        directions_TC3 = _directions(places_T33)
        scalars_TC, vectors_TC3 = self.gvp_encoder(places_T33, there_T, torsions_T6, directions_TC3, confidence_T)
        tokens_T = torch.where(absent_T, _PAD, _MASK)
        x_TC = (
            self.embed_tokens(tokens_T) * math.sqrt(self.sizes.dim)
            + self.embed_dihedrals(torsions_T6)
            + self.embed_gvp_output(torch.cat([scalars_TC, _seen_from(frames_T33, vectors_TC3)], dim=1))
            + self.embed_confidence(_bins(confidence_T, last=1.0))
            + self.embed_gvp_input_features(torch.cat([torsions_T6, _seen_from(frames_T33, directions_TC3)], dim=1))
            + _positions(len(tokens_T), self.sizes.dim)
        )
        x_TC = x_TC * ~absent_T[:, None]
        for layer in self.layers:
            x_TC = layer(x_TC, ~absent_T)
        result: Tensor = self.layer_norm(x_TC)[1:-1]
        return result


def load_esm_if1(path: Path | str) -> EsmIf1Encoder:
    """The encoder with the weights of a file as the makers of ESM-IF1 publish it.

    Of the file numbers are read, and the plain settings beside them; nothing in it can run.

    Parameters
    ----------
    path : Path
        ``esm_if1_gvp4_t16_142M_UR50.pt``, or another file of that kind.

    Raises
    ------
    MissingFileError
        If there is no such file.
    FormatError
        If it is cut short, holds anything but numbers and settings, or another network.
    """
    path = require_file(Path(path), what="the weights of ESM-IF1")
    try:
        with torch.serialization.safe_globals([Namespace]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in many ways
        raise FormatError(
            f"expected the weights of ESM-IF1 in {path}: numbers, and plain settings beside them",
            got=str(error).split("\n", 1)[0],
            hint=f"The file is cut short, or holds code, which is never run. {_HINT}",
        ) from error
    settings, weights = _parts(path, checkpoint)
    try:
        sizes = EsmIf1Sizes.from_namespace(settings)
        encoder = EsmIf1Encoder(sizes, tokens=len(weights["embed_tokens.weight"]))
        encoder.load_state_dict(weights)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise FormatError(
            f"expected the encoder of ESM-IF1 in {path}, every weight of it and no other",
            got=" ".join(str(error).split())[:300],
            hint=_HINT,
        ) from error
    if not all(torch.isfinite(weight).all() for weight in encoder.state_dict().values()):
        raise FormatError(f"expected finite weights in {path}", got="NaN or infinity", hint=_HINT)
    return encoder.eval().requires_grad_(False)


def _parts(path: Path, checkpoint: Any) -> tuple[Namespace, dict[str, Tensor]]:
    """The settings of a file and the weights of its encoder under their later names."""
    settings = checkpoint.get("args") if isinstance(checkpoint, Mapping) else None
    stored = checkpoint.get("model") if isinstance(checkpoint, Mapping) else None
    kind = str(getattr(settings, "arch", ""))
    if not (isinstance(settings, Namespace) and isinstance(stored, Mapping) and "invariant_gvp" in kind):
        raise FormatError(
            f"expected the weights of ESM-IF1 in {path}",
            got=f"weights of '{kind}'" if kind else "a file without 'args' and 'model'",
            hint=_HINT,
        )
    weights = {}
    for name, value in stored.items():
        if not str(name).startswith("encoder.") or any(word in name for word in _NOT_WEIGHTS):
            continue
        later = str(name).removeprefix("encoder.")
        for old, new in _LATER_NAMES:
            later = later.replace(old, new)
        weights[later] = value
    return settings, weights


# ---------------------------------------------------------------- the graph


class _Perceptron(nn.Module):
    """Mixes scalars and vectors so that turning the input turns the output's vectors alike.

    The scalars learn the vectors' lengths; a gated one lets its scalars, rectified, choose how
    much of each vector passes.
    """

    def __init__(self, into: tuple[int, int], out: tuple[int, int], *, gated: bool = False) -> None:
        super().__init__()
        hidden = max(into[1], out[1])
        self.wh = nn.Linear(into[1], hidden, bias=False)
        self.ws = nn.Linear(into[0] + hidden, out[0])
        self.wv = nn.Linear(hidden, out[1], bias=False)
        if gated:
            self.wg = nn.Linear(out[0], out[1])
        self.gated = gated

    def forward(self, pair: Pair) -> Pair:
        scalars, vectors = pair
        mixed = self.wh(vectors.transpose(-1, -2))  # … 3 C
        scalars = self.ws(torch.cat([scalars, (mixed.square().sum(dim=-2) + _TINY).sqrt()], dim=-1))
        vectors = self.wv(mixed).transpose(-1, -2)
        if self.gated:
            scalars = scalars.relu()
            vectors = vectors * self.wg(scalars).sigmoid()[..., None]
        return scalars, vectors


class _PairNorm(nn.Module):
    """Normalises scalars as usual, and vectors by the mean of their squared lengths."""

    def __init__(self, sizes: tuple[int, int]) -> None:
        super().__init__()
        self.scalar_norm = nn.LayerNorm(sizes[0])

    def forward(self, pair: Pair) -> Pair:
        scalars, vectors = pair
        squares = vectors.square().sum(dim=-1, keepdim=True) + _FLOOR
        counts = squares > 2 * _FLOOR
        mean = (squares * counts).sum(dim=-2, keepdim=True) / (_FLOOR + counts.sum(dim=-2, keepdim=True))
        return self.scalar_norm(scalars), counts * (vectors / (mean + _FLOOR).sqrt())


class _Messages(nn.Module):
    """Mean over a residue's incoming edges of what a network makes of both ends and the edge."""

    def __init__(self, node: tuple[int, int], edge: tuple[int, int]) -> None:
        super().__init__()
        into = 2 * node[0] + edge[0], 2 * node[1] + edge[1]
        self.message_func = nn.Sequential(
            _Perceptron(into, node, gated=True), _Perceptron(node, node, gated=True), _Perceptron(node, node)
        )

    def forward(self, nodes: Pair, edges: Pair, ends_2E: Tensor) -> Pair:
        totals = [torch.zeros_like(part) for part in nodes]
        for start in range(0, ends_2E.shape[1], _AT_ONCE):
            some = slice(start, start + _AT_ONCE)
            source, target = ends_2E[:, some]
            scalars = torch.cat([nodes[0][source], edges[0][some], nodes[0][target]], dim=1)
            vectors = torch.cat([nodes[1][source], edges[1][some], nodes[1][target]], dim=1)
            for total, message in zip(totals, self.message_func((scalars, vectors)), strict=True):
                total.index_add_(0, target, message)
        counts = torch.bincount(ends_2E[1], minlength=len(nodes[0])).clamp_min(1)
        return totals[0] / counts[:, None], totals[1] / counts[:, None, None]


class _GraphLayer(nn.Module):
    def __init__(self, node: tuple[int, int], edge: tuple[int, int]) -> None:
        super().__init__()
        wide = 4 * node[0], 2 * node[1]
        self.conv = _Messages(node, edge)
        self.norm = nn.ModuleList(_PairNorm(node) for _ in range(2))
        self.ff_func = nn.Sequential(_Perceptron(node, wide, gated=True), _Perceptron(wide, node))

    def forward(self, nodes: Pair, edges: Pair, ends_2E: Tensor) -> Pair:
        nodes = self.norm[0](_sum(nodes, self.conv(nodes, edges, ends_2E)))
        found: Pair = self.norm[1](_sum(nodes, self.ff_func(nodes)))
        return found


class _GraphInput(nn.Module):
    """What is measured, as scalars and vectors of nodes and edges."""

    def __init__(self, sizes: EsmIf1Sizes) -> None:
        super().__init__()
        self.embed_node = nn.Sequential(_Perceptron(_NODE_INPUT, sizes.node), _PairNorm(sizes.node))
        self.embed_edge = nn.Sequential(_Perceptron(_EDGE_INPUT, sizes.edge), _PairNorm(sizes.edge))
        self.embed_confidence = nn.Linear(_BINS, sizes.node[0])


class _Graph(nn.Module):
    """Each residue sends messages to those that are nearest to it."""

    def __init__(self, sizes: EsmIf1Sizes) -> None:
        super().__init__()
        self.neighbours = sizes.neighbours
        self.embed_graph = _GraphInput(sizes)
        self.encoder_layers = nn.ModuleList(_GraphLayer(sizes.node, sizes.edge) for _ in range(sizes.graph_layers))

    def forward(
        self, places_T33: Tensor, there_T: Tensor, torsions_T6: Tensor, directions_TC3: Tensor, confidence_T: Tensor
    ) -> Pair:
        measured = torch.cat([torsions_T6, there_T[:, None].float()], dim=1), directions_TC3
        scalars, vectors = self.embed_graph.embed_node(measured)
        nodes = scalars + self.embed_graph.embed_confidence(_bins(confidence_T, last=1.0)), vectors
        ends_2E = self._nearest(places_T33[:, 1], there_T)
        edges = self.embed_graph.embed_edge(_edges(places_T33[:, 1], ends_2E))
        for layer in self.encoder_layers:
            nodes = layer(nodes, edges, ends_2E)
        return nodes

    def _nearest(self, places_T3: Tensor, there_T: Tensor) -> Tensor:
        """Edges from every residue with a place to its nearest ones, itself included, `2 E`."""
        index_L = torch.nonzero(there_T)[:, 0]
        if not len(index_L):
            return torch.zeros(2, 0, dtype=torch.long)
        points = places_T3[index_L].double().numpy()
        count = min(self.neighbours, len(index_L))
        nearest = np.reshape(cKDTree(points).query(points, k=count)[1], (len(points), count))
        return torch.stack([index_L.repeat_interleave(count), index_L[torch.from_numpy(nearest.ravel())]])


def _sum(one: Pair, other: Pair) -> Pair:
    return one[0] + other[0], one[1] + other[1]


def _edges(places_T3: Tensor, ends_2E: Tensor) -> Pair:
    """Distance, steps along the chain and direction of edges; both ends are known to have a place."""
    source, target = ends_2E
    apart_E3 = places_T3[source] - places_T3[target]
    rate = torch.exp(torch.arange(0, _BINS, 2) * (-math.log(10_000.0) / _BINS))
    angle = (source - target)[:, None] * rate
    distance = _bins((apart_E3.square().sum(dim=1) + _TINY).sqrt(), last=_REACH)
    scalars = torch.cat([distance, angle.cos(), angle.sin(), torch.zeros(len(source), 2)], dim=1)
    return scalars, _unit(apart_E3)[:, None]


# ---------------------------------------------------------------- what is measured


def _unit(vectors: Tensor) -> Tensor:
    return vectors / (vectors.square().sum(dim=-1, keepdim=True) + _TINY).sqrt()


def _bins(values: Tensor, *, last: float) -> Tensor:
    """How near values are to 16 places between 0 and the last, `… 16`."""
    centres = torch.linspace(0.0, last, _BINS)
    return torch.exp(-(((values[..., None] - centres) / (last / _BINS)) ** 2))


def _torsions(places_T33: Tensor) -> Tensor:
    """Cosines, then sines of phi, psi and omega, `T 6`; an angle that is not defined is 0."""
    steps = _unit(places_T33.flatten(0, 1).diff(dim=0))
    normals = _unit(torch.linalg.cross(steps[:-1], steps[1:], dim=-1))
    cosine = (normals[:-1] * normals[1:]).sum(dim=-1).clamp(-1 + 1e-7, 1 - 1e-7)
    angle = torch.sign((steps[:-2] * normals[1:]).sum(dim=-1)) * cosine.acos()
    angle_T3 = functional.pad(angle, (1, 2)).reshape(-1, 3)
    return torch.cat([angle_T3.cos(), angle_T3.sin()], dim=1)


def _directions(places_T33: Tensor) -> Tensor:
    """Towards the next and the last residue and the side chain, `T 3 3`."""
    n, ca, c = places_T33.unbind(dim=1)
    along = _unit(ca.diff(dim=0))
    to_n, to_c = _unit(n - ca), _unit(c - ca)
    across = _unit(torch.linalg.cross(to_c, to_n, dim=-1))
    side = -math.sqrt(1 / 3) * _unit(to_c + to_n) - math.sqrt(2 / 3) * across
    ahead, back = functional.pad(along, (0, 0, 0, 1)), functional.pad(-along, (0, 0, 1, 0))
    return torch.stack([ahead, back, side], dim=1)


def _frames(places_T33: Tensor) -> Tensor:
    """Axes of each residue as rows, `T 3 3`: along CA → C, towards N, across."""
    n, ca, c = places_T33.unbind(dim=1)
    first = _unit(c - ca)
    second = _unit((n - ca) - first * (first * (n - ca)).sum(dim=-1, keepdim=True))
    return torch.stack([first, second, torch.linalg.cross(first, second, dim=-1)], dim=1)


def _seen_from(frames_T33: Tensor, vectors_TC3: Tensor) -> Tensor:
    """Vectors in the residues' own axes, `T 3C`, which no rotation changes."""
    return (vectors_TC3 @ frames_T33.transpose(1, 2)).flatten(1)


# ---------------------------------------------------------------- the transformer


def _positions(count: int, dim: int) -> Tensor:
    """Sines, then cosines of the places along the chain, counted from 2, `T dim`."""
    half = dim // 2
    rate = torch.exp(torch.arange(half) * (-math.log(10_000.0) / (half - 1)))
    angle = (torch.arange(count) + _PAD + 1)[:, None] * rate
    return functional.pad(torch.cat([angle.sin(), angle.cos()], dim=1), (0, dim % 2))


class _Torsions(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.node_embedding = nn.Linear(6, dim)
        self.norm_nodes = _StandardScore(dim)

    def forward(self, torsions_T6: Tensor) -> Tensor:
        found: Tensor = self.norm_nodes(self.node_embedding(torsions_T6))
        return found


class _StandardScore(nn.Module):
    """As `nn.LayerNorm`, but for the degree of freedom, and for where it guards against 0."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gain, self.bias = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        spread = (x.var(dim=-1, keepdim=True) + 1e-6).sqrt() + 1e-6
        return self.gain * (x - x.mean(dim=-1, keepdim=True)) / spread + self.bias


class _Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.k_proj, self.v_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.q_proj, self.out_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x_TC: Tensor, there_T: Tensor) -> Tensor:
        query, key, value = (
            part(x_TC).unflatten(1, (self.heads, -1)).transpose(0, 1)[None]
            for part in (self.q_proj, self.k_proj, self.v_proj)
        )
        found = functional.scaled_dot_product_attention(query, key, value, attn_mask=there_T[None, None, None])
        answer: Tensor = self.out_proj(found[0].transpose(0, 1).flatten(1))
        return answer


class _TransformerLayer(nn.Module):
    def __init__(self, sizes: EsmIf1Sizes) -> None:
        super().__init__()
        self.self_attn = _Attention(sizes.dim, sizes.heads)
        self.self_attn_layer_norm = nn.LayerNorm(sizes.dim)
        self.fc1, self.fc2 = nn.Linear(sizes.dim, sizes.hidden), nn.Linear(sizes.hidden, sizes.dim)
        self.final_layer_norm = nn.LayerNorm(sizes.dim)

    def forward(self, x_TC: Tensor, there_T: Tensor) -> Tensor:
        x_TC = x_TC + self.self_attn(self.self_attn_layer_norm(x_TC), there_T)
        found: Tensor = x_TC + self.fc2(self.fc1(self.final_layer_norm(x_TC)).relu())
        return found

"""Frames of residues in space, and attention that sees points only through them.

A frame is a rotation matrix and an origin: it takes local coordinates to z, y, x in Å,
`x = R u + t`. Vectors written z, y, x are a left-handed system, where the component formula of
the cross product gives the negative of the true one. Frames are made with the component formula,
so that their matrices are proper rotations (determinant 1) and can be composed with others; their
third axis is then the opposite of the literature's, whose tables of local coordinates therefore
change the sign of the third number. Whatever is told apart from its mirror image (torsion
angles, C-beta) goes through `frames_of` and `dihedral`, and nowhere else.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, slots=True, eq=False)
class Frames:
    """Rotations and origins of residues.

    Parameters
    ----------
    rotations : float tensor, `... 3 3`
        Proper; columns are the local axes in z, y, x.
    origins : float tensor, `... 3`
        z, y, x in Å.
    """

    rotations: Tensor
    origins: Tensor

    def to_global(self, local: Tensor) -> Tensor:
        """Positions of local points, `... p 3` → `... p 3` Å."""
        return local @ self.rotations.transpose(-1, -2) + self.origins[..., None, :]

    def to_local(self, points: Tensor) -> Tensor:
        """Local coordinates of positions, `... p 3` Å → `... p 3`."""
        return (points - self.origins[..., None, :]) @ self.rotations

    def then(self, other: "Frames") -> "Frames":
        """These frames after `other`, which is given in their local coordinates."""
        moved = self.to_global(other.origins[..., None, :]).squeeze(-2)
        return Frames(self.rotations @ other.rotations, moved)


def frames_of(first: Tensor, centre: Tensor, third: Tensor) -> Frames:
    """Frames of N, C-alpha, C (or of three successive C-alphas) by Gram-Schmidt.

    The first axis points from the centre to `third`, the second lies on the side of `first`
    (Jumper et al. 2021, supplement, algorithm 21).

    Parameters
    ----------
    first, centre, third : float tensors, `... 3`
        z, y, x in Å; not on one line.
    """
    axis_1 = functional.normalize(third - centre, dim=-1, eps=1e-6)
    towards = first - centre
    axis_2 = towards - (towards * axis_1).sum(-1, keepdim=True) * axis_1
    axis_2 = functional.normalize(axis_2, dim=-1, eps=1e-6)
    axis_3 = torch.linalg.cross(axis_1, axis_2)
    return Frames(torch.stack([axis_1, axis_2, axis_3], dim=-1), centre)


def dihedral(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """Sine and cosine of the torsion angle a-b-c-d in the usual sense (IUPAC), `... 3` → `... 2`."""
    seen = frames_of(a, c, b)  # looking along the bond: b on the first axis, a on the second
    local = seen.to_local(d[..., None, :]).squeeze(-2)
    return functional.normalize(torch.stack([local[..., 2], local[..., 1]], dim=-1), dim=-1, eps=1e-6)


def turned_by(vectors: Tensor) -> Tensor:
    """Rotation matrices, `... 3 3`, of rotation vectors `... 3`: along the axis, as long as the angle in degrees."""
    radians = torch.deg2rad(vectors)
    angle = radians.norm(dim=-1).clamp_min(1e-8)[..., None, None]
    z, y, x = radians.unbind(-1)
    zero = torch.zeros_like(z)
    rows = [torch.stack(row, dim=-1) for row in ((zero, -x, y), (x, zero, -z), (-y, z, zero))]
    cross = torch.stack(rows, dim=-2) / angle
    eye = torch.eye(3, dtype=vectors.dtype, device=vectors.device)
    return eye + angle.sin() * cross + (1 - angle.cos()) * (cross @ cross)


class InvariantPointAttention(nn.Module):
    """Attention whose weights also depend on distances between points in the residues' frames.

    Jumper et al. (2021), supplement, algorithm 22. Nothing in it changes when all frames are
    moved together.

    Parameters
    ----------
    width, pair_width : int
        Channels of single and pair representations.
    heads, hidden, query_points, value_points : int
    """

    def __init__(
        self,
        width: int,
        pair_width: int,
        *,
        heads: int = 12,
        hidden: int = 16,
        query_points: int = 4,
        value_points: int = 8,
    ) -> None:
        super().__init__()
        self.heads, self.hidden, self.value_points = heads, hidden, value_points
        self.query_points = query_points
        self.scalars = nn.Linear(width, 3 * heads * hidden, bias=False)
        self.points = nn.Linear(width, heads * (2 * query_points + value_points) * 3)
        self.pair_bias = nn.Linear(pair_width, heads)
        self.distance_weight = nn.Parameter(torch.full((heads,), 0.5413))  # softplus of it is 1
        self.out = nn.Linear(heads * (hidden + pair_width + 4 * value_points), width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, s_BLW: Tensor, z_BLLP: Tensor, frames: Frames, mask_BL: Tensor) -> Tensor:
        """Update of the single representation, `b l w`.

        Shapes: b structures, l residues, w width, p pair width, h heads, c hidden, q points.
        Origins are in units of 10 Å.
        """
        b, length, _ = s_BLW.shape
        q_BLHC, k_BLHC, v_BLHC = self.scalars(s_BLW).view(b, length, self.heads, 3 * self.hidden).chunk(3, dim=-1)
        local = self.points(s_BLW).view(b, length, -1, 3)
        points = frames.to_global(local).view(b, length, self.heads, -1, 3)
        q_points, k_points, v_points = points.tensor_split([self.query_points, 2 * self.query_points], dim=3)

        logits_BHLL = torch.einsum("blhc,bmhc->bhlm", q_BLHC, k_BLHC) * (3 * self.hidden) ** -0.5
        logits_BHLL = logits_BHLL + self.pair_bias(z_BLLP).permute(0, 3, 1, 2) * 3**-0.5
        # squared distances by |q|² + |k|² - 2 q·k: the difference tensor would be q x 3 times as large
        norms = (q_points**2).sum((-1, -2))[:, :, None] + (k_points**2).sum((-1, -2))[:, None]
        squares = norms.permute(0, 3, 1, 2) - 2 * torch.einsum("blhqx,bmhqx->bhlm", q_points, k_points)
        strength = functional.softplus(self.distance_weight) * (3 * 4.5 * self.query_points) ** -0.5 * 0.5
        logits_BHLL = logits_BHLL - strength[:, None, None] * squares
        logits_BHLL = logits_BHLL + (mask_BL[:, None, None].to(s_BLW.dtype) - 1) * 1e9
        weights = logits_BHLL.softmax(dim=-1)

        scalars = torch.einsum("bhlm,bmhc->blhc", weights, v_BLHC).flatten(2)
        pairs = torch.einsum("bhlm,blmp->blhp", weights, z_BLLP).flatten(2)
        seen = torch.einsum("bhlm,bmhqx->blhqx", weights, v_points).flatten(2, 3)
        seen = frames.to_local(seen)
        lengths = (seen**2).sum(-1).add(1e-8).sqrt()
        return self.out(torch.cat([scalars, pairs, seen.flatten(2), lengths], dim=-1))

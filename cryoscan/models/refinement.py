"""From the best rotation of a grid to the best of all: how well densities fit once they may turn and move freely.

With a density's harmonics t, its rotation by a small vector w is exp(w·J) t, where J_x, J_y, J_z are
antisymmetric matrices that do not mix degrees; and a small shift s of the other density's harmonics q is, to second
order, q + s·T q + ½ (s·T)² q. So the correlation

    f(w, s) = <q(s), exp(w·J) R t>

has gradients and second derivatives that are scalar products of a few vectors, and Newton's method finds the
nearest maximum in a few steps.
"""

import functools
from collections.abc import Sequence

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from cryoscan.models.harmonics import (
    DEGREES,
    SHELLS,
    WINDOW,
    Parity,
    dual_functions,
    mirror_classes,
    octant,
    rotation_table,
)

_STEPS = (7, 5, 4)
"""Terms of the exponential for each step: a rotation by .25 needs 7 at the last degree, and later steps are short."""
_FARTHEST = 0.25  # radians that a step may turn
_REACH = 0.7  # voxels that a density may move in all; the series in s ends at the second order
_FLATTEST = 0.05  # least curvature, as a share of the largest: no long steps along flat directions
_PAIRS = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))
_SQUARE = ((0, 1, 2), (1, 3, 4), (2, 4, 5))
"""Where the pairs lie in a matrix."""
_SHIFTED = 10
"""q, its three first and six second derivatives along shifts."""


def refine(q_SHK: Tensor, t_LMKN: Sequence[Tensor], shift_N: Tensor, *, weights_LKK: Tensor | None = None) -> Tensor:
    """Largest correlations near where densities already fit roughly, `n`.

    Parameters
    ----------
    q_SHK : Tensor, `s lm k`
        Harmonics of a density about several middles.
    t_LMKN : sequence of Tensor
        Harmonics of n other densities, turned until they fit, for each degree: `2l+1 k n`.
    shift_N : int64 Tensor, `n`
        The middle, of `q_SHK`, about which each fits.
    weights_LKK : Tensor, optional
        What counts (`cryoscan.models.comparison`); the correlation is then <W q(s), exp(w·J) R t>.
    """
    return _climbed(q_SHK, t_LMKN, shift_N, weights_LKK)[0]


def channel_products(
    q_SHK: Tensor, t_LMKN: Sequence[Tensor], shift_N: Tensor, *, weights_LKK: Tensor | None = None
) -> Tensor:
    """Products of the channels of a density (rows) and others where `refine` finds them best, `n l k k`."""
    _, x_LMKN, s_NI = _climbed(q_SHK, t_LMKN, shift_N, weights_LKK)
    value_NV, _ = _taylor(s_NI)
    parts = []
    for q_VMK, x_MKN in zip(_with_derivatives(q_SHK, _generators(str(q_SHK.device))), x_LMKN, strict=True):
        q_VSMK = q_VMK.reshape(4, _SHIFTED, len(q_SHK), *q_VMK.shape[1:])[0]
        q_NMK = torch.einsum("nv,vnmk->nmk", value_NV, q_VSMK[:, shift_N])
        parts.append(torch.einsum("nma,mbn->nab", q_NMK, x_MKN))
    return torch.stack(parts, dim=1)


def _climbed(
    q_SHK: Tensor, t_LMKN: Sequence[Tensor], shift_N: Tensor, weights_LKK: Tensor | None
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Largest correlations, the densities as they are turned there, and how far the other one is moved."""
    generators_LAMM = _generators(str(q_SHK.device))
    q_LVMK = _with_derivatives(q_SHK, generators_LAMM)
    if weights_LKK is not None:
        q_LVMK = [q_VMK @ w_KK for q_VMK, w_KK in zip(q_LVMK, weights_LKK, strict=True)]
    q_VSD = torch.cat([q_VMK.flatten(1) for q_VMK in q_LVMK], dim=1).reshape(4 * _SHIFTED, len(q_SHK), -1)
    order_N = torch.argsort(shift_N, stable=True)  # those that fit about the same middle together
    counts = torch.bincount(shift_N, minlength=len(q_SHK)).tolist()
    n, x_LMKN = len(shift_N), [t_MKN[:, :, order_N] for t_MKN in t_LMKN]
    s_NI, best_N = q_SHK.new_zeros(n, 3), q_SHK.new_full((n,), -1.0)
    best_x_LMKN, best_s_NI = x_LMKN, s_NI
    for terms in (*_STEPS, 0):
        # products of (q, J_a q) and their derivatives along shifts with (x, J_b x)
        both_LMKAN = [
            torch.cat([x_MKN[:, :, None], _generated(j_AMM, x_MKN)], dim=2).flatten(0, 1)
            for j_AMM, x_MKN in zip(generators_LAMM, x_LMKN, strict=True)
        ]
        parts = torch.split(torch.cat(both_LMKAN), counts, dim=2)
        products = torch.cat(
            [(q_VSD[:, s] @ part.flatten(1)).reshape(4 * _SHIFTED, 4, -1) for s, part in enumerate(parts)], dim=2
        ).reshape(4, _SHIFTED, 4, n)
        value_NV, slope_NIV = _taylor(s_NI)
        f_N = torch.einsum("nv,vn->n", value_NV, products[0, :, 0])
        better_N = f_N > best_N
        best_x_LMKN = [torch.where(better_N, x, best) for x, best in zip(x_LMKN, best_x_LMKN, strict=True)]
        best_s_NI = torch.where(better_N[:, None], s_NI, best_s_NI)
        best_N = torch.maximum(best_N, f_N.clamp_max(1))  # the series is no mere shift: 1.001 happens
        if not terms:
            break
        along_s = products[0, :, 0]
        turn_NAB = -torch.einsum("nv,bvan->nab", value_NV, products[1:, :, 1:])  # <q, J_a J_b x> = -<J_a q, J_b x>
        mixed_NIA = torch.einsum("niv,van->nia", slope_NIV, products[0, :, 1:])
        shift_NIJ = along_s[4:].T[:, _SQUARE]
        gradient_NG = torch.cat(
            [
                torch.einsum("nv,van->na", value_NV, products[0, :, 1:]),
                torch.einsum("niv,vn->ni", slope_NIV, along_s),
            ],
            dim=1,
        )
        upper, lower = torch.cat([(turn_NAB + turn_NAB.mT) / 2, mixed_NIA.mT], 2), torch.cat([mixed_NIA, shift_NIJ], 2)
        move_NG = _uphill(gradient_NG, torch.cat([upper, lower], dim=1))
        w_NA, length_N1 = move_NG[:, :3], torch.linalg.vector_norm(move_NG[:, :3], dim=1, keepdim=True)
        turned = w_NA * (_FARTHEST / length_N1.clamp_min(_FARTHEST))
        x_LMKN = _rotated(x_LMKN, turned, generators_LAMM, terms=terms)
        s_NI = (s_NI + move_NG[:, 3:]).clamp(-_REACH, _REACH)
    back_N = torch.argsort(order_N)
    return best_N[back_N], [x_MKN[:, :, back_N] for x_MKN in best_x_LMKN], best_s_NI[back_N]


def _uphill(gradient_NG: Tensor, curvature_NGG: Tensor) -> Tensor:
    """Newton's step; along directions that do not curve downwards a short step uphill."""
    values_NG, vectors_NGG = torch.linalg.eigh(curvature_NGG.double())
    least_N1 = _FLATTEST * values_NG.abs().amax(dim=1, keepdim=True).clamp_min(1e-12)
    along_NG = torch.einsum("ngh,ng->nh", vectors_NGG, gradient_NG.double())
    return torch.einsum("ngh,nh->ng", vectors_NGG, along_NG / torch.maximum(-values_NG, least_N1)).to(gradient_NG.dtype)


def _rotated(x_LMKN: list[Tensor], w_NA: Tensor, generators_LAMM: Sequence[Tensor], *, terms: int) -> list[Tensor]:
    """exp(w·J) x by its series."""
    turned = []
    for j_AMM, x_MKN in zip(generators_LAMM, x_LMKN, strict=True):
        term_MKN, sum_MKN = x_MKN, x_MKN
        for power in range(1, terms + 1):
            term_MKN = (_generated(j_AMM, term_MKN) * (w_NA.T / power)).sum(dim=2)
            sum_MKN = sum_MKN + term_MKN
        turned.append(sum_MKN)
    return turned


def _generated(j_AMM: Tensor, x_MKN: Tensor) -> Tensor:
    """J_a x for all three axes, `m k a n`."""
    m, k, n = x_MKN.shape
    return (j_AMM.reshape(-1, m) @ x_MKN.reshape(m, -1)).reshape(3, m, k, n).permute(1, 2, 0, 3)


def _with_derivatives(q_SHK: Tensor, generators_LAMM: Sequence[Tensor]) -> list[Tensor]:
    """q, J_x q, J_y q, J_z q, each with its derivatives along shifts, of all q: for each degree `4·10·s m k`."""
    first, second = _shift_derivatives(str(q_SHK.device))
    layers_LSHK = torch.stack(torch.split(q_SHK, SHELLS, dim=2))
    flat_DS = layers_LSHK.flatten(0, 1).flatten(1).T
    moved = torch.cat([flat_DS[None], first @ flat_DS, second @ flat_DS])  # v d layers·s
    q_VLSHK = moved.permute(0, 2, 1).reshape(-1, *layers_LSHK.shape)
    q_VHK = torch.cat(q_VLSHK.unbind(1), dim=-1).flatten(0, 1)
    parts = []
    for l, j_AMM in enumerate(generators_LAMM):
        q_VMK = q_VHK[:, l * l : (l + 1) ** 2]
        parts.append(torch.cat([q_VMK, *(j_MM @ q_VMK for j_MM in j_AMM)]))
    return parts


def _taylor(s_NI: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of q and its derivatives in q(s), `n 10`, and their derivatives along s, `n 3 10`."""
    value_NV, slope_NIV = s_NI.new_ones(len(s_NI), _SHIFTED), s_NI.new_zeros(len(s_NI), 3, _SHIFTED)
    value_NV[:, 1:4] = s_NI
    for i in range(3):
        slope_NIV[:, i, 1 + i] = 1
    for place, (i, j) in enumerate(_PAIRS, start=4):
        value_NV[:, place] = s_NI[:, i] * s_NI[:, j] * (0.5 if i == j else 1.0)
        slope_NIV[:, i, place] = s_NI[:, j]
        slope_NIV[:, j, place] = s_NI[:, i]
    return value_NV, slope_NIV


# ---------------------------------------------------------------- matrices


@functools.lru_cache(maxsize=4)
def _generators(device: str) -> tuple[Tensor, ...]:
    """J about z, y and x for each degree, `3 m m`: the derivatives of D_l where nothing is turned."""
    h = 0.05  # radians; the error of the five-point formula is that of float32
    turns = [h * k * np.eye(3)[axis] for axis in range(3) for k in (1, -1, 2, -2)]
    table = rotation_table(Rotation.from_rotvec(turns).as_matrix(), DEGREES).astype(np.float64).reshape(3, 4, -1)
    slopes = (8 * (table[:, 0] - table[:, 1]) - (table[:, 2] - table[:, 3])) / (12 * h)
    parts, first = [], 0
    for l in range(DEGREES):
        m = 2 * l + 1
        j_AMM = slopes[:, first : first + m * m].reshape(3, m, m)
        parts.append(torch.from_numpy((j_AMM - j_AMM.transpose(0, 2, 1)) / 2).to(device, torch.float32))
        first += m * m
    return tuple(parts)


@functools.lru_cache(maxsize=4)
def _shift_derivatives(device: str) -> tuple[Tensor, Tensor]:
    """What shifts by a small vector do to coefficients: first and second derivatives, `3 d d` and `6 d d`.

    A derivative along an axis makes odd what is even under that mirror, and even what is odd; so few of the products of
    basis functions with derivatives are not 0, and an octant tells them (`MirrorClass`).
    """
    inside, _ = octant()
    half, dim = WINDOW // 2, DEGREES**2 * SHELLS
    classes = {each.parity: each for each in mirror_classes()}
    first, second = torch.zeros(3, dim, dim), torch.zeros(len(_PAIRS), dim, dim)
    for parity, dual in dual_functions().items():
        field_DZYX = torch.zeros(len(dual), half**3)
        field_DZYX[:, inside] = torch.from_numpy(dual)
        field_DZYX = field_DZYX.reshape(-1, half, half, half)
        for out, several in ((first, ((0,), (1,), (2,))), (second, _PAIRS)):
            for matrix_DD, axes in zip(out, several, strict=True):
                field, after = _differentiated(field_DZYX, parity, axes)
                to = classes[after]
                # the same in all eight octants
                products = 8 * torch.from_numpy(to.functions).float().T @ field.flatten(1)[:, inside].T
                matrix_DD[np.ix_(to.places, classes[parity].places)] = products
    return first.to(device), second.to(device)


def _differentiated(x_DZYX: Tensor, parity: Parity, axes: tuple[int, ...]) -> tuple[Tensor, Parity]:
    """Derivatives along axes by a shift of functions of one parity, given in an octant, and the parity they have."""
    after = list(parity)
    order = 2 if axes[0] == axes[-1] and len(axes) == 2 else 1
    for axis in dict.fromkeys(axes):
        matrix = torch.from_numpy(_derivative(order)[parity[axis]])
        x_DZYX = torch.tensordot(x_DZYX, matrix, ([axis + 1], [1])).movedim(-1, axis + 1)
        after[axis] = (parity[axis] + order) % 2
    return x_DZYX, (after[0], after[1], after[2])


@functools.cache
def _derivative(order: int) -> np.ndarray:
    """Derivatives along one axis, by a shift, of what is even (0) and odd (1) there, from the middle out, `2 z z'`."""
    waves = np.fft.fftfreq(WINDOW)
    factor = (-2j * np.pi * waves) ** order
    if order == 1:
        factor[np.abs(waves) == 0.5] = 0  # the sign of the last frequency is not known
    matrix = np.fft.ifft(factor[:, None] * np.fft.fft(np.eye(WINDOW), axis=0), axis=0).real
    half = WINDOW // 2
    outwards, mirrored = matrix[half:, half:], matrix[half:, half - 1 :: -1]
    return np.stack([outwards + mirrored, outwards - mirrored]).astype(np.float32)

"""Self-attention weighting: from vectors of all chains and residues of a structure to those that inform most.

After CryoSAMU (Zhang & Duc 2025), whose steps are: mean vector of each chain; similarities of
the chains; softmax; weight of each chain; weighted sum over the chains; the same among the
residues of the sum; the residues of the largest weights. Nothing here is learned.

As printed, the weight of chain i is w_i = (1/C) sum_j W_ij, where the rows of W sum to 1: it is
1/C for every chain, whatever the structure. By default the columns are averaged instead, the
attention that a chain *receives*; `literal` gives the printed form.

Letters of shapes: C chains, R residues of the longest chain, D length of a vector, L residues kept.
"""

from typing import Literal

import torch
from torch import Tensor

from cryoscan.errors import GeometryError
from cryoscan.models.cryosamu import Informants

Form = Literal["column", "literal"]
Selection = Literal["topk", "multinomial"]


def attention_weights(
    vectors_ND: Tensor, mask_N: Tensor | None = None, *, form: Form = "column", scaled: bool = True
) -> Tensor:
    """Importance of each vector among its fellows, `n`; the weights sum to 1 and are 0 where masked.

    Parameters
    ----------
    vectors_ND : float tensor
    mask_N : bool tensor, optional
        Real vectors.
    form : str
        ``column``: mean over i of W_ij, the attention j receives. ``literal``: mean over j of
        W_ij, as printed, which is the same for all.
    scaled : bool
        Divide similarities by the root of the vectors' length (Vaswani et al. 2017), without
        which the softmax of long vectors is all or nothing; the poster does not.

    Raises
    ------
    GeometryError
        If no vector is real.
    """
    mask_N = torch.ones(len(vectors_ND), dtype=torch.bool, device=vectors_ND.device) if mask_N is None else mask_N
    if not bool(mask_N.any()):
        raise GeometryError(
            "expected at least one chain or residue to weigh", got="none", hint="Give a structure with protein chains."
        )
    similar_NN = vectors_ND @ vectors_ND.T
    if scaled:
        similar_NN = similar_NN / vectors_ND.shape[1] ** 0.5
    attention_NN = torch.softmax(similar_NN.masked_fill(~mask_N[None, :], -torch.inf), dim=1)
    attention_NN = attention_NN * mask_N[:, None]
    return attention_NN.sum(dim=0 if form == "column" else 1) / mask_N.sum()


def informants_of(
    vectors_CRD: Tensor,
    mask_CR: Tensor,
    *,
    residues: int,
    form: Form = "column",
    scaled: bool = True,
    selection: Selection = "topk",
    rng: torch.Generator | None = None,
) -> Informants:
    """The `residues` most informative residues of a structure, in the order of the chain, as a batch of one.

    Parameters
    ----------
    vectors_CRD : float tensor
        Vectors of all chains, padded to the longest.
    mask_CR : bool tensor
        Real residues; every chain has at least one.
    residues : int
        L; fewer are padded.
    form, scaled
        As of `attention_weights`.
    selection : str
        ``topk`` takes the residues of the largest weights, ``multinomial`` draws them without
        replacement in proportion to the weights.
    rng : torch.Generator, optional
        For ``multinomial``.

    Raises
    ------
    GeometryError
        If a chain has no residue.
    """
    if vectors_CRD.shape[:2] != mask_CR.shape or not bool(mask_CR.any(dim=1).all()) or len(mask_CR) == 0:
        raise GeometryError(
            "expected chains of at least one residue and a mask of the same shape",
            got=f"vectors {tuple(vectors_CRD.shape)}, mask {tuple(mask_CR.shape)}",
            hint="Leave out empty chains.",
        )
    real_CR1 = mask_CR[..., None].to(vectors_CRD.dtype)
    chains_CD = (vectors_CRD * real_CR1).sum(dim=1) / real_CR1.sum(dim=1)
    weights_C11 = attention_weights(chains_CD, form=form, scaled=scaled)[:, None, None] * real_CR1
    # where short chains have ended, the weights of those that go on sum to 1
    pooled_RD = (vectors_CRD * weights_C11).sum(dim=0) / weights_C11.sum(dim=0).clamp_min(1e-12)
    mask_R = mask_CR.any(dim=0)
    alpha_R = attention_weights(pooled_RD, mask_R, form=form, scaled=scaled)
    count = min(residues, int(mask_R.sum()))
    if selection == "topk":
        chosen = torch.topk(alpha_R.detach(), count).indices
    else:
        chosen = torch.multinomial(alpha_R.detach().double(), count, replacement=False, generator=rng)
    chosen = chosen.sort().values
    vectors_LD = torch.nn.functional.pad(pooled_RD[chosen], (0, 0, 0, residues - count))
    relative_L = torch.nn.functional.pad(alpha_R[chosen] / alpha_R[chosen].mean(), (0, residues - count))
    mask_L = torch.arange(residues, device=mask_CR.device) < count
    return Informants(vectors_LD[None], relative_L[None], mask_L[None])


def batch_of(parts: list[Informants]) -> Informants:
    """Several structures as one batch."""
    return Informants(
        torch.cat([part.vectors_BLD for part in parts]),
        torch.cat([part.weights_BL for part in parts]),
        torch.cat([part.mask_BL for part in parts]),
    )

"""What the AtomTower is trained for: to recover disturbed structures, and to put like folds together."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from cryoscan.models.atom_tower import DISTOGRAM_BINS, LDDT_BINS, AtomTower
from cryoscan.models.invariant_points import Frames, turned_by
from cryoscan.models.residues import BACKBONE, UNKNOWN, Residues
from cryoscan.units import Angstrom, Degree

LEVEL_WEIGHTS = (0.0, 0.1, 0.3, 1.0)
"""Weight of a pair whose deepest common level is class, architecture (fold), topology (superfamily), type."""

PROTOTYPE_WEIGHTS = (0.1, 0.2, 0.5, 1.0)
"""Weight of telling classes, architectures (folds), topologies (superfamilies) and types apart."""

_SHORT = 0.1  # first length of prototypes: of a short vector the same step turns the direction further

Numbers = dict[str, float]


@dataclass(frozen=True, slots=True)
class Corruption:
    """How structures are disturbed before the tower sees them.

    Parameters
    ----------
    shift : Angstrom
        Standard deviation of each residue's displacement along each axis.
    turn : Degree
        Standard deviation of the rotation of each frame about each axis.
    angle : Degree
        Standard deviation of the error of each torsion angle.
    hidden : float
        Share of residues of which only the place along the chain is told.
    span : int
        Residues hidden in a row, on average.
    without_torsions : float
        Share of structures whose torsion angles are not told (C-alpha traces have none).
    without_sequence : float
        Share of structures whose amino acids are not told.
    crop : int
        Longer chains are cut to this many successive residues; 0 = never.
    """

    shift: Angstrom = 0.5
    turn: Degree = 8.0
    angle: Degree = 15.0
    hidden: float = 0.2
    span: int = 8
    without_torsions: float = 0.3
    without_sequence: float = 0.5
    crop: int = 0


def disturb(residues: Residues, corruption: Corruption, *, rng: torch.Generator) -> tuple[Residues, Tensor]:
    """Noisy copy of a batch, and which of its residues are to be hidden (`b l` bool)."""
    b, length = residues.mask.shape
    device = residues.mask.device

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng, device=device)

    def chance(*shape: int) -> Tensor:
        return torch.rand(shape, generator=rng, device=device)

    turns = turned_by(corruption.turn * normal(b, length, 3))
    origins = residues.frames.origins + corruption.shift * normal(b, length, 3)
    told = chance(b, 1, 1) >= corruption.without_torsions
    named = chance(b, 1) >= corruption.without_sequence
    errors = torch.deg2rad(corruption.angle * normal(b, length, 7))
    sine, cosine = residues.torsions.unbind(-1)
    turned = torch.stack(
        [sine * errors.cos() + cosine * errors.sin(), cosine * errors.cos() - sine * errors.sin()], dim=-1
    )
    noisy = replace(
        residues,
        frames=Frames(residues.frames.rotations @ turns, origins),
        torsions=turned,
        has_torsion=residues.has_torsion & told,
        amino_acids=torch.where(named, residues.amino_acids, UNKNOWN),
    )
    # spans start so often that the wanted share is covered, overlaps counted: 1 - (1 - p)^span
    start = 1 - (1 - min(corruption.hidden, 0.99)) ** (1 / corruption.span)
    starts = (chance(b, 1, length) < start).float()
    reached = functional.max_pool1d(functional.pad(starts, (corruption.span - 1, 0)), corruption.span, stride=1)
    return noisy, (reached[:, 0] > 0) & residues.mask


def cropped(residues: Residues, longest: int, *, rng: torch.Generator) -> Residues:
    """`longest` successive residues of one structure (`l`), from a random place on; shorter ones stay."""
    extra = len(residues) - longest
    if longest <= 0 or extra <= 0:
        return residues
    start = int(torch.randint(extra + 1, (1,), generator=rng, device=rng.device))
    return residues.part(slice(start, start + longest))


# ---------------------------------------------------------------- recovery


def recover_structure(
    model: AtomTower, batch: Residues, *, corruption: Corruption, rng: torch.Generator
) -> tuple[Tensor, Numbers]:
    """Self-supervision: predict the structure from a noisy copy with hidden spans.

    L = 0.5 FAPE + torsions + 0.3 distogram + 0.01 pLDDT, the weights of Jumper et al. (2021,
    supplement 1.9) without the side chains' half of FAPE. FAPE is a mean over the passes of the
    Structure Module, nine tenths of it clamped. The graph encoder has no such module: torsions
    and distogram alone train it.

    Returns
    -------
    loss : scalar tensor
    numbers : dict
        Each part, unweighted.
    """
    noisy, hidden = disturb(batch, corruption, rng=rng)
    found = model.recover(noisy, hidden=hidden)
    parts = {
        "torsion": torsion_loss(found.torsions, batch),
        "distogram": distogram_loss(found.distogram, found.encoding.partners, found.encoding.has_partner, batch),
    }
    loss = parts["torsion"] + 0.3 * parts["distogram"]
    if found.frames and found.lddt is not None:
        errors = [_frame_errors(frames, batch.frames, batch.mask) for frames in found.frames]
        parts["fape"] = torch.stack(errors).mean()
        parts["lddt"] = lddt_loss(found.lddt, found.frames[-1].origins, batch)
        loss = loss + 0.5 * parts["fape"] + 0.01 * parts["lddt"]
    return loss, {name: float(part.detach()) for name, part in parts.items()}


def frame_error(found: Frames, true: Frames, mask: Tensor, *, clamp: Angstrom = 10.0) -> Tensor:
    """Frame-aligned point error of C-alphas in units of 10 Å (Jumper et al. 2021, supplement, algorithm 28).

    Parameters
    ----------
    found, true : Frames, `b l`
    mask : bool tensor, `b l`
    clamp : Angstrom
        Larger errors count as this.
    """
    b, length = mask.shape
    seen, meant = (frames.to_local(frames.origins[:, None].expand(b, length, length, 3)) for frames in (found, true))
    error = ((seen - meant) ** 2).sum(-1).add(1e-4).sqrt().clamp(max=clamp)
    return _mean(error, mask[:, :, None] & mask[:, None]) / 10


def _frame_errors(found: Frames, true: Frames, mask: Tensor) -> Tensor:
    # clamped errors alone leave residues that start far away without a gradient (ibid., 1.11.5)
    return 0.9 * frame_error(found, true, mask) + 0.1 * frame_error(found, true, mask, clamp=torch.inf)


def torsion_loss(found: Tensor, true: Residues) -> Tensor:
    """Squared chord between angles, plus 0.02 times how far raw vectors are from unit length (ibid., algorithm 27).

    Parameters
    ----------
    found : float tensor, `b l 7 2`
        Raw sine and cosine.
    true : Residues, `b l`
    """
    length = (found**2).sum(-1).add(1e-8).sqrt()
    unit = found / length[..., None]
    straight = ((unit - true.torsions) ** 2).sum(-1)
    opposite = ((unit + true.torsions) ** 2).sum(-1)
    error = torch.where(true.two_fold, torch.minimum(straight, opposite), straight)
    known = true.has_torsion & true.mask[..., None]
    return _mean(error, known) + 0.02 * _mean((length - 1).abs(), true.mask[..., None].expand_as(length))


def distogram_loss(logits: Tensor, partners: Tensor, has_partner: Tensor, true: Residues) -> Tensor:
    """Cross entropy over 64 bins of C-beta distances, 2.3125 … 21.6875 Å (ibid., 1.9.8).

    Parameters
    ----------
    logits : float tensor, `b l m 64`
    partners : integer tensor, `b l m`
        Residue to which each distance is measured.
    has_partner : bool tensor, `b l m`
    true : Residues, `b l`
    """
    betas = true.frames.to_global(torch.tensor(BACKBONE[3:], device=logits.device)).squeeze(-2)
    rows = torch.arange(len(betas), device=betas.device)[:, None, None]
    distance = (betas[rows, partners] - betas[:, :, None]).norm(dim=-1)
    edges = torch.linspace(2.3125, 21.6875, DISTOGRAM_BINS - 1, device=logits.device)
    bins = torch.bucketize(distance, edges)
    return _mean(
        functional.cross_entropy(logits.flatten(0, 2), bins.flatten(), reduction="none"), has_partner.flatten()
    )


def lddt_loss(logits: Tensor, found: Tensor, true: Residues) -> Tensor:
    """Cross entropy of the predicted lDDT with the true lDDT of the predicted C-alphas (ibid., algorithm 29).

    Parameters
    ----------
    logits : float tensor, `b l 50`
    found : float tensor, `b l 3`
        Predicted C-alphas in Å; no gradient flows to them.
    true : Residues, `b l`
    """
    score = lddt(found.detach(), true.frames.origins, true.mask)
    bins = (score * LDDT_BINS).long().clamp(max=LDDT_BINS - 1)
    return _mean(functional.cross_entropy(logits.flatten(0, 1), bins.flatten(), reduction="none"), true.mask.flatten())


def lddt(found: Tensor, true: Tensor, mask: Tensor, *, cutoff: Angstrom = 15.0) -> Tensor:
    """Share of C-alpha distances kept within 0.5, 1, 2 and 4 Å, per residue, 0 … 1 (Mariani et al. 2013).

    Parameters
    ----------
    found, true : float tensors, `b l 3` Å
    mask : bool tensor, `b l`
    cutoff : Angstrom
        Only true distances below it count.
    """
    meant = (true[:, :, None] - true[:, None]).norm(dim=-1)
    error = ((found[:, :, None] - found[:, None]).norm(dim=-1) - meant).abs()
    itself = torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
    counts = (meant < cutoff) & mask[:, :, None] & mask[:, None] & ~itself
    kept = torch.stack([error < limit for limit in (0.5, 1.0, 2.0, 4.0)]).float().mean(0)
    return (kept * counts).sum(-1) / counts.sum(-1).clamp_min(1)


# ---------------------------------------------------------------- contrast


class Memory:
    """The last vectors and their codes, as further partners to compare with (Wang et al. 2020, CVPR).

    Parameters
    ----------
    size : int
        Vectors kept.
    """

    def __init__(self, size: int = 2048) -> None:
        self.size = size
        self._vectors: Tensor | None = None
        self._codes: Tensor | None = None

    def __len__(self) -> int:
        return 0 if self._vectors is None else len(self._vectors)

    def add(self, vectors: Tensor, codes: Tensor) -> None:
        """Remember vectors, `b d`, and their codes, `b levels`; the oldest are forgotten."""
        vectors = functional.normalize(vectors.detach(), dim=1)
        if self._vectors is not None and self._codes is not None:
            vectors, codes = torch.cat([vectors, self._vectors]), torch.cat([codes, self._codes])
        self._vectors, self._codes = vectors[: self.size], codes[: self.size]

    def partners(self, vectors: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """The vectors and codes given, followed by those remembered."""
        if self._vectors is None or self._codes is None:
            return vectors, codes
        return torch.cat([vectors, self._vectors]), torch.cat([codes, self._codes])


def contrast_types(
    model: AtomTower,
    batches: Sequence[Residues],
    codes: Tensor,
    *,
    corruption: Corruption,
    rng: torch.Generator,
    memory: Memory | None = None,
    temperature: float = 0.1,
) -> tuple[Tensor, Numbers]:
    """Supervised contrast of structures seen through noise; see `hierarchical_contrast`.

    Parameters
    ----------
    model : AtomTower
    batches : sequence of Residues, `b l`
        Together they are contrasted, one after the other they pass the network: a dozen
        structures of like length at a time stay in the processor's cache and need no padding.
    codes : integer tensor, `b 5`
        As of `hierarchical_contrast`, for all batches.
    corruption : Corruption
    rng : torch.Generator
    memory : Memory, optional
        Is compared with, and then remembers these structures.
    temperature : float
    """
    raw = seen_through_noise(model, batches, corruption=corruption, rng=rng)
    vectors = functional.normalize(raw, dim=1)
    others, other_codes = (vectors, codes) if memory is None else memory.partners(vectors, codes)
    loss = hierarchical_contrast(vectors, codes, others, other_codes, temperature=temperature)
    if memory is not None:
        memory.add(vectors, codes)
    with torch.no_grad():
        spread = float(vectors.std(0).mean() * vectors.shape[1] ** 0.5)  # 1: isotropic; towards 0: collapse
    return loss, {"contrast": float(loss.detach()), "spread": spread}


def seen_through_noise(
    model: AtomTower, batches: Sequence[Residues], *, corruption: Corruption, rng: torch.Generator
) -> Tensor:
    """Raw vectors of disturbed copies of structures, `b d`; parameters as of `contrast_types`."""
    raw = []
    for batch in batches:
        noisy, hidden = disturb(batch, corruption, rng=rng)
        raw.append(model(noisy, hidden=hidden))
    return torch.cat(raw)


def hierarchical_contrast(
    vectors: Tensor,
    codes: Tensor,
    others: Tensor,
    other_codes: Tensor,
    *,
    temperature: float = 0.1,
    level_weights: tuple[float, ...] = LEVEL_WEIGHTS,
) -> Tensor:
    """Supervised contrastive loss whose positives count by the deepest level they share.

    For an anchor i, with s the cosines divided by the temperature, P_l the partners whose
    deepest common level with i is l, and w_l the weight of that level,

        L_i = - sum_l w_l mean_{j in P_l} log softmax_j(s_i)_j / sum_l w_l

    over the levels at which i has partners; the softmax is over all compared structures other
    than i itself. With one level this is equation 2 of Khosla et al. (2020, NeurIPS 33); the
    mean within a level keeps a hundred structures of the same architecture from outvoting three
    of the same type. Anchors without positives count nothing.

    Parameters
    ----------
    vectors : float tensor, `b d`
        Anchors, of unit length.
    codes : integer tensor, `b 1+levels`
        Scheme, then the number of the node at each level from the class down. Structures of
        different schemes are not compared.
    others : float tensor, `n d`
        Partners, of unit length; the first `b` are the anchors.
    other_codes : integer tensor, `n 1+levels`
    temperature : float
    level_weights : tuple of float
        Weight of a pair that shares this level and no deeper one.
    """
    depth = (codes[:, None] == other_codes).long().cumprod(dim=-1).sum(-1)  # 1: the scheme, 2: the class …
    itself = torch.eye(len(vectors), len(others), dtype=torch.bool, device=vectors.device)
    compared = (depth > 0) & ~itself
    logits = (vectors @ others.T / temperature).masked_fill(~compared, -1e9)
    missed_BN = -logits.log_softmax(dim=1)
    total, weight = torch.zeros_like(missed_BN[:, 0]), torch.zeros_like(missed_BN[:, 0])
    for level, level_weight in enumerate(level_weights):
        partners = compared & (depth == level + 2)
        count = partners.sum(1)
        total = total + level_weight * (missed_BN * partners).sum(1) / count.clamp_min(1)
        weight = weight + level_weight * (count > 0)
    return _mean(total / weight.clamp_min(1e-9), weight > 0)


class Prototypes(nn.Module):
    """One learned direction per node of each level of one scheme, from the class down.

    Parameters
    ----------
    counts : sequence of int
        Nodes of each level.
    dim : int
        Length of an embedding.
    rng : torch.Generator, optional
        Of the first directions.
    """

    def __init__(self, counts: Sequence[int], dim: int, *, rng: torch.Generator | None = None) -> None:
        super().__init__()
        self.levels = nn.ParameterList(
            nn.Parameter(_SHORT * functional.normalize(torch.randn(count, dim, generator=rng), dim=1))
            for count in counts
        )


def prototype_contrast(
    vectors: Tensor,
    nodes: Tensor,
    prototypes: Prototypes,
    *,
    scale: float = 16.0,
    level_weights: tuple[float, ...] = PROTOTYPE_WEIGHTS,
) -> Tensor:
    """Cross entropy of cosines with the prototypes of each level (Zhai and Wu 2019, BMVC, "normalised softmax").

    A structure is compared with all types at once, not with those that happen to be in its
    batch: this needs several times fewer structures than contrasts within a batch.

    Parameters
    ----------
    vectors : float tensor, `b d`
        Raw embeddings.
    nodes : integer tensor, `b levels`
        Number of the structure's node at each level; negative where the scheme does not know it.
    prototypes : Prototypes
    scale : float
        Inverse temperature.
    level_weights : tuple of float
        From the class down.
    """
    unit = functional.normalize(vectors, dim=1)
    total = vectors.new_zeros(())
    for level, (weight, directions) in enumerate(zip(level_weights, prototypes.levels, strict=True)):
        logits = scale * unit @ functional.normalize(directions, dim=1).T
        missed = functional.cross_entropy(logits, nodes[:, level].clamp_min(0), reduction="none")
        total = total + weight * _mean(missed, nodes[:, level] >= 0)
    return total


def pairwise_contrast(vectors: Tensor, types: Tensor, *, margin: float = 1.0) -> Tensor:
    """Contrastive loss of pairs on mean squared distances (Hadsell et al. 2006, CVPR, with d itself for d²).

    L = mean over pairs of the same type of d + mean over other pairs of max(0, margin - d),
    where d is the mean over components of the squared difference.

    Parameters
    ----------
    vectors : float tensor, `b d`
        Raw embeddings.
    types : integer tensor, `b`
    margin : float
    """
    distance = _mean_squared(vectors)
    same = types[:, None] == types
    itself = torch.eye(len(types), dtype=torch.bool, device=types.device)
    return _mean(distance, same & ~itself) + _mean((margin - distance).clamp_min(0), ~same)


def triplet_contrast(vectors: Tensor, types: Tensor, *, margin: float = 1.0) -> Tensor:
    """Mean over triplets of max(0, d(anchor, positive) - d(anchor, negative) + margin); d as in `pairwise_contrast`.

    Triplets that keep the margin are left out of the mean, or nothing would be left of it once
    most do (Hermans et al. 2017, arXiv 1703.07737, "batch all").
    """
    distance = _mean_squared(vectors)
    same = types[:, None] == types
    itself = torch.eye(len(types), dtype=torch.bool, device=types.device)
    valid = (same & ~itself)[:, :, None] & ~same[:, None]
    excess = (distance[:, :, None] - distance[:, None] + margin).clamp_min(0)
    return _mean(excess, valid & (excess > 0))


def _mean_squared(vectors: Tensor) -> Tensor:
    return ((vectors[:, None] - vectors[None]) ** 2).mean(-1)


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean where the mask is true; 0 if it is nowhere."""
    return (values * mask).sum() / mask.sum().clamp_min(1)

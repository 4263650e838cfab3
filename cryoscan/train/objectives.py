"""What the DensityTower is trained for: to see the domain in a spoilt view, and to know which domain it is.

Each objective is a plain function of a pupil, views and a generator that gives the loss and
numbers to log. After CryoDomain (Dai et al. 2025, AAAI): reconstruction, contrast, alignment.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from cryoscan.models.density_tower import DensityTower
from cryoscan.models.shape_tower import ShapeTower
from cryoscan.train.atom_objectives import hierarchical_contrast
from cryoscan.train.kinship import ITSELF, LEVELS, TYPE, Kinship
from cryoscan.train.views import Views
from cryoscan.units import Voxels

Numbers = dict[str, float]

SHARES = (0.0, 0.0, 0.0, 0.15, 0.35, 0.5)
"""Share of an alignment's target that goes to domains whose deepest common node is none, class, architecture
(fold), topology (superfamily), type, and to the domain itself."""


class Pupil(nn.Module):
    """A tower and the vectors that it is to give for the domains of a library.

    Parameters
    ----------
    tower : DensityTower or ShapeTower
    targets_DK : float tensor, `domains dim`, optional
        For alignment.
    frozen : bool
        Whether the targets are known, e.g. from the atoms, and the tower is to come to them;
        otherwise both move, and the targets are the prototypes of a classifier.
    """

    def __init__(
        self, tower: DensityTower | ShapeTower, targets_DK: Tensor | None = None, *, frozen: bool = True
    ) -> None:
        super().__init__()
        self.tower = tower
        self.frozen = frozen
        if targets_DK is None or frozen:
            self.register_buffer("targets_DK", targets_DK)
        else:
            self.targets_DK = nn.Parameter(targets_DK.clone())


Objective = Callable[[Pupil, Views, torch.Generator], tuple[Tensor, Numbers]]


def reconstruct(
    pupil: Pupil, views: Views, rng: torch.Generator, *, hidden: float = 0.3, block: Voxels = 4
) -> tuple[Tensor, Numbers]:
    """Self-supervision: recover the clean, whole domain from a spoilt view of which blocks are hidden.

    Parameters
    ----------
    pupil : Pupil
    views : Views
    rng : torch.Generator
        On the CPU.
    hidden : float
        Share of the blocks that are set to zero.
    block : Voxels
        Edge of a block.
    """
    seen_BZYX = hide_blocks(views.density_BZYX, hidden=hidden, block=block, rng=rng)
    _, found_BZYX = pupil.tower(seen_BZYX, rng=rng)
    loss = reconstruction_error(found_BZYX, views.clean_BZYX)
    return loss, {"reconstruction": loss.item()}


def contrast(
    pupil: Pupil, views: Views, rng: torch.Generator, *, kinship: Kinship, temperature: float = 0.1
) -> tuple[Tensor, Numbers]:
    """Supervised contrast of views, near kin counting more than distant; see `hierarchical_contrast`.

    Batches must hold several views of a type (`Sampler.draw` with `per_type`).
    """
    z_BK, _ = pupil.tower(views.density_BZYX, reconstruct=False, rng=rng)
    unit_BK, codes = functional.normalize(z_BK, dim=1), kinship.codes(views.anchors_B)
    loss = hierarchical_contrast(unit_BK, codes, unit_BK, codes, temperature=temperature)
    return loss, {"contrast": loss.item()}


def classify(
    pupil: Pupil,
    views: Views,
    rng: torch.Generator,
    *,
    kinship: Kinship,
    temperature: float = 0.0625,
    contrasting: float = 0.1,
) -> tuple[Tensor, Numbers]:
    """Which type and which topology (superfamily) is it, and views of one type together.

    Domains are not told apart from others of their type, so that there is nothing to be learned by heart: what is to be
    found later are domains that were never seen, of types that were. The loss is the cross entropy of the softmax of
    cosines to a vector for each type, half of that for each topology, and `contrast`.

    Parameters
    ----------
    pupil : Pupil
        With a target for each node of the classifications, not frozen.
    views : Views
        Several of a type (`Sampler.draw` with `per_type`).
    rng : torch.Generator
        On the CPU.
    kinship : Kinship
    temperature, contrasting : float
        Of the cosines to nodes and to other views.
    """
    z_BK, _ = pupil.tower(views.density_BZYX, reconstruct=False, rng=rng)
    unit_BK, codes = functional.normalize(z_BK, dim=1), kinship.codes(views.anchors_B)
    together = hierarchical_contrast(unit_BK, codes, unit_BK, codes, temperature=contrasting)
    loss, numbers = together, {"contrast": together.item()}
    targets_NK = functional.normalize(_targets(pupil), dim=1)
    for level, name, weight in ((LEVELS, "type", 1.0), (LEVELS - 1, "topology", 0.5)):
        nodes_N, shares_BN = kinship.members(views.anchors_B, level)
        logits_BN = unit_BK @ targets_NK[nodes_N].T / temperature
        error = -(torch.log_softmax(logits_BN, dim=1) * shares_BN).sum() / shares_BN.sum().clamp_min(1)
        right_B = shares_BN.gather(1, logits_BN.argmax(dim=1, keepdim=True)) > 0
        loss = loss + weight * error
        numbers |= {name: error.item(), f"{name}_first": right_B.float().mean().item()}
    return loss, numbers


def align_paper(
    pupil: Pupil, views: Views, rng: torch.Generator, *, kinship: Kinship, other_of_type: float = 0.5
) -> tuple[Tensor, Numbers]:
    """The published alignment: mean squared error to the frozen vector of the domain or of one of its type.

    Parameters
    ----------
    pupil : Pupil
        With frozen targets.
    views : Views
    rng : torch.Generator
        On the CPU.
    kinship : Kinship
    other_of_type : float
        Share of the views that are aligned to a random domain of the same type.
    """
    targets_DK = _targets(pupil)
    z_BK, _ = pupil.tower(views.density_BZYX, reconstruct=False, rng=rng)
    everyone = torch.arange(len(targets_DK), device=z_BK.device)
    same_BD = (kinship.depths(views.anchors_B, everyone) >= TYPE).to(torch.float32)
    drawn_B = torch.multinomial(same_BD.cpu(), 1, generator=rng)[:, 0].to(z_BK.device)
    swap_B = (torch.rand(len(z_BK), generator=rng) < other_of_type).to(z_BK.device)
    loss = functional.mse_loss(z_BK, targets_DK[torch.where(swap_B, drawn_B, views.anchors_B)])
    return loss, {"distance": loss.item()}


def align(
    pupil: Pupil,
    views: Views,
    rng: torch.Generator,
    *,
    kinship: Kinship,
    temperature: float = 0.07,
    hidden: float = 0.0,
    distance: float = 1.0,
    reconstruction: float = 0.1,
) -> tuple[Tensor, Numbers]:
    """Alignment that also pushes apart: which of all domains is it, by the cosines to their vectors.

    With s the cosines of a view's vector and all domains' vectors divided by the temperature,
    the loss is the cross entropy of softmax(s) and a target that is spread over the domain and
    its kin (`SHARES`), InfoNCE with several positives (van den Oord et al. 2018, eq. 4; Khosla et
    al. 2020, eq. 2). Added are the squared error of the unit vectors, if the targets are
    frozen, and that of the reconstruction.

    Parameters
    ----------
    pupil : Pupil
        With targets.
    views : Views
    rng : torch.Generator
        On the CPU.
    kinship : Kinship
    temperature : float
    hidden : float
        As of `reconstruct`.
    distance, reconstruction : float
        Weights of the parts that are added.
    """
    targets_DK = functional.normalize(_targets(pupil), dim=1)
    seen_BZYX = hide_blocks(views.density_BZYX, hidden=hidden, block=4, rng=rng) if hidden else views.density_BZYX
    z_BK, found_BZYX = pupil.tower(seen_BZYX, reconstruct=reconstruction > 0, rng=rng)
    unit_BK = functional.normalize(z_BK, dim=1)
    logits_BD = unit_BK @ targets_DK.T / temperature
    wanted_BD = shares_of(kinship, views.anchors_B, len(targets_DK))
    loss = functional.cross_entropy(logits_BD, wanted_BD)
    rank_B = (logits_BD >= logits_BD.gather(1, views.anchors_B[:, None])).sum(dim=1)
    numbers = {"classification": loss.item(), "own_first": (rank_B == 1).float().mean().item()}
    if pupil.frozen:
        apart = (unit_BK - targets_DK[views.anchors_B]).square().sum(dim=1).mean()
        loss, numbers["distance"] = loss + distance * apart, apart.item()
    if found_BZYX is not None:
        error = reconstruction_error(found_BZYX, views.clean_BZYX)
        loss, numbers["reconstruction"] = loss + reconstruction * error, error.item()
    return loss, numbers


# ---------------------------------------------------------------- parts


def hide_blocks(density_BZYX: Tensor, *, hidden: float, block: Voxels, rng: torch.Generator) -> Tensor:
    """Set a share of the blocks of each window to zero."""
    b, edge = density_BZYX.shape[:2]
    blocks = -(-edge // block)
    kept = (torch.rand(b, blocks, blocks, blocks, generator=rng) >= hidden).to(density_BZYX)
    for axis in (1, 2, 3):
        kept = kept.repeat_interleave(block, dim=axis)
    return density_BZYX * kept[:, :edge, :edge, :edge]


def reconstruction_error(found_BZYX: Tensor, clean_BZYX: Tensor) -> Tensor:
    """Mean squared error in units of the clean density's mean square, each window scaled at its best.

    That is 1 - cos². What a view shows besides the domain changes its scale, so that the clean
    density's scale cannot be known from it.
    """
    found, clean = found_BZYX.flatten(1), clean_BZYX.flatten(1)
    cosine = functional.cosine_similarity(found, clean, dim=1, eps=1e-6)
    return (1 - cosine * cosine.abs()).mean()  # signed: the negative is no success


def shares_of(kinship: Kinship, anchors_B: Tensor, count: int) -> Tensor:
    """Soft labels: how much of each view belongs to each of the first `count` domains; rows sum to 1, `b d`."""
    depths_BD = kinship.depths(anchors_B, torch.arange(count, device=anchors_B.device))
    result = torch.zeros(depths_BD.shape, device=anchors_B.device)
    for depth, share in enumerate(SHARES):
        members_BD = depths_BD == depth
        result += share * members_BD / members_BD.sum(dim=1, keepdim=True).clamp_min(1)
    assert SHARES[ITSELF] > 0  # every row has something to be divided by
    return result / result.sum(dim=1, keepdim=True)


def _targets(pupil: Pupil) -> Tensor:
    assert isinstance(pupil.targets_DK, Tensor), "alignment needs the domains' vectors"
    return pupil.targets_DK

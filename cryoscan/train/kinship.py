"""How closely the domains of a library are related, and how often each is drawn because of it."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cryoscan.train.library import Anchor, AtomLibrary, Split

if TYPE_CHECKING:  # reading structures needs more than a machine that only trains on densities has
    from cryoscan.train.folds import FoldLibrary

LEVELS = 4
"""Levels of CATH (class, architecture, topology, superfamily) and SCOPe (class, fold, superfamily, family)."""
TYPE, ITSELF = LEVELS, LEVELS + 1
"""Depth of two domains of the same type, and of a domain and itself."""

_SCHEMES = ("CATH", "SCOPe")


class Kinship:
    """Depth of the deepest node that two domains share in any classification.

    Parameters
    ----------
    anchors : sequence of Anchor
    """

    def __init__(self, anchors: Sequence[Anchor]) -> None:
        numbers: dict[str, int] = {}
        codes = torch.full((len(anchors), len(_SCHEMES), LEVELS), -1, dtype=torch.int64)
        for index, anchor in enumerate(anchors):
            for type_ in anchor.types:
                scheme, _, code = type_.partition(":")
                words = code.split(".")
                for level in range(min(LEVELS, len(words))):
                    node = f"{scheme}:{'.'.join(words[: level + 1])}"
                    codes[index, _SCHEMES.index(scheme), level] = numbers.setdefault(node, len(numbers))
        self._codes_DSL = codes
        self.nodes = len(numbers)

    def to(self, device: torch.device | str) -> "Kinship":
        """The same on another device."""
        moved = Kinship(())
        moved._codes_DSL, moved.nodes = self._codes_DSL.to(device), self.nodes
        return moved

    def depths(self, anchors_B: Tensor, others_N: Tensor) -> Tensor:
        """Depth of each pair, int64 `b n`: 0 nothing in common, 1 the class … 4 the type, 5 the same domain."""
        mine, other = self._codes_DSL[anchors_B][:, None], self._codes_DSL[others_N][None]
        shared = ((mine == other) & (mine >= 0)).sum(dim=-1).amax(dim=-1)
        return torch.where(anchors_B[:, None] == others_N[None], ITSELF, shared)

    def members(self, anchors_B: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """The nodes of a level (1 the class … 4 the type) of all classifications, and which of them hold each domain.

        Returns
        -------
        nodes : int64 Tensor, `n`
            Numbers below `nodes`.
        shares : float Tensor, `b n`
            Rows sum to 1, or to 0 for domains that no scheme classifies.
        """
        codes_DS = self._codes_DSL[:, :, level - 1]
        nodes_N = torch.unique(codes_DS[codes_DS >= 0])
        within_BN = (codes_DS[anchors_B][:, :, None] == nodes_N).any(dim=1).to(torch.float32)
        return nodes_N, within_BN / within_BN.sum(dim=1, keepdim=True).clamp_min(1)

    def numbered(self) -> list[Tensor]:
        """For each classification that is there: number of each domain's node within its level, int64 `d 4`, or −1."""
        found = []
        for codes_DL in self._codes_DSL.unbind(dim=1):
            if (codes_DL >= 0).any():
                nodes = [torch.unique(codes_D[codes_D >= 0]) for codes_D in codes_DL.unbind(dim=1)]
                placed = [torch.searchsorted(n, c) for n, c in zip(nodes, codes_DL.T.contiguous(), strict=True)]
                found.append(torch.where(codes_DL >= 0, torch.stack(placed, dim=1), -1))
        return found

    def codes(self, anchors_B: Tensor) -> Tensor:
        """Scheme and nodes in one classification of each domain, int64 `b 5`; CATH before SCOPe.

        Domains that no scheme classifies are a scheme of their own each.
        """
        codes_BSL = self._codes_DSL[anchors_B]
        has_BS = codes_BSL[..., 0] >= 0
        scheme_B = has_BS.to(torch.int64).argmax(dim=1)  # the first that has it
        chosen_BL = codes_BSL[torch.arange(len(anchors_B), device=scheme_B.device), scheme_B]
        scheme_B = torch.where(has_BS.any(dim=1), scheme_B, len(_SCHEMES) + anchors_B)
        return torch.cat([scheme_B[:, None], chosen_BL], dim=1)


class Sampler:
    """Draws anchors of one split so that populous types do not outvote the others.

    A type of n domains is drawn as often as min(n, `cap`) domains that are alone in theirs.

    Parameters
    ----------
    library : AtomLibrary or FoldLibrary
    split : str
    cap : int
        1 draws all types equally often.
    typed : bool
        Whether domains without a type are left out.
    """

    def __init__(
        self, library: "AtomLibrary | FoldLibrary", *, split: Split = "train", cap: int = 4, typed: bool = False
    ) -> None:
        chosen = library.anchors_of(split)
        kept = [not typed or bool(library.anchors[int(index)].types) for index in chosen]
        self._anchors_N = chosen[torch.tensor(kept, dtype=torch.bool, device=chosen.device)]
        types = [library.anchors[int(index)] for index in self._anchors_N]
        names = [anchor.types[0] if anchor.types else anchor.id for anchor in types]
        counts, places = Counter(names), {name: place for place, name in enumerate(sorted(set(names)))}
        weights = [min(counts[name], cap) / counts[name] for name in names]
        self._weights_N = torch.tensor(weights, device=library.device)
        self._types_N = torch.tensor([places[name] for name in names], device=library.device)

    def draw(self, count: int, *, per_type: int = 1, rng: torch.Generator) -> Tensor:
        """Indices of anchors of the library, int64 `count`; `per_type` in a row are of one type, or the same."""
        first = torch.multinomial(self._weights_N, -(-count // per_type), replacement=True, generator=rng)
        if per_type == 1:
            return self._anchors_N[first]
        same = (self._types_N[first][:, None] == self._types_N[None]).to(torch.float32)
        others = torch.multinomial(same, per_type - 1, replacement=True, generator=rng)
        return self._anchors_N[torch.cat([first[:, None], others], dim=1).flatten()[:count]]

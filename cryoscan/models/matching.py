"""How well densities fit into each other when one may turn and move a little: shape against shape.

A power spectrum forgets how the parts of a density lie to each other in angle; what is next to
it, or missing from it, spoils all of the spectrum. Here the harmonics themselves are compared,
at every rotation of a grid and a few small shifts, as in docking (Kovacs & Wriggers 2002).

Two questions are asked. *Alone*: how alike are the two densities as wholes,

    g = max over R, s of <q_s, R t> / (|q| |t|),

which is right where a region was cut out, even if parts of it are missing; what degrees and shells count in it is
learned (`cryoscan.models.comparison`; only the coarse search is plain). *Crowded*: how well
does what lies under the entry's own envelope m correlate with it,

    c = max over R, s of Pearson's correlation of q_s and R t, weighted by R m,

which does not care what lies around, but which a small entry reaches easily: so it counts by
its evidence, the entry's volume times -log(1 - c²), as of independent points with normal noise.
Both are put on one scale by how far they stand out of what all entries of the database reach
with the same query. Which question suits a query is not known; the one to which an answer is
clearer, by its lead over the next, usually does (`DateDB.seen`).

Some entries fit whatever they are asked for: plain, middle-sized, round ones. What strangers usually reach with an
entry (`strangers_reach`) is therefore taken off, in part, from what a query reaches: with s = -log(1 - g²) and u the
mean of the best tenth of strangers' s, similarity is the g whose s is s - 0.5 (u - mean of u). (After cross-domain
similarity local scaling, Conneau et al. 2018, ICLR, and score normalisation in speaker recognition, Auckenthaler et al.
2000.) Who fits whatever was cut out is hardly ever who fits whatever has neighbours, which large ones do: so strangers
ask alone and in company, and the power at the border of a view says by which of the two it is judged.
"""

import functools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cryoscan.models.comparison import Comparison, shipped_comparison
from cryoscan.models.harmonics import DEGREES, SHELLS, harmonics, layered, rotation_table
from cryoscan.models.refinement import channel_products, refine
from cryoscan.rotations import rotation_grid
from cryoscan.units import Degree

_SHIFTS = ((0, 0, 0), (1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1))
"""Voxels; centres are not known better."""
_COARSE: tuple[int, Degree] = (5, 30.0)
_FINE: tuple[int, Degree] = (7, 20.0)
"""Degrees l that are compared, and step of the rotations. l < 9 at 15° is 5 times as slow: it finds
no more remote relatives, but a tenth more of what is incomplete or crowded."""
_KEPT = 1024
"""Entries that are compared finely. Of remote relatives 256 lose some (Top-10 .53 instead of .61)."""
_REFINED = 256
"""Entries whose best rotation and shift are then refined, with all degrees. 64 are too few, 1024 gain little."""
_SAMPLE = 256
_BEST_OF_STRANGERS = 0.1
_TAKEN_OFF = 0.5
"""Of what strangers reach. Remote relatives gain most from .75, but noisy and incomplete views lose by it."""
_BORDER = 2
_FILLED = 0.05
"""Share of a view's power in its outermost shells: less in 99 of 100 entries, and more in 95 of 100 views that
nothing was cut out of."""
_ROWS_AT_ONCE = 8192
_CERTAIN = 0.999


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What a query looks like.

    Parameters
    ----------
    alone : float32 array, `n`
        Similarity to each entry as a whole, up to 1.
    crowded : float32 array, `n`
        Similarity to each entry within the entry's envelope, on the same scale.
    unit : float
        By how much -log(1 - s²) of the entries usually differs at the top.
    """

    alone: np.ndarray
    crowded: np.ndarray
    unit: float

    def lead(self, similarity: np.ndarray, groups: np.ndarray) -> float:
        """How far the best stands before the best of another group, in units.

        Parameters
        ----------
        similarity : float array, `m`
        groups : int array, `m`
        """
        s_M = -np.log1p(-(np.clip(similarity, 0, _CERTAIN) ** 2))
        first = int(s_M.argmax())
        others = s_M[groups != groups[first]]
        return float(s_M[first] - others.max()) / self.unit if len(others) else 0.0


class Matcher:
    """Entries of a database to which densities are compared.

    Parameters
    ----------
    shapes : float array, `n 972·layers`
        Harmonics of the entries' densities, any scale; and, if there is a second layer, of helices less strands.
    envelopes : float array, `n 972`, optional
        Harmonics of the entries' envelopes (0 … 1). Wholes (`similarities`) are compared without.
    usual : float array, `2 n`, optional
        What strangers reach with each entry, alone and in company, see `strangers_reach`; NaN where nobody knows.
    comparison : Comparison, optional
        What counts; by default what comes with cryoscan for shapes of two layers, and everything the same for others.
    second : float
        Strength of the second layer, of entries and queries alike, in that of their vectors.
    device : str
        Where torch computes.
    """

    def __init__(
        self,
        shapes: np.ndarray,
        envelopes: np.ndarray | None = None,
        *,
        usual: np.ndarray | None = None,
        comparison: Comparison | None = None,
        second: float = 1.0,
        device: str = "cpu",
    ) -> None:
        self.device = torch.device(device)
        self._harmonics = harmonics(device)
        self._second = second
        t_NHK = _unit(self._read(shapes))
        density_NHK = t_NHK[:, :, :SHELLS]
        m_NHK = torch.zeros_like(density_NHK) if envelopes is None else _tensor(envelopes, self.device)
        ones = self._harmonics.expand(torch.ones(1, 32, 32, 32, device=self.device))
        volume = (m_NHK * ones).sum((1, 2)).clamp_min(1e-3)
        self._mean = (m_NHK * density_NHK).sum((1, 2)) / volume
        self._spread = (1 - self._mean**2 * volume).clamp_min(1e-3).sqrt()  # of t under m; all of t lies there
        self._volume, self._evidence = volume, volume / volume.mean()
        self._densities, self._envelopes = _by_degree(t_NHK), _by_degree(m_NHK)
        channels = t_NHK.shape[2]
        if comparison is None and channels == SHELLS * shipped_comparison().config.layers:
            comparison = shipped_comparison()
        plain_LKK = torch.eye(channels).expand(DEGREES, -1, -1)
        self._weights = (plain_LKK if comparison is None else comparison.weights_LKK.detach()).to(self.device)
        self._lengths = torch.cat([_length(part, self._weights) for part in torch.split(t_NHK, _ROWS_AT_ONCE)])
        known_2N = volume.new_full((2, len(volume)), torch.nan) if usual is None else torch.from_numpy(usual).to(volume)
        self._taken_off = _TAKEN_OFF * torch.nan_to_num(known_2N - known_2N.nanmean(dim=1, keepdim=True))

    def __len__(self) -> int:
        return len(self._volume)

    def similarities(self, queries: np.ndarray, *, kept: int = _KEPT) -> np.ndarray:
        """How alike each query and each entry are as wholes, `q n`, from −1 to 1.

        Parameters
        ----------
        queries : float array, `q 972·layers`
        kept : int
            Entries that are compared finely; all others come after them.
        """
        return np.stack([view.alone for view in self._each(queries, crowded=False, kept=kept)] or [self._nothing])

    def seen(self, queries: np.ndarray, *, kept: int = _KEPT) -> "list[Seen]":
        """Answers to both questions for each of some queries, `q 972·layers`."""
        return self._each(queries, crowded=True, kept=kept)

    def _read(self, vectors: np.ndarray) -> Tensor:
        c_NHK = _tensor(vectors, self.device)
        strength_K = c_NHK.new_ones(c_NHK.shape[2])
        strength_K[SHELLS:] = self._second
        return c_NHK * strength_K

    @property
    def _nothing(self) -> np.ndarray:
        return np.zeros(len(self), np.float32)

    def _each(self, queries: np.ndarray, *, crowded: bool, kept: int) -> "list[Seen]":
        def one(q_HK: Tensor) -> Seen:
            with torch.inference_mode():
                return self._seen(q_HK, crowded=crowded, kept=kept)

        q_QHK = self._read(queries)
        if self.device.type != "cpu" or len(q_QHK) < 2:
            return [one(q_HK) for q_HK in q_QHK]
        # one thread a query: the products are too small for several
        with ThreadPoolExecutor(os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(one, q_QHK))

    def _seen(self, q_HK: Tensor, *, crowded: bool, kept: int) -> "Seen":
        length = torch.linalg.vector_norm(q_HK)
        if not length > 0:
            return Seen(self._nothing, self._nothing, 1.0)
        q_HK = q_HK / length
        counts = _length(q_HK[None], self._weights)
        every = torch.arange(len(self), device=self.device)
        coarse, local = self._compared(self._about_each(q_HK, ((0, 0, 0),), squares=crowded), every, _COARSE)
        rows = _best(coarse, kept // 2 if crowded else kept)
        if crowded:
            some = every[:: max(1, len(self) // _SAMPLE)].contiguous()
            rows = torch.unique(torch.cat([rows, _best(self._weighed(local, every), kept // 2), some]))
        moved = self._about_each(q_HK, _SHIFTS, squares=crowded)
        fine, fine_local = self._compared(moved, rows, _FINE, counts=counts)
        behind = torch.minimum(coarse - coarse[rows].min(), torch.zeros_like(coarse)) + fine.min()
        rough = behind.index_copy(0, rows, fine)
        alone = self._unusual(self._refined(moved[0], rough, min(_REFINED, kept), counts), _uncut(q_HK)).cpu().numpy()
        if not crowded:
            return Seen(alone, alone, 1.0)
        place = torch.searchsorted(rows, some)
        scaled, unit = _on_the_scale_of(
            surprise(fine), self._weighed(fine_local, rows), sample=place, entries=len(self)
        )
        rest = torch.full_like(coarse, float(scaled.min()))
        return Seen(alone, rest.index_copy(0, rows, scaled).cpu().numpy(), unit)

    def products(self, query: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Products of the channels of a query (rows) with those of some entries where they fit best, `n l k k`.

        Parameters
        ----------
        query : float array, `972·layers`
        rows : int array, `n`
        """
        with torch.inference_mode():
            q_HK = _unit(self._read(query[None]))[0]
            q_SHK, _ = self._about_each(q_HK, _SHIFTS, squares=False)
            fitting = self._fitting(q_SHK, torch.from_numpy(rows).to(self.device))
            found: np.ndarray = channel_products(q_SHK, *fitting, weights_LKK=self._weights).cpu().numpy()
        return found

    def powers(self, rows: np.ndarray) -> np.ndarray:
        """Products of the channels of some entries with themselves, `n l k k`."""
        t_LKMN = [t_KMN[:, :, torch.from_numpy(rows).to(self.device)] for t_KMN in self._densities]
        found: np.ndarray = torch.stack([torch.einsum("amn,bmn->nab", t, t) for t in t_LKMN], dim=1).cpu().numpy()
        return found

    def _refined(self, q_SHK: Tensor, rough: Tensor, count: int, counts: Tensor) -> Tensor:
        """The same correlations, those of the best entries at their best rotations and shifts."""
        rows = _best(rough, count)
        turned, shift_N = self._fitting(q_SHK, rows)
        turned = [t_MKN / (counts * self._lengths[rows]) for t_MKN in turned]
        refined = refine(q_SHK, turned, shift_N, weights_LKK=self._weights)
        return torch.minimum(rough, refined.min()).index_copy(0, rows, refined)

    def _fitting(self, q_SHK: Tensor, rows: Tensor) -> tuple[list[Tensor], Tensor]:
        """Some entries turned as they fit best on the grid, and about which middle they do."""
        degrees, step = _FINE
        table = _table(degrees, step, str(self.device))
        fit_RSN = _correlations(_weighed(q_SHK, self._weights), self._densities, rows, table, degrees)
        best = fit_RSN.flatten(0, 1).argmax(dim=0)
        turn_N, shift_N = best // len(_SHIFTS), best % len(_SHIFTS)
        table, first, turned = _table(DEGREES, step, str(self.device))[turn_N], 0, []
        for l, t_KMN in enumerate(self._densities):
            m = 2 * l + 1
            d_NMM = table[:, first : first + m * m].reshape(-1, m, m)
            turned.append(torch.einsum("nab,kbn->akn", d_NMM, t_KMN[:, :, rows]).contiguous())
            first += m * m
        return turned, shift_N

    def _unusual(self, g_N: Tensor, uncut: Tensor) -> Tensor:
        """Correlations less what strangers reach, as correlations."""
        s_N = surprise(g_N) - torch.lerp(self._taken_off[0], self._taken_off[1], uncut)
        return s_N.sign() * torch.sqrt(-torch.expm1(-s_N.abs()))

    def _about_each(
        self, q_HK: Tensor, shifts: Sequence[tuple[int, int, int]], *, squares: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Harmonics about other middles, `s lm k`, and those of the squares if asked for."""
        layers_LHK = torch.stack(torch.split(q_HK, SHELLS, dim=1))
        x_LZYX = self._harmonics.synthesise(layers_LHK)
        moved_SLZYX = torch.stack([torch.roll(x_LZYX, shift, (1, 2, 3)) for shift in shifts])
        c_SLHK = self._harmonics.expand(moved_SLZYX.flatten(0, 1)).reshape(len(shifts), -1, DEGREES**2, SHELLS)
        moved_SHK = torch.cat(c_SLHK.unbind(1), dim=2)
        if not squares:
            return moved_SHK, None
        moved_SLZYX[:, 0].clamp_min_(0)
        return moved_SHK, self._harmonics.expand(moved_SLZYX.square().sum(dim=1))

    def _weighed(self, local: Tensor, rows: Tensor) -> Tensor:
        return self._evidence[rows] * surprise(local)

    def _compared(
        self,
        moved: tuple[Tensor, Tensor | None],
        rows: Tensor,
        level: tuple[int, Degree],
        *,
        counts: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Best g and c of a query, about several middles, with some entries, `n` each; c only if there are squares.

        With the query's length by what counts, g is by what counts too.
        """
        degrees, step = level
        table = _table(degrees, step, str(self.device))
        q_SHK, square_SHK = moved
        alone, local = [], []
        for part in torch.split(rows, max(1, _ROWS_AT_ONCE // len(q_SHK))):
            asked_SHK = q_SHK if counts is None else _weighed(q_SHK, self._weights)
            fit_RSN = _correlations(asked_SHK, self._densities, part, table, degrees)
            best = fit_RSN.amax((0, 1))
            alone.append(best if counts is None else best / (counts * self._lengths[part]))
            if square_SHK is not None:
                if counts is not None:
                    fit_RSN = _correlations(q_SHK, self._densities, part, table, degrees)
                sum_RSN = _correlations(q_SHK[:, :, :SHELLS], self._envelopes, part, table, degrees)
                square_RSN = _correlations(square_SHK, self._envelopes, part, table, degrees)
                square_RSN.clamp_min_(1e-2)
                variance = (square_RSN - sum_RSN**2 / self._volume[part]).clamp_min(0.05 * square_RSN)
                best = ((fit_RSN - self._mean[part] * sum_RSN) / variance.sqrt_()).amax((0, 1))
                local.append(best / self._spread[part])
        return torch.cat(alone), torch.cat(local) if local else torch.cat(alone)


def strangers_reach(similarity: np.ndarray, related: np.ndarray) -> np.ndarray:
    """What strangers reach with each entry: the mean of the best tenth of their -log(1 - g²), float32 `n`.

    Parameters
    ----------
    similarity : float array, `q n`
        Of some queries, by a `Matcher` that knows nothing of strangers.
    related : bool array, `q n`
        Which queries are no strangers to an entry, and do not count for it.

    Returns
    -------
    float32 array, `n`
        NaN where there are no strangers.
    """
    s_QN = np.where(related, np.nan, -np.log1p(-(np.clip(similarity, 0, _CERTAIN) ** 2)))
    best_QN = -np.sort(-s_QN, axis=0)  # NaN last
    count_N = np.ceil(_BEST_OF_STRANGERS * (~related).sum(axis=0))
    counted_QN = np.arange(len(s_QN))[:, None] < count_N
    total_N = np.where(counted_QN, np.nan_to_num(best_QN), 0).sum(axis=0)
    return np.where(count_N > 0, total_N / np.maximum(count_N, 1), np.nan).astype(np.float32)


# ---------------------------------------------------------------- private


def _by_degree(t_NHK: Tensor) -> list[Tensor]:
    """Coefficients of entries sorted so that products with them need no copies: for each l, `k m n`."""
    return [t_NHK[:, l * l : (l + 1) ** 2].permute(2, 1, 0).contiguous() for l in range(DEGREES)]


def _weighed(q_SHK: Tensor, weights_LKK: Tensor) -> Tensor:
    """Harmonics times the matrices of their degrees."""
    return torch.cat([q_SHK[:, l * l : (l + 1) ** 2] @ weights_LKK[l] for l in range(DEGREES)], dim=1)


def _length(c_NHK: Tensor, weights_LKK: Tensor) -> Tensor:
    """Roots of <W c, c>, `n`."""
    return (c_NHK * _weighed(c_NHK, weights_LKK)).sum((1, 2)).clamp_min(1e-12).sqrt()


def _correlations(q_SHK: Tensor, entries: Sequence[Tensor], rows: Tensor, table: Tensor, degrees: int) -> Tensor:
    """<q, R t> of all queries and some entries at all rotations, `r s n`."""
    s, n = len(q_SHK), len(rows)
    whole = n == entries[0].shape[-1]
    products = q_SHK.new_empty(table.shape[1], s, n)
    first = 0
    for l in range(degrees):
        t_KMN = entries[l] if whole else entries[l].index_select(2, rows)
        m = 2 * l + 1
        q_SMK = q_SHK[:, l * l : (l + 1) ** 2]
        out = products[first : first + m * m].reshape(m, m, s, n)  # a view
        for shift in range(s):
            out[:, :, shift] = (q_SMK[shift] @ t_KMN.flatten(1)).reshape(m, m, n)
        first += m * m
    return (table @ products.reshape(first, -1)).reshape(-1, s, n)


@functools.lru_cache(maxsize=8)
def _table(degrees: int, step: Degree, device: str) -> Tensor:
    if degrees < DEGREES:  # those of all degrees hold them
        return _table(DEGREES, step, device)[:, : sum((2 * l + 1) ** 2 for l in range(degrees))].contiguous()
    return torch.from_numpy(rotation_table(rotation_grid(step), degrees)).to(device)


def _uncut(q_HK: Tensor) -> Tensor:
    """How much a view looks as if nothing was cut out of it, 0 … 1."""
    power_K = q_HK[:, :SHELLS].square().sum(dim=0)
    return (power_K[-_BORDER:].sum() / power_K.sum().clamp_min(1e-12) / _FILLED).clamp_max(1)


def surprise(correlation: Tensor) -> Tensor:
    """-log(1 - r²) of correlations, 0 for negative ones."""
    return -torch.log1p(-(correlation.clamp(0, _CERTAIN) ** 2))


def _on_the_scale_of(alone: Tensor, local: Tensor, *, sample: Tensor, entries: int) -> tuple[Tensor, float]:
    """The second score in units of the first, as a correlation; and that unit.

    A unit is from what a tenth of all entries reach to what one in two hundred reaches. The best were kept, so
    their ranks are known; the rest is told by a sample.
    """

    def tail(score: Tensor) -> tuple[Tensor, Tensor]:
        high = torch.topk(score, max(2, round(0.005 * entries))).values[-1]
        return high, (high - torch.quantile(score[sample], 0.9)).clamp_min(1e-6)

    (high, unit), (high_local, unit_local) = tail(alone), tail(local)
    scaled = high + unit * (local - high_local) / unit_local
    return torch.sqrt(1 - torch.exp(-scaled.clamp_min(0))).clamp_max(_CERTAIN), float(unit)


def _best(score: Tensor, count: int) -> Tensor:
    return torch.topk(score, min(count, len(score)), sorted=False).indices.sort().values


def _tensor(vectors: np.ndarray, device: torch.device) -> Tensor:
    c_NHK = layered(torch.from_numpy(np.ascontiguousarray(vectors, np.float32)).to(device))
    return c_NHK.contiguous()


def _unit(c_BHK: Tensor) -> Tensor:
    return c_BHK / torch.linalg.vector_norm(c_BHK, dim=(1, 2), keepdim=True).clamp_min(1e-12)

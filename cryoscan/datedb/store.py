"""The database in memory: entries, embeddings, and how a query becomes a ranked list of types."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cryoscan.datedb.hierarchy import LEVEL_NAMES, levels, node_name
from cryoscan.embedding import Embedder, unit_rows
from cryoscan.errors import (
    ConfigError,
    FormatError,
    GeometryError,
    MismatchError,
)
from cryoscan.hits import Candidate
from cryoscan.provenance import Provenance, fingerprint_arrays, fingerprint_json
from cryoscan.units import SIGMA_PER_RESOLUTION, Angstrom

if TYPE_CHECKING:
    from cryoscan.models.shape import Shapes

Fit = tuple[float, float, float] | tuple[float, float, float, float]
"""Coefficients of `calibrated`: constant, cosine, margin and, where it counts, length."""
COARSER = (15.0, 20.0)
"""Levels, Å, beyond the banks at which shapes are compared: with those of the coarsest bank, the second layer of both
weaker by the square of (bank / level), as helices and strands are seen ever worse (decision 22)."""
_QUERIES_AT_ONCE = 512
_EXACT_UP_TO = 100_000  # entries; beyond, the index is faster than a product with all of them
_NEAREST = 512
_KEPT = 128  # entries that are compared finely where many places are to be named
_CROWDED = 1 / 3
_MATCHING = 256 * 2**20  # bytes that comparing shapes takes at its peak
_MOST_SIMILAR = 2000  # rows that are grouped by type for one query; far more than any list that is shown


@dataclass(frozen=True, slots=True)
class Entry:
    """One domain of the database.

    Parameters
    ----------
    id, scheme, type : str
        E.g. ``1p3qQ00``, ``CATH``, ``1.10.8.10``.
    row : int
        Its row of the embeddings.
    pdb, chain, ranges : str
        Where it comes from; ranges in CATH notation.
    length : int
        Residues.
    resolution : float
        Of the source structure in Å, 0 if unknown or NMR.
    source : str
    cluster : str
        Sequence cluster at 40 % identity, '' if unknown; used to keep relatives out of tests.
    """

    id: str
    scheme: str
    type: str
    row: int
    pdb: str = ""
    chain: str = ""
    ranges: str = ""
    length: int = 0
    resolution: float = 0.0
    source: str = ""
    cluster: str = ""


@dataclass(frozen=True, eq=False)
class Assignment:
    """Dense answers: the best types of many queries, as integers.

    Parameters
    ----------
    types : int32 array, `q k`
        Indices into `DateDB.types`, best first.
    scores : float32 array, `q k`
        Cosine to the representative of each.
    entries : int32 array, `q`
        Index of the representative of the best type, -1 where it was not asked for.
    """

    types: np.ndarray
    scores: np.ndarray
    entries: np.ndarray


@dataclass(frozen=True, eq=False)
class DateDB:
    """Embeddings of domains and what is known of them; see the package docstring.

    Parameters
    ----------
    entries : tuple of Entry
    banks : mapping
        Resolution in Å → unit vectors, `rows d`, float32.
    embedder : mapping
        Fingerprint, kind, window and voxel size of the embedder that wrote it.
    names : mapping
        ``'CATH:1.10'`` → name.
    provenance : Provenance
    calibration : mapping
        Level → coefficients of `calibrated`, where they have been measured.
    path : Path, optional
        Where it lies on disk.
    shapes : Shapes, optional
        Of all rows, at the resolution of the finest bank, for a closer look (`by_shape`).
    shape_calibration : mapping
        As `calibration`, of answers by shape.
    matched : bool
        Whether vectors are shapes, which are turned into each other, and not compared by their cosine.
    """

    entries: tuple[Entry, ...]
    banks: Mapping[float, np.ndarray]
    embedder: Mapping[str, Any]
    names: Mapping[str, str] = field(default_factory=dict)
    provenance: Provenance = field(default_factory=lambda: Provenance("datedb"))
    calibration: Mapping[float, Fit] = field(default_factory=dict)
    path: Path | None = None
    shapes: "Shapes | None" = None
    shape_calibration: Mapping[float, Fit] = field(default_factory=dict)
    matched: bool = False

    def __post_init__(self) -> None:
        n = self._count
        rows = set() if self.matched else {len(bank) for bank in self.banks.values()} - {n}
        if rows or not self.banks:
            raise FormatError("expected banks of equal length", got=str(sorted({n, *rows})), hint="Rebuild the DateDB.")
        if self.shapes is not None and len(self.shapes) != n:
            raise FormatError(f"expected shapes of {n} rows", got=str(len(self.shapes)), hint="Rebuild the DateDB.")
        for name in ("signed", "usual") if self.shapes is not None else ():
            found = len(getattr(self.shapes, name))
            if found not in (0, len(self.banks)):
                raise FormatError(
                    f"expected '{name}' of shapes for each of {len(self.banks)} banks",
                    got=str(found),
                    hint="Rebuild the DateDB.",
                )
        if self.shapes is not None and self.shapes.usual.shape[1:] != (2, n):
            raise FormatError(
                f"expected what strangers reach with {n} rows, alone and in company",
                got=f"an array of shape {self.shapes.usual.shape}",
                hint="An earlier version wrote it: rebuild the DateDB.",
            )
        bad = [entry.id for entry in self.entries if not 0 <= entry.row < n]
        if bad:
            raise FormatError(
                f"expected every entry to point at one of {n} rows", got=", ".join(bad[:5]), hint="Rebuild the DateDB."
            )

    def __len__(self) -> int:
        return len(self.entries)

    def __repr__(self) -> str:
        banks = ", ".join(f"{resolution:g}" for resolution in self.banks)
        return f"DateDB({len(self)} entries of {len(self.types)} types, banks at {banks} Å)"

    # ------------------------------------------------------------ what is in it

    @cached_property
    def types(self) -> tuple[tuple[str, str], ...]:
        """All (scheme, type), sorted; their indices are what `assign` answers."""
        return tuple(sorted({(entry.scheme, entry.type) for entry in self.entries}))

    @cached_property
    def fingerprint(self) -> str:
        """Identifies the content: entries, embeddings, shapes and embedder."""
        values = attrgetter(*(each.name for each in fields(Entry)))
        shapes = [] if self.shapes is None else [getattr(self.shapes, part.name) for part in fields(self.shapes)]
        return fingerprint_json(
            [
                [values(entry) for entry in self.entries],
                fingerprint_arrays([*self.banks.values(), *shapes]),
                list(self.banks),
                self.embedder["fingerprint"],
            ]
        )

    @cached_property
    def by_shape(self) -> "DateDB | None":
        """The same entries, to be compared by their shapes; None if these were not stored.

        Densities of one bank are stored. The others follow exactly (measured: cosine .9999): blurring changes the
        harmonics of each degree by a fixed matrix. What a network sees at a lower resolution does not follow.
        """
        if self.shapes is None:
            return None
        from cryoscan.datedb.build import secondary_of
        from cryoscan.models.shape import ShapeEmbedder

        embedder = ShapeEmbedder(float(self.embedder["voxel_size_A"]), secondary=secondary_of(self))
        about = {**self.embedder, "kind": "ShapeEmbedder", "fingerprint": embedder.fingerprint, "dim": embedder.dim}
        finest_first = sorted(self.banks)
        banks = _MadeWhenAsked(
            {
                bank: functools.partial(self.shapes.densities, self.bank_blur(bank), bank=finest_first.index(bank))
                for bank in self.banks
            }
        )
        return replace(self, banks=banks, embedder=about, calibration=self.shape_calibration, matched=True)

    def entry(self, id_: str) -> Entry:
        """The entry of an id."""
        for entry in self.entries:
            if entry.id == id_:
                return entry
        raise GeometryError(
            "expected the id of an entry of this DateDB",
            got=id_,
            hint="List them with `cryoscan datedb info --entries`.",
        )

    def name(self, scheme: str, type_: str) -> str:
        """Name of a type, or of the closest named node above it."""
        return node_name(self.names, scheme, type_) or type_

    def require(self, embedder: Embedder) -> None:
        """Refuse an embedder other than the one that wrote the database.

        Raises
        ------
        MismatchError
        """
        if embedder.fingerprint != self.embedder["fingerprint"]:
            raise MismatchError(
                f"expected the embedder that wrote the DateDB ({self.embedder.get('kind')}, "
                f"fingerprint {self.embedder['fingerprint']})",
                got=f"fingerprint {embedder.fingerprint}",
                hint="Use the matching embedder, or rebuild the database with `cryoscan datedb build`.",
            )

    def in_scheme(self, scheme: str) -> "DateDB":
        """The database without the entries of other published schemes.

        The same domain is often classified by CATH and by SCOPe; labels should speak one
        language. A user's own schemes stay. If nothing would remain, everything does.

        Raises
        ------
        ConfigError
            If neither the database nor anybody else has a scheme of this name; upper and lower case do not matter.
        """
        known = sorted({*LEVEL_NAMES, *(entry.scheme for entry in self.entries)})
        spelt = [name for name in known if name.lower() == scheme.lower()]
        if not spelt:
            raise ConfigError(
                f"expected a scheme: {', '.join(known)}", got=scheme, hint="Mend the setting 'scheme' (--scheme)."
            )
        scheme = spelt[0]
        kept = tuple(entry for entry in self.entries if entry.scheme == scheme or entry.scheme not in LEVEL_NAMES)
        return replace(self, entries=kept) if kept else self

    def confidence(self, first: Candidate, margin: float, *, bank: Angstrom) -> float | None:
        """Probability that a first candidate is right, None where the database is not calibrated.

        Parameters
        ----------
        first : Candidate
        margin : float
            Lead over the best other type of the same scheme.
        bank : Angstrom
            That was searched.
        """
        type_ = np.array(self.types.index((first.scheme, first.type)))
        said = self.confidences(np.array(first.cosine), np.array(margin), type_, bank=bank)
        return None if said is None else float(said)

    def confidences(
        self, cosine: np.ndarray, margin: np.ndarray, type_: np.ndarray, *, bank: Angstrom
    ) -> np.ndarray | None:
        """`confidence` of many answers at once; `type_` holds indices into `types`."""
        fit = self.calibration.get(bank)
        return None if fit is None else calibrated(cosine, margin, self.type_lengths[type_], fit)

    @cached_property
    def type_lengths(self) -> np.ndarray:
        """Median length of the entries of each of the `types`, residues."""
        order, starts = self._by_type
        lengths = np.array([entry.length for entry in self.entries])[order]
        return np.array([np.median(part) for part in np.split(lengths, starts[1:])])

    def search_bytes(self, bank: Angstrom) -> int:
        """Memory that `assign` takes besides the database: the sorted copy of a bank, and a chunk of cosines."""
        entries, types = len(self.entries), len(self.types)
        if self.matched:
            return 4 * (4 * entries * self._dim) + _MATCHING
        return 4 * (entries * self._dim + _QUERIES_AT_ONCE * (entries + 3 * types))

    @cached_property
    def levels(self) -> tuple[float, ...]:
        """Resolutions that answers are given at: those of the banks, then coarser ones, of shapes, if calibrated."""
        coarsest = max(self.banks)
        coarser = (level for level in COARSER if self.matched and level > coarsest and level in self.calibration)
        return (*sorted(self.banks), *coarser)

    def bank_for(self, resolution: Angstrom | None) -> float:
        """Level to search at: the closest one that is not finer than the query, else the coarsest."""
        if resolution is None:
            return min(self.banks)
        return next((level for level in self.levels if level >= resolution - 0.25), self.levels[-1])

    def blur_for(self, resolution: Angstrom | None) -> float:
        """Resolution to which what is finer is blurred before it is compared: that of the bank that is searched.

        Shapes between two banks are compared as they are, though, as blurring takes more away than its likeness to
        the entries brings (159 CATH types at 8 Å, Top-10 73 instead of 70 %); only what is finer than all banks is
        blurred to the finest (at 4.5 Å to 6 Å).
        """
        return min(self.banks) if self.matched else self.bank_for(resolution)

    # ------------------------------------------------------------ searching

    def search(
        self,
        vectors: np.ndarray,
        *,
        top: int = 10,
        resolution: Angstrom | None = None,
        schemes: Sequence[str] | None = None,
        exclude: np.ndarray | None = None,
    ) -> list[list[Candidate]]:
        """Ranked domain types for each query (CryoDomain, fig. 4).

        The most similar entries (through the FAISS index) are grouped by domain type, each type is represented by its
        most similar entry, and the types are ranked by that similarity.

        Parameters
        ----------
        vectors : float array, `q d`
            Unit rows.
        top : int
            Number of types to return.
        resolution : Angstrom, optional
            Of the queries; chooses the bank.
        schemes : sequence of str, optional
            Only types of these schemes.
        exclude : bool array, `q entries`, optional
            Entries that do not count for a query (relatives, in a test).
        """
        vectors = self._checked(vectors)
        if self.matched:
            found = self.similarities(vectors, resolution=resolution)
            found = found if exclude is None else np.where(exclude, -np.inf, found)
            return [self.ranked(row, top=top, schemes=schemes) for row in found]
        allowed = np.array([schemes is None or entry.scheme in schemes for entry in self.entries])
        most = _MOST_SIMILAR if exclude is None else len(self.banks[self.bank_for(resolution)])
        cosines, rows = self.nearest(vectors, top=most, resolution=resolution)
        answers = []
        for query, (found, of_rows) in enumerate(zip(cosines, rows, strict=True)):
            similarity = np.full(len(next(iter(self.banks.values()))), -np.inf, np.float32)
            similarity[of_rows] = found
            of_entries = np.where(allowed, similarity[self._rows], -np.inf)
            if exclude is not None:
                of_entries[exclude[query]] = -np.inf
            answers.append(self._ranked(of_entries, top))
        return answers

    def ranked(self, similarity: np.ndarray, *, top: int = 10, schemes: Sequence[str] | None = None) -> list[Candidate]:
        """Types by the similarity of their best entry.

        Parameters
        ----------
        similarity : float array, `entries`
            −infinity where an entry does not count.
        top : int
        schemes : sequence of str, optional
            Only types of these schemes.
        """
        allowed = np.array([schemes is None or entry.scheme in schemes for entry in self.entries])
        return self._ranked(np.where(allowed, similarity, -np.inf), top)

    def similarities(
        self, vectors: np.ndarray, *, resolution: Angstrom | None = None, device: str = "cpu"
    ) -> np.ndarray:
        """Similarity of every query to every entry, `q entries`: their cosine, or how well their shapes fit."""
        vectors = self._checked(vectors)
        if self.matched:
            matcher, place = self._matcher(self.bank_for(resolution), device)
            return np.asarray(matcher.similarities(vectors)[: len(vectors), place])
        bank = self.banks[self.bank_for(resolution)]
        return np.asarray((vectors @ bank.T)[:, self._rows])

    def seen(
        self,
        views: np.ndarray,
        *,
        resolution: Angstrom | None = None,
        crowded: bool = False,
        device: str = "cpu",
    ) -> np.ndarray:
        """Similarity of one thing to every entry, `entries`, from several views of it.

        Parameters
        ----------
        views : float array, `v d`
            E.g. about several middles.
        resolution : Angstrom, optional
            Chooses the bank.
        crowded : bool
            Whether there may be more in the views than the thing. Then every view is compared as a whole and within
            the entries' envelopes (`Matcher`), and the answer is that of the view and the question with the clearest
            lead over the next type; that of the second question counts a third, as it misleads where density is poor.
        """
        views = self._checked(views)
        if not (self.matched and crowded):
            return self.similarities(views, resolution=resolution, device=device).max(axis=0)
        matcher, place = self._matcher(self.bank_for(resolution), device)
        owner, _ = self._owners
        schemes = np.array([scheme for scheme, _ in self.types])[owner]
        best: tuple[float, np.ndarray] | None = None
        for view in matcher.seen(views):
            for similarity, weight in ((view.alone[place], 1.0), (view.crowded[place], _CROWDED)):
                leads = [view.lead(similarity[schemes == s], owner[schemes == s]) for s in dict.fromkeys(schemes)]
                lead = weight * max(leads)
                best = (lead, similarity) if best is None or lead > best[0] else best
        assert best is not None
        return best[1]

    def assign(
        self,
        vectors: np.ndarray,
        *,
        top: int = 3,
        resolution: Angstrom | None = None,
        representatives: bool = True,
        device: str = "cpu",
    ) -> Assignment:
        """The best types of many queries at once.

        Exact, by chunked matrix products; of more than 100,000 entries only the nearest 512
        of each query are looked at, which the FAISS index finds.

        Parameters
        ----------
        vectors : float array, `q d`
        top : int
            Types per query.
        resolution : Angstrom, optional
            Chooses the bank.
        representatives : bool
            Whether to find the best entry of the best type too; -1 otherwise.
        device : str
            Where torch multiplies.
        """
        vectors = self._checked(vectors)
        top = min(top, len(self.types))
        if self.matched:
            return self._assign_matched(vectors, top, resolution, device)
        if len(self) > _EXACT_UP_TO:
            return self._assign_nearest(vectors, top, resolution)
        import torch

        bank, lengths = self._on_device(self.bank_for(resolution), device)
        order, starts = self._by_type
        types, scores, entries = [], [], []
        for start in range(0, len(vectors), _QUERIES_AT_ONCE):
            queries = torch.from_numpy(vectors[start : start + _QUERIES_AT_ONCE]).to(device)
            similarity = bank @ queries.T  # entries q: each type is a run of rows
            best = torch.segment_reduce(similarity, "max", lengths=lengths, axis=0)
            ranked = torch.topk(best.T, top, dim=1)
            types.append(ranked.indices.int().cpu().numpy())
            scores.append(ranked.values.cpu().numpy())
            entries.append(np.full(len(queries), -1, np.int32))
            for query, type_ in enumerate(types[-1][:, 0] if representatives else ()):
                rows = slice(starts[type_], starts[type_] + int(lengths[type_]))
                entries[-1][query] = order[starts[type_] + int(similarity[rows, query].argmax())]
        if not types:
            empty = np.zeros((0, top))
            return Assignment(empty.astype(np.int32), empty.astype(np.float32), np.zeros(0, np.int32))
        return Assignment(np.concatenate(types), np.concatenate(scores), np.concatenate(entries))

    def _assign_matched(self, vectors: np.ndarray, top: int, resolution: Angstrom | None, device: str) -> Assignment:
        order, starts = self._by_type
        types, scores = np.zeros((len(vectors), top), np.int32), np.zeros((len(vectors), top), np.float32)
        entries = np.zeros(len(vectors), np.int32)
        for start in range(0, len(vectors), _QUERIES_AT_ONCE):
            rows = slice(start, start + _QUERIES_AT_ONCE)
            matcher, place = self._matcher(self.bank_for(resolution), device)
            similarity = matcher.similarities(vectors[rows], kept=_KEPT)[:, place[order]]
            best = np.maximum.reduceat(similarity, starts, axis=1)
            types[rows] = np.argsort(-best, axis=1, kind="stable")[:, :top]
            scores[rows] = np.take_along_axis(best, types[rows], axis=1)
            entries[rows] = order[similarity.argmax(axis=1)]
        return Assignment(types, scores, entries)

    def _assign_nearest(self, vectors: np.ndarray, top: int, resolution: Angstrom | None) -> Assignment:
        """`assign` through the index: types beyond the nearest entries are left out, their cosine is -1."""
        cosines, rows = self.nearest(vectors, top=_NEAREST, resolution=resolution)
        owner, of_row = self._owners
        types = np.full((len(vectors), top), -1, np.int32)
        scores = np.full((len(vectors), top), -1, np.float32)
        best = np.zeros(len(vectors), np.int32)
        for query, (near, found) in enumerate(zip(rows, cosines, strict=True)):
            entries = [(entry, cosine) for row, cosine in zip(near, found, strict=True) for entry in of_row[row]]
            seen: dict[int, float] = {}
            for entry, cosine in entries:
                seen.setdefault(int(owner[entry]), float(cosine))
            kept = list(seen.items())[:top]
            types[query, : len(kept)] = [type_ for type_, _ in kept]
            scores[query, : len(kept)] = [cosine for _, cosine in kept]
            best[query] = entries[0][0]
        return Assignment(types, scores, best)

    def nearest(
        self, vectors: np.ndarray, *, top: int, resolution: Angstrom | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The most similar rows through the FAISS index: cosines and row numbers, `q top`."""
        index = self._index(self.bank_for(resolution))
        cosines, rows = index.search(self._checked(vectors), min(top, index.ntotal))
        return cosines, rows

    # ------------------------------------------------------------ changing

    def with_entries(
        self, entries: Iterable[Entry], banks: Mapping[float, np.ndarray], *, shapes: "Shapes | None" = None
    ) -> "DateDB":
        """The database with more entries; their `row` counts within the given banks.

        Parameters
        ----------
        entries : iterable of Entry
        banks : mapping
            As `DateDB.banks`.
        shapes : Shapes, optional
            Of the same rows. Where they are not given, the result has none and cannot look closer.

        Raises
        ------
        GeometryError
            If an id is there already, or the banks' resolutions differ.
        """
        added = list(entries)
        known = {entry.id for entry in self.entries}
        twice = [entry.id for entry in added if entry.id in known]
        if twice:
            raise GeometryError(
                "expected entries that are not in the DateDB yet",
                got=", ".join(twice[:5]),
                hint="Remove them first (`cryoscan datedb remove`), or give them other names.",
            )
        if set(banks) != set(self.banks):
            raise GeometryError(
                f"expected banks at {sorted(self.banks)} Å",
                got=str(sorted(banks)),
                hint="Simulate at these resolutions.",
            )
        n = self._count
        merged = {key: np.concatenate([bank, unit_rows(banks[key])]) for key, bank in self.banks.items()}
        moved = tuple(replace(entry, row=entry.row + n) for entry in added)
        both = None if self.shapes is None or shapes is None else type(shapes).joined([self.shapes, shapes])
        return replace(self, entries=self.entries + moved, banks=merged, shapes=both)

    def without_entries(self, ids: Iterable[str]) -> "DateDB":
        """The database without some entries; rows that nobody uses any more are dropped."""
        gone = set(ids)
        for id_ in gone:
            self.entry(id_)
        kept = [entry for entry in self.entries if entry.id not in gone]
        if not kept:
            raise GeometryError("expected at least one entry to remain", got="none", hint="Delete the folder instead.")
        rows = sorted({entry.row for entry in kept})
        place = {row: new for new, row in enumerate(rows)}
        banks = {key: bank[rows] for key, bank in self.banks.items()}
        shapes = None if self.shapes is None else self.shapes.take(np.array(rows))
        return replace(self, entries=tuple(replace(e, row=place[e.row]) for e in kept), banks=banks, shapes=shapes)

    def verify(self) -> list[str]:
        """Check the database; returns the problems found, an empty list if it is sound.

        Unit rows, finite values, unique ids, four-level types, and self-retrieval: every
        row finds itself first.
        """
        problems = []
        ids = [entry.id for entry in self.entries]
        if len(set(ids)) != len(ids):
            problems.append(f"{len(ids) - len(set(ids))} entry ids occur more than once")
        for entry in self.entries:
            if entry.scheme in ("CATH", "SCOPe") and entry.type.count(".") != 3:
                problems.append(f"entry {entry.id}: '{entry.type}' is not a type of four levels of {entry.scheme}")
        for resolution, bank in self.banks.items():
            if not np.isfinite(bank).all():
                problems.append(f"bank {resolution:g} Å holds values that are not finite")
                continue
            off = np.abs(np.linalg.norm(bank, axis=1) - 1).max()
            if off > 1e-4:
                problems.append(f"bank {resolution:g} Å holds rows that are not of unit length (off by {off:.3g})")
            lost = 0
            for start in range(0, len(bank), _QUERIES_AT_ONCE):
                similarity = bank[start : start + _QUERIES_AT_ONCE] @ bank.T
                own = similarity[np.arange(len(similarity)), start + np.arange(len(similarity))]
                lost += int((similarity.max(axis=1) > own + 1e-5).sum())
            if lost:
                problems.append(f"bank {resolution:g} Å: {lost} rows do not find themselves first")
        return problems

    # ------------------------------------------------------------ disk

    def write(self, path: Path | str, *, overwrite: bool = False, dtype: str = "float16") -> "DateDB":
        """Write the database as a folder and return it as it reads back; see `cryoscan.datedb.files`."""
        from cryoscan.datedb.files import write_datedb

        return write_datedb(self, Path(path), overwrite=overwrite, dtype=dtype)

    # ------------------------------------------------------------ private

    @cached_property
    def _matchers(self) -> dict[tuple[float, str], Any]:
        return {}

    def _matcher(self, bank: float, device: str) -> tuple[Any, np.ndarray]:
        """Of the rows that entries use, and for each entry its place among them."""
        from cryoscan.models.matching import Matcher

        used, place = np.unique(self._rows, return_inverse=True)
        if (bank, device) not in self._matchers:
            assert self.shapes is not None
            shapes = self.shapes.take(used)
            stored = min(bank, max(self.banks))
            usual = shapes.usual[sorted(self.banks).index(stored)] if len(shapes.usual) else None
            self._matchers[bank, device] = Matcher(
                self.banks[stored][used],
                shapes.envelopes(self.bank_blur(stored)),
                usual=usual,
                second=(stored / bank) ** 2,
                device=device,
            )
        return self._matchers[bank, device], place

    def bank_blur(self, bank: float) -> float:
        """Width in voxels of the Gaussian that takes the finest bank to another's resolution."""
        sigma = SIGMA_PER_RESOLUTION * float(np.sqrt(bank**2 - min(self.banks) ** 2))
        return sigma / float(self.embedder["voxel_size_A"])

    @cached_property
    def _indices(self) -> dict[float, Any]:
        return {}

    def _index(self, bank: float) -> Any:
        """The FAISS index of a bank, opened once."""
        if bank not in self._indices:
            from cryoscan.datedb.index import index_name, open_index

            cache = None if self.path is None else self.path / index_name(bank)
            self._indices[bank] = open_index(cache, self.banks[bank])
        return self._indices[bank]

    @cached_property
    def _banks_on_device(self) -> dict[tuple[float, str], tuple[Any, Any]]:
        return {}

    def _on_device(self, bank: float, device: str) -> tuple[Any, Any]:
        """Vectors of a bank's entries in the order of types, so that each type is one run of rows, and the runs."""
        if (bank, device) not in self._banks_on_device:
            import torch

            order, starts = self._by_type
            vectors = torch.from_numpy(np.ascontiguousarray(self.banks[bank][self._rows[order]]))
            lengths = torch.from_numpy(np.diff(np.append(starts, len(order))))
            self._banks_on_device[bank, device] = vectors.to(device), lengths.to(device)
        return self._banks_on_device[bank, device]

    @cached_property
    def _owners(self) -> tuple[np.ndarray, list[list[int]]]:
        """Type of every entry, and the entries of every row."""
        place = {key: index for index, key in enumerate(self.types)}
        owner = np.array([place[entry.scheme, entry.type] for entry in self.entries])
        of_row: list[list[int]] = [[] for _ in range(self._count)]
        for index, entry in enumerate(self.entries):
            of_row[entry.row].append(index)
        return owner, of_row

    @cached_property
    def _count(self) -> int:
        """Number of rows."""
        return (
            len(self.shapes) if self.matched and self.shapes is not None else len(next(iter(self.banks.values()), ()))
        )

    @cached_property
    def _dim(self) -> int:
        """Length of a row."""
        return int(self.embedder["dim"]) if self.matched else next(iter(self.banks.values())).shape[1]

    @cached_property
    def _rows(self) -> np.ndarray:
        return np.array([entry.row for entry in self.entries])

    @cached_property
    def _by_type(self) -> tuple[np.ndarray, np.ndarray]:
        """Entries sorted by type, and where each type starts."""
        owner, _ = self._owners
        order = np.argsort(owner, kind="stable")
        return order, np.searchsorted(owner[order], np.arange(len(self.types)))

    def _checked(self, vectors: np.ndarray) -> np.ndarray:
        vectors = np.atleast_2d(np.asarray(vectors, np.float32))
        if vectors.shape[1] != self._dim:
            raise MismatchError(
                f"expected queries of {self._dim} dimensions",
                got=str(vectors.shape[1]),
                hint="Embed them with the embedder that wrote the DateDB.",
            )
        return vectors

    def _ranked(self, similarity: np.ndarray, top: int) -> list[Candidate]:
        best: dict[tuple[str, str], int] = {}
        for index in np.argsort(-similarity, kind="stable"):
            if len(best) == top or similarity[index] == -np.inf:
                break
            entry = self.entries[index]
            best.setdefault((entry.scheme, entry.type), int(index))
        return [
            self.candidate(index, rank=rank, cosine=float(similarity[index]))
            for rank, index in enumerate(best.values(), start=1)
        ]

    def candidate(self, index: int, *, rank: int, cosine: float) -> Candidate:
        """The answer that proposes the type of entry number `index`."""
        entry = self.entries[index]
        codes = levels(entry.scheme, entry.type)
        hierarchy = tuple(
            f"{code} {name}".strip() for code in codes for name in [self.names.get(f"{entry.scheme}:{code}", "")]
        )
        return Candidate(
            rank=rank,
            type=entry.type,
            scheme=entry.scheme,
            name=self.name(entry.scheme, entry.type),
            entry=entry.id,
            cosine=cosine,
            hierarchy=hierarchy,
            pdb=entry.pdb,
            chain=entry.chain,
            ranges=entry.ranges,
            length=entry.length,
        )


class _MadeWhenAsked(Mapping[float, np.ndarray]):
    """Banks that take seconds and much memory to make, of which most users need one."""

    def __init__(self, make: Mapping[float, Callable[[], np.ndarray]]) -> None:
        self._make = dict(make)
        self._made: dict[float, np.ndarray] = {}

    def __getitem__(self, bank: float) -> np.ndarray:
        if bank not in self._made:
            self._made[bank] = self._make[bank]()
        return self._made[bank]

    def __iter__(self) -> Iterator[float]:
        return iter(self._make)

    def __len__(self) -> int:
        return len(self._make)


def calibrated(cosine: npt.ArrayLike, margin: npt.ArrayLike, length: npt.ArrayLike, fit: Fit) -> np.ndarray:
    """Probability of being right: logistic in log(1 - cosine), log(margin) and log(length), if that was fitted."""
    constant, of_cosine, of_margin, *of_length = fit
    short, lead = 1.0001 - np.minimum(cosine, 1.0), np.maximum(margin, 0.0) + 1e-4
    odds = constant + of_cosine * np.log(short) + of_margin * np.log(lead)
    for weight in of_length:
        odds = odds + weight * np.log(np.where(np.asarray(length) > 0, length, 100) / 100)  # 0: not known
    return np.asarray(1 / (1 + np.exp(-odds)))

"""Retrieval of types from simulated densities, leaving out the query's relatives."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import scipy.fft
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from cryoscan.benchmark.config import BenchmarkConfig
from cryoscan.benchmark.folders import DomainTables, named_queries, open_chains, read_tables
from cryoscan.benchmark.ranking import TOPS, Ranking, types_kept
from cryoscan.benchmark.relatives import relatives
from cryoscan.benchmark.result import BenchmarkProgress, BenchmarkResult, Table, decimals, percent
from cryoscan.datedb import DateDB
from cryoscan.datedb.build import closer_look
from cryoscan.datedb.held_out import choose_held_out, digest, is_real_type, sequence_of
from cryoscan.embedding import Embedder
from cryoscan.errors import CryoscanError, FormatError
from cryoscan.filters import frequency_grid
from cryoscan.io import DomainRow, StructureStore
from cryoscan.simulate import atoms_from_trace, density, is_trace
from cryoscan.structure import Structure
from cryoscan.units import SIGMA_PER_RESOLUTION, Angstrom
from cryoscan.volume import Volume
from cryoscan.windows import blurred

_BATCH = 64
_SCHEMES = ("CATH", "SCOPe")


def run_retrieval(
    config: BenchmarkConfig, asked: Path, *, data: Path | None, datedb: DateDB, embedder: Embedder
) -> Iterator[BenchmarkProgress | BenchmarkResult]:
    """Ask the DateDB for the types of simulated domains; see `run_benchmark`."""
    datedb, embedder = closer_look(datedb, embedder)
    tables = read_tables(asked)
    store = open_chains(asked)
    notes = list(tables.notes)
    sequences = _sequences(data, datedb, notes)
    numbers: dict[str, float | int] = {}
    found: list[Table] = []
    asked_of = {
        scheme: _queries_of(scheme, asked, tables, store, config, datedb, notes, chosen=asked == data)
        for scheme in _SCHEMES
    }
    done, total = 0, len(config.resolutions_A) * sum(len(queries) for queries in asked_of.values())
    for scheme, queries in asked_of.items():
        if not queries:
            continue
        scores: dict[str, Mapping[str, float | int]] = {}
        setting = _Setting(scheme, queries, datedb, sequences, config)
        for resolution in config.resolutions_A:
            vectors = []
            for start in range(0, len(queries), _BATCH):
                part = queries[start : start + _BATCH]
                bank = datedb.blur_for(resolution)
                windows = [_window(query, resolution, config, embedder, bank) for query in part]
                vectors.append(embedder.embed(np.stack(windows)))
                done += len(part)
                yield BenchmarkProgress(f"{scheme} at {resolution:g} Å", done, total)
            scores |= setting.scores(np.concatenate(vectors), resolution)
        numbers |= {f"{scheme.lower()}.{key}.{name}": v for key, part in scores.items() for name, v in part.items()}
        found += _tables(scheme, scores)
    if not numbers:
        raise FormatError(
            f"expected domains in {asked} whose CATH or SCOPe type can be asked for",
            got="; ".join(notes),
            hint="The tables need ids, types and parts that name chains in structures/.",
        )
    yield BenchmarkResult(numbers, tuple(found), tuple(notes))


@dataclass(frozen=True, slots=True)
class Query:
    """A domain to ask for."""

    row: DomainRow
    structure: Structure


def query_window(
    structure: Structure,
    embedder: Embedder,
    *,
    resolution: Angstrom,
    noise: float,
    shift: Angstrom,
    rng: np.random.Generator,
    bank: Angstrom | None = None,
) -> np.ndarray:
    """Simulated density of a domain as a careful user would cut it out: turned, off centre, noisy, `w w w`.

    Parameters
    ----------
    structure : Structure
    embedder : Embedder
        Whose window is filled.
    resolution : Angstrom
    noise : float
        Standard deviation in units of that of the density above a tenth of its maximum. The
        noise is as smooth as the density and confined to a soft mask around it.
    shift : Angstrom
        Largest error of the centre along each axis.
    rng : numpy.random.Generator
    bank : Angstrom, optional
        Resolution of what it is compared with; it is blurred to that, as `cryoscan identify` blurs maps.
    """
    protein = structure.protein()
    if is_trace(protein):
        protein = atoms_from_trace(protein)
    weights = protein.elements.astype(np.float64)
    turn = Rotation.from_quat(rng.normal(size=4)).as_matrix()
    turned = protein.moved(offset=-(weights @ protein.positions) / weights.sum()).moved(rotation=turn)
    edge, voxel_size = embedder.window, embedder.voxel_size
    z, y, x = rng.uniform(-shift, shift, 3) - (edge - 1) / 2 * voxel_size
    shape = (edge, edge, edge)
    clean = density(turned, voxel_size=voxel_size, resolution=resolution, shape=shape, origin=(z, y, x)).load()
    if noise == 0:
        return _as_compared(clean, voxel_size, resolution, bank)
    spectrum = scipy.fft.rfftn(rng.normal(size=shape))
    spectrum *= np.exp(-2 * (np.pi * SIGMA_PER_RESOLUTION * resolution * frequency_grid(shape, voxel_size)) ** 2)
    smooth = scipy.fft.irfftn(spectrum, s=shape)
    outline = gaussian_filter((clean > 0.02 * clean.max()).astype(np.float64), 1)
    level = noise * clean[clean > 0.1 * clean.max()].std() / smooth.std()
    noisy = np.asarray(clean + level * smooth * np.clip(2 * outline, 0, 1), np.float32)
    return _as_compared(noisy, voxel_size, resolution, bank)


def _as_compared(window: np.ndarray, voxel_size: Angstrom, resolution: Angstrom, bank: Angstrom | None) -> np.ndarray:
    return blurred(Volume(window, voxel_size), resolution=resolution, target=bank).load()


def choose_queries(
    rows: Sequence[DomainRow], datedb: DateDB, config: BenchmarkConfig, *, largest_types: int
) -> list[DomainRow]:
    """Choose the configured queries of one scheme; see `cryoscan.datedb.held_out.choose_held_out`."""
    return choose_held_out(
        rows,
        datedb.entries,
        half=config.half,
        residues=config.residues,
        per_type=config.per_type,
        largest_types=largest_types,
        largest=config.n_queries,
    )


class _Setting:
    """All of one scheme that does not depend on the resolution."""

    def __init__(
        self,
        scheme: str,
        queries: Sequence[Query],
        datedb: DateDB,
        sequences: Mapping[str, str],
        config: BenchmarkConfig,
    ) -> None:
        self._datedb, self._scheme = datedb, scheme
        self._mine = np.array([entry.scheme == scheme for entry in datedb.entries])
        entries = [entry for entry in datedb.entries if entry.scheme == scheme]
        self._types = sorted({entry.type for entry in entries})
        place = {type_: index for index, type_ in enumerate(self._types)}
        self._owners = np.array([place[entry.type] for entry in entries])
        rows = [query.row for query in queries]
        self._truth = np.array([place.get(row.type, -1) for row in rows])
        self._struck = relatives(rows, entries, sequences=sequences, max_identity=config.max_identity)
        real = np.array([index for index, type_ in enumerate(self._types) if is_real_type(scheme, type_)], np.int64)
        size = config.cath_types if scheme == "CATH" else config.scope_types
        counts = np.bincount(self._owners, minlength=len(self._types))
        self._sets = {
            str(size): types_kept(self._truth, counts, size=size, others=real),
            "all": np.arange(len(self._types)),
        }

    def scores(self, vectors: np.ndarray, resolution: Angstrom) -> dict[str, Mapping[str, float | int]]:
        """``159.6A`` → numbers."""
        similarity = self._datedb.similarities(vectors, resolution=resolution)[:, self._mine]
        similarity[self._struck] = -np.inf
        ranking = Ranking(similarity, self._owners, self._types, self._truth, self._scheme)
        return {f"{name}.{resolution:g}A": ranking.numbers(kept) for name, kept in self._sets.items()}


# ---------------------------------------------------------------- queries


def _queries_of(
    scheme: str,
    asked: Path,
    tables: DomainTables,
    store: StructureStore,
    config: BenchmarkConfig,
    datedb: DateDB,
    notes: list[str],
    *,
    chosen: bool,
) -> list[Query]:
    """The queries of a scheme: those named, else a choice (`chosen`), else all of the folder's."""
    rows = [row for row in tables.rows if row.scheme == scheme]
    traces = [row for row in tables.traces if row.scheme == scheme]
    types = {entry.type for entry in datedb.entries if entry.scheme == scheme}
    if not types or not (rows or traces):
        notes.append(f"{scheme}: {'no domains in the tables' if types else 'no entries in the DateDB'}; not asked for")
        return []
    named = named_queries(asked, scheme)
    if named is not None:
        by_id = {row.id: row for row in (*traces, *rows)}
        missing = [id_ for id_ in named if id_ not in by_id]
        if missing:
            notes.append(f"{scheme}: {len(missing)} of {len(named)} named queries are in no table: {_some(missing)}")
        wanted = [by_id[id_] for id_ in named if id_ in by_id]
    elif chosen:
        largest = config.cath_types if scheme == "CATH" else config.scope_types
        wanted = choose_queries(rows, datedb, config, largest_types=largest)
    else:
        wanted = [row for row in rows or traces if row.type in types and is_real_type(scheme, row.type)]
        notes.append(
            f"{scheme}: no list of queries, so all {len(wanted)} of {len(rows or traces)} domains whose type the "
            "DateDB knows are asked for"
        )
    return _read(wanted, store, scheme, notes)


def _read(rows: Sequence[DomainRow], store: StructureStore, scheme: str, notes: list[str]) -> list[Query]:
    queries, failed = [], []
    for row in rows:
        try:
            structure = store.domain(row)
            queries.append(Query(replace(row, sequence=row.sequence or sequence_of(structure)), structure))
        except CryoscanError as error:
            failed.append(f"{row.id} ({error})")
    if failed:
        notes.append(f"{scheme}: {len(failed)} of {len(rows)} queries cannot be read, the first: {failed[0]}")
    if not queries:
        notes.append(f"{scheme}: no queries")
    return queries


def seeded(id_: str, resolution: Angstrom, config: BenchmarkConfig) -> np.random.Generator:
    """Random numbers that belong to a domain and a resolution, the same on every machine."""
    return np.random.default_rng([config.seed, round(resolution * 100), digest(id_) % 2**32])


def _window(
    query: Query, resolution: Angstrom, config: BenchmarkConfig, embedder: Embedder, bank: Angstrom
) -> np.ndarray:
    rng = seeded(query.row.id, resolution, config)
    return query_window(
        query.structure, embedder, resolution=resolution, noise=config.noise, shift=config.shift_A, rng=rng, bank=bank
    )


def _sequences(data: Path | None, datedb: DateDB, notes: list[str]) -> dict[str, str]:
    """Sequences of the DateDB's entries, as far as the data hold them."""
    rows: tuple[DomainRow, ...] = ()
    if data is not None:
        try:
            tables = read_tables(data)
            rows = tables.rows + tables.traces
        except CryoscanError as error:
            notes.append(f"--data gives no sequences: {error}")
    ids = {entry.id for entry in datedb.entries}
    known = {row.id: row.sequence for row in rows if row.sequence and row.id in ids}
    if len(known) < len(ids):
        notes.append(
            f"The sequences of {len(ids) - len(known)} of {len(ids)} DateDB entries are not known (--data): among "
            "them relatives of a query are found by PDB code and sequence cluster alone"
        )
    return known


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:3]) + (" …" if len(ids) > 3 else "")


# ---------------------------------------------------------------- tables


def _tables(scheme: str, scores: Mapping[str, Mapping[str, float | int]]) -> list[Table]:
    columns = ("types", "resolution", "n", "Top-1 (95 %)", "Top-5", "Top-10", "MRR", "mAP", "AUROC", "Top-1 per type")
    rows, deep = [], []
    for key, part in scores.items():
        size, _, resolution = key.partition(".")
        label = f"{part['types']}" + (" (all)" if size == "all" else "")
        interval = f" ({percent(part['top1_low'])}–{percent(part['top1_high'])})"
        means = [decimals(part[name]) for name in ("mrr", "map", "auroc")]
        tops = [percent(part[f"top{k}"]) for k in TOPS]
        rows.append(
            (label, resolution, str(part["n"]), tops[0] + interval, *tops[1:], *means, percent(part["top1_macro"]))
        )
        cells = (f"{percent(part[f'top5_level{i}'])} ({percent(part[f'chance_top5_level{i}'])})" for i in range(1, 5))
        deep.append((label, resolution, *cells))
    order = sorted(range(len(rows)), key=lambda i: rows[i][0].endswith("(all)"))
    rows, deep = [rows[i] for i in order], [deep[i] for i in order]
    for key in list(scores)[:2]:  # chance and majority hardly depend on the resolution
        part = scores[key]
        for name in ("chance", "majority"):
            tops = [percent(part[f"{name}_top{k}"]) for k in TOPS]
            rows.append((str(part["types"]), name, "", *tops, "", "", "", ""))
    first = next(iter(scores.values()))
    between = ("architecture", "topology") if scheme == "CATH" else ("fold", "superfamily")
    title = f"{scheme}: {first['n']} queries; {first['impossible']} more have no entry left in the DateDB"
    return [
        Table(title, columns, tuple(rows)),
        Table(
            f"{scheme}: queries of which one of the first five types shares a level, % (by chance)",
            ("types", "resolution", "class", *between, "type"),
            tuple(deep),
        ),
    ]

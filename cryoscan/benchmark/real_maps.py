"""Chains of experimental maps under four masks: which are named, and for those that are not the measured reason."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from cryoscan.benchmark.config import BenchmarkConfig
from cryoscan.benchmark.folders import ModelledMap, modelled_maps
from cryoscan.benchmark.ranking import TOPS, best_by_type
from cryoscan.benchmark.result import BenchmarkProgress, BenchmarkResult, Table, percent
from cryoscan.datedb import DateDB, Entry
from cryoscan.datedb.build import closer_look, with_structures
from cryoscan.datedb.held_out import identity, sequence_of
from cryoscan.embedding import Embedder
from cryoscan.errors import CryoscanError, FormatError
from cryoscan.io import open_volume, read_structure
from cryoscan.metrics import cc_mask, mean_reciprocal_rank, top_k, wilson_interval
from cryoscan.models import InvariantEmbedder
from cryoscan.simulate import density
from cryoscan.structure import Structure
from cryoscan.units import Angstrom
from cryoscan.volume import Volume
from cryoscan.windows import blurred, region_windows

MASKS = ("mask3A", "mask6A", "sphere", "none")
"""3 Å and 6 Å around the model's atoms, a sphere around the chain, and everything in the window's box."""

_FIRST = 4  # chains of each map: large homo-oligomers would decide the smaller set alone
_EDGE = 3.0  # Å over which masks fall off
_SPHERE_MARGIN = 4.0  # Å beyond the outermost atom
_READ_MARGIN = 14.0  # Å of map around everything a mask holds, for the blur
_SAME_PROTEIN = 0.95  # identity; copies of a chain are often modelled with other ends
_SAME_LENGTH = 0.8
# From here on a measured circumstance is told with a chain that is not named. It is no proof: some chains are named
# in spite of it.
_NEIGHBOUR_EXCESS = 0.10
_POOR_CC = 0.60


@dataclass(frozen=True, slots=True)
class MapChain:
    """One chain of a modelled map.

    Parameters
    ----------
    source : ModelledMap
    chain : str
    structure : Structure
    sequence : str
    number : int
        Among the chains of its map that are asked for, from 0.
    """

    source: ModelledMap
    chain: str
    structure: Structure
    sequence: str
    number: int

    @property
    def centre(self) -> np.ndarray:
        """Mean position, z y x in Å."""
        return np.asarray(self.structure.positions.mean(axis=0))

    @property
    def radius(self) -> Angstrom:
        """Of the outermost atom, Å."""
        return float(np.linalg.norm(self.structure.positions - self.centre, axis=1).max())


def run_real_maps(
    config: BenchmarkConfig,
    asked: Path,
    *,
    datedb: DateDB,
    embedder: Embedder,
    prepared: Callable[[Sequence[ModelledMap]], list[ModelledMap]] | None = None,
    changed: Callable[[ModelledMap, Volume], Volume] | None = None,
) -> Iterator[BenchmarkProgress | BenchmarkResult]:
    """Ask for the chains of modelled maps among the DateDB's types and all those chains; see `run_benchmark`.

    Parameters
    ----------
    prepared : function, optional
        Chooses among the maps, and may say another resolution of each.
    changed : function, optional
        What is done to a map before it is looked at; the grid must stay.
    """
    sources, notes = modelled_maps(asked)
    if prepared is not None:
        sources = prepared(sources)
    chains = _chains(sources, config.residues, notes)
    if not chains:
        raise FormatError(
            f"expected chains of {config.residues[0]} to {config.residues[1]} residues in the models of {asked}",
            got="; ".join(notes) or "none",
            hint="Check maps_models/.",
        )
    entities = group_entities([chain.sequence for chain in chains])
    structures = [chain.structure for chain in chains]
    with_chains = with_structures(datedb, _entries(chains, entities), structures, _reference(embedder))
    datedb, embedder = closer_look(datedb, embedder)
    with_chains, _ = closer_look(with_chains, embedder)
    records: list[dict[str, Any]] = []
    done = 0
    for source in sources:
        mine = [index for index, chain in enumerate(chains) if chain.source is source]
        if not mine:
            continue
        try:
            volume = open_volume(source.map_path, voxel_size=source.voxel_size).loaded()
            if changed is not None:
                volume = changed(source, volume)
        except CryoscanError as error:
            notes.append(f"{source.name} cannot be read: {error}")
            volume = None
        for index in mine if volume is not None else ():
            assert volume is not None
            try:
                records.append(_asked(index, chains, entities, volume, with_chains, datedb, embedder))
            except CryoscanError as error:
                notes.append(f"{source.name} chain {chains[index].chain} was left out: {error}")
        done += len(mine)
        yield BenchmarkProgress("chains of real maps", done, len(chains))
    if not records:
        raise FormatError(
            f"expected a readable map with its model in {asked}", got="; ".join(notes), hint="Mend the files."
        )
    total = len(datedb.types) + len(set(entities.tolist()))
    numbers = _numbers(records, total)
    yield BenchmarkResult(numbers, _tables(records, numbers), tuple(notes))


def group_entities(sequences: Sequence[str]) -> np.ndarray:
    """Number of the protein that each chain is: equal numbers for (nearly) equal sequences.

    At least 95 % of the shorter sequence identical and lengths within 20 %: copies of one
    protein in one map are often modelled with other ends.
    """
    found = np.full(len(sequences), -1)
    known: list[str] = []
    for index, sequence in enumerate(sequences):
        for number, other in enumerate(known):
            short, long = sorted((len(sequence), len(other)))
            if sequence == other or (
                short >= _SAME_LENGTH * long and short > 0 and identity(sequence, other) >= _SAME_PROTEIN
            ):
                found[index] = number
                break
        else:
            found[index] = len(known)
            known.append(sequence)
    return found


def soft_weights(distances: np.ndarray, radius: Angstrom) -> np.ndarray:
    """Weight 1 up to `radius` Å, then half a cosine down to 0 over 3 Å."""
    edge = np.clip((distances - radius) / _EDGE, 0, 1)
    return np.asarray(0.5 + 0.5 * np.cos(np.pi * edge), np.float32)


def _reference(embedder: Embedder) -> Embedder:
    """The embedder for simulated densities: they have no noise that a contour would cut off."""
    if isinstance(embedder, InvariantEmbedder):
        return InvariantEmbedder(embedder.voxel_size, contour=0.0, device=str(embedder.device))
    return embedder


def _entries(chains: Sequence[MapChain], entities: np.ndarray) -> list[Entry]:
    """The chains as entries of a scheme of their own, one type for each protein."""
    return [
        Entry(f"{chain.source.name} {chain.chain}", "benchmark", f"protein {entity}", row)
        for row, (chain, entity) in enumerate(zip(chains, entities, strict=True))
    ]


def _chains(sources: Sequence[ModelledMap], residues: tuple[int, int], notes: list[str]) -> list[MapChain]:
    found = []
    for source in sources:
        try:
            protein = read_structure(source.model_path).protein()
        except CryoscanError as error:
            notes.append(f"{source.name}: the model cannot be read: {error}")
            continue
        number = 0
        for chain in dict.fromkeys(str(name) for name in protein.chains):
            part = protein.select(protein.chains == chain)
            if residues[0] <= part.n_residues <= residues[1]:
                found.append(MapChain(source, chain, part, sequence_of(part), number))
                number += 1
        if number == 0:
            notes.append(f"{source.name}: no chain of {residues[0]} to {residues[1]} residues")
    return found


# ---------------------------------------------------------------- one chain


def _asked(
    index: int,
    chains: Sequence[MapChain],
    entities: np.ndarray,
    volume: Volume,
    with_chains: DateDB,
    datedb: DateDB,
    embedder: Embedder,
) -> dict[str, Any]:
    """Everything measured for one chain, JSON-able."""
    chain = chains[index]
    resolution = chain.source.resolution
    bank, blur = datedb.bank_for(resolution), datedb.blur_for(resolution)
    half_window = embedder.window * embedder.voxel_size / 2
    part = _around(volume, chain.centre, max(chain.radius + _SPHERE_MARGIN + _EDGE, half_window) + _READ_MARGIN)
    near, sphere, box = _distances(part, chain, half_window)
    masks = {
        "mask3A": soft_weights(near, 3.0),
        "mask6A": soft_weights(near, 6.0),
        "sphere": soft_weights(sphere, chain.radius + _SPHERE_MARGIN),
        "none": box.astype(np.float32),
    }
    vectors = {
        name: embedder.embed(region_windows(part, mask, embedder, resolution=resolution, bank=blur))
        for name, mask in masks.items()
    }
    record: dict[str, Any] = {
        "map": chain.source.name,
        "chain": chain.chain,
        "residues": chain.structure.n_residues,
        "resolution": resolution,
        "bank": bank,
        "radius": round(chain.radius, 1),
        "first4": chain.number < _FIRST,
        **_measured(part, chain, near, masks, resolution, bank),
    }
    for name, views in vectors.items():
        similarity = with_chains.seen(views, resolution=bank, crowded=False)
        rank, cath_rank, rival = _rank(similarity, index, chains, entities, datedb)
        record |= {f"rank_{name}": rank, f"cath_rank_{name}": cath_rank, f"rival_{name}": rival}
    return record | _reason(record, max(datedb.banks), half_window)


def _rank(
    similarity: np.ndarray,
    index: int,
    chains: Sequence[MapChain],
    entities: np.ndarray,
    datedb: DateDB,
) -> tuple[int, int, str]:
    """Rank of the right protein among the DateDB's types and the benchmark's proteins, and the best wrong one.

    The second rank counts the types of CATH alone: many domains are in CATH and in SCOPe, and
    then stand before the right protein twice.
    """
    types = {key: place for place, key in enumerate(datedb.types)}
    owners = np.array([types[entry.scheme, entry.type] for entry in datedb.entries])
    of_entries, similar = similarity[: len(owners)], similarity[len(owners) :]
    by_type = best_by_type(of_entries[None], owners, len(types))[0]
    own = float(similar[entities == entities[index]].max())
    others = np.where(entities == entities[index], -np.inf, similar)
    by_protein = best_by_type(others[None], entities, int(entities.max()) + 1)[0]
    proteins = int((by_protein >= own).sum())  # ties count against the query
    rank = 1 + proteins + int((by_type >= own).sum())
    of_cath = np.array([scheme == "CATH" for scheme, _ in datedb.types])
    cath_rank = 1 + proteins + int((by_type[of_cath] >= own).sum())
    best_type, best_chain = int(by_type.argmax()), int(others.argmax())
    if others[best_chain] > by_type[best_type]:
        rival = chains[best_chain]
        return rank, cath_rank, f"{rival.source.name} chain {rival.chain}"
    scheme, type_ = datedb.types[best_type]
    return rank, cath_rank, f"{scheme} {type_} ({datedb.name(scheme, type_)})"


def _around(volume: Volume, centre: np.ndarray, reach: Angstrom) -> Volume:
    """The part of the volume within `reach` Å of a place along each axis."""
    low = np.clip(np.floor(volume.to_index(centre - reach)), 0, volume.shape).astype(int)
    high = np.clip(np.ceil(volume.to_index(centre + reach)) + 1, 0, volume.shape).astype(int)
    z, y, x = (slice(int(start), int(stop)) for start, stop in zip(low, high, strict=True))
    return volume.crop((z, y, x))


def _distances(part: Volume, chain: MapChain, half_window: Angstrom) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each voxel: Å to the closest atom (infinite beyond 10 Å), Å to the centre, and whether it is in the box."""
    places = part.to_position(np.indices(part.shape).reshape(3, -1).T)
    near, _ = cKDTree(chain.structure.positions).query(places, distance_upper_bound=10.0)
    offsets = places - chain.centre
    box = (np.abs(offsets) <= half_window).all(axis=1)
    sphere = np.linalg.norm(offsets, axis=1)
    return near.reshape(part.shape), sphere.reshape(part.shape), box.reshape(part.shape)


def _measured(
    part: Volume,
    chain: MapChain,
    near: np.ndarray,
    masks: Mapping[str, np.ndarray],
    resolution: Angstrom | None,
    bank: Angstrom,
) -> dict[str, float]:
    """How well map and model agree around the atoms, and how much density in each mask is not the chain's."""
    at = max(bank, resolution or bank, 1.8 * part.voxel_size)
    model = density(
        chain.structure, voxel_size=part.voxel_size, resolution=at, shape=part.shape, origin=part.origin
    ).load()
    smooth = blurred(part, resolution=resolution, target=at).load()
    inside = near <= 3.0

    def beyond(data: np.ndarray, mask: np.ndarray) -> float:
        weighed = np.clip(data, 0, None) * mask
        return round(float(weighed[~inside].sum() / max(float(weighed.sum()), 1e-12)), 3)

    found = {"cc_mask": round(cc_mask(smooth, model, inside), 3)}
    for name, mask in masks.items():
        found |= {f"beyond_{name}": beyond(smooth, mask), f"beyond_{name}_model": beyond(model, mask)}
    return found


def _reason(record: Mapping[str, Any], coarsest: Angstrom, half_window: Angstrom) -> dict[str, Any]:
    """The closest mask under which a chain is not named, and what was measured that makes it hard."""
    mask = next((name for name in MASKS if record[f"rank_{name}"] > 1), "")
    if not mask:
        return {"fails_from": "", "causes": [], "reason": ""}
    causes: dict[str, str] = {}
    resolution, cc = record["resolution"], record["cc_mask"]
    seen, expected = record[f"beyond_{mask}"], record[f"beyond_{mask}_model"]
    if resolution is None:
        causes["resolution unknown"] = ""
    elif resolution > coarsest + 0.25:
        causes["map coarser than the coarsest bank"] = f"{resolution:g} > {coarsest:g} Å"
    if record["radius"] > half_window - 2:
        causes["truncated by the window"] = f"radius {record['radius']:.0f} of {half_window:g} Å"
    if seen - expected > _NEIGHBOUR_EXCESS:
        causes["density of neighbours in the mask"] = f"{seen:.0%} beyond 3 Å of the chain, its model {expected:.0%}"
    if not cc >= _POOR_CC:
        causes["poor agreement of map and model"] = f"correlation {cc:.3f} around the atoms"
    told = [f"{cause} ({detail})" if detail else cause for cause, detail in causes.items()]
    rival = record[f"rival_{mask}"]
    return {
        "fails_from": mask,
        "causes": list(causes),
        "reason": "; ".join([*told, f"look-alike: {rival}"]),
    }


# ---------------------------------------------------------------- numbers


def _numbers(records: Sequence[Mapping[str, Any]], candidates: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    first = [record for record in records if record["first4"]]
    for prefix, part, rank_of in (
        ("real_maps", records, "rank"),
        ("real_maps.first4", first, "rank"),
        ("real_maps.cath", records, "cath_rank"),
        ("real_maps.cath.first4", first, "cath_rank"),
    ):
        for mask in MASKS:
            ranks = np.array([record[f"{rank_of}_{mask}"] for record in part])
            key = f"{prefix}.{mask}"
            for k in TOPS:
                found[f"{key}.top{k}"] = top_k(ranks, k)
                low, high = wilson_interval(int((ranks <= k).sum()), len(ranks))
                found |= {f"{key}.top{k}_low": low, f"{key}.top{k}_high": high}
                found[f"{key}.chance_top{k}"] = k / candidates
            per_map = {name: [r for r in part if r["map"] == name] for name in dict.fromkeys(r["map"] for r in part)}
            found[f"{key}.top1_macro"] = float(
                np.mean([np.mean([r[f"{rank_of}_{mask}"] <= 1 for r in rows]) for rows in per_map.values()])
            )
            found[f"{key}.mrr"] = mean_reciprocal_rank(ranks)
            found[f"{key}.n"] = len(ranks)
    found["real_maps.maps"] = len({record["map"] for record in records})
    found["real_maps.candidates"] = candidates
    found["real_maps.details"] = [dict(record) for record in records]
    return found


def _tables(records: Sequence[Mapping[str, Any]], numbers: Mapping[str, Any]) -> tuple[Table, ...]:
    n, first = numbers["real_maps.mask3A.n"], numbers["real_maps.first4.mask3A.n"]
    rows = []
    few = f"first {_FIRST} of a map: {first}"
    for prefix, label in (
        ("real_maps", f"all {n}"),
        ("real_maps.first4", few),
        ("real_maps.cath", f"all {n}, among CATH types"),
        ("real_maps.cath.first4", f"{few}, among CATH types"),
    ):
        for mask in MASKS:
            key = f"{prefix}.{mask}"
            interval = f" ({percent(numbers[f'{key}.top1_low'])}–{percent(numbers[f'{key}.top1_high'])})"
            tops = [percent(numbers[f"{key}.top{k}"]) for k in TOPS]
            rows.append((label, mask, tops[0] + interval, *tops[1:], percent(numbers[f"{key}.top1_macro"])))
        chance = [percent(numbers[f"{prefix}.mask3A.chance_top{k}"]) for k in TOPS]
        rows.append((label, "chance", *chance, chance[0]))
    names = list(dict.fromkeys(record["map"] for record in records))
    missed = [record for record in records if record["rank_mask3A"] > 1]
    return (
        Table(
            f"Chains of {len(names)} experimental maps among {numbers['real_maps.candidates']} candidates",
            ("chains", "mask", "Top-1 (95 %)", "Top-5", "Top-10", "Top-1 per map"),
            tuple(rows),
        ),
        Table(
            "Chains named first, of each map, and what was measured where others are not",
            ("map", "Å", "chains", *MASKS, "reason"),
            tuple(_map_row([record for record in records if record["map"] == name]) for name in names),
        ),
        Table(
            "Chains that are not named first under the 3 Å mask",
            ("map", "chain", "residues", *(f"rank {mask}" for mask in MASKS), "measured"),
            tuple(
                (r["map"], r["chain"], str(r["residues"]), *(str(r[f"rank_{mask}"]) for mask in MASKS), r["reason"])
                for r in missed
            ),
        ),
    )


def _map_row(records: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    right = [str(sum(record[f"rank_{mask}"] == 1 for record in records)) for mask in MASKS]
    resolution = records[0]["resolution"]
    told = []
    for mask in MASKS:
        failed = [record for record in records if record["fails_from"] == mask]
        if failed:
            causes = Counter(cause for record in failed for cause in record["causes"])
            rivals = Counter(record[f"rival_{mask}"] for record in failed).most_common(1)
            parts = [f"{cause} ({count})" if len(failed) > 1 else cause for cause, count in causes.most_common()]
            told.append(f"from {mask} on {len(failed)}: {', '.join([*parts, f'look-alike {rivals[0][0]}'])}")
    return (
        records[0]["map"],
        "?" if resolution is None else f"{resolution:g}",
        str(len(records)),
        *right,
        "; ".join(told) or "–",
    )

"""Whole maps cut up and named: how well the regions cover the domains of a model, and which step is to blame if not."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from cryoscan.benchmark.config import BenchmarkConfig
from cryoscan.benchmark.folders import assembly_path, listed_map, read_tables
from cryoscan.benchmark.result import BenchmarkProgress, BenchmarkResult, Table, decimals, percent
from cryoscan.datedb import DateDB
from cryoscan.embedding import Embedder
from cryoscan.errors import ConfigError
from cryoscan.filters import lowpass_gaussian
from cryoscan.hits import Region
from cryoscan.io import open_volume, parse_ranges, read_structure
from cryoscan.metrics import iou
from cryoscan.segment import GroupingTree, contour_level
from cryoscan.simulate import density
from cryoscan.structure import Domain, Structure
from cryoscan.units import A3_PER_RESIDUE, SIGMA_PER_RESOLUTION, Angstrom
from cryoscan.volume import Volume
from cryoscan.workflows import (
    RESIDUES,
    Identification,
    RegionMask,
    RegionsScored,
    identify,
    identify_map,
)

RADIUS = 3.0
"""Å around a part's atoms within which density is the part's."""

_TOP = 100  # candidates of a region among which the true type is looked for
_MEASURES = ("iou", "share", "purity")
_MOST_VOLUMES = 12  # in a table
_FOUND = 0.5  # intersection over union from which on a part counts as found
_D2 = ((1, 2), (0, 2), (0, 1))  # a half turn about one axis reverses the two others


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a model that a region should cover.

    Parameters
    ----------
    name : str
    kind : {'domain', 'chain'}
    type : str
        CATH type of a domain; empty for a chain.
    atoms : bool array, `n`
        Its atoms in the model.
    """

    name: str
    kind: str
    type: str
    atoms: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Overlaps:
    """How much each node of a grouping tree has in common with each part.

    Parameters
    ----------
    iou : float array, `nodes + 1 parts`
        Intersection over union of the voxels.
    share : float array, `nodes + 1 parts`
        Share of the part's atoms that lie in the node.
    purity : float array, `nodes + 1 parts`
        Share of the node's voxels that are the part's.
    """

    iou: np.ndarray
    share: np.ndarray
    purity: np.ndarray

    def best(self, nodes: Sequence[int] | np.ndarray) -> np.ndarray:
        """The one of `nodes` that overlaps each part best, `parts`; 0, the background, if there are none."""
        nodes = np.asarray(nodes, np.int64)
        if not len(nodes):
            return np.zeros(self.iou.shape[1], np.int64)
        return np.asarray(nodes[self.iou[nodes].argmax(axis=0)])


def run_mode2(
    config: BenchmarkConfig, asked: Path, *, datedb: DateDB, embedder: Embedder
) -> Iterator[BenchmarkProgress | BenchmarkResult]:
    """Cut up and name maps and simulated assemblies with the defaults of `identify_map`; see `run_benchmark`."""
    if not config.maps and not config.assemblies:
        raise ConfigError("expected names of maps", got="none", hint="Name them under `maps:`, e.g. [emd_1234].")
    numbers: dict[str, Any] = {}
    details: list[dict[str, Any]] = []
    notes: list[str] = []
    names = []
    for case in _cases(config, asked, datedb):
        names.append(case.name)
        volume, resolution = case.volume, case.resolution
        for event in identify_map(volume, datedb=case.datedb, embedder=embedder, resolution=resolution, top=_TOP):
            if isinstance(event, RegionsScored):
                yield BenchmarkProgress(f"regions of {case.name}", event.done, event.total)
            else:
                found, records = _judged(case, event, embedder, notes)
                if case.name in config.d2:
                    assert event.labels is not None
                    found["d2_consistency"] = d2_consistency(event.labels.labels())
                numbers |= {f"mode2.{case.name}.{key}": value for key, value in found.items()}
                details += records
    for kind in ("domain", "chain"):
        for key in [f"{label}_{name}" for label in ("kept", "tree") for name in (*_MEASURES, "found")]:
            values = [value for name in names if (value := numbers.get(f"mode2.{name}.{kind}.{key}")) is not None]
            numbers[f"mode2.{kind}.{key}"] = float(np.mean(values)) if values else float("nan")
    numbers["mode2.details"] = details
    yield BenchmarkResult(numbers, _tables(names, numbers, details), tuple(notes))


def parts_of(model: Structure, domains: Mapping[str, str]) -> list[Part]:
    """Domains of every chain of a model, then the chains.

    Parameters
    ----------
    model : Structure
    domains : mapping
        Type → residue ranges without a chain, e.g. ``2-135,411-525``; they hold for every chain.
    """
    found = []
    chains = list(dict.fromkeys(str(chain) for chain in model.chains))
    for chain in chains:
        for type_, ranges in domains.items():
            segments = parse_ranges(",".join(f"{part}:{chain}" for part in ranges.split(",")))
            atoms = model.atoms_of(Domain(f"{chain} {type_}", "CATH", type_, segments))
            found.append(Part(f"{chain} {ranges}", "domain", type_, atoms))
    return found + [Part(chain, "chain", "", model.chains == chain) for chain in chains]


def part_masks(
    volume: Volume, model: Structure, parts: Sequence[Part], *, within: np.ndarray, radius: Angstrom = RADIUS
) -> list[np.ndarray]:
    """Density of each part, `z y x` bool: within `radius` Å of the model, and closest to an atom of the part.

    Parameters
    ----------
    volume : Volume
        Gives the grid.
    within : bool array, `z y x`
        What counts as density.
    """
    voxels = np.argwhere(within)
    distance, atom = cKDTree(model.positions).query(volume.to_position(voxels), distance_upper_bound=radius)
    near = distance <= radius
    voxels, atom = voxels[near], atom[near]
    found = []
    for part in parts:
        mask = np.zeros(volume.shape, bool)
        mask[tuple(voxels[part.atoms[atom]].T)] = True
        found.append(mask)
    return found


def node_overlaps(
    tree: GroupingTree, masks: Sequence[np.ndarray], atom_voxels: np.ndarray, parts: Sequence[Part]
) -> Overlaps:
    """Overlaps of all nodes of a tree with all parts.

    Parameters
    ----------
    tree : GroupingTree
    masks : sequence of bool arrays, `z y x`
        Density of each part.
    atom_voxels : int array, `atoms 3`
        Voxel of each atom of the model; may lie outside the map.
    parts : sequence of Part
    """
    n_leaves = tree.levels.shape[1]
    inside = ((atom_voxels >= 0) & (atom_voxels < np.array(tree.leaves.shape))).all(axis=1)
    atom_leaves = np.zeros(len(atom_voxels), np.int64)
    atom_leaves[inside] = tree.leaves[tuple(atom_voxels[inside].T)]
    voxels = np.stack([np.bincount(tree.leaves[mask], minlength=n_leaves) for mask in masks], axis=1)
    atoms = np.stack([np.bincount(atom_leaves[part.atoms], minlength=n_leaves) for part in parts], axis=1)
    voxels_in, atoms_in = _summed(tree, voxels), _summed(tree, atoms)
    sizes = tree.counts[:, None]
    union = sizes + np.array([int(mask.sum()) for mask in masks]) - voxels_in
    return Overlaps(
        iou=voxels_in / np.maximum(union, 1),
        share=atoms_in / np.array([int(part.atoms.sum()) for part in parts]),
        purity=voxels_in / np.maximum(sizes, 1),
    )


def d2_consistency(labels: np.ndarray) -> float:
    """How well labels repeat under the three half turns of D2 about voxel n // 2 of each axis.

    For each region and half turn, the intersection over union of the turned region with the region it falls onto best;
    the mean over all, weighted by volume.
    """
    found, weights = [], []
    for axes in _D2:
        turned = labels
        for axis in axes:
            turned = np.flip(turned, axis)
            if labels.shape[axis] % 2 == 0:  # then voxel n // 2 is right of the middle
                turned = np.roll(turned, 1, axis)
        for label in np.unique(labels[labels > 0]):
            mask = turned == label
            below = np.bincount(labels[mask])
            below[0] = 0
            found.append(iou(mask, labels == below.argmax()) if below.any() else 0.0)
            weights.append(int(mask.sum()))
    return float(np.average(found, weights=weights)) if found else float("nan")


# ---------------------------------------------------------------- maps, measured and simulated


@dataclass(frozen=True, slots=True, eq=False)
class _Case:
    """A map, what is known of its content, and the database to ask."""

    name: str
    volume: Volume
    resolution: Angstrom | None
    model: Structure | None
    parts: list[Part]
    datedb: DateDB


def _cases(config: BenchmarkConfig, asked: Path, datedb: DateDB) -> Iterator[_Case]:
    for name in config.maps:
        source = listed_map(asked, name)
        model = None if source.model_path is None else read_structure(source.model_path).protein()
        parts = [] if model is None else parts_of(model, config.domains.get(name, {}))
        volume = open_volume(source.map_path, voxel_size=source.voxel_size).loaded()
        yield _Case(name, volume, source.resolution, model, parts, datedb)
    rows = [row for row in read_tables(asked).rows if row.scheme == "CATH"] if config.assemblies else []
    for name in config.assemblies:
        model = read_structure(assembly_path(asked, name)).protein()
        own = [row for row in rows if row.pdb.lower() == name.lower()]
        clusters = {row.clu40 for row in own if row.clu40}
        relatives = [e.id for e in datedb.entries if e.pdb.lower() == name.lower() or e.cluster in clusters]
        parts = [Part(row.id, "domain", row.type, model.atoms_of(row.domain())) for row in own]
        for resolution in config.resolutions_A:
            volume = _simulated(model, resolution, config)
            rest = datedb.without_entries(relatives) if relatives else datedb
            yield _Case(f"{name}_{resolution:g}A", volume, resolution, model, parts + parts_of(model, {}), rest)


def _simulated(model: Structure, resolution: Angstrom, config: BenchmarkConfig) -> Volume:
    """A density with noise of its own resolution, in three voxels per resolution."""
    clean = density(model, voxel_size=resolution / 3, resolution=resolution)
    rng = np.random.default_rng([config.seed, round(1000 * resolution)])
    white = rng.normal(size=clean.shape).astype(np.float32)
    noise = lowpass_gaussian(white, voxel_size=clean.voxel_size, sigma=SIGMA_PER_RESOLUTION * resolution)
    data = clean.load()
    inside = data > contour_level(data)
    data = data + config.noise * data[inside].std() * noise / noise.std()
    return Volume(np.asarray(data, np.float32), clean.voxel_size, clean.origin)


# ---------------------------------------------------------------- one map


def _judged(
    case: _Case, answer: Identification, embedder: Embedder, notes: list[str]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Numbers of one map, and a record of each part of its model."""
    tree, volume = answer.tree, case.volume
    assert tree is not None
    voxel_A3 = volume.voxel_size**3
    volumes = [region.volume_A3 for region in answer.regions]
    numbers: dict[str, Any] = {
        "regions": len(volumes),
        "named": sum(region.verdict == "named" for region in answer.regions),
        "nodes": tree.n_nodes,
        "above_threshold_A3": float(tree.counts[1 : tree.levels.shape[1]].sum() * voxel_A3),
        "kept_A3": float(sum(volumes)),
        "region_volumes_A3": volumes,
    }
    if case.model is None:
        return numbers, []
    model, parts = case.model, case.parts
    masks = part_masks(volume, model, parts, within=tree.leaves > 0)
    empty = [part.name for part, mask in zip(parts, masks, strict=True) if not mask.any()]
    if empty:
        notes.append(f"{case.name}: no density above the threshold at {', '.join(empty)}")
    overlaps = node_overlaps(tree, masks, np.rint(volume.to_index(model.positions)).astype(np.int64), parts)
    numbers["model_A3"] = model.n_residues * A3_PER_RESIDUE
    records = _records(case, overlaps, answer, tree)
    _add_ranks(records, case, masks, overlaps, answer, embedder)
    for kind in dict.fromkeys(part.kind for part in parts):
        chosen = np.array([part.kind == kind for part in parts])
        numbers |= _macro(kind, [r for r in records if r["kind"] == kind], overlaps, chosen, tree)
    return numbers, records


def _records(case: _Case, overlaps: Overlaps, answer: Identification, tree: GroupingTree) -> list[dict[str, Any]]:
    """What covers each part: the best region that was kept, and the best nodes that could have been."""
    every = np.arange(1, tree.n_nodes + 1)
    residues = tree.counts[1:] * case.volume.voxel_size**3 / A3_PER_RESIDUE
    allowed = every[(residues >= RESIDUES[0]) & (residues <= RESIDUES[1])]
    kept, candidate, node = (overlaps.best(nodes) for nodes in (answer.nodes, allowed, every))
    found = []
    for i, part in enumerate(case.parts):
        record: dict[str, Any] = {"map": case.name, "part": part.name, "kind": part.kind, "type": part.type}
        record["region"] = answer.nodes.index(int(kept[i])) + 1 if kept[i] else 0
        for label, best in (("kept", kept[i]), ("candidates", candidate[i]), ("tree", node[i])):
            record |= {f"{label}_{name}": float(getattr(overlaps, name)[best, i]) for name in _MEASURES}
        found.append(record)
    return found


def _add_ranks(
    records: list[dict[str, Any]],
    case: _Case,
    masks: Sequence[np.ndarray],
    overlaps: Overlaps,
    answer: Identification,
    embedder: Embedder,
) -> None:
    """Rank of the true type of a domain: of the best region kept, of the best node of all, and of the true mask."""
    assert answer.tree is not None
    known = {type_ for scheme, type_ in case.datedb.types if scheme == "CATH"}
    best = overlaps.best(np.arange(1, answer.tree.n_nodes + 1))
    for i, (record, part) in enumerate(zip(records, case.parts, strict=True)):
        record["in_datedb"] = part.type in known
        if not record["in_datedb"] or not masks[i].any():
            continue
        own = [RegionMask(1, masks[i]), RegionMask(2, answer.tree.node_mask(int(best[i])))]
        asked = identify(case.volume, own, datedb=case.datedb, embedder=embedder, resolution=case.resolution, top=_TOP)
        if record["region"]:
            record["rank_kept"] = _rank(answer.regions[record["region"] - 1], part.type)
        record |= {"rank_mask": _rank(asked.regions[0], part.type), "rank_tree": _rank(asked.regions[1], part.type)}


def _rank(region: Region, type_: str) -> int:
    """Rank of a CATH type among the candidates of a region; one more than their number if it is not there."""
    found = [candidate.rank for candidate in region.candidates if (candidate.scheme, candidate.type) == ("CATH", type_)]
    return found[0] if found else _TOP + 1


def _summed(tree: GroupingTree, of_leaves: np.ndarray) -> np.ndarray:
    """Values of leaves, `leaves + 1 k`, summed within every node, `nodes + 1 k`."""
    found = np.zeros((tree.n_nodes + 1, of_leaves.shape[1]), np.int64)
    found[1 : len(of_leaves)] = of_leaves[1:]
    for node in range(1, tree.n_nodes + 1):  # children are numbered before their parents
        if tree.parents[node]:
            found[tree.parents[node]] += found[node]
    return found


# ---------------------------------------------------------------- numbers


def _macro(
    kind: str, records: Sequence[Mapping[str, Any]], overlaps: Overlaps, chosen: np.ndarray, tree: GroupingTree
) -> dict[str, Any]:
    """Means over the parts of one kind: of what was kept, of what could have been, and of each level."""
    found: dict[str, Any] = {f"{kind}.n": len(records)}
    for label in ("kept", "candidates", "tree"):
        for measure in _MEASURES:
            found[f"{kind}.{label}_{measure}"] = float(np.mean([record[f"{label}_{measure}"] for record in records]))
        found[f"{kind}.{label}_found"] = float(np.mean([record[f"{label}_iou"] >= _FOUND for record in records]))
    own = replace(overlaps, **{name: getattr(overlaps, name)[:, chosen] for name in _MEASURES})
    columns = np.arange(int(chosen.sum()))
    for level, nodes in enumerate(tree.levels):
        best = own.best(np.unique(nodes[1:]))
        for measure in _MEASURES:
            found[f"{kind}.level{level}_{measure}"] = float(getattr(own, measure)[best, columns].mean())
    ranks = [record for record in records if record.get("in_datedb")]
    found[f"{kind}.in_datedb"] = len(ranks)
    for label in ("kept", "tree", "mask") if ranks else ():
        values = np.array([record.get(f"rank_{label}", _TOP + 1) for record in ranks])
        for k in (1, 10):
            found[f"{kind}.rank_{label}_top{k}"] = float((values <= k).mean())
        found[f"{kind}.rank_{label}_median"] = float(np.median(values))
    return found


def _tables(maps: Sequence[str], numbers: Mapping[str, Any], details: Sequence[Mapping[str, Any]]) -> tuple[Table, ...]:
    sizes, covers, levels = [], [], []
    for name in maps:
        own = {key.removeprefix(f"mode2.{name}."): value for key, value in numbers.items()}
        volumes = [f"{volume / 1000:.0f}" for volume in own["region_volumes_A3"]]
        shown = " ".join(volumes[:_MOST_VOLUMES]) + (" …" if len(volumes) > _MOST_VOLUMES else "")
        modelled = f"{own['model_A3'] / 1000:.1f}" if "model_A3" in own else "–"
        totals = (f"{own['above_threshold_A3'] / 1000:.1f}", f"{own['kept_A3'] / 1000:.1f}", modelled)
        sizes.append((name, str(own["regions"]), *totals, decimals(own.get("d2_consistency", float("nan"))), shown))
        for kind in ("domain", "chain"):
            if f"{kind}.n" not in own:
                continue
            for label in ("kept", "tree"):
                cells = [percent(own[f"{kind}.{label}_{key}"]) for key in (*_MEASURES, "found")]
                covers.append((name, f"{own[f'{kind}.n']} {kind}s", label, *cells))
            count = sum(key.startswith(f"{kind}.level") and key.endswith("_iou") for key in own)
            levels.append(
                (name, f"{kind}s", " ".join(f"{100 * own[f'{kind}.level{i}_iou']:.0f}" for i in range(count)))
            )
    means = ((f"{kind}.{label}", f"all {kind}s", label) for kind in ("domain", "chain") for label in ("kept", "tree"))
    for key, parts, label in means:
        cells = [percent(numbers[f"mode2.{key}_{name}"]) for name in (*_MEASURES, "found")]
        covers.append(("mean over maps", parts, label, *cells))
    kinds = dict.fromkeys((record["map"], record["type"]) for record in details if record["kind"] == "domain")
    return (
        Table(
            "Regions and their volumes, 1000 Å³",
            ("map", "regions", "density", "kept", "model", "D2", "volumes"),
            tuple(sizes),
        ),
        Table(
            "Best region for each part: of those kept, of the whole tree; means in %",
            ("map", "parts", "regions", "IoU", "atoms", "purity", f"IoU ≥ {_FOUND}"),
            tuple(covers),
        ),
        Table("Mean IoU in % at each level of grouping, watershed first", ("map", "parts", "levels"), tuple(levels)),
        Table(
            "Domains: mean IoU in %, median rank of the true type for the region kept, the tree's and the true mask",
            ("map", "type", "n", "IoU kept", "IoU tree", "rank kept", "rank tree", "rank mask"),
            tuple(_type_row([r for r in details if (r["map"], r["type"]) == key]) for key in kinds),
        ),
    )


def _type_row(records: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    ious = [percent(float(np.mean([record[f"{label}_iou"] for record in records]))) for label in ("kept", "tree")]
    ranks = [_median_rank(records, label) for label in ("kept", "tree", "mask")]
    return records[0]["map"], records[0]["type"], str(len(records)), *ious, *ranks


def _median_rank(records: Sequence[Mapping[str, Any]], label: str) -> str:
    if not any(record.get("in_datedb") for record in records):
        return "no entry"
    median = float(np.median([record.get(f"rank_{label}", _TOP + 1) for record in records]))
    return f"> {_TOP}" if median > _TOP else f"{median:g}"

"""Whole maps cut up and named: how well the regions cover the domains of a model, and which step is to blame if not."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from cryoscan.benchmark.config import BenchmarkConfig
from cryoscan.benchmark.folders import ListedMap, listed_map
from cryoscan.benchmark.result import BenchmarkProgress, BenchmarkResult, Table, decimals, percent
from cryoscan.datedb import DateDB
from cryoscan.embedding import Embedder
from cryoscan.errors import ConfigError
from cryoscan.hits import Region
from cryoscan.io import open_volume, parse_ranges, read_structure
from cryoscan.metrics import iou
from cryoscan.segment import GroupingTree
from cryoscan.structure import Domain, Structure
from cryoscan.units import Angstrom
from cryoscan.volume import Volume
from cryoscan.workflows import (
    A3_PER_RESIDUE,
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
    """Cut up and name the maps of `config.maps` with the defaults of `identify_map`; see `run_benchmark`."""
    if not config.maps:
        raise ConfigError("expected names of maps", got="none", hint="Name them under `maps:`, e.g. [emd_1234].")
    numbers: dict[str, Any] = {}
    details: list[dict[str, Any]] = []
    notes: list[str] = []
    for done, name in enumerate(config.maps, start=1):
        source = listed_map(asked, name)
        volume = open_volume(source.map_path, voxel_size=source.voxel_size).loaded()
        events = identify_map(volume, datedb=datedb, embedder=embedder, resolution=source.resolution, top=_TOP)
        for event in events:
            if isinstance(event, RegionsScored):
                yield BenchmarkProgress(f"regions of {name}", event.done, event.total)
            else:
                found, records = _judged(config, source, volume, event, datedb, embedder, notes)
                numbers |= {f"mode2.{name}.{key}": value for key, value in found.items()}
                details += records
        yield BenchmarkProgress("maps", done, len(config.maps))
    numbers["mode2.details"] = details
    yield BenchmarkResult(numbers, _tables(config.maps, numbers, details), tuple(notes))


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


# ---------------------------------------------------------------- one map


def _judged(
    config: BenchmarkConfig,
    source: ListedMap,
    volume: Volume,
    answer: Identification,
    datedb: DateDB,
    embedder: Embedder,
    notes: list[str],
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Numbers of one map, and a record of each part of its model."""
    tree, labels = answer.tree, answer.labels
    assert tree is not None
    assert labels is not None
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
    if source.name in config.d2:
        numbers["d2_consistency"] = d2_consistency(labels.labels())
    if source.model_path is None:
        return numbers, []
    model = read_structure(source.model_path).protein()
    parts = parts_of(model, config.domains.get(source.name, {}))
    masks = part_masks(volume, model, parts, within=tree.leaves > 0)
    empty = [part.name for part, mask in zip(parts, masks, strict=True) if not mask.any()]
    if empty:
        notes.append(f"{source.name}: no density above the threshold at {', '.join(empty)}")
    overlaps = node_overlaps(tree, masks, np.rint(volume.to_index(model.positions)).astype(np.int64), parts)
    numbers["model_A3"] = model.n_residues * A3_PER_RESIDUE
    records = _records(source, parts, overlaps, answer, tree, voxel_A3)
    _add_ranks(records, parts, masks, overlaps, volume, source, answer, datedb, embedder)
    for kind in dict.fromkeys(part.kind for part in parts):
        chosen = np.array([part.kind == kind for part in parts])
        numbers |= _macro(kind, [r for r in records if r["kind"] == kind], overlaps, chosen, tree)
    return numbers, records


def _records(
    source: ListedMap,
    parts: Sequence[Part],
    overlaps: Overlaps,
    answer: Identification,
    tree: GroupingTree,
    voxel_A3: float,
) -> list[dict[str, Any]]:
    """What covers each part: the best region that was kept, and the best nodes that could have been."""
    every = np.arange(1, tree.n_nodes + 1)
    residues = tree.counts * voxel_A3 / A3_PER_RESIDUE
    allowed = every[(residues[1:] >= RESIDUES[0]) & (residues[1:] <= RESIDUES[1])]
    kept, candidate, node = (overlaps.best(nodes) for nodes in (answer.nodes, allowed, every))
    found = []
    for i, part in enumerate(parts):
        record: dict[str, Any] = {"map": source.name, "part": part.name, "kind": part.kind, "type": part.type}
        record["region"] = answer.nodes.index(int(kept[i])) + 1 if kept[i] else 0
        for label, best in (("kept", kept[i]), ("candidates", candidate[i]), ("tree", node[i])):
            for measure in ("iou", "share", "purity"):
                record[f"{label}_{measure}"] = float(getattr(overlaps, measure)[best, i])
        found.append(record)
    return found


def _add_ranks(
    records: list[dict[str, Any]],
    parts: Sequence[Part],
    masks: Sequence[np.ndarray],
    overlaps: Overlaps,
    volume: Volume,
    source: ListedMap,
    answer: Identification,
    datedb: DateDB,
    embedder: Embedder,
) -> None:
    """Rank of the true type of a domain: of the best region kept, of the best node of all, and of the true mask."""
    assert answer.tree is not None
    known = {type_ for scheme, type_ in datedb.types if scheme == "CATH"}
    best = overlaps.best(np.arange(1, answer.tree.n_nodes + 1))
    for i, (record, part) in enumerate(zip(records, parts, strict=True)):
        if part.kind != "domain" or not masks[i].any():
            continue
        record["in_datedb"] = part.type in known
        if not record["in_datedb"]:
            continue
        own = [RegionMask(1, masks[i]), RegionMask(2, answer.tree.node_mask(int(best[i])))]
        whole = identify(volume, own, datedb=datedb, embedder=embedder, resolution=source.resolution, top=_TOP)
        if record["region"]:
            record["rank_kept"] = _rank(answer.regions[record["region"] - 1], part.type)
        record |= {"rank_mask": _rank(whole.regions[0], part.type), "rank_tree": _rank(whole.regions[1], part.type)}


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
        for measure in ("iou", "share", "purity"):
            found[f"{kind}.{label}_{measure}"] = float(np.mean([record[f"{label}_{measure}"] for record in records]))
        found[f"{kind}.{label}_found"] = float(np.mean([record[f"{label}_iou"] >= _FOUND for record in records]))
    own = replace(overlaps, **{name: getattr(overlaps, name)[:, chosen] for name in ("iou", "share", "purity")})
    columns = np.arange(int(chosen.sum()))
    for level, nodes in enumerate(tree.levels):
        best = own.best(np.unique(nodes[1:]))
        for measure in ("iou", "share", "purity"):
            found[f"{kind}.level{level}_{measure}"] = float(getattr(own, measure)[best, columns].mean())
    ranks = [record for record in records if record.get("in_datedb")]
    found[f"{kind}.in_datedb"] = len(ranks)
    for label in ("kept", "tree", "mask"):
        values = np.array([record.get(f"rank_{label}", _TOP + 1) for record in ranks])
        for k in (1, 10):
            found[f"{kind}.rank_{label}_top{k}"] = float((values <= k).mean()) if len(values) else float("nan")
        found[f"{kind}.rank_{label}_median"] = float(np.median(values)) if len(values) else float("nan")
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
                cells = [percent(own[f"{kind}.{label}_{key}"]) for key in ("iou", "share", "purity", "found")]
                covers.append((name, f"{own[f'{kind}.n']} {kind}s", label, *cells))
            count = sum(key.startswith(f"{kind}.level") and key.endswith("_iou") for key in own)
            levels.append(
                (name, f"{kind}s", " ".join(f"{100 * own[f'{kind}.level{i}_iou']:.0f}" for i in range(count)))
            )
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

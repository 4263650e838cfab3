"""Whole maps cut up: overlaps are those of the masks, and a synthetic complex falls into the domains it was made of."""

import json
from dataclasses import fields, replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from cryoscan import Structure, Volume, workflows
from cryoscan.benchmark import BenchmarkConfig, BenchmarkResult, run_benchmark
from cryoscan.benchmark.mode2 import RADIUS, Part, d2_consistency, node_overlaps, part_masks, parts_of
from cryoscan.datedb import DateDB, Entry
from cryoscan.datedb.build import describe_embedder, structure_window
from cryoscan.errors import ConfigError, GeometryError, MissingFileError
from cryoscan.io import write_structure, write_volume
from cryoscan.metrics import iou
from cryoscan.segment import best_disjoint, grouping_step, segment_map
from cryoscan.simulate import density
from cryoscan.testing import ToyEmbedder
from cryoscan.units import A3_PER_RESIDUE
from cryoscan.workflows import Identification, RegionMask, identify, identify_map

EMBEDDER = ToyEmbedder(window=20, voxel_size=3.7)
DOMAINS = {"1.10.8.10": "1-90", "2.40.50.140": "91-170"}
BALL, ROD = (13.0, 13.0, 13.0), (9.0, 9.0, 26.0)  # semi-axes of the two domains, Å
RESOLUTION, VOXEL = 7.0, 2.3
PER_ATOM = [field.name for field in fields(Structure) if field.name not in {"id", "domains"}]


def ellipsoid(axes: tuple[float, float, float], n: int, seed: int) -> np.ndarray:
    """Random places in an ellipsoid, four a residue, `(4 n) 3` in Å."""
    rng = np.random.default_rng(seed)
    places = rng.uniform(-1, 1, size=(40 * n, 3))
    return places[(places**2).sum(axis=1) < 1][: 4 * n] * axes


def chain(name: str, offset: tuple[float, float, float], *, reverse: bool = False) -> Structure:
    """A ball (residues 1-90) and a rod (91-170), 25 Å apart along y."""
    ball = ellipsoid(BALL, 90, seed=1)
    rod = ellipsoid(ROD, 80, seed=2) + np.array([0.0, 25.0, 0.0])
    places = np.concatenate([ball, rod])
    n = 170
    return Structure(
        id="complex",
        positions=(-places if reverse else places) + offset,
        elements=np.tile(np.array([7, 6, 6, 8], np.uint8), n),
        names=np.tile(["N", "CA", "C", "O"], n),
        residue_names=np.full(4 * n, "ALA"),
        residue_numbers=np.repeat(np.arange(1, n + 1), 4),
        insertion_codes=np.full(4 * n, ""),
        chains=np.full(4 * n, name),
        residues=np.repeat(np.arange(n), 4),
        b_factors=np.zeros(4 * n, np.float32),
        nucleic=np.zeros(4 * n, bool),
    )


def together(first: Structure, second: Structure) -> Structure:
    joined = {name: np.concatenate([getattr(first, name), getattr(second, name)]) for name in PER_ATOM}
    joined["residues"][len(first) :] += first.n_residues
    return replace(first, **joined)


@pytest.fixture(scope="module")
def model() -> Structure:
    return together(chain("A", (12.0, -7.0, 31.0)), chain("K", (58.0, 21.0, 40.0), reverse=True))


@pytest.fixture(scope="module")
def volume(model) -> Volume:
    return density(model, voxel_size=VOXEL, resolution=RESOLUTION)


@pytest.fixture(scope="module")
def tree(volume):
    data = volume.load()
    return segment_map(data, threshold=0.3 * float(data.max()), step=grouping_step(VOXEL), steps=6)


@pytest.fixture(scope="module")
def datedb() -> DateDB:
    shapes = {"ball": BALL, "rod": ROD, "needle": (5.0, 5.0, 37.0), "big ball": (21.0, 21.0, 21.0)}
    types = [*DOMAINS, "3.30.70.20", "3.40.50.300"]
    entries = tuple(Entry(name, "CATH", types[i], i, length=90) for i, name in enumerate(shapes))
    windows = []
    for i, axes in enumerate(shapes.values()):
        places = ellipsoid(axes, 90, seed=10 + i)
        atoms = chain("A", (0.0, 0.0, 0.0)).select(np.arange(680) < len(places))
        windows.append(structure_window(replace(atoms, positions=places), EMBEDDER, resolution=RESOLUTION))
    return DateDB(entries, {RESOLUTION: EMBEDDER.embed(np.stack(windows))}, describe_embedder(EMBEDDER))


@pytest.fixture
def folder(tmp_path: Path, model, volume) -> Path:
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps_models").mkdir()
    for name in ("complex", "bare"):
        write_volume(volume, tmp_path / "maps" / f"{name}.mrc")
    write_structure(model, tmp_path / "maps_models" / "complex.pdb")
    records = {name: {"res": RESOLUTION, "vox": VOXEL} for name in ("complex", "bare")}
    (tmp_path / "maps" / "maps.json").write_text(json.dumps(records), encoding="utf-8")
    return tmp_path


# ---------------------------------------------------------------- parts


def test_ranges_hold_in_every_chain_and_domains_make_up_the_chains(model):
    parts = {(part.kind, part.name): part.atoms for part in parts_of(model, DOMAINS)}
    assert list(parts) == [
        *product(["domain"], ["A 1-90", "A 91-170", "K 1-90", "K 91-170"]),
        ("chain", "A"),
        ("chain", "K"),
    ]
    for name in "AK":
        numbers = model.residue_numbers[parts["domain", f"{name} 91-170"]]
        assert (numbers.min(), numbers.max(), len(numbers)) == (91, 170, 320)
        both = parts["domain", f"{name} 1-90"] ^ parts["domain", f"{name} 91-170"]
        assert np.array_equal(both, parts["chain", name])


def test_discontinuous_domains_are_understood_and_missing_residues_refused(model):
    first = parts_of(model, {"1.10.8.10": "2-5,80-81"})[0]
    assert sorted(set(model.residue_numbers[first.atoms])) == [2, 3, 4, 5, 80, 81]
    with pytest.raises(GeometryError, match="author numbering"):
        parts_of(model, {"1.10.8.10": "500-600"})


def test_every_voxel_belongs_to_the_part_of_the_closest_atom(model, volume):
    parts = parts_of(model, DOMAINS)
    within = volume.load() > 0.2 * volume.load().max()
    within[:, : within.shape[1] // 2] = False
    masks = part_masks(volume, model, parts, within=within)
    voxels = np.argwhere(within)[::7]
    distances = np.linalg.norm(volume.to_position(voxels)[:, None] - model.positions[None], axis=2)
    for part, mask in zip(parts, masks, strict=True):
        own = distances[:, part.atoms].min(axis=1)
        expected = (own <= RADIUS) & (own <= distances.min(axis=1))
        assert np.array_equal(mask[tuple(voxels.T)], expected)
        assert not mask[~within].any()
    assert sum(mask.any() for mask in masks) >= 4


# ---------------------------------------------------------------- overlaps


def test_overlaps_of_all_nodes_are_those_of_their_masks(model, volume, tree):
    parts = parts_of(model, DOMAINS)
    masks = part_masks(volume, model, parts, within=tree.leaves > 0)
    voxels = np.rint(volume.to_index(model.positions)).astype(int)
    voxels[5] = -3  # an atom beside the map lies in no region
    voxels[6] = 10**6
    found = node_overlaps(tree, masks, voxels, parts)
    inside = ((voxels >= 0) & (voxels < volume.shape)).all(axis=1)
    for node in range(1, tree.n_nodes + 1):
        own = tree.node_mask(node)
        at_atoms = np.zeros(len(voxels), bool)
        at_atoms[inside] = own[tuple(voxels[inside].T)]
        for i, (part, mask) in enumerate(zip(parts, masks, strict=True)):
            assert found.iou[node, i] == pytest.approx(iou(own, mask))
            assert found.share[node, i] == pytest.approx(at_atoms[part.atoms].mean())
            assert found.purity[node, i] == pytest.approx(mask[own].mean())
    nodes = [2, 1, tree.n_nodes]
    assert [found.iou[node, i] for i, node in enumerate(found.best(nodes))] == pytest.approx(
        found.iou[nodes].max(axis=0)
    )
    assert found.best([]).tolist() == [0] * len(parts)


def test_boxes_of_nodes_are_tight(tree):
    for node, box in enumerate(tree.node_boxes()[1:], start=1):
        mask = tree.node_mask(node)
        assert mask[box].sum() == mask.sum()
        assert [(b.start, b.stop) for b in box] == [(p.min(), p.max() + 1) for p in mask.nonzero()]
        assert np.array_equal(tree.node_mask(node, box), mask[box])


@pytest.mark.parametrize("shape", [(12, 9, 14), (11, 10, 13)])
def test_regions_repeat_where_the_symmetry_is_and_not_where_it_is_broken(shape):
    places = np.moveaxis(np.indices(shape), 0, -1) - np.array([n // 2 for n in shape])
    signs = (places > 0).astype(int)
    labels = 1 + signs @ [4, 2, 1]  # one region per octant
    labels[(np.abs(places) > 4).any(axis=-1) | (places == 0).any(axis=-1)] = 0
    assert d2_consistency(labels) == pytest.approx(1.0)
    assert d2_consistency(np.roll(labels, 1, axis=2)) < 0.9
    labels[places[..., 0] > 2] = 0
    assert d2_consistency(labels) < 0.9


# ---------------------------------------------------------------- the whole journey


def test_a_complex_falls_into_its_domains_and_they_are_named(folder, datedb):
    config = BenchmarkConfig.build(kind="mode2", maps=("complex", "bare"), domains={"complex": DOMAINS}, d2=("bare",))
    *_, result = run_benchmark(config, data=folder, queries=None, datedb=datedb, embedder=EMBEDDER)
    assert isinstance(result, BenchmarkResult)
    found = {key.removeprefix("mode2.complex."): value for key, value in result.numbers.items()}
    assert found["domain.n"] == 4
    assert found["chain.n"] == 2
    assert found["domain.tree_iou"] > 0.9
    assert found["domain.kept_iou"] > 0.9
    assert found["domain.kept_share"] > 0.9
    assert found["domain.kept_purity"] > 0.9
    assert found["domain.rank_mask_top1"] == 1
    assert found["domain.rank_kept_top1"] == 1
    assert found["chain.kept_iou"] < found["chain.tree_iou"]  # the regions kept are the domains
    assert max(found[f"domain.level{level}_iou"] for level in range(13)) <= found["domain.tree_iou"]
    assert found["regions"] == 4
    assert found["kept_A3"] == pytest.approx(sum(found["region_volumes_A3"]))
    assert result.numbers["mode2.bare.regions"] == 4
    assert 0 <= result.numbers["mode2.bare.d2_consistency"] <= 1
    json.dumps(result.to_json())


def test_assemblies_are_simulated_and_their_own_families_struck(folder, model, datedb):
    (folder / "assemblies").mkdir()
    (folder / "labels").mkdir()
    write_structure(model, folder / "assemblies" / "9xyz.pdb")
    columns = ["domain_id", "pdb", "superfamily_or_family", "segments_pdb", "parts", "nres", "clu40", "sequence"]
    rows = [
        [f"9xyz{chain}0{i}", "9xyz", type_, f"{ranges}:{chain}", f"9xyz_{chain}=0:90", "90", f"c{i}", "A" * 90]
        for chain in "AK"
        for i, (type_, ranges) in enumerate(DOMAINS.items())
    ]
    table = "\n".join("\t".join(row) for row in [columns, *rows])
    (folder / "labels" / "cath_domains.tsv").write_text(table + "\n", encoding="utf-8")
    ball = replace(datedb.entries[0], cluster="c0")  # of the family of the assembly's first domains
    known = replace(datedb, entries=(ball, *datedb.entries[1:]))
    config = BenchmarkConfig.build(kind="mode2", assemblies=("9xyz",), resolutions_A=(RESOLUTION,), noise=0.1)
    *_, result = run_benchmark(config, data=folder, queries=None, datedb=known, embedder=EMBEDDER)
    found = {key.removeprefix("mode2.9xyz_7A."): value for key, value in result.numbers.items()}
    assert found["domain.n"] == 4
    assert found["domain.in_datedb"] == 2  # the rods
    assert found["domain.tree_iou"] == result.numbers["mode2.domain.tree_iou"] > 0.8
    ranked = {record["part"] for record in result.numbers["mode2.details"] if "rank_mask" in record}
    assert ranked == {"9xyzA01", "9xyzK01"}


def test_regions_are_the_nodes_that_fit_best_and_are_answered_as_if_given(volume, datedb):
    """Cutting a region's surroundings out first, for speed, must not change the answer."""
    *_, answer = identify_map(volume, datedb=datedb, embedder=EMBEDDER, resolution=RESOLUTION, top=4)
    assert isinstance(answer, Identification)
    masks = [RegionMask(region.id, answer.labels.mask(region.id)) for region in answer.regions]
    again = identify(volume, masks, datedb=datedb, embedder=EMBEDDER, resolution=RESOLUTION, top=4)
    for region, expected, node in zip(answer.regions, again.regions, answer.nodes, strict=True):
        assert [c.entry for c in region.candidates] == [c.entry for c in expected.candidates]
        assert [c.cosine for c in region.candidates] == pytest.approx([c.cosine for c in expected.candidates], abs=1e-4)
        assert np.array_equal(answer.tree.node_mask(node), answer.labels.mask(region.id))
        assert region.volume_A3 == pytest.approx(answer.tree.counts[node] * VOXEL**3)
    scores = {
        node: answer.tree.counts[node] * region.candidates[0].cosine
        for node, region in zip(answer.nodes, answer.regions, strict=True)
    }
    assert sorted(best_disjoint(answer.tree, scores)) == sorted(answer.nodes)


def test_a_whole_that_fits_wins_over_its_many_parts(model, volume, datedb, monkeypatch):
    """Cosines alone would add up to more the smaller the pieces are."""
    monkeypatch.setattr(workflows, "RESIDUES", (5, 600))  # so that pieces of the domains are candidates too
    *_, answer = identify_map(volume, datedb=datedb, embedder=EMBEDDER, resolution=RESOLUTION)
    tree, parts = answer.tree, parts_of(model, DOMAINS)[:4]
    assert (tree.counts[1 : tree.levels.shape[1]] * VOXEL**3 > 5 * A3_PER_RESIDUE).sum() > 8
    masks = part_masks(volume, model, parts, within=tree.leaves > 0)
    found = node_overlaps(tree, masks, np.rint(volume.to_index(model.positions)).astype(int), parts)
    assert found.iou[list(answer.nodes)].max(axis=0).min() > 0.9


def test_fine_and_coarse_voxels_are_grouped_over_the_same_distance():
    assert 12 * grouping_step(1.2) * 1.2 == pytest.approx(12 * grouping_step(2.7) * 2.7)
    assert 12 * grouping_step(10.0) == pytest.approx(4)  # Segger's 4 steps of 1 voxel


def test_missing_names_and_maps_are_told(folder, datedb):
    about = {"data": folder, "queries": None, "datedb": datedb, "embedder": EMBEDDER}
    with pytest.raises(ConfigError, match="maps:"):
        list(run_benchmark(BenchmarkConfig.build(kind="mode2"), **about))
    with pytest.raises(MissingFileError, match="holds maps"):
        list(run_benchmark(BenchmarkConfig.build(kind="mode2", maps=("nope",)), **about))


def test_a_part_without_density_is_noted_and_overlaps_nothing(volume, tree, model):
    atoms = np.zeros(len(model), bool)
    atoms[0] = True
    nothing = np.zeros(volume.shape, bool)
    voxels = np.full((len(model), 3), -1)
    found = node_overlaps(tree, [nothing], voxels, [Part("gone", "domain", "1.1.1.1", atoms)])
    assert not found.iou.any()
    assert not found.share.any()


# ---------------------------------------------------------------- cases


def test_a_domain_is_named_docked_and_drawn(folder, datedb, model, tmp_path):
    structures = tmp_path / "pdb"
    structures.mkdir()
    for entry, numbers in (("ball", (1, 90)), ("rod", (91, 170))):
        kept = (model.chains == "A") & (model.residue_numbers >= numbers[0]) & (model.residue_numbers <= numbers[1])
        write_structure(model.select(kept), structures / f"{entry}.pdb")
    case = {"map": "complex", "chain": "K", "residues": "91-170", "type": "CATH 2.40.50.140"}
    config = BenchmarkConfig.build(kind="cases", cases=[case], pictures=tmp_path / "pictures")
    about = {"data": structures, "queries": folder, "datedb": datedb, "embedder": EMBEDDER}
    *_, result = run_benchmark(config, **about)
    (seen,) = result.numbers["cases.details"]
    assert (seen["rank"], result.numbers["cases.first"]) == (1, 1)
    docked = {record["entry"]: record for record in seen["candidates"]}
    assert docked["rod"]["right"]
    assert not docked["ball"]["right"]
    assert docked["rod"]["cc_box"] > 0.85  # of the other chain: it had to be turned
    assert docked["rod"]["cc_box"] > docked["ball"]["cc_box"] + 0.05
    assert seen["cc_box_deposited"] > 0.9
    assert np.isnan(docked["needle"]["cc_box"])  # its atoms are not at hand
    assert (tmp_path / "pictures" / "cases.png").stat().st_size > 5000
    unknown = BenchmarkConfig.build(kind="cases", cases=[case | {"map": "nope"}])
    with pytest.raises(MissingFileError, match="nope"):
        list(run_benchmark(unknown, **about))

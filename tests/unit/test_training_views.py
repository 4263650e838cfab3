"""Training views: the split leaks nothing, the library loses nothing, views are what their configuration says."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import gemmi
import numpy as np
import pytest
import torch

from cryoscan import Structure
from cryoscan.benchmark import BenchmarkConfig
from cryoscan.datedb.held_out import choose_held_out
from cryoscan.datedb.sources import entry_of_row, rows_of_store
from cryoscan.errors import ConfigError, FormatError, GeometryError, MismatchError, MissingFileError
from cryoscan.io import DomainRow
from cryoscan.train import CONDITIONS, SCENES, Anchor, AtomLibrary, ViewConfig, simulate_views
from cryoscan.train.scenes import anchor_atoms, chain_atoms, random_rotations, touching_atoms
from cryoscan.train.split import held_out_of, split_clusters

ROOT = Path(__file__).resolve().parents[2]
LETTERS = "ACDEFGHIKLMNPQRSTVWY"
NAMES = dict(zip(LETTERS, gemmi.expand_one_letter_sequence(LETTERS, gemmi.ResidueKind.AA), strict=True))


def chain(seed: int, sequence: str | None = None, *, element: int = 6) -> Structure:
    """A compact random walk, four atoms a residue, far from 0; every atom of one element."""
    rng = np.random.default_rng(seed)
    sequence = sequence if sequence is not None else letters(seed)
    n = len(sequence)
    steps = np.cumsum(rng.normal(size=(n, 3)) * 1.2, axis=0)
    places = (steps[:, None] + rng.normal(size=(n, 4, 3))).reshape(-1, 3)
    return Structure(
        id=f"c{seed}",
        positions=places + np.array([407.3, -31.5, 12.25]),
        elements=np.full(4 * n, element, np.uint8),
        names=np.tile(["N", "CA", "C", "O"], n),
        residue_names=np.repeat([NAMES[letter] for letter in sequence], 4),
        residue_numbers=np.repeat(np.arange(n) + 17, 4),
        insertion_codes=np.full(4 * n, ""),
        chains=np.full(4 * n, "Q"),
        residues=np.repeat(np.arange(n), 4),
        b_factors=np.zeros(4 * n, np.float32),
        nucleic=np.zeros(4 * n, bool),
    )


def letters(seed: int, n: int = 60) -> str:
    return "".join(np.random.default_rng(1000 + seed).choice(list(LETTERS), n))


CHAINS = {f"0ab{seed}_Q": chain(seed, letters(seed, 80 + 7 * seed)) for seed in range(5)}
CHAINS |= {"0ab8_Q": chain(8, "A"), "0ab9_Q": chain(9, "AC")}  # one residue; and atoms 1,200 Å from each other:
CHAINS["0ab7_Q"] = replace(chain(7, "ACD"), positions=np.tile([[0.0, 0, 0], [0, 1200, 0]], (6, 1)))
ANCHORS = [
    Anchor("whole", ("CATH:1.10.8.10", "SCOPe:a.5.2.1"), "k0", "0ab0_Q", ((0, 80),), "train"),
    Anchor("middle", ("CATH:2.40.50.140",), "k1", "0ab3_Q", ((20, 70),), "train"),
    Anchor("two pieces", ("CATH:3.40.50.300",), "k2", "0ab3_Q", ((3, 19), (71, 101)), "validation"),
    Anchor("nameless", (), "k3", "0ab4_Q", ((11, 93),), "test"),
]


@pytest.fixture(scope="module")
def library() -> AtomLibrary:
    return AtomLibrary.of_chains(CHAINS.items(), anchors=ANCHORS, neighbours=["0ab1_Q", "0ab2_Q"])


@pytest.fixture
def draws() -> torch.Generator:
    return torch.Generator().manual_seed(11)


# ---------------------------------------------------------------- library


@pytest.mark.parametrize("index", range(len(ANCHORS)), ids=lambda index: ANCHORS[index].id)
def test_an_anchor_has_the_atoms_of_its_residues(library, index):
    anchor, structure = ANCHORS[index], CHAINS[ANCHORS[index].chain]
    inside = np.zeros(len(structure), bool)
    for first, last in anchor.ranges:
        inside |= (structure.residues >= first) & (structure.residues < last)
    atoms, owners = library.atoms_of_anchors(torch.tensor([0, index]))
    found = library.positions(atoms[owners == 1]).numpy()
    expected = structure.positions[inside]
    assert found - found[0] == pytest.approx(expected - expected[0], abs=0.021)
    centre = expected.mean(axis=0)
    assert (found[0] - library.centres_D3[index].numpy()) == pytest.approx(expected[0] - centre, abs=0.03)
    assert library.radii_D[index] == pytest.approx(np.linalg.norm(expected - centre, axis=1).max(), abs=0.03)


def test_a_library_comes_back_from_its_file(library, tmp_path):
    library.save(tmp_path / "atoms.npz")
    again = AtomLibrary.load(tmp_path / "atoms.npz")
    assert again.anchors == library.anchors
    assert again.chains == library.chains
    for name in AtomLibrary.__slots__:
        if isinstance(getattr(library, name), torch.Tensor):
            assert torch.equal(getattr(again, name), getattr(library, name)), name
    assert [path.name for path in tmp_path.iterdir()] == ["atoms.npz"]


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "other"])
def test_what_is_no_library_is_refused(library, tmp_path, damage):
    path = tmp_path / "atoms.npz"
    library.save(path)
    if damage == "other":
        np.savez(path, embeddings=np.zeros(3))
    else:
        whole = path.read_bytes()
        path.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "text": b"atoms"}[damage])
    with pytest.raises(FormatError, match="make it again"):
        AtomLibrary.load(path)


def test_a_missing_library_is_said_to_be_missing(tmp_path):
    with pytest.raises(MissingFileError):
        AtomLibrary.load(tmp_path / "none.npz")


@pytest.mark.parametrize(
    "change", [{"chain": "9xyz_A"}, {"ranges": ((0, 81),)}, {"ranges": ((5, 5),)}], ids=["chain", "beyond", "empty"]
)
def test_anchors_of_other_chains_are_refused(change):
    with pytest.raises(MismatchError):
        AtomLibrary.of_chains(CHAINS.items(), anchors=[replace(ANCHORS[0], **change)], neighbours=[])


def test_a_chain_that_is_too_long_is_refused():
    long = replace(CHAINS["0ab0_Q"], positions=CHAINS["0ab0_Q"].positions * 100)
    with pytest.raises(GeometryError, match="Leave it out"):
        AtomLibrary.of_chains([("long", long)], anchors=[], neighbours=[])


def test_views_need_torch_and_numpy_alone(library, tmp_path):
    code = """
import sys
class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"pydantic", "gemmi", "zarr", "skimage", "faiss", "yaml", "mrcfile", "matplotlib"}:
            raise ImportError(name)
sys.meta_path.insert(0, Refused())
import torch
from cryoscan.train import AtomLibrary, ViewConfig, simulate_views
library = AtomLibrary.load(sys.argv[1])
views = simulate_views(library, torch.tensor([1]), config=ViewConfig(), rng=torch.Generator().manual_seed(1))
assert views.density_BZYX.shape == (1, 32, 32, 32)
try:
    import pydantic
except ImportError:
    sys.exit(0)
sys.exit("nothing was refused")
"""
    file = tmp_path / "atoms.npz"
    library.save(file)
    done = subprocess.run([sys.executable, "-c", code, file], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------- scenes


@pytest.mark.parametrize("fraction", [0.1, 0.3])
def test_what_is_missing_lies_together(library, draws, fraction):
    anchors = torch.tensor([1] * 12 + [2] * 12)
    turns = random_rotations(len(anchors), rng=draws)
    atoms, present = anchor_atoms(library, anchors, turns, missing_B=torch.full((24,), fraction), rng=draws)
    index, _ = library.atoms_of_anchors(anchors)
    kinds = []
    for view in range(24):
        mine = atoms.views == view
        lost = ~present[mine]
        assert lost.float().mean() == pytest.approx(fraction, abs=0.05)
        residues = library.residues_N[index[mine]]
        places = torch.unique(residues, return_inverse=True)[1]  # pieces of a domain follow each other
        gone = torch.unique(places[lost])
        in_one_stretch = bool((torch.diff(gone) == 1).all()) and not set(gone.tolist()) & set(places[~lost].tolist())
        kinds.append(in_one_stretch)
        if not in_one_stretch:
            assert separable(atoms.positions[mine], lost)
    assert 0 < sum(kinds) < 24


def separable(points: torch.Tensor, lost: torch.Tensor) -> bool:
    """Whether a plane parts the points, by the perceptron rule."""
    x = torch.cat([points / points.abs().max(), torch.ones(len(points), 1)], dim=1) * torch.where(lost, 1, -1)[:, None]
    normal = x.mean(dim=0)
    for _ in range(20000):
        wrong = (x @ normal) <= 0
        if not wrong.any():
            return True
        normal = normal + x[wrong].mean(dim=0)
    return False


def test_neighbours_touch_and_hardly_overlap(library, draws):
    anchors = torch.tensor([0, 1, 2, 3] * 8)
    turns = random_rotations(len(anchors), rng=draws)
    scene, _ = anchor_atoms(library, anchors, turns, missing_B=torch.zeros(len(anchors)), rng=draws)
    touching = touching_atoms(library, scene, torch.ones(len(anchors), dtype=torch.int64), reach=200.0, rng=draws)
    for view in range(len(anchors)):
        one, other = scene.positions[scene.views == view], touching.positions[touching.views == view]
        nearest = torch.cdist(other, one).min(dim=1).values
        assert nearest.min() < 6
        assert (nearest < 2.5).float().mean() < 0.1


def test_every_neighbour_is_one_of_the_allowed_chains(draws):
    marked = {key: chain(9, letters(9), element=53 if key == "held out" else 7) for key in ("held out", "a", "b")}
    anchor = Anchor("x", (), "k", "a", ((0, 30),), "train")
    library = AtomLibrary.of_chains(marked.items(), anchors=[anchor], neighbours=["a", "b"])
    scene, _ = anchor_atoms(
        library,
        torch.zeros(40, dtype=torch.int64),
        random_rotations(40, rng=draws),
        missing_B=torch.zeros(40),
        rng=draws,
    )
    found = touching_atoms(library, scene, torch.full((40,), 3), reach=500.0, rng=draws)
    assert set(found.weights.tolist()) == {7.0}
    assert len(found.views) == 40 * 3 * 240


def test_the_rest_of_the_chain_stays_in_its_place(library, draws):
    turn = random_rotations(2, rng=draws)
    anchors = torch.tensor([1, 2])
    scene, _ = anchor_atoms(library, anchors, turn, missing_B=torch.zeros(2), rng=draws)
    rest = chain_atoms(library, anchors, turn)
    for view, anchor in enumerate(anchors.tolist()):
        structure = CHAINS[ANCHORS[anchor].chain]
        both = torch.cat([scene.positions[scene.views == view], rest.positions[rest.views == view]]).numpy()
        assert len(both) == len(structure)
        back = both @ turn[view].numpy()  # the inverse rotation, of rows
        centre = library.centres_D3[anchor].numpy()
        origin = (structure.positions.min(axis=0) + structure.positions.max(axis=0)) / 2
        found, expected = back + centre, structure.positions - origin
        assert np.sort(found, axis=0) == pytest.approx(np.sort(expected, axis=0), abs=0.03)


# ---------------------------------------------------------------- views


@pytest.mark.parametrize("scene", SCENES)
def test_views_are_finite_and_of_unit_strength(library, draws, scene):
    views = simulate_views(library, torch.tensor([0, 1, 2, 3, 3]), config=ViewConfig(scenes={scene: 2.0}), rng=draws)
    for data in (views.density_BZYX, views.clean_BZYX):
        assert data.shape == (5, 32, 32, 32)
        assert data.dtype == torch.float32
        assert (data**2).mean(dim=(1, 2, 3)).sqrt().tolist() == pytest.approx([1.0] * 5, abs=1e-3)
    assert views.scene_B.tolist() == [SCENES.index(scene)] * 5
    assert views.anchors_B.tolist() == [0, 1, 2, 3, 3]


def test_what_is_there_stands_where_the_domain_stands(library, draws):
    config = replace(CONDITIONS["neighbours_no_mask"], neighbours=(0, 0), whole_chain=1.0, shift_A=6.0)
    views = simulate_views(library, torch.tensor([0, 0, 1]), config=config, rng=draws)
    same = torch.nn.functional.cosine_similarity(views.density_BZYX.flatten(1), views.clean_BZYX.flatten(1))
    assert same[:2].tolist() == pytest.approx([1, 1], abs=1e-4)  # the domain is its whole chain
    assert same[2] < 0.99


def test_equal_random_states_give_equal_views(library):
    anchors = torch.arange(4).repeat(5)  # more than are made at a time

    def drawn(seed: int) -> Iterator[torch.Tensor]:
        rng = torch.Generator().manual_seed(seed)
        views = simulate_views(library, anchors, config=ViewConfig(), rng=rng, window=24, voxel_size=2.4)
        return (getattr(views, name) for name in type(views).__slots__)

    assert all(torch.equal(one, other) for one, other in zip(drawn(4), drawn(4), strict=True))
    assert not any(torch.equal(one, other) for one, other in list(zip(drawn(4), drawn(5), strict=True))[:2])


@pytest.mark.parametrize("name", CONDITIONS)
def test_conditions_are_what_they_are_called(library, draws, name):
    views = simulate_views(library, torch.arange(4).repeat(2), config=CONDITIONS[name], rng=draws)
    expected = {"hard": (8, 8), "tomogram": (10, 15), "clean_10A": (10, 10), "clean_4.5-10A": (4.5, 10)}
    low, high = expected.get(name, (6, 6))
    assert low <= views.resolution_B.min() <= views.resolution_B.max() <= high
    crowded = name.startswith("neighbours") or name in ("hard", "tomogram")
    assert views.neighbours_B.tolist() == [2 if crowded else 0] * 8
    missing = {"missing_30": 0.3, "hard": 0.15}.get(name, 0.0)
    assert views.missing_B.tolist() == pytest.approx([missing] * 8, abs=0.05 if missing else 1e-6)
    assert bool(views.snr_B.isinf().all()) == (name not in ("noise", "hard", "tomogram"))
    assert views.shift_B3.abs().max() <= 3
    same = torch.nn.functional.cosine_similarity(views.density_BZYX.flatten(1), views.clean_BZYX.flatten(1))
    assert bool((same > 0.9999).all()) == name.startswith("clean")


def test_masked_views_can_be_centred_on_what_is_visible(library, draws):
    config = replace(CONDITIONS["missing_30"], shift_A=8.0, centred=1.0)
    views = simulate_views(library, torch.arange(4).repeat(6), config=config, rng=draws)
    u = torch.arange(32) - 15.5
    mass = torch.relu(views.density_BZYX - 0.5 * views.density_BZYX.flatten(1).std(dim=1)[:, None, None, None])
    total = mass.sum(dim=(1, 2, 3))
    for axes in ((2, 3), (1, 3), (1, 2)):
        assert (mass.sum(dim=axes) @ u / total).abs().max() < 0.7
    assert views.shift_B3.abs().max() > 2.5  # of the whole domain, a part of which is missing
    clean = views.clean_BZYX
    for axis, axes in enumerate(((2, 3), (1, 3), (1, 2))):
        centre = clean.sum(dim=axes) @ u * 2.5 / clean.sum(dim=(1, 2, 3))
        assert centre.tolist() == pytest.approx(views.shift_B3[:, axis].tolist(), abs=0.5)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"scenes": {"isolatd": 1.0}}, "isolatd"),
        ({"scenes": {"isolated": 0.0}}, "not all zero"),
        ({"incomplete": 1.2}, "incomplete"),
        ({"gamma": (1.4, 0.7)}, "gamma"),
        ({"snr": (-1.0, 2.0)}, "snr"),
    ],
)
def test_impossible_settings_are_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        ViewConfig(**settings)


def test_impossible_requests_are_refused(library, draws):
    config = ViewConfig()
    with pytest.raises(GeometryError, match="smaller voxel size"):
        simulate_views(library, torch.tensor([0]), config=config, rng=draws, voxel_size=2.6)
    with pytest.raises(GeometryError, match="even window"):
        simulate_views(library, torch.tensor([0]), config=config, rng=draws, window=31)
    for anchors in (torch.tensor([4]), torch.tensor([-1]), torch.zeros(0, dtype=torch.int64)):
        with pytest.raises(MismatchError, match="anchors_of"):
            simulate_views(library, anchors, config=config, rng=draws)
    lonely = replace(library, neighbours=library.neighbours[:0])
    with pytest.raises(MismatchError, match="Name neighbours"):
        simulate_views(lonely, torch.tensor([0]), config=config, rng=draws)


# ---------------------------------------------------------------- split


class Chains:
    """A store of chains in memory."""

    def __init__(self, structures: dict[str, Structure]) -> None:
        self._structures = structures

    def keys(self) -> list[str]:
        return list(self._structures)

    def chain(self, key: str) -> Structure:
        return self._structures[key]


def row(pdb: str, type_: str, cluster: str, sequence: str, part: tuple[int, int] | None = None, **rest) -> DomainRow:
    first, last = part or (0, len(sequence))
    scheme = "CATH" if type_[0].isdigit() else "SCOPe"
    values = {"id": f"{scheme}-{pdb}-{first}", "pdb": pdb, "scheme": scheme, "type": type_, "name": "", "ranges": ""}
    values |= {"parts": f"{pdb}_Q={first}:{last}", "n_residues": last - first, "resolution": None, "source": ""}
    values |= {"clu40": cluster, "clu95": cluster, "sequence": sequence[first:last], "file": ""}
    return DomainRow(**(values | rest))


def world() -> tuple[list[DomainRow], Chains]:
    """Twelve types of four unrelated domains each, in chains of their own."""
    rows, structures = [], {}
    for number in range(48):
        pdb, sequence = f"{number:04d}", letters(number)
        rows.append(row(pdb, f"1.10.8.{number // 4}", f"k{number}", sequence))
        structures[f"{pdb}_Q"] = chain(number, sequence)
    return rows, Chains(structures)


def test_splits_share_no_cluster_and_no_chain():
    rows, store = world()
    split = split_clusters(rows, store, validation=5)
    by_split = {name: [a for a in split.anchors if a.split == name] for name in ("train", "validation", "test")}
    assert len(by_split["validation"]) == 5
    assert all(by_split.values())
    held = by_split["validation"] + by_split["test"]
    assert not {a.cluster for a in held} & {a.cluster for a in by_split["train"]}
    assert not {a.chain for a in held} & set(split.neighbours)
    assert {a.chain for a in by_split["train"]} <= set(split.neighbours)
    assert sum(len(part) for part in by_split.values()) == 48
    other = split_clusters(rows, store, validation=5, seed=1)
    assert [a for a in other.anchors if a.split == "test"] == by_split["test"]
    assert [a for a in other.anchors if a.split == "validation"] != by_split["validation"]
    everything = split_clusters(rows, store, hold_out=False)
    assert [a.split for a in everything.anchors] == ["train"] * 48
    assert len(everything.neighbours) == 48


@pytest.mark.parametrize("how", ["cluster", "pdb", "sequence", "scheme", "unlabelled", "beside"])
def test_what_is_close_to_a_held_out_domain_is_not_learned_from(how):
    rows, store = world()
    held = sorted(held_out_of(rows, rows, validation=3, seed=0))
    query = next(row for row in rows if row.id == held[0])
    mutant = "".join(letters(77)[i] if i % 2 else letter for i, letter in enumerate(query.sequence))
    plain = letters(99)
    sequence = {"sequence": mutant, "scheme": mutant, "unlabelled": query.sequence}.get(how, plain)
    if how == "beside":  # a stranger in one chain with a relative
        sequence = plain + query.sequence
    close = row("9abc", "7.7.7.7" if how == "beside" else query.type, "k98", sequence, (0, 60), id="close")
    if how == "cluster":
        close = replace(close, clu40=query.clu40)
    if how == "pdb":
        close = replace(close, pdb=query.pdb.upper())
    store = Chains({key: store.chain(key) for key in store.keys()} | {"9abc_Q": chain(99, sequence)})  # noqa: SIM118
    more = [] if how == "unlabelled" else [close]
    if how == "scheme":  # similar to the same residues under the other scheme's name
        close = replace(close, scheme="SCOPe", type="b.7.7.7")
        more = [close, row(query.pdb, "b.7.7.7", query.clu40, query.sequence)]
    assert close.id not in held_out_of([*rows, *more], rows, validation=3, seed=0)
    split = split_clusters([*rows, *more], store, known=rows, validation=3)
    assert "9abc_Q" not in {anchor.chain for anchor in split.anchors if anchor.split == "train"}
    assert "9abc_Q" not in split.neighbours


def test_a_stranger_is_learned_from():
    rows, store = world()
    more = {"9abc_Q": chain(99, letters(99)), "8abc_Q": chain(98, letters(98))}
    store = Chains({key: store.chain(key) for key in store.keys()} | more)  # noqa: SIM118
    split = split_clusters([*rows, row("9abc", "7.7.7.7", "k99", letters(99))], store, known=rows, validation=3)
    found = {anchor.chain: anchor for anchor in split.anchors}
    assert found["9abc_Q"].types == ("CATH:7.7.7.7",)
    assert found["8abc_Q"] == Anchor("8abc_Q", (), "8abc_Q", "8abc_Q", ((0, 60),), "train")
    assert {"9abc_Q", "8abc_Q"} <= set(split.neighbours)
    away = split_clusters(rows, store, away_from=[letters(98)], validation=3)
    assert "8abc_Q" not in {anchor.chain for anchor in away.anchors}


def test_copies_and_false_types_are_left_out():
    rows, store = world()
    train = next(a for a in split_clusters(rows, store, validation=3).anchors if a.split == "train")
    original = store.chain(train.chain)
    turned = original.moved(rotation=np.array([[0, 1, 0], [-1, 0, 0], [0, 0, 1]]), offset=(5, 6, 7))
    mirrored = replace(original, positions=original.positions * (-1, 1, 1))
    sequence = letters(int(train.chain[:4]))
    names = {"copy_Q": turned, "mirr_Q": mirrored, "zero_Q": chain(61), "late_Q": chain(62)}
    store = Chains({key: store.chain(key) for key in store.keys()} | names)  # noqa: SIM118
    more = [
        row("copy", train.types[0][5:], train.cluster, sequence),
        row("mirr", train.types[0][5:], train.cluster, sequence),
        row("zero", "a.1.1.0", "z", letters(61)),
        row("late", "h.1.1.1", "l", letters(62)),
        row(train.chain[:4], "b.7.7.7", train.cluster, sequence),  # the same residues in the other scheme
    ]
    split = split_clusters([*rows, *more], store, known=rows, validation=3)
    found = {anchor.chain: anchor for anchor in split.anchors}
    assert not {"copy_Q", "zero_Q", "late_Q"} & found.keys()
    assert "mirr_Q" in found  # another shape
    assert found[train.chain].types == (*train.types, "SCOPe:b.7.7.7")


def test_the_test_domains_are_those_that_the_benchmark_asks_for(data_folder):
    rows, _ = rows_of_store(data_folder, ca_only=False)
    known, _ = rows_of_store(data_folder)
    config = BenchmarkConfig.read(ROOT / "configs" / "benchmark" / "cath.yaml")
    expected = set()
    for scheme, types in (("CATH", config.cath_types), ("SCOPe", config.scope_types)):
        chosen = choose_held_out(
            [row for row in rows if row.scheme == scheme],
            map(entry_of_row, known),
            half=config.half,
            residues=config.residues,
            per_type=config.per_type,
            largest_types=types,
            largest=config.n_queries,
        )
        expected |= {row.id for row in chosen}
    held = held_out_of(rows, known, validation=50, seed=3)
    assert {id_ for id_, split in held.items() if split == "test"} == expected
    assert sum(split == "validation" for split in held.values()) == 50

"""Laws of shapes: what turns, blurs and packs a density does the same to its harmonics, and a shape finds itself."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation

from cryoscan.datedb import DateDB, Entry, open_datedb
from cryoscan.datedb.build import closer_look, describe_embedder, embedder_for, with_strangers_reach
from cryoscan.embedding import unit_rows
from cryoscan.errors import FormatError, MismatchError
from cryoscan.models import InvariantEmbedder, ShapeEmbedder
from cryoscan.models.comparison import Comparison, ComparisonConfig
from cryoscan.models.harmonics import DEGREES, blur_matrices, harmonics, rotation_table
from cryoscan.models.matching import Matcher, strangers_reach
from cryoscan.models.refinement import _shift_derivatives, refine
from cryoscan.models.secondary import shipped_secondary
from cryoscan.models.shape import Shapes, envelope, in_company

EDGE = 32
N = 12


def density(points: np.ndarray, width: float = 1.6) -> np.ndarray:
    """Gaussians at points, in voxels from the middle of a window."""
    axis = np.arange(EDGE) - (EDGE - 1) / 2
    parts = [np.exp(-((axis[None] - points[:, i : i + 1]) ** 2) / (2 * width**2)) for i in range(3)]
    return np.einsum("nz,ny,nx->zyx", *parts).astype(np.float32)


def molecule(seed: int, residues: int = 26) -> np.ndarray:
    """A compact random chain without symmetry, its mean in the middle."""
    rng = np.random.default_rng(seed)
    points = [np.zeros(3)]
    while len(points) < residues:
        step = rng.normal(size=3)
        place = points[-1] + 2.4 * step / np.linalg.norm(step) - 0.08 * points[-1]
        if min(np.linalg.norm(place - point) for point in points) > 1.5:
            points.append(place)
    return np.array(points) - np.mean(points, axis=0)


MOLECULES = [molecule(seed, residues) for seed, residues in enumerate(np.linspace(16, 40, N).astype(int))]


@pytest.fixture(scope="module")
def shapes() -> Shapes:
    return Shapes.of_windows(np.stack([density(points) for points in MOLECULES]))


def entries(n: int = N) -> tuple[Entry, ...]:
    return tuple(Entry(f"m{i}", "CATH", f"1.10.8.{i + 1}", i) for i in range(n))


@pytest.fixture(scope="module")
def db(shapes: Shapes) -> DateDB:
    embedder = InvariantEmbedder(contour=0.0)
    windows = np.stack([density(points) for points in MOLECULES])
    bank = embedder.embed(windows)
    return DateDB(entries(), {6.0: bank, 10.0: bank}, describe_embedder(embedder), shapes=shapes)


# ---------------------------------------------------------------- harmonics


def test_turning_a_density_multiplies_the_harmonics_of_each_degree_by_a_matrix() -> None:
    points = molecule(3)
    about_z = Rotation.from_rotvec([[0.0, 0, 0], [0.7, 0, 0]]).as_matrix()  # z y x
    upside_down = np.diag([-1.0, 1, -1]) @ about_z
    turns = np.concatenate([Rotation.random(5, random_state=2).as_matrix(), about_z, upside_down])
    before = harmonics().expand(torch.from_numpy(density(points)[None]))[0].numpy()
    for turn, row in zip(turns, rotation_table(turns, DEGREES), strict=True):
        after = harmonics().expand(torch.from_numpy(density(points @ turn.T)[None]))[0].numpy()
        start = 0
        for l in range(DEGREES):
            m = slice(l * l, (l + 1) ** 2)
            matrix = row[start : start + (2 * l + 1) ** 2].reshape(2 * l + 1, -1)
            start += matrix.size
            assert matrix @ matrix.T == pytest.approx(np.eye(2 * l + 1), abs=1e-4)
            error = np.linalg.norm(matrix @ before[m] - after[m])
            assert error < 0.03 * np.linalg.norm(after), l


def test_a_density_comes_back_from_its_harmonics_and_they_from_it() -> None:
    x = torch.from_numpy(density(molecule(4))[None])
    c = harmonics().expand(x)
    back = harmonics().synthesise(c)
    assert np.corrcoef(back.numpy().ravel(), x.numpy().ravel())[0, 1] > 0.98
    assert harmonics().expand(back).numpy() == pytest.approx(c.numpy(), abs=5e-3 * float(c.abs().max()))


def test_blurring_changes_harmonics_as_it_changes_the_density(shapes: Shapes) -> None:
    sigma = 0.7
    windows = np.stack([ndimage.gaussian_filter(density(points), sigma, mode="constant") for points in MOLECULES])
    expected = unit_rows(harmonics().expand(torch.from_numpy(windows)).flatten(1).numpy())
    assert (shapes.densities(sigma) * expected).sum(axis=1).min() > 0.998
    assert blur_matrices(sigma).shape == (DEGREES, 12, 12)
    assert (shapes.densities(0.0) * expected).sum(axis=1).max() < 0.999  # it does make a difference


def test_an_envelope_keeps_its_volume_in_bytes(shapes: Shapes) -> None:
    ones = harmonics().expand(torch.ones(1, EDGE, EDGE, EDGE)).flatten().numpy()
    axis = np.arange(EDGE) - (EDGE - 1) / 2
    ball = np.sqrt(axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2) < 16
    expected = [float(envelope(torch.from_numpy(density(points)[None]))[0].numpy()[ball].sum()) for points in MOLECULES]
    assert shapes.envelopes(0.0) @ ones == pytest.approx(expected, rel=0.05)


# ---------------------------------------------------------------- matching


@pytest.mark.parametrize("seed", range(4))
def test_a_turned_and_shifted_shape_finds_itself(shapes: Shapes, seed: int) -> None:
    rng = np.random.default_rng(seed)
    matcher = Matcher(shapes.densities(0.0), shapes.envelopes(0.0))
    turns = Rotation.random(N, random_state=seed).as_matrix()
    moved = [p @ turn.T + rng.uniform(-0.7, 0.7, 3) for p, turn in zip(MOLECULES, turns, strict=True)]
    queries = ShapeEmbedder(contour=0.0).embed(np.stack([density(points) for points in moved]))
    found = matcher.similarities(queries)
    assert found.argmax(axis=1).tolist() == list(range(N))
    assert np.diag(found).min() > 0.97
    assert found.max() <= 1 + 1e-5
    assert np.diag(queries @ shapes.densities(0.0).T).mean() < 0.8  # as they lie they are not alike


@pytest.mark.parametrize("angle", [5.0, 14.0])
def test_refining_finds_the_rotation_and_the_shift(angle: float) -> None:
    rng = np.random.default_rng(int(angle))
    turns = Rotation.random(N, random_state=3)
    axes = rng.normal(size=(N, 3))
    errors = Rotation.from_rotvec(np.radians(angle) * axes / np.linalg.norm(axes, axis=1, keepdims=True))
    shifts = 0.45 * np.array([(-1) ** np.arange(N), np.ones(N), np.arange(N) % 3 - 1]).T
    wrong = [density(p @ turn.T) for p, turn in zip(MOLECULES, (errors * turns).as_matrix(), strict=True)]
    t_NHK = harmonics().expand(torch.from_numpy(np.stack(wrong)))
    t_NHK = t_NHK / t_NHK.flatten(1).norm(dim=1)[:, None, None]
    for i, (points, turn, shift) in enumerate(zip(MOLECULES, turns.as_matrix(), shifts, strict=True)):
        q_SHK = harmonics().expand(torch.from_numpy(density(points @ turn.T + shift)[None]))
        q_SHK = q_SHK / q_SHK.norm()
        before = float((q_SHK * t_NHK[i]).sum())
        near = [t_NHK[i : i + 1, l * l : (l + 1) ** 2].permute(1, 2, 0) for l in range(DEGREES)]
        found = float(refine(q_SHK, near, torch.zeros(1, dtype=torch.int64)))
        assert 0.98 < found <= 1.0 + 1e-5
        assert before < found - 0.01


def test_derivatives_along_shifts_are_those_of_shifted_densities() -> None:
    first, second = _shift_derivatives("cpu")
    h, pairs = 0.25, ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))

    def moved(*shift: float) -> np.ndarray:
        return harmonics().expand(torch.from_numpy(density(MOLECULES[7] + shift)[None])).flatten().numpy()

    middle = harmonics().synthesise(torch.from_numpy(moved(0, 0, 0)).reshape(1, DEGREES**2, -1))
    x = harmonics().expand(middle).flatten().numpy()
    for axis, step in enumerate(h * np.eye(3)):
        expected = (moved(*step) - moved(*-step)) / (2 * h)
        assert np.corrcoef(first[axis].numpy() @ x, expected)[0, 1] > 0.97, axis
    for (i, j), matrix in zip(pairs, second, strict=True):
        a, b = h * np.eye(3)[i], h * np.eye(3)[j]
        expected = (moved(*(a + b)) - moved(*(a - b)) - moved(*(b - a)) + moved(*(-a - b))) / (4 * h**2)
        assert np.corrcoef(matrix.numpy() @ x, expected)[0, 1] > 0.93, (i, j)


def test_few_that_are_compared_finely_come_before_all_others(shapes: Shapes) -> None:
    matcher = Matcher(shapes.densities(0.0), shapes.envelopes(0.0))
    queries = shapes.densities(0.0)
    few, every = matcher.similarities(queries, kept=3), matcher.similarities(queries, kept=N)
    assert few.argmax(axis=1).tolist() == list(range(N))
    for one, all_ in zip(few, every, strict=True):
        best = np.argsort(-one, kind="stable")[:3]
        assert one[best] == pytest.approx(all_[best], abs=1e-5)
        assert np.delete(one, best).max() <= one[best].min() + 1e-6


def test_what_is_incomplete_is_found_about_the_middle_of_the_whole(db: DateDB) -> None:
    by_shape = db.by_shape
    assert by_shape is not None
    turns = Rotation.random(N, random_state=7).as_matrix()
    windows = np.stack([density(p[: -len(p) // 4] @ turn.T) for p, turn in zip(MOLECULES, turns, strict=True)])
    vectors = ShapeEmbedder(contour=0.0).embed(windows)
    right = [by_shape.search(vector[None], top=1)[0][0].entry == f"m{i}" for i, vector in enumerate(vectors)]
    before = [
        db.search(vector[None], top=1)[0][0].entry == f"m{i}"
        for i, vector in enumerate(InvariantEmbedder(contour=0.0).embed(windows))
    ]
    assert np.mean(right) >= 0.4  # in any orientation; chains of points without folds are all alike
    assert np.mean(right) > np.mean(before) + 0.3


def test_what_has_neighbours_is_found_within_its_envelope(db: DateDB) -> None:
    by_shape = db.by_shape
    assert by_shape is not None
    found, alone = [], []
    for i, points in enumerate(MOLECULES):
        rng = np.random.default_rng(i)
        turn = Rotation.random(random_state=rng).as_matrix()
        reach = np.linalg.norm(points, axis=1).max()
        others = []
        for side in (np.array([1, 0, 0]), np.array([-0.3, 1, 0])):
            other = MOLECULES[rng.integers(N)] @ Rotation.random(random_state=rng).as_matrix().T
            others.append(other + side / np.linalg.norm(side) * (reach + np.linalg.norm(other, axis=1).max() - 1))
        window = density(np.concatenate([points @ turn.T, *others]))
        views = ShapeEmbedder(contour=0.0).embed(window[None])
        found.append(int(by_shape.seen(views, crowded=True).argmax()) == i)
        alone.append(int(db.similarities(InvariantEmbedder(contour=0.0).embed(window[None])).argmax()) == i)
    assert np.mean(found) >= 0.5
    assert np.mean(found) > np.mean(alone) + 0.2


def test_an_empty_window_is_like_nothing(db: DateDB) -> None:
    by_shape = db.by_shape
    assert by_shape is not None
    vectors = ShapeEmbedder().embed(np.zeros((2, EDGE, EDGE, EDGE), np.float32))
    assert not vectors.any()
    assert not by_shape.similarities(vectors).any()
    assert not by_shape.seen(vectors, crowded=True).any()
    assert by_shape.similarities(np.zeros((0, 972), np.float32)).shape == (0, N)


def test_assign_and_search_agree(db: DateDB) -> None:
    by_shape = db.by_shape
    assert by_shape is not None
    vectors = by_shape.banks[6.0][[4, 9]]
    assigned = by_shape.assign(vectors, top=3, resolution=6.0)
    for row, vector in enumerate(vectors):
        found = by_shape.search(vector[None], top=3, resolution=6.0)[0]
        assert [by_shape.types[t][1] for t in assigned.types[row]] == [c.type for c in found]
        assert assigned.scores[row] == pytest.approx([c.cosine for c in found], abs=1e-5)
        assert by_shape.entries[assigned.entries[row]].id == found[0].entry


def test_dense_is_windowed() -> None:
    block = np.random.default_rng(0).normal(size=(34, 32, 36)).astype(np.float32)
    embedder = ShapeEmbedder()
    dense = embedder.embed_dense(block, stride=2)
    assert dense.shape == (2, 1, 3, 972)
    one = embedder.embed(np.ascontiguousarray(block[2:34, :, 4:36])[None])[0]
    assert dense[1, 0, 2] == pytest.approx(one, abs=1e-6)


# ---------------------------------------------------------------- two layers


def two_layered(points: np.ndarray, marked: np.ndarray) -> np.ndarray:
    """Harmonics of a density, and of its points that are marked less the others."""
    layers = torch.from_numpy(np.stack([density(points), density(points[marked]) - density(points[~marked])]))
    return harmonics().expand(layers).flatten().numpy()


def test_an_empty_second_layer_changes_nothing(shapes: Shapes) -> None:
    one = shapes.densities(0.0)
    two = np.concatenate([one, np.zeros_like(one)], axis=1)
    envelopes, equal = shapes.envelopes(0.0), Comparison(ComparisonConfig())
    both, single = Matcher(two, envelopes, comparison=equal), Matcher(one, envelopes)
    assert both.similarities(two[:3]) == pytest.approx(single.similarities(one[:3]), abs=1e-5)
    for seen, alone in zip(both.seen(two[:2]), single.seen(one[:2]), strict=True):
        assert seen.crowded == pytest.approx(alone.crowded, abs=1e-4)


def test_the_second_layer_turns_along_and_tells_equal_densities_apart(shapes: Shapes) -> None:
    points, turn = MOLECULES[9], Rotation.random(random_state=8).as_matrix()
    marks = [np.random.default_rng(seed).permutation(len(points)) < len(points) // 2 for seed in range(N)]
    entries_ = np.stack([two_layered(points, marked) for marked in marks])
    matcher = Matcher(entries_, np.repeat(shapes.envelopes(0.0)[9:10], N, axis=0))
    moved = points @ turn.T + np.array([0.4, -0.7, 0.2])
    found = matcher.similarities(np.stack([two_layered(moved, marked) for marked in marks]))
    assert (found.argmax(axis=1) == np.arange(N)).all()
    assert found.diagonal().min() > 0.97


def test_a_weak_second_layer_counts_less_on_both_sides(shapes: Shapes) -> None:
    one, envelopes, equal = shapes.densities(0.0), shapes.envelopes(0.0), Comparison(ComparisonConfig())
    two = np.concatenate([one, np.roll(one, 1, axis=0)], axis=1)
    wrong = np.concatenate([one, np.roll(one, 5, axis=0)], axis=1)  # as what a map does not resolve is seen
    gone = Matcher(two, envelopes, comparison=equal, second=0.0)
    assert gone.similarities(wrong[:3]) == pytest.approx(Matcher(one, envelopes).similarities(one[:3]), abs=1e-5)
    half = Matcher(two, envelopes, comparison=equal, second=0.5).similarities(wrong[:3])
    by_hand = [np.concatenate([x[:, :972], 0.5 * x[:, 972:]], axis=1) for x in (two, wrong)]
    assert half == pytest.approx(
        Matcher(by_hand[0], envelopes, comparison=equal).similarities(by_hand[1][:3]), abs=1e-5
    )
    whole = Matcher(two, envelopes, comparison=equal).similarities(wrong[:3])
    assert (gone.similarities(wrong[:3]).diagonal() > half.diagonal()).all()
    assert (half.diagonal() > whole.diagonal()).all()


def test_wholes_are_compared_without_envelopes(shapes: Shapes) -> None:
    one = shapes.densities(0.0)
    for layers in (one, np.concatenate([one, one[::-1]], axis=1)):
        found = Matcher(layers).similarities(layers[:2])
        assert np.diag(found) == pytest.approx(1, abs=0.01)
        assert (found.argmax(axis=1) == [0, 1]).all()


def test_shapes_of_two_layers_are_kept_and_asked_with_the_network_that_saw_them(tmp_path: Path) -> None:
    windows = np.stack([density(points) for points in MOLECULES])
    embedder = InvariantEmbedder(contour=0.0)
    bank = embedder.embed(windows)
    blunt = np.stack([ndimage.gaussian_filter(window, 0.72, mode="constant") for window in windows])
    layered = Shapes.of_windows(windows, shipped_secondary(), coarser=[blunt])
    db = DateDB(entries(), {10.0: bank, 6.0: bank}, describe_embedder(embedder), shapes=layered)
    back = db.write(tmp_path / "a.datedb")
    assert back.shapes is not None
    assert np.array_equal(back.shapes.signed, layered.signed)
    by_shape, shape_embedder = closer_look(back, embedder, contour=0.0)
    assert shape_embedder.dim == by_shape.banks[10.0].shape[1] == 1944
    found = by_shape.similarities(shape_embedder.embed(windows[:4]), resolution=6.0)
    assert (found.argmax(axis=1) == np.arange(4)).all()
    assert found.max(axis=1).min() > 0.98
    # the second layer of the coarser bank is what the network sees there, not what it sees in the sharp density
    seen = shape_embedder.embed(blunt)
    swapped = replace(layered, signed=layered.signed[::-1]).densities(db.bank_blur(10.0), bank=1)
    apart = 1 - (seen * by_shape.banks[10.0]).sum(axis=1)
    assert apart.max() < 0.004
    assert apart.mean() < 0.5 * (1 - (seen * swapped).sum(axis=1)).mean()
    with pytest.raises(FormatError, match="each of 2 banks"):
        replace(db, shapes=replace(layered, signed=layered.signed[:1]))
    other = replace(back, embedder={**back.embedder, "secondary": "of another version"})
    with pytest.raises(MismatchError, match="datedb build"):
        closer_look(other, embedder)
    one = Shapes.of_windows(windows[:1])
    assert Shapes.joined([layered, one]).layers == 1  # what one does not have, nobody is asked for


# ---------------------------------------------------------------- in a database


def test_shapes_are_kept_on_disk_and_through_changes(db: DateDB, tmp_path: Path) -> None:
    back = db.write(tmp_path / "a.datedb")
    assert back.shapes is not None
    assert db.shapes is not None
    for name in Shapes.__slots__:
        assert np.array_equal(getattr(back.shapes, name), getattr(db.shapes, name))
    fewer = back.without_entries(["m0", "m5"])
    assert fewer.by_shape is not None
    assert fewer.by_shape.search(fewer.by_shape.banks[6.0][3:4], top=1)[0][0].entry == "m4"
    more = fewer.with_entries(
        [Entry("new", "mine", "a", 0)], {k: b[:1] for k, b in db.banks.items()}, shapes=db.shapes.take([0])
    )
    assert more.by_shape is not None
    assert more.by_shape.search(db.shapes.densities(0.0)[:1], top=1)[0][0].entry == "new"
    blind = fewer.with_entries([Entry("new", "mine", "a", 0)], {k: b[:1] for k, b in db.banks.items()})
    assert blind.by_shape is None  # an entry without a shape would never be found by it
    assert back.fingerprint != replace(back, shapes=None).fingerprint


def test_shapes_answer_beyond_the_coarsest_bank_as_far_as_they_are_calibrated(db: DateDB) -> None:
    fit = (0.0, -1.0, 1.0)
    known = replace(db, calibration={15.0: fit, 20.0: fit}, shape_calibration={10.0: fit, 15.0: fit, 20.0: fit})
    by_shape, embedder = closer_look(known, embedder_for(known, contour=0.0), contour=0.0)
    assert by_shape.levels == (6.0, 10.0, 15.0, 20.0)
    asked = (None, 4.0, 6.2, 9.0, 11.0, 15.2, 17.0, 33.0)
    assert [by_shape.bank_for(resolution) for resolution in asked] == [6.0, 6.0, 6.0, 10.0, 15.0, 15.0, 20.0, 20.0]
    assert known.levels == (6.0, 10.0)  # vectors that cannot be turned have nothing to be compared with there
    first, _ = by_shape.search(by_shape.banks[10.0][:1], top=2, resolution=15.0)[0]
    assert by_shape.confidence(first, 0.1, bank=15.0) is not None
    uncalibrated = closer_look(db, embedder_for(db))[0]
    assert uncalibrated.levels == (6.0, 10.0)
    blunt = [ndimage.gaussian_filter(density(points), 1.2, mode="constant") for points in MOLECULES]
    found = by_shape.similarities(embedder.embed(np.stack(blunt)), resolution=15.0)
    assert (found.argmax(axis=1) == np.arange(N)).all()


def test_damaged_shapes_are_refused(db: DateDB, tmp_path: Path) -> None:
    path = tmp_path / "a.datedb"
    db.write(path)
    file = path / "shapes.npz"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FormatError, match="sound DateDB"):
        open_datedb(path)
    assert db.shapes is not None
    np.savez(file, density=-db.shapes.density.T, envelope=db.shapes.envelope.T, scale=db.shapes.scale)
    with pytest.raises(FormatError, match="shapes that match the manifest"):
        open_datedb(path)


def test_the_closer_look_names_by_shape(db: DateDB) -> None:
    by_shape, embedder = closer_look(db, embedder_for(db))
    assert isinstance(embedder, ShapeEmbedder)
    by_shape.require(embedder)
    without = replace(db, shapes=None)
    assert closer_look(without, embedder_for(db))[0] is without


# ---------------------------------------------------------------- what fits everything


def test_what_strangers_reach_is_the_mean_of_their_best_tenth() -> None:
    rng = np.random.default_rng(2)
    similarity = rng.uniform(-0.2, 0.95, (40, 3))
    related = np.zeros((40, 3), bool)
    related[:11, 1] = True
    related[:, 2] = True
    found = strangers_reach(similarity, related)
    surprise = -np.log1p(-(np.clip(similarity, 0, 1) ** 2))
    assert found[0] == pytest.approx(np.sort(surprise[:, 0])[-4:].mean())
    assert found[1] == pytest.approx(np.sort(surprise[11:, 1])[-3:].mean())  # a tenth of 29
    assert np.isnan(found[2])


def test_who_fits_everything_gets_less_for_it(shapes: Shapes) -> None:
    vectors = shapes.densities(0.0)
    plain = Matcher(vectors)
    raw = plain.similarities(vectors[:3])
    nothing = np.full((2, N), np.nan, np.float16)
    assert np.array_equal(raw, Matcher(vectors, usual=nothing).similarities(vectors[:3]))
    usual = np.stack([np.linspace(0.2, 1.0, N), np.linspace(1.0, 0.2, N)]).astype(np.float32)
    usual[:, 5] = np.nan  # nobody has measured it: as usual as the others
    found = Matcher(vectors, usual=usual).similarities(vectors[:3])
    known = usual[0] - np.nanmean(usual[0])  # nothing is near the border of these
    assert (found[:, known > 0.01] < raw[:, known > 0.01]).all()
    assert (found[:, known < -0.01] > raw[:, known < -0.01])[:, 1:].all()
    assert found[:, 5] == pytest.approx(raw[:, 5], abs=1e-5)
    assert np.abs(found).max() <= 1
    assert (found.argmax(axis=1) == np.arange(3)).all()  # what is surely found stays found


def test_a_view_that_nothing_was_cut_out_of_is_judged_by_strangers_in_company(shapes: Shapes) -> None:
    vectors = shapes.densities(0.0)
    alone, company = np.full(N, 0.5), np.full(N, 0.5)
    alone[0], company[0] = 1.5, 0.1  # fits whatever was cut out, and hardly anything else
    matcher = Matcher(vectors, usual=np.stack([alone, company]).astype(np.float32))
    crowd = in_company(vectors[1:2].repeat(6, axis=0), shapes.envelopes(0.0)[1:2].repeat(6, axis=0), others=4)
    for query, sign in ((vectors[1:2], -1), (crowd[:1], 1)):
        change = matcher.similarities(query) - Matcher(vectors).similarities(query)
        assert np.sign(change[0, 0]) == sign


def test_company_touches_and_covers_nothing(shapes: Shapes) -> None:
    vectors, envelopes = shapes.densities(0.0), shapes.envelopes(0.0)
    crowded = in_company(vectors, envelopes)
    assert np.array_equal(crowded, in_company(vectors, envelopes))  # no chance in it
    assert np.linalg.norm(crowded, axis=1) == pytest.approx(1, abs=1e-5)
    before, after = (harmonics().synthesise(torch.from_numpy(v).reshape(-1, 81, 12)) for v in (vectors, crowded))
    middle = harmonics().synthesise(torch.from_numpy(envelopes).reshape(-1, 81, 12)) > 0.5
    beside = ~middle & (harmonics().synthesise(torch.ones(1, 81, 12)) != 0)
    for was, now, inside, outside in zip(before, after, middle, beside, strict=True):
        kept = np.corrcoef(was[inside], now[inside])[0, 1]
        assert kept > 0.95
        assert now[outside].clamp_min(0).sum() > 3 * was[outside].clamp_min(0).sum()


def test_a_database_measures_what_strangers_reach_of_entries_that_lack_it(tmp_path: Path) -> None:
    count = 54
    molecules = [molecule(100 + seed, 12 + seed % 9) for seed in range(count + 1)]
    windows = np.stack([density(points) for points in molecules])
    vectors, shapes = InvariantEmbedder(contour=0.0).embed(windows), Shapes.of_windows(windows)
    everyone = tuple(Entry(f"m{i}", "CATH", f"1.10.8.{i + 1}", i, pdb=f"p{i}") for i in range(count + 1))
    about = describe_embedder(InvariantEmbedder(contour=0.0)) | {"secondary": None}
    bare = DateDB(everyone[:-1], {6.0: vectors[:-1]}, about, shapes=shapes.take(np.arange(count)))
    with pytest.raises(FormatError, match="alone and in company"):
        replace(bare, shapes=replace(shapes.take(np.arange(count)), usual=np.ones((1, count), np.float32)))
    few = replace(bare, entries=everyone[:40])
    assert with_strangers_reach(few) is few  # forty types do not say what is usual
    db = with_strangers_reach(bare)
    assert db.shapes is not None
    assert db.shapes.usual.shape == (1, 2, count)
    added = db.with_entries([replace(everyone[-1], row=0)], {6.0: vectors[-1:]}, shapes=shapes.take(np.array([count])))
    assert added.shapes is not None
    assert np.isnan(added.shapes.usual).any(axis=(0, 1)).tolist() == [False] * count + [True]
    whole = with_strangers_reach(added).write(tmp_path / "a.datedb")
    assert whole.shapes is not None
    assert np.array_equal(whole.shapes.usual[..., :-1], db.shapes.usual)  # what is known stays
    assert whole.by_shape is not None
    assert added.by_shape is not None
    query = shapes.densities(0.0)[:1]
    before, after = (d.by_shape.similarities(query)[0, count] for d in (added, whole))  # type: ignore[union-attr]
    usual = whole.shapes.usual[0, 0].astype(np.float32)
    for row in (3, 41):  # what is added to others is measured in a quicker way, which finds nearly the same
        lacks = db.shapes.usual.copy()
        lacks[..., row] = np.nan
        again = with_strangers_reach(replace(bare, shapes=replace(db.shapes, usual=lacks)))
        assert again.shapes is not None
        assert again.shapes.usual[0, :, row] == pytest.approx(db.shapes.usual[0, :, row], abs=0.05)
    excess = usual[count] - usual.mean()
    assert abs(excess) > 0.02
    assert (after < before) == (excess > 0)

"""Values, their geometry and their errors."""

import copy
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import numpy as np
import pytest
from pydantic import Field

from cryoscan import Hits, LabelClass, LabelMap, Segment, Structure, Volume
from cryoscan.config import Config
from cryoscan.errors import (
    ConfigError,
    CryoscanError,
    ExistingOutputError,
    FormatError,
    GeometryError,
    MismatchError,
    MissingFileError,
    ResourceError,
    refuse_existing,
    require_file,
)
from cryoscan.provenance import (
    Provenance,
    fingerprint_arrays,
    fingerprint_file,
    fingerprint_json,
    write_atomically,
)
from cryoscan.structure import Domain


class Settings(Config):
    stride_voxels: int = Field(default=4, ge=1)
    name: str = "x"


def chain(n: int = 6, chain_id: str = "Q", first: int = -2) -> Structure:
    rng = np.random.default_rng(1)
    return Structure(
        id="t",
        positions=rng.normal(size=(n, 3)) * 9 + (3, -40, 800),
        elements=np.full(n, 6, np.uint8),
        names=np.full(n, "CA"),
        residue_names=np.full(n, "ALA"),
        residue_numbers=np.arange(first, first + n),
        insertion_codes=np.full(n, ""),
        chains=np.full(n, chain_id),
        residues=np.arange(n),
        b_factors=np.zeros(n, np.float32),
        nucleic=np.zeros(n, bool),
    )


# ---------------------------------------------------------------- volume


def test_index_and_position_are_inverse_and_start_at_the_centre_of_voxel_zero(ugly_volume: Volume) -> None:
    assert ugly_volume.to_position((0, 0, 0)) == pytest.approx(ugly_volume.origin)
    places = np.array([[3.0, 5.5, 20.25], [0, 16, 22]])
    assert ugly_volume.to_index(ugly_volume.to_position(places)) == pytest.approx(places)


def test_positions_beyond_4096_voxels_are_not_rounded() -> None:
    volume = Volume(np.zeros((2, 3, 4), np.float32), 1.37, (-31.5, 12.25, 407.125))
    places = np.array([[4097.25, 8193.5, 100001.125]])
    assert np.abs(volume.to_index(volume.to_position(places)) - places).max() < 1e-9


def test_crop_keeps_every_voxel_at_its_place(ugly_volume: Volume) -> None:
    part = ugly_volume.crop((slice(2, 9), slice(3, 17), slice(11, 20)))
    assert part.shape == (7, 14, 9)
    assert part.to_position((1, 2, 3)) == pytest.approx(ugly_volume.to_position((3, 5, 14)))
    assert part.data[1, 2, 3] == ugly_volume.data[3, 5, 14]


def test_crop_beyond_the_border_is_refused_with_the_size(ugly_volume: Volume) -> None:
    with pytest.raises(GeometryError, match=r"\(11, 17, 23\).*z0:z1"):
        ugly_volume.crop((slice(0, 12), slice(0, 5), slice(0, 5)))


@pytest.mark.parametrize("start", [(-3, 4, 20), (9, -2, 0), (100, 0, 0), (-50, -50, -50)])
def test_reading_beyond_the_border_gives_the_fill(ugly_volume: Volume, start: tuple[int, int, int]) -> None:
    box = tuple(slice(s, s + 6) for s in start)
    values = ugly_volume.read(box, fill=-7.0)  # type: ignore[arg-type]
    assert values.shape == (6, 6, 6)
    for place in np.ndindex(6, 6, 6):
        index = tuple(s + p for s, p in zip(start, place, strict=True))
        inside = all(0 <= i < n for i, n in zip(index, ugly_volume.shape, strict=True))
        assert values[place] == (ugly_volume.data[index] if inside else -7.0)


@pytest.mark.parametrize("voxel", [0.0, -1.0, float("nan")])
def test_a_voxel_size_that_is_no_length_asks_for_one(voxel: float) -> None:
    with pytest.raises(GeometryError, match="--voxel-size"):
        Volume(np.zeros((2, 2, 2)), voxel)


def test_an_image_is_no_volume() -> None:
    with pytest.raises(GeometryError, match="one volume, not an image"):
        Volume(np.zeros((4, 5)), 1.5)


@pytest.mark.parametrize("value", [chain(), Volume(np.zeros((1, 2, 3)), 2.0), Segment("A"), LabelClass("n")])
def test_values_refuse_assignment(value: object) -> None:
    for field in fields(value):  # type: ignore[arg-type]
        with pytest.raises(FrozenInstanceError):
            setattr(value, field.name, None)


# ---------------------------------------------------------------- structure


def test_a_range_selects_by_author_numbers_and_negative_ones() -> None:
    part = chain().domain(Domain("d", "CATH", "1.1.1.1", (Segment("Q", (-1, ""), (1, "")),)))
    assert list(part.residue_numbers) == [-1, 0, 1]
    assert list(part.residues) == [0, 1, 2]


def test_a_range_whose_ends_are_not_observed_takes_what_lies_between() -> None:
    part = chain().domain(Domain("d", "CATH", "1.1.1.1", (Segment("Q", (-50, ""), (0, "")),)))
    assert list(part.residue_numbers) == [-2, -1, 0]


def test_a_domain_without_atoms_names_its_ranges() -> None:
    with pytest.raises(GeometryError, match=r"7-9:B.*author numbering"):
        chain().domain(Domain("d", "CATH", "1.1.1.1", (Segment("B", (7, ""), (9, "")),)))


def test_moving_rotates_about_zero_then_shifts() -> None:
    turn = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    moved = chain().moved(rotation=turn, offset=(1, 2, 3))
    z, y, x = chain().positions[4]
    assert moved.positions[4] == pytest.approx((-y + 1, z + 2, x + 3))


def test_arrays_of_unequal_length_are_refused() -> None:
    values = {f.name: getattr(chain(), f.name) for f in fields(chain())}
    with pytest.raises(GeometryError, match="'elements'"):
        Structure(**{**values, "elements": np.zeros(3, np.uint8)})


# ---------------------------------------------------------------- labels and hits


def test_colour_depends_on_the_type_alone() -> None:
    assert LabelClass("a", "1.10.8.10", "CATH").colour == LabelClass("b", "1.10.8.10", "CATH").colour
    assert LabelClass("a", "1.10.8.10", "CATH").colour != LabelClass("a", "1.10.8.20", "CATH").colour


def test_a_label_that_is_not_there_lists_those_that_are(ugly_volume: Volume) -> None:
    data = np.zeros(ugly_volume.shape, np.int16)
    data[3, 4, 5] = 7
    labels = LabelMap(Volume(data, 2.0), {})
    assert np.argwhere(labels.mask(7)).tolist() == [[3, 4, 5]]
    with pytest.raises(GeometryError, match="Labels present: 0, 7"):
        labels.mask(9)


def test_hits_of_unequal_lengths_are_refused() -> None:
    with pytest.raises(GeometryError, match="2 positions"):
        Hits(np.zeros((2, 3)), np.zeros(1, int))


# ---------------------------------------------------------------- config and provenance


def test_unknown_key_is_refused_with_the_closest_known_one() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'stride_voxels'"):
        Settings.build(stride_voxel=3)


def test_impossible_value_names_the_key() -> None:
    with pytest.raises(ConfigError, match=r"'stride_voxels'.*got 0"):
        Settings.build(stride_voxels=0)


def test_config_round_trips_through_yaml(tmp_path: Path) -> None:
    Settings(stride_voxels=9).write(tmp_path / "c.yaml")
    assert Settings.read(tmp_path / "c.yaml") == Settings(stride_voxels=9)
    assert Settings.read(tmp_path / "c.yaml", name="y").name == "y"


@pytest.mark.parametrize("text", ["- 1\n- 2\n", "a: [1\n", "just words"])
def test_yaml_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError):
        Settings.read(tmp_path / "c.yaml")


def test_provenance_names_what_differs() -> None:
    old = Provenance("scan", config={"stride": 4, "same": 1}, inputs={"volume": "aa", "datedb": "bb"})
    new = Provenance("scan", config={"stride": 8, "same": 1}, inputs={"volume": "aa", "datedb": "cc"})
    assert old.differences(old) == []
    assert old.differences(new) == ["setting 'stride': 4 before, 8 now", "input 'datedb' is not the same"]
    assert Provenance.from_json(old.to_json()) == old


def test_fingerprints_tell_values_types_and_shapes_apart() -> None:
    a = np.arange(6, dtype=np.float32)
    prints = {fingerprint_arrays([x]) for x in (a, a + 1, a.reshape(2, 3), a.astype(np.float64), a[::-1])}
    assert len(prints) == 5
    assert fingerprint_json({"b": 1, "a": 2}) == fingerprint_json({"a": 2, "b": 1})


def test_fingerprint_of_a_file_follows_its_content(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x" * 100)
    first = fingerprint_file(path)
    path.write_bytes(b"x" * 99 + b"y")
    assert fingerprint_file(path) != first


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "cls",
    [
        FormatError,
        GeometryError,
        ConfigError,
        MismatchError,
        ResourceError,
        MissingFileError,
        ExistingOutputError,
    ],
)
def test_every_error_says_expected_got_and_what_to_do(cls: type[CryoscanError]) -> None:
    error = cls("expected a", got="b", hint="Do c.")
    assert str(error) == "expected a; got b. Do c."
    again = copy.deepcopy(error)  # by the same road that errors take between processes
    assert (type(again), again.hint) == (cls, "Do c.")


def test_a_folder_is_no_file_and_a_missing_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="path of a file"):
        require_file(tmp_path)
    with pytest.raises(FileNotFoundError, match="spelling"):
        require_file(tmp_path / "no")


def test_existing_output_is_refused_unless_told(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(FileExistsError, match="--overwrite"):
        refuse_existing(tmp_path / "a", overwrite=False)
    assert refuse_existing(tmp_path / "a", overwrite=True) == tmp_path / "a"
    with pytest.raises(MissingFileError, match="Create the folder"):
        refuse_existing(tmp_path / "no" / "a", overwrite=False)

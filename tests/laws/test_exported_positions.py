"""Exported positions are the same ångström when read back: axis order (L3) and precision (L4)."""

import csv

import numpy as np
import pytest
import starfile

from cryoscan import Hits, Volume
from cryoscan.export import write_hits_csv, write_star

SHAPE = (31, 4199, 5301)  # beyond 4,096 voxels, odd and even sizes, no two alike


class Unread:
    """Data that has a shape and no values: exporting positions reads no voxel."""

    shape = SHAPE
    dtype = np.dtype(np.float32)

    def __getitem__(self, key):
        raise AssertionError("export of positions must not read the volume")


@pytest.fixture
def volume() -> Volume:
    return Volume(Unread(), 13.481, (-1203.25, 77.5, 40611.0625))


@pytest.fixture
def hits(volume, rng) -> Hits:
    indices = np.vstack([rng.uniform(0, SHAPE, size=(40, 3)), [[0, 0, 0], [30, 4198, 5300], [1, 2, 3]]])
    n = len(indices)
    names = ["Globin-like", "", '5\'-nucleotidase  "x"', "α/β #2"]
    return Hits(
        positions=volume.to_position(indices),
        labels=rng.integers(1, 9, n),
        types=[f"1.10.490.{i}" for i in range(n)],
        schemes=["CATH"] * n,
        names=[names[i % 4] for i in range(n)],
        entries=[f"1abcA{i:02d}" for i in range(n)],
        scores=np.sort(rng.uniform(0, 1, n))[::-1],
        margins=rng.uniform(0, 0.2, n),
    )


def test_relion5_star_gives_the_same_angstroms(hits, volume, tmp_path):
    path = tmp_path / "particles.star"
    write_star(hits, path, volume=volume, convention="relion5", tomogram_name="TS_01")
    table = starfile.read(path)
    centred_xyz = table[[f"rlnCenteredCoordinate{axis}Angst" for axis in "XYZ"]].to_numpy()
    # RELION's own way back: divide by the pixel size, add half the size, count voxels from 0.
    indices = centred_xyz[:, ::-1] / volume.voxel_size + np.array(SHAPE) / 2
    assert np.abs(volume.to_position(indices) - hits.positions).max() < 2e-6


def test_relion3_star_gives_the_same_angstroms(hits, volume, tmp_path):
    path = tmp_path / "particles.star"
    write_star(hits, path, volume=volume, convention="relion3", tomogram_name="TS_01")
    table = starfile.read(path)
    indices = table[["rlnCoordinateZ", "rlnCoordinateY", "rlnCoordinateX"]].to_numpy()
    voxel_size = table["rlnDetectorPixelSize"][0] * 10000 / table["rlnMagnification"][0]
    positions = indices * voxel_size + volume.origin
    assert np.abs(positions - hits.positions).max() < 2e-5  # six decimals of a voxel


def test_csv_gives_the_same_bits_and_every_field(hits, volume, tmp_path):
    path = tmp_path / "hits.csv"
    write_hits_csv(hits, path, volume=volume)
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    positions = np.array([[float(row[f"{axis}_angstrom"]) for axis in "zyx"] for row in rows])
    indices = np.array([[float(row[f"{axis}_voxel"]) for axis in "zyx"] for row in rows])
    assert np.array_equal(positions, hits.positions)
    assert np.array_equal(indices, volume.to_index(hits.positions))
    assert [row["name"] for row in rows] == hits.names
    assert [row["type"] for row in rows] == hits.types
    assert [row["scheme"] for row in rows] == hits.schemes
    assert [row["entry"] for row in rows] == hits.entries
    assert [int(row["label"]) for row in rows] == hits.labels.tolist()
    assert [float(row["score"]) for row in rows] == hits.scores.tolist()
    assert [float(row["margin"]) for row in rows] == hits.margins.tolist()


@pytest.mark.parametrize("convention", ["relion5", "relion3"])
def test_a_hit_off_every_symmetry_keeps_its_axes(convention, tmp_path):
    volume = Volume(np.zeros((10, 20, 40), np.float32), 2.0, (100.0, 200.0, 300.0))
    position = volume.to_position([[3, 7, 29]])  # z, y, x
    hits = Hits(position, np.array([1]), ["1.1.1.1"], ["CATH"], ["a"], ["b"], np.ones(1), np.ones(1))
    path = tmp_path / "one.star"
    write_star(hits, path, volume=volume, convention=convention, tomogram_name="t")
    row = starfile.read(path).iloc[0]
    if convention == "relion5":
        found = [row[f"rlnCenteredCoordinate{axis}Angst"] for axis in "XYZ"]
        assert found == [(29 - 20) * 2.0, (7 - 10) * 2.0, (3 - 5) * 2.0]
    else:
        assert [row[f"rlnCoordinate{axis}"] for axis in "XYZ"] == [29, 7, 3]

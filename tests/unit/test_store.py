"""The compact store of chains: what was packed comes out at the same Å."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cryoscan.errors import FormatError, MismatchError, MissingFileError
from cryoscan.io.store import StructureStore
from cryoscan.io.tables import DomainRow, read_domains

ORIGIN_XYZ = [[10.5, -20.25, 30.0], [-500.0, 0.0, 250.0]]
STEPS_XYZ = [[0, 0, 0], [123, -45, 6], [-10, 20, -30], [32767, 0, 0], [0, 0, 0], [7, 8, 9], [1, 1, 1]]


def row(parts: str, ranges: str = "") -> DomainRow:
    return DomainRow("d1", "1abc", "CATH", "1.2.3.4", "", ranges, parts, 0, None, "", "", "", "", "")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two chains: A with residues −1, 5, 5A (2 + 1 + 1 atoms), B with residue 7 (3 atoms)."""
    np.savez_compressed(
        tmp_path / "fullatom_chains_0.npz",
        key=np.array(["1abc_A", "1abc_B"]),
        pdb=np.array(["1abc", "1abc"]),
        chain=np.array(["A", "B"]),
        source=np.array(["here", "there"]),
        resolution=np.array([2.15, 0.0], np.float32),
        origin=np.array(ORIGIN_XYZ, np.float32),
        atom_off=np.array([0, 4, 7]),
        res_off=np.array([0, 3, 4]),
        dxyz=np.array(STEPS_XYZ, np.int16),
        natom=np.array([2, 1, 1, 3], np.uint16),
        resname=np.array([0, 1, 0, 1], np.uint16),
        resname_vocab=np.array(["MSE", "GLY"]),
        resnum=np.array([-1, 5, 5, 7], np.int32),
        icode=np.array([0, 0, 65, 32], np.uint8),
        atomname=np.array([0, 1, 0, 0, 0, 2, 0], np.uint16),
        atomname_vocab=np.array(["CA", "SE", "XD1"]),
        element=np.array([0, 1, 0, 2, 2, 3, 0], np.uint8),
        element_vocab=np.array(["C", "Se", "U", "X"]),
    )
    return tmp_path


def test_positions_are_summed_steps_as_z_y_x(folder):
    chain = StructureStore(folder).chain("1abc_A")
    expected_xyz = np.array(ORIGIN_XYZ[0]) + np.cumsum(STEPS_XYZ[:4], axis=0) * 0.01
    np.testing.assert_allclose(chain.positions, expected_xyz[:, ::-1])
    assert chain.positions.dtype == np.float64


def test_labels_of_a_chain_come_out_per_atom(folder):
    chain = StructureStore(folder).chain("1abc_A")
    assert chain.names.tolist() == ["CA", "SE", "CA", "CA"]
    assert chain.residue_names.tolist() == ["MSE", "MSE", "GLY", "MSE"]
    assert chain.residue_numbers.tolist() == [-1, -1, 5, 5]
    assert chain.insertion_codes.tolist() == ["", "", "", "A"]
    assert chain.residues.tolist() == [0, 0, 1, 2]
    assert set(chain.chains) == {"A"}


def test_element_that_no_protein_holds_is_told_by_the_atom_name(folder):
    store = StructureStore(folder)
    assert store.chain("1abc_A").elements.tolist() == [6, 34, 6, 6]  # the last was called uranium
    assert store.chain("1abc_B").elements.tolist() == [6, 0, 6]  # XD1: nobody knows


def test_domain_is_cut_by_its_parts(folder):
    store = StructureStore(folder)
    domain = store.domain(row("1abc_A=0:1,2:3", "-1--1:A,5A-5A:A"))
    whole = store.chain("1abc_A")
    np.testing.assert_array_equal(domain.positions, whole.positions[[0, 1, 3]])
    assert domain.residues.tolist() == [0, 0, 1]
    assert domain.id == "d1"
    assert domain.domains[0].ranges == "-1--1:A,5A-5A:A"


def test_domain_may_span_chains_and_its_residues_count_on(folder):
    domain = StructureStore(folder).domain(row("1abc_A=1:3;1abc_B=0:1"))
    assert domain.chains.tolist() == ["A", "A", "B", "B", "B"]
    assert domain.residues.tolist() == [0, 1, 2, 2, 2]
    assert domain.n_residues == 3


def test_keys_sources_and_resolutions_are_known(folder):
    store = StructureStore(folder)
    assert store.keys() == ["1abc_A", "1abc_B"]
    assert (store.source("1abc_A"), store.source("1abc_B")) == ("here", "there")
    assert (store.resolution("1abc_A"), store.resolution("1abc_B")) == (2.15, None)
    assert "1abc_A" in store
    assert "2xyz_A" not in store


@pytest.mark.parametrize("parts", ["", "1abc_A", "1abc_A=0-3", "9xyz_A=0:3", "1abc_A=0:4"])
def test_row_that_does_not_fit_the_store_is_refused(folder, parts):
    with pytest.raises(MismatchError, match=r"expected .*; got .*\. \w+"):
        StructureStore(folder).domain(row(parts))


def test_missing_folder_and_missing_shard_are_named(folder, tmp_path):
    with pytest.raises(MissingFileError, match=r"fullatom_chains_\*"):
        StructureStore(tmp_path / "none")
    with pytest.raises(MissingFileError, match="ca_only_chains"):
        StructureStore(folder, ca_only=True)


@pytest.mark.parametrize("damage", ["cut", "foreign", "pickled", "column"])
def test_damaged_shard_is_refused(folder, damage):
    path = folder / "fullatom_chains_0.npz"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:700])
    elif damage == "foreign":
        path.write_bytes(b"not a zip file at all")
    elif damage == "pickled":
        np.savez(path, key=np.array([{"not": "text"}], dtype=object))
    else:
        np.savez(path, key=np.array(["1abc_A"]))
    with pytest.raises(FormatError, match="shard of the structure store"):
        StructureStore(folder).chain("1abc_A")


def test_store_needs_numpy_alone(folder):
    code = (
        "import sys\n"
        "from cryoscan.io.store import StructureStore\n"
        f"StructureStore({str(folder)!r}).chain('1abc_A')\n"
        "print(*{'gemmi', 'torch', 'zarr', 'mrcfile', 'scipy'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.split() == []


def test_store_and_ranges_name_the_same_residues(data_folder):
    store = StructureStore(data_folder / "structures")
    checked = 0
    for file in ("cath_domains.tsv", "scope_domains.tsv"):
        for entry in read_domains(data_folder / "labels" / file)[::40]:
            if ";" in entry.parts:
                continue
            by_parts = store.domain(entry)
            by_ranges = store.chain(entry.parts.split("=")[0]).domain(entry.domain())
            np.testing.assert_array_equal(by_parts.positions, by_ranges.positions, err_msg=entry.id)
            assert by_parts.n_residues == entry.n_residues
            checked += 1
    assert checked > 200


def test_real_domain_takes_about_a_millisecond(data_folder):
    store = StructureStore(data_folder / "structures", ca_only=True, unlabelled=True)
    assert len(store) == 6910
    rows = [
        entry for entry in read_domains(data_folder / "labels" / "cath_domains.tsv")[:600:4] if ";" not in entry.parts
    ]
    for entry in rows:
        store.domain(entry)
    start = time.process_time()
    for entry in rows:
        store.domain(entry)
    assert (time.process_time() - start) / len(rows) < 2e-3

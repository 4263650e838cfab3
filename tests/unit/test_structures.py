"""Reading and writing of atoms: which records survive, under which names, and where."""

import gzip
from dataclasses import replace
from pathlib import Path

import gemmi
import numpy as np
import pytest

from cryoscan import Structure
from cryoscan.errors import CryoscanError, ExistingOutputError, FormatError, MissingFileError
from cryoscan.io.structures import read_structure, write_structure
from cryoscan.io.tables import parse_ranges, read_domains

DATA = Path(__file__).resolve().parents[1] / "data"
BOTH = pytest.mark.parametrize("file", [DATA / "ugly.pdb", DATA / "ugly.cif"], ids=["pdb", "mmcif"])


def residue(structure: Structure, chain: str, number: int, code: str = "") -> Structure:
    return structure.select(
        (structure.chains == chain) & (structure.residue_numbers == number) & (structure.insertion_codes == code)
    )


def pdb_lines(tmp_path: Path, change) -> Path:
    """The ugly file's first model, changed line by line."""
    atoms = [
        line for line in (DATA / "ugly.pdb").read_text().split("ENDMDL")[0].splitlines() if line[:4] in ("ATOM", "HETA")
    ]
    path = tmp_path / "changed.pdb"
    path.write_text("\n".join(change(line) for line in atoms) + "\n")
    return path


# ---------------------------------------------------------------- what is kept


@BOTH
def test_positions_are_z_y_x(file):
    first = read_structure(file).positions[0]
    np.testing.assert_allclose(first, [112.857, -7.286, 43.064])  # the file has x = 43.064


@BOTH
def test_author_numbers_and_insertion_codes_are_kept_in_the_order_of_the_file(file):
    structure = read_structure(file)
    helix = structure.select(structure.chains == "H")
    _, first = np.unique(helix.residues, return_index=True)
    numbers = [f"{helix.residue_numbers[i]}{helix.insertion_codes[i]}" for i in first]
    assert numbers == ["-2", "-1", "0", "51", "52", "52A", "52B", "53", "54", "55", "56", "57", "58", "61"]


def test_chains_of_mmcif_are_named_by_the_author():
    text = (DATA / "ugly.cif").read_text()
    assert " E L 11 " in text  # label_asym_id is E where the author says L
    assert set(read_structure(DATA / "ugly.cif").chains) == {"H", "L", "N"}


def test_pdb_and_mmcif_of_one_structure_read_the_same():
    pdb, mmcif = read_structure(DATA / "ugly.pdb"), read_structure(DATA / "ugly.cif")
    for name in (
        "positions",
        "elements",
        "names",
        "residue_names",
        "residue_numbers",
        "chains",
        "residues",
        "b_factors",
    ):
        np.testing.assert_array_equal(getattr(pdb, name), getattr(mmcif, name), err_msg=name)


@BOTH
def test_waters_ligands_ions_and_hydrogens_are_dropped(file):
    structure = read_structure(file)
    assert not {"HOH", "GOL", "MG"} & set(structure.residue_names)
    assert 1 not in structure.elements


@BOTH
def test_selenomethionine_stays_as_protein(file):
    mse = residue(read_structure(file), "H", 52)
    assert set(mse.residue_names) == {"MSE"}
    assert 34 in mse.elements
    assert not mse.nucleic.any()


def test_unknown_modified_residue_in_a_chain_stays(tmp_path):
    path = pdb_lines(tmp_path, lambda line: line.replace("LEU", "QQX"))
    assert "QQX" in read_structure(path).residue_names


def test_neighbours_of_one_name_and_number_are_told_apart_by_the_insertion_code(tmp_path):
    path = pdb_lines(tmp_path, lambda line: line.replace("GLU H  52B", "LYS H  52B"))
    assert read_structure(path).n_residues == 21


def test_chain_goes_on_after_a_ter_record_in_its_middle(tmp_path):
    path = pdb_lines(tmp_path, lambda line: "TER\n" + line if " N   ALA H  54" in line else line)
    np.testing.assert_array_equal(read_structure(path).names, read_structure(DATA / "ugly.pdb").names)


@BOTH
def test_lone_nucleotide_is_kept_and_marked(file):
    structure = read_structure(file)
    assert set(structure.residue_names[structure.nucleic]) == {"DA"}
    assert set(structure.protein().chains) == {"H", "L"}


@BOTH
def test_missing_atoms_are_no_error(file):
    assert residue(read_structure(file), "H", 58).names.tolist() == ["N", "CA", "C", "O", "CB", "CG", "CD"]  # GLU


# ---------------------------------------------------------------- alternative locations


@BOTH
def test_highest_occupancy_wins(file):
    og = residue(read_structure(file), "H", 0)
    assert og.names.tolist().count("OG") == 1
    assert og.b_factors[og.names == "OG"] == 27.5  # location B, 0.6


@BOTH
def test_first_of_equal_occupancies_wins(file):
    og = residue(read_structure(file), "H", 53)
    assert og.b_factors[og.names == "OG"] == 30.0  # location A, 0.5 like B


@BOTH
def test_one_of_two_residues_at_one_place_is_kept_whole(file):
    place = residue(read_structure(file), "L", 4)
    assert set(place.residue_names) == {"ILE"}  # 0.7 against VAL's 0.3
    assert sorted(place.names) == ["C", "CA", "CB", "CD1", "CG1", "CG2", "N", "O"]
    assert place.n_residues == 1


def test_atom_only_in_the_second_conformer_is_not_lost(tmp_path):
    # SER 0: the winner B lacks CB when only A has it.
    path = pdb_lines(
        tmp_path, lambda line: line[:16] + "A" + line[17:] if line[12:16] == " CB " and "SER H   0" in line else line
    )
    assert "CB" in residue(read_structure(path), "H", 0).names


# ---------------------------------------------------------------- models and assemblies


@BOTH
def test_models_are_counted_from_one(file):
    first, second = read_structure(file), read_structure(file, model=2)
    np.testing.assert_allclose(second.positions - first.positions, [[-0.75, 0.25, 0.5]] * len(first), atol=1e-9)


@BOTH
@pytest.mark.parametrize("model", [0, 3, -1])
def test_model_out_of_range_is_refused_with_the_number_of_models(file, model):
    with pytest.raises(FormatError, match=r"between 1 and 2.*got -?\d.*counted from 1"):
        read_structure(file, model=model)


@BOTH
def test_assembly_copies_chains_under_readable_names(file):
    assembly = read_structure(file, assembly="1")
    assert list(dict.fromkeys(assembly.chains)) == ["H", "L", "H-2", "L-2"]  # N is not part of it
    original = assembly.positions[assembly.chains == "L"]
    copy = assembly.positions[assembly.chains == "L-2"]
    np.testing.assert_allclose(copy, original * [1, -1, -1] + [0, 0, 100], atol=1e-9)  # two-fold axis along z, x + 100
    assert len(np.unique(assembly.residues)) == 40


def test_waters_at_the_end_of_the_file_do_not_count_as_copies(tmp_path):
    lines = (DATA / "ugly.pdb").read_text().split("ENDMDL")[0].splitlines()
    path = tmp_path / "x.pdb"
    path.write_text("\n".join(sorted(lines, key=lambda line: "HOH" in line)))
    assembly = read_structure(path, assembly="1")
    assert list(dict.fromkeys(assembly.chains)) == ["H", "L", "H-2", "L-2"]


@BOTH
def test_unknown_assembly_is_refused_with_the_known_ones(file):
    with pytest.raises(FormatError, match="assemblies 1"):
        read_structure(file, assembly="7")


# ---------------------------------------------------------------- domains


def test_domains_are_carried_and_cut_by_insertion_codes():
    rows = [row for row in read_domains(DATA / "domains.tsv") if row.ranges != "-"]
    structure = read_structure(DATA / "ugly.cif", domains=[row.domain() for row in rows])
    sizes = {domain.name: structure.domain(domain).n_residues for domain in structure.domains}
    assert sizes == {"uglyH01": 6, "uglyH02": 8, "d1ugl.1": 13}
    assert structure.domain("uglyH01").domains[0].segments == parse_ranges("-2-52A:H")


# ---------------------------------------------------------------- damaged input


@pytest.mark.parametrize("name", ["bad.pdb", "bad.cif", "bad.ent", "bad.mmcif"])
@pytest.mark.parametrize(
    "content", [b"", b"<html>404 Not Found</html>", bytes(range(256)) * 3], ids=["empty", "html", "binary"]
)
def test_garbage_is_refused_by_one_kind_of_error(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(FormatError, match=r"expected .*; got .*\. \w+"):
        read_structure(path)


@pytest.mark.parametrize("source", ["ugly.pdb", "ugly.cif"])
def test_file_cut_within_a_line_is_refused(tmp_path, source):
    content = (DATA / source).read_bytes()
    where = content.index(b"TRP") + 35
    path = tmp_path / source
    path.write_bytes(content[:where])
    with pytest.raises(FormatError, match="cut short"):
        read_structure(path)


@pytest.mark.parametrize("source", ["ugly.pdb", "ugly.cif"])
def test_wrong_ending_is_refused(tmp_path, source):
    other = {"ugly.pdb": "x.cif", "ugly.cif": "x.pdb"}[source]
    (tmp_path / other).write_bytes((DATA / source).read_bytes())
    with pytest.raises(FormatError, match="ending does not match"):
        read_structure(tmp_path / other)


@pytest.mark.parametrize("value", ["******", "      ", "   nan", "4x.064"])
def test_unreadable_coordinate_is_never_taken_for_zero(tmp_path, value):
    path = pdb_lines(tmp_path, lambda line: line.replace("43.064", value))
    with pytest.raises(FormatError, match="no coordinates in"):
        read_structure(path)


def test_missing_coordinate_in_mmcif_is_refused(tmp_path):
    path = tmp_path / "x.cif"
    path.write_text((DATA / "ugly.cif").read_text().replace("43.064", "?", 1))
    with pytest.raises(FormatError, match="finite coordinates"):
        read_structure(path)


def test_waters_alone_are_refused(tmp_path):
    path = tmp_path / "x.pdb"
    path.write_text("\n".join(line for line in (DATA / "ugly.pdb").read_text().splitlines() if "HOH" in line))
    with pytest.raises(FormatError, match="protein or nucleic acid"):
        read_structure(path)


def test_gzip_is_read_and_a_cut_one_refused(tmp_path):
    packed = gzip.compress((DATA / "ugly.pdb").read_bytes())
    whole, cut = tmp_path / "whole.pdb.gz", tmp_path / "cut.pdb.gz"
    whole.write_bytes(packed)
    cut.write_bytes(packed[: len(packed) // 2])
    assert read_structure(whole).id == "whole"
    with pytest.raises(FormatError, match="complete gzip file"):
        read_structure(cut)


@pytest.mark.parametrize(
    ("name", "error"), [("none.pdb", MissingFileError), (".", FormatError), ("x.txt", FormatError)]
)
def test_no_file_folder_and_other_formats_are_told_apart(tmp_path, name, error):
    (tmp_path / "x.txt").write_text("ATOM")
    with pytest.raises(error):
        read_structure(tmp_path / name)


# ---------------------------------------------------------------- writing


@pytest.mark.parametrize("suffix", [".cif", ".pdb", ".mmcif", ".ent"])
def test_written_structure_reads_back_the_same(tmp_path, suffix):
    structure = read_structure(DATA / "ugly.cif")
    write_structure(structure, tmp_path / f"ugly{suffix}")
    back = read_structure(tmp_path / f"ugly{suffix}")
    np.testing.assert_allclose(back.positions, structure.positions, atol=5.1e-4)
    for name in Structure.__dataclass_fields__:
        if name not in ("positions", "domains"):
            np.testing.assert_array_equal(getattr(back, name), getattr(structure, name), err_msg=name)


@pytest.mark.parametrize("suffix", [".cif", ".pdb"])
def test_written_file_is_plain_gemmi_reading_with_x_first(tmp_path, suffix):
    structure = read_structure(DATA / "ugly.cif")
    write_structure(structure, tmp_path / f"model{suffix}")
    atom = gemmi.read_structure(str(tmp_path / f"model{suffix}"))[0][0][0][0]
    np.testing.assert_allclose(atom.pos.tolist(), structure.positions[0][::-1], atol=5e-4)


def test_assembly_goes_through_mmcif_and_not_through_pdb(tmp_path):
    assembly = read_structure(DATA / "ugly.cif", assembly="1")
    write_structure(assembly, tmp_path / "a.cif")
    np.testing.assert_array_equal(read_structure(tmp_path / "a.cif").chains, assembly.chains)
    with pytest.raises(FormatError, match=r"longer than one letter.*ends in \.cif"):
        write_structure(assembly, tmp_path / "a.pdb")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda s: replace(s, positions=s.positions + np.array([0, 10_000, 0])), "coordinate"),
        (lambda s: replace(s, residue_numbers=s.residue_numbers + 9_999), "residue number"),
        (lambda s: s.select(np.arange(100_000) % len(s)), "100000 atoms"),
    ],
    ids=["coordinate", "number", "atoms"],
)
def test_what_pdb_cannot_hold_is_refused_not_bent(tmp_path, change, problem):
    with pytest.raises(FormatError, match=rf"{problem}.*\.cif"):
        write_structure(change(read_structure(DATA / "ugly.cif")), tmp_path / "x.pdb")
    assert not list(tmp_path.iterdir())


def test_existing_output_is_replaced_only_when_told(tmp_path):
    structure = read_structure(DATA / "ugly.cif")
    path = tmp_path / "x.cif"
    path.write_text("precious")
    with pytest.raises(ExistingOutputError, match="overwrite"):
        write_structure(structure, path)
    assert path.read_text() == "precious"
    write_structure(structure, path, overwrite=True)
    assert len(read_structure(path)) == len(structure)


@pytest.mark.parametrize("name", ["x.mrc", "x", "x.cif.gz"])
def test_unknown_output_format_is_refused(tmp_path, name):
    with pytest.raises(CryoscanError, match=r"\.cif"):
        write_structure(read_structure(DATA / "ugly.cif"), tmp_path / name)


# ---------------------------------------------------------------- real files


def test_every_real_model_and_assembly_reads(data_folder):
    files = sorted([*data_folder.glob("maps_models/*.pdb.gz"), *data_folder.glob("assemblies/*.pdb.gz")])
    assert len(files) >= 20
    for file in files:
        structure = read_structure(file)
        assert structure.n_residues > 50, file.name
        assert set(structure.elements) <= {6, 7, 8, 15, 16, 34}, file.name


def test_ribosome_holds_both_kinds(data_folder):
    structure = read_structure(data_folder / "assemblies" / "4v4r_30S.pdb.gz")
    assert set(structure.residue_names[structure.nucleic]) <= {"A", "C", "G", "U"}
    assert 0.5 < structure.nucleic.mean() < 0.7

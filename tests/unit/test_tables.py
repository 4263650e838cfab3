"""Tables of domains and the two notations of residue ranges."""

from pathlib import Path

import pytest

from cryoscan import Segment
from cryoscan.errors import FormatError, MissingFileError
from cryoscan.io.tables import parse_ranges, read_domains, read_scope_names

DATA = Path(__file__).resolve().parents[1] / "data"


# ---------------------------------------------------------------- ranges


@pytest.mark.parametrize(
    ("text", "segments"),
    [
        ("1-158:A", [Segment("A", (1, ""), (158, ""))]),
        ("1-158:A,329-397:A", [Segment("A", (1, ""), (158, "")), Segment("A", (329, ""), (397, ""))]),
        ("-5-30:A", [Segment("A", (-5, ""), (30, ""))]),
        ("-10--3:A", [Segment("A", (-10, ""), (-3, ""))]),
        ("1H-50H:A", [Segment("A", (1, "H"), (50, "H"))]),
        ("52A-60B:L", [Segment("L", (52, "A"), (60, "B"))]),
        ("-1B-4:1", [Segment("1", (-1, "B"), (4, ""))]),
        ("3-7:A-2", [Segment("A-2", (3, ""), (7, ""))]),
        ("A:", [Segment("A")]),
        ("A:1-47", [Segment("A", (1, ""), (47, ""))]),
        ("A:1-47,B:3-20", [Segment("A", (1, ""), (47, "")), Segment("B", (3, ""), (20, ""))]),
        ("A:-5-30", [Segment("A", (-5, ""), (30, ""))]),
        ("L:1-106A", [Segment("L", (1, ""), (106, "A"))]),
        ("2:3001-3182", [Segment("2", (3001, ""), (3182, ""))]),
        ("1:,BB:", [Segment("1"), Segment("BB")]),
        (" 1-5:A, 7-9:A ", [Segment("A", (1, ""), (5, "")), Segment("A", (7, ""), (9, ""))]),
        ("-", []),
    ],
)
def test_ranges_of_both_notations_are_read(text, segments):
    assert parse_ranges(text) == tuple(segments)


@pytest.mark.parametrize(
    "text", ["", "1-158", "A", "1-158:A,", "1..158:A", "A:1", "A:1-", "1-x:A", "A:1-47;B:3-20", "--"]
)
def test_unreadable_ranges_are_refused_with_an_example(text):
    with pytest.raises(FormatError, match=r"1-158:A.*got '.*Name the chain"):
        parse_ranges(text)


@pytest.mark.parametrize("text", ["-5-30:A,52A-60B:L", "1-158:A", "A:"])
def test_segments_print_what_they_were_read_from(text):
    assert ",".join(map(str, parse_ranges(text))) == text


# ---------------------------------------------------------------- domains


def write(tmp_path: Path, text: str, name: str = "table.tsv", encoding: str = "utf-8") -> Path:
    path = tmp_path / name
    path.write_bytes(text.encode(encoding))
    return path


def test_plain_table_is_read_with_schemes_guessed_from_the_types():
    rows = read_domains(DATA / "domains.tsv")
    assert [(row.id, row.scheme, row.file) for row in rows] == [
        ("uglyH01", "CATH", "ugly.cif"),
        ("uglyH02", "CATH", "ugly.cif"),
        ("d1ugl.1", "SCOPe", "ugly.pdb"),
        ("whole", "user", "ugly.pdb"),
    ]
    assert rows[2].name == "Helix and strand"
    assert rows[2].domain().segments == (Segment("H", (53, ""), (61, "")), Segment("L"))
    assert rows[3].domain().segments == ()
    assert rows[0].resolution is None
    assert rows[0].n_residues == 0


def test_scheme_column_overrules_the_guess(tmp_path):
    path = write(tmp_path, "id,type,scheme\na,1.2.3.4,ECOD\nb,1.2.3.4,\n", "table.csv")
    assert [row.scheme for row in read_domains(path)] == ["ECOD", "CATH"]


def test_columns_of_published_tables_are_understood_in_any_order(tmp_path):
    header = (
        "nres\tdomain_id\tresolution\tsegments_pdb\tsuperfamily_or_family\tparts\tclu40\tclu95\tsource\tsequence\tpdb"
    )
    path = write(
        tmp_path, f"{header}\n45\t1p3qQ00\t1.70\t398-444:Q\t1.10.8.10\t1p3q_Q=0:45\tf54\te12\tsome/one\tSSL\t1p3q\n"
    )
    (row,) = read_domains(path)
    assert (row.n_residues, row.id, row.resolution, row.ranges) == (45, "1p3qQ00", 1.7, "398-444:Q")
    assert (row.type, row.parts, row.clu40, row.clu95) == ("1.10.8.10", "1p3q_Q=0:45", "f54", "e12")
    assert (row.source, row.sequence, row.pdb) == ("some/one", "SSL", "1p3q")


def test_resolution_of_zero_is_unknown(tmp_path):
    path = write(tmp_path, "id,type,resolution\na,x,0.00\nb,x,\nc,x,2.5\n")
    assert [row.resolution for row in read_domains(path)] == [None, None, 2.5]


def test_spreadsheet_quirks_are_survived(tmp_path):
    path = write(tmp_path, '\ufeffid,type,name\r\n a ,1.2.3.4,"Globin, like"\r\n\r\n', "table.csv")
    (row,) = read_domains(path)
    assert (row.id, row.name) == ("a", "Globin, like")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id\tkind\na\tb\n", r"a column 'superfamily_or_family' or 'type'.*columns id, kind"),
        ("name\nx\n", r"'domain_id' or 'id' and a column"),
        ("", "no header"),
        ("id\ttype\n", "a header only"),
        ("id\ttype\na\t1.2.3.4\nb\n", r"2 values in .*line 3; got 1"),
        ("id\ttype\na\t\n", r"value for 'type' in .*line 2"),
        ("id\ttype\na\tx\n\na\ty\n", r"'a' in lines 2 and 4"),
        ("id\ttype\tranges\na\tx\t1-5\n", r"such as 1-158:A.* in .*line 2; got '1-5'"),
        ("id\ttype\tresolution\na\tx\tgood\n", r"'resolution' in .*line 2; got 'good'"),
        ("id\ttype\tnres\na\tx\t-4\n", r"'n_residues' in .*line 2"),
    ],
)
def test_broken_table_is_refused_with_the_place(tmp_path, text, message):
    with pytest.raises(FormatError, match=message):
        read_domains(write(tmp_path, text))


def test_missing_table_and_binary_file_are_refused(tmp_path):
    with pytest.raises(MissingFileError):
        read_domains(tmp_path / "none.tsv")
    with pytest.raises(FormatError, match="UTF-8"):
        read_domains(write(tmp_path, "id\ttype\ngrüße\tx\n", encoding="latin-1"))


def test_scope_names_are_read(tmp_path):
    path = write(tmp_path, "sccs\tlevel\tname\na\tclass\tAll alpha proteins\na.1\tfold\tGlobin-like\n")
    assert read_scope_names(path) == {"a": "All alpha proteins", "a.1": "Globin-like"}


def test_every_published_table_reads(data_folder):
    counts = {file.stem: len(read_domains(file)) for file in data_folder.glob("labels/*_domains*.tsv")}
    assert counts["cath_domains"] == 5614
    assert counts["scope_domains"] == 3957
    assert len(read_scope_names(data_folder / "labels" / "scope_names.tsv")) > 2000

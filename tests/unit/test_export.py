"""STAR columns, refusals, and reports that carry everything they show."""

import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import starfile
from matplotlib.image import imread

from cryoscan import Candidate, Hits, LabelClass, LabelMap, Volume
from cryoscan.errors import ExistingOutputError, FormatError, MissingFileError
from cryoscan.export import (
    Figure,
    Section,
    Table,
    candidates_table,
    hits_table,
    slices_figure,
    write_hits_csv,
    write_report,
    write_star,
)


@pytest.fixture
def hits(ugly_volume) -> Hits:
    return Hits(
        positions=ugly_volume.to_position([[5, 8, 11], [2, 3, 4], [9, 15, 20]]),
        labels=np.array([3, 3, 7]),
        types=["1.10.490.10", "1.10.490.10", "b.1.1.1"],
        schemes=["CATH", "CATH", "SCOPe"],
        names=["Globin-like", "Globin-like", ""],
        entries=["1p3qQ00", "x y", "d1a6ka_"],
        scores=np.array([0.9, 0.8, 0.7]),
        margins=np.array([0.1, 0.05, 0.2]),
    )


@pytest.fixture
def label_map(ugly_volume) -> LabelMap:
    labels = np.zeros((5, 8, 11), np.int16)
    labels[2, 3:5, 4:8] = 3
    labels[4, 6, 9] = 7
    coarse = Volume(labels, 2 * ugly_volume.voxel_size, ugly_volume.origin)
    return LabelMap(
        coarse, {3: LabelClass("Globin-like", "1.10.490.10", "CATH"), 7: LabelClass("", "b.1.1.1", "SCOPe")}
    )


def colours(figure: Figure) -> np.ndarray:
    """The RGB values of a picture that are not grey, as 0–255 rows."""
    pixels = (imread(io.BytesIO(figure.png))[..., :3].reshape(-1, 3) * 255).round().astype(int)
    return pixels[np.ptp(pixels, axis=1) > 30]


# ---------------------------------------------------------------- STAR


@pytest.mark.parametrize(
    ("convention", "present", "absent"),
    [
        ("relion5", "rlnCenteredCoordinateXAngst", "rlnCoordinateX"),
        ("relion3", "rlnCoordinateX", "rlnCenteredCoordinateXAngst"),
    ],
)
def test_star_has_the_columns_of_its_convention_alone(hits, ugly_volume, tmp_path, convention, present, absent):
    path = tmp_path / "hits.star"
    write_star(hits, path, volume=ugly_volume, convention=convention, tomogram_name="TS_7")
    table = starfile.read(path, always_dict=True)["particles"]
    assert present in table
    assert absent not in table
    assert set(table["rlnTomoName"]) == {"TS_7"}
    assert table["rlnAutopickFigureOfMerit"].tolist() == hits.scores.tolist()
    assert table["rlnClassNumber"].tolist() == [3, 3, 7]
    assert table["cryoscanMargin"].tolist() == hits.margins.tolist()


def test_every_star_row_has_one_word_per_column(hits, ugly_volume, tmp_path):
    path = tmp_path / "hits.star"
    write_star(hits, path, volume=ugly_volume, tomogram_name="TS_7")
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
    columns = [line for line in lines if line.startswith("_")]
    rows = lines[lines.index(columns[-1]) + 1 :]
    assert len(rows) == 3
    assert {len(row.split()) for row in rows} == {len(columns)}
    assert "x_y" in rows[1]
    assert "none" in rows[2]


def test_no_hits_make_an_empty_table(ugly_volume, tmp_path):
    none = Hits(np.zeros((0, 3)), np.zeros(0, int))
    write_star(none, tmp_path / "none.star", volume=ugly_volume, tomogram_name="TS_7")
    assert len(starfile.read(tmp_path / "none.star")) == 0
    write_hits_csv(none, tmp_path / "none.csv", volume=ugly_volume)
    assert len((tmp_path / "none.csv").read_text().splitlines()) == 1


@pytest.mark.parametrize("name", ["", "TS 7", "TS'7", "TS\t7", "#7"])
def test_tomogram_names_that_break_star_files_are_refused(hits, ugly_volume, tmp_path, name):
    with pytest.raises(FormatError, match="rlnTomoName"):
        write_star(hits, tmp_path / "hits.star", volume=ugly_volume, tomogram_name=name)
    assert not list(tmp_path.iterdir())


def test_unknown_convention_is_refused(hits, ugly_volume, tmp_path):
    with pytest.raises(FormatError, match="RELION 4 reads 'relion3'"):
        write_star(hits, tmp_path / "hits.star", volume=ugly_volume, convention="relion4", tomogram_name="t")


@pytest.mark.parametrize("kind", ["star", "csv", "html"])
def test_existing_files_survive_unless_told(hits, ugly_volume, tmp_path, kind):
    def write(path, **options):
        if kind == "star":
            write_star(hits, path, volume=ugly_volume, tomogram_name="t", **options)
        elif kind == "csv":
            write_hits_csv(hits, path, volume=ugly_volume, **options)
        else:
            write_report(path, title="t", summary={}, sections=[], **options)

    path = tmp_path / f"out.{kind}"
    path.write_text("precious")
    with pytest.raises(ExistingOutputError, match="--overwrite"):
        write(path)
    assert path.read_text() == "precious"
    write(path, overwrite=True)
    assert path.read_text() != "precious"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    with pytest.raises(MissingFileError, match="Create the folder"):
        write(tmp_path / "nowhere" / path.name)


# ---------------------------------------------------------------- report


class Page(HTMLParser):
    """Tags, attributes and text of a page; complains about tags that do not close."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.text = ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_report_is_one_file_that_fetches_nothing(ugly_volume, label_map, hits, tmp_path):
    path = tmp_path / "report.html"
    figure = slices_figure(ugly_volume, label_map, hits, caption="Slices")
    parts = ("A paragraph.", figure, hits_table(hits, most=2))
    write_report(path, title="Scan", summary={"voxel size": "1.37 Å"}, sections=[Section("Found", parts)])
    page = Page(path.read_text(encoding="utf-8"))
    sources = [value for _, name, value in page.attributes if name in ("src", "href")]
    assert len(sources) == 1
    assert sources[0].startswith("data:image/png;base64,")
    assert not re.search(r"https?:|@import|url\(", path.read_text())
    assert "1.37 Å" in page.text
    assert "The best 2 of 3 are shown." in page.text


def test_text_of_a_report_is_never_markup(tmp_path):
    evil = '<script>alert("1")</script> & {0} {title}'
    path = tmp_path / "report.html"
    candidate = Candidate(1, evil, evil, evil, evil, 0.5)
    table = candidates_table([candidate], extra={evil: [evil]}, caption=evil)
    figure = Figure(b"", evil)
    write_report(path, title=evil, summary={evil: evil}, sections=[Section(evil, (evil, figure, table))])
    page = Page(path.read_text())
    assert "script" not in {tag for tag, _, _ in page.attributes}
    assert "<script" not in path.read_text()
    assert page.text.count(evil) >= 10


def test_candidates_are_shown_with_their_docking():
    candidates = [
        Candidate(1, "1.10.490.10", "CATH", "Globin-like", "1p3qQ00", 0.91, pdb="1p3q", chain="Q", ranges="1-158:Q"),
        Candidate(2, "2.60.40.10", "CATH", "Ig", "1abcA01", 0.5, length=99),
    ]
    table = candidates_table(candidates, extra={"CC mask": [0.8123, 0.3]})
    assert table.header[-1] == "CC mask"
    assert table.rows[0] == (
        "1",
        "1.10.490.10",
        "Globin-like",
        "CATH",
        "0.910",
        "1p3qQ00",
        "1p3q Q",
        "1-158:Q",
        "0.812",
    )
    assert table.rows[1][-2:] == ("99", "0.300")
    assert {len(row) for row in table.rows} == {len(table.header)}


def test_hits_are_tabled_in_x_y_z(hits):
    z, y, x = hits.positions[0]
    assert hits_table(hits).rows[0][-3:] == (f"{x:.1f}", f"{y:.1f}", f"{z:.1f}")
    assert isinstance(hits_table(hits), Table)


def test_slices_show_labels_in_the_colour_of_their_class(ugly_volume, label_map):
    assert len(colours(slices_figure(ugly_volume))) == 0
    painted = colours(slices_figure(ugly_volume, label_map))
    legend = label_map.classes[3].colour
    assert (np.abs(painted - legend).max(axis=1) <= 2).sum() > 50


def test_labels_are_drawn_where_their_angstroms_are(ugly_volume):
    """The same label on a coarse grid and on the volume's own grid cover the same part of the picture."""
    fine = np.zeros(ugly_volume.shape, np.int32)
    fine[4:6, 6:10, 8:16] = 1
    coarse = np.zeros((6, 9, 12), np.int32)
    coarse[2, 3:5, 4:8] = 1
    shift = 0.5 * ugly_volume.voxel_size  # centre of the first coarse voxel, which is two fine ones wide
    origin = tuple(part + shift for part in ugly_volume.origin)
    pictures = [
        imread(io.BytesIO(slices_figure(ugly_volume, LabelMap(volume, {}), position=position).png))
        for volume in (
            Volume(fine, ugly_volume.voxel_size, ugly_volume.origin),
            Volume(coarse, 2 * ugly_volume.voxel_size, origin),
        )
        for position in [tuple(ugly_volume.to_position([4.2, 7.2, 9.2]))]
    ]
    assert pictures[0].shape == pictures[1].shape
    assert (np.abs(pictures[0] - pictures[1]).max(axis=-1) > 0.1).mean() < 0.002


@pytest.mark.parametrize("plane", [0, 1, 2])
def test_each_plane_shows_its_axes_the_right_way_round(plane, ugly_volume):
    """A label moved along one axis moves along one axis of the picture: across for x (z in zy), down for y and z."""

    def middle(**where: int) -> np.ndarray:
        box = [slice(where.get(axis, 2), where.get(axis, 2) + 3) for axis in "zyx"]
        box[plane] = slice(0, 1)  # in the plane of its own slice, beside the two others
        labels = np.zeros(ugly_volume.shape, np.int32)
        labels[tuple(box)] = 1
        label_map = LabelMap(Volume(labels, ugly_volume.voxel_size, ugly_volume.origin), {})
        index = [8.0, 13.0, 12.0]
        index[plane] = 0.0
        picture = imread(io.BytesIO(slices_figure(ugly_volume, label_map, position=ugly_volume.to_position(index)).png))
        solid = np.array(LabelClass("region 1").colour) / 255
        legend = np.abs(picture[..., :3] - solid).max(axis=-1) < 0.01
        painted = (np.ptp(picture[..., :3], axis=-1) > 0.15) & ~legend
        return np.argwhere(painted)[:, :2].mean(axis=0)

    across, down = {0: "xy", 1: "xz", 2: "zy"}[plane]
    rows, columns = middle(**{across: 5}) - middle()
    assert columns > 10 * abs(rows)
    rows, columns = middle(**{down: 5}) - middle()
    assert rows > 10 * abs(columns)


def test_only_three_slices_of_a_lazy_volume_are_read(ugly_volume):
    class Counting:
        shape, dtype = ugly_volume.shape, ugly_volume.data.dtype
        voxels = 0

        def __getitem__(self, key):
            part = ugly_volume.data[key]
            self.voxels += part.size
            return part

    data = Counting()
    slices_figure(Volume(data, ugly_volume.voxel_size, ugly_volume.origin))
    depth, height, width = ugly_volume.shape
    assert data.voxels == height * width + depth * width + depth * height


def test_hits_and_labels_far_from_the_slices_are_left_out_of_them(ugly_volume, hits):
    beside = Volume(np.ones((3, 3, 3), np.int32), 1.0, (9000.0, 9000.0, 9000.0))
    assert slices_figure(ugly_volume, LabelMap(beside, {})).png.startswith(b"\x89PNG")
    assert slices_figure(ugly_volume, None, hits.select(hits.scores > 2)).png.startswith(b"\x89PNG")

"""Reports: one HTML page that holds its pictures and tables and needs nothing else."""

import base64
import html
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colors, lines, patches
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from cryoscan.errors import refuse_existing
from cryoscan.hits import Candidate, Hits
from cryoscan.labels import LabelClass, LabelMap
from cryoscan.provenance import cryoscan_version, write_atomically
from cryoscan.units import Angstrom, Vector
from cryoscan.volume import Volume

_Extent = tuple[float, float, float, float]
_MOST_PIXELS = 1024  # per axis of a slice: more than the page can show
_MOST_IN_LEGEND = 24
_OPACITY = 0.55
_PANELS = 8.5  # inches that the slices take side by side


@dataclass(frozen=True, slots=True, eq=False)
class Figure:
    """A picture and what it shows."""

    png: bytes
    caption: str


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Rows of text under a header, and what they say."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Section:
    """A heading and what follows: paragraphs (str, plain text), figures and tables."""

    title: str
    parts: tuple[str | Figure | Table, ...]


def write_report(
    path: Path | str,
    *,
    title: str,
    summary: Mapping[str, object],
    sections: Sequence[Section],
    overwrite: bool = False,
) -> None:
    """Write a report as one self-contained HTML file.

    Parameters
    ----------
    path : path
        Of the HTML file.
    title : str
        Heading of the page.
    summary : mapping
        Shown as a table of two columns at the top.
    sections : sequence of Section
        All text is plain and is escaped.
    overwrite : bool
        Replace a file that exists.
    """
    path = refuse_existing(Path(path), overwrite=overwrite)
    body = "\n".join(_section(section) for section in sections)
    facts = "\n".join(f"<tr><th>{_escape(key)}</th><td>{_escape(value)}</td></tr>" for key, value in summary.items())
    write_atomically(
        path, _PAGE.format(title=_escape(title), facts=facts, body=body, version=_escape(cryoscan_version()))
    )


def candidates_table(
    candidates: Sequence[Candidate], *, extra: Mapping[str, Sequence[object]] | None = None, caption: str = ""
) -> Table:
    """Make a table of ranked candidates.

    Parameters
    ----------
    candidates : sequence of Candidate
        Best first.
    extra : mapping, optional
        Header → one value per candidate, e.g. docking correlations; shown as further columns.
    caption : str
        Above the table.
    """
    extra = extra or {}
    header = ("rank", "type", "name", "scheme", "cosine", "representative", "PDB", "residues", *extra)
    rows = []
    for i, item in enumerate(candidates):
        place = f"{item.pdb} {item.chain}".strip()
        residues = item.ranges or (str(item.length) if item.length else "")
        cells = [str(item.rank), item.type, item.name, item.scheme, f"{item.cosine:.3f}", item.entry, place, residues]
        rows.append((*cells, *(_cell(values[i]) for values in extra.values())))
    return Table(header, tuple(rows), caption)


def hits_table(hits: Hits, *, most: int = 50, caption: str = "") -> Table:
    """Make a table of the best `most` hits; positions in Å, x y z as other programs show them."""
    header = ("rank", "type", "name", "entry", "score", "margin", "x (Å)", "y (Å)", "z (Å)")
    rows = []
    for i in range(min(len(hits), most)):
        z, y, x = hits.positions[i]
        numbers = (f"{hits.scores[i]:.3f}", f"{hits.margins[i]:.3f}", f"{x:.1f}", f"{y:.1f}", f"{z:.1f}")
        rows.append((str(i + 1), hits.types[i], hits.names[i], hits.entries[i], *numbers))
    if len(hits) > most:
        caption = f"{caption} The best {most} of {len(hits)} are shown.".strip()
    return Table(header, tuple(rows), caption)


def slices_figure(
    volume: Volume,
    labels: LabelMap | None = None,
    hits: Hits | None = None,
    *,
    outlines: LabelMap | None = None,
    position: Vector | None = None,
    caption: str = "",
) -> Figure:
    """Draw the three central slices of a volume, with domains in colour and hits as circles.

    Parameters
    ----------
    volume : Volume
        May be lazy: only three slices are read.
    labels : LabelMap, optional
        May have another grid: it is placed by its own voxel size and origin.
    hits : Hits, optional
        Those within 3 % of the volume's extent from a slice are circled; the legend counts all.
    outlines : LabelMap, optional
        Regions to compare with, e.g. those of a model: outlined in white.
    position : (z, y, x) in Å, optional
        Where the slices cross. Default: the middle of the volume.
    caption : str
        Below the picture.
    """
    centre = np.array(position if position is not None else volume.to_position((np.array(volume.shape) - 1) / 2))
    canvas, panels = _panels(volume)
    for axis, axes in panels.items():
        _draw_slice(axes, volume, labels, hits, axis=axis, centre=centre)
        if outlines is not None:
            _draw_outlines(axes, outlines, axis=axis, position=float(centre[axis]))
    _scale_bar(panels[0], volume)
    entries = _legend(labels, hits)
    if entries:
        beside = max(axes.get_position().x1 for axes in panels.values()) + 0.35 / canvas.get_figwidth()
        top = panels[0].get_position().y1
        canvas.legend(handles=entries, loc="upper left", bbox_to_anchor=(beside, top), fontsize=11, frameon=False)
    stream = io.BytesIO()
    # Tight: the canvas grows around the legend, however tall or wide it is.
    canvas.savefig(stream, format="png", dpi=110, facecolor="white", bbox_inches="tight", pad_inches=0.15)
    return Figure(stream.getvalue(), caption)


# ---------------------------------------------------------------- slices


def _panels(volume: Volume) -> tuple[Canvas, dict[int, Axes]]:
    """A canvas and the axes of the slices across z, y and x, all at one scale."""
    depth, height, width = volume.extent
    scale = min(_PANELS / (width + depth), _PANELS / (height + depth))  # inches per Å
    across, down, deep = width * scale, height * scale, max(depth * scale, 0.05)
    margin, gap = 0.9, 1.0  # inches: axis labels and titles
    size = np.array([2 * margin + across + gap + max(deep, 1.5), 2 * margin + down + gap + deep])
    canvas = Canvas(figsize=(size[0], size[1]))

    def panel(left: float, bottom: float, wide: float, high: float) -> Axes:
        return canvas.add_axes((left / size[0], bottom / size[1], wide / size[0], high / size[1]))

    low, high = margin, margin + deep + gap
    panels = {
        0: panel(margin, high, across, down),
        1: panel(margin, low, across, deep),
        2: panel(margin + across + gap, high, deep, down),
    }
    return canvas, panels


def _draw_slice(
    axes: Axes, volume: Volume, labels: LabelMap | None, hits: Hits | None, *, axis: int, centre: np.ndarray
) -> None:
    image, extent = _slice(volume, axis, float(centre[axis]))
    if image is not None:
        low, high = np.percentile(image, [1, 99.7])
        axes.imshow(image, cmap="gray", vmin=low, vmax=high if high > low else low + 1, extent=extent)
    box = axes.axis()
    if labels is not None:
        part, place = _slice(labels.volume, axis, float(centre[axis]))
        if part is not None:
            axes.imshow(_coloured(part, labels), extent=place, interpolation="nearest")
    if hits is not None:
        _draw_hits(axes, volume, hits, axis=axis, centre=centre, coloured=labels is None)
    axes.axis(box)
    # zy is shown with z across, beside xy, so that both share y.
    across, down = {0: ("x", "y"), 1: ("x", "z"), 2: ("z", "y")}[axis]
    name = "zyx"[axis]
    axes.set_title(f"{across}{down}, {name} = {centre[axis]:.0f} Å", fontsize=12, loc="left")
    axes.set_xlabel(f"{across} (Å)", fontsize=11)
    axes.set_ylabel(f"{down} (Å)", fontsize=11)
    axes.tick_params(labelsize=10)
    wide, high = np.array(axes.get_window_extent().size) / axes.figure.dpi  # inches
    axes.locator_params(axis="x", nbins=max(1, min(5, int(wide / 0.7))))
    axes.locator_params(axis="y", nbins=max(1, min(5, int(high / 0.4))))
    if wide < 1:
        axes.tick_params(axis="x", rotation=90)


def _slice(volume: Volume, axis: int, position: Angstrom) -> tuple[np.ndarray | None, _Extent]:
    """The slice through a position as an image, and its place in Å; None beside the volume."""
    index = round((position - volume.origin[axis]) / volume.voxel_size)
    rows, columns = {0: (1, 2), 1: (0, 2), 2: (1, 0)}[axis]
    low = np.array(volume.origin) - volume.voxel_size / 2
    high = low + volume.extent
    # The first row is drawn on top, so y and z grow downwards, as napari shows them.
    extent = (float(low[columns]), float(high[columns]), float(high[rows]), float(low[rows]))
    if not 0 <= index < volume.shape[axis]:
        return None, extent
    thin = max(1, -(-max(volume.shape[rows], volume.shape[columns]) // _MOST_PIXELS))
    steps: list[Any] = [slice(None, None, thin)] * 3
    steps[axis] = index
    image = np.asarray(volume.data[tuple(steps)])
    return (image.T if axis == 2 else image), extent


def _draw_outlines(axes: Axes, outlines: LabelMap, *, axis: int, position: Angstrom) -> None:
    """Outline the regions of a slice, half a level between voxels that belong and voxels that do not."""
    image, (left, right, bottom, top) = _slice(outlines.volume, axis, position)
    if image is None:
        return
    rows, columns = image.shape
    x = left + (np.arange(columns) + 0.5) * (right - left) / columns
    y = top + (np.arange(rows) + 0.5) * (bottom - top) / rows
    box = axes.axis()
    for value in np.unique(image[image != 0]):
        axes.contour(x, y, (image == value).astype(np.float32), levels=[0.5], colors="white", linewidths=1.2)
    axes.axis(box)


def _coloured(image: np.ndarray, labels: LabelMap) -> np.ndarray:
    rgba = np.zeros((*image.shape, 4))
    for value in np.unique(image[image != 0]):
        rgba[image == value, :3] = np.array(_class(labels, int(value)).colour) / 255
        rgba[image == value, 3] = _OPACITY
    return rgba


def _draw_hits(axes: Axes, volume: Volume, hits: Hits, *, axis: int, centre: np.ndarray, coloured: bool) -> None:
    """Circle the hits near a slice, in white where their colour is that of the label below."""
    near = np.abs(hits.positions[:, axis] - centre[axis]) <= 0.03 * max(volume.extent)
    rows, columns = {0: (1, 2), 1: (0, 2), 2: (1, 0)}[axis]
    classes = [LabelClass(hits.names[i], hits.types[i], hits.schemes[i]) for i in np.flatnonzero(near)]
    edges = [_rgb(meaning) if coloured else (1.0, 1.0, 1.0) for meaning in classes]
    across, down = hits.positions[near, columns], hits.positions[near, rows]
    axes.scatter(across, down, s=90, facecolors="none", edgecolors=edges, linewidths=2)


def _legend(labels: LabelMap | None, hits: Hits | None) -> list[Any]:
    """One entry per class: of hits with their number, else of labels with their volume."""
    found: list[tuple[float, str, LabelClass]] = []
    if hits is not None and len(hits):
        numbers = Counter(zip(hits.names, hits.types, hits.schemes, strict=True))
        found = [(number, str(number), LabelClass(*key)) for key, number in sorted(numbers.items())]
    elif labels is not None:
        values, counts = np.unique(labels.labels(), return_counts=True)
        cubic_nm = counts * (labels.voxel_size / 10) ** 3
        found = [
            (float(volume), f"{volume:.3g} nm³", _class(labels, int(value)))
            for value, volume in zip(values, cubic_nm, strict=True)
            if value
        ]
    found.sort(key=lambda item: -item[0])
    entries: list[Any] = []
    for _, amount, meaning in found[:_MOST_IN_LEGEND]:
        name = meaning.name if not meaning.type or meaning.type == meaning.name else f"{meaning.name} {meaning.type}"
        text = f"{_shortened(name)} ({amount})"
        if labels is not None:
            entries.append(patches.Patch(color=_rgb(meaning), label=text))
        else:
            ring = lines.Line2D([], [], linestyle="none", marker="o", markersize=9, markerfacecolor="none", label=text)
            ring.set(markeredgecolor=_rgb(meaning), markeredgewidth=2)
            entries.append(ring)
    if len(found) > _MOST_IN_LEGEND:
        entries.append(patches.Patch(color="none", label=f"and {len(found) - _MOST_IN_LEGEND} more"))
    return entries


def _scale_bar(axes: Axes, volume: Volume) -> None:
    """A bar of a round length, about a fifth of the width."""
    width = volume.extent[2]
    power = 10 ** np.floor(np.log10(width / 5))
    length = float(max(step * power for step in (1, 2, 5) if step * power <= width / 5))
    left, right, bottom, top = axes.axis()
    x, y = left + 0.05 * (right - left), bottom + 0.06 * (top - bottom)
    box = {"facecolor": "black", "alpha": 0.6, "edgecolor": "none", "pad": 2}
    axes.plot([x, x + length], [y, y], color="white", linewidth=4, solid_capstyle="butt")
    text = f"{length:g} Å" if length < 10000 else f"{length / 10000:g} µm"
    axes.text(x, y + 0.025 * (top - bottom), text, color="white", fontsize=11, va="bottom", bbox=box)


def _class(labels: LabelMap, value: int) -> LabelClass:
    return labels.classes.get(value, LabelClass(f"region {value}"))


def _rgb(meaning: LabelClass) -> tuple[float, float, float]:
    red, green, blue = (part / 255 for part in meaning.colour)
    return colors.to_rgb((red, green, blue))


def _shortened(text: str, most: int = 34) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


# ---------------------------------------------------------------- page


def _section(section: Section) -> str:
    parts = []
    for part in section.parts:
        if isinstance(part, Figure):
            data = base64.b64encode(part.png).decode()
            picture = f'<img src="data:image/png;base64,{data}" alt="{_escape(part.caption or section.title)}">'
            parts.append(f"<figure>{picture}<figcaption>{_escape(part.caption)}</figcaption></figure>")
        elif isinstance(part, Table):
            parts.append(_table(part))
        else:
            parts.append(f"<p>{_escape(part)}</p>")
    return f"<section><h2>{_escape(section.title)}</h2>\n" + "\n".join(parts) + "</section>"


def _table(table: Table) -> str:
    head = "".join(f"<th>{_escape(name)}</th>" for name in table.header)
    rows = "\n".join("<tr>" + "".join(f"<td>{_escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
    caption = f"<caption>{_escape(table.caption)}</caption>" if table.caption else ""
    return f'<div class="wide"><table>{caption}<thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table></div>'


def _cell(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float | np.floating) else str(value)


def _escape(value: object) -> str:
    return html.escape(str(value), quote=True)


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #1b1f24; background: #fff; max-width: 72rem; margin: 2rem auto;
  padding: 0 1.5rem; }}
h1 {{ font-size: 1.7rem; margin-bottom: 1rem; }}
h2 {{ font-size: 1.25rem; margin-top: 2.2rem; border-bottom: 1px solid #d0d7de; padding-bottom: 0.3rem; }}
table {{ border-collapse: collapse; margin: 0.8rem 0; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: left; padding: 0.3rem 0.8rem; border-bottom: 1px solid #d0d7de; vertical-align: top;
  overflow-wrap: break-word; }}
thead th {{ background: #f3f5f7; white-space: nowrap; }}
caption, figcaption {{ text-align: left; color: #57606a; padding: 0.3rem 0; }}
figure {{ margin: 0.8rem 0; }}
img {{ max-width: 100%; height: auto; }}
.wide {{ overflow-x: auto; }}
footer {{ margin-top: 3rem; color: #57606a; font-size: 0.85rem; }}
</style>
</head>
<body>
<h1>{title}</h1>
<table>
{facts}
</table>
{body}
<footer>cryoscan {version}</footer>
</body>
</html>
"""

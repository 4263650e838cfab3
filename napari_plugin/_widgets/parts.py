"""Pieces that several widgets are made of."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from qtpy.QtCore import Qt
from qtpy.QtGui import QColor
from qtpy.QtWidgets import (
    QAbstractItemView,
    QComboBox,
    QFileDialog,
    QFormLayout,
    QHBoxLayout,
    QHeaderView,
    QLabel,
    QLineEdit,
    QPushButton,
    QSizePolicy,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from cryoscan.errors import CryoscanError
from napari_plugin._session import Session, session_of


class Panel(QWidget):
    """A widget of a viewer's session: a column of things, and the signals it listens to while it lives.

    Parameters
    ----------
    viewer : napari.Viewer
    """

    def __init__(self, viewer: Any) -> None:
        super().__init__()
        self.viewer = viewer
        self.session: Session = session_of(viewer)
        self.controller = self.session.controller
        self.canvas = self.session.canvas
        self.column = QVBoxLayout(self)
        self.column.setContentsMargins(8, 6, 8, 6)
        self.column.setSpacing(6)
        self._heard: list[tuple[Any, Callable[..., Any]]] = []
        heard = self._heard
        self.destroyed.connect(lambda *_: _deafen(heard))

    def hear(self, signal: Any, handler: Callable[..., Any]) -> None:
        """Call a handler at a signal, until this widget is gone."""
        signal.connect(handler)
        self._heard.append((signal, handler))

    def doing(self, action: Callable[[], Any]) -> Callable[..., None]:
        """An action whose errors become notifications."""

        def run(*_: object) -> None:
            try:
                action()
            except (CryoscanError, OSError) as error:
                self.controller.complain(error)

        return run

    def button(self, text: str, tip: str, action: Callable[[], Any], *, checkable: bool = False) -> QPushButton:
        """A button that does something."""
        button = QPushButton(text)
        button.setToolTip(tip)
        button.setCheckable(checkable)
        button.clicked.connect(self.doing(action))
        return button

    def row(self, *widgets: QWidget) -> QHBoxLayout:
        """Widgets side by side, at the end of the column."""
        row = QHBoxLayout()
        for widget in widgets:
            row.addWidget(widget)
        self.column.addLayout(row)
        return row


class LayerChoice(QComboBox):
    """A list of layers that follows the viewer's.

    Parameters
    ----------
    viewer : napari.Viewer
    layers : function
        Gives those to choose from.
    none : str, optional
        Text of a first line that means no layer.
    """

    def __init__(self, viewer: Any, layers: Callable[[], Sequence[Any]], *, none: str | None = None) -> None:
        super().__init__()
        self._layers, self._none = layers, none
        self.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.setMinimumContentsLength(14)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        for event in (viewer.layers.events.inserted, viewer.layers.events.removed):
            event.connect(self._refill)
        events, refill = viewer.layers.events, self._refill
        self.destroyed.connect(lambda *_: _forget(events, refill))
        self._refill()

    @property
    def layer(self) -> Any | None:
        """The layer that is chosen."""
        name = self.currentData()
        return next((layer for layer in self._layers() if layer.name == name), None)

    def _refill(self, *_: object) -> None:
        chosen = self.currentData()
        self.clear()
        if self._none is not None:
            self.addItem(self._none, None)
        for layer in self._layers():
            self.addItem(layer.name, layer.name)
        self.setCurrentIndex(max(0, self.findData(chosen)) if chosen else 0)


class PathEdit(QWidget):
    """A path: typed, or chosen in a dialog.

    Parameters
    ----------
    tip, placeholder : str
    kind : {"open", "save", "folder"}
    """

    def __init__(self, tip: str, placeholder: str = "", *, kind: str = "open") -> None:
        super().__init__()
        self._kind = kind
        self.edit = QLineEdit()
        self.edit.setPlaceholderText(placeholder)
        self.edit.setToolTip(tip)
        browse = QPushButton("…")
        browse.setFixedWidth(28)
        browse.setToolTip("Choose")
        browse.clicked.connect(self._browse)
        row = QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self.edit)
        row.addWidget(browse)

    @property
    def path(self) -> Path | None:
        """The path, None if the field is empty."""
        text = self.edit.text().strip()
        return Path(text).expanduser() if text else None

    def set_path(self, path: Path | str) -> None:
        """Fill in a path."""
        self.edit.setText(str(path))

    def _browse(self) -> None:
        if self._kind == "folder":
            chosen = QFileDialog.getExistingDirectory(self, "Choose", self.edit.text())
        elif self._kind == "save":
            chosen = QFileDialog.getSaveFileName(self, "Choose", self.edit.text())[0]
        else:
            chosen = QFileDialog.getOpenFileName(self, "Choose", self.edit.text())[0]
        if chosen:
            self.edit.setText(chosen)


def heading(text: str) -> QLabel:
    """A line above a group of things."""
    label = QLabel(f"<b>{text}</b>")
    label.setTextFormat(Qt.TextFormat.RichText)
    return label


def note(text: str = "") -> QLabel:
    """A sentence that wraps; addresses in it open in the browser."""
    label = QLabel(text)
    label.setWordWrap(True)
    label.setOpenExternalLinks(True)
    label.setTextInteractionFlags(Qt.TextInteractionFlag.TextBrowserInteraction)
    return label


def form() -> QFormLayout:
    """Names on the left, fields on the right."""
    layout = QFormLayout()
    layout.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.ExpandingFieldsGrow)
    layout.setVerticalSpacing(4)
    return layout


def beside(*parts: QWidget | str) -> QHBoxLayout:
    """Fields, and words between them, in one row of a form."""
    row = QHBoxLayout()
    for part in parts:
        row.addWidget(QLabel(part) if isinstance(part, str) else part)
    return row


def table(columns: Sequence[str], *, stretch: int, checkable: bool = False) -> QTableWidget:
    """A table of whole rows, one column of which takes what room there is."""
    shown = QTableWidget(0, len(columns))
    shown.setHorizontalHeaderLabels(list(columns))
    shown.verticalHeader().hide()
    shown.verticalHeader().setDefaultSectionSize(22)
    shown.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
    shown.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
    shown.setShowGrid(False)
    shown.setWordWrap(False)
    if not checkable:
        shown.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
    header = shown.horizontalHeader()
    header.setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
    header.setSectionResizeMode(stretch, QHeaderView.ResizeMode.Stretch)
    return shown


def fill(shown: QTableWidget, rows: Iterable[Sequence[object]]) -> None:
    """Replace the rows of a table; numbers stand on the right, and what does not fit is in the tooltip."""
    shown.setRowCount(0)
    for index, row in enumerate(rows):
        shown.insertRow(index)
        for column, value in enumerate(row):
            text = f"{value:.3f}" if isinstance(value, float) else str(value)
            item = QTableWidgetItem(text)
            item.setToolTip(text)
            if isinstance(value, int | float):
                item.setTextAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
            shown.setItem(index, column, item)


def swatch(colour: tuple[int, int, int]) -> QTableWidgetItem:
    """A cell of one colour."""
    item = QTableWidgetItem("  ")
    item.setBackground(QColor(*colour))
    return item


def number(edit: QLineEdit) -> float | None:
    """The number in a field, None if it is empty.

    Raises
    ------
    CryoscanError
        If it is no number.
    """
    from cryoscan.errors import ConfigError

    text = edit.text().strip().replace(",", ".")
    if not text:
        return None
    try:
        return float(text)
    except ValueError as error:
        raise ConfigError("expected a number", got=f"'{text}'", hint="Write it like 6.5, without a unit.") from error


def theme_colours(viewer: Any) -> tuple[QColor, QColor, QColor]:
    """Ink, accent and ground of the viewer's theme, light or dark."""
    from napari.utils.theme import get_theme

    theme = get_theme(viewer.theme)
    return (
        QColor(theme.text.as_hex()),
        QColor(theme.current.as_hex()),
        QColor(theme.background.as_hex()),
    )


def _deafen(heard: list[tuple[Any, Callable[..., Any]]]) -> None:
    for signal, handler in heard:
        signal.disconnect(handler, missing_ok=True)


def _forget(events: Any, refill: Any) -> None:
    for event in (events.inserted, events.removed):
        event.disconnect(refill)

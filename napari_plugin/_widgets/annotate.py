"""The annotator's window: every duty a page, in the order of the day."""

from typing import Any

from qtpy.QtWidgets import (
    QButtonGroup,
    QGridLayout,
    QPushButton,
    QScrollArea,
    QSizePolicy,
    QStackedWidget,
    QVBoxLayout,
    QWidget,
)

from napari_plugin._widgets.ask import AskWidget
from napari_plugin._widgets.correct import CorrectWidget
from napari_plugin._widgets.domains import DomainsWidget
from napari_plugin._widgets.explore import ExploreWidget
from napari_plugin._widgets.export import ExportWidget
from napari_plugin._widgets.identify import IdentifyWidget
from napari_plugin._widgets.scan import ScanWidget
from napari_plugin._widgets.tune import TuneWidget

_PAGES = {
    "Scan": (ScanWidget, "Look at a volume, and find all that is in it"),
    "Domains": (DomainsWidget, "What was found: legend, counts, what is shown"),
    "Ask": (AskWidget, "What is this?"),
    "Tune": (TuneWidget, "Thresholds, with counts as you drag"),
    "Correct": (CorrectWidget, "Accept, reject, rename, edit"),
    "Identify": (IdentifyWidget, "Name a region, or the parts of a map"),
    "Explore": (ExploreWidget, "Hits that are alike, in a plane"),
    "Export": (ExportWidget, "Files for other programs"),
}


class AnnotateWidget(QWidget):
    """All widgets of cryoscan in one.

    Parameters
    ----------
    napari_viewer : napari.Viewer
    """

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__()
        self.pages: dict[str, QWidget] = {}
        self._stack = QStackedWidget()
        self._buttons = QButtonGroup(self)
        grid = QGridLayout()
        grid.setSpacing(2)
        for index, (name, (kind, tip)) in enumerate(_PAGES.items()):
            page = kind(napari_viewer)
            self.pages[name] = page
            scroll = QScrollArea()
            scroll.setWidget(page)
            scroll.setWidgetResizable(True)
            self._stack.addWidget(scroll)
            button = QPushButton(name)
            button.setCheckable(True)
            button.setToolTip(f"{tip} (Ctrl+Alt+{index + 1})")
            button.setShortcut(f"Ctrl+Alt+{index + 1}")
            self._buttons.addButton(button, index)
            grid.addWidget(button, index // 4, index % 4)
        self._buttons.idClicked.connect(self._stack.setCurrentIndex)
        column = QVBoxLayout(self)
        column.setContentsMargins(4, 4, 4, 4)
        column.addLayout(grid)
        column.addWidget(self._stack)
        self.setMinimumWidth(380)
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Expanding)
        self.show_page("Scan")

    def show_page(self, name: str) -> None:
        """Turn to a page."""
        index = list(_PAGES).index(name)
        self._buttons.button(index).setChecked(True)
        self._stack.setCurrentIndex(index)

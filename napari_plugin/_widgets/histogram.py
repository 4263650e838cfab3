"""A histogram with a line that can be dragged: how many places a threshold keeps."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from qtpy.QtCore import QRectF, Qt, Signal
from qtpy.QtGui import QPainter, QPen
from qtpy.QtWidgets import QWidget

from napari_plugin._widgets.parts import theme_colours

_BINS = 40


class Histogram(QWidget):
    """Values, and a threshold in them.

    Parameters
    ----------
    viewer : napari.Viewer
        Its theme is followed.
    """

    moved = Signal(float)
    """Where the line was dragged to."""

    def __init__(self, viewer: Any) -> None:
        super().__init__()
        self._viewer = viewer
        self._values = np.zeros(0)
        self._range = (0.0, 1.0)
        self._line = 0.0
        self.setFixedHeight(64)
        self.setMinimumWidth(200)

    def show_values(self, values: Sequence[float] | np.ndarray, line: float) -> None:
        """Show other values, and where the threshold is."""
        self._values = np.asarray(values, np.float64)
        if len(self._values):
            low, high = min(float(self._values.min()), line), max(float(self._values.max()), line)
            pad = 0.04 * (high - low or abs(high) or 1.0)
            self._range = (low - pad if low < 0 else max(low - pad, 0.0), high + pad)
        self._line = line
        self.update()

    def value_at(self, x: float) -> float:
        """The value below a pixel."""
        low, high = self._range
        return low + (high - low) * min(max(x / max(self.width(), 1), 0.0), 1.0)

    def paintEvent(self, _: Any) -> None:
        """Draw bars, those above the threshold in the theme's accent, and the line."""
        ink, accent, ground = theme_colours(self._viewer)
        painter = QPainter(self)
        painter.fillRect(self.rect(), ground)
        low, high = self._range
        counts, edges = np.histogram(self._values, bins=_BINS, range=self._range)
        top = max(int(counts.max(initial=0)), 1)
        width, height = self.width(), self.height() - 16
        for count, left, right in zip(counts, edges[:-1], edges[1:], strict=True):
            x0, x1 = (width * (edge - low) / (high - low) for edge in (left, right))
            tall = height * count / top
            shade = accent if right > self._line else ink.darker(170)
            painter.fillRect(QRectF(x0, height - tall, x1 - x0 - 1, tall), shade)
        x = width * (self._line - low) / (high - low)
        painter.setPen(QPen(ink, 2))
        painter.drawLine(int(x), 0, int(x), height)
        painter.setPen(ink)
        flags = Qt.AlignmentFlag.AlignVCenter
        words = QRectF(0, height, width, 16)
        painter.drawText(words, flags | Qt.AlignmentFlag.AlignLeft, f"{low:.3g}")
        painter.drawText(words, flags | Qt.AlignmentFlag.AlignRight, f"{high:.3g}")
        painter.drawText(words, flags | Qt.AlignmentFlag.AlignHCenter, f"from {self._line:.4g}")
        painter.end()

    def mousePressEvent(self, event: Any) -> None:
        """Take hold of the line."""
        self._drag(event)

    def mouseMoveEvent(self, event: Any) -> None:
        """Drag it."""
        self._drag(event)

    def _drag(self, event: Any) -> None:
        self._line = self.value_at(event.position().x())
        self.update()
        self.moved.emit(self._line)

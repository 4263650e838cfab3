"""Points in a plane, coloured by type, that can be caught with a lasso."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from qtpy.QtCore import QPointF, Qt, Signal
from qtpy.QtGui import QColor, QPainter, QPen, QPolygonF
from qtpy.QtWidgets import QWidget

from napari_plugin._widgets.parts import theme_colours

_RIM = 14
_CLICK = 10.0  # pixels: a shorter lasso picks the nearest point


class Plane(QWidget):
    """A scatter plot with a lasso.

    Parameters
    ----------
    viewer : napari.Viewer
        Its theme is followed.
    """

    caught = Signal(list)
    """Numbers of the points inside the lasso."""

    def __init__(self, viewer: Any) -> None:
        super().__init__()
        self._viewer = viewer
        self._points = np.zeros((0, 2))
        self._colours: list[tuple[int, int, int]] = []
        self._marked: set[int] = set()
        self._lasso: list[QPointF] = []
        self.setMinimumSize(240, 260)
        self.setToolTip("Draw around points to select their hits; click one to go there")

    def show_points(self, points: np.ndarray, colours: Iterable[tuple[int, int, int]]) -> None:
        """Show other points, `n 2`."""
        self._points, self._colours, self._marked = np.asarray(points, np.float64), list(colours), set()
        self.update()

    def mark(self, numbers: Iterable[int]) -> None:
        """Point out some of them."""
        self._marked = set(numbers)
        self.update()

    def pixels(self) -> np.ndarray:
        """Where the points are in the widget, `n 2`."""
        if not len(self._points):
            return np.zeros((0, 2))
        low, high = self._points.min(axis=0), self._points.max(axis=0)
        span = np.where(high > low, high - low, 1.0)
        size = np.array([self.width() - 2 * _RIM, self.height() - 2 * _RIM])
        return _RIM + (self._points - low) / span * size

    def paintEvent(self, _: Any) -> None:
        """Draw the points, and the lasso while it is drawn."""
        ink, accent, ground = theme_colours(self._viewer)
        rim = QColor(ink)
        rim.setAlpha(110)
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.fillRect(self.rect(), ground.darker(115))
        for number, (x, y) in enumerate(self.pixels()):
            marked = number in self._marked
            painter.setPen(QPen(ink, 2) if marked else QPen(rim, 1))  # pale types would vanish on a light ground
            painter.setBrush(QColor(*self._colours[number]))
            painter.drawEllipse(QPointF(x, y), 6.0 if marked else 4.5, 6.0 if marked else 4.5)
        if self._lasso:
            painter.setBrush(Qt.BrushStyle.NoBrush)
            painter.setPen(QPen(accent, 1.5))
            painter.drawPolyline(QPolygonF(self._lasso))
        painter.end()

    def mousePressEvent(self, event: Any) -> None:
        """Begin a lasso."""
        self._lasso = [event.position()]

    def mouseMoveEvent(self, event: Any) -> None:
        """Draw it."""
        self._lasso.append(event.position())
        self.update()

    def mouseReleaseEvent(self, event: Any) -> None:
        """Close it: what is inside is caught."""
        polygon, self._lasso = QPolygonF([*self._lasso, event.position()]), []
        pixels = self.pixels()
        box = polygon.boundingRect()
        if max(box.width(), box.height()) < _CLICK:
            distance = np.linalg.norm(pixels - [event.position().x(), event.position().y()], axis=1)
            inside = [int(distance.argmin())] if len(distance) and distance.min() < _CLICK else []
        else:
            rule = Qt.FillRule.OddEvenFill
            inside = [i for i, (x, y) in enumerate(pixels) if polygon.containsPoint(QPointF(x, y), rule)]
        self.mark(inside)
        self.caught.emit(inside)

"""The domain map: which types were found, how often, and which of them are shown."""

from typing import Any

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QCheckBox, QSlider, QTableWidgetItem

from napari_plugin._widgets.parts import Panel, heading, note, swatch, table


class DomainsWidget(Panel):
    """Legend of the domain map.

    Parameters
    ----------
    napari_viewer : napari.Viewer
    """

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__(napari_viewer)
        self.summary = note("No scan is open.")
        self.legend = table(["", "", "hits", "type", "name"], stretch=4)
        self.legend.itemChanged.connect(self._on_checked)
        self.legend.cellDoubleClicked.connect(self._only)
        self.legend.setMinimumHeight(260)
        self.fade = QCheckBox("The surer the name, the stronger the colour")
        self.fade.setChecked(True)
        self.fade.toggled.connect(self.controller.review.set_fade)
        self.opacity = QSlider(Qt.Orientation.Horizontal)
        self.opacity.setRange(0, 100)
        self.opacity.setValue(70)
        self.opacity.setToolTip("Opacity of the domains over the density")
        self.opacity.valueChanged.connect(self._set_opacity)
        self.column.addWidget(self.summary)
        self.column.addWidget(self.legend)
        self.row(
            self.button("Show all", "Show every type", lambda: self.controller.review.show_only(None)),
            self.button("Hide all", "Hide every type", lambda: self.controller.review.show_only(())),
            self.button("2-D / 3-D", "Turn between slices and three dimensions", self._turn),
        )
        self.column.addWidget(self.fade)
        self.column.addWidget(heading("Opacity"))
        self.column.addWidget(self.opacity)
        self.column.addStretch()
        self.hear(self.controller.review.changed, self._show)
        self._show()

    def _show(self) -> None:
        review = self.controller.review
        if review.found is None or review.result is None:
            return
        rows = review.legend()
        total = sum(row.count for row in rows)
        painted = "" if review.painted else " Their regions are being painted …"
        said = f"{review.result.path.name}: {total} hits of {len(rows)} types.{painted}"
        if review.sharpened:
            said += f" {_sharpening(sum(row.unsafe for row in rows), int((review.unsafe & ~review.places.kept).sum()))}"
        self.summary.setText(said)
        self.legend.blockSignals(True)
        self.legend.setRowCount(len(rows))
        for index, row in enumerate(rows):
            check = QTableWidgetItem()
            check.setFlags(Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsUserCheckable)
            check.setCheckState(Qt.CheckState.Checked if row.visible else Qt.CheckState.Unchecked)
            check.setData(Qt.ItemDataRole.UserRole, (row.scheme, row.type))
            check.setToolTip("Show or hide; double-click a name to show it alone")
            self.legend.setItem(index, 0, check)
            self.legend.setItem(index, 1, swatch(row.colour))
            count = f"{row.count} ({row.unsafe} ◆)" if row.unsafe else str(row.count)
            about = f"{row.scheme} {row.type} {row.name}"
            if row.unsafe:
                about += f"; sharpening changed the label of {row.unsafe} of {row.count}"
            for column, text in enumerate((count, row.type, row.name), start=2):
                item = QTableWidgetItem(text)
                item.setToolTip(about)
                self.legend.setItem(index, column, item)
        self.legend.blockSignals(False)

    def _on_checked(self, item: QTableWidgetItem) -> None:
        key = item.data(Qt.ItemDataRole.UserRole)
        if key is not None:
            scheme, type_ = key
            self.controller.review.show_type(scheme, type_, item.checkState() == Qt.CheckState.Checked)

    def _only(self, row: int, _: int) -> None:
        scheme, type_ = self.legend.item(row, 0).data(Qt.ItemDataRole.UserRole)
        self.controller.review.show_only([(scheme, type_)])

    def _set_opacity(self, value: int) -> None:
        layer = self.canvas.layer("places")
        if layer is not None:
            layer.opacity = value / 100

    def _turn(self) -> None:
        self.viewer.dims.ndisplay = 5 - self.viewer.dims.ndisplay


def _sharpening(changed: int, lost: int) -> str:
    """What sharpening did to the labels."""
    if not changed and not lost:
        return "The volume was sharpened, which changed none of these labels."
    said = f"The volume was sharpened, which changed the labels of {changed} of them (◆, diamonds in the volume)"
    said += f" and took the name of {lost} more places" if lost else ""
    return f"{said}: there neither answer is safe."

"""The export dialog: what `cryoscan export` writes, by the same code."""

from typing import Any

from qtpy.QtWidgets import QCheckBox, QComboBox, QLineEdit

from napari_plugin._widgets.parts import Panel, PathEdit, form, note


class ExportWidget(Panel):
    """Write the answer of a scan for other programs.

    Parameters
    ----------
    napari_viewer : napari.Viewer
    """

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__(napari_viewer)
        self.labels = PathEdit("Domain type per voxel", "labels.mrc or .zarr", kind="save")
        self.hits = PathEdit("Places that were found", "hits.star or .csv", kind="save")
        self.journal = PathEdit("Every correction: who, when, what", "journal.csv", kind="save")
        self.convention = QComboBox()
        self.convention.addItem("RELION 5 (Å from the centre)", "relion5")
        self.convention.addItem("RELION 3 (voxels)", "relion3")
        self.tomogram = QLineEdit()
        self.tomogram.setPlaceholderText("the scan's name")
        self.tomogram.setToolTip("rlnTomoName in a STAR file")
        self.ngff = QComboBox()
        self.ngff.addItems(["0.5", "0.4"])
        self.ngff.setToolTip("0.4 for the CryoET Data Portal and copick 1")
        self.as_scanned = QCheckBox("as scanned, without corrections")
        self.overwrite = QCheckBox("replace files that exist")
        fields = form()
        for name, field in {
            "Labels": self.labels,
            "Hits": self.hits,
            "Journal": self.journal,
            "STAR positions": self.convention,
            "Tomogram name": self.tomogram,
            "OME-Zarr": self.ngff,
        }.items():
            fields.addRow(name, field)
        self.column.addLayout(fields)
        self.column.addWidget(self.as_scanned)
        self.column.addWidget(self.overwrite)
        self.go = self.button("Export", "Write the files", self._export)
        self.row(self.go)
        self.said = note(
            "Written is the scan after its corrections. Thresholds that were tuned count once they are applied (page "
            "Tune), edited regions once hits and exports follow them (page Correct)."
        )
        self.column.addWidget(self.said)
        self.column.addStretch()

    def _export(self) -> None:
        files = {"labels": self.labels.path, "hits": self.hits.path, "journal": self.journal.path}
        if not any(files.values()):
            self.controller.said.emit("warning", "Say what to write: labels, hits or the journal.")
            return
        self.controller.export(
            **files,
            convention=self.convention.currentData(),
            tomogram_name=self.tomogram.text().strip() or None,
            ngff=self.ngff.currentText(),
            as_scanned=self.as_scanned.isChecked(),
            overwrite=self.overwrite.isChecked(),
        )

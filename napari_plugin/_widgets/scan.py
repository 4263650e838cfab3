"""The scan widget: what to scan, a look before it, and how far it is."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QCheckBox, QComboBox, QLineEdit, QProgressBar, QSpinBox

from cryoscan.errors import ConfigError, GeometryError
from cryoscan.io import VolumeFile
from cryoscan.scan import ScanConfig, open_scan
from napari_plugin._scanning import Progress
from napari_plugin._sources import file_of, mask_of, outline_of
from napari_plugin._tasks import Outlook, ScanRequest
from napari_plugin._widgets.parts import LayerChoice, Panel, PathEdit, beside, fill, form, heading, note, number, table


class ScanWidget(Panel):
    """Find all that is in a volume.

    Parameters
    ----------
    napari_viewer : napari.Viewer
    """

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__(napari_viewer)
        self.volume = LayerChoice(napari_viewer, self.canvas.volumes)
        self.volume.setToolTip("The volume that is scanned, as it is in its file")
        self.contrast = QComboBox()
        self.contrast.addItems(["bright", "dark"])
        self.contrast.setToolTip("What protein is in the file; raw tomograms are mostly dark")
        self.resolution = QLineEdit()
        self.resolution.setPlaceholderText("from the voxel size")
        self.resolution.setToolTip("Resolution of the volume in Å, if you know it")
        tip = "A DateDB of your own (folder); the shipped one if empty. It brings the embedder that wrote it."
        self.datedb = PathEdit(tip, "shipped", kind="folder")
        self.scheme = QComboBox()
        self.scheme.addItems(["CATH", "SCOPe"])
        self.scheme.setToolTip("Classification whose types are the labels; types of your own count as well")
        self.stride = QSpinBox()
        self.stride.setRange(1, 32)
        self.stride.setValue(ScanConfig().stride_voxels)
        self.stride.setToolTip("Distance of neighbouring windows in voxels of 2.5 Å: smaller is slower and finds more")
        self.planes = QLineEdit()
        self.planes.setPlaceholderText("all, or first:stop")
        self.planes.setToolTip("Planes to scan, counted from 0, such as 40:160")
        self.enhance = QCheckBox("sharpen the volume first")
        self.enhance.setToolTip(
            "A network sharpens the volume before it is searched.\n"
            "Off by default: in our measurements naming does not gain from it, and it costs time.\n"
            "It is made for maps of 4 to 8 Å. Where it changes a label the scan says so, and neither answer is safe."
        )
        self.region = LayerChoice(napari_viewer, lambda: _drawn(napari_viewer), none="whole volume")
        self.region.setToolTip(
            "Scan only inside an outline (add a shapes layer and draw), or where a labels layer is painted"
        )
        self.mask = PathEdit("Scan only where this file, on the volume's grid, is above 0", "none")
        self.output = PathEdit("Folder of the scan; an unfinished one goes on", "beside the volume", kind="save")
        fields = form()
        for name, row in {
            "Volume": (self.volume,),
            "Protein is": (self.contrast, "Resolution (Å)", self.resolution),
            "DateDB": (self.datedb, self.scheme),
            "Stride": (self.stride, "Planes", self.planes),
            "Region": (self.region,),
            "Mask file": (self.mask,),
            "Enhance": (self.enhance,),
            "Output": (self.output,),
        }.items():
            fields.addRow(name, beside(*row))
        self.column.addLayout(fields)
        self.look = self.button("Look first", "Say what the scan will do, need and take", self._look)
        self.start = self.button("Scan", "Start; or go on with what is there", self._start)
        self.row(self.look, self.start)
        self.column.addWidget(heading("Before the start"))
        self.facts = table(["", "what the scan will do"], stretch=1)
        self.facts.setWordWrap(True)
        self.facts.setMinimumHeight(170)
        self.facts.setVerticalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.facts.horizontalHeader().hide()
        self.column.addWidget(self.facts)
        self.warnings = note()
        self.column.addWidget(self.warnings)
        self.bar = QProgressBar()
        self.bar.setFormat("")
        self.said = note("Nothing is running.")
        self.pause = self.button("Pause", "Stop; what is finished is kept", self._pause)
        give_up = self.controller.scanning.cancel
        self.cancel = self.button("Cancel", "Give the scan up, and remove what there is of it", give_up)
        self.column.addWidget(heading("Progress"))
        self.column.addWidget(self.bar)
        self.column.addWidget(self.said)
        self.row(self.pause, self.cancel)
        self.column.addStretch()
        scanning = self.controller.scanning
        self.hear(scanning.looked, self._show_outlook)
        self.hear(scanning.progressed, self._show_progress)
        self.hear(scanning.state_changed, self._show_state)
        self._show_state(scanning.state)

    def request(self) -> ScanRequest:
        """The scan that the fields ask for.

        Raises
        ------
        CryoscanError
            If a field makes no sense.
        """
        layer = self.volume.layer
        if layer is None:
            raise GeometryError("expected a volume to scan", got="none", hint="Open one: File → Open.")
        file = file_of(layer)
        contrast: Literal["bright", "dark"] = "dark" if self.contrast.currentText() == "dark" else "bright"
        file = replace(file, contrast=contrast, z_range=_planes(self.planes.text()) or file.z_range)
        config = ScanConfig.build(
            stride_voxels=self.stride.value(),
            resolution_A=number(self.resolution),
            scheme=self.scheme.currentText(),
            enhance=self.enhance.isChecked(),
        )
        drawn, mask = self.region.layer, self.mask.path
        if drawn is not None and mask is not None:
            raise ConfigError(
                "expected a region or a mask file", got="both", hint="Empty one of the two fields, Region or Mask file."
            )
        outlined = drawn is not None and type(drawn).__name__ == "Shapes"
        return ScanRequest(
            file,
            self.output.path or default_output(file, enhance=config.enhance),
            config,
            self.datedb.path,
            outline_of(drawn) if outlined else None,
            mask if drawn is None or outlined else mask_of(drawn),
        )

    def _look(self) -> None:
        self.controller.scanning.look(self.request())

    def _start(self) -> None:
        request = self.request()
        if request.outline is None and request.mask is None and _is_done(request):
            self.controller.said.emit("info", f"{request.output.name} is finished already: it is opened.")
            self.controller.open_scan(request.output)
            return
        self.controller.asking.datedb = request.datedb
        self.controller.scanning.start(request)

    def _pause(self) -> None:
        scanning = self.controller.scanning
        (scanning.pause if scanning.state == "running" else scanning.resume)()

    def _show_outlook(self, outlook: Outlook) -> None:
        fill(self.facts, outlook.facts)
        self.facts.resizeRowsToContents()
        self.facts.setMinimumHeight(self.facts.verticalHeader().length() + 4)  # all of it is read before a start
        self.warnings.setText("<br>".join(f"⚠ {warning}" for warning in outlook.warnings))

    def _show_progress(self, progress: Progress) -> None:
        self.bar.setRange(0, progress.total)
        self.bar.setValue(progress.done)
        self.said.setText(
            f"Step {progress.step} of {progress.steps}: {progress.done} of {progress.total} {progress.text}."
        )

    def _show_state(self, state: str) -> None:
        running = state in ("running", "stopping")
        self.look.setEnabled(state not in ("looking", "running", "stopping"))
        self.start.setEnabled(not running and state != "looking")
        self.pause.setEnabled(state in ("running", "paused", "failed"))
        self.pause.setText("Resume" if state in ("paused", "failed") else "Pause")
        self.cancel.setEnabled(state in ("running", "paused"))
        words = {
            "looking": "Looking at the volume …",
            "running": "Starting …",
            "stopping": "Stopping after the piece that is being computed …",
            "paused": "Paused; what is finished is kept.",
            "done": "Finished.",
            "failed": "It did not work; see the message.",
        }
        self.said.setText(words.get(state, "Nothing is running."))
        if state in ("looking", "running") and self.bar.value() <= 0:
            self.bar.setRange(0, 0)  # busy
        elif state in ("idle", "done"):
            self.bar.setRange(0, 1)
            self.bar.setValue(int(state == "done"))


def default_output(file: VolumeFile, *, enhance: bool = False) -> Path:
    """Where the scan of a volume goes if nothing is said; those of the volume as it is and sharpened are two."""
    return file.path.with_name(f"{file.path.name.split('.')[0]}{'-sharpened' if enhance else ''}.scan")


def _is_done(request: ScanRequest) -> bool:
    """Whether there is a finished scan of such settings; thresholds may have been changed since."""
    if not (request.output / "summary.json").is_file():
        return False
    wanted, done = request.config.model_dump(mode="json"), open_scan(request.output).provenance.config
    return all(wanted[name] == done.get(name) for name in ("stride_voxels", "resolution_A", "scheme", "enhance"))


def _planes(text: str) -> tuple[int, int] | None:
    if not text.strip():
        return None
    try:
        first, stop = map(int, text.split(":"))
    except ValueError as error:
        raise ConfigError(
            "expected planes such as 40:160", got=f"'{text}'", hint="Write first:stop, counted from 0."
        ) from error
    return first, stop


def _drawn(viewer: Any) -> list[Any]:
    """Layers that can say where to scan: outlines, and labels of the user's own."""
    kinds = ("Shapes", "Labels")
    return [layer for layer in viewer.layers if type(layer).__name__ in kinds and not layer.metadata.get("cryoscan")]

"""All that the plugin knows and does, without Qt and without napari: widgets show it and hand clicks on."""

import errno
from pathlib import Path
from typing import Any

from psygnal import Signal

from cryoscan.errors import CryoscanError
from napari_plugin import _tasks
from napari_plugin._asking import Asking
from napari_plugin._background import Background, StoppedError
from napari_plugin._editing import Editing
from napari_plugin._review import Review
from napari_plugin._scanning import Scanning
from napari_plugin._turns import Turns

_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)


class Controller:
    """State and actions of one viewer.

    Work that takes longer than a blink happens in two processes: one scans, the other answers
    questions meanwhile. `poll` brings in what they say, and does one piece of what the window's thread
    must do itself; call it often.

    Parameters
    ----------
    scans, answers : Background, optional
        The two processes; new ones if they are not given.
    """

    said = Signal(str, str)
    """``info``, ``warning`` or ``error``, and a sentence for the user."""

    def __init__(self, scans: Background | None = None, answers: Background | None = None) -> None:
        self._scans, self._answers = scans or Background(), answers or Background()
        self.scanning = Scanning(self._scans)
        self.asking = Asking(self._answers)
        self.review = Review()
        self.turns = Turns(self.complain)
        self.editing = Editing(self._answers, self.review, self.turns)
        self.scanning.finished.connect(self.open_scan)
        self.scanning.warned.connect(lambda text: self.said.emit("warning", text))
        self.editing.said.connect(self.said.emit)
        self.review.selected.connect(self._point_at_selected)
        for part in (self.scanning, self.asking, self.review, self.editing):
            part.failed.connect(self.complain)

    def poll(self) -> None:
        """Bring in what the processes have said, and do one piece of what waits for its turn."""
        self._scans.poll()
        self._answers.poll()
        self.turns.step()

    @property
    def busy(self) -> bool:
        """Whether a process is at work, or something waits for its turn."""
        return self._scans.busy or self._answers.busy or self.turns.busy

    def close(self) -> None:
        """End the processes; a running scan stops cleanly and can be gone on with."""
        self.turns.clear()
        self._scans.close()
        self._answers.close()
        self.editing.close()

    def open_scan(self, path: Path) -> None:
        """Look at a finished scan; the regions of its places are painted, if they were not yet."""
        if not self.review.open(path):
            return
        self.asking.datedb = self.review.datedb
        if isinstance(self.asking.this, int):  # a place of the scan before
            self.asking.this = None
        if not self.review.painted:
            self._answers.run(
                _tasks.paint,
                path,
                self.review.datedb,
                on_done=lambda _: self.review.repainted(),
                on_error=self.complain,
                kind="paint",
            )

    def find_alike(self) -> None:
        """Ask which places of the scan look like what was pointed at last: a click anywhere, or a hit."""
        review, this = self.review, self.asking.this
        if review.found is None or review.result is None:
            self.said.emit("warning", "There is no scan to look in: scan the volume first.")
        elif this is None:
            self.said.emit("warning", "Ask about a place first, or select a hit.")
        else:
            self.asking.find_alike(review.result.path, this)

    def apply_thresholds(self, output: Path | None = None) -> None:
        """Write labels and hits anew with the tuned thresholds, into the scan itself or into another."""
        result = self.review.result
        if result is None:
            return
        self._scans.run(
            _tasks.relabel,
            result.path,
            self.review.datedb,
            self.review.tuned,
            output,
            on_done=lambda _: self.open_scan(output or result.path),
            on_error=self.complain,
            kind="relabel",
        )

    def export(self, **what: Any) -> None:
        """Write files for other programs; see `cryoscan.workflows.export_scan`."""
        result = self.review.result
        if result is None:
            self.said.emit("warning", "There is no scan to export: scan a volume, or open a .scan folder.")
            return
        self._answers.run(
            _tasks.export,
            result.path,
            what,
            on_done=lambda files: self.said.emit("info", f"Written: {', '.join(files)}"),
            on_error=self.complain,
        )

    def add_to_datedb(self, target: Path) -> None:
        """Make the accepted hits entries of a database of the user's."""
        from cryoscan.datedb import Entry

        review = self.review
        if review.result is None or review.numbers is None:
            self.said.emit("warning", "There is no scan whose regions are painted.")
            return
        places = review.places
        name = review.result.path.stem
        regions = [
            (
                Entry(f"{name}-{place + 1}", places.hits.schemes[place], places.hits.types[place], 0, source=name),
                place + 1,
            )
            for place, status in enumerate(places.status)
            if status == "accepted" and places.hits.types[place]
        ]
        if not regions:
            self.said.emit("warning", "No hit with a type is accepted yet: select some and accept them first.")
            return
        base = target if target.exists() else review.datedb
        self._answers.run(
            _tasks.add_to_datedb,
            review.result.path,
            base,
            regions,
            target,
            on_done=lambda db: self.said.emit("info", f"{len(regions)} accepted hits are in {target}: {db}"),
            on_error=self.complain,
        )

    def _point_at_selected(self) -> None:
        review = self.review
        if not review.selection or review.found is None:
            return
        place = review.selection[-1]
        z, y, x = review.found.hits.positions[place].tolist()
        self.asking.this = place if review.compared[place] else (z, y, x)  # what was drawn by hand has no vector kept

    def complain(self, error: BaseException) -> None:
        """Say in plain words what went wrong."""
        if isinstance(error, StoppedError):
            return
        if isinstance(error, CryoscanError):
            text = str(error)
            self.said.emit("error", text[:1].upper() + text[1:])
        elif isinstance(error, OSError) and error.strerror:
            hint = "Choose a folder that you may write to, or copy the scan to one." if error.errno in _CLOSED else ""
            self.said.emit("error", f"{error.filename or 'A file'}: {error.strerror}. {hint}".strip())
        else:
            self.said.emit("error", f"Something unexpected: {type(error).__name__}: {error}")

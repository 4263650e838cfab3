"""Make the pictures of the viewer's tutorial: drives the window through the demo (``make screenshots``).

Needs a display; without one start it with ``xvfb-run -s "-screen 0 1280x800x24"``.
"""

import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import napari
from qtpy.QtCore import QEventLoop, QTimer

from cryoscan.demo import demo_volume
from napari_plugin._session import session_of
from napari_plugin._widgets import AnnotateWidget

IMAGES = Path(__file__).parent / "images"


def until(condition: Callable[[], object], *, seconds: float = 900) -> None:
    """Run the event loop until something is true."""
    loop, timer = QEventLoop(), QTimer()
    end = time.monotonic() + seconds
    timer.timeout.connect(lambda: loop.quit() if condition() or time.monotonic() > end else None)
    timer.start(10)
    loop.exec()
    timer.stop()
    if not condition():
        sys.exit("It did not happen in time.")


def main(folder: Path) -> None:
    demo_volume(folder / "demo.mrc")
    viewer = napari.Viewer()
    window = viewer.window._qt_window
    window.resize(1280, 800)
    pages = AnnotateWidget(viewer)
    viewer.window.add_dock_widget(pages, name="cryoscan", area="right")
    session = session_of(viewer)
    controller, canvas = session.controller, session.canvas
    controller.said.connect(lambda kind, text: print(f"{kind}: {text}"))

    def picture(name: str) -> None:
        end = time.monotonic() + 1.0
        until(lambda: time.monotonic() > end)
        window.grab().save(str(IMAGES / f"viewer-{name}.png"))
        print(name)

    viewer.open(folder / "demo.mrc", plugin="cryoscan")
    viewer.scale_bar.visible = True
    scan = pages.pages["Scan"]
    scan.resolution.setText("6")
    scan.look.click()
    until(lambda: scan.facts.rowCount())
    picture("preflight")
    scan.start.click()
    until(lambda: canvas.layer("score so far") is not None)
    until(lambda: scan.bar.value() > 8)
    picture("scanning")
    until(lambda: controller.review.numbers is not None and not controller.turns.busy)
    hits = controller.review.found.hits
    pages.show_page("Domains")
    canvas.look_at(tuple(hits.positions[1]))
    picture("domains")
    pages.show_page("Ask")
    canvas.ask(tuple(hits.positions[1]))
    until(lambda: controller.asking.answer is not None)
    ask = pages.pages["Ask"]
    ask.docked.setChecked(True)
    ask.compare.click()
    until(lambda: canvas.layer("preview") is not None)
    ask.more.click()
    until(lambda: ask.alike.rowCount())
    picture("ask")
    canvas._drop("preview", "asked")
    pages.show_page("Tune")
    controller.review.tune(min_score=0.92)
    picture("tune")
    controller.review.untune()
    pages.show_page("Correct")
    controller.review.select([4])
    controller.review.accept()
    controller.review.select([5])
    controller.review.reject()
    controller.review.select([4])
    picture("correct")
    pages.show_page("Identify")
    identify = pages.pages["Identify"]
    identify._segment_fresh()
    until(lambda: canvas.layer("segments") is not None)
    picture("identify")
    canvas._drop("segments")
    pages.show_page("Explore")
    explore = pages.pages["Explore"]
    explore._compute()
    until(lambda: len(explore.plane.pixels()))
    picture("explore")
    explore.what.setCurrentIndex(1)
    explore._compute()
    until(lambda: controller.asking.sample is not None)
    picture("explore-lattice")
    controller.asking.forget_sample()
    pages.show_page("Domains")
    viewer.dims.ndisplay = 3
    viewer.camera.angles = (10, 30, 140)
    picture("3d")
    viewer.dims.ndisplay = 2
    pages.show_page("Export")
    export = pages.pages["Export"]
    for field, name in ((export.labels, "domains.zarr"), (export.hits, "hits.star"), (export.journal, "journal.csv")):
        field.set_path(folder / name)
    export.go.click()
    until(lambda: (folder / "domains.zarr").exists())
    for field, name in ((export.labels, "domains.zarr"), (export.hits, "hits.star"), (export.journal, "journal.csv")):
        field.set_path(name)
    picture("export")
    viewer.close()


if __name__ == "__main__":
    place = Path(tempfile.mkdtemp())
    try:
        main(place)
    finally:
        shutil.rmtree(place)

"""What people see of the controller: one thin widget per duty, and all of them in one window.

Widgets hold no state: they show what the controller says, and hand every click to it.
"""

from napari_plugin._widgets.annotate import AnnotateWidget
from napari_plugin._widgets.ask import AskWidget
from napari_plugin._widgets.correct import CorrectWidget
from napari_plugin._widgets.domains import DomainsWidget
from napari_plugin._widgets.explore import ExploreWidget
from napari_plugin._widgets.export import ExportWidget
from napari_plugin._widgets.identify import IdentifyWidget
from napari_plugin._widgets.scan import ScanWidget
from napari_plugin._widgets.tune import TuneWidget

__all__ = [
    "AnnotateWidget",
    "AskWidget",
    "CorrectWidget",
    "DomainsWidget",
    "ExploreWidget",
    "ExportWidget",
    "IdentifyWidget",
    "ScanWidget",
    "TuneWidget",
]

"""One controller and one canvas per viewer, shared by all widgets; the clock that brings news in."""

import sys
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from napari_plugin._canvas import Canvas
from napari_plugin._controller import Controller

_EVERY = 40  # milliseconds between looks at what the processes have said


@dataclass(eq=False)
class Session:
    """What the widgets of a viewer share."""

    controller: Controller
    canvas: Canvas
    clock: Any = None


_sessions: WeakKeyDictionary[Any, Session] = WeakKeyDictionary()


def session_of(viewer: Any) -> Session:
    """The session of a viewer; it is begun with the first widget, and ends with the window."""
    viewer = getattr(viewer, "__wrapped__", viewer)  # napari hands a proxy to plug-ins
    if viewer not in _sessions:
        controller = Controller()
        session = Session(controller, Canvas(viewer, controller))
        controller.said.connect(_notify)
        _sessions[viewer] = session
        if hasattr(viewer, "window"):
            session.clock = _clock(viewer, controller)
        controller.asking.warm_up()
    return _sessions[viewer]


def unsafe_qt(python: tuple[int, int], binding: str, version: str) -> str | None:
    """A sentence about a combination of Python and Qt's binding that ends the process after some minutes."""
    parts = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    if binding.lower() != "pyside6" or python >= (3, 12) or parts < (6, 12):
        return None
    return (
        f"PySide6 {version} loses count of objects under Python {python[0]}.{python[1]}, which ends napari after some "
        "minutes, whatever you do. Install an earlier one: pip install 'PySide6-Essentials<6.12'."
    )


def _clock(viewer: Any, controller: Controller) -> Any:
    import qtpy
    from qtpy.QtCore import QTimer
    from qtpy.QtWidgets import QApplication

    clock = QTimer(viewer.window._qt_window)
    clock.setInterval(_EVERY)
    clock.timeout.connect(controller.poll)
    clock.destroyed.connect(controller.close)  # with the window
    application = QApplication.instance()
    if application is not None:
        application.aboutToQuit.connect(controller.close)
    clock.start()
    warning = unsafe_qt(sys.version_info[:2], qtpy.API_NAME, qtpy.PYSIDE_VERSION or "0")
    if warning is not None:
        controller.said.emit("warning", warning)
    return clock


def _notify(kind: str, text: str) -> None:
    from napari.utils.notifications import show_error, show_info, show_warning

    {"info": show_info, "warning": show_warning, "error": show_error}[kind](text)

"""What a session says before it begins."""

import pytest

from napari_plugin._session import unsafe_qt


@pytest.mark.parametrize(
    ("python", "binding", "version", "unsafe"),
    [
        ((3, 11), "PySide6", "6.12.0", True),
        ((3, 11), "PySide6", "6.13.1", True),
        ((3, 11), "PySide6", "6.11.3", False),
        ((3, 12), "PySide6", "6.12.0", False),
        ((3, 11), "PyQt6", "0", False),
    ],
)
def test_a_qt_that_ends_the_process_is_named(python, binding, version, unsafe):
    said = unsafe_qt(python, binding, version)
    assert (said is not None) == unsafe
    assert said is None or "<6.12" in said

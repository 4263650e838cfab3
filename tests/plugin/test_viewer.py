"""The viewer's tests, in a process of their own: without a display Qt ends the interpreter and all other tests."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CHECKS = ("checks_in_viewer.py", "checks_journey.py")


@pytest.mark.gui
@pytest.mark.parametrize("checks", CHECKS)
def test_in_a_real_window(checks):
    require_display()
    # Qt and napari warn about themselves, not about this code: hence no:warnings.
    options = ["-q", "-o", "addopts=", "-o", "xvfb_colordepth=24", "-o", "qt_api=pyside6", "-p", "no:warnings"]
    options += ["-o", "xvfb_width=1280", "-o", "xvfb_height=800"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(HERE / checks)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    sys.stdout.write("\n".join(line for line in done.stdout.splitlines() if line.startswith("longest stall")))


def require_display() -> None:
    """Skip by name where nothing can be shown, or fail where CRYOSCAN_REQUIRE_GUI says that it must be."""
    missing = []
    if not (shutil.which("Xvfb") or os.environ.get("DISPLAY") or sys.platform in ("darwin", "win32")):
        missing.append("no Xvfb and no DISPLAY")
    qt = subprocess.run(
        [sys.executable, "-c", "from PySide6 import QtWidgets; import napari"],
        capture_output=True,
        text=True,
        check=False,
    )
    if qt.returncode:
        missing.append(qt.stderr.strip().splitlines()[-1])
    if missing:
        reason = f"no display: {'; '.join(missing)}"
        if os.environ.get("CRYOSCAN_REQUIRE_GUI"):
            pytest.fail(reason)
        pytest.skip(reason)

"""The viewer's benchmark runs; its numbers are in docs/results/viewer.md."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("viewer_speed.py")


@pytest.mark.gui
def test_opening_and_slicing_are_measured():
    if shutil.which("xvfb-run") is None:
        pytest.skip("no display: no xvfb-run")
    words = ["xvfb-run", "-a", "-s", "-screen 0 1280x800x24", sys.executable, "-W", "ignore", str(SCRIPT)]
    done = subprocess.run([*words, "--shape", "24,96,104"], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    numbers = json.loads(done.stdout)
    assert numbers["scrolling"]["planes"] == 9
    assert 0 < numbers["scrolling"]["median_s"] <= numbers["scrolling"]["max_s"]

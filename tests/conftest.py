"""Fixtures shared by all tests, and the reasons for which a test may skip; the default volume is ugly on purpose."""

import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main

from cryoscan import Volume

ROOT = Path(__file__).resolve().parents[1]

ALLOWED_SKIPS = (
    "real data folder not found",
    "no display",
    "no CUDA device",
)
"""What a skip's reason may begin with; in continuous integration any other skip is a failure."""


def pytest_configure(config: pytest.Config) -> None:
    """Tests run side by side on small machines: threads of one would wait, spinning, for those of the other."""
    side_by_side = config.getoption("numprocesses", None) or hasattr(config, "workerinput")
    os.environ.setdefault("OMP_NUM_THREADS", "1" if side_by_side else "2")  # workers inherit it


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skip that nobody allowed into a failure: a missing installation must not look green."""
    return _refuse_unexpected_skip((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Do the same for modules that skip as a whole."""
    return _refuse_unexpected_skip((yield))


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real structures, maps and tomograms; tests that need it skip by name where it is absent."""
    folder = Path(os.environ.get("CRYOSCAN_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "structures").is_dir():
        pytest.skip(f"real data folder not found: {folder} (set CRYOSCAN_DATA)")
    return folder


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20251121)


@pytest.fixture
def ugly_volume(rng: np.random.Generator) -> Volume:
    """Non-cubic, odd, voxel size not 1, origin not 0: a cubic fixture hides every axis bug."""
    data = rng.normal(size=(11, 17, 23)).astype(np.float32)
    return Volume(data, 1.37, (-31.5, 12.25, 407.125))


@pytest.fixture(scope="session")
def commands() -> dict[str, Any]:
    """Every command, as typer's object, by what one types after `cryoscan`, e.g. ``datedb build``."""
    from cryoscan.cli import app

    return dict(_leaves("", typer.main.get_command(app)))


def _leaves(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    children = getattr(command, "commands", None)
    if children is None:
        yield name, command
        return
    for child, below in children.items():
        yield from _leaves(f"{name} {child}".strip(), below)


def _refuse_unexpected_skip(report):
    strict = os.environ.get("CI") or os.environ.get("CRYOSCAN_REQUIRE_GUI")
    if strict and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if not reason.startswith(ALLOWED_SKIPS):
            report.outcome = "failed"
            report.longrepr = f"unexpected skip: {reason} (allowed reasons: ALLOWED_SKIPS in tests/conftest.py)"
    return report

"""Work in another process: events, results, errors, stopping, and what a death says."""

import itertools
import operator
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from cryoscan.errors import MissingFileError, ResourceError
from cryoscan.io import describe
from napari_plugin._background import Background, StoppedError


@pytest.fixture
def background():
    made = Background()
    yield made
    made.close()


class Heard:
    def __init__(self):
        self.events, self.results, self.errors = [], [], []

    @property
    def about(self):
        return {"on_event": self.events.append, "on_done": self.results.append, "on_error": self.errors.append}


def settle(background, seconds=30):
    end = time.monotonic() + seconds
    while background.busy:
        background.poll()
        assert time.monotonic() < end
        time.sleep(0.005)


def test_results_and_events_come_back_in_order(background):
    sums, items = Heard(), Heard()
    background.run(operator.add, 2, 3, **sums.about)
    background.run(iter, [1, 2, 3], **items.about)
    settle(background)
    assert (sums.events, sums.results) == ([], [5])
    assert (items.events, items.results) == ([1, 2, 3], [None])


def test_errors_come_back_whole_and_the_process_lives_on(background, tmp_path):
    wrong, right = Heard(), Heard()
    background.run(describe, tmp_path / "missing.mrc", **wrong.about)
    background.run(operator.add, 1, 1, **right.about)
    settle(background)
    (error,) = wrong.errors
    assert isinstance(error, MissingFileError)
    assert error.hint
    assert right.results == [2]


def test_work_is_stopped_and_the_next_is_done(background):
    endless, after = Heard(), Heard()
    job = background.run(itertools.count, **endless.about)
    while not endless.events:
        background.poll()
    background.stop(job)
    background.run(operator.add, 1, 1, **after.about)
    settle(background)
    assert isinstance(endless.errors[0], StoppedError)
    assert after.results == [2]


def test_work_that_is_stopped_before_its_process_listens_says_so(background):
    early = Heard()
    background.stop(background.run(time.sleep, 60, **early.about))
    settle(background)
    assert isinstance(early.errors[0], StoppedError)


def test_of_several_that_wait_only_the_last_of_a_kind_is_done(background):
    first, dropped, last = Heard(), Heard(), Heard()
    background.run(time.sleep, 0.3, **first.about)
    background.run(operator.add, 1, 1, kind="ask", **dropped.about)
    background.run(operator.add, 2, 2, kind="ask", **last.about)
    settle(background)
    assert dropped.results == []
    assert last.results == [4]


def test_a_death_is_an_error_and_not_the_end(background):
    fatal, after = Heard(), Heard()
    background.run(os._exit, 137, **fatal.about)
    settle(background)
    (error,) = fatal.errors
    assert isinstance(error, ResourceError)
    assert "137" in error.got
    background.run(operator.add, 1, 1, **after.about)
    settle(background)
    assert after.results == [2]


def test_running_never_waits(background):
    start = time.monotonic()
    background.run(time.sleep, 1)
    background.poll()
    assert time.monotonic() - start < 0.5


def test_closing_ends_the_process(background):
    background.run(itertools.count)
    pid = background._process.pid
    time.sleep(0.5)
    background.close()
    assert not psutil.pid_exists(pid)
    background.close()


def test_the_process_ends_with_a_viewer_that_is_killed():
    code = (
        "import itertools, time\nfrom napari_plugin._background import Background\n"
        "b = Background(); b.run(itertools.count)\nprint(b._process.pid, flush=True)\ntime.sleep(60)"
    )
    viewer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    worker = int(viewer.stdout.readline())
    time.sleep(0.5)
    viewer.send_signal(signal.SIGKILL)
    viewer.wait()
    viewer.stdout.close()
    end = time.monotonic() + 20
    while psutil.pid_exists(worker) and psutil.Process(worker).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end
        time.sleep(0.05)

"""Law L11 for training: a run that is stopped, by whatever, and gone on with is the run that was not."""

import functools
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_library import small_library

from cryoscan.errors import FormatError, MismatchError
from cryoscan.models import DensityTower, TowerConfig
from cryoscan.train import ViewConfig, simulate_views, state
from cryoscan.train.kinship import Kinship, Sampler
from cryoscan.train.loop import FitSettings, fit
from cryoscan.train.objectives import Pupil, align
from cryoscan.train.state import CHECKPOINT, CURVES, read_curves

TOWER = TowerConfig(window=16, voxel_size_A=3.3, dim=8, channels=4, attention_window=2, head_channels=2)
SETTINGS = FitSettings(steps=6, warm_up=2, report_every=1, validate_every=2, save_every=1, seed=3)
VIEWS = ViewConfig(scenes={"isolated": 0.5, "sphere": 0.5}, resolution_A=(7.0, 9.0))


@pytest.fixture(scope="module")
def library():
    return small_library()


@pytest.fixture
def run(library):
    """A run of the small tower: `run(folder, …)` gives its pupil and events."""
    sampler, kinship = Sampler(library), Kinship(library.anchors)

    def draw(step, rng):
        anchors = sampler.draw(4, rng=rng)
        return simulate_views(library, anchors, config=VIEWS, rng=rng, window=16, voxel_size=3.3)

    def start(folder, *, settings=SETTINGS, validate=None, tower=TOWER, **others):
        torch.manual_seed(11)
        pupil = Pupil(DensityTower(tower), torch.randn(len(library.anchors), 8), frozen=False)
        objective = functools.partial(align, kinship=kinship, hidden=0.2)
        return pupil, fit(pupil, objective, draw, settings, folder, validate=validate, **others)

    return start


def assert_same(one, other):
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_a_run_in_two_halves_is_the_whole_run_to_the_last_bit(run, tmp_path):
    whole, events = run(tmp_path / "whole")
    losses = [event.numbers["loss"] for event in events]
    _, first = run(tmp_path / "halves", until=3)
    _, *_, last = first
    assert last.stopped
    torch.manual_seed(99)  # what happens to the global generator between the halves is of no account
    second, events = run(tmp_path / "halves")
    later = [event.numbers["loss"] for event in events]
    assert later == losses[3:]
    assert_same(second, whole)


def test_steps_after_the_last_checkpoint_are_done_again(run, tmp_path):
    sparse = replace(SETTINGS, save_every=4)
    whole, events = run(tmp_path / "whole", settings=sparse)
    list(events)
    _, events = run(tmp_path / "killed", settings=sparse)
    for event in events:
        if event.done == 5:
            break  # as if the process were killed one step after a checkpoint
    events.close()
    again, events = run(tmp_path / "killed", settings=sparse)
    assert [event.done for event in events] == [5, 6]
    assert_same(again, whole)
    steps, _ = read_curves(tmp_path / "killed" / CURVES)["loss"]
    np.testing.assert_array_equal(steps, [1, 2, 3, 4, 5, 6])


def test_a_validation_does_not_change_the_run(run, tmp_path):
    plain, events = run(tmp_path / "plain")
    list(events)

    def validate(pupil):
        torch.rand(5)
        assert not pupil.training
        return {"answer": 42.0}

    watched, events = run(tmp_path / "watched", validate=validate)
    found = [event.numbers.get("validation/answer") for event in events]
    assert found == [None, 42.0, None, 42.0, None, 42.0]
    assert_same(watched, plain)


def test_the_terminate_signal_ends_a_run_with_a_checkpoint(run, tmp_path):
    sparse = replace(SETTINGS, save_every=100)
    whole, events = run(tmp_path / "whole", settings=sparse)
    list(events)
    before = signal.getsignal(signal.SIGTERM)
    _, events = run(tmp_path / "told", settings=sparse)
    next(events)
    os.kill(os.getpid(), signal.SIGTERM)
    (last,) = events
    assert (last.done, last.stopped) == (2, True)
    assert signal.getsignal(signal.SIGTERM) is before
    again, events = run(tmp_path / "told", settings=sparse)
    assert [event.done for event in events] == [3, 4, 5, 6]
    assert_same(again, whole)


def test_a_run_that_is_past_the_step_it_is_to_stop_at_is_not_taken_for_finished(run, tmp_path):
    _, events = run(tmp_path, until=4)
    list(events)
    _, events = run(tmp_path, until=2)
    (only,) = events
    assert (only.done, only.stopped) == (4, True)


def test_a_half_written_checkpoint_is_never_seen(run, tmp_path, monkeypatch):
    _, events = run(tmp_path, until=2)
    list(events)
    kept = (tmp_path / CHECKPOINT).read_bytes()

    def full(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(state.os, "fsync", full)
    _, events = run(tmp_path)
    with pytest.raises(OSError, match="disk full"):
        list(events)
    assert (tmp_path / CHECKPOINT).read_bytes() == kept


def test_a_run_does_not_go_on_with_other_settings(run, tmp_path):
    _, events = run(tmp_path, until=2)
    list(events)
    _, events = run(tmp_path, settings=replace(SETTINGS, learning_rate=0.5))
    with pytest.raises(MismatchError, match=r"learning_rate 0.5 instead of 0.002\. Change them back"):
        next(events)


def test_a_run_does_not_go_on_with_another_tower(run, tmp_path):
    _, events = run(tmp_path, until=2)
    list(events)
    _, events = run(tmp_path, tower=replace(TOWER, channels=6))
    with pytest.raises(MismatchError, match="train in another folder"):
        next(events)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 half a file", b"\x93NUMPY"])
def test_a_damaged_checkpoint_is_refused(run, tmp_path, content):
    (tmp_path / CHECKPOINT).write_bytes(content)
    _, events = run(tmp_path)
    with pytest.raises(FormatError, match="start the run in a new folder"):
        next(events)

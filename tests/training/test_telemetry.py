"""Tests of the values that are logged for a step."""

from __future__ import annotations

import types

import numpy as np
import pytest

from salmonn_jax.training import telemetry
from salmonn_jax.training.step import SourceSums
from salmonn_jax.training.telemetry import Telemetry

NAMES = ("music", "noise", "speech")


@pytest.fixture
def clock(monkeypatch) -> types.SimpleNamespace:
    """Replaces the clock. `now` is its time in seconds."""
    clock = types.SimpleNamespace(now=100.0)
    monkeypatch.setattr(telemetry, "time", types.SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def step(loss, correct, targets, examples, /, **scalars):
    """Returns metrics of the train step as numpy arrays."""
    arrays = {name: np.float32(value) for name, value in scalars.items()}
    sums = SourceSums(*(np.float32(values) for values in (loss, correct, targets)))
    return arrays | {"source_sums": sums, "source_examples": np.float32(examples)}


def test_sources_without_answer_tokens_have_no_loss(clock):
    values = Telemetry(NAMES, {}).step_values(step([6, 0, 8], [1, 0, 4], [4, 0, 16], [1, 0, 3], loss=0.7), {})
    assert {name: values[name] for name in values if "/" in name} == {
        "loss/music": 1.5,
        "accuracy/music": 0.25,
        "loss/speech": 0.5,
        "accuracy/speech": 0.25,
        "share/music": 0.25,
        "share/noise": 0.0,
        "share/speech": 0.75,
    }
    assert values["loss"] == pytest.approx(0.7)


def test_shares_go_on_where_a_resumed_run_stopped(clock):
    """A source that left the mixture keeps its examples."""
    one = step([1, 1, 1], [0, 0, 0], [1, 1, 1], [2, 0, 2])
    values = Telemetry(NAMES, {"speech": 10, "gone": 5}).step_values(one, {})
    shares = {name: values[name] for name in values if name.startswith("share/")}
    assert shares == {"share/music": 2 / 19, "share/noise": 0, "share/speech": 12 / 19, "share/gone": 5 / 19}


def test_rates_leave_out_the_time_in_which_no_step_runs(clock):
    measured = Telemetry(NAMES, {})
    clock.now += 1
    with measured.measure("data_wait_seconds"):
        clock.now += 2
    with measured.measure("checkpoint_seconds"):
        clock.now += 5
    clock.now += 1
    one = step([1, 1, 1], [0, 0, 0], [1, 1, 1], [2, 4, 2], clips=4, tokens=100, audio_seconds=12)
    values = measured.step_values(one, measured.take_seconds())
    assert (values["data_wait_seconds"], values["checkpoint_seconds"]) == (2, 5)
    assert {name: value for name, value in values.items() if name.endswith("per_second")} == {
        "clips_per_second": 1,
        "tokens_per_second": 25,
        "audio_seconds_per_second": 3,
        "examples_per_second": 2,
    }
    clock.now += 2
    assert measured.step_values(one, measured.take_seconds())["clips_per_second"] == 2
    assert not measured.take_seconds()


def test_compilation_is_measured(clock):
    measured, programs = Telemetry(NAMES, {}), []

    def call() -> None:
        clock.now += 3

    call._cache_size = lambda: len(programs)
    with measured.measure_compilation(call):
        programs.append("first shape")
        call()
    with measured.measure_compilation(call):
        call()
    assert measured.take_seconds() == {"compile_seconds": 3}

"""Helpers that run evaluations with the stub model, also as several processes, each of which is a thread."""

from __future__ import annotations

import concurrent.futures
import pathlib
import threading

import numpy as np
import pytest

from salmonn_jax import distributed
from salmonn_jax.errors import RunError
from salmonn_jax.evaluation.run import Evaluation, run_evaluation
from tests.evaluation.stub import StubModel, StubRows, stub_evaluation


def merged(output: pathlib.Path) -> bytes:
    return (output / "predictions.jsonl").read_bytes()


def evaluate(output: pathlib.Path, rows: StubRows, model: StubModel | None = None, **options) -> StubModel:
    """Runs an evaluation to its end and returns the model."""
    model = model or StubModel()
    assert run_evaluation(model, stub_evaluation(rows, **options), output)
    return model


class Processes:
    """Replaces the functions of `distributed` in threads, each of which stands for a process."""

    def __init__(self, count: int):
        self._count, self._barrier = count, threading.Barrier(count, timeout=60)
        self._local, self._arrays = threading.local(), [None] * count

    def process_shard(self) -> tuple[int, int]:
        return self._local.index, self._count

    def is_main_process(self) -> bool:
        return self._local.index == 0

    def barrier(self, name: str, timeout_seconds: float = 0) -> None:
        self._barrier.wait()

    def sum_over_processes(self, array: np.ndarray) -> np.ndarray:
        self._arrays[self._local.index] = array
        self._barrier.wait()
        return sum(self._arrays[1:], self._arrays[0])

    def run(self, index: int, model: StubModel, evaluation: Evaluation, output: pathlib.Path) -> bool:
        self._local.index = index
        return run_evaluation(model, evaluation, output)


def evaluate_as(count: int, output: pathlib.Path, rows: StubRows, **options) -> list[StubModel]:
    """Runs an evaluation as several processes at the same time, and returns the model of each."""
    processes, models = Processes(count), [StubModel() for _ in range(count)]
    with pytest.MonkeyPatch.context() as patch, concurrent.futures.ThreadPoolExecutor(count) as pool:
        for name in ("process_shard", "is_main_process", "barrier", "sum_over_processes"):
            patch.setattr(distributed, name, getattr(processes, name))
        evaluation = stub_evaluation(rows, **options)
        ends = [pool.submit(processes.run, i, model, evaluation, output) for i, model in enumerate(models)]
    failures = [end.exception() for end in ends if end.exception()]
    if failures:
        assert len(failures) == count and all(isinstance(failure, RunError) for failure in failures)
        raise failures[0]
    return models

"""Values that are logged: named metrics of the train step, shares of the sources, and seconds of the training loop.

docs/training.md lists the metrics.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

RATES = ("clips", "audio_seconds", "tokens", "examples")  # logged per second
UNTRAINED = ("checkpoint_seconds", "eval/seconds")  # time in which no step runs; rates do not count it


class Telemetry:
    """Names the metrics of the steps, and measures what the training loop waits for.

    Args:
      source_names: names of the sources, in the order of `Batch.source_index`.
      num_examples: examples by source in all batches so far, to resume the realised shares.
    """

    def __init__(self, source_names: Sequence[str], num_examples: Mapping[str, int]):
        self._source_names = source_names
        self._num_examples = Counter(num_examples)
        self._seconds: Counter[str] = Counter()
        self._untrained_seconds = 0.0
        self._last_step_time = time.monotonic()

    @contextlib.contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Adds the duration of the `with` block to the metric `name`."""
        start = time.monotonic()
        try:
            yield
        finally:
            seconds = time.monotonic() - start
            self._seconds[name] += seconds
            self._untrained_seconds += seconds * (name in UNTRAINED)

    @contextlib.contextmanager
    def measure_compilation(self, jitted: Callable[..., Any]) -> Iterator[None]:
        """Adds the duration of the `with` block to `compile_seconds` if it compiles `jitted`, which it calls."""
        start, num_programs = time.monotonic(), jitted._cache_size()
        yield
        if jitted._cache_size() > num_programs:
            self._seconds["compile_seconds"] += time.monotonic() - start

    def take_seconds(self) -> dict[str, float]:
        """Returns the measured seconds by metric since the last call."""
        seconds, self._seconds = dict(self._seconds), Counter()
        return seconds

    def step_values(self, metrics: Mapping[str, Any], seconds: Mapping[str, float]) -> dict[str, float]:
        """Returns the values to log for a step. Called once per step, in their order, when the step has ended.

        Args:
          metrics: metrics of the train step as numpy arrays.
          seconds: result of `take_seconds` for the step.
        """
        values = {name: float(value) for name, value in metrics.items() if np.ndim(value) == 0}
        counts = {name: values.pop(name) for name in RATES if name in values}
        counts["examples"] = float(metrics["source_examples"].sum())
        values |= source_means(self._source_names, metrics["source_sums"])
        self._num_examples.update(dict(zip(self._source_names, map(int, metrics["source_examples"]), strict=True)))
        total = max(self._num_examples.total(), 1)
        values |= {f"share/{name}": count / total for name, count in self._num_examples.items()}
        elapsed = self._step_seconds()
        return values | {f"{name}_per_second": count / elapsed for name, count in counts.items()} | dict(seconds)

    def _step_seconds(self) -> float:
        """Returns the seconds since the last call, without those in which no step ran."""
        now = time.monotonic()
        seconds = now - self._last_step_time - self._untrained_seconds
        self._last_step_time, self._untrained_seconds = now, 0.0
        return max(seconds, 1e-6)


def source_means(source_names: Sequence[str], sums: Any) -> dict[str, float]:
    """Returns the mean loss and the accuracy of the sources that have answer tokens.

    Args:
      source_names: names of the sources.
      sums: `salmonn_jax.training.step.SourceSums` of numpy arrays.
    """
    values = {}
    for name, loss, correct, targets in zip(source_names, *sums, strict=True):
        if targets:
            values |= {f"loss/{name}": float(loss / targets), f"accuracy/{name}": float(correct / targets)}
    return values

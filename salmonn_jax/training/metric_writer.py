"""What a run tells: a progress bar, JSON lines and TensorBoard."""

from __future__ import annotations

import json
import pathlib
import sys
import time
from collections.abc import Mapping
from typing import Protocol

import tensorboardX
from tqdm import tqdm

from salmonn_jax import distributed


class MetricWriter(Protocol):
    """What the training loop tells."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records step number `step`, counted from 1."""

    def close(self) -> None: ...


def open_metric_writer(
    run: pathlib.Path, *, name: str, start_step: int, num_train_steps: int, program_start: float
) -> MetricWriter:
    """That of a run that goes on from step `start`: one process writes. `began` is when the program did."""
    return (
        FileMetricWriter(
            run, name=name, start_step=start_step, num_train_steps=num_train_steps, program_start=program_start
        )
        if distributed.is_main_process()
        else NoOpMetricWriter()
    )


class NoOpMetricWriter:
    """Of the processes that leave the writing to another."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        del step, metrics

    def close(self) -> None:
        pass


class FileMetricWriter:
    """Writes metrics of finished steps to `metrics.jsonl` and `tensorboard/`, and shows progress.

    A run that goes on from a checkpoint first drops the lines of steps that will be done again, so that every step
    stands in the file once.
    """

    def __init__(self, run: pathlib.Path, *, name: str, start_step: int, num_train_steps: int, program_start: float):
        self._path = run / "metrics.jsonl"
        kept = [line for line in self._lines() if json.loads(line)["step"] <= start_step]
        self._path.write_text("".join(line + "\n" for line in kept))
        self._file = self._path.open("a")
        self._board = tensorboardX.SummaryWriter(str(run / "tensorboard"), purge_step=start_step + 1)
        self._bar = tqdm(
            total=num_train_steps, initial=start_step, desc=name, unit="step", dynamic_ncols=True, mininterval=1.0
        )
        self._clock = time.monotonic()
        self._program_start: float | None = program_start

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        now = time.monotonic()
        if self._program_start is not None:
            self._bar.write(f"the first step ended {now - self._program_start:.1f} s after the start", file=sys.stderr)
            self._program_start = None
        seconds, self._clock = now - self._clock, now
        values = dict(metrics)
        for key in ("examples", "audio_seconds"):
            values[f"{key}_per_second"] = values.pop(key) / seconds
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for key, value in values.items():
            self._board.add_scalar(key, value, step)
        self._bar.set_postfix_str(
            f"loss {values['loss']:.3f}, {values['examples_per_second']:.0f} examples/s, "
            f"{values['audio_seconds_per_second']:.0f} s audio/s",
            refresh=False,
        )
        self._bar.update(step - self._bar.n)

    def close(self) -> None:
        self._bar.close()
        self._board.close()
        self._file.close()

    def _lines(self) -> list[str]:
        """The whole lines of an earlier start; one that a kill cut short is left out."""
        if not self._path.exists():
            return []
        return [line for line in self._path.read_text().split("\n")[:-1] if line]

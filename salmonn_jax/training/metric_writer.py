"""Writers of training metrics: progress bar, JSON lines and TensorBoard. The training loop uses them."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from typing import Protocol

import tensorboardX
from tensorboardX import record_writer
from tqdm import tqdm

from salmonn_jax import distributed
from salmonn_jax.files import GrowingFile, open_growing
from salmonn_jax.paths import PACKAGES, Path, as_path

METRICS_FILE = "metrics.jsonl"  # in a run directory


class MetricWriter(Protocol):
    """Interface of the metric writers."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the metrics of step number `step`, counted from 1."""

    def log_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the metrics of the held-out evaluation after step number `step`."""

    def flush(self) -> None:
        """Makes the metrics so far permanent, before a checkpoint of their step is saved."""

    def close(self) -> None:
        """Closes all files."""


def open_metric_writer(
    run_dir: Path, *, name: str, start_step: int, is_evaluated: bool, num_train_steps: int, program_start: float
) -> MetricWriter:
    """Returns the metric writer. Only process 0 writes; other processes get a no-op writer.

    Args:
      run_dir: run directory.
      name: label of the progress bar.
      start_step: number of steps that are already done.
      is_evaluated: whether the evaluation after step `start_step` is done too, if one was due.
      num_train_steps: total number of steps.
      program_start: `time.monotonic()` at the start of the program, to report the time to the first step.
    """
    return (
        FileMetricWriter(
            run_dir,
            name=name,
            start_step=start_step,
            is_evaluated=is_evaluated,
            num_train_steps=num_train_steps,
            program_start=program_start,
        )
        if distributed.is_main_process()
        else NoOpMetricWriter()
    )


class NoOpMetricWriter:
    """Metric writer that writes nothing, for all processes but process 0."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        del step, metrics

    def log_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        del step, metrics

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


class FileMetricWriter:
    """Metric writer with a progress bar, `metrics.jsonl` and `tensorboard/`. Arguments: see `open_metric_writer`.

    The file has a line for each step, and one for each evaluation. A resumed run first deletes the lines of the steps
    and evaluations that it will repeat, so each is in the file once.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        name: str,
        start_step: int,
        is_evaluated: bool,
        num_train_steps: int,
        program_start: float,
    ):
        path = run_dir / METRICS_FILE
        self._file = open_growing(path, _bytes_up_to(path, start_step, is_evaluated))
        self._summary_writer = tensorboardX.SummaryWriter(str(run_dir / "tensorboard"), purge_step=start_step + 1)
        self._progress_bar = tqdm(
            total=num_train_steps, initial=start_step, desc=name, unit="step", dynamic_ncols=True, mininterval=1.0
        )
        self._program_start: float | None = program_start

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._program_start is not None:
            startup_seconds = time.monotonic() - self._program_start
            self._progress_bar.write(f"the first step ended {startup_seconds:.1f} s after the start", file=sys.stderr)
            self._program_start = None
        self._write(step, metrics)
        self._progress_bar.set_postfix_str(
            f"loss {metrics['loss']:.3f}, {metrics['examples_per_second']:.0f} examples/s, "
            f"{metrics['audio_seconds_per_second']:.0f} s audio/s",
            refresh=False,
        )
        self._progress_bar.update(step - self._progress_bar.n)

    def log_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        self._write(step, metrics)
        loss, accuracy = metrics["eval/loss"], metrics["eval/accuracy"]
        self._progress_bar.write(
            f"step {step}: held-out loss {loss:.3f}, token accuracy {accuracy:.1%}", file=sys.stderr
        )

    def _write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **metrics}).encode() + b"\n")
        for key, value in metrics.items():
            self._summary_writer.add_scalar(key, value, step)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        """Closes the progress bar and all files."""
        self._progress_bar.close()
        self._summary_writer.close()
        self._file.close()


def _bytes_up_to(path: Path, last_step: int, is_evaluated: bool) -> int:
    """Returns the size of the lines of a metrics file up to step `last_step`.

    A last line that is incomplete because the run was killed does not count.

    Args:
      path: the metrics file.
      last_step: number of the last step that is not repeated.
      is_evaluated: whether the evaluation after this step is not repeated either.
    """
    size = 0
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
        if not line.endswith(b"\n"):
            break
        values = json.loads(line)
        is_repeated_evaluation = "eval/loss" in values and values["step"] == last_step and not is_evaluated
        if values["step"] > last_step or is_repeated_evaluation:
            break
        size += len(line)
    return size


class _EventFiles:
    """Opens TensorBoard's files in a bucket. tensorboardX's own classes need other packages and credentials."""

    def open(self, path: str) -> GrowingFile:
        return open_growing(as_path(path))

    def directory_check(self, path: str) -> None:
        """Does nothing: a bucket needs no directories."""


for _scheme in PACKAGES:
    record_writer.register_writer_factory(_scheme, _EventFiles())

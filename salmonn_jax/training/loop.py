"""The training loop, which `launch.train` runs."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax

from salmonn_jax import distributed, sharding
from salmonn_jax.batch import Batch
from salmonn_jax.config import Recipe
from salmonn_jax.distributed import Watchdog
from salmonn_jax.errors import RunError
from salmonn_jax.models.parameters import ModelStructure, Params
from salmonn_jax.preemption import StopRequest
from salmonn_jax.training.checkpoint import Checkpoints, DataIterator
from salmonn_jax.training.metric_writer import MetricWriter
from salmonn_jax.training.step import TrainState, make_train_step
from salmonn_jax.training.telemetry import Telemetry


class DivergenceError(RunError):
    """Error for a training step whose loss is not finite."""


class PendingMetrics(NamedTuple):
    """Metrics of a step that may still be running."""

    step: int
    metrics: dict[str, Any]  # arrays on the devices
    seconds: dict[str, float]  # see `Telemetry.take_seconds`


def train(
    recipe: Recipe,
    structure: ModelStructure,
    frozen: Params,
    state: TrainState,
    data_iterator: DataIterator,
    mesh: jax.sharding.Mesh,
    checkpoints: Checkpoints,
    telemetry: Telemetry,
    metric_writer: MetricWriter,
    watchdog: Watchdog,
    stop_request: StopRequest,
) -> int:
    """Trains from `state` to the last step, or until a stop is requested, and saves the final state.

    Each iteration (1) saves a checkpoint if one is due and the loss so far is finite, (2) takes the next batch,
    (3) starts the training step, and (4) logs the metrics of the previous step. Resuming relies on (1) preceding (2).
    While (4) waits for the metrics of the previous step, the device already has the current one in its queue.

    Args:
      recipe: recipe of the run.
      structure: structure of the model.
      frozen: frozen parameters by path.
      state: initial or restored training state; its buffers are donated.
      data_iterator: yields the part of each batch that this process reads.
      mesh: device mesh.
      checkpoints: checkpoints of the run; closed at the end.
      telemetry: names the metrics of the steps and measures the time of the loop.
      metric_writer: receives the metrics of each step.
      watchdog: gets a heartbeat for each finished step.
      stop_request: the loop ends when a stop is requested and the current step is finished.

    Returns:
      The number of finished steps: `recipe.num_train_steps` unless a stop was requested.

    Raises:
      DivergenceError: the loss of a step is not finite. No checkpoint contains that step.
    """
    train_step = make_train_step(recipe, structure, mesh)
    pending: PendingMetrics | None = None

    def write_pending() -> None:
        if pending is not None:
            _write_metrics(pending, telemetry, metric_writer)
            watchdog.heartbeat()

    with jax.transfer_guard("disallow"):
        num_steps = int(jax.device_get(state.step))
        for step in range(num_steps, recipe.num_train_steps):
            if stop_request.reached(step):
                break
            if step % recipe.save_every == 0 and step != checkpoints.latest_step():
                write_pending()  # first, so that a diverged step is not saved
                pending = None
                metric_writer.flush()
                with telemetry.measure("checkpoint_seconds"):
                    checkpoints.save(state, data_iterator)
            with telemetry.measure("data_wait_seconds"):
                local_batch: Batch = next(data_iterator)
            with jax.transfer_guard_host_to_device("allow"):  # the only transfer to devices in a step
                batch = sharding.make_global_batch(local_batch, mesh, recipe.data.streams)
            with jax.profiler.StepTraceAnnotation("train", step_num=step), telemetry.measure_compilation(train_step):
                state, metrics = train_step(state, frozen, batch)
            write_pending()
            pending = PendingMetrics(step + 1, metrics, telemetry.take_seconds())
            num_steps = step + 1
        write_pending()
        if num_steps != checkpoints.latest_step():
            metric_writer.flush()
            checkpoints.save(state, data_iterator)
    checkpoints.close()
    distributed.barrier("the last checkpoint is saved")  # the end of one process may end the others
    return num_steps


def _write_metrics(pending: PendingMetrics, telemetry: Telemetry, metric_writer: MetricWriter) -> None:
    """Waits for the metrics of a step and logs them.

    Raises:
      DivergenceError: the loss is not finite.
    """
    metrics = jax.device_get(pending.metrics)
    if not math.isfinite(metrics["loss"]):
        raise DivergenceError(
            f"the loss of step {pending.step} is {metrics['loss']}; lower lr_schedule.peak_lr or check the data"
        )
    metric_writer.log(pending.step, telemetry.step_values(metrics, pending.seconds))

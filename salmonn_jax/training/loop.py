"""The training loop, which `launch.train` runs."""

from __future__ import annotations

import math

import jax

from salmonn_jax import sharding
from salmonn_jax.batch import Batch
from salmonn_jax.config import RunConfig
from salmonn_jax.distributed import Watchdog
from salmonn_jax.models.parameters import ModelStructure, Params
from salmonn_jax.training.checkpoint import Checkpoints, DataIterator
from salmonn_jax.training.metric_writer import MetricWriter
from salmonn_jax.training.step import TrainState, make_train_step


class DivergenceError(RuntimeError):
    """Error for a training step whose loss is not finite."""


def train(
    config: RunConfig,
    structure: ModelStructure,
    frozen: Params,
    state: TrainState,
    data_iterator: DataIterator,
    mesh: jax.sharding.Mesh,
    checkpoints: Checkpoints,
    metric_writer: MetricWriter,
    watchdog: Watchdog,
) -> TrainState:
    """Trains from `state` to the last step and returns the final state, which is saved.

    Each iteration runs in this order, on which resuming depends: save a checkpoint, with the data iterator before the
    next batch; get the batch; run the training step; log the metrics of the previous step. Logging one step late never
    waits for the device.

    Args:
      config: configuration of the run.
      structure: structure of the model.
      frozen: frozen parameters by path.
      state: initial or restored training state; its buffers are donated.
      data_iterator: yields the part of each batch that this process reads.
      mesh: device mesh.
      checkpoints: checkpoints of the run; closed at the end.
      metric_writer: receives the metrics of each step.
      watchdog: gets a heartbeat for each finished step.

    Raises:
      DivergenceError: the loss of a step is not finite. No checkpoint contains that step.
    """
    train_step = make_train_step(config, structure, mesh)
    pending = None
    with jax.transfer_guard("disallow"):
        for step in range(int(jax.device_get(state.step)), config.num_train_steps):
            if step % config.save_every == 0 and step != checkpoints.latest_step():
                checkpoints.save(state, data_iterator)
            local_batch: Batch = next(data_iterator)
            with jax.transfer_guard_host_to_device("allow"):  # the only transfer to devices in a step
                batch = sharding.make_global_batch(local_batch, mesh, config.data.streams)
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                state, metrics = train_step(state, frozen, batch)
            if pending:
                _write_metrics(metric_writer, *pending)
                watchdog.heartbeat()
            pending = step + 1, metrics
        if pending:
            _write_metrics(metric_writer, *pending)
        if config.num_train_steps != checkpoints.latest_step():
            checkpoints.save(state, data_iterator)
    checkpoints.close()
    return state


def _write_metrics(metric_writer: MetricWriter, step: int, metrics: dict[str, jax.Array]) -> None:
    """Copies the metrics of step number `step` from the device and logs them. Raises DivergenceError."""
    values = {key: float(value) for key, value in jax.device_get(metrics).items()}
    if not math.isfinite(values["loss"]):
        raise DivergenceError(f"the loss of step {step} is {values['loss']}; lower optimizer.peak_lr or check the data")
    metric_writer.log(step, values)

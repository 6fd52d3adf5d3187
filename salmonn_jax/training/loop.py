"""The training loop."""

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
    """The loss is no longer a number."""


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
    """Trains from `state` to the last step and saves what it reaches.

    The order is fixed, because resuming depends on it: save the state with the data iterator that has not yet yielded
    the next batch; only then take that batch; step; log the step before, so that logging never waits for the device.

    Raises:
      Diverged: the loss of a step is not finite. The last checkpoint is from before it.
    """
    step_function = make_train_step(config, structure, mesh)
    pending = None
    with jax.transfer_guard("disallow"):
        for step in range(int(jax.device_get(state.step)), config.num_train_steps):
            if step % config.save_every == 0 and step != checkpoints.latest_step():
                checkpoints.save(state, data_iterator)
            local: Batch = next(data_iterator)  # the part of it that this process reads
            with jax.transfer_guard_host_to_device("allow"):  # the one transfer to devices of a step
                batch = sharding.make_global_batch(local, mesh, config.data.streams)
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                state, metrics = step_function(state, frozen, batch)
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
    values = {key: float(value) for key, value in jax.device_get(metrics).items()}
    if not math.isfinite(values["loss"]):
        raise DivergenceError(
            f"the loss of step {step} is {values['loss']}; lower optimizer.peak_lr, or look at the data"
        )
    metric_writer.log(step, values)

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
from salmonn_jax.training.held_out import HeldOutEvaluation
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


class LoopEnd(NamedTuple):
    """End of the training loop."""

    step: int  # number of finished steps, after which a checkpoint is saved
    is_finished: bool  # False if a stop was requested before the last step or its evaluation was finished


def train(
    recipe: Recipe,
    structure: ModelStructure,
    frozen: Params,
    state: TrainState,
    data_iterator: DataIterator,
    mesh: jax.sharding.Mesh,
    evaluation: HeldOutEvaluation | None,
    checkpoints: Checkpoints,
    telemetry: Telemetry,
    metric_writer: MetricWriter,
    watchdog: Watchdog,
    stop_request: StopRequest,
) -> LoopEnd:
    """Trains from `state` to the last step, or until a stop is requested, and saves the final state.

    Each iteration (1) evaluates on held-out examples if that is due, (2) saves a checkpoint if one is due or the
    evaluation is the best so far, (3) takes the next batch, (4) starts the training step, and (5) logs the metrics of
    the previous step. The metrics of the last step are logged before (1) and (2), so that a diverged step is not saved.
    Resuming relies on (1) and (2) preceding (3). While (5) waits for the metrics of the previous step, the device
    already has the current one in its queue.

    Args:
      recipe: recipe of the run.
      structure: structure of the model.
      frozen: frozen parameters by path.
      state: initial or restored training state; its buffers are donated.
      data_iterator: yields the part of each batch that this process reads.
      mesh: device mesh.
      evaluation: evaluation on held-out examples; None if the recipe has none.
      checkpoints: checkpoints of the run; closed at the end.
      telemetry: names the metrics of the steps and measures the time of the loop.
      metric_writer: receives the metrics of each step and evaluation.
      watchdog: gets a heartbeat for each finished step.
      stop_request: the loop ends when a stop is requested and the current step is finished.

    Raises:
      DivergenceError: the loss of a step is not finite. No checkpoint contains that step.
    """
    train_step = make_train_step(recipe, structure, mesh)
    pending: PendingMetrics | None = None
    with jax.transfer_guard("disallow"):
        step = int(jax.device_get(state.step))  # number of finished steps
        is_saved = step == checkpoints.latest_step()
        is_evaluated = is_saved and checkpoints.eval_values(step) is not None
        while True:
            is_stopped = step < recipe.num_train_steps and stop_request.reached(step)
            eval_values = None
            if evaluation is not None and evaluation.is_due(step) and not is_evaluated and not is_stopped:
                _write_metrics(pending, telemetry, metric_writer, watchdog)
                pending = None
                with telemetry.measure("eval/seconds"):
                    eval_values = evaluation.run(state.trainable, frozen, watchdog=watchdog, stop_request=stop_request)
                is_stopped = eval_values is None
            if eval_values is not None:
                metric_writer.log_evaluation(step, eval_values | telemetry.take_seconds())
            is_last = is_stopped or step == recipe.num_train_steps
            is_save_due = not is_saved and (is_last or step % recipe.save_every == 0)
            if is_save_due or (eval_values is not None and checkpoints.is_best(eval_values)):
                _write_metrics(pending, telemetry, metric_writer, watchdog)
                pending = None
                metric_writer.flush()
                with telemetry.measure("checkpoint_seconds"):
                    checkpoints.save(state, data_iterator, eval_values)
            if is_last:
                break
            with telemetry.measure("data_wait_seconds"):
                local_batch: Batch = next(data_iterator)
            with jax.transfer_guard_host_to_device("allow"):  # the only transfer to devices in a step
                batch = sharding.make_global_batch(local_batch, mesh, recipe.data.streams)
            with jax.profiler.StepTraceAnnotation("train", step_num=step), telemetry.measure_compilation(train_step):
                state, metrics = train_step(state, frozen, batch)
            _write_metrics(pending, telemetry, metric_writer, watchdog)
            step += 1
            pending = PendingMetrics(step, metrics, telemetry.take_seconds())
            is_saved = is_evaluated = False
    checkpoints.close()
    distributed.barrier("the last checkpoint is saved")  # the end of one process may end the others
    return LoopEnd(step, is_finished=not is_stopped)


def _write_metrics(
    pending: PendingMetrics | None, telemetry: Telemetry, metric_writer: MetricWriter, watchdog: Watchdog
) -> None:
    """Waits for the metrics of a step and logs them. None is ignored.

    Raises:
      DivergenceError: the loss is not finite.
    """
    if pending is None:
        return
    metrics = jax.device_get(pending.metrics)
    if not math.isfinite(metrics["loss"]):
        raise DivergenceError(
            f"the loss of step {pending.step} is {metrics['loss']}; lower lr_schedule.peak_lr or check the data"
        )
    metric_writer.log(pending.step, telemetry.step_values(metrics, pending.seconds))
    watchdog.heartbeat()

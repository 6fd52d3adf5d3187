"""Checkpoints of a training run: trainable parameters, optimiser state, step, and state of the data iterator.

Frozen weights are not in a checkpoint. The training loop saves checkpoints, and `launch.train` restores them.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.args import CheckpointArgs, register_with_handler
from orbax.checkpoint.checkpoint_managers import preservation_policy as policy

from salmonn_jax import checkpoint_files, distributed
from salmonn_jax.batch import Batch
from salmonn_jax.checkpoint_files import CHECKPOINTS_DIR, DATA, DELTA, OPTIMIZER
from salmonn_jax.paths import Path, absolute, as_path
from salmonn_jax.training.step import TrainState
from salmonn_jax.weights import flatten_params, unflatten_params


class DataIterator(Protocol):
    """Iterator over the batches of a process, implemented by `data_pipelines.stream.training_data.TrainingData`."""

    def __iter__(self) -> Iterator[Batch]: ...

    def __next__(self) -> Batch: ...

    def get_state(self) -> Mapping[str, Any]:
        """Returns the states of the streams of this process by stream index, as JSON values."""
        ...

    def set_state(self, states: Mapping[str, Any]) -> None:
        """Restores the streams of this process. `states` may contain streams that other processes read."""
        ...


class _StreamStatesHandler(ocp.CheckpointHandler):
    """Orbax handler for the states of data streams.

    Each process writes the states of its own streams and reads all states, so a run can be resumed with another number
    of processes.
    """

    def save(self, directory: Any, args: StreamStatesSave) -> None:
        name = checkpoint_files.stream_states_file(jax.process_index(), jax.process_count())
        (as_path(directory) / name).write_text(json.dumps(args.states))

    def restore(self, directory: Any, args: StreamStatesRestore) -> dict[str, Any]:
        del args
        return checkpoint_files.read_stream_states(as_path(directory))


@register_with_handler(_StreamStatesHandler, for_save=True)
@dataclasses.dataclass
class StreamStatesSave(CheckpointArgs):
    """Orbax arguments that save the states of data streams, by stream index."""

    states: Mapping[str, Any]


@register_with_handler(_StreamStatesHandler, for_restore=True)
@dataclasses.dataclass
class StreamStatesRestore(CheckpointArgs):
    """Orbax arguments that restore the states of data streams."""


class Checkpoints:
    """The checkpoints in `RUN/checkpoints`. Saving is asynchronous, and an interrupted save leaves no checkpoint.

    Checkpoints that are newer than the newest whole one are renamed to STEP.damaged-N, so that their steps can be saved
    again. Every process creates this object.

    Args:
      run_dir: run directory.
      max_to_keep: number of the latest checkpoints to keep.
      keep_best: metric of the held-out evaluation (see `Recipe.eval_metrics`). The checkpoint with its best value is
        kept too. "" keeps only the latest.

    Raises:
      UserError: there are checkpoints, but none is whole.
    """

    def __init__(self, run_dir: Path, *, max_to_keep: int, keep_best: str = ""):
        newest = checkpoint_files.newest_whole_checkpoint(run_dir)
        if newest is not None and distributed.is_main_process():
            for path in checkpoint_files.checkpoint_paths(run_dir):
                if int(path.name) > int(newest.name):
                    _set_aside(path)
        distributed.barrier("damaged checkpoints are renamed")
        self._keep_best = keep_best
        policies = [policy.LatestN(max_to_keep)]
        if keep_best:
            policies.append(policy.BestN(get_metric_fn=self._score, n=1, keep_checkpoints_without_metrics=False))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy.AnyPreservationPolicy(policies),
            best_fn=self._score,  # Orbax stores metrics only if there is one
            enable_async_checkpointing=True,
        )
        self._manager = ocp.CheckpointManager(absolute(run_dir / CHECKPOINTS_DIR), options=options)
        # In memory, because a checkpoint that is still being written cannot be read.
        found = {step: self._manager.metrics(step) for step in self._manager.all_steps()}
        self._eval_values = {step: values for step, values in found.items() if values is not None}

    def latest_step(self) -> int | None:
        """Returns the step of the latest finished checkpoint; None if there is none."""
        return self._manager.latest_step()

    def eval_values(self, step: int) -> Mapping[str, float] | None:
        """Returns the values of the held-out evaluation with which a checkpoint was saved; None if there are none."""
        return self._eval_values.get(step)

    def best(self) -> tuple[int, float] | None:
        """Returns the step of the best checkpoint in terms of `keep_best` and its value; None if none has a value."""
        scores = {step: self._score(self._eval_values.get(step, {})) for step in self._manager.all_steps()}
        best_step = max(scores, key=lambda step: (scores[step], step), default=None)
        if best_step is None or scores[best_step] == -math.inf:
            return None
        return best_step, self._eval_values[best_step][self._keep_best]

    def is_best(self, eval_values: Mapping[str, float]) -> bool:
        """Returns whether the values of a held-out evaluation are better than those of all checkpoints."""
        best = self.best()
        score = self._score(eval_values)
        return score > (-math.inf if best is None else self._score({self._keep_best: best[1]}))

    def _score(self, eval_values: Mapping[str, float]) -> float:
        """Returns a number that is higher for better values; minus infinity without a finite value of `keep_best`."""
        value = eval_values.get(self._keep_best, math.nan)
        score = value if self._keep_best.startswith("eval/accuracy") else -value
        return score if math.isfinite(score) else -math.inf

    def save(
        self, state: TrainState, data_iterator: DataIterator, eval_values: Mapping[str, float] | None = None
    ) -> None:
        """Saves the training state and the state of the data iterator.

        It must be called before the batch of the next step is taken from `data_iterator`. A checkpoint of the step is
        replaced.

        Args:
          state: training state.
          data_iterator: iterator of the training data.
          eval_values: values of the held-out evaluation after this step, if there was one.
        """
        items = {
            DELTA: ocp.args.StandardSave(unflatten_params(state.trainable)),
            OPTIMIZER: ocp.args.StandardSave({"step": state.step, "state": state.opt_state}),
            DATA: StreamStatesSave(data_iterator.get_state()),
        }
        step = int(state.step)
        if step in self._manager.all_steps():  # saved before its evaluation, which SIGTERM ended
            self._manager.delete(step)
        if eval_values is not None:
            self._eval_values[step] = dict(eval_values)
        self._manager.save(step, args=ocp.args.Composite(**items), metrics=self._eval_values.get(step))

    def restore(self, abstract_state: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Restores the latest checkpoint.

        Args:
          abstract_state: shapes, dtypes and shardings of the training state (see `abstract_like`).

        Returns:
          The training state, and the states of the data streams of all processes by stream index.
        """
        items = {
            DELTA: ocp.args.StandardRestore(unflatten_params(abstract_state.trainable)),
            OPTIMIZER: ocp.args.StandardRestore({"step": abstract_state.step, "state": abstract_state.opt_state}),
            DATA: StreamStatesRestore(),
        }
        restored = self._manager.restore(self.latest_step(), args=ocp.args.Composite(**items))
        optimizer = restored[OPTIMIZER]
        state = TrainState(optimizer["step"], flatten_params(restored[DELTA]), optimizer["state"])
        return state, restored[DATA]

    def close(self) -> None:
        """Waits until all checkpoints are saved, and closes the manager."""
        self._manager.wait_until_finished()
        self._manager.close()


def _set_aside(checkpoint: Path) -> None:
    """Renames a checkpoint to STEP.damaged-N with the first N that is free, and says so on stderr."""
    names = (f"{checkpoint.name}.damaged-{number}" for number in itertools.count(1))
    target = next(path for name in names if not (path := checkpoint.with_name(name)).exists())
    checkpoint.rename(target)
    print(f"warning: checkpoint {checkpoint} is now {target.name}", file=sys.stderr)


def abstract_like(state: TrainState) -> TrainState:
    """Returns the shapes, dtypes and shardings of a training state."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)

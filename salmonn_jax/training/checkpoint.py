"""Checkpoints of a run: what was trained, the optimiser, the step, the place in the data. Never the frozen weights."""

from __future__ import annotations

import pathlib

import grain
import jax
import orbax.checkpoint as ocp

from salmonn_jax.model_directory import CHECKPOINTS
from salmonn_jax.training.step import TrainState
from salmonn_jax.weights import flat, nested


class Checkpoints:
    """The checkpoints under `RUN/checkpoints`. Saving is asynchronous; a cut-off save leaves no checkpoint."""

    def __init__(self, run: pathlib.Path, *, keep: int):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager((run / CHECKPOINTS).resolve(), options=options)

    def latest(self) -> int | None:
        """The step of the latest finished checkpoint."""
        return self._manager.latest_step()

    def save(self, state: TrainState, data: grain.DatasetIterator) -> None:
        """Saves the state with the iterator that will yield the next step's batch."""
        items = {
            "delta": ocp.args.StandardSave(nested(state.trainable)),
            "optimizer": ocp.args.StandardSave({"step": state.step, "state": state.optimizer}),
            "data": grain.checkpoint.CheckpointSave(data),
        }
        self._manager.save(int(state.step), args=ocp.args.Composite(**items))

    def restore(self, abstract: TrainState, data: grain.DatasetIterator) -> TrainState:
        """Reads the latest checkpoint into the shapes and shardings of `abstract`, and moves `data` to its place."""
        items = {
            "delta": ocp.args.StandardRestore(nested(abstract.trainable)),
            "optimizer": ocp.args.StandardRestore({"step": abstract.step, "state": abstract.optimizer}),
            "data": grain.checkpoint.CheckpointRestore(data),
        }
        read = self._manager.restore(self.latest(), args=ocp.args.Composite(**items))
        optimizer = read["optimizer"]
        return TrainState(optimizer["step"], flat(read["delta"]), optimizer["state"])

    def close(self) -> None:
        """Waits for what is being saved."""
        self._manager.wait_until_finished()
        self._manager.close()


def abstract_like(state: TrainState) -> TrainState:
    """Shapes, dtypes and shardings of a state."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)

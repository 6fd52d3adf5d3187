"""Checkpoints of a run: what was trained, the optimiser, the step, the place in the data. Never the frozen weights."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.args import CheckpointArgs, register_with_handler

from salmonn_jax.batch import Batch
from salmonn_jax.model_directory import CHECKPOINTS_DIR
from salmonn_jax.training.step import TrainState
from salmonn_jax.weights import flatten_params, unflatten_params


class DataIterator(Protocol):
    """What yields a process' parts of the batches: `data_pipelines.stream.training_data.TrainingData`."""

    def __iter__(self) -> Iterator[Batch]: ...

    def __next__(self) -> Batch: ...

    def get_state(self) -> Mapping[str, Any]:
        """Where its streams stand, by their numbers, as JSON."""
        ...

    def set_state(self, states: Mapping[str, Any]) -> None:
        """Moves there. `states` may hold streams that other processes read."""
        ...


class _StreamStatesHandler(ocp.CheckpointHandler):
    """States of streams, each process writing those it reads, and reading all: so any other number may go on."""

    def save(self, directory: Any, args: StreamStatesSave) -> None:
        (pathlib.Path(directory) / f"{jax.process_index()}.json").write_text(json.dumps(args.states))

    def restore(self, directory: Any, args: StreamStatesRestore) -> dict[str, Any]:
        del args
        states: dict[str, Any] = {}
        for path in sorted(pathlib.Path(directory).glob("*.json")):
            states |= json.loads(path.read_text())
        return states


@register_with_handler(_StreamStatesHandler, for_save=True)
@dataclasses.dataclass
class StreamStatesSave(CheckpointArgs):
    states: Mapping[str, Any]


@register_with_handler(_StreamStatesHandler, for_restore=True)
@dataclasses.dataclass
class StreamStatesRestore(CheckpointArgs):
    pass


class Checkpoints:
    """The checkpoints under `RUN/checkpoints`. Saving is asynchronous; a cut-off save leaves no checkpoint."""

    def __init__(self, run: pathlib.Path, *, max_to_keep: int):
        options = ocp.CheckpointManagerOptions(max_to_keep=max_to_keep, create=True, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager((run / CHECKPOINTS_DIR).resolve(), options=options)

    def latest_step(self) -> int | None:
        """The step of the latest finished checkpoint."""
        return self._manager.latest_step()

    def save(self, state: TrainState, data: DataIterator) -> None:
        """Saves the state with the iterator that will yield the next step's batch."""
        items = {
            "delta": ocp.args.StandardSave(unflatten_params(state.trainable)),
            "optimizer": ocp.args.StandardSave({"step": state.step, "state": state.opt_state}),
            "data": StreamStatesSave(data.get_state()),
        }
        self._manager.save(int(state.step), args=ocp.args.Composite(**items))

    def restore(self, abstract_state: TrainState, data_iterator: DataIterator) -> TrainState:
        """Reads the latest checkpoint into the shapes and shardings of `abstract`, and moves `data` to its place."""
        items = {
            "delta": ocp.args.StandardRestore(unflatten_params(abstract_state.trainable)),
            "optimizer": ocp.args.StandardRestore({"step": abstract_state.step, "state": abstract_state.opt_state}),
            "data": StreamStatesRestore(),
        }
        read = self._manager.restore(self.latest_step(), args=ocp.args.Composite(**items))
        data_iterator.set_state(read["data"])
        optimizer = read["optimizer"]
        return TrainState(optimizer["step"], flatten_params(read["delta"]), optimizer["state"])

    def close(self) -> None:
        """Waits for what is being saved."""
        self._manager.wait_until_finished()
        self._manager.close()


def abstract_like(state: TrainState) -> TrainState:
    """Shapes, dtypes and shardings of a state."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)

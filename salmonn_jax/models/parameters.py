"""A model's parameters as a flat dictionary of arrays, and the way back to a module.

Paths such as `llama/layers/q_proj/lora_a` are the one name a parameter has: in the trainable filter, in checkpoints,
in conversion tables and in error messages.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

import jax
from flax import nnx
from jax import Array

from salmonn_jax.config import ModelConfig
from salmonn_jax.errors import UserError
from salmonn_jax.models.salmonn import Salmonn

Params = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class ModelStructure:
    """The model without its numbers: what `merge` needs beside the parameters."""

    graphdef: nnx.GraphDef
    abstract_state: nnx.State  # of jax.ShapeDtypeStruct

    @property
    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """float32 shape of every parameter, by path."""
        return {"/".join(map(str, path)): leaf.get_raw_value() for path, leaf in nnx.to_flat_state(self.abstract_state)}

    def merge(self, *parts: Params) -> Salmonn:
        """Builds the module from dictionaries that together hold every parameter. Traceable."""
        params = {path: value for part in parts for path, value in part.items()}
        flat = [
            (path, leaf.replace(params["/".join(map(str, path))]))
            for path, leaf in nnx.to_flat_state(self.abstract_state)
        ]
        return nnx.merge(self.graphdef, nnx.from_flat_state(flat))


def model_structure(config: ModelConfig) -> ModelStructure:
    """The structure of the model a configuration describes; allocates nothing."""
    return ModelStructure(*nnx.split(nnx.eval_shape(lambda: Salmonn(config, rngs=nnx.Rngs(0)))))


def init_params(config: ModelConfig, seed: int) -> Params:
    """Random float32 parameters by path. Traceable, so that `jax.jit(..., out_shardings)` can place them directly."""
    _, state = nnx.split(Salmonn(config, rngs=nnx.Rngs(seed)))
    return {"/".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(state)}


def trainable_paths(paths: Iterable[str], patterns: Iterable[str]) -> set[str]:
    """The paths that one of the regular expressions matches whole. A pattern that matches nothing is an error."""
    paths, chosen = list(paths), set()
    for pattern in patterns:
        found = {path for path in paths if re.fullmatch(pattern, path)}
        if not found:
            raise UserError(f"trainable pattern {pattern!r} matches no parameter of the model; see RunConfig.trainable")
        chosen |= found
    return chosen

"""Conversion between a model and a flat dictionary of its parameters.

Keys are paths such as `llama/layers/q_proj/lora_a`. Trainable patterns, checkpoints, conversion tables and error
messages all name parameters by these paths.
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
    """Structure of a model without its parameter values. `merge` combines it with parameters into a module."""

    graphdef: nnx.GraphDef
    abstract_state: nnx.State  # of jax.ShapeDtypeStruct

    @property
    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shape of every parameter by path, with dtype float32."""
        return {"/".join(map(str, path)): leaf.get_raw_value() for path, leaf in nnx.to_flat_state(self.abstract_state)}

    def merge(self, *param_dicts: Params) -> Salmonn:
        """Builds the module from dictionaries that together hold every parameter. It can be traced by JAX."""
        params = {path: value for param_dict in param_dicts for path, value in param_dict.items()}
        flat = [
            (path, leaf.replace(params["/".join(map(str, path))]))
            for path, leaf in nnx.to_flat_state(self.abstract_state)
        ]
        return nnx.merge(self.graphdef, nnx.from_flat_state(flat))


def model_structure(config: ModelConfig) -> ModelStructure:
    """Returns the structure of the configured model without allocating its parameters."""
    return ModelStructure(*nnx.split(nnx.eval_shape(lambda: Salmonn(config, rngs=nnx.Rngs(0)))))


def init_params(config: ModelConfig, seed: int) -> Params:
    """Returns random float32 parameters by path.

    It can be traced by JAX, so `jax.jit` with `out_shardings` creates each parameter with its sharding.
    """
    _, state = nnx.split(Salmonn(config, rngs=nnx.Rngs(seed)))
    return {"/".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(state)}


def trainable_paths(paths: Iterable[str], patterns: Iterable[str]) -> set[str]:
    """Returns the parameter paths that match a trainable pattern.

    Args:
      paths: all parameter paths of a model.
      patterns: regular expressions, each of which must match a whole path.

    Raises:
      UserError: a pattern matches no path.
    """
    paths, trainable = list(paths), set()
    for pattern in patterns:
        matches = {path for path in paths if re.fullmatch(pattern, path)}
        if not matches:
            raise UserError(f"trainable pattern {pattern!r} matches no parameter of the model; see RunConfig.trainable")
        trainable |= matches
    return trainable

"""Conversion between a model and a flat dictionary of its parameters.

Keys are paths such as `llama/layers/q_proj/lora_a`. Trainable patterns, checkpoints, conversion tables and error
messages all name parameters by these paths.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping

import jax
from flax import nnx
from jax import Array

from salmonn_jax.config import ModelConfig
from salmonn_jax.errors import UserError, unknown_name
from salmonn_jax.models.encoder import encoder_classes
from salmonn_jax.models.salmonn import ENCODER_NORMS, Salmonn

Params = dict[str, Array]

# Names for `Recipe.trainable`, and regular expressions for the paths of their parameters.
MODULES = {
    "query_tokens": "query_tokens",
    "qformer": "qformer/.*",
    "norms": f"({ENCODER_NORMS})/.*",  # layer norms of the encoders' frames
    "projection": "projection/.*",
    "adapters": ".*/lora_[ab]",
    **{name: f"{name}/.*" for name in encoder_classes()},
    "llm": "llama/(?!.*lora_[ab]).*",  # without its adapters
}


@dataclasses.dataclass(frozen=True)
class ModelStructure:
    """Structure of a model without its parameter values. `merge` combines it with parameters into a module."""

    config: ModelConfig
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


def model_structure(config: ModelConfig, activation_dtype: str = "float32") -> ModelStructure:
    """Returns the structure of the configured model without allocating its parameters."""
    model = nnx.eval_shape(lambda: Salmonn(config, dtype=activation_dtype, rngs=nnx.Rngs(0)))
    return ModelStructure(config, *nnx.split(model))


def init_params(config: ModelConfig, seed: int) -> Params:
    """Returns random float32 parameters by path.

    It can be traced by JAX, so `jax.jit` with `out_shardings` creates each parameter with its sharding.
    """
    _, state = nnx.split(Salmonn(config, rngs=nnx.Rngs(seed)))
    return {"/".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(state)}


def trainable_modules(paths: Iterable[str], trainable: Iterable[str]) -> dict[str, list[str]]:
    """Returns the parameter paths that each entry of `Recipe.trainable` selects.

    Args:
      paths: all parameter paths of a model.
      trainable: names in `MODULES`, and regular expressions, each of which must match whole paths. An entry of
        lowercase letters, digits and underscores alone is a name.

    Returns:
      The paths by entry. A module that the model does not have selects no path.

    Raises:
      UserError: a name is unknown, a regular expression is not valid or matches no path, or no parameter is trained.
    """
    paths, selected = list(paths), {}
    for entry in trainable:
        is_name = re.fullmatch("[a-z0-9_]+", entry)
        if is_name and entry not in MODULES:
            raise unknown_name("module in trainable", entry, MODULES)
        try:
            pattern = re.compile(MODULES[entry] if is_name else entry)
        except re.error as error:
            raise UserError(f"trainable entry {entry!r} is not a regular expression: {error}") from None
        selected[entry] = [path for path in paths if pattern.fullmatch(path)]
        if not selected[entry] and not is_name:
            raise UserError(f"trainable entry {entry!r} matches no parameter of the model, such as {paths[0]}")
    if not any(selected.values()):
        raise UserError(f"trainable={list(selected)} selects no parameter of this model; it needs at least one")
    return selected


def trainable_paths(paths: Iterable[str], trainable: Iterable[str]) -> set[str]:
    """Returns the paths of all trained parameters. Arguments and errors are those of `trainable_modules`."""
    return {path for selected in trainable_modules(paths, trainable).values() for path in selected}


def describe_trainable(shapes: Mapping[str, jax.ShapeDtypeStruct], trainable: Iterable[str]) -> str:
    """Returns one line with the number of trained parameters per entry of `Recipe.trainable`, and absent modules."""
    selected = trainable_modules(shapes, trainable)
    counts = {entry: sum(math.prod(shapes[path].shape) for path in paths) for entry, paths in selected.items()}
    line = "trained: " + ", ".join(f"{entry} {count:,}" for entry, count in counts.items() if count)
    total = sum(math.prod(shape.shape) for shape in shapes.values())
    absent = ", ".join(entry for entry, count in counts.items() if not count)
    return f"{line}; the model has {total:,} parameters" + (f" and no {absent}" if absent else "")

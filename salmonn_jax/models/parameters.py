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
    """Structure of a model without its parameter values. `merge` combines it with parameters into a module.

    Attributes:
      config: configuration of the model.
      graphdef: graph definition of the module.
      abstract_state: state of the module, of jax.ShapeDtypeStruct.
      unused: paths of parameters that a program does not read, such as those of the encoders if it gets their frames.
    """

    config: ModelConfig
    graphdef: nnx.GraphDef
    abstract_state: nnx.State
    unused: frozenset[str] = frozenset()

    @property
    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shape of every parameter that is used by path, with dtype float32."""
        shapes = {
            "/".join(map(str, path)): leaf.get_raw_value() for path, leaf in nnx.to_flat_state(self.abstract_state)
        }
        return {path: shape for path, shape in shapes.items() if path not in self.unused}

    @property
    def encoder_paths(self) -> frozenset[str]:
        """Returns the paths of the parameters of the encoders, without the norms of their frames."""
        return frozenset(path for path in self.shapes if path.split("/")[0] in self.config.encoders)

    def without(self, paths: Iterable[str]) -> ModelStructure:
        """Returns the structure for programs that do not read the parameters at these paths."""
        return dataclasses.replace(self, unused=self.unused | frozenset(paths))

    def merge(self, *param_dicts: Params) -> Salmonn:
        """Builds the module from dictionaries that together hold every used parameter. It can be traced by JAX."""
        params = {path: value for param_dict in param_dicts for path, value in param_dict.items()}
        flat = []
        for path, leaf in nnx.to_flat_state(self.abstract_state):
            name = "/".join(map(str, path))
            flat.append((path, leaf if name in self.unused else leaf.replace(params[name])))
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


def check_frozen_encoders(structure: ModelStructure, trainable: Iterable[str]) -> None:
    """Raises UserError if the frames of the encoders cannot be stored: it has none, or trains some of their parameters.

    Args:
      structure: structure of the model.
      trainable: names and patterns, see `trainable_modules`.
    """
    if not structure.encoder_paths:
        raise UserError("data.encoder_cache: the model has no encoder; leave it out")
    for entry, paths in trainable_modules(structure.shapes, trainable).items():
        trained = sorted(structure.encoder_paths.intersection(paths))
        if trained:
            raise UserError(
                f"data.encoder_cache needs frozen encoders, but trainable entry {entry!r} selects {trained[0]}; change "
                "the entry, or leave data.encoder_cache out"
            )


def describe_trainable(shapes: Mapping[str, jax.ShapeDtypeStruct], trainable: Iterable[str]) -> str:
    """Returns one line with the number of trained parameters per entry of `Recipe.trainable`, and absent modules."""
    selected = trainable_modules(shapes, trainable)
    counts = {entry: sum(math.prod(shapes[path].shape) for path in paths) for entry, paths in selected.items()}
    line = "trained: " + ", ".join(f"{entry} {count:,}" for entry, count in counts.items() if count)
    total = sum(math.prod(shape.shape) for shape in shapes.values())
    absent = ", ".join(entry for entry, count in counts.items() if not count)
    return f"{line}; the model has {total:,} parameters" + (f" and no {absent}" if absent else "")

"""Merge recipes: the YAML files of mergekit, for merges of what was trained.

    merge_method: ties
    base_model: MODEL                  # without it: the weights of the models before any training
    models:
      - model: RUN_ONE
        parameters: {weight: 0.9, density: 0.5}
      - model: RUN_TWO
        parameters:
          weight: [0.0, 0.5]           # from the first layer to the last
          density:
            - {filter: q_proj, value: 0.9}
            - {value: 0.5}             # all others
    parameters: {normalize: true, lambda: 1.0}
    dtype: float32

A path is relative to the directory of the file. Keys that are not used are errors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from salmonn_jax.config.typed import STRICT, from_dict
from salmonn_jax.errors import UserError
from salmonn_jax.forgetting.merging.methods import (
    Method,
    TensorParameters,
    check_parameters,
    get_method,
)
from salmonn_jax.forgetting.yaml_files import read_yaml
from salmonn_jax.paths import Path

Dtype = Literal["float32", "bfloat16", "float16"]


@dataclasses.dataclass(frozen=True)
class Parameter:
    """Value of a parameter for every tensor: pairs of a filter and values, of which the first that applies counts.

    A filter is a part of the tensor's name; None applies to all. Several values are spread over the layers, and tensors
    outside layers take the first.
    """

    choices: tuple[tuple[str | None, tuple[float, ...]], ...]

    def at(self, tensor: str, depth: float) -> float | None:
        """Returns the value for a tensor at a depth from 0, the first layer, to 1, the last; None without a choice."""
        for text, values in self.choices:
            if text is None or text in tensor:
                position = depth * (len(values) - 1)
                low = min(int(position), max(len(values) - 2, 0))
                high = min(low + 1, len(values) - 1)
                return values[low] + (position - low) * (values[high] - values[low])
        return None


def _parse_parameter(value: Any) -> Parameter:
    """Reads a number, a list of numbers, or a list of mappings with `value` and perhaps `filter`."""
    if isinstance(value, Parameter):
        return value
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        for item in value:
            if "value" not in item or set(item) - {"value", "filter"}:
                raise PydanticCustomError("parameter", "a filtered value has the keys value and, perhaps, filter")
        texts = [None if item.get("filter") in (None, "*") else str(item["filter"]) for item in value]
        return Parameter(tuple((text, _numbers(item["value"])) for text, item in zip(texts, value, strict=True)))
    return Parameter(((None, _numbers(value)),))


def _numbers(value: Any) -> tuple[float, ...]:
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(x, int | float) and not isinstance(x, bool) for x in values):
        raise PydanticCustomError("parameter", "must be a number, a list of numbers, or a list of filters and values")
    return tuple(map(float, values))


Scalar = Annotated[Parameter, pydantic.BeforeValidator(_parse_parameter)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Parameters:
    """Parameters of a merge or of one of its models, by mergekit's names. None is not given."""

    weight: Scalar | None = Field(None, description="weight of a model")
    density: Scalar | None = Field(None, description="share of the entries that are kept")
    gamma: Scalar | None = Field(None, description="share of the greatest entries that breadcrumbs drops")
    epsilon: Scalar | None = Field(None, description="half the range of DELLA's probabilities")
    t: Scalar | None = Field(None, description="position of SLERP between the first model (0) and the second (1)")
    alpha: Scalar | None = Field(None, description="position of WiSE-FT between the base (0) and the model (1)")
    lambda_: Scalar | None = Field(None, alias="lambda", description="factor of the merged difference")
    normalize: bool | None = Field(None, description="whether the sum is divided by the weights")
    rescale: bool | None = Field(None, description="whether DARE and DELLA scale up what they keep")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ModelEntry:
    """One of the merged models."""

    model: str = Field(description="model or run directory, checkpoint of a run, or PEFT adapter directory")
    parameters: Parameters = Field(default_factory=Parameters, description="parameters of this model")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MergeRecipe:
    """A merge."""

    merge_method: str = Field(description="name of the method")
    models: list[ModelEntry] = Field(min_length=1, description="the models that are merged")
    base_model: str | None = Field(None, description="the model from which the others were trained")
    parameters: Parameters = Field(default_factory=Parameters, description="parameters for all models")
    dtype: Dtype = Field("float32", description="dtype in which the result is stored; it is computed in float32")

    @property
    def method(self) -> Method:
        """Returns the method."""
        return get_method(self.merge_method)

    @property
    def merged(self) -> tuple[ModelEntry, ...]:
        """Returns the models beside the base. mergekit's files may list the base among the models too."""
        if self.merge_method == "linear":
            return tuple(self.models)
        return tuple(entry for entry in self.models if entry.model != self.base_model)

    def for_tensor(self, name: str, depth: float) -> TensorParameters:
        """Returns the parameters for one tensor.

        Args:
          name: name of the tensor, to which filters apply.
          depth: position of its layer, from 0 to 1; 0 for a tensor outside layers.

        Raises:
          UserError: a parameter is missing or out of range.
        """
        method = self.method
        models = []
        for i, entry in enumerate(self.merged):
            values = {}
            for key, default in method.model_parameters.items():
                values[key] = self._value(key, name, depth, default, (entry.parameters, self.parameters))
                if values[key] is None:
                    raise UserError(f"models[{i}].parameters.{key}: is required by {method.name} (for {name})")
            models.append(values)
        merge = {}
        for key, default in method.parameters.items():
            merge[key] = self._value(key, name, depth, default, (self.parameters,))
            if merge[key] is None:
                raise UserError(f"parameters.{key}: is required by {method.name} (for {name})")
        parameters = TensorParameters(tuple(models), merge)
        check_parameters(method, parameters)
        return parameters

    def _value(self, key: str, name: str, depth: float, default: Any, sections: Sequence[Parameters]) -> Any:
        """Returns the value of a parameter from the first section that has it for this tensor, or the default."""
        for section in sections:
            given = getattr(section, "lambda_" if key == "lambda" else key)
            value = given.at(name, depth) if isinstance(given, Parameter) else given
            if value is not None:
                return value
        return default


def read_recipe(path: Path) -> MergeRecipe:
    """Reads a merge recipe.

    Raises:
      UserError: the file is missing or no YAML mapping, a key is unknown or not used by the method, or a value is
        wrong.
    """
    recipe = from_dict(MergeRecipe, read_yaml(path))
    _check_used(recipe)
    return recipe


def _check_used(recipe: MergeRecipe) -> None:
    """Raises UserError for parameters that the method does not have, and for a wrong number of models."""
    method = recipe.method
    sections = [(f"models[{i}].parameters", entry.parameters) for i, entry in enumerate(recipe.models)]
    of_merge = {*method.model_parameters, *method.parameters}
    for where, section, known in [
        ("parameters", recipe.parameters, of_merge),
        *((where, section, set(method.model_parameters)) for where, section in sections),
    ]:
        for field in dataclasses.fields(section):
            key = field.name.rstrip("_")
            if getattr(section, field.name) is not None and key not in known:
                has = ", ".join(sorted(known)) or "none"
                raise UserError(f"{where}.{key}: {method.name} does not have this parameter here; it has {has}")
    count = len(recipe.merged)
    if not method.num_models[0] <= count <= method.num_models[1]:
        raise UserError(f"models: {method.name} merges {method.wanted_models} beside base_model, not {count}")
    if method.name == "slerp" and count == 1 and recipe.base_model is None:
        raise UserError("base_model: slerp with one model needs it as the other end")

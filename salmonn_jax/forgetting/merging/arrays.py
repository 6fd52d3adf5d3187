"""Merging of arrays that are in memory, in the terms of mergekit's `merge_tensors`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from salmonn_jax.errors import UserError, check_choice
from salmonn_jax.forgetting.merging import differences
from salmonn_jax.forgetting.merging.methods import (
    COMBINATIONS,
    Compat,
    Method,
    TensorParameters,
    check_parameters,
    coefficients,
    get_method,
)


def merge_arrays(
    method: str,
    arrays: Mapping[str, np.ndarray],
    base: str | None = None,
    parameters: Mapping[str, Any] | None = None,
    *,
    compat: Compat = "mergekit",
    seed: int = 0,
) -> np.ndarray:
    """Merges arrays of one shape.

    Args:
      method: name of a method (`METHODS`).
      arrays: arrays by the name of their model, float32 of one shape.
      base: the model that is the base, among `arrays`.
      parameters: parameters by name. One of each model is a number for all models or a mapping from model to number.
      compat: whose rules are followed where mergekit differs from the papers.
      seed: seed of the methods that drop entries at random.

    Returns:
      float32 of the shape of the arrays.

    Raises:
      UserError: the method or a parameter is unknown or out of range, or the arrays do not fit the method.
    """
    check_choice("compat", compat, Compat)
    chosen = get_method(method)
    shapes = {name: np.shape(array) for name, array in arrays.items()}
    if len(set(shapes.values())) != 1:
        raise UserError(f"the arrays have different shapes: {shapes}; merge arrays of one shape")
    if base is not None and base not in arrays:
        raise UserError(f"base={base!r}: is not among the arrays {sorted(arrays)}")
    if chosen.uses_base and base is None:
        raise UserError(f"{method} needs a base; name one of the arrays")
    models = [name for name in arrays if name != base or chosen.name == "linear"]
    resolved = _resolve(chosen, models, dict(parameters or {}))
    values = [np.asarray(arrays[name], np.float32) for name in models]
    start = np.asarray(arrays[base], np.float32) if base is not None and chosen.name != "linear" else None
    return merge_tensor(chosen, start, values, resolved, tensor="array", compat=compat, seed=seed)


def merge_tensor(
    method: Method,
    base: np.ndarray | None,
    models: list[np.ndarray],
    parameters: TensorParameters,
    *,
    tensor: str,
    compat: Compat = "mergekit",
    seed: int = 0,
    thresholds: list[float] | None = None,
) -> np.ndarray:
    """Merges one tensor of several models.

    Args:
      method: the method.
      base: tensor of the base, float32; None for a method without a base.
      models: tensors of the models, float32 of one shape.
      parameters: parameters of the method.
      tensor: name of the tensor, which decides its random numbers.
      compat: whose rules are followed where mergekit differs from the papers.
      seed: seed of the random numbers.
      thresholds: see `differences.merge_differences`.
    """
    if method.name in COMBINATIONS:
        return _combine(method, base, models, parameters)
    generators = [differences.generator(seed, tensor, i) for i in range(len(models))]
    delta = differences.merge_differences(
        method,
        [model - base for model in models],
        parameters,
        generators=generators,
        compat=compat,
        thresholds=thresholds,
    )
    return base + delta


def _combine(
    method: Method, base: np.ndarray | None, models: list[np.ndarray], parameters: TensorParameters
) -> np.ndarray:
    """Returns the weighted sum of base and models. A weight of 1 beside zeros gives the tensor bit for bit."""
    tensors = [np.zeros_like(models[0]) if base is None else base, *models]
    flat = np.stack([tensor.reshape(-1) for tensor in tensors]).astype(np.float64)
    # Differences are taken before products: the products of whole weights would lose those of small differences.
    center = flat[0].copy() if method.uses_base else np.zeros_like(flat[0])
    flat -= center
    if method.name == "slerp" and base is None:
        flat = flat[1:]
    weights = coefficients(method, flat @ flat.T, parameters)
    if np.count_nonzero(weights) == 1 and weights.max() == 1:
        return (tensors if len(flat) == len(tensors) else models)[int(weights.argmax())].copy()
    return (weights @ flat + center * weights.sum()).astype(np.float32).reshape(models[0].shape)


def _resolve(method: Method, models: list[str], parameters: dict[str, Any]) -> TensorParameters:
    """Returns the parameters of all models. Raises UserError if one is unknown, missing or out of range."""
    known = {*method.model_parameters, *method.parameters}
    if set(parameters) - known:
        name = sorted(set(parameters) - known)[0]
        raise UserError(f"{method.name} has no parameter {name!r}; it has {', '.join(sorted(known)) or 'none'}")
    of_models: list[dict[str, float]] = [{} for _ in models]
    for name, default in method.model_parameters.items():
        value = parameters.get(name, default)
        for model, values in zip(models, of_models, strict=True):
            values[name] = value.get(model, default) if isinstance(value, Mapping) else value
            if values[name] is None:
                raise UserError(f"{method.name} needs {name} of {model}")
    of_merge = {name: parameters.get(name, default) for name, default in method.parameters.items()}
    missing = [name for name, value in of_merge.items() if value is None]
    if missing:
        raise UserError(f"{method.name} needs {missing[0]}")
    if not method.num_models[0] <= len(models) <= method.num_models[1]:
        raise UserError(f"{method.name} merges {method.wanted_models} beside the base, not {len(models)}")
    resolved = TensorParameters(tuple(of_models), of_merge)
    check_parameters(method, resolved)
    return resolved

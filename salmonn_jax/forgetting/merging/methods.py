"""Merging methods for one tensor, and for several given as arrays.

Methods are of two kinds. `COMBINATIONS` are weighted sums of the models, whose weights depend on the models only
through their inner products; they apply to low-rank adapters without computing their products. The others choose
entries of the differences from the base one by one (`merge_differences`).

Sources: Wortsman et al. 2022 (WiSE-FT), Shoemake 1985 (SLERP), Ilharco et al. 2023 (task arithmetic), Yadav et al.
2023 (TIES), Yu et al. 2024 (DARE), Davari and Belilovsky 2024 (breadcrumbs), Deep et al. 2024 (DELLA), Jang et al. 2024
(model stock). Parameters, defaults and rules are those of mergekit 0.1.5; `compat="paper"` follows the papers where
mergekit differs from them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np

from salmonn_jax.errors import UserError, unknown_name

Compat = Literal["mergekit", "paper"]
PARALLEL_COSINE = 0.9995  # above it SLERP is linear interpolation
_ZERO = 1e-8  # sums of weights and norms below it count as zero


@dataclasses.dataclass(frozen=True)
class Method:
    """Name of a method and its parameters with their defaults.

    Attributes:
      model_parameters: parameters of each model; None if a value must be given.
      parameters: parameters of the whole merge; None if a value must be given.
      uses_base: whether the result is the base plus a merged difference, so that the base is not one of the models.
      num_models: least and greatest number of models beside the base.
      elect: whether entries of the minority sign are dropped.
    """

    name: str
    model_parameters: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
    parameters: Mapping[str, float | bool | None] = dataclasses.field(default_factory=dict)
    uses_base: bool = True
    num_models: tuple[int, float] = (1, float("inf"))
    elect: bool = False

    @property
    def wanted_models(self) -> str:
        """Returns the number of models that the method merges, in words."""
        low, high = self.num_models
        if low == high:
            return f"exactly {low} model{'s' if low > 1 else ''}"
        return f"at least {low} model{'s' if low > 1 else ''}" if high == float("inf") else f"{low} to {high} models"


_SPARSE = {"weight": None, "density": 1.0}
METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("linear", {"weight": None}, {"normalize": True}, uses_base=False),
        Method("slerp", {}, {"t": None}, uses_base=False, num_models=(1, 2)),
        Method("nuslerp", {"weight": None}, {}, num_models=(2, 2)),
        Method("wise_ft", {}, {"alpha": None}, num_models=(1, 1)),
        Method("model_stock", {}, {}, num_models=(2, float("inf"))),
        Method("task_arithmetic", {"weight": None}, {"normalize": False, "lambda": 1.0}),
        Method("ties", _SPARSE, {"normalize": True, "lambda": 1.0}, elect=True),
        Method("dare_linear", _SPARSE, {"normalize": False, "lambda": 1.0, "rescale": True}),
        Method("dare_ties", _SPARSE, {"normalize": False, "lambda": 1.0, "rescale": True}, elect=True),
        Method("breadcrumbs", _SPARSE | {"gamma": 0.01}, {"normalize": False, "lambda": 1.0}),
        Method("breadcrumbs_ties", _SPARSE | {"gamma": 0.01}, {"normalize": False, "lambda": 1.0}, elect=True),
        Method("della", _SPARSE | {"epsilon": 0.15}, {"normalize": True, "lambda": 1.0, "rescale": True}, elect=True),
        Method("della_linear", _SPARSE | {"epsilon": 0.15}, {"normalize": False, "lambda": 1.0, "rescale": True}),
    )
}


@dataclasses.dataclass(frozen=True)
class TensorParameters:
    """Parameters of a method for one tensor: those of each model in the order of the models, and those of the merge."""

    models: tuple[Mapping[str, float], ...]
    merge: Mapping[str, float | bool]

    def column(self, name: str) -> np.ndarray:
        """Returns a parameter of each model, float64[models]."""
        return np.array([values[name] for values in self.models])


def get_method(name: str) -> Method:
    """Returns a method. Raises UserError if there is none of this name."""
    if name not in METHODS:
        raise unknown_name("merge_method", name, METHODS)
    return METHODS[name]


def check_parameters(method: Method, parameters: TensorParameters) -> None:
    """Raises UserError if a parameter is out of its range."""
    for values in parameters.models:
        for name, (low, high) in {"density": (0, 1), "gamma": (0, 1), "epsilon": (0, 1)}.items():
            if name in values and not low <= values[name] <= high:
                raise UserError(f"{name}={values[name]}: must be between {low} and {high}")
        if values.get("density") == 0:
            raise UserError("density=0: drops everything; leave the model out or give it a weight of 0")
        density, epsilon = values.get("density", 1.0), values.get("epsilon", 0.0)
        if density < 1 and not epsilon <= density <= 1 - epsilon:
            raise UserError(
                f"density={density}, epsilon={epsilon}: density - epsilon and density + epsilon must be within 0 and 1"
            )
    for name in ("t", "alpha"):
        if name in parameters.merge and not 0 <= parameters.merge[name] <= 1:
            raise UserError(f"{name}={parameters.merge[name]}: must be between 0 and 1")
    if method.name == "nuslerp" and abs(parameters.column("weight").sum()) < _ZERO:
        raise UserError("the weights of nuslerp add up to 0; give weights whose sum is not 0")


# --- weighted sums of models ---


def coefficients(method: Method, products: np.ndarray, parameters: TensorParameters) -> np.ndarray:
    """Returns the weight of the base and of each model in the result, float64[1 + models].

    Args:
      method: a method of `COMBINATIONS`.
      products: inner products of base and models, flattened, float64[1 + models, 1 + models]. The base is first.
      parameters: parameters of the method.
    """
    return COMBINATIONS[method.name](products, parameters)


def _linear(products: np.ndarray, parameters: TensorParameters) -> np.ndarray:
    weights = parameters.column("weight")
    if parameters.merge["normalize"]:
        weights = weights / _nonzero(weights.sum())
    return np.concatenate([[0.0], weights])


def _task_arithmetic(products: np.ndarray, parameters: TensorParameters) -> np.ndarray:
    weights = parameters.column("weight") * parameters.merge["lambda"]
    if parameters.merge["normalize"]:
        weights = weights / _nonzero(parameters.column("weight").sum())
    return _from_base(weights)


def _wise_ft(products: np.ndarray, parameters: TensorParameters) -> np.ndarray:
    return _from_base(np.array([parameters.merge["alpha"]]))


def _slerp(products: np.ndarray, parameters: TensorParameters) -> np.ndarray:
    first, second = (0, 1) if len(products) == 2 else (1, 2)
    weights = np.zeros(len(products))
    weights[[first, second]] = _spherical(products[np.ix_([first, second], [first, second])], parameters.merge["t"])
    return weights


def _nuslerp(products: np.ndarray, parameters: TensorParameters) -> np.ndarray:
    weights = parameters.column("weight")
    return _from_base(_spherical(_of_differences(products), weights[1] / weights.sum()))


def _model_stock(products: np.ndarray, parameters: TensorParameters) -> np.ndarray:
    differences = _of_differences(products)
    norms, count = np.sqrt(np.diag(differences)), len(differences)
    cosines = differences / np.maximum(np.outer(norms, norms), 1e-300)
    cosine = cosines[np.triu_indices(count, 1)].mean()
    divisor = 1 + (count - 1) * cosine
    return _from_base(np.full(count, cosine / divisor if abs(divisor) >= _ZERO else 0.0))


COMBINATIONS: dict[str, Callable[[np.ndarray, TensorParameters], np.ndarray]] = {
    "linear": _linear,
    "slerp": _slerp,
    "nuslerp": _nuslerp,
    "wise_ft": _wise_ft,
    "model_stock": _model_stock,
    "task_arithmetic": _task_arithmetic,
}


def _from_base(weights: np.ndarray) -> np.ndarray:
    """Returns the coefficients of base + sum of weights * (model - base)."""
    return np.concatenate([[1.0 - weights.sum()], weights])


def _of_differences(products: np.ndarray) -> np.ndarray:
    """Returns the inner products of the differences from the base."""
    row = products[0]
    return (products - row[None, :] - row[:, None] + row[0])[1:, 1:]


def _spherical(products: np.ndarray, t: float) -> np.ndarray:
    """Returns the two coefficients of spherical interpolation of vectors with these inner products."""
    norms = np.sqrt(np.maximum(np.diag(products), 0))
    cosine = np.clip(products[0, 1] / max(norms.prod(), _ZERO**2), -1, 1)
    if norms.min() < _ZERO or abs(cosine) > PARALLEL_COSINE:
        return np.array([1 - t, t])
    angle = np.arccos(cosine)
    return np.sin(np.array([1 - t, t]) * angle) / np.sin(angle)


def _nonzero(total: float) -> float:
    return total if abs(total) >= _ZERO else 1.0

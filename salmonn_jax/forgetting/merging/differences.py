"""Merging methods that choose entries of differences from the base: TIES, DARE, breadcrumbs and DELLA."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from salmonn_jax.forgetting.merging.methods import Compat, Method, TensorParameters

_NO_SUM = 1e-8  # sums of magnitudes below it are not rescaled


def generator(seed: int, tensor: str, model: int) -> np.random.Generator:
    """Returns the random numbers for one tensor of one model, which do not depend on the order of the tensors."""
    return np.random.default_rng([seed, zlib.crc32(tensor.encode()), model])


def merge_differences(
    method: Method,
    differences: Sequence[np.ndarray],
    parameters: TensorParameters,
    *,
    generators: Sequence[np.random.Generator],
    compat: Compat = "mergekit",
    thresholds: Sequence[float | None] | None = None,
) -> np.ndarray:
    """Returns the merged difference from the base, float32 of the shape of one difference.

    With `compat="mergekit"` the sign of an entry is that of the sum of the weighted differences, and `normalize`
    divides by the weights of the models that have it. With "paper" the sign is that of the unweighted sum, and the
    result of an election is divided by the number of models that have it. A sum of zero counts as positive.

    Args:
      method: a method that is not in `COMBINATIONS`.
      differences: model minus base for each model, float32 of one shape.
      parameters: parameters of the method.
      generators: random numbers for each model (`generator`), of which DARE and DELLA take one per entry.
      compat: whose rules are followed where mergekit differs from the papers.
      thresholds: for TIES, the least magnitude that is kept of each model, in place of a share of this tensor.
    """
    kept = []
    for i, difference in enumerate(differences):
        threshold = None if thresholds is None else thresholds[i]
        values = parameters.models[i]
        if threshold is not None:
            kept.append(np.where(np.abs(difference) >= threshold, difference, np.float32(0)))
        else:
            kept.append(_SPARSIFY[method.name](difference, values, generators[i], _rescaling(parameters, compat)))
    weights = parameters.column("weight").astype(np.float32)
    mean_of_models = method.elect and compat == "paper"
    positive = sum(_votes(kept, weights, compat)) >= 0 if method.elect else None
    total, divisor = np.zeros_like(differences[0]), np.zeros_like(differences[0])
    for weight, difference, vote in zip(weights, kept, _votes(kept, weights, compat), strict=True):
        chosen = np.where(positive, vote > 0, vote < 0) if method.elect else np.True_
        total += weight * np.where(chosen, difference, np.float32(0))
        divisor += chosen if mean_of_models else weight * chosen
    if mean_of_models or parameters.merge["normalize"]:
        total /= np.where(np.abs(divisor) < _NO_SUM, np.float32(1), divisor)
    return total * np.float32(parameters.merge["lambda"])


def _votes(kept: Sequence[np.ndarray], weights: np.ndarray, compat: Compat) -> Iterator[np.ndarray]:
    """Yields the values of each model whose signs are counted."""
    for weight, difference in zip(weights, kept, strict=True):
        yield difference if compat == "paper" else weight * difference


def _rescaling(parameters: TensorParameters, compat: Compat) -> Compat | None:
    """Returns how kept entries are scaled up: to the sum of magnitudes before, by their probability, or not at all."""
    return compat if parameters.merge.get("rescale") else None


def _trim(
    difference: np.ndarray, values: Mapping[str, float], generator: np.random.Generator, rescaling: Compat | None
) -> np.ndarray:
    """Keeps the share `density` of the entries that is greatest in magnitude, at least one (TIES)."""
    count = max(1, int(values["density"] * difference.size))
    return np.where(_smallest(np.abs(difference), difference.size - count), np.float32(0), difference)


def _drop_at_random(
    difference: np.ndarray, values: Mapping[str, float], generator: np.random.Generator, rescaling: Compat | None
) -> np.ndarray:
    """Keeps each entry with the probability `density` (DARE)."""
    density = values["density"]
    if density >= 1:
        return difference
    return _keep(difference, np.full(difference.shape, density, np.float32), generator, rescaling)


def _drop_by_rank(
    difference: np.ndarray, values: Mapping[str, float], generator: np.random.Generator, rescaling: Compat | None
) -> np.ndarray:
    """Keeps an entry with a probability that grows with its rank in its row, density - epsilon to + epsilon (DELLA)."""
    density, epsilon = values["density"], values["epsilon"]
    if density >= 1:
        return difference
    rows = difference.reshape(1, -1) if difference.ndim < 2 else difference.reshape(difference.shape[0], -1)
    ranks = np.argsort(np.argsort(np.abs(rows), axis=1, kind="stable"), axis=1)
    share = ranks / max(1, rows.shape[1] - 1)
    probability = (density - epsilon + 2 * epsilon * share).astype(np.float32)
    return _keep(difference, probability.reshape(difference.shape), generator, rescaling)


def _drop_outliers(
    difference: np.ndarray, values: Mapping[str, float], generator: np.random.Generator, rescaling: Compat | None
) -> np.ndarray:
    """Drops the share `gamma` that is greatest in magnitude, and the smallest until `density` is left (breadcrumbs)."""
    size = difference.size
    highest = int(values["gamma"] * size)
    lowest = size - int(values["density"] * size) - highest
    if lowest < 0:  # to leave `density`, fewer of the greatest are dropped
        highest, lowest = highest + lowest, 0
    magnitude = np.abs(difference)
    kept = _smallest(magnitude, size - highest) & ~_smallest(magnitude, lowest)
    return np.where(kept, difference, np.float32(0))


def _smallest(values: np.ndarray, count: int) -> np.ndarray:
    """Returns a mask of the `count` smallest entries; of equal ones, the first."""
    if count <= 0:
        return np.zeros(values.shape, bool)
    flat = values.reshape(-1)
    limit = np.partition(flat, count - 1)[count - 1]
    mask = flat < limit
    mask[np.flatnonzero(flat == limit)[: count - np.count_nonzero(mask)]] = True
    return mask.reshape(values.shape)


def _keep(
    difference: np.ndarray, probability: np.ndarray, generator: np.random.Generator, rescaling: Compat | None
) -> np.ndarray:
    """Keeps entries at random and rescales what is left."""
    kept = np.where(generator.random(difference.shape, np.float32) < probability, difference, np.float32(0))
    if rescaling == "paper":
        return kept / probability
    before, after = np.abs(difference).sum(dtype=np.float64), np.abs(kept).sum(dtype=np.float64)
    if rescaling is None or before < _NO_SUM or after < _NO_SUM:
        return kept
    return kept * np.float32(before / after)


_SPARSIFY: dict[str, Callable[..., np.ndarray]] = {
    "ties": _trim,
    "dare_linear": _drop_at_random,
    "dare_ties": _drop_at_random,
    "breadcrumbs": _drop_outliers,
    "breadcrumbs_ties": _drop_outliers,
    "della": _drop_by_rank,
    "della_linear": _drop_by_rank,
}

"""Merge cases with random tensors, and their results by mergekit 0.1.5, which `mergekit.npz` holds.

    pip install torch mergekit==0.1.5
    python tests/forgetting/mergekit_cases.py      # writes mergekit.npz anew

mergekit pins older versions of packages that this project uses, so it needs an environment of its own.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

FILE = pathlib.Path(__file__).with_name("mergekit.npz")
SHAPES = ((1,), (2,), (7,), (1, 1), (3, 5), (6, 9), (2, 3, 4))
WEIGHTS = ({"a": 1.0}, {"a": 0.5, "b": 0.5}, {"a": 0.9, "b": 0.06, "c": 0.04}, {"a": 0.8, "b": -0.3, "c": 1.2})
DENSITIES = (1.0, 0.5, 0.2)


def make_tensors(shape: tuple[int, ...], seed: int, num_models: int) -> dict[str, np.ndarray]:
    """Returns a base and models near it, one of which has entries that are equal to the base, float32."""
    rng = np.random.default_rng(seed)
    base = rng.normal(0, 1, shape).astype(np.float32)
    tensors = {"base": base}
    for name in "abc"[:num_models]:
        tensors[name] = base + rng.normal(0, 0.1, shape).astype(np.float32)
    if num_models == 3:
        tensors["c"] = np.where(rng.random(shape) < 0.5, base, tensors["c"])
    return tensors


def cases() -> Iterator[tuple[str, dict[str, np.ndarray], str | None, dict[str, Any]]]:
    """Yields (method, tensors, base, parameters) of every case without random numbers."""
    for seed, shape in enumerate(SHAPES):
        for weight in WEIGHTS:
            tensors = make_tensors(shape, seed, len(weight))
            models = {name: x for name, x in tensors.items() if name != "base"}
            for normalize in (True, False):
                yield "linear", models, None, {"weight": weight, "normalize": normalize}
                yield "task_arithmetic", tensors, "base", {"weight": weight, "normalize": normalize, "lambda": 0.7}
                for density in DENSITIES:
                    sparse = {"weight": weight, "density": dict.fromkeys(weight, density), "normalize": normalize}
                    yield "ties", tensors, "base", sparse | {"lambda": 0.6}
                    for gamma in (0.01, 0.2):
                        outliers = sparse | {"gamma": dict.fromkeys(weight, gamma)}
                        yield "breadcrumbs", tensors, "base", outliers
                        yield "breadcrumbs_ties", tensors, "base", outliers
                sparse = {"weight": weight, "density": dict.fromkeys(weight, 1.0), "normalize": normalize}
                for method in ("dare_linear", "dare_ties", "della", "della_linear"):
                    yield method, tensors, "base", sparse
            if len(weight) == 1:
                for t in (0.0, 0.3, 1.0):
                    yield "slerp", tensors, "base", {"t": t}
            if len(weight) == 2:
                yield "nuslerp", tensors, "base", {"weight": {"a": 0.7, "b": 0.3}}
            if len(weight) >= 2:
                yield "model_stock", tensors, "base", {}


def by_mergekit(
    method: str, tensors: dict[str, np.ndarray], base: str | None, parameters: dict[str, Any]
) -> np.ndarray:
    """Returns the result of mergekit for one case."""
    import torch
    from mergekit.merge_methods.api import merge_tensors

    names = list(tensors)
    filled = {}
    for name, value in parameters.items():  # mergekit wants a value of the base too, and does not use it
        filled[name] = {x: value.get(x, 1.0) for x in names} if isinstance(value, dict) else value
    result = merge_tensors(
        [torch.from_numpy(tensors[name]) for name in names],
        method,
        parameters=filled,
        ids=names,
        base_index=None if base is None else names.index(base),
    )
    return result.numpy()


def main() -> None:
    """Writes the cases and the results of mergekit: tensors and results of all cases one after the other."""
    described, values = [], []
    for method, tensors, base, parameters in cases():
        result = by_mergekit(method, tensors, base, parameters)
        if np.isfinite(result).all():  # model stock divides by zero for opposite differences
            shape = next(iter(tensors.values())).shape
            described.append([method, base, parameters, list(tensors), shape])
            values += [*tensors.values(), result]
    flat = np.concatenate([value.reshape(-1) for value in values])
    np.savez_compressed(FILE, cases=np.array(json.dumps(described)), values=flat)
    print(f"{FILE}: {len(described)} cases, {FILE.stat().st_size} bytes")


def stored() -> Iterator[tuple[str, dict[str, np.ndarray], str | None, dict[str, Any], np.ndarray]]:
    """Yields (method, tensors, base, parameters, result of mergekit) of every case in the file."""
    with np.load(FILE) as file:
        described, values = json.loads(str(file["cases"])), file["values"]
    start = 0
    for method, base, parameters, names, shape in described:
        size = int(np.prod(shape))
        arrays = values[start : start + size * (len(names) + 1)].reshape(len(names) + 1, *shape)
        start += arrays.size
        yield method, dict(zip(names, arrays, strict=False)), base, parameters, arrays[-1]


if __name__ == "__main__":
    main()

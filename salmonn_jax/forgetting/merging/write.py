"""Execution of a merge: tensors are merged one at a time while they are written."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np

from salmonn_jax import config as configuration
from salmonn_jax import model_directory, weights
from salmonn_jax.files import atomic_output
from salmonn_jax.forgetting.merging import adapters
from salmonn_jax.forgetting.merging.adapters import Adapter
from salmonn_jax.forgetting.merging.arrays import merge_tensor
from salmonn_jax.forgetting.merging.methods import COMBINATIONS
from salmonn_jax.forgetting.merging.plan import MergePlan, group
from salmonn_jax.forgetting.merging.sources import LORA_A, LORA_B, PEFT_CONFIG, PEFT_WEIGHTS, Unit
from salmonn_jax.paths import Path

REPORT_FILE = "merge.json"
LOST_SHARE = 0.5  # share of changed entries that may vanish in the stored dtype without a warning


@dataclasses.dataclass
class _Rounding:
    """Counts of the merged changes that the stored dtype keeps."""

    entries: int = 0
    lost: int = 0
    products: float = 0.0
    intended: float = 0.0
    stored: float = 0.0

    def add(self, base: np.ndarray, merged: np.ndarray, stored: np.ndarray) -> None:
        before = base.astype(stored.dtype)  # as the base would be stored
        pairs = ((merged, base), (stored, before))
        intended, kept = ((x.astype(np.float64) - y.astype(np.float64)).reshape(-1) for x, y in pairs)
        self.entries += np.count_nonzero(intended)
        self.lost += np.count_nonzero((intended != 0) & (kept == 0))
        self.products += float(intended @ kept)
        self.intended += float(intended @ intended)
        self.stored += float(kept @ kept)

    def describe(self) -> dict[str, float]:
        """Returns the share of changed entries that vanished, and cosine and ratio of stored and intended change."""
        if not self.intended:
            return {"lost": 0.0, "cosine": 1.0, "ratio": 1.0}
        cosine = self.products / math.sqrt(self.intended * self.stored) if self.stored else 0.0
        return {
            "lost": self.lost / self.entries,
            "cosine": cosine,
            "ratio": math.sqrt(self.stored / self.intended),
        }


@dataclasses.dataclass(frozen=True)
class _Merged:
    """Parameter that is computed piece by piece while it is written. It implements `StreamedParam`."""

    shape: tuple[int, ...]
    dtype: np.dtype
    compute: Callable[[int | None], np.ndarray]  # from the layer, or None for a parameter outside layers
    layered: bool

    @property
    def stacked(self) -> bool:
        """Returns whether pieces are layers."""
        return self.layered and len(self.shape) > 2

    def pieces(self) -> Iterator[tuple[int | None, np.ndarray]]:
        """Yields the pieces, see `StreamedParam`."""
        if self.stacked:
            yield from ((layer, self.compute(layer)) for layer in range(self.shape[0]))
        elif self.layered:
            yield None, np.stack([self.compute(layer) for layer in range(self.shape[0])])
        else:
            yield None, self.compute(None)


class _Merge:
    """Values of a merge, and what is counted while they are computed."""

    def __init__(self, plan: MergePlan):
        self.plan = plan
        self.rounding = _Rounding()
        self.errors: list[float] = []  # relative errors of recompressed adapters
        self.thresholds = _global_thresholds(plan, self._differences)
        self.dtype = np.dtype(getattr(ml_dtypes, plan.recipe.dtype, plan.recipe.dtype))

    def tensor(self, unit: Unit) -> np.ndarray:
        """Returns a merged tensor in the stored dtype."""
        base = self.plan.base.tensor(unit)
        merged = self._merge_tensor(unit, base, [model.tensor(unit) for model in self.plan.models])
        return self._store(base, merged)

    def kernel(self, unit: Unit, base_kernel: np.ndarray) -> np.ndarray:
        """Returns a kernel with its merged adapter added, in the stored dtype."""
        base = base_kernel.astype(np.float32)
        return self._store(base, base + self._product(unit))

    def adapter(self, unit: Unit) -> Adapter:
        """Returns a merged adapter of the form of the plan, which is not "dense"."""
        options = self.plan.options
        if options.lora == "concat":
            return self._concatenate(self.plan.adapters(unit), self.plan.weights[unit.name])
        loaded = self.plan.adapters(unit)
        rank = options.svd_rank or max(adapter.rank for adapter in loaded)
        if self.plan.recipe.method.name in COMBINATIONS:
            whole = adapters.concatenate(self.plan.weights[unit.name], loaded, 1.0)
            adapter, error = adapters.recompress(whole, rank)
        else:
            adapter, error = adapters.compress(self._product(unit), rank)
        self.errors.append(error)
        return adapter

    def _concatenate(self, loaded: list[Adapter], coefficients: np.ndarray) -> Adapter:
        """Returns the sum of the adapters that take part. One alone keeps its scale, and at weight 1 its values."""
        parts = [(w, x) for w, x in zip(coefficients, loaded, strict=True) if w != 0 and x.rank]
        if not parts:
            parts = [(0.0, loaded[-1])]
        scales = {adapter.scale for _, adapter in parts}
        scale = scales.pop() if len(scales) == 1 else 1.0
        return adapters.concatenate([w for w, _ in parts], [x for _, x in parts], scale)

    def _product(self, unit: Unit) -> np.ndarray:
        """Returns what the merged adapter adds to its kernel, float32[in, out]."""
        loaded = self.plan.adapters(unit)
        if unit.name in self.plan.weights:
            return adapters.concatenate(self.plan.weights[unit.name], loaded, 1.0).product
        base, *models = (adapter.product for adapter in loaded)
        return self._merge_tensor(unit, base, models)

    def _merge_tensor(self, unit: Unit, base: np.ndarray, models: list[np.ndarray]) -> np.ndarray:
        plan = self.plan
        return merge_tensor(
            plan.recipe.method,
            base,
            models,
            plan.parameters[unit.name],
            tensor=unit.name,
            compat=plan.options.compat,
            seed=plan.options.seed,
            thresholds=self.thresholds,
        )

    def _differences(self, unit: Unit, model: int) -> np.ndarray:
        """Returns the difference of a model from the base, float32."""
        if unit.is_adapter:
            loaded = self.plan.adapters(unit)
            return loaded[1 + model].product - loaded[0].product
        return self.plan.models[model].tensor(unit) - self.plan.base.tensor(unit)

    def _store(self, base: np.ndarray, merged: np.ndarray) -> np.ndarray:
        stored = merged.astype(self.dtype)
        if stored.dtype != merged.dtype:
            self.rounding.add(base, merged, stored)
        return stored


def _global_thresholds(plan: MergePlan, difference: Callable[[Unit, int], np.ndarray]) -> list[float] | None:
    """Returns the least magnitude that TIES keeps of each model, over all its entries, as the paper trims; else None.

    The bits of a float32 that is not negative are ordered as its value, so that two counts of 16 bits each find the
    threshold without holding all entries.
    """
    if plan.recipe.merge_method != "ties" or plan.options.compat != "paper":
        return None
    thresholds = []
    for i in range(len(plan.models)):
        high, low = np.zeros(1 << 16, np.int64), np.zeros(1 << 16, np.int64)
        wanted = 0
        for unit in plan.units.values():
            bits = np.abs(difference(unit, i)).reshape(-1).view(np.uint32)
            wanted += plan.parameters[unit.name].models[i]["density"] * bits.size
            high += np.bincount(bits >> 16, minlength=1 << 16)
        above = np.cumsum(high[::-1])[::-1]
        top = int(np.flatnonzero(above >= max(1, int(wanted)))[-1])
        left = max(1, int(wanted)) - (above[top] - high[top])
        for unit in plan.units.values():
            bits = np.abs(difference(unit, i)).reshape(-1).view(np.uint32)
            low += np.bincount(bits[bits >> 16 == top] & 0xFFFF, minlength=1 << 16)
        bottom = int(np.flatnonzero(np.cumsum(low[::-1])[::-1] >= left)[-1])
        thresholds.append(float(np.array((top << 16) | bottom, np.uint32).view(np.float32)))
    return thresholds


def write_merge(plan: MergePlan, output: Path) -> dict[str, Any]:
    """Writes the merged model, or the merged PEFT adapter if all models are PEFT adapters.

    A model is a model directory whose delta holds what was merged. It refers to the base weights of the base, so it is
    as small as a delta. `merge.json` in it is the returned report.

    Args:
      plan: the merge.
      output: directory that does not exist yet.

    Returns:
      JSON values: norms of the differences by model and group, form and rank of the adapters, errors of recompression
      and of rounding.

    Raises:
      UserError: `output` exists.
      OSError: the disk is full or fails. Nothing is left behind.
    """
    merge = _Merge(plan)
    with atomic_output(output) as unfinished:
        unfinished.mkdir()
        rank = _write_peft(merge, unfinished) if plan.base is None else _write_model(merge, unfinished)
        report = _report(merge, rank)
        (unfinished / REPORT_FILE).write_text(json.dumps(report, indent=1) + "\n")
    return report


def _write_model(merge: _Merge, directory: Path) -> int:
    """Writes a model directory and returns the rank of its adapters."""
    plan, base = merge.plan, merge.plan.base
    by_path: dict[str, list[Unit]] = {}
    for unit in plan.units.values():
        by_path.setdefault(unit.path, []).append(unit)
    params: dict[str, Any] = dict(base.delta)
    config, made = base.config, {}
    if plan.options.lora == "dense":
        for path, units in by_path.items():
            if units[0].is_adapter:
                params |= _dense(merge, path, units)
    elif any(unit.is_adapter for unit in plan.units.values()):
        made = {unit.name: merge.adapter(unit) for unit in plan.units.values() if unit.is_adapter}
        kept = [path.removesuffix(LORA_A) for path in base.params if path.endswith(LORA_A)]
        others = base.units_of(path + LORA_A for path in kept)
        made |= {name: base.adapter(unit) for name, unit in others.items() if name not in made}
        rank = max(adapter.rank for adapter in made.values())
        scales = {adapter.scale for adapter in made.values()}
        scale = scales.pop() if len(scales) == 1 else 1.0
        for path in kept:
            names = [unit.name for unit in others.values() if unit.path == path]
            padded = [_rescale(adapters.pad(made[name], rank), scale) for name in names]
            params[path + LORA_A] = _in_memory(np.stack([x.a for x in padded]))
            params[path + LORA_B] = _in_memory(np.stack([x.b for x in padded]))
        lora = dataclasses.replace(config.lora, rank=rank, alpha=scale * rank)
        config = dataclasses.replace(config, lora=lora)
    for path, units in by_path.items():
        if not units[0].is_adapter:
            params[path] = _tensor(merge, path, units)
    weights.save_streamed(directory / "delta", params)
    model_directory.write_config_and_tokenizer(
        directory, config, base.files.base, model_directory.config_dir(base.directory)
    )
    return config.lora.rank


def _rescale(adapter: Adapter, scale: float) -> Adapter:
    """Returns the same product with another scale."""
    factor = np.float32(adapter.scale / scale)
    return adapter if factor == 1 else Adapter(adapter.a, factor * adapter.b, scale)


def _in_memory(value: np.ndarray) -> _Merged:
    return _Merged(value.shape, value.dtype, lambda layer: value[layer], layered=True)


def _tensor(merge: _Merge, path: str, units: list[Unit]) -> _Merged:
    """Returns a merged parameter. Layers that are not merged keep the value of the base."""
    base, of_layer = merge.plan.base, {unit.layer: unit for unit in units}

    def compute(layer: int | None) -> np.ndarray:
        unit = of_layer.get(layer)
        return base.read(path, layer).astype(merge.dtype) if unit is None else merge.tensor(unit)

    return _Merged(base.params[path].shape, merge.dtype, compute, units[0].layer is not None)


def _dense(merge: _Merge, path: str, units: list[Unit]) -> dict[str, Any]:
    """Returns a kernel with its merged adapters, and adapters of zero where they were merged."""
    base, of_layer = merge.plan.base, {unit.layer: unit for unit in units}
    kernel = base.params[path + "/kernel"]

    def compute(layer: int | None) -> np.ndarray:
        value = base.read(path + "/kernel", layer)
        return value.astype(merge.dtype) if layer not in of_layer else merge.kernel(of_layer[layer], value)

    def half(suffix: str) -> _Merged:
        param = base.params[path + suffix]

        def read(layer: int | None) -> np.ndarray:
            value = base.read(path + suffix, layer)
            return np.zeros_like(value) if layer in of_layer and suffix == LORA_B else value

        return _Merged(param.shape, param.dtype, read, units[0].layer is not None)

    whole = _Merged(kernel.shape, merge.dtype, compute, units[0].layer is not None)
    return {path + "/kernel": whole, path + LORA_A: half(LORA_A), path + LORA_B: half(LORA_B)}


def _write_peft(merge: _Merge, directory: Path) -> int:
    """Writes a PEFT adapter directory and returns the greatest rank."""
    from salmonn_jax.conversion.formats.safetensors_writer import PendingTensor, write

    plan = merge.plan
    made = {name: merge.adapter(unit) for name, unit in plan.units.items()}
    tensors = {}
    for module, adapter in made.items():
        for letter, value in (("A", adapter.a), ("B", adapter.b)):
            value = np.ascontiguousarray(value.T).astype(merge.dtype)
            tensors[f"base_model.model.{module}.lora_{letter}.weight"] = PendingTensor(
                value.shape, value.dtype, lambda value=value: value
            )
    write(directory / PEFT_WEIGHTS, tensors)
    ranks = [adapter.rank for adapter in made.values()]
    rank, first = max(set(ranks), key=ranks.count), plan.models[0].config
    alphas = {module: adapter.scale * adapter.rank for module, adapter in made.items()}
    alpha = next(alphas[module] for module, adapter in made.items() if adapter.rank == rank)
    config = {
        "peft_type": "LORA",
        "task_type": first.get("task_type"),
        "base_model_name_or_path": first.get("base_model_name_or_path"),
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {module: x.rank for module, x in made.items() if x.rank != rank},
        "alpha_pattern": {module: x for module, x in alphas.items() if x != alpha},
        "lora_dropout": first.get("lora_dropout", 0.0),
        "target_modules": sorted({module.rsplit(".", 1)[-1] for module in made}),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    (directory / PEFT_CONFIG).write_text(json.dumps(config, indent=1) + "\n")
    return rank


def _report(merge: _Merge, rank: int) -> dict[str, Any]:
    """Returns the report of a written merge."""
    plan = merge.plan
    report: dict[str, Any] = {
        "merge": configuration.to_dict(plan.recipe),
        "options": dataclasses.asdict(plan.options),
        "differences": {model.name: norm for model, norm in zip(plan.models, plan.norms, strict=True)},
        "units": {name: sum(group(u) == name for u in plan.units.values()) for name in map(group, plan.units.values())},
        "rank": rank,
    }
    if merge.errors:
        report["recompression"] = {"largest": max(merge.errors), "mean": float(np.mean(merge.errors))}
    if merge.rounding.entries:
        report["rounding"] = merge.rounding.describe()
    report["warnings"] = _warnings(plan, report)
    return report


def _warnings(plan: MergePlan, report: dict[str, Any]) -> list[str]:
    """Returns what a user should know about the result, one line each."""
    warnings = []
    rounding = report.get("rounding")
    if rounding and rounding["lost"] > LOST_SHARE:
        warnings.append(
            f"warning: {plan.recipe.dtype} keeps {1 - rounding['lost']:.0%} of the changed entries (cosine to the "
            f"intended change {rounding['cosine']:.2f}); store the result with dtype: float32"
        )
    is_stock = plan.recipe.merge_method == "model_stock"
    beyond = [name for name, coefficients in plan.weights.items() if is_stock and coefficients[0] > 1]
    if beyond:
        warnings.append(
            f"warning: model_stock moves {len(beyond)} adapters away from the models, such as {beyond[0]}, because "
            "their differences from the base point in opposite directions"
        )
    return warnings

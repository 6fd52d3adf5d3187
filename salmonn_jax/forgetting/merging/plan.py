"""Preparation of a merge: opens the models, audits them, and computes how each tensor is merged. Nothing is written."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Literal

import numpy as np

from salmonn_jax import config as configuration
from salmonn_jax import model_directory
from salmonn_jax.errors import UserError
from salmonn_jax.forgetting.merging import adapters
from salmonn_jax.forgetting.merging.adapters import Adapter
from salmonn_jax.forgetting.merging.methods import COMBINATIONS, Compat, TensorParameters, coefficients
from salmonn_jax.forgetting.merging.recipe import MergeRecipe
from salmonn_jax.forgetting.merging.sources import ModelSource, PeftSource, Source, Unit, open_source, peft_names
from salmonn_jax.paths import Path

LoraForm = Literal["concat", "svd", "dense"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MergeOptions:
    """Options of a merge that its recipe does not have.

    Attributes:
      lora: how merged adapters are stored: "concat", an adapter whose rank is the sum of ranks; "svd", the nearest
        adapter of rank `svd_rank`; "dense", added to the kernels. None chooses an exact one: "concat" for weighted
        sums, "dense" for the others; "svd" for PEFT adapters of the others.
      svd_rank: rank of "svd"; None for the greatest rank of the models.
      only: regular expression; what it does not match stays as it is in the base.
      compat: whose rules are followed where mergekit differs from the papers.
      seed: seed of the methods that drop entries at random.
    """

    lora: LoraForm | None = None
    svd_rank: int | None = None
    only: str | None = None
    compat: Compat = "mergekit"
    seed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class MergePlan:
    """A merge that can be written.

    Attributes:
      recipe: the recipe.
      options: the options, with the form of the adapters.
      base: the base; None for PEFT adapters, whose base has no adapter.
      models: the merged models.
      units: what is merged, by name.
      parameters: parameters of the method for each unit.
      weights: weight of the base and of each model for each adapter that is merged as a weighted sum.
      norms: norm of the difference of each model from the base, by group of parameters.
    """

    recipe: MergeRecipe
    options: MergeOptions
    base: ModelSource | None
    models: tuple[Source, ...]
    units: dict[str, Unit]
    parameters: dict[str, TensorParameters]
    weights: dict[str, np.ndarray]
    norms: tuple[dict[str, float], ...]

    def adapters(self, unit: Unit) -> list[Adapter]:
        """Reads the adapters of a unit: that of the base, then those of the models."""
        merged = [model.adapter(unit) for model in self.models]
        return [_base_adapter(self.base, unit, merged[0]), *merged]


def plan_merge(recipe: MergeRecipe, directory: Path, options: MergeOptions) -> MergePlan:
    """Opens and audits the models of a recipe.

    Args:
      recipe: the recipe.
      directory: directory to which its paths are relative.
      options: see `MergeOptions`.

    Raises:
      UserError: a model cannot be opened, or the models do not fit each other: other frozen weights, another tokenizer
        or architecture, other trained modules, values that are not finite, or a model that equals the base.
    """
    base, models = _open(recipe, directory)
    _check_architecture(base, models)
    units = _select_units(base, models, options.only)
    options = _choose_form(recipe, options, base)
    _check_same_base(base, models)
    parameters, weights, norms = {}, {}, [{} for _ in models]
    for unit in units.values():
        parameters[unit.name] = recipe.for_tensor(unit.name, unit.depth)
        products = _inner_products(base, models, unit)
        for norm, row in zip(norms, range(1, len(products)), strict=True):
            square = products[row, row] - 2 * products[row, 0] + products[0, 0]
            norm[group(unit)] = norm.get(group(unit), 0.0) + max(square, 0.0)
        if unit.is_adapter and recipe.method.name in COMBINATIONS:
            weights[unit.name] = coefficients(recipe.method, products, parameters[unit.name])
    for model, norm in zip(models, norms, strict=True):
        if not any(norm.values()) and model.name != (base and base.name):
            raise UserError(f"{model.name} equals the base: there is nothing to merge; leave it out")
    return MergePlan(
        recipe=recipe,
        options=options,
        base=base,
        models=models,
        units=units,
        parameters=parameters,
        weights=weights,
        norms=tuple({key: float(np.sqrt(square)) for key, square in norm.items()} for norm in norms),
    )


def group(unit: Unit) -> str:
    """Returns the part of the model to which a unit belongs."""
    return "adapters" if unit.is_adapter else unit.path.split("/")[0]


def _open(recipe: MergeRecipe, directory: Path) -> tuple[ModelSource | None, tuple[Source, ...]]:
    places = [open_source(entry.model, directory) for entry in recipe.merged]
    all_peft = all(is_peft for _, is_peft in places)
    base = None
    if recipe.base_model is not None:
        path, is_peft = open_source(recipe.base_model, directory)
        if is_peft:
            raise UserError(f"base_model: {path} is a PEFT adapter; give the model, or leave it out to merge adapters")
        base = ModelSource(path)
    elif not all_peft:
        base = ModelSource(next(path for path, is_peft in places if not is_peft), trained=False)
    names = None if base is None else peft_names(base)
    return base, tuple(PeftSource(path, names) if is_peft else ModelSource(path) for path, is_peft in places)


def _check_architecture(base: ModelSource | None, models: Sequence[Source]) -> None:
    """Raises UserError if two models differ in architecture or tokenizer. The rank of adapters may differ."""

    def comparable(source: ModelSource) -> dict:
        values = configuration.to_dict(source.config)
        for field in ("rank", "alpha", "dropout"):  # ranks may differ
            del values["lora"][field]
        if values.get("qformer"):
            del values["qformer"]["dropout"]
        return values

    for model in models:
        if isinstance(model, ModelSource):
            difference = configuration.first_difference(comparable(base), comparable(model))
            if difference:
                raise UserError(f"{model.name} is another model than {base.name}: {difference}")
            hashes = {model_directory.tokenizer_fingerprint(source.directory) for source in (base, model)}
            if len(hashes) > 1:
                raise UserError(f"{model.name} has another tokenizer than {base.name}; merge models of one vocabulary")


def _select_units(base: ModelSource | None, models: Sequence[Source], only: str | None) -> dict[str, Unit]:
    """Returns what is merged. Raises UserError if the models were not trained in the same modules."""
    try:
        pattern = re.compile(only or "")
    except re.error as error:
        raise UserError(f"--only {only!r} is no regular expression: {error}") from None
    selected = [{name: unit for name, unit in model.units.items() if pattern.search(name)} for model in models]
    for model, units in zip(models, selected, strict=True):
        if not units:
            what = f"nothing that --only {only!r} matches" if only else "nothing that was trained"
            raise UserError(f"{model.name} has {what}")
        missing = sorted(set(selected[0]) ^ set(units))
        if missing:
            without, other = (model, models[0]) if missing[0] in selected[0] else (models[0], model)
            raise UserError(
                f"{other.name} trains {missing[0]} and {len(missing) - 1} more, which {without.name} does not; "
                "choose what both train with --only"
            )
    return selected[0]


def _choose_form(recipe: MergeRecipe, options: MergeOptions, base: ModelSource | None) -> MergeOptions:
    """Returns the options with a form of the adapters that the method and the output allow."""
    is_sum = recipe.method.name in COMBINATIONS
    form = options.lora or ("concat" if is_sum else "dense" if base is not None else "svd")
    if form == "concat" and not is_sum:
        raise UserError(f"--lora concat: {recipe.merge_method} is no weighted sum of adapters; choose svd or dense")
    if form == "dense" and base is None:
        raise UserError("--lora dense: PEFT adapters have no kernels; name the model with base_model, or choose svd")
    if options.svd_rank is not None and form != "svd":
        raise UserError(f"--svd-rank: {form} adapters are not recompressed; add --lora svd")
    return dataclasses.replace(options, lora=form)


def _check_same_base(base: ModelSource | None, models: Sequence[Source]) -> None:
    """Raises UserError if a frozen weight of a model differs from that of the base.

    Equal fingerprints of the base weights are enough. Models that were made twice from the same parts, and so start
    from other new weights, are compared weight by weight.
    """
    for model in models:
        if not isinstance(model, ModelSource) or model.files.base.fingerprint == base.files.base.fingerprint:
            continue
        trained = set(base.delta) | set(model.delta)
        for path, ours in base.base_params.items():
            theirs = model.base_params.get(path)
            if path in trained:
                continue
            if (
                theirs is None
                or theirs.shape != ours.shape
                or not all(np.array_equal(x, y) for (_, x), (_, y) in zip(ours.pieces(), theirs.pieces(), strict=True))
            ):
                raise UserError(
                    f"{model.name} has another base than {base.name}: {path} differs; merge runs of one base"
                )


def _inner_products(base: ModelSource | None, models: Sequence[Source], unit: Unit) -> np.ndarray:
    """Returns the inner products of the base's and the models' values of a unit, float64[1 + models, 1 + models].

    Raises:
      UserError: a value is not finite, or the shapes differ.
    """
    if unit.is_adapter:
        of_models = [model.adapter(unit) for model in models]
        values = [_base_adapter(base, unit, of_models[0]), *of_models]
        shapes = [(x.a.shape[0], x.b.shape[1]) for x in values]
        finite = [np.isfinite(x.a).all() and np.isfinite(x.b).all() for x in values]
    else:
        values = [source.tensor(unit) for source in (base, *models)]
        shapes, finite = [x.shape for x in values], [np.isfinite(x).all() for x in values]
    names = [base.name if base is not None else "base", *(model.name for model in models)]
    for name, shape, is_finite in zip(names, shapes, finite, strict=True):
        if shape != shapes[0]:
            raise UserError(f"{name} has shape {shape} at {unit.name}, and {names[0]} has {shapes[0]}")
        if not is_finite:
            raise UserError(f"{name} has values at {unit.name} that are not finite; choose an earlier checkpoint")
    if unit.is_adapter:
        return adapters.inner_products(values)
    # Only norms of differences are taken from these products, and those need no products of whole weights.
    flat = np.stack([x.reshape(-1) for x in values]).astype(np.float64)
    flat -= flat[0].copy()
    return flat @ flat.T


def _base_adapter(base: ModelSource | None, unit: Unit, like: Adapter) -> Adapter:
    """Returns the adapter of the base; without a base, or where its product is zero, one of rank 0."""
    if base is not None:
        adapter = base.adapter(unit)
        if np.any(adapter.b):
            return adapter
    return Adapter(np.zeros((like.a.shape[0], 0), np.float32), np.zeros((0, like.b.shape[1]), np.float32), like.scale)

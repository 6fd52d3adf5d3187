"""Start and resumption of a training run: creates or checks its directory, and loads its weights.

`launch.train` uses it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh

from salmonn_jax import config as configuration
from salmonn_jax import model_directory, weights
from salmonn_jax.config import ModelConfig, Recipe
from salmonn_jax.errors import UserError
from salmonn_jax.models import parameters
from salmonn_jax.models.parameters import ModelStructure, Params
from salmonn_jax.paths import Path
from salmonn_jax.sharding import Placement


@dataclasses.dataclass(frozen=True)
class RunWeights:
    """Initial weights of a run, on the mesh, split into trainable and frozen parameters."""

    structure: ModelStructure
    trainable: Params  # float32
    frozen: Params  # `frozen_dtype` of the recipe

    def without_encoders(self) -> RunWeights:
        """Returns the weights of a run that reads frames in place of running its encoders."""
        encoder_paths = self.structure.encoder_paths
        frozen = {path: x for path, x in self.frozen.items() if path not in encoder_paths}
        return RunWeights(self.structure.without(encoder_paths), self.trainable, frozen)


def open_run(
    recipe: Recipe,
    model: ModelConfig,
    output: Path,
    model_dir: Path | None,
    *,
    tokenizer_dir: Path,
    mesh: Mesh,
) -> RunWeights:
    """Creates the run directory, or checks that it contains this run, and loads the initial weights.

    Every process calls it.

    Args:
      recipe: recipe of the run.
      model: configuration of the model.
      output: run directory. It must be absent, empty, or contain a run with the same initial model and recipe, except
        for the fields `MUTABLE_RECIPE_FIELDS` and `MUTABLE_DATA_FIELDS` of `salmonn_jax.config`.
      model_dir: model or run directory to start from, whose architecture is that of `model`; None starts from random
        weights with `recipe.seed`.
      tokenizer_dir: directory of the tokenizer, for a run that starts from random weights.
      mesh: device mesh. Each device creates or reads its own shards, and no host holds all weights.

    Raises:
      UserError: the directory contains something else, or the recipe does not fit the model. In these cases nothing is
        written.
    """
    if recipe.ctc_weight and model.llama and recipe.ctc_blank >= model.llama.vocab_size:
        raise UserError(f"ctc_blank={recipe.ctc_blank}: must be below model.llama.vocab_size={model.llama.vocab_size}")
    multiplier = recipe.eval_lora_multiplier
    if isinstance(multiplier, tuple) and model.llama and len(multiplier) != model.llama.num_hidden_layers:
        raise UserError(
            f"eval_lora_multiplier has {len(multiplier)} values, and the language model has "
            f"{model.llama.num_hidden_layers} layers; give one value, or one of each layer"
        )
    structure = parameters.model_structure(model, recipe.activation_dtype)
    trainable = frozenset(parameters.trainable_paths(structure.shapes, recipe.trainable))
    if recipe.data.encoder_cache:
        parameters.check_frozen_encoders(structure, recipe.trainable)
    placement = Placement(mesh, recipe.frozen_dtype, trainable)
    if (output / "config.json").exists():
        return _resume_run(recipe, output, model_dir, structure, placement)
    if not model_directory.can_start_run(output):
        raise UserError(f"{output} holds something that is not a run; choose another directory with --output")
    return _start_run(recipe, output, model_dir, tokenizer_dir, structure, placement)


def _start_run(
    recipe: Recipe,
    output: Path,
    model_dir: Path | None,
    tokenizer_dir: Path,
    structure: ModelStructure,
    placement: Placement,
) -> RunWeights:
    if model_dir is None:
        params, initial_fingerprint = _init_params(recipe.seed, structure, placement), None
        base = model_directory.save_base(output, params)
    else:
        loaded = model_directory.load_model(model_dir, placement)
        params, tokenizer_dir, initial_fingerprint, base = loaded.params, model_dir, loaded.fingerprint, loaded.base
        # Checkpoints contain only what this run trains. If the delta of the initial model has other parameters too, the
        # run needs a new base that includes them.
        if not loaded.delta_param_paths <= placement.trainable_paths:
            base = model_directory.save_merged_base(output, base, loaded.delta_path)
    description = {"recipe": configuration.to_dict(recipe), "start": {"model": initial_fingerprint}}
    model_directory.write_config_and_tokenizer(output, structure.config, base, tokenizer_dir, **description)
    return _split_params(structure, params, placement)


def _resume_run(
    recipe: Recipe,
    output: Path,
    model_dir: Path | None,
    structure: ModelStructure,
    placement: Placement,
) -> RunWeights:
    description = model_directory.read_config_json(output)
    if "recipe" not in description:
        raise UserError(f"{output} is a model directory, not a run; choose another directory with --output")
    # The stored configurations may lack newer fields. Their defaults keep the earlier behaviour.
    stored_recipe = configuration.from_dict(Recipe, description["recipe"])
    stored_model = configuration.from_dict(ModelConfig, description["model"])
    difference = configuration.first_difference(
        _immutable_fields(stored_recipe, stored_model), _immutable_fields(recipe, structure.config)
    )
    if difference:
        raise UserError(f"{output} holds another run: {difference}; choose another directory with --output")
    initial_model = None if model_dir is None else model_directory.load_model(model_dir, placement)
    stored_fingerprint = description["start"]["model"]
    if stored_fingerprint != (None if initial_model is None else initial_model.fingerprint):
        reason = "random weights; omit --model" if stored_fingerprint is None else "another model; pass it as --model"
        raise UserError(f"{output} holds a run that started from {reason}, or choose another directory with --output")
    base = model_directory.find_base(output, description)
    return _split_params(
        structure, initial_model.params if initial_model else weights.load(base.path, placement), placement
    )


def _init_params(seed: int, structure: ModelStructure, placement: Placement) -> Params:
    """Returns random float32 weights, of which each device creates its own shards."""
    shardings = {path: placement(path, leaf).sharding for path, leaf in structure.shapes.items()}
    return jax.jit(lambda: parameters.init_params(structure.config, seed), out_shardings=shardings)()


def _split_params(structure: ModelStructure, params: Params, placement: Placement) -> RunWeights:
    """Splits parameters into trainable and frozen ones, with the dtypes and shardings of `placement`.

    `params` is donated: a parameter that already has the target dtype and sharding is not copied.
    """
    targets = {path: placement(path, leaf) for path, leaf in params.items()}
    shardings = {path: leaf.sharding for path, leaf in targets.items()}
    cast = jax.jit(
        lambda params: {path: x.astype(targets[path].dtype) for path, x in params.items()},
        out_shardings=shardings,
        donate_argnums=0,
    )
    params = cast(params)
    trainable = {path: x for path, x in params.items() if path in placement.trainable_paths}
    return RunWeights(
        structure, trainable, {path: x for path, x in params.items() if path not in placement.trainable_paths}
    )


def _immutable_fields(recipe: Recipe, model: ModelConfig) -> dict[str, Any]:
    """Returns the JSON values of the fields of a run that may not change when it is resumed."""
    values = configuration.to_dict(recipe) | {"model": configuration.to_dict(model)}
    for name in configuration.MUTABLE_RECIPE_FIELDS:
        del values[name]
    for name in configuration.MUTABLE_DATA_FIELDS:
        del values["data"][name]
    return values

"""Starting a run, or taking one up: its directory, its weights, and what must not have changed in between."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import jax
from jax.sharding import Mesh

from salmonn_jax import config as configuration
from salmonn_jax import model_directory, weights
from salmonn_jax.config import RunConfig
from salmonn_jax.errors import UserError
from salmonn_jax.models import parameters
from salmonn_jax.models.parameters import ModelStructure, Params
from salmonn_jax.sharding import Placement


@dataclasses.dataclass(frozen=True)
class RunWeights:
    """The weights a run starts from, split by its trainable filter, where the mesh wants them."""

    structure: ModelStructure
    trainable: Params  # float32
    frozen: Params  # in the configuration's frozen dtype


def open_run(
    config: RunConfig, output: pathlib.Path, model_dir: pathlib.Path | None, *, tokenizer_dir: pathlib.Path, mesh: Mesh
) -> RunWeights:
    """Makes `output` the directory of this run, or checks that it already is. Every process calls it.

    Args:
      config: of the run.
      output: the directory; absent, empty, or of a run with this start and configuration (but for `OPERATIONAL`).
      model: model or run directory to start from; None starts from random weights drawn with `config.seed`.
      tokenizer: directory of the tokenizer for a run that starts from random weights.
      mesh: on which the weights are created, or to which they are read; no host holds them all.

    Raises:
      UserError: the directory holds something else, or the model does not fit the configuration. Nothing is changed.
    """
    structure = parameters.model_structure(config.model)
    chosen = frozenset(parameters.trainable_paths(structure.shapes, config.trainable))
    placement = Placement(mesh, config.model.frozen_dtype, chosen)
    if (output / "config.json").exists():
        return _resume_run(config, output, model_dir, structure, placement)
    if not model_directory.can_start_run(output):
        raise UserError(f"{output} holds something that is not a run; name a new directory with --output")
    return _start_run(config, output, model_dir, tokenizer_dir, structure, placement)


def _start_run(
    config: RunConfig,
    output: pathlib.Path,
    model_dir: pathlib.Path | None,
    tokenizer_dir: pathlib.Path,
    structure: ModelStructure,
    placement: Placement,
) -> RunWeights:
    if model_dir is None:
        params, start = _init_params(config, structure, placement), None
        base = model_directory.save_base(output, params)
    else:
        loaded = model_directory.load_model(model_dir, placement)
        _check_same_config(loaded.config, config.model, f"the model in {model_dir}")
        params, tokenizer_dir, start, base = loaded.params, model_dir, loaded.fingerprint, loaded.base
        # A checkpoint holds what this run trains. If the model's own delta holds more, a base with it is needed.
        if not loaded.delta_param_paths <= placement.trainable_paths:
            base = model_directory.save_merged_base(output, base, model_directory.latest_delta(model_dir))
    description = {"run": configuration.to_dict(config), "start": {"model": start}}
    model_directory.write_config_and_tokenizer(output, config.model, base, tokenizer_dir, **description)
    return _split_params(structure, params, placement)


def _resume_run(
    config: RunConfig,
    output: pathlib.Path,
    model_dir: pathlib.Path | None,
    structure: ModelStructure,
    placement: Placement,
) -> RunWeights:
    description = model_directory.read_config_json(output)
    if "run" not in description:
        raise UserError(f"{output} is a model directory, not a run; name a new directory with --output")
    # Fields that came after it was written have their defaults, which mean what was done before.
    theirs = configuration.from_dict(RunConfig, description["run"])
    difference = configuration.first_difference(
        _without_mutable_fields(configuration.to_dict(theirs)), _without_mutable_fields(configuration.to_dict(config))
    )
    if difference:
        raise UserError(f"{output} holds another run: {difference}; name a new directory with --output")
    start = None if model_dir is None else model_directory.load_model(model_dir, placement)
    if description["start"]["model"] != (None if start is None else start.fingerprint):
        raise UserError(
            f"{output} holds a run that started from other weights than --model {model_dir}; name a new directory"
        )
    base = model_directory.find_base(output, description)
    return _split_params(structure, start.params if start else weights.load(base.path, placement), placement)


def _init_params(config: RunConfig, structure: ModelStructure, placement: Placement) -> Params:
    """Random float32 weights, each device drawing its part."""
    places = {path: placement(path, leaf).sharding for path, leaf in structure.shapes.items()}
    return jax.jit(lambda: parameters.init_params(config.model, config.seed), out_shardings=places)()


def _split_params(structure: ModelStructure, params: Params, placement: Placement) -> RunWeights:
    """Splits by what is trained, everything in the dtype and place it belongs; what is there already is not copied."""
    wanted = {path: placement(path, leaf) for path, leaf in params.items()}
    places = {path: leaf.sharding for path, leaf in wanted.items()}
    cast = jax.jit(
        lambda params: {path: x.astype(wanted[path].dtype) for path, x in params.items()},
        out_shardings=places,
        donate_argnums=0,
    )
    params = cast(params)
    trainable = {path: x for path, x in params.items() if path in placement.trainable_paths}
    return RunWeights(
        structure, trainable, {path: x for path, x in params.items() if path not in placement.trainable_paths}
    )


def _without_mutable_fields(run: dict[str, Any]) -> dict[str, Any]:
    data = {key: value for key, value in run["data"].items() if key not in configuration.MUTABLE_DATA_FIELDS}
    return {key: value for key, value in run.items() if key not in configuration.MUTABLE_RUN_FIELDS} | {"data": data}


def _check_same_config(theirs: configuration.ModelConfig, ours: configuration.ModelConfig, what: str) -> None:
    difference = configuration.first_difference(configuration.to_dict(theirs), configuration.to_dict(ours))
    if difference:
        raise UserError(f"{what} is not the configuration's: {difference}")

"""Starting a run, or taking one up: its directory, its weights, and what must not have changed in between."""

from __future__ import annotations

import dataclasses
import pathlib

from salmonn_jax import config as configuration
from salmonn_jax import model_directory, weights
from salmonn_jax.config import RunConfig
from salmonn_jax.errors import UserError
from salmonn_jax.models import parameters
from salmonn_jax.models.parameters import Params, Structure


@dataclasses.dataclass(frozen=True)
class Run:
    """The weights a run starts from, split by its trainable filter."""

    structure: Structure
    trainable: Params  # float32
    frozen: Params  # in the configuration's frozen dtype


def open_run(config: RunConfig, output: pathlib.Path, model: pathlib.Path | None, *, tokenizer: pathlib.Path) -> Run:
    """Makes `output` the directory of this run, or checks that it already is.

    Args:
      config: of the run.
      output: the directory; absent, empty, or of a run with exactly this configuration and start.
      model: model or run directory to start from; None starts from random weights drawn with `config.seed`.
      tokenizer: directory of the tokenizer for a run that starts from random weights.

    Raises:
      UserError: the directory holds something else, or the model does not fit the configuration. Nothing is changed.
    """
    if (output / "config.json").exists():
        return _take_up(config, output, model)
    if not model_directory.may_be_written(output):
        raise UserError(f"{output} holds something that is not a run; name a new directory with --output")
    return _begin(config, output, model, tokenizer)


def _begin(config: RunConfig, output: pathlib.Path, model: pathlib.Path | None, tokenizer: pathlib.Path) -> Run:
    structure = parameters.structure(config.model)
    chosen = parameters.trainable_paths(structure.shapes, config.trainable)
    if model is None:
        params, base, start = parameters.initialize(config.model, config.seed), None, None
    else:
        loaded = model_directory.load_model(model)
        _check_same(loaded.config, config.model, f"the model in {model}")
        params, tokenizer, start = loaded.params, model, loaded.fingerprint
        # A checkpoint holds what this run trains. If the model's own delta holds more, a base with it is needed.
        base = loaded.base if loaded.delta_paths <= chosen else None
    if base is None:
        base = model_directory.save_base(output, params)
    description = {"run": configuration.to_dict(config), "start": {"model": start}}
    model_directory.write_description(output, config.model, base, tokenizer, **description)
    return Run(structure, *parameters.split(params, chosen, config.model.frozen_dtype))


def _take_up(config: RunConfig, output: pathlib.Path, model: pathlib.Path | None) -> Run:
    description = model_directory.read_description(output)
    if "run" not in description:
        raise UserError(f"{output} is a model directory, not a run; name a new directory with --output")
    here = configuration.to_dict(config)
    difference = configuration.first_difference(description["run"], here)
    if difference:
        raise UserError(f"{output} holds another run: {difference}; name a new directory with --output")
    start = None if model is None else model_directory.load_model(model)
    if description["start"]["model"] != (None if start is None else start.fingerprint):
        raise UserError(
            f"{output} holds a run that started from other weights than --model {model}; name a new directory"
        )
    base = model_directory.base_of(output, description)
    params = start.params if start else weights.load(base.path)
    chosen = parameters.trainable_paths(params, config.trainable)
    return Run(parameters.structure(config.model), *parameters.split(params, chosen, config.model.frozen_dtype))


def _check_same(theirs: configuration.ModelConfig, ours: configuration.ModelConfig, what: str) -> None:
    difference = configuration.first_difference(configuration.to_dict(theirs), configuration.to_dict(ours))
    if difference:
        raise UserError(f"{what} is not the configuration's: {difference}")

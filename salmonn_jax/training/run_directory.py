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
from salmonn_jax.models.parameters import Params, Structure
from salmonn_jax.sharding import Placement


@dataclasses.dataclass(frozen=True)
class Run:
    """The weights a run starts from, split by its trainable filter, where the mesh wants them."""

    structure: Structure
    trainable: Params  # float32
    frozen: Params  # in the configuration's frozen dtype


def open_run(
    config: RunConfig, output: pathlib.Path, model: pathlib.Path | None, *, tokenizer: pathlib.Path, mesh: Mesh
) -> Run:
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
    structure = parameters.structure(config.model)
    chosen = frozenset(parameters.trainable_paths(structure.shapes, config.trainable))
    placement = Placement(mesh, config.model.frozen_dtype, chosen)
    if (output / "config.json").exists():
        return _take_up(config, output, model, structure, placement)
    if not model_directory.may_be_begun(output):
        raise UserError(f"{output} holds something that is not a run; name a new directory with --output")
    return _begin(config, output, model, tokenizer, structure, placement)


def _begin(
    config: RunConfig,
    output: pathlib.Path,
    model: pathlib.Path | None,
    tokenizer: pathlib.Path,
    structure: Structure,
    placement: Placement,
) -> Run:
    if model is None:
        params, start = _created(config, structure, placement), None
        base = model_directory.save_base(output, params)
    else:
        loaded = model_directory.load_model(model, placement)
        _check_same(loaded.config, config.model, f"the model in {model}")
        params, tokenizer, start, base = loaded.params, model, loaded.fingerprint, loaded.base
        # A checkpoint holds what this run trains. If the model's own delta holds more, a base with it is needed.
        if not loaded.delta_paths <= placement.trained:
            base = model_directory.merge_base(output, base, model_directory.latest_delta(model))
    description = {"run": configuration.to_dict(config), "start": {"model": start}}
    model_directory.write_description(output, config.model, base, tokenizer, **description)
    return _split(structure, params, placement)


def _take_up(
    config: RunConfig, output: pathlib.Path, model: pathlib.Path | None, structure: Structure, placement: Placement
) -> Run:
    description = model_directory.read_description(output)
    if "run" not in description:
        raise UserError(f"{output} is a model directory, not a run; name a new directory with --output")
    # Fields that came after it was written have their defaults, which mean what was done before.
    theirs = configuration.from_dict(RunConfig, description["run"])
    difference = configuration.first_difference(
        _meaning(configuration.to_dict(theirs)), _meaning(configuration.to_dict(config))
    )
    if difference:
        raise UserError(f"{output} holds another run: {difference}; name a new directory with --output")
    start = None if model is None else model_directory.load_model(model, placement)
    if description["start"]["model"] != (None if start is None else start.fingerprint):
        raise UserError(
            f"{output} holds a run that started from other weights than --model {model}; name a new directory"
        )
    base = model_directory.base_of(output, description)
    return _split(structure, start.params if start else weights.load(base.path, placement), placement)


def _created(config: RunConfig, structure: Structure, placement: Placement) -> Params:
    """Random float32 weights, each device drawing its part."""
    places = {path: placement(path, leaf).sharding for path, leaf in structure.shapes.items()}
    return jax.jit(lambda: parameters.initialize(config.model, config.seed), out_shardings=places)()


def _split(structure: Structure, params: Params, placement: Placement) -> Run:
    """Splits by what is trained, everything in the dtype and place it belongs; what is there already is not copied."""
    wanted = {path: placement(path, leaf) for path, leaf in params.items()}
    places = {path: leaf.sharding for path, leaf in wanted.items()}
    cast = jax.jit(
        lambda params: {path: x.astype(wanted[path].dtype) for path, x in params.items()},
        out_shardings=places,
        donate_argnums=0,
    )
    params = cast(params)
    trainable = {path: x for path, x in params.items() if path in placement.trained}
    return Run(structure, trainable, {path: x for path, x in params.items() if path not in placement.trained})


def _meaning(run: dict[str, Any]) -> dict[str, Any]:
    data = {key: value for key, value in run["data"].items() if key not in configuration.OPERATIONAL_DATA}
    return {key: value for key, value in run.items() if key not in configuration.OPERATIONAL} | {"data": data}


def _check_same(theirs: configuration.ModelConfig, ours: configuration.ModelConfig, what: str) -> None:
    difference = configuration.first_difference(configuration.to_dict(theirs), configuration.to_dict(ours))
    if difference:
        raise UserError(f"{what} is not the configuration's: {difference}")

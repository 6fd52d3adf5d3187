"""From a model or run directory back to what PyTorch programs read."""

from __future__ import annotations

import json
import os
import pathlib
import shutil

import ml_dtypes
import numpy as np

from salmonn_jax import config as configuration
from salmonn_jax import model_directory, weights
from salmonn_jax.config import ModelConfig
from salmonn_jax.conversion import mapping, tables
from salmonn_jax.conversion.mapping import Table
from salmonn_jax.conversion.to_jax import TRAINED
from salmonn_jax.errors import UserError
from salmonn_jax.models import parameters
from salmonn_jax.models.parameters import Params


def write_checkpoint(directory: pathlib.Path, output: pathlib.Path) -> None:
    """Writes what was trained as the original's `.pth`: `model`, and a `config` that says what tensors cannot.

    Args:
      directory: model or run directory.
      output: the file, not there yet.

    Raises:
      UserError: `directory` is not a model, or `output` exists.
    """
    import torch

    config, trained = _trained(directory)
    _refuse_existing(output)
    model = {name: _to_torch(value) for name, value in _theirs(tables.SALMONN, trained).items()}
    told = {
        "num_speech_query_token": config.qformer.queries,
        "second_per_window": config.qformer.window_seconds,
        "second_stride": config.qformer.stride_seconds,
        "num_attention_heads": config.qformer.heads,
        "lora_rank": config.lora.rank,
        "lora_alpha": config.lora.alpha,
        "lora_dropout": config.lora.dropout,
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = output.with_name(output.name + ".unfinished")
    torch.save({"model": model, "config": {"model": told}}, unfinished)
    os.replace(unfinished, output)


def write_adapter(directory: pathlib.Path, output: pathlib.Path) -> None:
    """Writes the adapters as a PEFT directory, to be laid over the language model on its own.

    Args:
      directory: model or run directory.
      output: the directory, not there yet.

    Raises:
      UserError: `directory` is not a model, or `output` exists.
    """
    import safetensors.torch

    config, trained = _trained(directory)
    _refuse_existing(output)
    adapters = {path: value for path, value in trained.items() if "/lora_" in path}
    described = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": config.lora.rank,
        "lora_alpha": config.lora.alpha,
        "lora_dropout": config.lora.dropout,
        "target_modules": list(config.lora.targets),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "base_model_name_or_path": None,
    }
    unfinished = output.with_name(output.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    tensors = {name: _to_torch(value) for name, value in _theirs(tables.PEFT, adapters).items()}
    safetensors.torch.save_file(tensors, unfinished / "adapter_model.safetensors", metadata={"format": "pt"})
    (unfinished / "adapter_config.json").write_text(json.dumps(described, indent=1) + "\n")
    os.replace(unfinished, output)


def _trained(directory: pathlib.Path) -> tuple[ModelConfig, Params]:
    """The configuration, and what the original trains, from the delta where that has it all."""
    directory = pathlib.Path(directory)
    description = model_directory.read_description(directory)
    config = configuration.from_dict(ModelConfig, description["model"])
    wanted = parameters.trainable_paths(parameters.structure(config).shapes, TRAINED)
    delta = model_directory.latest_delta(directory)
    params = {} if delta is None else weights.load(delta)
    if not wanted <= set(params):
        params = weights.load(model_directory.base_of(directory, description).path) | params
    return config, {path: params[path] for path in wanted}


def _theirs(table: Table, params: Params) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint of this kind, by their names."""
    values = {path: np.asarray(value) for path, value in params.items()}
    wanted = mapping.destinations(table, {path: value.shape for path, value in values.items()})
    return {
        # A copy: torch shares the memory of numpy's arrays, and JAX's must not be written to.
        name: np.array(to.how.to_theirs(values[to.path] if to.layer is None else values[to.path][to.layer]), order="C")
        for name, to in wanted.items()
    }


def _to_torch(value: np.ndarray):
    import torch

    if value.dtype == ml_dtypes.bfloat16:  # which torch does not take from numpy
        return torch.from_numpy(value.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(value)


def _refuse_existing(output: pathlib.Path) -> None:
    if output.exists():
        raise UserError(f"{output} is there already; name a new one with --output")

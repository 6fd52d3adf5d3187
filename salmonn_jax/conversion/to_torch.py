"""Conversion of a model or run directory to PyTorch formats, used by `launch.convert to-torch`.

The formats are the original's SALMONN `.pth`, a PEFT adapter, and a Hugging Face language model with merged adapters.
"""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from salmonn_jax import config as configuration
from salmonn_jax import model_directory, weights
from salmonn_jax.config import ModelConfig
from salmonn_jax.conversion import mapping, tables
from salmonn_jax.conversion.formats import hf_config, safetensors_writer
from salmonn_jax.conversion.formats.safetensors_writer import PendingTensor
from salmonn_jax.conversion.formats.tensors import read_json
from salmonn_jax.conversion.mapping import Destination
from salmonn_jax.conversion.to_jax import original_trainable_paths
from salmonn_jax.errors import UserError, import_optional
from salmonn_jax.files import atomic_output
from salmonn_jax.paths import Path, as_path
from salmonn_jax.prompts import stop_tokens
from salmonn_jax.tokenizer import load_tokenizer
from salmonn_jax.weights import StoredParam

MAX_SHARD_BYTES = 5_000_000_000  # of one weight file of a Hugging Face directory


def write_salmonn_checkpoint(directory: Path, output: Path) -> None:
    """Writes the trained parameters as a `.pth` of the original.

    The file has a `model` with the tensors, and a `config` with the settings that cannot be read from tensors.

    Args:
      directory: model or run directory.
      output: file that does not exist yet.

    Raises:
      UserError: `directory` is not a SALMONN that the original can run, or `output` exists.
      OSError: the disk is full or fails. Nothing is left behind.
    """
    torch = import_optional("torch", "convert")
    config, params = _open(directory)
    if config.qformer is None:
        raise UserError(f"{directory} holds a single component: it has no parameters that SALMONN trains")
    if config.whisper is None or set(config.encoders) - {"whisper", "beats"}:
        raise UserError(
            f"{directory} has the encoders {', '.join(config.encoders)}: the original has Whisper, with or without "
            "BEATs; convert the language model with `to-torch peft` or `to-torch llama`"
        )
    if config.audio.tokens != "window":
        raise UserError(
            f"{directory} has model.audio.tokens={config.audio.tokens}: the original always uses 'window', so it "
            "cannot run this model; convert its language model with `to-torch peft` or `to-torch llama`"
        )
    if config.audio.window_seconds != 30:
        raise UserError(
            f"{directory} has model.audio.window_seconds={config.audio.window_seconds:g}: the original always encodes "
            "30 s, so it cannot run this model; convert its language model with `to-torch peft` or `to-torch llama`"
        )
    trained = {path: params[path] for path in original_trainable_paths(params)}
    destinations = mapping.destinations(tables.SALMONN, {path: value.shape for path, value in trained.items()})
    model = {name: _to_torch(_torch_array(trained, destination)) for name, destination in destinations.items()}
    model_section = {
        "prompt_template": config.prompt_template,
        "add_bos_token": config.add_bos_token,
        "stop_token_ids": list(config.stop_token_ids) or None,
        "pad_classes": config.pad_classes,
        "num_speech_query_token": config.qformer.num_speech_query_token,
        "second_per_window": config.qformer.second_per_window,
        "second_stride": config.qformer.second_stride,
        "num_attention_heads": config.qformer.num_attention_heads,
        "lora": bool(config.lora.target_modules),
        "lora_rank": config.lora.rank,
        "lora_alpha": config.lora.alpha,
        "lora_dropout": config.lora.dropout,
    }
    with atomic_output(output) as unfinished, unfinished.open("wb") as file:
        torch.save({"model": model, "config": {"model": model_section}}, file)


def write_peft_adapter(directory: Path, output: Path) -> None:
    """Writes the LoRA adapters as a PEFT directory, without the language model.

    Args:
      directory: model or run directory.
      output: directory that does not exist yet.

    Raises:
      UserError: `directory` is a model without adapters, or `output` exists.
      OSError: the disk is full or fails. Nothing is left behind.
    """
    config, params = _open(directory)
    adapters = {path: value for path, value in params.items() if "/lora_" in path}
    if not adapters:
        raise UserError(f"{directory} has no adapters")
    destinations = mapping.destinations(tables.PEFT, {path: value.shape for path, value in adapters.items()})
    adapter_config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": config.lora.rank,
        "lora_alpha": config.lora.alpha,
        "lora_dropout": config.lora.dropout,
        "target_modules": list(config.lora.target_modules),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "base_model_name_or_path": None,
    }
    with atomic_output(output) as unfinished:
        unfinished.mkdir()
        tensors = {
            name: _pending_tensor(adapters, destination, _torch_array) for name, destination in destinations.items()
        }
        safetensors_writer.write(unfinished / "adapter_model.safetensors", tensors)
        _write_json(unfinished / "adapter_config.json", adapter_config)


def write_hf_llama(directory: Path, output: Path, on_write: Callable[[int], object] = lambda count: None) -> None:
    """Writes the language model as a Hugging Face directory, with the adapters merged into its weights.

    The adapters are added in float32, and the sum is rounded to the dtype of the weights. Weights without an adapter,
    or with one that is zero, equal the converted ones byte for byte.

    Args:
      directory: model or run directory.
      output: directory that does not exist yet.
      on_write: called with the number of bytes after each tensor.

    Raises:
      UserError: `directory` holds no language model, transformers has no such model, or `output` exists.
      OSError: the disk is full or fails. Nothing is left behind.
    """
    config, params = _open(directory)
    if config.llama is None:
        raise UserError(f"{directory} holds no language model")
    shapes = {p: x.shape for p, x in params.items() if p.startswith("llama/") and "/lora_" not in p}
    table = tables.llama(tie_word_embeddings=config.llama.tie_word_embeddings)
    merge = functools.partial(_merged_torch_array, scale=config.lora.scale)
    tensors = {
        name: _pending_tensor(params, destination, merge)
        for name, destination in mapping.destinations(table, shapes).items()
    }
    shards = _shards({name: tensor.nbytes for name, tensor in tensors.items()})
    config_json, special_tokens = hf_config.language_model_json(config.llama), _special_tokens(directory, config)
    with atomic_output(output) as unfinished:
        unfinished.mkdir()
        weight_map = {}
        for i, names in enumerate(shards):
            shard = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
            safetensors_writer.write(unfinished / shard, {name: tensors[name] for name in names}, on_write)
            weight_map |= dict.fromkeys(names, shard)
        index = {"metadata": {"total_size": sum(x.nbytes for x in tensors.values())}, "weight_map": weight_map}
        _write_json(unfinished / "model.safetensors.index.json", index)
        model_directory.copy_tokenizer(as_path(directory), unfinished)
        _add_stop_tokens(unfinished / "generation_config.json", special_tokens)
        dtype = str(params["llama/embedding"].dtype)
        _write_json(unfinished / "config.json", config_json | {"torch_dtype": dtype} | special_tokens)


def llama_bytes(directory: Path) -> int:
    """Returns the number of bytes of weights that `write_hf_llama` will write."""
    _, params = _open(directory)
    return sum(_size(x) for path, x in params.items() if path.startswith("llama/") and "/lora_" not in path)


def _open(directory: Path) -> tuple[ModelConfig, dict[str, StoredParam]]:
    """Returns the configuration and the stored parameters. Trained parameters replace those of the base."""
    directory = as_path(directory)
    description = model_directory.read_config_json(directory)
    config = configuration.from_dict(ModelConfig, description["model"])
    params = weights.open_params(model_directory.find_base(directory, description).path)
    delta = model_directory.latest_delta(directory)
    return config, params if delta is None else params | weights.open_params(delta)


def _torch_array(params: dict[str, StoredParam], destination: Destination) -> np.ndarray:
    """Returns the values of the torch tensor that corresponds to `destination`."""
    return destination.transform.to_torch(params[destination.path].read(destination.layer))


def _merged_torch_array(params: dict[str, StoredParam], destination: Destination, *, scale: float) -> np.ndarray:
    """Returns the values of `_torch_array` plus `scale` times the parameter's adapter, if it has one."""
    adapter = destination.path.removesuffix("kernel") + "lora_"
    if adapter + "a" not in params:
        return _torch_array(params, destination)
    kernel = params[destination.path].read(destination.layer)
    lora_a, lora_b = (params[adapter + letter].read(destination.layer).astype(np.float32) for letter in "ab")
    if not lora_b.any():  # a sum with zero would lose the sign of negative zeros
        return destination.transform.to_torch(kernel)
    merged = kernel.astype(np.float32) + np.float32(scale) * (lora_a @ lora_b)
    return destination.transform.to_torch(merged.astype(kernel.dtype))


def _pending_tensor(
    params: dict[str, StoredParam], destination: Destination, compute: Callable[..., np.ndarray]
) -> PendingTensor:
    """Returns the torch tensor that corresponds to `destination`, to be computed when it is written."""
    return PendingTensor(
        destination.torch_shape, params[destination.path].dtype, functools.partial(compute, params, destination)
    )


def _size(value: StoredParam) -> int:
    """Returns the size of a parameter in bytes."""
    return int(np.prod(value.shape)) * value.dtype.itemsize


def _shards(sizes: dict[str, int]) -> list[list[str]]:
    """Divides tensor names, in layer order, into shards of at most MAX_SHARD_BYTES. `sizes` are in bytes."""
    shards, shard_size = [[]], 0
    for name in sorted(sizes, key=lambda name: [int(part) if part.isdigit() else -1 for part in name.split(".")]):
        if shards[-1] and shard_size + sizes[name] > MAX_SHARD_BYTES:
            shards.append([])
            shard_size = 0
        shards[-1].append(name)
        shard_size += sizes[name]
    return shards


def _special_tokens(directory: Path, config: ModelConfig) -> dict[str, int | list[int]]:
    """Returns the special token ids for `config.json`, or nothing if the model has no tokenizer.

    `eos_token_id` is a list if there are several stop tokens, as transformers has it.
    """
    try:
        tokenizer = load_tokenizer(model_directory.config_dir(directory))
    except UserError:  # a language model may have been converted without a tokenizer
        return {}
    stop_token_ids = stop_tokens(config.stop_token_ids, tokenizer)
    eos_token_id = list(stop_token_ids) if len(stop_token_ids) > 1 else stop_token_ids[0]
    bos_token = {} if tokenizer.bos_token_id is None else {"bos_token_id": tokenizer.bos_token_id}
    return bos_token | {"eos_token_id": eos_token_id}


def _add_stop_tokens(path: pathlib.Path, special_tokens: dict[str, int | list[int]]) -> None:
    """Writes the stop tokens to a copied `generation_config.json`, which transformers reads before `config.json`."""
    if path.is_file() and special_tokens:
        _write_json(path, read_json(path) | {"eos_token_id": special_tokens["eos_token_id"]})


def _to_torch(value: np.ndarray):
    """Returns a numpy array as a torch tensor of the same dtype."""
    import torch

    value = np.array(value, order="C")  # torch shares numpy's memory, and these arrays are read-only
    if value.dtype == ml_dtypes.bfloat16:  # torch cannot convert numpy's bfloat16
        return torch.from_numpy(value.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(value)


def _write_json(path: pathlib.Path, value: dict[str, Any]) -> None:
    """Writes a JSON file."""
    path.write_text(json.dumps(value, indent=1) + "\n")

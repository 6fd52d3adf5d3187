"""From a model or run directory back to what PyTorch programs read."""

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
from salmonn_jax.config import LlamaConfig, ModelConfig
from salmonn_jax.conversion import mapping, safetensors_writer, tables
from salmonn_jax.conversion.mapping import Destination
from salmonn_jax.conversion.safetensors_writer import PendingTensor
from salmonn_jax.conversion.to_jax import original_trainable_paths
from salmonn_jax.errors import UserError, import_optional
from salmonn_jax.files import atomic_output
from salmonn_jax.tokenizer import load_tokenizer
from salmonn_jax.weights import StoredParam

MAX_SHARD_BYTES = 5_000_000_000  # of one file of a merged LLaMA


def write_salmonn_checkpoint(directory: pathlib.Path, output: pathlib.Path) -> None:
    """Writes what was trained as the original's `.pth`: `model`, and a `config` that says what tensors cannot.

    Args:
      directory: model or run directory.
      output: the file, not there yet.

    Raises:
      UserError: `directory` is not a SALMONN, or not one that the original can run, or `output` exists.
      OSError: the disk is full, or fails. Nothing is left.
    """
    torch = import_optional("torch", "convert")
    config, params = _open(directory)
    if config.qformer is None:
        raise UserError(f"{directory} holds one part of a model: it has nothing that SALMONN trains")
    if config.audio.tokens != "window":
        raise UserError(
            f"{directory} has model.audio.tokens={config.audio.tokens}: its language model reads fewer audio tokens "
            "than the original would give it; to-torch peft and llama write what does not depend on it"
        )
    trained = {path: params[path] for path in original_trainable_paths(params)}
    wanted = mapping.destinations(tables.SALMONN, {path: value.shape for path, value in trained.items()})
    model = {name: _to_torch(_torch_array(trained, to)) for name, to in wanted.items()}
    told = {
        "prompt_template": config.prompt_template,
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
        torch.save({"model": model, "config": {"model": told}}, file)


def write_peft_adapter(directory: pathlib.Path, output: pathlib.Path) -> None:
    """Writes the adapters as a PEFT directory, to be laid over the language model on its own.

    Args:
      directory: model or run directory.
      output: the directory, not there yet.

    Raises:
      UserError: `directory` is not a model with adapters, or `output` exists.
      OSError: the disk is full, or fails. Nothing is left.
    """
    config, params = _open(directory)
    adapters = {path: value for path, value in params.items() if "/lora_" in path}
    if not adapters:
        raise UserError(f"{directory} has no adapters")
    wanted = mapping.destinations(tables.PEFT, {path: value.shape for path, value in adapters.items()})
    described = {
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
        made = {name: _pending_tensor(adapters, to, _torch_array) for name, to in wanted.items()}
        safetensors_writer.write(unfinished / "adapter_model.safetensors", made)
        _write_json(unfinished / "adapter_config.json", described)


def write_hf_llama(
    directory: pathlib.Path, output: pathlib.Path, on_write: Callable[[int], object] = lambda count: None
) -> None:
    """Writes the language model as a Hugging Face directory, its adapters merged into it.

    Adapters are added in float32 and the sum is rounded to the dtype of the weights; without adapters, or where they
    are zero, the weights are those that were converted, byte for byte.

    Args:
      directory: model or run directory.
      output: the directory, not there yet.
      written: called with the number of bytes of each tensor.

    Raises:
      UserError: `directory` holds no language model, or `output` exists.
      OSError: the disk is full, or fails. Nothing is left.
    """
    config, params = _open(directory)
    if config.llama is None:
        raise UserError(f"{directory} holds no language model")
    shapes = {p: x.shape for p, x in params.items() if p.startswith("llama/") and "/lora_" not in p}
    wanted = mapping.destinations(tables.llama(tie_word_embeddings=config.llama.tie_word_embeddings), shapes)
    merge = functools.partial(_merged_torch_array, scale=config.lora.scale)
    made = {name: _pending_tensor(params, to, merge) for name, to in wanted.items()}
    shards = _shards({name: tensor.nbytes for name, tensor in made.items()})
    tokenizer = _special_tokens(directory)
    with atomic_output(output) as unfinished:
        unfinished.mkdir()
        places = {}
        for i, names in enumerate(shards):
            shard = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
            safetensors_writer.write(unfinished / shard, {name: made[name] for name in names}, on_write)
            places |= dict.fromkeys(names, shard)
        index = {"metadata": {"total_size": sum(x.nbytes for x in made.values())}, "weight_map": places}
        _write_json(unfinished / "model.safetensors.index.json", index)
        model_directory.copy_tokenizer(pathlib.Path(directory), unfinished)
        dtype = str(params["llama/embedding"].dtype)
        _write_json(unfinished / "config.json", _llama_json(config.llama) | {"torch_dtype": dtype} | tokenizer)


def llama_bytes(directory: pathlib.Path) -> int:
    """How much `write_llama` will write."""
    _, params = _open(directory)
    return sum(_size(x) for path, x in params.items() if path.startswith("llama/") and "/lora_" not in path)


def _open(directory: pathlib.Path) -> tuple[ModelConfig, dict[str, StoredParam]]:
    """The configuration and the parameters on disk, what was trained in the place of what it was trained from."""
    directory = pathlib.Path(directory)
    description = model_directory.read_config_json(directory)
    config = configuration.from_dict(ModelConfig, description["model"])
    params = weights.open_params(model_directory.find_base(directory, description).path)
    delta = model_directory.latest_delta(directory)
    return config, params if delta is None else params | weights.open_params(delta)


def _torch_array(params: dict[str, StoredParam], destination: Destination) -> np.ndarray:
    """The tensor of theirs that goes to `to`."""
    return destination.transform.to_torch(params[destination.path].read(destination.layer))


def _merged_torch_array(params: dict[str, StoredParam], destination: Destination, *, scale: float) -> np.ndarray:
    """As `_theirs`, with the adapter of the parameter, if it has one, added."""
    adapter = destination.path.removesuffix("kernel") + "lora_"
    if adapter + "a" not in params:
        return _torch_array(params, destination)
    kernel = params[destination.path].read(destination.layer)
    low, high = (params[adapter + letter].read(destination.layer).astype(np.float32) for letter in "ab")
    if not high.any():  # nothing to add, and a sum would lose the sign of a zero
        return destination.transform.to_torch(kernel)
    merged = kernel.astype(np.float32) + np.float32(scale) * (low @ high)
    return destination.transform.to_torch(merged.astype(kernel.dtype))


def _pending_tensor(
    params: dict[str, StoredParam], destination: Destination, compute: Callable[..., np.ndarray]
) -> PendingTensor:
    return PendingTensor(
        destination.torch_shape, params[destination.path].dtype, functools.partial(compute, params, destination)
    )


def _size(value: StoredParam) -> int:
    return int(np.prod(value.shape)) * value.dtype.itemsize


def _shards(sizes: dict[str, int]) -> list[list[str]]:
    """Names in the order of layers, as many together as fit into a shard."""
    shards, filled = [[]], 0
    for name in sorted(sizes, key=lambda name: [int(part) if part.isdigit() else -1 for part in name.split(".")]):
        if shards[-1] and filled + sizes[name] > MAX_SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += sizes[name]
    return shards


def _llama_json(config: LlamaConfig) -> dict[str, Any]:
    """What `salmonn_jax.conversion.torch_checkpoints.read_llama` reads."""
    scaling = config.rope_scaling
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_size,
        "intermediate_size": config.intermediate_size,
        "hidden_act": "silu",
        "rms_norm_eps": config.rms_norm_eps,
        "max_position_embeddings": config.max_position_embeddings,
        "tie_word_embeddings": config.tie_word_embeddings,
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling
        and {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_position_embeddings,
        },
    }


def _special_tokens(directory: pathlib.Path) -> dict[str, int]:
    try:
        tokenizer = load_tokenizer(directory)
    except UserError:  # a language model may have been converted without one
        return {}
    return {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}


def _to_torch(value: np.ndarray):
    import torch

    value = np.array(value, order="C")  # a copy: torch shares the memory of numpy's arrays, and these are read-only
    if value.dtype == ml_dtypes.bfloat16:  # which torch does not take from numpy
        return torch.from_numpy(value.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(value)


def _write_json(path: pathlib.Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")

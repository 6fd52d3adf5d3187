"""Settings of an evaluation that are part of its keys, and the mesh of a process. Used by `launch.evaluate`."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from salmonn_jax.api import Model
from salmonn_jax.config import GenerationConfig, to_dict
from salmonn_jax.decoding.batching import bucket_length
from salmonn_jax.errors import UserError, unknown_name
from salmonn_jax.model_directory import tokenizer_fingerprint
from salmonn_jax.paths import Path
from salmonn_jax.prompts import add_audio_placeholder, encode_prompt, stop_tokens
from salmonn_jax.sharding import MESH_AXES, make_mesh


def local_mesh(axis_sizes: Mapping[str, int]) -> Mesh:
    """Builds a mesh of the devices of this process.

    Args:
      axis_sizes: sizes by axis; `data` takes the other devices.

    Raises:
      UserError: an axis is unknown, or the sizes do not divide the devices.
    """
    devices = jax.local_devices()
    check_local_mesh(axis_sizes, len(devices))
    return make_mesh(dict(axis_sizes), devices)


def check_local_mesh(axis_sizes: Mapping[str, int], num_devices: int) -> None:
    """Raises UserError if these devices of a process cannot have a mesh with these sizes (see `local_mesh`)."""
    for axis in axis_sizes:
        if axis not in MESH_AXES:
            raise unknown_name("mesh axis", axis, MESH_AXES)
    size = math.prod(axis_sizes.values())
    if num_devices % size or ("data" in axis_sizes and size != num_devices):
        words = " ".join(f"{axis}={size}" for axis, size in axis_sizes.items())
        raise UserError(
            f"--mesh {words} has {size} devices, but each process has {num_devices}; the sizes must divide them, since "
            "each process has the whole model"
        )


def evaluation_settings(
    model: Model, directory: Path, generation_config: GenerationConfig, too_long: str, channels: str
) -> dict[str, Any]:
    """Returns all settings on which an answer depends, beside its row, as JSON values.

    Args:
      model: the loaded model.
      directory: directory from which it was loaded.
      generation_config: settings of decoding.
      too_long: what happens to long clips.
      channels: channel of the recordings that is used.
    """
    config = json.dumps(to_dict(model.config), sort_keys=True)
    decoding = {f"generation_config.{name}": value for name, value in to_dict(generation_config).items()}
    return decoding | {
        "model.fingerprint": model.fingerprint,
        "model.config": hashlib.sha256(config.encode()).hexdigest(),
        "model.tokenizer": tokenizer_fingerprint(directory),
        "model.dtype": str(model.module.dtype),
        "prompt_template": model.config.prompt_template,
        "stop_token_ids": list(stop_tokens(model.config.stop_token_ids, model.tokenizer)),
        "too_long": too_long,
        "channels": channels,
    }


def session(mesh: Mesh) -> dict[str, Any]:
    """Returns what an evaluation runs on, as JSON values: results are equal only where this is equal too."""
    return {
        "mesh": dict(mesh.shape),
        "processes": jax.process_count(),
        "device": jax.devices()[0].device_kind,
        "versions": {name: importlib.metadata.version(name) for name in ("salmonn-jax", "jax", "jaxlib")},
    }


def prompt_bucket(model: Model, max_new_tokens: int) -> Callable[[str, bool], int]:
    """Returns a function from a prompt, and whether it has a clip of one window, to the length to which it is padded.

    Args:
      model: the model.
      max_new_tokens: maximum number of tokens of an answer.
    """
    max_seq_len = model.config.llama.max_position_embeddings - max_new_tokens

    @functools.lru_cache(maxsize=4096)
    def bucket(prompt: str, has_audio: bool) -> int:
        encoded = encode_prompt(
            model.tokenizer,
            model.config.prompt_template,
            add_audio_placeholder(prompt, num_clips=int(has_audio)),
            valid_audio_token_counts=[[model.config.num_audio_tokens]] if has_audio else [],
            num_audio_tokens=model.config.num_audio_tokens if has_audio else 0,
            add_bos_token=model.config.add_bos_token,
        )
        return bucket_length(len(encoded.tokens), max_seq_len)

    return bucket

"""An evaluation before its model is loaded: the settings that are part of its keys, and the mesh of a process.

`launch.evaluate` and the commands that generate training data use it.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
from jax.sharding import Mesh

import salmonn_jax
from salmonn_jax.api import Model, default_dtype
from salmonn_jax.audio.files import Channels
from salmonn_jax.audio.windows import DecodingTooLong
from salmonn_jax.config import GenerationConfig, to_dict
from salmonn_jax.decoding.batching import bucket_length
from salmonn_jax.errors import UserError, unknown_name
from salmonn_jax.evaluation.plan import Rows
from salmonn_jax.evaluation.predict import PredictOptions
from salmonn_jax.evaluation.predictions import Condition
from salmonn_jax.evaluation.run import Evaluation
from salmonn_jax.model_directory import ModelFiles, tokenizer_fingerprint
from salmonn_jax.paths import Path
from salmonn_jax.prompts import add_audio_placeholder, encode_prompt, stop_tokens
from salmonn_jax.sharding import MESH_AXES, make_mesh


class DescribedRows(Rows, Protocol):
    """Rows that describe their data sets, such as `data_pipelines.evaluation.rows.EvaluationRows`."""

    def describe_sources(self) -> Sequence[Mapping[str, Any]]:
        """Returns the data sets as JSON values, each with its name and split."""
        ...


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


def make_evaluation(
    model: ModelFiles,
    directory: Path,
    rows: DescribedRows,
    generation_config: GenerationConfig,
    mesh: Mesh,
    *,
    too_long: DecodingTooLong,
    channels: Channels,
    max_failures: int,
    conditions: Sequence[Condition] = ("audio",),
    batch_size: int | None = None,
    preflight: bool = True,
) -> Evaluation:
    """Returns an evaluation of a model, before its weights are loaded.

    Args:
      model: the opened model directory.
      directory: model or run directory.
      rows: all rows.
      generation_config: settings of decoding.
      mesh: mesh of this process.
      too_long: what happens to long clips (see `salmonn_jax.audio.windows`).
      channels: channel of the recordings that is used.
      max_failures: see `PredictOptions`.
      conditions: see `Evaluation`.
      batch_size: see `PredictOptions`.
      preflight: see `Evaluation`.

    Raises:
      UserError: the model has no language model, or its context has no room for the new tokens.
    """
    if model.tokenizer is None:
        raise UserError(f"{directory} has no language model and cannot answer; choose a whole SALMONN with --model")
    context = model.config.llama.max_position_embeddings
    if generation_config.max_new_tokens >= context:
        raise UserError(
            f"--max-new-tokens {generation_config.max_new_tokens}: must be below {context}, the tokens of the language "
            "model's context"
        )
    generation_config.check_lora_multiplier(model.config.llama.num_hidden_layers)
    return Evaluation(
        rows=rows,
        conditions=conditions,
        settings=evaluation_settings(model, directory, generation_config, too_long, channels),
        sources=rows.describe_sources(),
        session=session(mesh),
        options=PredictOptions(
            generation_config=generation_config, too_long=too_long, batch_size=batch_size, max_failures=max_failures
        ),
        bucket=prompt_bucket(model, generation_config.max_new_tokens),
        preflight=preflight,
    )


def load_evaluated(files: ModelFiles, directory: Path, mesh: Mesh) -> Model:
    """Loads the weights of an opened model directory.

    Raises:
      UserError: as `salmonn_jax.load`, or a training run has written another checkpoint since the directory was opened.
    """
    model = salmonn_jax.load(directory, mesh=mesh)
    if model.fingerprint != files.fingerprint:
        raise UserError(f"{directory} has got another checkpoint while it was loaded; run the same command again")
    return model


def evaluation_settings(
    model: ModelFiles, directory: Path, generation_config: GenerationConfig, too_long: str, channels: str
) -> dict[str, Any]:
    """Returns all settings on which an answer depends, beside its row, as JSON values.

    Args:
      model: the opened model directory.
      directory: model or run directory.
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
        "model.dtype": default_dtype(),
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


def prompt_bucket(model: ModelFiles, max_new_tokens: int) -> Callable[[str, bool], int]:
    """Returns a function from a prompt, and whether it has a clip of one window, to the length to which it is padded.

    Args:
      model: the opened model directory.
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

"""Functions that open PyTorch checkpoints of Whisper, BEATs and language models, used by `to_jax`.

Each returns the JAX configuration, the conversion table and the tensors.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from salmonn_jax.config import BeatsConfig, WhisperConfig, from_dict
from salmonn_jax.conversion import tables
from salmonn_jax.conversion.formats import hf_config, tensors
from salmonn_jax.conversion.formats.tensors import LazyStateDict
from salmonn_jax.conversion.mapping import Shape, Table
from salmonn_jax.errors import UserError

# BEATs options that have one supported value here: (supported value, default of the original).
_BEATS_FIXED = {
    "layer_norm_first": (False, False),
    "deep_norm": (True, False),
    "conv_bias": (False, False),
    "relative_position_embedding": (True, False),
    "gru_rel_pos": (True, False),
    "activation_fn": ("gelu", "gelu"),
}


@dataclasses.dataclass(frozen=True)
class TorchCheckpoint:
    """Opened checkpoint of one component: its configuration, its conversion table and its tensors."""

    config: Any  # WhisperConfig, BeatsConfig or LlamaConfig
    table: Table
    tensors: LazyStateDict

    def match_args(self, shapes: Mapping[str, Shape]) -> tuple[Table, dict[str, Shape], LazyStateDict]:
        """Returns the arguments of `mapping.match_checkpoint`. `shapes` may include those of other components."""
        own_shapes = {path: shape for path, shape in shapes.items() if path.startswith(self.table.path_prefix)}
        return self.table, own_shapes, self.tensors


@dataclasses.dataclass(frozen=True)
class WhisperCheckpoint(TorchCheckpoint):
    """Opened checkpoint of a Whisper encoder, with the length of its input in seconds."""

    window_seconds: float


def open_whisper(path: pathlib.Path) -> WhisperCheckpoint:
    """Opens a Hugging Face directory or OpenAI `.pt` file of a Whisper. Raises UserError if it is neither."""
    path = pathlib.Path(path)
    if not path.is_dir():
        return _openai_whisper(path)
    values, state_dict = tensors.open_hf_directory(path)
    config, window_seconds = hf_config.read_whisper(path, values)
    prefix = next((name.removesuffix("conv1.weight") for name in state_dict if name.endswith("conv1.weight")), "")
    return WhisperCheckpoint(config, tables.whisper_hf(prefix), state_dict, window_seconds)


def _openai_whisper(path: pathlib.Path) -> WhisperCheckpoint:
    """Opens an OpenAI `.pt` file."""
    checkpoint = tensors.load_torch(path)
    if not isinstance(checkpoint, Mapping) or not {"dims", "model_state_dict"} <= set(checkpoint):
        raise UserError(f"{path} is not an OpenAI Whisper checkpoint: it has no `dims` and `model_state_dict`")
    dims = checkpoint["dims"]
    d_model = _value(path, dims, "n_audio_state")
    config = _make_config(
        path,
        WhisperConfig,
        num_mel_bins=_value(path, dims, "n_mels"),
        d_model=d_model,
        encoder_layers=_value(path, dims, "n_audio_layer"),
        encoder_attention_heads=_value(path, dims, "n_audio_head"),
        encoder_ffn_dim=4 * d_model,
    )
    state_dict = tensors.lazy_state_dict(checkpoint["model_state_dict"], path, "model_state_dict")
    return WhisperCheckpoint(config, tables.WHISPER_OPENAI, state_dict, _value(path, dims, "n_audio_ctx") / 50)


def open_beats(path: pathlib.Path) -> TorchCheckpoint:
    """Opens a BEATs `.pt` file. Raises UserError if it is another file, or has an unsupported configuration."""
    path = pathlib.Path(path)
    checkpoint = tensors.load_torch(path)
    if not isinstance(checkpoint, Mapping) or not {"cfg", "model"} <= set(checkpoint):
        raise UserError(f"{path} is not a BEATs checkpoint: it has no `cfg` and `model`")
    cfg = checkpoint["cfg"]
    if not isinstance(cfg, Mapping):
        raise UserError(f"{path} is not a BEATs checkpoint: its `cfg` is not a dictionary")
    for name, (supported, default) in _BEATS_FIXED.items():
        value = cfg.get(name, default)
        if value != supported:
            raise UserError(f"{path} has {name}={value!r}; only BEATs with {name}={supported!r} can be converted")
    config = _make_config(
        path,
        BeatsConfig,
        input_patch_size=_value(path, cfg, "input_patch_size"),
        embed_dim=_value(path, cfg, "embed_dim"),
        encoder_embed_dim=_value(path, cfg, "encoder_embed_dim"),
        encoder_layers=_value(path, cfg, "encoder_layers"),
        encoder_attention_heads=_value(path, cfg, "encoder_attention_heads"),
        encoder_ffn_embed_dim=_value(path, cfg, "encoder_ffn_embed_dim"),
        conv_pos=_value(path, cfg, "conv_pos"),
        conv_pos_groups=_value(path, cfg, "conv_pos_groups"),
        num_buckets=_value(path, cfg, "num_buckets"),
        max_distance=_value(path, cfg, "max_distance"),
    )
    return TorchCheckpoint(
        config, tables.beats(config.input_patch_size), tensors.lazy_state_dict(checkpoint["model"], path, "model")
    )


def open_llama(path: pathlib.Path) -> TorchCheckpoint:
    """Opens a Hugging Face directory of a language model, see `hf_config.LANGUAGE_MODELS`.

    Raises:
      UserError: it is another model, is incomplete, or has a configuration that is not supported.
    """
    path = pathlib.Path(path)
    values, state_dict = tensors.open_hf_directory(path)
    config = hf_config.read_language_model(path, values)
    return TorchCheckpoint(config, tables.llama(tie_word_embeddings=config.tie_word_embeddings), state_dict)


def _make_config(path: pathlib.Path, config_class: type, **values: Any) -> Any:
    """Returns a component's configuration. Raises UserError naming the file if a value is not valid."""
    return from_dict(config_class, values, path_prefix=f"{path}: ")


def _value(path: pathlib.Path, values: Mapping[str, Any], name: str) -> Any:
    """Returns a value of a configuration. Raises UserError if it is missing."""
    if name not in values:
        raise UserError(f"the configuration in {path} has no {name}")
    return values[name]

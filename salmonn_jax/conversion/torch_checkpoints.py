"""What a PyTorch checkpoint says about itself: its configuration, in ours, and the table that fits it."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from salmonn_jax.config import BeatsConfig, LlamaConfig, RopeScaling, WhisperConfig
from salmonn_jax.conversion import tables, tensors
from salmonn_jax.conversion.mapping import Shape, Table
from salmonn_jax.conversion.tensors import LazyStateDict
from salmonn_jax.errors import UserError

LLAMA_FAMILY = ("llama", "mistral")
# What our BEATs computes, of what the original can be configured to, and what the original takes where none is named.
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
    """One part of a model, ready to be converted."""

    config: Any  # WhisperConfig, BeatsConfig or LlamaConfig
    table: Table
    tensors: LazyStateDict

    def match_args(self, shapes: Mapping[str, Shape]) -> tuple[Table, dict[str, Shape], LazyStateDict]:
        """What `mapping.match` pairs: this part of a model's parameters with its tensors."""
        return (
            self.table,
            {p: shape for p, shape in shapes.items() if p.startswith(self.table.path_prefix)},
            self.tensors,
        )


@dataclasses.dataclass(frozen=True)
class WhisperCheckpoint(TorchCheckpoint):
    """A Whisper encoder, and for how long it hears."""

    window_seconds: float


def open_whisper(path: pathlib.Path) -> WhisperCheckpoint:
    """Opens a Hugging Face directory or an OpenAI `.pt` file. Raises UserError if it is neither, or not whole."""
    path = pathlib.Path(path)
    if not path.is_dir():
        return _openai_whisper(path)
    values, found = tensors.open_hf_directory(path)
    _expect_kind(path, values, ("whisper",))
    config = WhisperConfig(
        num_mel_bins=_value(path, values, "num_mel_bins"),
        d_model=_value(path, values, "d_model"),
        encoder_layers=_value(path, values, "encoder_layers"),
        encoder_attention_heads=_value(path, values, "encoder_attention_heads"),
        encoder_ffn_dim=_value(path, values, "encoder_ffn_dim"),
    )
    root = next((name.removesuffix("conv1.weight") for name in found if name.endswith("conv1.weight")), "")
    frames = _value(path, values, "max_source_positions")
    return WhisperCheckpoint(config, tables.whisper_hf(root), found, frames / 50)


def _openai_whisper(path: pathlib.Path) -> WhisperCheckpoint:
    loaded = tensors.load_torch(path)
    if not isinstance(loaded, Mapping) or not {"dims", "model_state_dict"} <= set(loaded):
        raise UserError(f"{path} is not an OpenAI Whisper checkpoint: it has no `dims` and `model_state_dict`")
    dims = loaded["dims"]
    width = _value(path, dims, "n_audio_state")
    config = WhisperConfig(
        num_mel_bins=_value(path, dims, "n_mels"),
        d_model=width,
        encoder_layers=_value(path, dims, "n_audio_layer"),
        encoder_attention_heads=_value(path, dims, "n_audio_head"),
        encoder_ffn_dim=4 * width,
    )
    found = tensors.lazy_state_dict(loaded["model_state_dict"], path, "model_state_dict")
    return WhisperCheckpoint(config, tables.WHISPER_OPENAI, found, _value(path, dims, "n_audio_ctx") / 50)


def open_beats(path: pathlib.Path) -> TorchCheckpoint:
    """Opens a BEATs `.pt` file. Raises UserError if it is none, or configured as our BEATs is not."""
    path = pathlib.Path(path)
    loaded = tensors.load_torch(path)
    if not isinstance(loaded, Mapping) or not {"cfg", "model"} <= set(loaded):
        raise UserError(f"{path} is not a BEATs checkpoint: it has no `cfg` and `model`")
    cfg = loaded["cfg"]
    if not isinstance(cfg, Mapping):
        raise UserError(f"{path} is not a BEATs checkpoint: its `cfg` is no dictionary")
    for name, (fixed, default) in _BEATS_FIXED.items():
        value = cfg.get(name, default)
        if value != fixed:
            raise UserError(f"{path} has {name}={value!r}; only BEATs with {name}={fixed!r} can be converted")
    config = BeatsConfig(
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
        config, tables.beats(config.input_patch_size), tensors.lazy_state_dict(loaded["model"], path, "model")
    )


def open_llama(path: pathlib.Path) -> TorchCheckpoint:
    """Opens a Hugging Face directory of the LLaMA family. Raises UserError if it is none, or not whole."""
    path = pathlib.Path(path)
    values, found = tensors.open_hf_directory(path)
    _expect_kind(path, values, LLAMA_FAMILY)
    if values.get("attention_bias") or values.get("mlp_bias"):
        raise UserError(f"{path} has biases in its projections, which the LLaMA here has not")
    if values.get("hidden_act", "silu") != "silu":
        raise UserError(f"{path} has hidden_act={values['hidden_act']!r}; only 'silu' can be converted")
    heads = _value(path, values, "num_attention_heads")
    rope = values.get("rope_parameters") or {}
    config = LlamaConfig(
        vocab_size=_value(path, values, "vocab_size"),
        hidden_size=_value(path, values, "hidden_size"),
        num_hidden_layers=_value(path, values, "num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=values.get("num_key_value_heads") or heads,
        intermediate_size=_value(path, values, "intermediate_size"),
        rms_norm_eps=_value(path, values, "rms_norm_eps"),
        head_dim=values.get("head_dim"),
        rope_theta=float(rope.get("rope_theta") or values.get("rope_theta") or 10_000.0),
        rope_scaling=_rope_scaling(path, values.get("rope_scaling") or rope),
        # Beyond its sliding window Mistral no longer attends to everything, which the decoder here does.
        max_position_embeddings=min(
            _value(path, values, "max_position_embeddings"), values.get("sliding_window") or 2**31
        ),
        tie_word_embeddings=bool(values.get("tie_word_embeddings", False)),
    )
    return TorchCheckpoint(config, tables.llama(tie_word_embeddings=config.tie_word_embeddings), found)


def _rope_scaling(path: pathlib.Path, values: Mapping[str, Any]) -> RopeScaling | None:
    kind = values.get("rope_type", values.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise UserError(f"{path} has rope scaling {kind!r}; only 'llama3' can be converted")
    return RopeScaling(
        factor=float(_value(path, values, "factor")),
        low_freq_factor=float(_value(path, values, "low_freq_factor")),
        high_freq_factor=float(_value(path, values, "high_freq_factor")),
        original_max_position_embeddings=_value(path, values, "original_max_position_embeddings"),
    )


def _expect_kind(path: pathlib.Path, values: Mapping[str, Any], kinds: tuple[str, ...]) -> None:
    if values.get("model_type") not in kinds:
        raise UserError(f"{path} holds a model of type {values.get('model_type')!r}, not {' or '.join(kinds)}")


def _value(path: pathlib.Path, values: Mapping[str, Any], name: str) -> Any:
    if name not in values:
        raise UserError(f"the configuration in {path} has no {name}")
    return values[name]

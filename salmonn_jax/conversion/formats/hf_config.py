"""Translation between Hugging Face's `config.json` and the configuration of a language model or a Whisper.

Every key of a `config.json` is read, or is in a list of keys that do not change what the model computes. Any other key
is an error, because ignoring it could change the model silently.
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping
from typing import Any

from salmonn_jax.config import LlamaConfig, WhisperConfig, from_dict
from salmonn_jax.errors import UserError

# Supported language models by transformers' `model_type`.
LANGUAGE_MODELS = {
    "llama": "LLaMA 1 to 3.2, Vicuna, SmolLM2",
    "mistral": "Mistral",
    "qwen2": "Qwen2 and Qwen2.5",
    "qwen3": "Qwen3, dense",
}
_ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}

# Keys that do not change the weights' meaning or the forward pass of any supported model. Those of transformers'
# `PreTrainedConfig` in versions 4 and 5 come first, then those that exporters and trainers add.
_NO_EFFECT_NAMES = """
    _name_or_path _model_name_or_path _commit_hash _attn_implementation _attn_implementation_autoset
    _experts_implementation attn_implementation transformers_version architectures torch_dtype dtype torchscript
    use_bfloat16 tf_legacy_loss return_dict output_hidden_states output_attentions output_scores return_dict_in_generate
    use_cache gradient_checkpointing chunk_size_feed_forward is_encoder_decoder is_decoder add_cross_attention
    cross_attention_hidden_size tie_encoder_decoder tie_last_hidden_states finetuning_task num_labels id2label label2id
    problem_type task_specific_params tokenizer_class prefix bos_token_id eos_token_id pad_token_id sep_token_id
    unk_token_id cls_token_id mask_token_id decoder_start_token_id

    max_length min_length max_new_tokens do_sample early_stopping num_beams num_beam_groups num_return_sequences
    diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size
    encoder_no_repeat_ngram_size bad_words_ids forced_bos_token_id forced_eos_token_id remove_invalid_values
    exponential_decay_length_penalty suppress_tokens begin_suppress_tokens

    initializer_range initializer_factor unsloth_version unsloth_fixed transformers.js_config
"""
# The decoder, heads for classification, and regularisation in training: the encoder runs in inference mode.
_NO_EFFECT_WHISPER_NAMES = """
    vocab_size decoder_layers decoder_attention_heads decoder_ffn_dim decoder_layerdrop max_target_positions
    num_hidden_layers tie_word_embeddings median_filter_width alignment_heads forced_decoder_ids lang_ids language task
    use_weighted_layer_sum classifier_proj_size dropout attention_dropout activation_dropout encoder_layerdrop init_std
    apply_spec_augment mask_time_prob mask_time_length mask_time_min_masks mask_feature_prob mask_feature_length
    mask_feature_min_masks
"""
_NO_EFFECT = frozenset(_NO_EFFECT_NAMES.split())
_NO_EFFECT_WHISPER = _NO_EFFECT | frozenset(_NO_EFFECT_WHISPER_NAMES.split())
# `pretraining_tp` splits matrix products, which changes the order of sums only.
_NO_EFFECT_LLM = _NO_EFFECT | {"pretraining_tp", "is_llama_config", "is_qwen2_config", "neftune_noise_alpha"}


class _Keys:
    """Keys of a `config.json` that remembers which were read."""

    def __init__(self, path: pathlib.Path, values: Mapping[str, Any]):
        self._path, self._values, self._read = path, values, {"model_type"}

    def get(self, name: str, default: Any = None) -> Any:
        """Returns the value of a key, or `default` if it is absent or null."""
        self._read.add(name)
        value = self._values.get(name)
        return default if value is None else value

    def require(self, name: str) -> Any:
        """Returns the value of a key. Raises UserError if it is absent or null."""
        value = self.get(name)
        if value is None:
            raise UserError(f"the configuration in {self._path} has no {name}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """Returns the value of a key. Raises UserError if it is not a number, or absent without a default."""
        value = self.require(name) if default is None else self.get(name, default)
        return self._typed(name, value, (int, float), "a number")

    def flag(self, name: str) -> bool:
        """Returns the value of a key, False if it is absent. Raises UserError if it is neither true nor false."""
        return self._typed(name, self.get(name, False), (bool,), "true or false")

    def section(self, name: str) -> dict[str, Any]:
        """Returns the entries of a key, without those that are null. Raises UserError if it is not an object."""
        value = self._typed(name, self.get(name, {}), (dict,), "an object")
        return {key: entry for key, entry in value.items() if entry is not None}

    def _typed(self, name: str, value: Any, types: tuple[type, ...], expected: str) -> Any:
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise UserError(f"{self._path}: {name}={value!r}: must be {expected}")
        return value

    def expect(self, name: str, supported: Any, note: str = "") -> None:
        """Raises UserError if a key has another value than `supported`. It may be absent."""
        value = self.get(name, supported)
        if value != supported:
            raise UserError(f"{self._path} has {name}={value!r}; only {supported!r} can be converted{note}")

    def refuse_unread(self, no_effect: frozenset[str]) -> None:
        """Raises UserError if a key was not read and is not in `no_effect`."""
        unknown = sorted(set(self._values) - self._read - no_effect)
        if unknown:
            raise UserError(
                f"{self._path / 'config.json'} has keys that this conversion does not know: {', '.join(unknown)}; "
                "remove those that do not change what the model computes"
            )


def check_model_type(path: pathlib.Path, values: Mapping[str, Any], supported: Mapping[str, str]) -> None:
    """Raises UserError if the model type is not a key of `supported`, whose values name the models of each type."""
    if values.get("model_type") not in list(supported):
        names = "; ".join(f"{model_type} ({models})" for model_type, models in supported.items())
        raise UserError(f"{path} has model_type={values.get('model_type')!r}; supported: {names}")


def read_whisper(path: pathlib.Path, values: Mapping[str, Any]) -> tuple[WhisperConfig, float]:
    """Returns the configuration of a Whisper encoder, and the length of its input in seconds.

    Args:
      path: Hugging Face directory, named in messages.
      values: contents of its `config.json`.

    Raises:
      UserError: it is another model, a value is missing or not supported, or a key is unknown.
    """
    check_model_type(path, values, {"whisper": "any size"})
    keys = _Keys(path, values)
    keys.expect("activation_function", "gelu")
    keys.expect("scale_embedding", False)
    _expect_plain_weights(keys)
    names = ("num_mel_bins", "d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim")
    config = from_dict(WhisperConfig, {name: keys.require(name) for name in names}, path_prefix=f"{path}: ")
    frames = keys.number("max_source_positions")
    keys.refuse_unread(_NO_EFFECT_WHISPER)
    return config, frames / 50


def read_language_model(path: pathlib.Path, values: Mapping[str, Any]) -> LlamaConfig:
    """Returns the configuration of a language model.

    The decoder here attends to the whole sequence. A model whose layers attend to a sliding window computes the same up
    to the length of the window, so its context length is cut to that: 4096 tokens for Mistral 0.1.

    Args:
      path: Hugging Face directory, named in messages.
      values: contents of its `config.json`.

    Raises:
      UserError: it is another model, a value is missing or not supported, or a key is unknown.
    """
    check_model_type(path, values, LANGUAGE_MODELS)
    keys, model_type = _Keys(path, values), values["model_type"]
    keys.expect("hidden_act", "silu")
    keys.expect("attention_dropout", 0.0, " (set it in config.json: it has no effect outside training)")
    keys.expect("rope_interleaved", False)
    keys.expect("use_mrope", False)
    _expect_plain_weights(keys)
    num_heads = keys.require("num_attention_heads")
    # transformers' defaults of absent keys depend on the model type; only LLaMA 1 was published without these two.
    if model_type != "llama":
        keys.require("num_key_value_heads")
    if model_type == "qwen3":
        keys.require("head_dim")
    rope = _read_rope(path, keys)
    config = from_dict(
        LlamaConfig,
        {
            "vocab_size": keys.require("vocab_size"),
            "hidden_size": keys.require("hidden_size"),
            "num_hidden_layers": keys.require("num_hidden_layers"),
            "num_attention_heads": num_heads,
            "num_key_value_heads": keys.get("num_key_value_heads", num_heads),
            "intermediate_size": keys.require("intermediate_size"),
            "rms_norm_eps": keys.require("rms_norm_eps"),
            "head_dim": keys.get("head_dim"),
            "attention_bias": _read_attention_bias(keys, model_type),
            "qk_norm": model_type == "qwen3",
            "mlp_bias": _read_mlp_bias(keys, model_type),
            "max_position_embeddings": _read_context_length(path, keys, model_type),
            "tie_word_embeddings": keys.flag("tie_word_embeddings"),
        }
        | rope,
        path_prefix=f"{path}: ",
    )
    keys.refuse_unread(_NO_EFFECT_LLM)
    return config


def _expect_plain_weights(keys: _Keys) -> None:
    """Raises UserError if the weights are quantised or pruned."""
    keys.expect("quantization_config", None, " (give the directory of the model before its quantisation)")
    keys.expect("pruned_heads", {})


def _read_attention_bias(keys: _Keys, model_type: str) -> str:
    """Returns `LlamaConfig.attention_bias`."""
    if model_type == "qwen2":
        return "qkv"
    if model_type == "mistral":
        keys.expect("attention_bias", False)
    return "qkvo" if keys.flag("attention_bias") else "none"


def _read_mlp_bias(keys: _Keys, model_type: str) -> bool:
    """Returns `LlamaConfig.mlp_bias`, which only LLaMA may have."""
    if model_type != "llama":
        keys.expect("mlp_bias", False)
    return keys.flag("mlp_bias")


def _read_context_length(path: pathlib.Path, keys: _Keys, model_type: str) -> float:
    """Returns the context length in tokens, which a sliding window may limit. See `read_language_model`."""
    # The first conversions of LLaMA 1 have `max_sequence_length` instead of `max_position_embeddings`.
    length = keys.number("max_position_embeddings", keys.get("max_sequence_length"))
    return min(length, _read_attention_window(path, keys, model_type))


def _read_attention_window(path: pathlib.Path, keys: _Keys, model_type: str) -> float:
    """Returns how many tokens the layers with a sliding window attend to, infinity without such layers."""
    window, enabled = keys.number("sliding_window", math.inf), keys.flag("use_sliding_window")
    first_sliding_layer, layer_types = keys.number("max_window_layers", 0), keys.get("layer_types", [])
    supported_types = ["full_attention", *(["sliding_attention"] if enabled else [])]
    for layer_type in layer_types if isinstance(layer_types, list) else [layer_types]:
        if layer_type not in supported_types:
            raise UserError(f"{path} has {layer_type!r} in layer_types; only {supported_types} can be converted")
    if model_type == "mistral":  # in all layers
        return window
    if model_type == "llama":  # in none
        keys.expect("sliding_window", None)
        keys.expect("use_sliding_window", False)
    num_layers = keys.number("num_hidden_layers")
    slides = "sliding_attention" in layer_types if layer_types else first_sliding_layer < num_layers
    return window if enabled and slides else math.inf


def _read_rope(path: pathlib.Path, keys: _Keys) -> dict[str, Any]:
    """Returns `rope_theta` and `rope_scaling` of `LlamaConfig`.

    Versions of transformers keep the rotary settings at the top level, in `rope_scaling` or in `rope_parameters`.

    Raises:
      UserError: a setting is given twice with different values, is unknown, or is not supported.
    """
    top_level = {name: keys.get(name) for name in ("rope_theta", "partial_rotary_factor")}
    settings: dict[str, Any] = {}
    for section in (top_level, keys.section("rope_scaling"), keys.section("rope_parameters")):
        for name, value in section.items():
            name = "rope_type" if name == "type" else name
            if value is not None and settings.setdefault(name, value) != value:
                raise UserError(f"{path} gives {name} twice, as {settings[name]!r} and {value!r}; keep one")
    rope = _Keys(path, settings)
    rope.expect("partial_rotary_factor", 1.0, ": it rotates only a part of each head")
    theta, rope_type = rope.number("rope_theta", 10_000.0), rope.get("rope_type", "default")
    if rope_type not in ("default", "llama3"):
        raise UserError(f"{path} has rope scaling {rope_type!r}; only 'default' and 'llama3' can be converted")
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    scaling = {name: rope.number(name) for name in names} if rope_type == "llama3" else None
    rope.refuse_unread(frozenset())
    return {"rope_theta": theta, "rope_scaling": scaling}


def language_model_json(config: LlamaConfig) -> dict[str, Any]:
    """Returns the `config.json` of a language model, which `read_language_model` and transformers read back.

    Raises:
      UserError: transformers has no model type with this combination of biases and norms.
    """
    model_type = "qwen3" if config.qk_norm else "qwen2" if config.attention_bias == "qkv" else "llama"
    impossible = config.mlp_bias if model_type != "llama" else False
    if impossible or (config.qk_norm and config.attention_bias == "qkv"):
        raise UserError(
            f"transformers has no model with attention_bias={config.attention_bias!r}, qk_norm={config.qk_norm} and "
            f"mlp_bias={config.mlp_bias}, so this language model cannot be written in its format"
        )
    scaling = config.rope_scaling
    values = {
        "model_type": model_type,
        "architectures": [_ARCHITECTURES[model_type]],
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
    if model_type != "qwen2":  # which always has biases in q_proj, k_proj and v_proj
        values["attention_bias"] = config.attention_bias == "qkvo"
    return values | ({"mlp_bias": config.mlp_bias} if model_type == "llama" else {"use_sliding_window": False})

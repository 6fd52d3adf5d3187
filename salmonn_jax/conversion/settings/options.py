"""Settings of a converted SALMONN: sizes of its new parts, and what the tensors of a checkpoint do not determine.

`to_jax.plan_salmonn` resolves each setting from the command line, the checkpoint, or a default.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, Literal

from salmonn_jax.config import LlamaConfig, LoraConfig, QFormerConfig, from_dict
from salmonn_jax.conversion.formats import tensors
from salmonn_jax.errors import UserError

_COMMAND_LINE, _CHECKPOINT, _ORIGINAL = "from the command line", "from the checkpoint", "the original's default"
HEAD_SIZE = 64  # of the Q-Former by default, as in the original


@dataclasses.dataclass(frozen=True, kw_only=True)
class SalmonnOptions:
    """Options of `launch.convert to-jax salmonn`, which have the same names. None means that an option is not given.

    Sizes of the Q-Former and of the adapters belong to models to be trained: those of a checkpoint are in its tensors.
    Other settings override those in the checkpoint's `config`.

    Attributes:
      audio_window_seconds: length of the encoder input in seconds; less than that of Whisper cuts its position table.
      audio_tokens: audio tokens that the language model reads: of the whole "window", as in the original, or of the
        "clip" only.
      qformer_hidden_size: hidden size of the Q-Former.
      qformer_num_hidden_layers: layers of the Q-Former.
      qformer_num_attention_heads: attention heads of the Q-Former.
      qformer_intermediate_size: hidden size of the Q-Former's feed-forward network.
      num_speech_query_token: queries, and so audio tokens, per Q-Former window.
      second_per_window: length of a Q-Former window in seconds.
      second_stride: distance between the starts of two Q-Former windows in seconds.
      lora_rank: rank of the adapters.
      lora_alpha: numerator of the LoRA scale `alpha / rank`.
      lora_target_modules: projections of the language model that have an adapter; empty for no adapters.
      prompt_template: name of a prompt template, or its text with `{}` in place of the prompt.
    """

    audio_window_seconds: float | None = None
    audio_tokens: Literal["window", "clip"] | None = None
    qformer_hidden_size: int | None = None
    qformer_num_hidden_layers: int | None = None
    qformer_num_attention_heads: int | None = None
    qformer_intermediate_size: int | None = None
    num_speech_query_token: int | None = None
    second_per_window: float | None = None
    second_stride: float | None = None
    lora_rank: int | None = None
    lora_alpha: float | None = None
    lora_target_modules: tuple[str, ...] | None = None
    prompt_template: str | None = None

    def flag(self, name: str) -> str:
        """Returns an option as it is written on the command line, with its value."""
        value = getattr(self, name)
        words = value if isinstance(value, tuple) else [value]
        return " ".join([f"--{name.replace('_', '-')}", *map(str, words)])


@dataclasses.dataclass(frozen=True)
class Setting:
    """Value of a setting and where it comes from."""

    value: Any
    origin: str


# Name in a checkpoint's `config` and type of each setting that the tensors do not determine.
_STORED = {
    "qformer_num_attention_heads": ("num_attention_heads", int),
    "second_per_window": ("second_per_window", float),
    "second_stride": ("second_stride", float),
    "lora_alpha": ("lora_alpha", float),
    "lora_dropout": ("lora_dropout", float),
    "pad_classes": ("pad_classes", int),
}


def resolve_settings(
    options: SalmonnOptions,
    llama: LlamaConfig,
    checkpoint: pathlib.Path | None,
    state_dict: tensors.LazyStateDict,
    checkpoint_config: Mapping[str, Any],
) -> dict[str, Setting]:
    """Returns the settings of Q-Former, adapters and loss, by name.

    Args:
      options: options of the user.
      llama: configuration of the language model, on which some defaults depend.
      checkpoint: SALMONN `.pth`, named in messages; None for a model to be trained.
      state_dict: its tensors, which determine the sizes.
      checkpoint_config: `model` section of its configuration.

    Raises:
      UserError: an option is given that the tensors determine, or the configuration has a value of a wrong type.
    """
    sizes = {} if checkpoint is None else _read_sizes(state_dict, checkpoint)
    resolved = {}
    for name, default in _defaults(options, llama, new=checkpoint is None).items():
        option = getattr(options, name, None)
        key, value_type = _STORED.get(name, (name, object))
        stored = checkpoint_config.get(key) if name in _STORED else None
        if name in sizes and option is not None:
            raise UserError(f"{options.flag(name)}: {checkpoint} determines it; omit this option or --checkpoint")
        if name in sizes:
            resolved[name] = Setting(sizes[name], _CHECKPOINT)
        elif option is not None:
            resolved[name] = Setting(option, _COMMAND_LINE)
        elif stored is not None:
            if isinstance(stored, bool) or not isinstance(stored, int | float if value_type is float else value_type):
                raise UserError(f"the configuration in {checkpoint} has {key}={stored!r}, not {value_type.__name__}")
            resolved[name] = Setting(value_type(stored), _CHECKPOINT)
        else:
            resolved[name] = default
    return resolved


def _defaults(options: SalmonnOptions, llama: LlamaConfig, *, new: bool) -> dict[str, Setting]:
    """Returns the default of each setting.

    They are those of the original, with two exceptions for a model to be trained (`new`). The Q-Former is not wider
    than the language model: its hidden size is the largest multiple of 64 that is at most `llama.hidden_size` and at
    most 768, with heads of 64 and a feed-forward network of four times its size. And the LoRA scale alpha / rank stays
    that of the original, 4, if a rank is given.
    """
    qformer, lora = QFormerConfig(), LoraConfig()
    defaults = {
        "qformer_hidden_size": Setting(qformer.hidden_size, _ORIGINAL),
        "qformer_num_hidden_layers": Setting(qformer.num_hidden_layers, _ORIGINAL),
        "qformer_num_attention_heads": Setting(qformer.num_attention_heads, _ORIGINAL),
        "qformer_intermediate_size": Setting(qformer.intermediate_size, _ORIGINAL),
        "num_speech_query_token": Setting(qformer.num_speech_query_token, _ORIGINAL),
        "second_per_window": Setting(qformer.second_per_window, _ORIGINAL),
        "second_stride": Setting(qformer.second_stride, _ORIGINAL),
        "lora_rank": Setting(lora.rank, _ORIGINAL),
        "lora_alpha": Setting(lora.alpha, _ORIGINAL),
        "lora_target_modules": Setting(lora.target_modules, _ORIGINAL),
        "lora_dropout": Setting(lora.dropout, _ORIGINAL),
        # The original's [PAD] is a class of its loss. A new model has none.
        "pad_classes": Setting(0, "default of a model to be trained") if new else Setting(1, _ORIGINAL),
    }
    if not new:
        return defaults
    hidden_size = options.qformer_hidden_size
    if hidden_size is None:
        hidden_size = min(qformer.hidden_size, max(1, llama.hidden_size // HEAD_SIZE) * HEAD_SIZE)
    derived = {
        "qformer_hidden_size": (hidden_size, f"default for an LLM with hidden_size={llama.hidden_size}"),
        "qformer_num_attention_heads": (
            max(1, hidden_size // HEAD_SIZE),
            "default: one head per 64 of the hidden size",
        ),
        "qformer_intermediate_size": (4 * hidden_size, "default: 4 times the hidden size"),
        "lora_alpha": (
            lora.scale * (lora.rank if options.lora_rank is None else options.lora_rank),
            "default: 4 times the rank",
        ),
    }
    for name, (value, origin) in derived.items():
        if value != defaults[name].value:
            defaults[name] = Setting(value, origin)
    return defaults


def _read_sizes(state_dict: tensors.LazyStateDict, path: pathlib.Path) -> dict[str, Any]:
    """Returns the settings that the tensors of a checkpoint determine, by name."""
    layer = "speech_Qformer.bert.encoder.layer."
    intermediate_size, hidden_size = tensor_shape(state_dict, f"{layer}0.intermediate_query.dense.weight", path, 2)
    ranks = {name.split(".")[-4]: tensor.shape[0] for name, tensor in state_dict.items() if ".lora_A." in name}
    return {
        "qformer_hidden_size": hidden_size,
        "qformer_intermediate_size": intermediate_size,
        "qformer_num_hidden_layers": len(
            {name.removeprefix(layer).split(".")[0] for name in state_dict if name.startswith(layer)}
        ),
        "num_speech_query_token": tensor_shape(state_dict, "speech_query_tokens", path, 3)[1],
        "lora_target_modules": tuple(sorted(ranks)),
        **({"lora_rank": max(ranks.values())} if ranks else {}),  # the original's `lora: False` has no rank
    }


def qformer_config(settings: Mapping[str, Setting], audio_window_seconds: float) -> QFormerConfig:
    """Returns the Q-Former's configuration.

    Args:
      settings: result of `resolve_settings`.
      audio_window_seconds: length of the encoder input in seconds.

    Raises:
      UserError: a value is not valid, or a window is longer than the encoder input.
    """
    values = {name.removeprefix("qformer_"): settings[name].value for name in settings if name.startswith("qformer_")}
    for name in ("num_speech_query_token", "second_per_window", "second_stride"):
        values[name] = settings[name].value
    config = from_dict(QFormerConfig, values, path_prefix="Q-Former: ")
    if config.window_frames > round(50 * audio_window_seconds):
        raise UserError(
            f"--second-per-window {config.second_per_window}: must be <= {audio_window_seconds:g}, the seconds that "
            "Whisper encodes"
        )
    return config


def lora_config(settings: Mapping[str, Setting], llama: LlamaConfig) -> LoraConfig:
    """Returns the adapters' configuration.

    Args:
      settings: result of `resolve_settings`.
      llama: configuration of the language model.

    Raises:
      UserError: a value is not valid, or the rank exceeds the size of the language model.
    """
    names = ("rank", "alpha", "dropout", "target_modules")
    config = from_dict(LoraConfig, {name: settings[f"lora_{name}"].value for name in names}, path_prefix="LoRA: ")
    if config.target_modules and config.rank > llama.hidden_size:
        raise UserError(f"LoRA: rank={config.rank}: must be at most {llama.hidden_size}, the hidden size of the LLM")
    return config


def tensor_shape(state_dict: tensors.LazyStateDict, name: str, path: pathlib.Path, ndim: int) -> tuple[int, ...]:
    """Returns the shape of a tensor. Raises UserError if the checkpoint does not have it, or has not `ndim` axes."""
    if name not in state_dict:
        raise UserError(f"{path} is not a SALMONN checkpoint: it has no {name}")
    shape = state_dict[name].shape
    if len(shape) != ndim:
        raise UserError(f"{path} is not a SALMONN checkpoint: {name} has the shape {list(shape)}, not {ndim} axes")
    return shape

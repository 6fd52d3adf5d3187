"""Settings of a converted SALMONN that the tensors do not determine, used by `to_jax.plan_salmonn`."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, Literal

from salmonn_jax.config import LoraConfig, ModelConfig, QFormerConfig, from_dict
from salmonn_jax.conversion import tensors
from salmonn_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class SalmonnOptions:
    """Settings that cannot be read from the tensors of a SALMONN checkpoint.

    A field that is None gets the value in the checkpoint's `config`, or the original's default if it has none.

    Attributes:
      num_attention_heads: attention heads of the Q-Former.
      second_per_window: length of a Q-Former window in seconds.
      second_stride: distance between the starts of two Q-Former windows in seconds.
      lora_alpha: numerator of the LoRA scale `alpha / rank`.
      prompt_template: template with `{}` in place of the prompt.
      audio_tokens: audio tokens that the language model reads: of the whole "window", as in the original, or of the
        "clip" only.
    """

    num_attention_heads: int | None = None
    second_per_window: float | None = None
    second_stride: float | None = None
    lora_alpha: float | None = None
    prompt_template: str | None = None
    audio_tokens: Literal["window", "clip"] = "window"


# Name of a field in `SalmonnOptions` and in a checkpoint's `config`: its type, and the default of the original.
_CHECKPOINT_OPTIONS = {
    "num_attention_heads": (int, 12),
    "second_per_window": (float, 0.333333),
    "second_stride": (float, 0.333333),
    "lora_alpha": (float, 32.0),
    "prompt_template": (str, ModelConfig().prompt_template),
}


def resolve_options(
    options: SalmonnOptions, checkpoint_config: Mapping[str, Any], path: pathlib.Path | None
) -> dict[str, tuple[Any, str]]:
    """Returns the value of each option and its origin. `checkpoint_config` is the configuration in the checkpoint."""
    resolved = {}
    for name, (option_type, default) in _CHECKPOINT_OPTIONS.items():
        option, stored = getattr(options, name), checkpoint_config.get(name)
        if option is not None:
            resolved[name] = (option, "the command line")
        elif stored is not None:
            if not isinstance(stored, option_type | int if option_type is float else option_type):
                raise UserError(f"the configuration in {path} has {name}={stored!r}, not {option_type.__name__}")
            resolved[name] = (option_type(stored), "the checkpoint")
        else:
            resolved[name] = (default, "the original's default")
    return resolved


def qformer_config(
    state_dict: tensors.LazyStateDict,
    options: Mapping[str, Any],
    audio_window_seconds: float,
    path: pathlib.Path | None,
) -> QFormerConfig:
    """Returns the Q-Former's configuration. Sizes come from the tensors, or are the original's if there are none."""
    names = ("num_attention_heads", "second_per_window", "second_stride")
    values = {name: options[name] for name in names}
    if state_dict:
        layer = "speech_Qformer.bert.encoder.layer."
        intermediate_size, hidden_size = tensor_shape(state_dict, f"{layer}0.intermediate_query.dense.weight", path)
        layers = {name.removeprefix(layer).split(".")[0] for name in state_dict if name.startswith(layer)}
        values |= {
            "hidden_size": hidden_size,
            "intermediate_size": intermediate_size,
            "num_hidden_layers": len(layers),
            "num_speech_query_token": tensor_shape(state_dict, "speech_query_tokens", path)[1],
        }
    config = from_dict(QFormerConfig, values, path_prefix="Q-Former: ")
    if config.window_frames > round(50 * audio_window_seconds):
        raise UserError(
            f"--second-per-window {config.second_per_window}: must be <= {audio_window_seconds:g}, the seconds that "
            "Whisper encodes"
        )
    return config


def lora_config(state_dict: tensors.LazyStateDict, alpha: float, checkpoint_config: dict[str, Any]) -> LoraConfig:
    """Returns the adapters' configuration. It comes from the tensors, or is the original's if there are none."""
    if not state_dict:
        return LoraConfig(alpha=alpha)
    ranks = {name.split(".")[-4]: tensor.shape[0] for name, tensor in state_dict.items() if ".lora_A." in name}
    if not ranks:  # the original's `lora: False`
        return LoraConfig(alpha=alpha, target_modules=())
    dropout = float(checkpoint_config.get("lora_dropout", LoraConfig().dropout))
    return LoraConfig(rank=max(ranks.values()), alpha=alpha, dropout=dropout, target_modules=tuple(sorted(ranks)))


def tensor_shape(state_dict: tensors.LazyStateDict, name: str, path: pathlib.Path) -> tuple[int, ...]:
    """Returns the shape of a tensor. Raises UserError if the checkpoint does not have it."""
    if name not in state_dict:
        raise UserError(f"{path} is not a SALMONN checkpoint: it has no {name}")
    return state_dict[name].shape

"""Settings of decoding as compiled programs use them: constants of a program, and numbers that are its inputs."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from salmonn_jax.config import GenerationConfig


class DecodingOptions(NamedTuple):
    """Settings of which each combination is a compiled program. The other fields are those of `GenerationConfig`."""

    num_beams: int
    max_new_tokens: int
    early_stopping: bool | str
    do_sample: bool
    penalises_repetition: bool  # whether the repetition penalty is not 1
    counts_start_token: bool  # whether a start token that precedes the new tokens counts, as in transformers 4.28
    uses_adapters: bool  # False leaves the adapters out
    text_only_off: bool  # whether prompts without audio do not use the adapters
    stop_token_ids: tuple[int, ...]
    start_token_id: int | None  # token that the repetition penalty also sees if `counts_start_token`
    pad_classes: int  # see `salmonn_jax.config.ModelConfig`


class DecodingNumbers(NamedTuple):
    """Settings that are scalar inputs of a compiled program. Names are those of `GenerationConfig`."""

    lora_scale: Array  # float32 scalar or float32[layers], multiplier included
    min_length: Array  # int32
    length_penalty: Array  # float32
    repetition_penalty: Array  # float32
    temperature: Array  # float32
    top_k: Array  # int32; 0 for all tokens
    top_p: Array  # float32


def decoding_options(
    config: GenerationConfig,
    *,
    stop_token_ids: tuple[int, ...],
    start_token_id: int | None,
    lora_scale: float = 1.0,
    pad_classes: int = 0,
) -> tuple[DecodingOptions, DecodingNumbers]:
    """Divides settings into constants and inputs of a compiled program.

    Args:
      config: settings of decoding.
      stop_token_ids: tokens that end an answer.
      start_token_id: start token of the tokenizer; None if it has none.
      lora_scale: scale of the adapters, without the multiplier.
      pad_classes: see `salmonn_jax.config.ModelConfig`.
    """
    options = DecodingOptions(
        num_beams=config.num_beams,
        max_new_tokens=config.max_new_tokens,
        early_stopping=config.early_stopping,
        do_sample=config.do_sample,
        penalises_repetition=config.repetition_penalty != 1.0,
        counts_start_token=config.compat == "hf4.28",
        uses_adapters=any(config.lora_multipliers),
        text_only_off=config.lora_gate == "text_only_off",
        stop_token_ids=stop_token_ids,
        start_token_id=start_token_id,
        pad_classes=pad_classes,
    )
    numbers = DecodingNumbers(
        lora_scale=jnp.float32(lora_scale * np.array(config.lora_multiplier)),
        min_length=jnp.int32(config.min_length),
        length_penalty=jnp.float32(config.length_penalty),
        repetition_penalty=jnp.float32(config.repetition_penalty),
        temperature=jnp.float32(config.temperature),
        top_k=jnp.int32(config.top_k),
        top_p=jnp.float32(config.top_p),
    )
    return options, numbers

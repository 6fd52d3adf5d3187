"""Embedded prompts of the golden sets, and random ones, for tests of the decoder."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from salmonn_jax.config import GenerationConfig
from salmonn_jax.decoding.decoder import DecodeResult, EmbeddedPrompts, PromptBatch, decode, embed_prompts
from salmonn_jax.decoding.options import decoding_options
from salmonn_jax.models.llama import Llama
from salmonn_jax.prompts import TEXT_SLOT
from tests.golden import GoldenSet

_embed_prompts = jax.jit(embed_prompts)
_decode = jax.jit(decode, static_argnames=("options", "mesh"))


@functools.cache
def golden_prompts(golden_set: GoldenSet) -> EmbeddedPrompts:
    """Returns the prompts of the three clips, each at its own length and padded to the longest."""
    batch = golden_set.unpadded_batch()
    prompt = (batch.segments > 0) & ~batch.loss_mask
    length = prompt.sum(axis=1, dtype=np.int32)
    tokens = np.where(prompt & (batch.audio_slot == TEXT_SLOT), batch.tokens, 0)[:, : length.max()]
    slot = np.where(prompt, batch.audio_slot, TEXT_SLOT)[:, : length.max()]
    keys = np.zeros((len(length), 2), np.uint32)
    return _embed_prompts(golden_set.model_with_pad, PromptBatch(*golden_set.clips, tokens, slot, length, keys))


def take_rows(prompts: EmbeddedPrompts, rows: Sequence[int]) -> EmbeddedPrompts:
    """Returns a batch of some of the prompts."""
    return EmbeddedPrompts(*(jnp.asarray(field)[jnp.array(rows)] for field in prompts))


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer to one prompt."""

    ids: list[int]
    score: float


def decode_prompts(
    llama: Llama,
    prompts: EmbeddedPrompts,
    config: GenerationConfig,
    *,
    stop_token_ids: tuple[int, ...] = (2,),
    start_token_id: int | None = 1,
    lora_scale: float = 1.0,
    pad_classes: int = 0,
) -> list[Answer]:
    """Returns the answer to each prompt. The arguments are those of `decoding_options`."""
    options, numbers = decoding_options(
        config,
        stop_token_ids=stop_token_ids,
        start_token_id=start_token_id,
        lora_scale=lora_scale,
        pad_classes=pad_classes,
    )
    result: DecodeResult = jax.device_get(_decode(llama, prompts, numbers, options=options))
    return [
        Answer(tokens[:length].tolist(), float(score))
        for tokens, length, score in zip(result.tokens, result.length, result.score, strict=True)
    ]

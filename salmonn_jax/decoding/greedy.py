"""Greedy decoding with a KV cache, for batches of unequal prompts."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from salmonn_jax.models.llama import KVCache, causal_mask, log_probabilities
from salmonn_jax.models.salmonn import Salmonn


class PromptBatch(NamedTuple):
    """Rows of prompts, padded at the end, with their clips (the fields of `salmonn_jax.batch.Batch`)."""

    pcm: Array  # int16[A,N]
    pcm_length: Array  # int32[A]
    tokens: Array  # int32[R,S]
    audio_slot: Array  # int32[R,S]
    prompt_length: Array  # int32[R] tokens of each prompt


class DecodeResult(NamedTuple):
    """What was decoded."""

    tokens: Array  # int32[R,max_new_tokens]; after a row's end, its end token
    length: Array  # int32[R] tokens of the row, the end token included
    finished: Array  # bool[R] whether the row ended by itself
    score: Array  # float32[R] sum of the log-probabilities of its tokens


class DecodeState(NamedTuple):
    """Rows in the middle of being decoded."""

    step: Array  # int32 scalar: tokens written
    tokens: Array  # int32[R,max_new_tokens]
    score: Array
    finished: Array
    next_logits: Array  # float32[R,V] logits of the token to be chosen
    cache: KVCache


def prefill(
    model: Salmonn, prompts: PromptBatch, *, max_new_tokens: int, eos_token_id: int, lora_scale: Array | float | None
) -> DecodeState:
    """Hears the clips and reads the prompts: everything before the first token. Traceable."""
    rows, width = prompts.tokens.shape
    own = _prompt_mask(prompts)
    x = model.merge_audio_tokens(
        prompts.tokens, prompts.audio_slot, model.encode_audio(prompts.pcm, prompts.pcm_length)
    )
    cache = model.llama.empty_cache(rows, width + max_new_tokens, model.dtype)
    mask = jnp.pad(causal_mask(own.astype(jnp.int32)), ((0, 0), (0, 0), (0, max_new_tokens)))
    positions = jnp.broadcast_to(jnp.arange(width), (rows, width))
    hidden, cache = model.llama(x, positions, mask, lora_scale=lora_scale, cache=cache)
    last = jnp.take_along_axis(hidden, (prompts.prompt_length - 1)[:, None, None], axis=1)[:, 0]
    return DecodeState(
        jnp.zeros((), jnp.int32),
        jnp.full((rows, max_new_tokens), eos_token_id, jnp.int32),
        jnp.zeros(rows, jnp.float32),
        jnp.zeros(rows, bool),
        model.llama.logits(last),
        cache,
    )


def decode_step(
    model: Salmonn, prompts: PromptBatch, state: DecodeState, *, eos_token_id: int, lora_scale: Array | float | None
) -> DecodeState:
    """Chooses the next token of every row and reads it. Traceable."""
    width = prompts.tokens.shape[1]
    slots = jnp.arange(width + state.tokens.shape[1])
    log_probability = log_probabilities(state.next_logits, model.config.pad_classes)
    chosen = jnp.where(state.finished, eos_token_id, state.next_logits.argmax(-1)).astype(jnp.int32)
    gained = jnp.take_along_axis(log_probability, chosen[:, None], axis=1)[:, 0]
    # All rows write slot width + step; what differs between them is the position the token is rotated to.
    readable = jnp.pad(_prompt_mask(prompts), ((0, 0), (0, state.tokens.shape[1])))
    seen = readable | ((slots >= width) & (slots <= width + state.step))
    hidden, cache = model.llama(
        model.llama.embed(chosen[:, None]).astype(model.dtype),
        (prompts.prompt_length + state.step)[:, None],
        seen[:, None],
        lora_scale=lora_scale,
        cache=state.cache,
    )
    return DecodeState(
        state.step + 1,
        state.tokens.at[:, state.step].set(chosen),
        state.score + jnp.where(state.finished, 0.0, gained),
        state.finished | (chosen == eos_token_id),
        model.llama.logits(hidden[:, 0]),
        cache,
    )


def generate(
    model: Salmonn, prompts: PromptBatch, *, max_new_tokens: int, eos_token_id: int, lora_scale: Array | float | None
) -> DecodeResult:
    """Decodes each row until it emits `end` or has `max_new_tokens`. Traceable; stops when all rows have ended.

    Rows are independent of each other: a row's positions run on from its own prompt, and the slots of the cache that
    hold padding are never attended to.
    """
    state = jax.lax.while_loop(
        lambda state: (state.step < max_new_tokens) & ~state.finished.all(),
        lambda state: decode_step(model, prompts, state, eos_token_id=eos_token_id, lora_scale=lora_scale),
        prefill(model, prompts, max_new_tokens=max_new_tokens, eos_token_id=eos_token_id, lora_scale=lora_scale),
    )
    written = jnp.arange(max_new_tokens) < state.step
    ended = (state.tokens == eos_token_id) & written
    length = jnp.where(ended.any(axis=1), ended.argmax(axis=1) + 1, state.step)
    return DecodeResult(state.tokens, length, state.finished, state.score)


def _prompt_mask(prompts: PromptBatch) -> Array:
    """bool[R,S]: tokens of the prompts, as opposed to padding."""
    return jnp.arange(prompts.tokens.shape[1]) < prompts.prompt_length[:, None]

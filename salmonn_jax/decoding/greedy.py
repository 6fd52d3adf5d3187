"""Greedy decoding with a KV cache, for batches of unequal prompts."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from salmonn_jax.models.llama import KVCache, causal_mask, log_probabilities
from salmonn_jax.models.salmonn import Salmonn


class Prompts(NamedTuple):
    """Rows of prompts, padded at the end, with their clips (the fields of `salmonn_jax.batch.Batch`)."""

    pcm: Array  # int16[A,N]
    pcm_length: Array  # int32[A]
    tokens: Array  # int32[R,S]
    audio_slot: Array  # int32[R,S]
    length: Array  # int32[R] tokens of each prompt


class Decoded(NamedTuple):
    """What was decoded."""

    tokens: Array  # int32[R,max_new_tokens]; after a row's end, its end token
    length: Array  # int32[R] tokens of the row, the end token included
    finished: Array  # bool[R] whether the row ended by itself
    score: Array  # float32[R] sum of the log-probabilities of its tokens


class _Carry(NamedTuple):
    step: Array  # int32 scalar: tokens written
    tokens: Array
    score: Array
    finished: Array
    next: Array  # float32[R,V] logits of the token to be chosen
    cache: KVCache


def generate(
    model: Salmonn, prompts: Prompts, *, max_new_tokens: int, end: int, lora_scale: Array | float | None
) -> Decoded:
    """Decodes each row until it emits `end` or has `max_new_tokens`. Traceable; stops when all rows have ended.

    Rows are independent of each other: a row's positions run on from its own prompt, and the slots of the cache that
    hold padding are never attended to.
    """
    rows, width = prompts.tokens.shape
    place = jnp.arange(width)
    own = place < prompts.length[:, None]
    x = model.splice(prompts.tokens, prompts.audio_slot, model.encode_audio(prompts.pcm, prompts.pcm_length))
    cache = model.llama.empty_cache(rows, width + max_new_tokens, model.dtype)
    mask = jnp.pad(causal_mask(own.astype(jnp.int32)), ((0, 0), (0, 0), (0, max_new_tokens)))
    positions = jnp.broadcast_to(place, (rows, width))
    hidden, cache = model.llama(x, positions, mask, lora_scale=lora_scale, cache=cache)
    last = jnp.take_along_axis(hidden, (prompts.length - 1)[:, None, None], axis=1)[:, 0]

    slots = jnp.arange(width + max_new_tokens)
    readable = jnp.pad(own, ((0, 0), (0, max_new_tokens)))

    def going_on(carry: _Carry) -> Array:
        return (carry.step < max_new_tokens) & ~carry.finished.all()

    def step(carry: _Carry) -> _Carry:
        log_probability = log_probabilities(carry.next, model.config.pad_classes)
        chosen = jnp.where(carry.finished, end, carry.next.argmax(-1)).astype(jnp.int32)
        gained = jnp.take_along_axis(log_probability, chosen[:, None], axis=1)[:, 0]
        # All rows write slot width + step; what differs between them is the position the token is rotated to.
        seen = readable | ((slots >= width) & (slots <= width + carry.step))
        hidden, cache = model.llama(
            model.llama.embed(chosen[:, None]).astype(model.dtype),
            (prompts.length + carry.step)[:, None],
            seen[:, None],
            lora_scale=lora_scale,
            cache=carry.cache,
        )
        return _Carry(
            carry.step + 1,
            carry.tokens.at[:, carry.step].set(chosen),
            carry.score + jnp.where(carry.finished, 0.0, gained),
            carry.finished | (chosen == end),
            model.llama.logits(hidden[:, 0]),
            cache,
        )

    start = _Carry(
        jnp.zeros((), jnp.int32),
        jnp.full((rows, max_new_tokens), end, jnp.int32),
        jnp.zeros(rows, jnp.float32),
        jnp.zeros(rows, bool),
        model.llama.logits(last),
        cache,
    )
    carry = jax.lax.while_loop(going_on, step, start)
    written = jnp.arange(max_new_tokens) < carry.step
    ended = (carry.tokens == end) & written
    length = jnp.where(ended.any(axis=1), ended.argmax(axis=1) + 1, carry.step)
    return Decoded(carry.tokens, length, carry.finished, carry.score)

"""Greedy decoding with a KV cache, for batches of prompts with different lengths.

`salmonn_jax.api` uses `generate`; planning compiles `prefill` and `decode_step` separately.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from salmonn_jax.models.llama import KVCache, causal_mask, log_probabilities
from salmonn_jax.models.salmonn import Salmonn


class PromptBatch(NamedTuple):
    """Prompts with their clips, one per row and padded at the end. Fields are those of `salmonn_jax.batch.Batch`."""

    pcm: Array  # int16[clips, samples]
    pcm_length: Array  # int32[clips]
    tokens: Array  # int32[rows, seq]
    audio_slot: Array  # int32[rows, seq]
    prompt_length: Array  # int32[rows] tokens of each prompt


class DecodeResult(NamedTuple):
    """Decoded tokens and their scores."""

    tokens: Array  # int32[rows, new_tokens], padded with the first stop token
    length: Array  # int32[rows] tokens of each row, the stop token included
    finished: Array  # bool[rows] whether the row has a stop token
    score: Array  # float32[rows] sum of the log-probabilities of the tokens


class DecodeState(NamedTuple):
    """State of decoding between two steps."""

    step: Array  # int32 scalar: tokens decoded so far
    tokens: Array  # int32[rows, new_tokens]
    score: Array  # float32[rows], see `DecodeResult`
    finished: Array  # bool[rows], see `DecodeResult`
    next_logits: Array  # float32[rows, vocab] logits of the next token
    cache: KVCache  # its slots are those of the prompt and of the new tokens


def prefill(
    model: Salmonn,
    prompts: PromptBatch,
    *,
    max_new_tokens: int,
    stop_token_ids: tuple[int, ...],
    lora_scale: Array | float | None,
) -> DecodeState:
    """Encodes the clips and runs the language model on the prompts. It can be traced by JAX.

    Args:
      model: the model.
      prompts: prompts and clips.
      max_new_tokens: cache slots reserved for decoded tokens.
      stop_token_ids: the output is initialised with the first of these tokens.
      lora_scale: factor of the adapters; None leaves the adapters out.
    """
    num_rows, prompt_slots = prompts.tokens.shape
    prompt_mask = _prompt_mask(prompts)
    x = model.merge_audio_tokens(
        prompts.tokens, prompts.audio_slot, model.encode_audio(prompts.pcm, prompts.pcm_length)
    )
    cache = model.llama.empty_cache(num_rows, prompt_slots + max_new_tokens, model.dtype)
    mask = jnp.pad(causal_mask(prompt_mask.astype(jnp.int32)), ((0, 0), (0, 0), (0, max_new_tokens)))
    positions = jnp.broadcast_to(jnp.arange(prompt_slots), (num_rows, prompt_slots))
    hidden, cache = model.llama(x, positions, mask, lora_scale=lora_scale, cache=cache)
    last = jnp.take_along_axis(hidden, (prompts.prompt_length - 1)[:, None, None], axis=1)[:, 0]
    return DecodeState(
        jnp.zeros((), jnp.int32),
        jnp.full((num_rows, max_new_tokens), stop_token_ids[0], jnp.int32),
        jnp.zeros(num_rows, jnp.float32),
        jnp.zeros(num_rows, bool),
        model.llama.logits(last),
        cache,
    )


def decode_step(
    model: Salmonn,
    prompts: PromptBatch,
    state: DecodeState,
    *,
    stop_token_ids: tuple[int, ...],
    lora_scale: Array | float | None,
) -> DecodeState:
    """Selects the next token of every row and runs the language model on it. It can be traced by JAX.

    Args:
      model: the model.
      prompts: the prompts that `prefill` got.
      state: state after the previous step.
      stop_token_ids: tokens that finish a row; finished rows are padded with the first of them.
      lora_scale: factor of the adapters; None leaves the adapters out.
    """
    prompt_slots = prompts.tokens.shape[1]
    slots = jnp.arange(prompt_slots + state.tokens.shape[1])
    log_probability = log_probabilities(state.next_logits, model.config.pad_classes)
    next_token = jnp.where(state.finished, stop_token_ids[0], state.next_logits.argmax(-1)).astype(jnp.int32)
    token_log_probability = jnp.take_along_axis(log_probability, next_token[:, None], axis=1)[:, 0]
    # All rows write the same cache slot, prompt_slots + step. Their rotary positions differ: each row continues from
    # the length of its own prompt.
    prompt_mask = jnp.pad(_prompt_mask(prompts), ((0, 0), (0, state.tokens.shape[1])))
    attention_mask = prompt_mask | ((slots >= prompt_slots) & (slots <= prompt_slots + state.step))
    hidden, cache = model.llama(
        model.llama.embed(next_token[:, None]).astype(model.dtype),
        (prompts.prompt_length + state.step)[:, None],
        attention_mask[:, None],
        lora_scale=lora_scale,
        cache=state.cache,
    )
    return DecodeState(
        state.step + 1,
        state.tokens.at[:, state.step].set(next_token),
        state.score + jnp.where(state.finished, 0.0, token_log_probability),
        state.finished | jnp.isin(next_token, jnp.array(stop_token_ids)),
        model.llama.logits(hidden[:, 0]),
        cache,
    )


def generate(
    model: Salmonn,
    prompts: PromptBatch,
    *,
    max_new_tokens: int,
    stop_token_ids: tuple[int, ...],
    lora_scale: Array | float | None,
) -> DecodeResult:
    """Decodes all rows until each has emitted a stop token or `max_new_tokens` tokens. It can be traced by JAX.

    Rows do not affect each other: the positions of a row continue from its own prompt, and cache slots with padding are
    masked.

    Args:
      model: the model.
      prompts: prompts and clips.
      max_new_tokens: maximum number of decoded tokens per row.
      stop_token_ids: tokens that end an answer.
      lora_scale: factor of the adapters; None leaves the adapters out.
    """
    state = jax.lax.while_loop(
        lambda state: (state.step < max_new_tokens) & ~state.finished.all(),
        lambda state: decode_step(model, prompts, state, stop_token_ids=stop_token_ids, lora_scale=lora_scale),
        prefill(model, prompts, max_new_tokens=max_new_tokens, stop_token_ids=stop_token_ids, lora_scale=lora_scale),
    )
    is_decoded = jnp.arange(max_new_tokens) < state.step
    is_stop_token = jnp.isin(state.tokens, jnp.array(stop_token_ids)) & is_decoded
    length = jnp.where(is_stop_token.any(axis=1), is_stop_token.argmax(axis=1) + 1, state.step)
    return DecodeResult(state.tokens, length, state.finished, state.score)


def _prompt_mask(prompts: PromptBatch) -> Bool[Array, "rows seq"]:
    """Returns a mask, true for tokens of the prompts and false for padding."""
    return jnp.arange(prompts.tokens.shape[1]) < prompts.prompt_length[:, None]

"""Decoding with a KV cache, for batches of prompts with different lengths: greedy, sampling and beam search.

`salmonn_jax.api` uses `embed_prompts` and `decode`. Planning compiles `prefill` and `decode_step` separately. All
functions can be traced by JAX.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float32, Int32

from salmonn_jax.decoding.logits import apply_penalties, sample
from salmonn_jax.decoding.options import DecodingNumbers, DecodingOptions
from salmonn_jax.decoding.search import SearchState, advance_beams, append_tokens, initial_state
from salmonn_jax.models.llama import KeysAndValues, Llama, causal_mask, log_probabilities
from salmonn_jax.models.salmonn import Salmonn

ROW_AXES = ("data", "fsdp")  # mesh axes over which rows are split


class PromptBatch(NamedTuple):
    """Prompts with their clips, one per row and padded at the end. Fields are those of `salmonn_jax.batch.Batch`."""

    pcm: Array  # int16[clips, samples]
    pcm_length: Array  # int32[clips]
    tokens: Array  # int32[rows, seq]
    audio_slot: Array  # int32[rows, seq]
    prompt_length: Array  # int32[rows] tokens of each prompt
    random_key: Array  # uint32[rows, 2] random numbers of each request, for sampling


class EmbeddedPrompts(NamedTuple):
    """Prompts as the language model reads them. Padding follows the prompt of a row."""

    embeddings: Array  # float[rows, seq, hidden]
    length: Array  # int32[rows] tokens of each prompt
    random_key: Array  # uint32[rows, 2], see `PromptBatch`
    has_audio: Array  # bool[rows] whether the prompt has a clip


class DecodeResult(NamedTuple):
    """The best answer to each prompt."""

    tokens: Array  # int32[rows, new_tokens], padded with the first stop token
    length: Array  # int32[rows] tokens of each answer, the stop token included
    score: Array  # float32[rows] see `salmonn_jax.decoding.answers.Generation`


class DecodeState(NamedTuple):
    """State of decoding between two steps."""

    step: Array  # int32 scalar: tokens decoded so far
    search: SearchState
    cache: KeysAndValues


def embed_prompts(model: Salmonn, prompts: PromptBatch) -> EmbeddedPrompts:
    """Encodes the clips and inserts their audio tokens into the embedded prompts."""
    audio_tokens = model.encode_audio(prompts.pcm, prompts.pcm_length)
    embeddings = model.merge_audio_tokens(prompts.tokens, prompts.audio_slot, audio_tokens)
    has_audio = (prompts.audio_slot >= 0).any(axis=1)
    return EmbeddedPrompts(embeddings, prompts.prompt_length, prompts.random_key, has_audio)


def decode(
    llama: Llama,
    prompts: EmbeddedPrompts,
    numbers: DecodingNumbers,
    *,
    options: DecodingOptions,
    mesh: Mesh | None = None,
) -> DecodeResult:
    """Decodes all rows until the search of each has ended.

    Rows do not affect each other: the positions of a row continue from its own prompt, padding of prompts is masked,
    and each row has its own search.

    Args:
      llama: the language model.
      prompts: the prompts.
      numbers: inputs of the program.
      options: constants of the program.
      mesh: device mesh over which the KV cache is split; None for one device.
    """
    state = jax.lax.while_loop(
        lambda state: ~state.search.done.all(),
        lambda state: decode_step(llama, prompts, state, numbers, options=options, mesh=mesh),
        prefill(llama, prompts, numbers, options=options, mesh=mesh),
    )
    search = state.search
    return DecodeResult(search.finished_tokens[:, 0], search.finished_length[:, 0], search.finished_score[:, 0])


def prefill(
    llama: Llama,
    prompts: EmbeddedPrompts,
    numbers: DecodingNumbers,
    *,
    options: DecodingOptions,
    mesh: Mesh | None = None,
) -> DecodeState:
    """Runs the language model on the prompts and selects the first tokens. Arguments are those of `decode`."""
    num_rows, seq_len, _ = prompts.embeddings.shape
    positions = jnp.broadcast_to(jnp.arange(seq_len), (num_rows, seq_len))
    mask = causal_mask(_prompt_mask(prompts).astype(jnp.int32))
    hidden, cache = llama.prefill(
        prompts.embeddings,
        positions,
        mask,
        lora_scale=_lora_scale(numbers, options),
        num_free=_num_slots(options),
        adapted=_adapted(prompts, options, seq_len),
    )
    last = jnp.take_along_axis(hidden, (prompts.length - 1)[:, None, None], axis=1)
    logits = jnp.repeat(llama.logits(last), options.num_beams, axis=1)
    search = _select(prompts, initial_state(num_rows, options), logits, 0, numbers, options, mesh)
    return _constrain_state(DecodeState(jnp.ones((), jnp.int32), search, cache), mesh)


def decode_step(
    llama: Llama,
    prompts: EmbeddedPrompts,
    state: DecodeState,
    numbers: DecodingNumbers,
    *,
    options: DecodingOptions,
    mesh: Mesh | None = None,
) -> DecodeState:
    """Runs the language model on the last tokens and selects the next ones.

    Args:
      llama: the language model.
      prompts: the prompts that `prefill` got.
      state: state after the previous step.
      numbers: see `decode`.
      options: see `decode`.
      mesh: see `decode`.
    """
    search, last = state.search, state.step - 1
    last_token = jax.lax.dynamic_index_in_dim(search.tokens, last, axis=2, keepdims=False)
    positions = jnp.broadcast_to((prompts.length + last)[:, None], last_token.shape)
    hidden, new = llama.decode(
        llama.embed(last_token).astype(prompts.embeddings.dtype),
        positions,
        state.cache,
        _cache_mask(prompts, search, last),
        lora_scale=_lora_scale(numbers, options),
        adapted=_adapted(prompts, options, options.num_beams),
    )
    slot = prompts.embeddings.shape[1] + last * options.num_beams
    cache = KeysAndValues(
        *(
            jax.lax.dynamic_update_slice_in_dim(old, added, slot, axis=3)
            for old, added in zip(state.cache, new, strict=True)
        )
    )
    search = _select(prompts, search, llama.logits(hidden), state.step, numbers, options, mesh)
    return _constrain_state(DecodeState(state.step + 1, search, cache), mesh)


def _select(
    prompts: EmbeddedPrompts,
    search: SearchState,
    logits: Float32[Array, "rows beams vocab"],
    step: Int32[Array, ""] | int,
    numbers: DecodingNumbers,
    options: DecodingOptions,
    mesh: Mesh | None,
) -> SearchState:
    """Selects the next token of every beam."""
    if mesh is not None:
        # Each device computes its part of the vocabulary; the logits are gathered, not the weights of the output layer.
        vocab_axis = "tensor" if logits.shape[-1] % mesh.shape["tensor"] == 0 else None
        for axis in (vocab_axis, None):
            spec = PartitionSpec(ROW_AXES, None, axis)
            logits = jax.lax.with_sharding_constraint(logits, NamedSharding(mesh, spec))
    log_probability = log_probabilities(logits, options.pad_classes)
    if options.num_beams > 1:
        log_probability = apply_penalties(log_probability, search.tokens, step, options, numbers)
        return advance_beams(search, log_probability, step, options, numbers)
    logits = apply_penalties(logits, search.tokens, step, options, numbers)[:, 0]
    if options.do_sample:
        next_token = sample(logits, prompts.random_key, step, numbers)
    else:
        next_token = logits.argmax(axis=-1).astype(jnp.int32)
    chosen = jnp.take_along_axis(log_probability[:, 0], next_token[:, None], axis=1)[:, 0]
    return append_tokens(search, next_token, chosen, step, options)


def _lora_scale(numbers: DecodingNumbers, options: DecodingOptions) -> Array | None:
    return numbers.lora_scale if options.uses_adapters else None


def _adapted(prompts: EmbeddedPrompts, options: DecodingOptions, num_tokens: int) -> Bool[Array, "rows _"] | None:
    """Returns the tokens of each row that use the adapters; None for all."""
    if not options.text_only_off:
        return None
    return jnp.broadcast_to(prompts.has_audio[:, None], (len(prompts.has_audio), num_tokens))


def _num_slots(options: DecodingOptions) -> int:
    """Returns the cache slots of a row's decoded tokens. The last token is never the model's input."""
    return max(options.max_new_tokens - 1, 1) * options.num_beams


def _prompt_mask(prompts: EmbeddedPrompts) -> Bool[Array, "rows seq"]:
    """Returns a mask, true for tokens of the prompts and false for padding."""
    return jnp.arange(prompts.embeddings.shape[1]) < prompts.length[:, None]


def _cache_mask(
    prompts: EmbeddedPrompts, search: SearchState, num_cached: Int32[Array, ""]
) -> Bool[Array, "rows beams keys"]:
    """Returns which keys of the prompt and which slots of decoded tokens belong to each beam.

    Args:
      prompts: the prompts.
      search: the running answers.
      num_cached: number of decoded tokens in the cache.
    """
    num_rows, num_beams, num_tokens = search.slots.shape
    prompt_mask = jnp.broadcast_to(_prompt_mask(prompts)[:, None], (num_rows, num_beams, prompts.embeddings.shape[1]))
    num_tokens = max(num_tokens - 1, 1)
    own_slot = search.slots[:, :, :num_tokens, None] == jnp.arange(num_beams)
    own_slot &= (jnp.arange(num_tokens) < num_cached)[:, None]
    return jnp.concatenate([prompt_mask, own_slot.reshape(num_rows, num_beams, -1)], axis=-1)


def state_shardings(state: DecodeState, mesh: Mesh) -> DecodeState:
    """Returns the sharding of every array of a state.

    Rows are split over the data axes, and the heads of the cache over `tensor` if it divides their number.
    """
    rows = NamedSharding(mesh, PartitionSpec(ROW_AXES))
    head_axis = "tensor" if state.cache.keys.shape[2] % mesh.shape["tensor"] == 0 else None
    cache = NamedSharding(mesh, PartitionSpec(None, ROW_AXES, head_axis))
    return DecodeState(
        NamedSharding(mesh, PartitionSpec()),
        jax.tree.map(lambda _: rows, state.search),
        jax.tree.map(lambda _: cache, state.cache),
    )


def _constrain_state(state: DecodeState, mesh: Mesh | None) -> DecodeState:
    """Shards a state over a mesh, if there is one."""
    return state if mesh is None else jax.lax.with_sharding_constraint(state, state_shardings(state, mesh))

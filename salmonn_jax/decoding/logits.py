"""Changes of the scores of next tokens: repetition penalty, minimum length, and the restrictions of sampling."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32

from salmonn_jax.decoding.options import DecodingNumbers, DecodingOptions


def apply_penalties(
    scores: Float32[Array, "rows beams vocab"],
    tokens: Int32[Array, "rows beams new_tokens"],
    step: Int32[Array, ""] | int,
    options: DecodingOptions,
    numbers: DecodingNumbers,
) -> Float32[Array, "rows beams vocab"]:
    """Applies the repetition penalty and forbids stop tokens before the minimum length.

    Args:
      scores: scores of next tokens: logits, or log-probabilities in a beam search. They are not normalised again.
      tokens: answers so far; the tokens from `step` on are not used.
      step: number of tokens so far.
      options: constants of the program.
      numbers: inputs of the program.
    """
    if options.penalises_repetition:
        scores = _penalise_repetition(scores, tokens, step, options, numbers.repetition_penalty)
    length = step + 1 if options.counts_start_token else step
    is_stop = jnp.zeros(scores.shape[-1], bool).at[jnp.array(options.stop_token_ids)].set(True)
    return jnp.where(is_stop & (length < numbers.min_length), -jnp.inf, scores)


def _penalise_repetition(
    scores: Float32[Array, "rows beams vocab"],
    tokens: Int32[Array, "rows beams new_tokens"],
    step: Int32[Array, ""] | int,
    options: DecodingOptions,
    penalty: Float32[Array, ""],
) -> Float32[Array, "rows beams vocab"]:
    """Divides positive scores of tokens that the answer has, and multiplies negative ones, by the penalty."""
    num_rows, num_beams, vocab_size = scores.shape
    row, beam = jnp.arange(num_rows)[:, None, None], jnp.arange(num_beams)[None, :, None]
    decoded = jnp.where(jnp.arange(tokens.shape[2]) < step, tokens, vocab_size)  # an index to be dropped
    seen = jnp.zeros(scores.shape, bool).at[row, beam, decoded].set(True, mode="drop")
    if options.counts_start_token and options.start_token_id is not None:
        seen = seen.at[:, :, options.start_token_id].set(True)
    return jnp.where(seen, jnp.where(scores < 0, scores * penalty, scores / penalty), scores)


def sample(
    logits: Float32[Array, "rows vocab"], keys: Array, step: Int32[Array, ""] | int, numbers: DecodingNumbers
) -> Int32[Array, " rows"]:
    """Draws the next token of every row with temperature, top-k and top-p, in this order.

    Args:
      logits: logits with penalties applied.
      keys: uint32[rows, 2], the random numbers of the requests. A draw depends on its own row only.
      step: number of tokens so far.
      numbers: inputs of the program.
    """
    logits = logits / numbers.temperature
    order = jnp.argsort(-logits, axis=-1)
    ordered = jnp.take_along_axis(logits, order, axis=-1)
    # An index outside the vocabulary would give NaN, and no token would be left.
    last = jnp.minimum(numbers.top_k, ordered.shape[-1]) - 1
    in_top_k = (numbers.top_k == 0) | (ordered >= jnp.take(ordered, last, axis=-1)[:, None])
    probabilities = jax.nn.softmax(jnp.where(in_top_k, ordered, -jnp.inf), axis=-1)
    more_probable = jnp.cumsum(probabilities, axis=-1) - probabilities  # probability of the tokens before each
    ordered = jnp.where(in_top_k & (more_probable < numbers.top_p), ordered, -jnp.inf)
    step_keys = jax.vmap(lambda key: jax.random.fold_in(jax.random.wrap_key_data(key, impl="threefry2x32"), step))(keys)
    rank = jax.vmap(jax.random.categorical)(step_keys, ordered)
    return jnp.take_along_axis(order, rank[:, None], axis=-1)[:, 0].astype(jnp.int32)

"""Search for the best answer: beam search as in transformers, and single answers of greedy decoding and sampling.

The functions know tokens and scores, not the model. `salmonn_jax.decoding.decoder` calls them once per decoded token.

transformers 4.28 (`BeamSearchScorer`) and 5 (`GenerationMixin._beam_search`) differ if the prompt is given as
embeddings. 4.28 puts a start token before the new tokens, which counts for answers that are cut at the limit and in the
rule that ends a search. In its last step it adds the running answers to the finished ones; 5 takes the best candidates
of that step, among which answers may end.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32

from salmonn_jax.decoding.options import DecodingNumbers, DecodingOptions

UNUSED = -1e9  # score that keeps a beam behind all others, as in transformers


class SearchState(NamedTuple):
    """Answers of all rows. The rows of a finished search do not change any more."""

    tokens: Array  # int32[rows, beams, new_tokens] running answers, best first
    score: Array  # float32[rows, beams] sum of the log-probabilities, penalties included, of running answers
    slots: Array  # int32[rows, beams, new_tokens] beam in whose cache slot each token of a running answer is
    finished_tokens: Array  # int32[rows, beams, new_tokens] finished answers, best first
    finished_score: Array  # float32[rows, beams] score with length penalty
    finished_length: Array  # int32[rows, beams] tokens of the answer; 0 if there is no answer
    done: Array  # bool[rows] whether the search of the row has ended


def initial_state(num_rows: int, options: DecodingOptions) -> SearchState:
    """Returns the state before the first token. Only the first beam is in use, so that beams are not equal."""
    num_beams = options.num_beams
    tokens = jnp.full((num_rows, num_beams, options.max_new_tokens), options.stop_token_ids[0], jnp.int32)
    return SearchState(
        tokens=tokens,
        score=jnp.full((num_rows, num_beams), UNUSED).at[:, 0].set(0.0),
        slots=jnp.zeros(tokens.shape, jnp.int32),
        finished_tokens=tokens,
        finished_score=jnp.full((num_rows, num_beams), -jnp.inf),
        finished_length=jnp.zeros((num_rows, num_beams), jnp.int32),
        done=jnp.zeros(num_rows, bool),
    )


def append_tokens(
    state: SearchState,
    next_token: Int32[Array, " rows"],
    log_probability: Float32[Array, " rows"],
    step: Int32[Array, ""] | int,
    options: DecodingOptions,
) -> SearchState:
    """Appends one token to the only answer of each row.

    Args:
      state: state with one beam.
      next_token: the tokens.
      log_probability: their log-probabilities.
      step: number of tokens before.
      options: constants of the program.
    """
    length = step + 1
    tokens = state.tokens.at[:, 0, step].set(next_token)
    score = state.score + log_probability[:, None]
    ends = jnp.isin(next_token, jnp.array(options.stop_token_ids)) | (length == options.max_new_tokens)
    new = SearchState(
        tokens=tokens,
        score=score,
        slots=state.slots,
        finished_tokens=tokens,
        finished_score=score / jnp.float32(length),
        finished_length=jnp.where(ends, length, 0)[:, None].astype(jnp.int32),
        done=ends,
    )
    return _keep_done_rows(state, new)


def advance_beams(
    state: SearchState,
    log_probabilities: Float32[Array, "rows beams vocab"],
    step: Int32[Array, ""] | int,
    options: DecodingOptions,
    numbers: DecodingNumbers,
) -> SearchState:
    """Appends one token to the beams of each row.

    Args:
      state: state before the step.
      log_probabilities: of the next token of each running answer, penalties applied.
      step: number of tokens before.
      options: constants of the program.
      numbers: inputs of the program.
    """
    num_rows, num_beams, vocab_size = log_probabilities.shape
    length, limit = step + 1, options.max_new_tokens
    power = numbers.length_penalty
    # With several stop tokens, so many candidates have at least `num_beams` that do not end the answer.
    num_candidates = min((1 + len(options.stop_token_ids)) * num_beams, num_beams * vocab_size)
    total = (state.score[..., None] + log_probabilities).reshape(num_rows, -1)
    score, index = jax.lax.top_k(total, num_candidates)
    parent, token = index // vocab_size, index % vocab_size
    tokens = _gather(state.tokens, parent).at[:, :, step].set(token)
    is_stop = jnp.isin(token, jnp.array(options.stop_token_ids))
    is_last = jnp.asarray(length == limit)

    finishes = is_stop if options.counts_start_token else is_stop | is_last
    finishes &= jnp.arange(num_candidates) < num_beams  # an answer that ends below the best beams is dropped
    finished = _merge_finished(state, tokens, score / _power(length, power), finishes, length)

    _, chosen = jax.lax.top_k(jnp.where(is_stop, score + UNUSED, score), num_beams)
    running = SearchState(
        tokens=_gather(tokens, chosen),
        score=_gather(jnp.where(is_stop, score + UNUSED, score), chosen),
        slots=_gather(_gather(state.slots, parent), chosen).at[:, :, step].set(jnp.arange(num_beams)),
        finished_tokens=finished.finished_tokens,
        finished_score=finished.finished_score,
        finished_length=finished.finished_length,
        done=state.done,
    )
    if options.counts_start_token:
        done = _search_ends(running, score[:, 0], length + 1, limit + 1, options.early_stopping, power)
        cut = jnp.broadcast_to(is_last & ~done[:, None], (num_rows, num_beams))
        cut_score = running.score / _power(length + 1, power)
        running = _merge_finished(running, running.tokens, cut_score, cut, length)
    else:
        done = _search_ends(running, running.score[:, 0], length, limit, options.early_stopping, power)
    return _keep_done_rows(state, running._replace(done=done | is_last))


def _search_ends(
    state: SearchState,
    best_score: Float32[Array, " rows"],
    length: Int32[Array, ""] | int,
    limit: int,
    early_stopping: bool | str,
    power: Float32[Array, ""],
) -> Bool[Array, " rows"]:
    """Returns whether all finished answers of a row are in place and a better one is not expected.

    Args:
      state: state after the step.
      best_score: sum of the log-probabilities of the best candidate that may go on.
      length: tokens that are counted for the candidate if it is compared at its present length.
      limit: tokens that are counted for it if it is compared at the maximum length.
      early_stopping: see `GenerationConfig`.
      power: length penalty.
    """
    all_finished = (state.finished_length > 0).all(axis=1)
    if early_stopping is True:
        return all_finished
    compared_at = jnp.where(power > 0, limit, length) if early_stopping == "never" else length
    return all_finished & (state.finished_score.min(axis=1) >= best_score / _power(compared_at, power))


def _merge_finished(
    state: SearchState,
    tokens: Int32[Array, "rows candidates new_tokens"],
    score: Float32[Array, "rows candidates"],
    finishes: Bool[Array, "rows candidates"],
    length: Int32[Array, ""] | int,
) -> SearchState:
    """Returns the state with the best of its finished answers and of the candidates that finish."""
    scores = jnp.concatenate([state.finished_score, jnp.where(finishes, score, -jnp.inf)], axis=1)
    lengths = jnp.concatenate([state.finished_length, jnp.where(finishes, length, 0).astype(jnp.int32)], axis=1)
    best_score, best = jax.lax.top_k(scores, state.finished_score.shape[1])
    return state._replace(
        finished_tokens=_gather(jnp.concatenate([state.finished_tokens, tokens], axis=1), best),
        finished_score=best_score,
        finished_length=_gather(lengths, best),
    )


def _power(length: Array | int, power: Float32[Array, ""]) -> Array:
    return jnp.power(jnp.asarray(length, jnp.float32), power)


def _gather(x: Array, index: Int32[Array, "rows candidates"]) -> Array:
    """Returns the entries of the second axis at `index`, for each row."""
    return jnp.take_along_axis(x, index.reshape(*index.shape, *[1] * (x.ndim - 2)), axis=1)


def _keep_done_rows(old: SearchState, new: SearchState) -> SearchState:
    """Returns the new state, except for rows whose search had ended before."""
    return SearchState(
        *(jnp.where(old.done.reshape(-1, *[1] * (a.ndim - 1)), a, b) for a, b in zip(old, new, strict=True))
    )

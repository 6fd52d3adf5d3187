"""Beam search with as many beams as there are answers: it finds the best one, as an enumeration does."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from salmonn_jax.config import GenerationConfig
from salmonn_jax.decoding.options import decoding_options
from salmonn_jax.decoding.search import advance_beams, initial_state

VOCAB, STEPS, STOP = 5, 4, 2
BEAMS = VOCAB ** (STEPS - 1)

advance = jax.jit(advance_beams, static_argnames="options")


@functools.cache
def log_probabilities(seed: int) -> dict[tuple[int, ...], np.ndarray]:
    """Returns random log-probabilities of the next token after every prefix."""
    rng = np.random.default_rng(seed)
    table = {}
    for length in range(STEPS):
        for prefix in itertools.product(range(VOCAB), repeat=length):
            logits = rng.normal(0, 2, VOCAB)
            table[prefix] = (logits - np.logaddexp.reduce(logits)).astype(np.float32)
    return table


def best_answer(seed: int, length_penalty: float, start_tokens: int) -> tuple[list[int], float]:
    """Returns the best answer that ends with the stop token or has `STEPS` tokens, and its score."""
    table, best = log_probabilities(seed), ([], -np.inf)
    for length in range(1, STEPS + 1):
        for answer in itertools.product(range(VOCAB), repeat=length):
            stops = answer[-1] == STOP
            if STOP in answer[:-1] or not (stops or length == STEPS):
                continue
            total = sum(table[answer[:i]][token] for i, token in enumerate(answer))
            counted = length if stops else length + start_tokens
            if total / counted**length_penalty > best[1]:
                best = list(answer), total / counted**length_penalty
    return best


@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 1.0, 2.0])
@pytest.mark.parametrize("compat", ["hf4.28", "hf5"])
def test_enough_beams_find_the_best_answer(compat, length_penalty):
    """Rows are independent searches. In hf4.28, the start token counts for an answer that is cut."""
    seeds = range(6)
    config = GenerationConfig(
        num_beams=BEAMS,
        max_new_tokens=STEPS,
        length_penalty=length_penalty,
        early_stopping="never",
        compat=compat,
    )
    options, numbers = decoding_options(config, stop_token_ids=(STOP,), start_token_id=None)
    state = initial_state(len(seeds), options)
    for step in range(STEPS):
        tokens = np.asarray(state.tokens)[:, :, :step]
        scores = [[log_probabilities(seed)[tuple(beam)] for beam in tokens[row]] for row, seed in enumerate(seeds)]
        state = advance(state, jnp.array(scores), step, options=options, numbers=numbers)
    assert state.done.all()
    for row, seed in enumerate(seeds):
        answer, score = best_answer(seed, length_penalty, start_tokens=1 if compat == "hf4.28" else 0)
        length = int(state.finished_length[row, 0])
        assert state.finished_tokens[row, 0, :length].tolist() == answer
        assert float(state.finished_score[row, 0]) == pytest.approx(score, rel=1e-5)


def test_the_best_answers_have_different_lengths():
    lengths = {len(best_answer(seed, lp, 0)[0]) for seed in range(6) for lp in (-1.0, 0.0, 1.0, 2.0)}
    assert len(lengths) >= 3

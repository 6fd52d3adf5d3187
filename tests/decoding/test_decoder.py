"""Stop tokens, scores and rows of the decoder, and a forward pass without a cache as its reference."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from salmonn_jax.config import GenerationConfig
from salmonn_jax.models.llama import causal_mask
from tests.decoding.prompts import Answer, decode_prompts, golden_prompts, take_rows
from tests.golden import MINI

NEW = 24
NO_END = 9999  # a token id that is never chosen, so that all rows have NEW tokens
CONFIG = GenerationConfig(num_beams=1, max_new_tokens=NEW)


@pytest.fixture(scope="module", autouse=True)
def _golden():
    MINI.require()


def decode(chosen: list[int], stop_token_ids: tuple[int, ...] = (NO_END,)) -> list[Answer]:
    prompts = take_rows(golden_prompts(MINI), chosen)
    scale = MINI.config.lora.scale
    return decode_prompts(MINI.model.llama, prompts, CONFIG, stop_token_ids=stop_token_ids, lora_scale=scale)


@pytest.fixture(scope="module")
def together() -> list[Answer]:
    return decode([0, 1, 2])


def test_a_row_does_not_depend_on_its_batch(together):
    (alone,) = decode([1])
    assert alone.ids == together[1].ids
    assert alone.score == pytest.approx(together[1].score, rel=1e-5)


def test_each_row_stops_at_its_own_end(together):
    """The end token here is one that a single row emits early. The other rows continue as before."""
    rows = [answer.ids for answer in together]
    end = next(t for t in rows[1][:6] if t not in rows[0] and t not in rows[2])
    stopped = decode([0, 1, 2], stop_token_ids=(end,))
    assert [answer.ids for answer in stopped] == [rows[0], rows[1][: rows[1].index(end) + 1], rows[2]]
    assert all(len(row) == NEW for row in rows)


def test_any_stop_token_ends_a_row(together):
    """Two rows stop at a token of their own."""
    rows = [answer.ids for answer in together]
    stops = tuple(next(t for t in rows[i][2:] if t not in rows[1 - i] and t not in rows[2]) for i in (0, 1))
    stopped = decode([0, 1, 2], stop_token_ids=stops)
    assert [answer.ids for answer in stopped] == [
        rows[0][: rows[0].index(stops[0]) + 1],
        rows[1][: rows[1].index(stops[1]) + 1],
        rows[2],
    ]


def test_score_is_the_mean_of_the_teacher_forced_log_probabilities(together):
    """The cache gives what a forward pass over prompt and answer gives."""
    prompts, ids = golden_prompts(MINI), together[1].ids
    size = int(prompts.length[1])
    embeddings = jnp.concatenate([prompts.embeddings[1, :size], MINI.model.llama.embed(jnp.array(ids))])[None]

    @jax.jit
    def forward(llama, embeddings):
        tokens = jnp.ones(embeddings.shape[:2], jnp.int32)
        positions = jnp.arange(embeddings.shape[1])[None]
        hidden = llama(embeddings, positions, causal_mask(tokens), lora_scale=MINI.config.lora.scale)
        return jax.nn.log_softmax(llama.logits(hidden))[0]

    log_probability = forward(MINI.model.llama, embeddings)[size - 1 : -1]
    assert float(log_probability[np.arange(NEW), np.array(ids)].mean()) == pytest.approx(together[1].score, rel=1e-5)

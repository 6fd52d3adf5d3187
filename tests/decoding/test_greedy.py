"""Greedy decoding alone and in uneven batches, against a forward pass without a cache.

`tests/models/test_golden.py` compares greedy decoding with the original.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from salmonn_jax.decoding import greedy
from salmonn_jax.models.llama import causal_mask
from salmonn_jax.prompts import TEXT_SLOT
from tests.golden import MINI

NEW = 24
NO_END = -1  # a token id that is never chosen, so that all rows have NEW tokens


@pytest.fixture(scope="module", autouse=True)
def _golden():
    MINI.require()


def prompts(chosen: list[int]) -> greedy.PromptBatch:
    """Returns the golden prompts of these clips, each at its own length."""
    pcm, length = (x[chosen] for x in MINI.clips)
    ids = [MINI.expected_json["token_ids"][c] for c in chosen]
    sizes = [1 + len(i["before"]) + 88 + len(i["after"]) for i in ids]
    tokens = np.zeros((len(chosen), max(sizes)), np.int32)
    slot = np.full(tokens.shape, TEXT_SLOT, np.int32)
    for row, (i, size) in enumerate(zip(ids, sizes, strict=True)):
        start = 1 + len(i["before"])
        tokens[row, :size] = [1, *i["before"], *[1] * 88, *i["after"]]
        slot[row, start : start + 88] = row * 88 + np.arange(88)
    return greedy.PromptBatch(pcm, length, tokens, slot, np.array(sizes, np.int32))


@functools.partial(jax.jit, static_argnames="stop_token_ids")
def generate(model, prompts, stop_token_ids):
    options = {"max_new_tokens": NEW, "lora_scale": MINI.config.lora.scale}
    return greedy.generate(model, prompts, stop_token_ids=stop_token_ids, **options)


def decode(chosen: list[int], stop_token_ids: tuple[int, ...] = (NO_END,)):
    return generate(MINI.model, prompts(chosen), stop_token_ids=stop_token_ids)


@jax.jit
def forward(model, tokens, slot, pcm, pcm_length):
    """Returns the logits of whole rows, computed without a cache."""
    audio = model.encode_audio(pcm, pcm_length)
    hidden, _ = model.llama(
        model.merge_audio_tokens(tokens, slot, audio),
        jnp.arange(tokens.shape[1])[None],
        causal_mask(jnp.ones_like(tokens)),
        lora_scale=MINI.config.lora.scale,
    )
    return model.llama.logits(hidden)


@pytest.fixture(scope="module")
def together():
    return decode([0, 1, 2])


def test_a_row_does_not_depend_on_its_batch(together):
    alone = decode([1])
    np.testing.assert_array_equal(alone.tokens[0], together.tokens[1])
    np.testing.assert_allclose(alone.score[0], together.score[1], rtol=1e-5)


def test_each_row_stops_at_its_own_end(together):
    """The end token here is one that a single row emits early. The other rows continue as before."""
    rows = np.asarray(together.tokens)
    end = next(t for t in rows[1] if t in rows[1][:6] and t not in rows[0] and t not in rows[2])
    at = int(np.argmax(rows[1] == end))
    stopped = decode([0, 1, 2], stop_token_ids=(int(end),))
    np.testing.assert_array_equal(stopped.tokens[0], rows[0])
    np.testing.assert_array_equal(stopped.tokens[2], rows[2])
    np.testing.assert_array_equal(stopped.tokens[1], [*rows[1][: at + 1], *[end] * (NEW - at - 1)])
    np.testing.assert_array_equal(stopped.length, [NEW, at + 1, NEW])
    np.testing.assert_array_equal(stopped.finished, [False, True, False])


def test_any_stop_token_ends_a_row(together):
    """Each row stops at a token of its own; both are padded with the first stop token."""
    rows = np.asarray(together.tokens)
    stops = [next(t for t in rows[i][2:] if t not in rows[1 - i] and t not in rows[2]) for i in (0, 1)]
    stopped = decode([0, 1, 2], stop_token_ids=tuple(map(int, stops)))
    at = [int(np.argmax(rows[i] == stops[i])) for i in (0, 1)]
    np.testing.assert_array_equal(stopped.length, [at[0] + 1, at[1] + 1, NEW])
    np.testing.assert_array_equal(stopped.finished, [True, True, False])
    for i in (0, 1):
        padding = [stops[0]] * (NEW - at[i] - 1)
        np.testing.assert_array_equal(stopped.tokens[i], [*rows[i][: at[i] + 1], *padding])


def test_score_is_the_teacher_forced_log_probability(together):
    """The cache gives what a forward pass over prompt and answer gives."""
    ready = prompts([1])
    answer = np.asarray(together.tokens[1])
    size = int(ready.prompt_length[0])
    tokens = np.concatenate([ready.tokens[0], answer])[None]
    slot = np.concatenate([ready.audio_slot[0], np.full(NEW, TEXT_SLOT)])[None]
    logits = forward(MINI.model, tokens, slot, ready.pcm, ready.pcm_length)
    log_probability = jax.nn.log_softmax(logits)[0, size - 1 : -1]
    np.testing.assert_allclose(log_probability[np.arange(NEW), answer].sum(), together.score[1], rtol=1e-5)

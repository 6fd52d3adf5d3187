"""Tests of greedy decoding: against the original, without a cache, and in batches of prompts with unequal lengths."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from salmonn_jax.decoding import greedy
from salmonn_jax.prompts import TEXT_SLOT
from tests import golden

MAX_NEW_TOKENS = 24


@pytest.fixture(scope="module", autouse=True)
def _golden():
    golden.require()


def prompts(clip_indices: list[int]) -> greedy.PromptBatch:
    """Returns the golden prompts of the clips with these indices, each with its own length."""
    pcm, length = (x[clip_indices] for x in golden.clips())
    ids = [golden.expected_json()["token_ids"][c] for c in clip_indices]
    sizes = [1 + len(ids_of_clip["before"]) + 88 + len(ids_of_clip["after"]) for ids_of_clip in ids]
    tokens = np.zeros((len(clip_indices), max(sizes)), np.int32)
    slot = np.full(tokens.shape, TEXT_SLOT, np.int32)
    for row, (ids_of_clip, size) in enumerate(zip(ids, sizes, strict=True)):
        start = 1 + len(ids_of_clip["before"])
        tokens[row, :size] = [1, *ids_of_clip["before"], *[1] * 88, *ids_of_clip["after"]]
        slot[row, start : start + 88] = row * 88 + np.arange(88)
    return greedy.PromptBatch(pcm, length, tokens, slot, np.array(sizes, np.int32))


def decode(clip_indices: list[int], **options):
    options = {"max_new_tokens": MAX_NEW_TOKENS, "eos_token_id": 2, "lora_scale": golden.CONFIG.lora.scale, **options}
    return jax.jit(lambda model, prompts: greedy.generate(model, prompts, **options))(
        golden.model(), prompts(clip_indices)
    )


@pytest.fixture(scope="module")
def batched():
    return decode([0, 1, 2])


def test_tokens_equal_those_of_the_original(batched):
    """Skips the first golden id: the original generates from embeddings, so its ids start with a placeholder 1."""
    expected = [answer["ids"][1:] for answer in golden.expected_json()["generate_greedy"]]
    np.testing.assert_array_equal(batched.tokens, expected)
    assert not batched.finished.any()
    np.testing.assert_array_equal(batched.length, MAX_NEW_TOKENS)


def test_a_row_does_not_depend_on_the_rest_of_the_batch(batched):
    alone = decode([1])
    np.testing.assert_array_equal(alone.tokens[0], batched.tokens[1])
    np.testing.assert_allclose(alone.score[0], batched.score[1], rtol=1e-5)


def test_each_row_stops_at_its_own_end_token(batched):
    """Uses a token that only one row emits early as the end token. The other rows must not change."""
    rows = np.asarray(batched.tokens)
    end_token = next(t for t in rows[1] if t in rows[1][:6] and t not in rows[0] and t not in rows[2])
    end_index = int(np.argmax(rows[1] == end_token))
    stopped = decode([0, 1, 2], eos_token_id=int(end_token))
    np.testing.assert_array_equal(stopped.tokens[0], rows[0])
    np.testing.assert_array_equal(stopped.tokens[2], rows[2])
    np.testing.assert_array_equal(
        stopped.tokens[1], [*rows[1][: end_index + 1], *[end_token] * (MAX_NEW_TOKENS - end_index - 1)]
    )
    np.testing.assert_array_equal(stopped.length, [MAX_NEW_TOKENS, end_index + 1, MAX_NEW_TOKENS])
    np.testing.assert_array_equal(stopped.finished, [False, True, False])


def test_score_is_the_teacher_forced_log_probability(batched):
    """Compares the scores of decoding with a cache to a forward pass over prompt and answer."""
    model, prompt_batch = golden.model(), prompts([1])
    answer = np.asarray(batched.tokens[1])
    prompt_length = int(prompt_batch.prompt_length[0])
    tokens = np.concatenate([prompt_batch.tokens[0], answer])[None]
    slot = np.concatenate([prompt_batch.audio_slot[0], np.full(MAX_NEW_TOKENS, TEXT_SLOT)])[None]
    ones = np.ones_like(tokens)
    audio = model.encode_audio(prompt_batch.pcm, prompt_batch.pcm_length)
    from salmonn_jax.models.llama import causal_mask

    hidden, _ = model.llama(
        model.merge_audio_tokens(tokens, slot, audio),
        np.arange(tokens.shape[1])[None],
        causal_mask(ones),
        lora_scale=golden.CONFIG.lora.scale,
    )
    log_probability = jax.nn.log_softmax(model.llama.logits(hidden))[0, prompt_length - 1 : -1]
    np.testing.assert_allclose(log_probability[np.arange(MAX_NEW_TOKENS), answer].sum(), batched.score[1], rtol=1e-5)

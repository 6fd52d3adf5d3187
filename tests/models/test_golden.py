"""Compares every stage of the model with what the original PyTorch code computes, at float32.

The shipped golden set is read by default; the larger one, where it is present, by tests marked `slow`.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from salmonn_jax.audio import features
from salmonn_jax.models.beats.encoder import token_masks
from salmonn_jax.prompts import encode_answer, encode_prompt
from salmonn_jax.tokenizer import load_tokenizer
from tests import golden
from tests.golden import MINI, TINY, GoldenSet, relative_error

CLIPS = range(golden.NUM_CLIPS)
# Largest relative errors. The shipped set stores frames in steps of 2^-14 and logits in steps of 2^-15, which is up to
# 2e-5 and 6e-6 of the error.
FRAMES, AUDIO_TOKENS, LOGITS, LOSS = 1e-4, 1e-5, 2e-5, 1e-5


@pytest.fixture(
    scope="module", params=[pytest.param(MINI, id="mini"), pytest.param(TINY, id="tiny", marks=pytest.mark.slow)]
)
def golden_set(request) -> GoldenSet:
    request.param.require()
    return request.param


@pytest.fixture(scope="module")
def forward(golden_set):
    """The jitted forward pass from the encoders' frames; all batches share its one compilation."""
    return functools.partial(
        jax.jit(functools.partial(golden.forward, pad_classes=golden_set.pad_classes)), golden_set.model_with_pad
    )


@pytest.fixture(scope="module")
def clips_alone(golden_set, forward):
    """Audio tokens, logits, losses and counted tokens of each clip alone."""
    return forward(golden_set.frames_alone, golden_set.unpadded_batch(), golden_set.config.lora.scale)


def test_log_mel(golden_set):
    ours = np.asarray(jax.jit(features.log_mel_spectrogram)(golden_set.clips[0]))
    np.testing.assert_allclose(ours.swapaxes(1, 2), golden_set.expected["log_mel"], atol=1e-3)


def test_fbank(golden_set):
    pcm, length = golden_set.clips
    ours = np.asarray(jax.jit(features.fbank)(pcm[:, : length.max()]))
    np.testing.assert_allclose(ours, golden_set.expected["beats_fbank"], atol=1e-3)


def test_clip_lengths(golden_set):
    np.testing.assert_array_equal(golden_set.clips[1], golden_set.expected["lengths"])


def test_whisper_frames(golden_set):
    assert relative_error(golden_set.frames_padded["whisper"].frames, golden_set.expected["whisper_out"]) < FRAMES


def test_beats_frames_of_the_padded_batch(golden_set):
    theirs, (_, length) = golden_set.expected["beats_out"], golden_set.clips
    exists, valid = token_masks(
        jnp.asarray(length), jnp.full(3, length.max()), theirs.shape[1], golden_set.config.beats
    )
    assert exists.all()
    np.testing.assert_array_equal(valid, ~golden_set.expected["beats_padding_mask"])
    assert relative_error(golden_set.frames_padded["beats"].frames[:, : theirs.shape[1]], theirs) < FRAMES


def test_audio_tokens_of_the_padded_batch(golden_set, forward):
    batch = golden_set.padded_batch(CLIPS)
    audio_tokens, *_ = forward(golden_set.frames_padded, batch, golden_set.config.lora.scale)
    assert relative_error(audio_tokens, golden_set.expected["audio_tokens"]) < AUDIO_TOKENS


@pytest.mark.parametrize("clip", CLIPS)
def test_audio_tokens_of_each_clip_alone(golden_set, clips_alone, clip):
    audio_tokens, *_ = clips_alone
    assert relative_error(audio_tokens[clip][None], golden_set.expected[f"audio_tokens_single_{clip}"]) < AUDIO_TOKENS


@pytest.mark.parametrize("clip", CLIPS)
def test_logits_of_each_clip_alone(golden_set, clips_alone, clip):
    """[PAD] included, if the golden set stores its row of the output matrix."""
    _, logits, _, _ = clips_alone
    theirs = golden_set.expected[f"logits_{clip}"][:, : logits.shape[-1]]
    assert relative_error(logits[clip, : len(theirs)], theirs) < LOGITS


def test_loss_of_each_clip_alone(golden_set, clips_alone):
    _, _, losses, counted = clips_alone
    ours = losses.sum(axis=1) / counted.sum(axis=1)
    np.testing.assert_allclose(ours, golden_set.expected["loss"], rtol=LOSS)


def test_token_ids_of_prompts_and_answers(golden_set):
    tokenizer = load_tokenizer(golden_set.directory / "vicuna")
    expected = golden_set.expected_json
    for prompt, text, ids in zip(expected["prompts"], expected["texts"], expected["token_ids"], strict=True):
        row = encode_prompt(tokenizer, "{}", prompt, valid_audio_token_counts=[[88]], num_audio_tokens=88)
        before = [1, *ids["before"]]
        assert row.tokens[: len(before)] == before
        assert row.tokens[len(before) + 88 :] == ids["after"]
        assert encode_answer(tokenizer, text) == ids["target"]


class TestHalvedLoraScale:
    """The original with lora_alpha 16 instead of 32, which only the shipped set stores."""

    @pytest.fixture(scope="class", autouse=True)
    def _stored(self, golden_set):
        if golden_set is not MINI:
            pytest.skip("this set stores nothing with another LoRA scale")

    def test_loss_of_each_clip_alone(self, golden_set, forward):
        batch = golden_set.unpadded_batch()
        _, _, losses, counted = forward(golden_set.frames_alone, batch, golden_set.config.lora.scale / 2)
        ours = losses.sum(axis=1) / counted.sum(axis=1)
        np.testing.assert_allclose(ours, golden_set.expected["loss_alpha16"], rtol=LOSS)

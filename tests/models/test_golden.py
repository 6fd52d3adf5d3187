"""Every stage of the model against what the original PyTorch code computes, at float32."""

from __future__ import annotations

import jax
import numpy as np
import optax
import pytest

from salmonn_jax import audio
from salmonn_jax.config import RunConfig
from salmonn_jax.models.beats import token_masks
from salmonn_jax.models.parameters import trainable_paths
from salmonn_jax.models.salmonn import answer_losses
from tests import golden

ENCODERS = 1e-4  # norm of the difference over the norm


@pytest.fixture(scope="module", autouse=True)
def _golden():
    golden.require()


@pytest.fixture(scope="module")
def frames():
    """The encoders' frames of the batch, padded as the original pads, and of each clip alone."""
    _, length = golden.clips()
    return golden.encode_clips(np.full(3, length.max(), np.int32)), golden.encode_clips(length)


def relative(ours, theirs) -> float:
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def test_log_mel():
    ours = np.asarray(audio.log_mel_spectrogram(golden.clips()[0]))
    np.testing.assert_allclose(ours.swapaxes(1, 2), golden.expected()["log_mel"], atol=1e-3)


def test_fbank():
    pcm, length = golden.clips()
    ours = np.asarray(audio.fbank(pcm[:, : length.max()]))
    np.testing.assert_allclose(ours, golden.expected()["beats_fbank"], atol=1e-3)


def test_lengths():
    np.testing.assert_array_equal(golden.clips()[1], golden.expected()["lengths"])


def test_whisper(frames):
    assert relative(frames[0].whisper, golden.expected()["whisper_out"]) < ENCODERS


def test_beats_padded_as_the_original_pads(frames):
    theirs = golden.expected()["beats_out"]
    mask = ~golden.expected()["beats_padding_mask"]
    _, length = golden.clips()
    exists, valid = token_masks(length, np.full(3, length.max()), theirs.shape[1], golden.CONFIG.beats)
    assert exists.all()
    np.testing.assert_array_equal(valid, mask)
    assert relative(frames[0].beats[:, : theirs.shape[1]], theirs) < ENCODERS


def test_audio_tokens_of_the_padded_batch(frames):
    assert relative(golden.model().compute_audio_tokens(frames[0]), golden.expected()["audio_tokens"]) < ENCODERS


@pytest.mark.parametrize("clip", range(3))
def test_audio_tokens_of_a_clip_alone(frames, clip):
    alone = golden.select_clip(frames[1], clip)
    assert (
        relative(golden.model().compute_audio_tokens(alone), golden.expected()[f"audio_tokens_single_{clip}"])
        < ENCODERS
    )


@pytest.mark.parametrize("clip", range(3))
def test_logits_and_loss_of_a_clip_alone(clip):
    batch = golden.golden_batch([clip])
    scale = golden.CONFIG.lora.scale
    logits, _ = jax.jit(lambda model: model(batch, lora_scale=scale))(
        golden.structure().merge(golden.params_with_pad())
    )
    assert relative(logits[0], golden.expected()[f"logits_{clip}"]) < 1e-4
    losses, counted = answer_losses(logits, batch)
    ours, theirs = losses.sum() / counted.sum(), golden.expected()["loss"][clip]
    assert abs(ours - theirs) / theirs < 1e-5


def test_loss_and_gradients_of_the_batch(frames):
    params = golden.params_with_pad()
    chosen = trainable_paths(params, RunConfig(name="golden").trainable)
    trainable = {path: x for path, x in params.items() if path in chosen}
    frozen = {path: x for path, x in params.items() if path not in chosen}
    loss = jax.jit(jax.value_and_grad(golden.batch_loss, has_aux=True))
    (ours, (correct, total)), gradient = loss(trainable, frozen, frames[0], golden.pad_embedding())
    expected = golden.expected()
    assert abs(ours - expected["batch_loss"]) / expected["batch_loss"] < 1e-5
    assert (correct, total) == (expected["batch_correct"], expected["batch_total"])
    assert abs(optax.global_norm(gradient) - expected["grad_norm"]) / expected["grad_norm"] < 1e-3
    mine = golden.to_original_gradients(gradient)
    assert set(mine) == set(golden.expected_gradients())
    for name, theirs in golden.expected_gradients().items():
        assert relative(mine[name], theirs) < 1e-3, name

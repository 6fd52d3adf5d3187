"""Tests of the CTC loss on audio tokens against an explicit sum over all alignments."""

from __future__ import annotations

import dataclasses
import itertools
import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from salmonn_jax.batch import Segment, collate
from salmonn_jax.config import DataConfig, Recipe
from salmonn_jax.configs import get_preset
from salmonn_jax.models.parameters import ModelStructure
from salmonn_jax.prompts import TEXT_SLOT
from salmonn_jax.training.ctc import batch_num_valid_audio_tokens, ctc_losses, ctc_token_counts
from salmonn_jax.training.step import batch_loss

BLANK = 3


def ctc_loss(embedding, audio_tokens, num_valid_tokens, transcript, blank_id):
    """Returns the mean CTC loss over transcript tokens, as the training step computes it."""
    losses = ctc_losses(embedding, audio_tokens, num_valid_tokens, transcript, blank_id)
    return losses.sum() / ctc_token_counts(num_valid_tokens, transcript).sum()


def collapse(path: tuple[int, ...]) -> list[int]:
    """Returns the transcript of an alignment: merges equal neighbours, then removes blanks."""
    return [token for token, _ in itertools.groupby(path) if token != BLANK]


def ctc_by_enumeration(logits: np.ndarray, words: list[int]) -> float:
    """Returns the negative log of the total probability of all alignments of `words` with float[T,V] logits."""
    probability = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
    paths = itertools.product(range(logits.shape[1]), repeat=len(logits))
    return -np.log(
        sum(np.prod([probability[t, token] for t, token in enumerate(p)]) for p in paths if collapse(p) == words)
    )


def int32(values) -> jax.Array:
    """Returns an int32 array."""
    return jnp.asarray(values, jnp.int32)


def random_arrays(seed: int = 0):
    """Returns the embeddings of five tokens and three clips of four audio tokens, with hidden size 6."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(5, 6)), rng.normal(size=(3, 4, 6))


def test_loss_is_the_mean_over_transcript_tokens():
    embedding, audio_tokens = random_arrays()
    words = [[0, 2], [1, 1, 4], []]
    expected = [ctc_by_enumeration(a @ embedding.T, w) for a, w in zip(audio_tokens, words, strict=True) if w]
    transcript = np.array([[0, 2, -1], [1, 1, 4], [-1, -1, -1]])
    loss = ctc_loss(jnp.asarray(embedding), jnp.asarray(audio_tokens), int32(np.full(3, 4)), int32(transcript), BLANK)
    np.testing.assert_allclose(loss, sum(expected) / 5, rtol=1e-5)


def test_loss_uses_only_valid_audio_tokens():
    embedding, audio_tokens = random_arrays()
    num_valid, words = np.array([3, 4, 1]), [[0, 2], [1, 4], [2, 0]]  # the last one has no alignment
    alignable = zip(audio_tokens[:2], num_valid, words, strict=False)
    expected = sum(ctc_by_enumeration(a[:n] @ embedding.T, w) for a, n, w in alignable) / 4
    loss = ctc_loss(jnp.asarray(embedding), jnp.asarray(audio_tokens), int32(num_valid), int32(words), BLANK)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_batch_num_valid_audio_tokens():
    model = get_preset("salmonn_13b_stage1").model
    clips = np.array([0, 1, 16_000, 5440 * 4, 5440 * 4 + 1, 200_000, 479_999, 480_000])
    assert batch_num_valid_audio_tokens(model, int32(clips)).tolist() == [88] * 8
    model = dataclasses.replace(model, audio=dataclasses.replace(model.audio, tokens="clip"))
    assert batch_num_valid_audio_tokens(model, int32(clips)).tolist() == [3, 3, 3, 4, 5, 37, 88, 88]


def test_batch_loss_uses_only_valid_audio_tokens():
    """Replaces the model by a stand-in with fixed outputs."""
    rng, model = np.random.default_rng(0), get_preset("salmonn_13b_stage1").model
    model = dataclasses.replace(model, audio=dataclasses.replace(model.audio, tokens="clip"))
    recipe = Recipe(data=DataConfig(max_transcript_tokens=2), ctc_weight=0.5, ctc_blank=BLANK)
    embedding, audio_tokens = jnp.asarray(rng.normal(size=(9, 6))), jnp.asarray(rng.normal(size=(2, 88, 6)))
    clips = [np.ones(size, np.int16) for size in (30_000, 480_000)]
    rows = [[Segment([1, 5, 6, 2], [TEXT_SLOT] * 4, 2, (clip,))] for clip in clips]
    batch = collate(rows, seq_len=4, window_samples=480_000, num_audio_tokens=88)
    batch = batch._replace(transcript=np.array([[5, 6], [7, 8]], np.int32))

    def stand_in_model(batch, **_):
        return jnp.zeros((2, 4, 9)), audio_tokens

    stand_in_model.llama = types.SimpleNamespace(embedding=embedding)
    structure = mock.create_autospec(ModelStructure, instance=True)
    structure.config, structure.merge.return_value = model, stand_in_model
    batch = jax.tree.map(jnp.asarray, batch)
    _, metrics = batch_loss(recipe, structure, {}, {}, batch, 1, None)
    loss_of_valid, loss_of_all = (
        ctc_loss(embedding, audio_tokens, int32([n, 88]), int32(batch.transcript), BLANK) for n in (6, 88)
    )
    np.testing.assert_allclose(metrics["ctc"], loss_of_valid, rtol=1e-6)
    assert abs(loss_of_all / loss_of_valid - 1) > 1e-2


def test_a_transcript_without_an_alignment_does_not_count():
    embedding, audio_tokens = random_arrays()
    possible = np.array([[0, 2, -1, -1], [1, 1, -1, -1], [4, -1, -1, -1]])
    # This transcript has four tokens and needs two blanks between equal ones, but there are four audio tokens.
    with_impossible = np.concatenate([possible, [[1, 1, 1, 0]]])
    four_clips = np.concatenate([audio_tokens, audio_tokens[:1]])
    loss_and_gradient, embedding = jax.value_and_grad(ctc_loss), jnp.asarray(embedding)
    expected = loss_and_gradient(embedding, jnp.asarray(audio_tokens), int32(np.full(3, 4)), int32(possible), BLANK)
    actual = loss_and_gradient(embedding, jnp.asarray(four_clips), int32(np.full(4, 4)), int32(with_impossible), BLANK)
    for actual_value, expected_value in zip(actual, expected, strict=True):
        np.testing.assert_allclose(actual_value, expected_value, rtol=1e-5, atol=1e-6)  # counting it would add 1e5

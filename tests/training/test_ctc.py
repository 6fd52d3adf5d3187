"""The CTC loss on audio tokens, against a sum over all alignments written out."""

from __future__ import annotations

import dataclasses
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np

from salmonn_jax.batch import Segment, collate
from salmonn_jax.configs import get_config
from salmonn_jax.prompts import TEXT_SLOT
from salmonn_jax.training.step import batch_loss, ctc_loss, num_valid_audio_tokens

BLANK = 3


def aligned(path: tuple[int, ...]) -> list[int]:
    """What a path of tokens says: equal neighbours joined, then blanks left out."""
    return [token for token, _ in itertools.groupby(path) if token != BLANK]


def by_enumeration(logits: np.ndarray, words: list[int]) -> float:
    """Minus the log of the summed probability of all paths of float[T,V] logits that say `words`."""
    probability = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
    paths = itertools.product(range(logits.shape[1]), repeat=len(logits))
    return -np.log(
        sum(np.prod([probability[t, token] for t, token in enumerate(p)]) for p in paths if aligned(p) == words)
    )


def arrays(seed: int = 0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(5, 6)), rng.normal(size=(3, 4, 6))  # five tokens; three clips of four audio tokens


def test_is_the_mean_over_tokens_of_the_sum_over_alignments():
    embedding, audio_tokens = arrays()
    words = [[0, 2], [1, 1, 4], []]
    expected = [by_enumeration(a @ embedding.T, w) for a, w in zip(audio_tokens, words, strict=True) if w]
    transcript = np.array([[0, 2, -1], [1, 1, 4], [-1, -1, -1]])
    loss = ctc_loss(jnp.asarray(embedding), jnp.asarray(audio_tokens), np.full(3, 4), transcript, BLANK)
    np.testing.assert_allclose(loss, sum(expected) / 5, rtol=1e-5)


def test_words_are_sought_in_the_audio_tokens_that_are_read():
    embedding, audio_tokens = arrays()
    read, words = np.array([3, 4, 1]), [[0, 2], [1, 4], [2, 0]]  # no alignment of the last one
    heard = zip(audio_tokens[:2], read, words, strict=False)
    expected = sum(by_enumeration(a[:n] @ embedding.T, w) for a, n, w in heard) / 4
    loss = ctc_loss(jnp.asarray(embedding), jnp.asarray(audio_tokens), read, np.array(words), BLANK)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_how_many_are_read_of_a_clip():
    model = get_config("salmonn_13b_stage1").model
    clips = np.array([0, 1, 16_000, 5440 * 4, 5440 * 4 + 1, 200_000, 479_999, 480_000])
    assert num_valid_audio_tokens(model, clips).tolist() == [88] * 8
    model = dataclasses.replace(model, audio=dataclasses.replace(model.audio, tokens="clip"))
    assert num_valid_audio_tokens(model, clips).tolist() == [3, 3, 3, 4, 5, 37, 88, 88]


def test_the_loss_of_a_batch_seeks_words_in_what_is_read():
    """Of a model whose outputs are made up."""
    random, config = np.random.default_rng(0), get_config("salmonn_13b_stage1")
    model = dataclasses.replace(config.model, audio=dataclasses.replace(config.model.audio, tokens="clip"))
    config = dataclasses.replace(config, model=model, ctc_weight=0.5, ctc_blank=BLANK)
    embedding, heard = jnp.asarray(random.normal(size=(9, 6))), jnp.asarray(random.normal(size=(2, 88, 6)))
    clips = [np.ones(size, np.int16) for size in (30_000, 480_000)]
    rows = [[Segment([1, 5, 6, 2], [TEXT_SLOT] * 4, 2, (clip,))] for clip in clips]
    batch = collate(rows, seq_len=4, window_samples=480_000, num_audio_tokens=88)
    batch = batch._replace(transcript=np.array([[5, 6], [7, 8]], np.int32))

    def outputs(batch, **_):
        return jnp.zeros((2, 4, 9)), heard

    outputs.llama = types.SimpleNamespace(embedding=embedding)
    structure = types.SimpleNamespace(merge=lambda *_: outputs)
    _, metrics = batch_loss(config, structure, {}, {}, batch, 1, None)
    part, all_ = (ctc_loss(embedding, heard, np.array([n, 88]), batch.transcript, BLANK) for n in (6, 88))
    np.testing.assert_allclose(metrics["ctc"], part, rtol=1e-6)
    assert abs(all_ / part - 1) > 1e-2


def test_a_transcript_that_has_no_alignment_does_not_count():
    embedding, audio_tokens = arrays()
    possible = np.array([[0, 2, -1, -1], [1, 1, -1, -1], [4, -1, -1, -1]])
    # Four tokens and two blanks between equal ones do not go into four audio tokens.
    with_impossible = np.concatenate([possible, [[1, 1, 1, 0]]])
    more = np.concatenate([audio_tokens, audio_tokens[:1]])
    loss, embedding = jax.value_and_grad(ctc_loss), jnp.asarray(embedding)
    of_possible = loss(embedding, jnp.asarray(audio_tokens), np.full(3, 4), possible, BLANK)
    of_both = loss(embedding, jnp.asarray(more), np.full(4, 4), with_impossible, BLANK)
    for ours, theirs in zip(of_both, of_possible, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)  # rounding; counted, it would add 1e5

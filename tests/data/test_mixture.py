"""The training stream: exact shares, the same for any number of readers, restored in place, laid out as promised."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from data_pipelines import corpora
from data_pipelines.mixture import layout, source_names, training_stream
from data_pipelines.rows import to_batch
from salmonn_jax.batch import Row
from salmonn_jax.configs import get_config
from salmonn_jax.errors import UserError
from salmonn_jax.prompts import TEXT
from salmonn_jax.tokenizer import load_tokenizer

CONFIG = get_config("debug")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return corpora.open_corpus("tones", tmp_path_factory.mktemp("tones"))


def stream(corpus, data=CONFIG.data, seed=0, streams=None):
    tokenizer = load_tokenizer(corpus.tokenizer)
    return training_stream(
        lambda source: corpus.read(source, "train"), tokenizer, CONFIG.model, data, seed=seed, streams=streams
    )


def equal(ours, theirs) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_restored_in_place(corpus):
    whole = stream(corpus)
    for _ in range(5):
        next(whole)
    state, expected = whole.get_state(), [next(whole) for _ in range(3)]
    again = stream(corpus)
    again.set_state(state)
    assert all(equal(next(again), batch) for batch in expected)


def test_the_seed_decides_the_order(corpus):
    assert equal(next(stream(corpus, seed=3)), next(stream(corpus, seed=3)))
    assert not equal(next(stream(corpus, seed=3)), next(stream(corpus, seed=4)))


def test_epochs_are_reshuffled_and_complete(corpus):
    """60 clips of 8 a step, in four streams: 15 steps are two epochs."""
    batches = stream(corpus, dataclasses.replace(CONFIG.data, streams=4))
    clips = np.concatenate([next(batches).pcm for _ in range(15)])
    heard = [clip.tobytes() for clip in clips]
    assert len(set(heard)) == 60 and all(heard.count(clip) == 2 for clip in heard)
    assert len(set(heard[:56])) == len(set(heard[-56:])) == 56
    assert heard[:56] != heard[60:116]


@pytest.mark.parametrize("hosts", [2, 4, 8])
def test_hosts_read_parts_of_one_sequence(corpus, hosts):
    whole = stream(corpus)
    parts = [stream(corpus, streams=range(h * 8 // hosts, (h + 1) * 8 // hosts)) for h in range(hosts)]
    for _ in range(3):
        read = [next(part) for part in parts]
        assert equal(next(whole), [np.concatenate(arrays) for arrays in zip(*read, strict=True)])


def test_shares_are_exact(corpus):
    """Two sources 3:1 over the text rows of eight steps."""
    shares = {"words": 3.0, "tones": 1.0}
    data = dataclasses.replace(CONFIG.data, mixture={}, clips=0, rows=8, streams=2, text_mixture=shares)
    names = source_names(data)

    def read(source):
        return [dataclasses.replace(e, audio=None, source=source) for e in corpus.read("words", "train")]

    batches = training_stream(read, load_tokenizer(corpus.tokenizer), CONFIG.model, data, seed=0)
    for _ in range(8):
        counts = np.bincount(next(batches).source, minlength=2)
        assert dict(zip(names, counts, strict=True)) == {"tones": 2, "words": 6}


@pytest.mark.parametrize("parts", [1, 2, 4, 8])
def test_clips_lie_in_the_part_of_their_rows(corpus, parts):
    batch = next(stream(corpus))
    tokens = CONFIG.model.audio_tokens
    for part, slots in enumerate(np.split(batch.audio_slot, parts)):
        clips = slots[slots != TEXT] // tokens
        assert set(clips) == set(range(part * 8 // parts, (part + 1) * 8 // parts))


def test_layout_of_a_row():
    sizes = dataclasses.replace(layout(CONFIG.model, CONFIG.data), sequence=8, transcript=3, window=4, audio_tokens=2)
    heard = Row([1, 9, 1, 1, 7, 8], [-1, -1, 0, 1, -1, -1], 4, np.arange(1, 7, dtype=np.int16), [5], 1)
    read = Row([1, 9, 7], [-1, -1, -1], 2, None, [], 0)
    batch = to_batch([read, heard], sizes)
    np.testing.assert_array_equal(batch.tokens, [[1, 9, 1, 1, 7, 8, 0, 0], [1, 9, 7, 0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(batch.loss_mask[0], [0, 0, 0, 0, 1, 1, 0, 0])
    np.testing.assert_array_equal(batch.segments[1], [1, 1, 1, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(batch.audio_slot[0], [-1, -1, 0, 1, -1, -1, -1, -1])
    np.testing.assert_array_equal(batch.pcm, [[1, 2, 3, 4]])
    np.testing.assert_array_equal(batch.pcm_length, [4])
    np.testing.assert_array_equal(batch.transcript, [[5, -1, -1]])
    np.testing.assert_array_equal(batch.source, [1, 0])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"mixture": {}}, "data.mixture names no source"),
        ({"text_mixture": {}}, "leaves 8 rows without a clip"),
        ({"clips": 17}, "more than data.rows=16"),
        ({"mixture": {"tones": 0.0}}, "share of source 'tones' is 0.0"),
        ({"rows": 15}, "does not divide over data.streams=8"),
    ],
)
def test_a_mixture_that_cannot_be(corpus, change, says):
    with pytest.raises(UserError, match=says):
        stream(corpus, dataclasses.replace(CONFIG.data, **change))

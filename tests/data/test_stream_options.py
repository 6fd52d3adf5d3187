"""Tests of the options of the training stream: buckets, long clips, augmentation, sizes."""

from __future__ import annotations

import collections
import dataclasses
import json

import numpy as np
import pytest

from data_pipelines.examples import BadExample
from data_pipelines.transforms.augment import AddNoise, augmentations
from salmonn_jax.config import DataConfig, from_dict, to_dict
from salmonn_jax.errors import UserError
from salmonn_jax.prompts import TEXT_SLOT
from tests.data.streams import DATA, MODEL, SIZES, WINDOW, Source, equal, examples, joined, parts_of, stream

BUCKETED = dataclasses.replace(
    DATA, packing="pad", rows=40, clips=40, mixture={"speech": 1.0}, buckets={"56": 0.4, "64": 0.4, "128": 0.2}
)


def test_steps_of_several_lengths_lose_nothing_and_waste_less():
    """Every length in its share of the steps, the same for any hosts; each example once an epoch."""
    whole, parts = stream(BUCKETED), [stream(BUCKETED, streams) for streams in parts_of(4)]
    lengths, seen, used, computed = [], collections.Counter(), 0, 0
    for _ in range(40):
        batch = next(whole)
        assert equal(batch, joined([next(part) for part in parts]))
        lengths.append(batch.tokens.shape[1])
        seen.update(examples(batch))
        used, computed = used + (batch.segments > 0).sum(), computed + batch.segments.size
    assert collections.Counter(lengths) == {56: 16, 64: 16, 128: 8}
    assert len(seen) == SIZES["speech"] and max(seen.values()) - min(seen.values()) <= 6
    padded = next(stream(dataclasses.replace(BUCKETED, buckets={})))
    assert used / computed > 1.3 * (padded.segments > 0).mean()


def test_steps_of_several_lengths_go_on_where_they_stopped():
    whole, begun = stream(BUCKETED), stream(BUCKETED)
    for _ in range(3):
        next(whole), next(begun)
    state = json.loads(json.dumps(begun.get_state()))
    resumed = [stream(BUCKETED, streams) for streams in parts_of(4)]
    for part in resumed:
        part.set_state(state)
    for _ in range(5):
        assert equal(next(whole), joined([next(part) for part in resumed]))


def test_long_clips_by_policy():
    """Some clips of "speech" are longer than the window of a second."""
    assert WINDOW // 2 + 100 * 96 > WINDOW
    assert (next(stream()).pcm_length <= WINDOW).all()
    with pytest.raises(UserError, match=r"too long \(the clip is 1.* s, .*\), and data.too_long is error; shorten"):
        for _ in range(10):
            next(stream(dataclasses.replace(DATA, too_long="error")))
    dropped = stream(dataclasses.replace(DATA, too_long="drop", max_bad_share=0.5))
    for _ in range(6):
        next(dropped)
    assert dropped.counts()["speech"]["too long"] > 0 and "too long" not in dropped.counts()["events"]
    chunked = stream(dataclasses.replace(DATA, too_long="chunk"))
    longest = 0
    for _ in range(6):
        batch = next(chunked)
        for row in range(16):
            for number in range(1, batch.segments[row].max() + 1):
                here = batch.audio_slot[row][batch.segments[row] == number]
                longest = max(longest, (here != TEXT_SLOT).sum())
    assert longest == 2 * MODEL.num_audio_tokens


def test_where_the_clip_alone_is_read_it_takes_fewer_tokens():
    """The last windows of a clip that does not fill them are silence; their audio tokens stand nowhere."""
    audio = dataclasses.replace(MODEL.audio, tokens="clip", minimum_seconds=0.1)
    qformer = dataclasses.replace(MODEL.qformer, second_per_window=0.1, second_stride=0.1)
    model = dataclasses.replace(MODEL, audio=audio, qformer=qformer)
    batch, read = next(stream(model=model)), collections.Counter()
    for slot in batch.audio_slot[batch.audio_slot != TEXT_SLOT]:
        read[int(slot) // model.num_audio_tokens] += 1
    lengths = {int(clip): int(batch.pcm_length[clip]) for clip in np.flatnonzero(batch.pcm_length)}
    assert read == {clip: model.num_valid_audio_tokens(length) for clip, length in lengths.items()}
    assert min(read.values()) < model.num_audio_tokens == max(read.values()) == 10
    slots = batch.audio_slot
    for clip in read:
        here = slots[(slots != TEXT_SLOT) & (slots // 10 == clip)]
        assert here.tolist() == list(range(clip * 10, clip * 10 + read[clip]))


def test_augmentation_changes_clips_and_not_their_order():
    plain, loud = stream(), stream(dataclasses.replace(DATA, gain=6.0, noise=1.0))
    one, two = next(plain), next(loud)
    np.testing.assert_array_equal(one.tokens, two.tokens)
    assert not np.array_equal(one.pcm, two.pcm)
    assert equal(two, next(stream(dataclasses.replace(DATA, gain=6.0, noise=1.0))))
    faster = next(stream(dataclasses.replace(DATA, speed=0.2)))
    assert not np.array_equal(faster.pcm_length, one.pcm_length)


def test_noise_is_cut_from_recordings():
    """Every recording of `Source` is constant: what a clip gains is constant too, and 10 to 30 dB below it."""
    plain, noisy = next(stream()), next(stream(dataclasses.replace(DATA, noise=1.0, noise_source="events")))
    np.testing.assert_array_equal(plain.tokens, noisy.tokens)
    clips = [c for c in np.flatnonzero(plain.pcm_length) if plain.pcm[c, 0] >= 20]
    for clip in clips:
        here = slice(0, int(plain.pcm_length[clip]))
        added = noisy.pcm[clip, here] - plain.pcm[clip, here]
        assert (added == added[0]).all()
        assert abs(added[0] / plain.pcm[clip, 0] - (10**-1.5 + 10**-0.5) / 2) <= (10**-0.5 - 10**-1.5) / 2 + 1 / 40
    assert len(clips) > 10


class Gone:
    """One recording, whose file is not there."""

    def __len__(self):
        return 1

    def __getitem__(self, i):
        raise BadExample("missing", "gone.flac")


def test_a_recording_that_cannot_be_used_is_told_as_noise():
    clip = Source("speech")[3]
    for recordings, says in (
        (Gone(), "recording 0, missing: gone.flac"),
        ([Source("text")[0]], "recording 0 has no audio"),
    ):
        with pytest.raises(BadExample, match=says) as caught:
            AddNoise(1.0, recordings).random_map(clip, np.random.default_rng(0))
        assert caught.value.reason == "noise"


def test_noise_that_is_never_heard_is_refused():
    for noise, recordings, says in ((0.0, Gone(), "set data.noise to the share"), (0.5, [], "no recordings")):
        with pytest.raises(UserError, match=says):
            augmentations(dataclasses.replace(DATA, noise=noise, noise_source="events"), recordings)


def test_wordings_are_drawn_anew():
    batch, lengths = next(stream()), set()
    for row in range(16):
        for number in range(1, batch.segments[row].max() + 1):
            here = batch.segments[row] == number
            lengths.add(int((here & ~batch.loss_mask[row] & (batch.audio_slot[row] == TEXT_SLOT)).sum()))
    assert len(lengths) >= 3  # two wordings, with and without a clip


PADDED = {"packing": "pad", "rows": 48}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rows": 15}, "data.rows=15: must be a multiple of streams=8"),
        ({"packing": "pad"}, "data.clips=48: must be at most rows=16"),
        ({"buckets": {"128": 1.0}}, "data.buckets sets the lengths of padded rows; set packing=pad"),
        (
            PADDED | {"buckets": {"64": 1.0}},
            "lengths 64; they must be whole numbers above 0, and the longest seq_len",
        ),
        (PADDED | {"buckets": {"long": 1.0}}, "lengths long; they must be whole numbers"),
        (PADDED | {"buckets": {"064": 0.5, "128": 0.5}}, "lengths 064, 128; they must be whole numbers"),
        (PADDED | {"buckets": {"0": 0.5, "128": 0.5}}, "lengths 0, 128; they must be whole numbers above 0"),
        (PADDED | {"buckets": {"64": 0.0, "128": 1.0}}, "data.buckets.64=0.0: must be greater than 0"),
        ({"lookahead": 5}, "data.lookahead=5: must be at least 6, the number of examples"),
    ],
)
def test_sizes_that_do_not_go_together(change, says):
    with pytest.raises(UserError, match=says):
        from_dict(DataConfig, to_dict(DATA) | change, "data.")

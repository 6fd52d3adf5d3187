"""The training stream: the same for any number of readers, restored anywhere, complete, and calm about bad data."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json

import numpy as np
import pytest

from data_pipelines.audio import AudioRules
from data_pipelines.augment import Noise, augmentation
from data_pipelines.draws import Reader
from data_pipelines.entries import BadExample
from data_pipelines.examples import Example
from data_pipelines.quarantine import Quarantine
from data_pipelines.segments import layout
from data_pipelines.stream import TrainingData, check_sizes
from data_pipelines.wordings import Wordings
from salmonn_jax.config import DataConfig
from salmonn_jax.configs import get_config
from salmonn_jax.errors import UserError
from salmonn_jax.prompts import TEXT

MODEL = get_config("debug").model
WINDOW = MODEL.audio.window_samples
SIZES = {"speech": 97, "events": 41, "text": 29}
SHARES = {"speech": 0.6, "events": 0.3, "text": 0.1}
DATA = DataConfig(mixture=SHARES, rows=16, clips=48, sequence=128, streams=8, lookahead=16)


class Tokenizer:
    """One token a letter. The first token of an answer tells which example it is."""

    bos, eos, prefix = 1, 2, (1,)

    def encode(self, text):
        return [3 + ord(letter) for letter in text]


@dataclasses.dataclass
class Source:
    """Examples of lengths that differ; of "text" without audio. Every `bad`-th cannot be used."""

    name: str
    bad: int = 0

    def __len__(self):
        return SIZES[self.name]

    def __getitem__(self, i):
        if self.bad and i % self.bad == 1:
            raise BadExample("undecodable" if i % 2 else "empty", f"file {i}")
        pcm = None if self.name == "text" else np.full(WINDOW // 2 + 100 * i, 1 + i, np.int16)
        return Example(
            id=str(i), audio=pcm, prompt="", answer=chr(1000 + i) + "x" * (i * i % 23), task="asr", source=self.name
        )


WORDINGS = Wordings("here", {"asr": ("What?", "Who speaks?")})


def stream(data=DATA, streams=None, bad=0, seed=0, rejected=lambda one: None, model=MODEL):
    reader = Reader(
        sources={name: Source(name, bad) for name in SIZES},
        tokenizer=Tokenizer(),
        wordings=WORDINGS,
        sizes=layout(model, data),
        rules=AudioRules(minimum_seconds=0.5, maximum_seconds=1.0, too_long=data.too_long),
        augmentation=augmentation(data, Source(data.noise_source) if data.noise_source else None),
        streams=data.streams,
        seed=seed,
    )
    shares = {name: share / sum(data.mixture.values()) for name, share in data.mixture.items()}
    return TrainingData(reader, data, shares, streams=streams, rejected=rejected)


def equal(ours, theirs) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


def joined(parts):
    return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]


def examples(batch) -> list[tuple[int, int]]:
    """(source, example) of every segment, in order: the token behind the prompt tells."""
    starts = batch.loss_mask & ~np.pad(batch.loss_mask, ((0, 0), (1, 0)))[:, :-1]
    return [(int(batch.source[r, s]), int(batch.tokens[r, s]) - 1003) for r, s in np.argwhere(starts)]


def parts_of(hosts):
    return [range(h * 8 // hosts, (h + 1) * 8 // hosts) for h in range(hosts)]


@pytest.mark.parametrize("hosts", [1, 2, 4, 8])
def test_hosts_read_parts_of_one_sequence(hosts):
    whole, parts = stream(), [stream(streams=streams) for streams in parts_of(hosts)]
    for _ in range(4):
        assert equal(next(whole), joined([next(part) for part in parts]))


def test_worker_processes_change_nothing():
    here, there = stream(), stream(dataclasses.replace(DATA, workers=2))
    for _ in range(2):
        assert equal(next(here), next(there))
    there.close()


def test_the_seed_decides_the_order():
    assert equal(next(stream(seed=3)), next(stream(seed=3)))
    assert examples(next(stream(seed=3))) != examples(next(stream(seed=4)))


@pytest.mark.parametrize("bad", [0, 10])
def test_killed_at_any_step_and_gone_on_with_another_number_of_hosts(bad):
    """Fifty times, each after a number of steps and with a number of hosts drawn at random: one sequence."""
    data = dataclasses.replace(DATA, bad_share=0.5)
    random, whole = np.random.default_rng(0), stream(data, bad=bad)
    states = {}
    for _ in range(50):
        parts = [stream(data, streams=streams, bad=bad) for streams in parts_of(int(random.choice([1, 2, 4, 8])))]
        for part in parts:
            if states:
                part.set_state(states)
        for _ in range(random.integers(1, 4)):
            assert equal(next(whole), joined([next(part) for part in parts]))
        states = json.loads(json.dumps(dict(itertools.chain(*(part.get_state().items() for part in parts)))))
        for part in parts:
            part.close()


def test_every_example_once_an_epoch_and_every_epoch_in_another_order():
    """The places that streams draw are all there are, each once; and an epoch of places is an order of the source."""
    data, asked = stream(), []
    read = data._read
    data._read = lambda drawn: (asked.extend(draw for _, draw in drawn), read(drawn))[1]
    seen = collections.Counter(example for _ in range(40) for example in examples(next(data)))
    data._ahead.shutdown()
    for number, (name, size) in enumerate(sorted(SIZES.items())):
        for part in range(8):
            counts = [draw.count for draw in asked if (draw.stream, draw.source) == (part, name)]
            assert counts == list(range(len(counts))) and counts
        epochs = [[int(data._reader._orders[name][e * size + i]) for i in range(size)] for e in range(3)]
        assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
        assert epochs[0] != epochs[1] != epochs[2]
        assert {example for source, example in seen if source == number} == set(range(size))


def test_shares_of_what_is_trained_on():
    data, counts = stream(), collections.Counter()
    for _ in range(30):
        counts.update(source for source, _ in examples(next(data)))
    total = counts.total()
    for number, name in enumerate(sorted(SIZES)):
        # What waits in the windows, and one a stream.
        assert abs(counts[number] - total * SHARES[name]) <= 8 + 8 * 16 * SHARES[name]


def test_a_packed_row():
    batch, tokens = next(stream()), MODEL.audio_tokens
    assert (batch.segments.max(axis=1) > 1).any()
    heard = iter(range(48))
    for row in range(16):
        if row % 2 == 0:
            heard = iter(range(row * 3, row * 3 + 6))  # of the clips of its stream
        for number in range(1, batch.segments[row].max() + 1):
            (at,) = np.nonzero(batch.segments[row] == number)
            np.testing.assert_array_equal(at, np.arange(at[0], at[-1] + 1))
            np.testing.assert_array_equal(batch.positions[row, at], np.arange(len(at)))
            assert len(set(batch.source[row, at])) == 1
            assert batch.tokens[row, at[-1]] == Tokenizer.eos and batch.loss_mask[row, at[-1]]
            slots = batch.audio_slot[row, at]
            if sorted(SIZES)[batch.source[row, at[0]]] == "text":
                assert (slots == TEXT).all()
            else:
                clip = next(heard)
                np.testing.assert_array_equal(slots[slots != TEXT], clip * tokens + np.arange(tokens))
                (marker,) = batch.tokens[row, at[batch.loss_mask[row, at]]][:1] - 1003
                assert (batch.pcm[clip][: batch.pcm_length[clip]] == 1 + marker).all()
        assert (batch.source[row][batch.segments[row] == 0] == -1).all()


def test_padded_rows_hold_one_example_each():
    data = stream(dataclasses.replace(DATA, packing="pad", rows=40, clips=32, mixture=SHARES | {"text": 0.225}))
    rows = clips = 0
    for _ in range(10):
        batch = next(data)
        assert batch.segments.max() == 1
        rows, clips = rows + batch.segments.max(axis=1).sum(), clips + (batch.pcm_length > 0).sum()
    assert rows > 0.95 * 400 and clips > 0.95 * 320


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


def test_bad_examples_are_skipped_and_nothing_else_changes():
    """What each stream draws is the same; what cannot be used is left out of it, and all else is trained on."""
    drawn, trained = {}, {}
    for bad in (0, 10):
        data, asked = stream(dataclasses.replace(DATA, bad_share=0.2), bad=bad), []
        read = data._read
        data._read = lambda drawn, asked=asked, read=read: (asked.extend(draw for _, draw in drawn), read(drawn))[1]
        found = [example for _ in range(20) for example in examples(next(data))]
        data._ahead.shutdown()
        drawn[bad] = {number: [draw for draw in asked if draw.stream == number] for number in range(8)}
        trained[bad] = {example for source, example in found if source == 1}
    for number in range(8):
        shorter = min(len(drawn[0][number]), len(drawn[10][number]))
        assert shorter > 60 and drawn[0][number][:shorter] == drawn[10][number][:shorter]
    assert trained[0] - trained[10] == {i for i in range(SIZES["speech"]) if i % 10 == 1}


def test_bad_examples_are_counted_and_listed(tmp_path):
    listed = Quarantine(tmp_path / "rejected.jsonl")
    data = stream(dataclasses.replace(DATA, bad_share=0.2), bad=10, rejected=listed.add)
    asked, read = [], data._read
    data._read = lambda drawn: (asked.extend(draw for _, draw in drawn), read(drawn))[1]
    for _ in range(20):
        next(data)
    data._ahead.shutdown()  # all that was begun is made
    while data._made:
        data._state = data._made.popleft().result()[1]
    seen = {number: state["mix"]["drawn"] for number, state in data.get_state().items()}
    asked = [draw for draw in asked if draw.count < seen[str(draw.stream)][draw.source]]  # the others are coming
    outcomes = [(draw.source, data._reader.read(draw)) for draw in asked]
    expected = {name: collections.Counter() for name in SIZES}
    for name, outcome in outcomes:
        expected[name].update(["drawn", outcome.reason] if hasattr(outcome, "reason") else ["drawn"])
    assert data.counts() == {name: dict(counter) for name, counter in expected.items()}
    lines = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert {(line["source"], line["index"]) for line in lines} == {
        (name, i) for name, size in SIZES.items() for i in range(size) if i % 10 == 1
    }
    assert len(lines) == len({(line["source"], line["index"]) for line in lines})
    assert all(line["reason"] in ("undecodable", "empty") and "file" in line["detail"] for line in lines)
    before = (tmp_path / "rejected.jsonl").read_text()
    again = Quarantine(tmp_path / "rejected.jsonl")
    next(stream(dataclasses.replace(DATA, bad_share=0.2), bad=10, rejected=again.add))
    assert (tmp_path / "rejected.jsonl").read_text() == before


def test_too_many_bad_examples_end_a_run_with_a_line():
    with pytest.raises(UserError, match=r"of \d+ examples cannot be used, more than data.bad_share=0.05; .*: file"):
        for _ in range(20):
            next(stream(bad=2))


def test_what_fits_no_row_is_told_with_the_mend():
    with pytest.raises(UserError, match=r"does not fit: .*; set data.sequence to at least"):
        next(stream(dataclasses.replace(DATA, sequence=30)))


def test_long_clips_by_policy():
    """Some clips of "speech" are longer than the window of a second."""
    assert WINDOW // 2 + 100 * 96 > WINDOW
    assert (next(stream()).pcm_length <= WINDOW).all()
    with pytest.raises(UserError, match=r"too long \(1.* s, of at most 1 s\), and data.too_long is error"):
        for _ in range(10):
            next(stream(dataclasses.replace(DATA, too_long="error")))
    dropped = stream(dataclasses.replace(DATA, too_long="drop", bad_share=0.5))
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
                longest = max(longest, (here != TEXT).sum())
    assert longest == 2 * MODEL.audio_tokens


def test_where_the_clip_alone_is_read_it_takes_fewer_tokens():
    """The last windows of a clip that does not fill them are silence; their audio tokens stand nowhere."""
    model = dataclasses.replace(MODEL, audio=dataclasses.replace(MODEL.audio, tokens="clip"))
    batch, read = next(stream(model=model)), collections.Counter()
    for slot in batch.audio_slot[batch.audio_slot != TEXT]:
        read[int(slot) // MODEL.audio_tokens] += 1
    lengths = {int(clip): int(batch.pcm_length[clip]) for clip in np.flatnonzero(batch.pcm_length)}
    assert read == {clip: model.audio_tokens_of(length) for clip, length in lengths.items()}
    assert min(read.values()) < MODEL.audio_tokens == max(read.values())
    slots = batch.audio_slot
    for clip in read:
        assert slots[slots // MODEL.audio_tokens == clip].tolist() == [
            clip * MODEL.audio_tokens + i for i in range(read[clip])
        ]


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
            Noise(1.0, recordings).random_map(clip, np.random.default_rng(0))
        assert caught.value.reason == "noise"


def test_noise_that_is_never_heard_is_refused():
    for noise, recordings, says in ((0.0, Gone(), "set the share of clips that get noise"), (0.5, [], "no recordings")):
        with pytest.raises(UserError, match=says):
            augmentation(dataclasses.replace(DATA, noise=noise, noise_source="events"), recordings)


def test_wordings_are_drawn_anew():
    batch, lengths = next(stream()), set()
    for row in range(16):
        for number in range(1, batch.segments[row].max() + 1):
            here = batch.segments[row] == number
            lengths.add(int((here & ~batch.loss_mask[row] & (batch.audio_slot[row] == TEXT)).sum()))
    assert len(lengths) >= 3  # two wordings, with and without a clip


PADDED = {"packing": "pad", "rows": 48}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rows": 15}, "data.rows=15 does not divide over data.streams=8"),
        ({"packing": "pad"}, "data.clips=48 is more than data.rows=16"),
        ({"buckets": {"128": 1.0}}, "data.buckets are lengths of padded rows; set data.packing=pad"),
        (
            PADDED | {"buckets": {"64": 1.0}},
            "lengths 64; they must be whole numbers above 0, and the longest data.sequence",
        ),
        (PADDED | {"buckets": {"long": 1.0}}, "lengths long; they must be whole numbers"),
        (PADDED | {"buckets": {"064": 0.5, "128": 0.5}}, "lengths 064, 128; they must be whole numbers"),
        (PADDED | {"buckets": {"0": 0.5, "128": 0.5}}, "lengths 0, 128; they must be whole numbers above 0"),
        (PADDED | {"buckets": {"64": 0.0, "128": 1.0}}, "a share in data.buckets is not above 0"),
        ({"lookahead": 5}, "data.lookahead=5 is less than a stream places in a step; set it to 6"),
    ],
)
def test_sizes_that_do_not_go_together(change, says):
    with pytest.raises(UserError, match=says):
        check_sizes(dataclasses.replace(DATA, **change))

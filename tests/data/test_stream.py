"""The training stream: the same for any number of readers, restored anywhere, complete, and calm about bad data."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import json
import threading

import numpy as np
import pytest

from data_pipelines.stream.rejections import Quarantine
from salmonn_jax.errors import UserError
from salmonn_jax.prompts import TEXT
from tests.data.streams import DATA, MODEL, SHARES, SIZES, Tokenizer, equal, examples, joined, parts_of, stream


@pytest.mark.parametrize("hosts", [1, 2, 4, 8])
def test_hosts_read_parts_of_one_sequence(hosts):
    whole, parts = stream(), [stream(streams=streams) for streams in parts_of(hosts)]
    for _ in range(4):
        assert equal(next(whole), joined([next(part) for part in parts]))


def test_worker_processes_change_nothing():
    """With bad examples among others, and from where another process stopped, too."""
    data = dataclasses.replace(DATA, max_bad_share=0.5)
    here, there = stream(data, bad=10), stream(dataclasses.replace(data, num_workers=2), bad=10)
    with contextlib.closing(there):
        state = here.get_state()
        for _ in range(2):
            assert equal(next(here), next(there))
        assert here.get_state() == there.get_state()
        there.set_state(state)
        here.set_state(state)
        assert equal(next(here), next(there))


def test_more_is_read_than_a_step_needs():
    """So that reading goes on while a batch is laid out."""
    data = stream()
    for _ in range(3):
        next(data)
        data._ahead.submit(int).result()  # what was begun is made
        for one in data._streams:
            assert len(one.window) + len(one.coming) == DATA.lookahead + 6


def test_a_state_that_was_set_is_the_state():
    """Not less what waits, which is read again."""
    whole, again = stream(), stream(streams=range(4))
    for _ in range(3):
        next(whole)
    state = whole.get_state()
    again.set_state(state)
    assert again.get_state() == {number: state[number] for number in map(str, range(4))}


def test_mostly_bad_examples():
    """What comes is not enough, again and again."""
    data = dataclasses.replace(DATA, max_bad_share=1.0)
    whole, resumed = stream(data, bad=2), stream(data, bad=2)
    for _ in range(3):
        next(whole)
    resumed.set_state(json.loads(json.dumps(whole.get_state())))
    for _ in range(3):
        assert equal(next(whole), next(resumed))
        assert whole.get_state() == resumed.get_state() and whole.counts() == resumed.counts()
    assert sum(counts.get("undecodable", 0) for counts in whole.counts().values()) > 200


def test_a_mixture_that_changes_goes_on_with_every_source():
    """No example is drawn twice: what each stream draws of a source after the change follows what it drew before."""
    data = stream()
    for _ in range(3):
        next(data)
    state = json.loads(json.dumps(data.get_state()))
    shares = {"speech": 0.3, "events": 0.3, "text": 0.4}
    changed, asked = stream(dataclasses.replace(DATA, mixture=shares)), []
    changed.set_state(state)
    read = changed._read
    changed._read = lambda draws: (asked.extend(draw for _, draw in draws), read(draws))[1]
    for _ in range(3):
        next(changed)
    for number in range(8):
        for name, before in state[str(number)]["mix"]["drawn"].items():
            counts = [draw.count for draw in asked if (draw.stream, draw.source) == (number, name)]
            assert counts == list(range(before, before + len(counts))) and counts


def test_the_seed_decides_the_order():
    assert equal(next(stream(seed=3)), next(stream(seed=3)))
    assert examples(next(stream(seed=3))) != examples(next(stream(seed=4)))


@pytest.mark.parametrize("bad", [0, 10])
def test_killed_at_any_step_and_gone_on_with_another_number_of_hosts(bad):
    """Fifty times, each after a number of steps and with a number of hosts drawn at random: one sequence."""
    data = dataclasses.replace(DATA, max_bad_share=0.5)
    random, whole = np.random.default_rng(0), stream(data, bad=bad)
    states = {}
    for _ in range(50):
        parts = [stream(data, streams=streams, bad=bad) for streams in parts_of(int(random.choice([1, 2, 4, 8])))]
        for part in parts:
            if states:
                part.set_state(states)
        for _ in range(random.integers(1, 4)):
            assert equal(next(whole), joined([next(part) for part in parts]))
        counts = collections.Counter()
        for part in parts:
            counts.update({(s, what): n for s, found in part.counts().items() for what, n in found.items()})
        assert counts == {(s, what): n for s, found in whole.counts().items() for what, n in found.items()}
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


def test_bad_examples_are_skipped_and_nothing_else_changes():
    """What each stream draws is the same; what cannot be used is left out of it, and all else is trained on."""
    drawn, trained = {}, {}
    for bad in (0, 10):
        data, asked = stream(dataclasses.replace(DATA, max_bad_share=0.2), bad=bad), []
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
    data = stream(dataclasses.replace(DATA, max_bad_share=0.2), bad=10, rejected=listed.add)
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
    next(stream(dataclasses.replace(DATA, max_bad_share=0.2), bad=10, rejected=again.add))
    assert (tmp_path / "rejected.jsonl").read_text() == before


def test_too_many_bad_examples_end_a_run_with_a_line():
    data = stream(bad=2)
    with pytest.raises(UserError, match=r"of \d+ examples cannot be used, more than data.max_bad_share=0.05; .*: file"):
        next(data)


def test_reading_ends_with_the_run():
    """What was asked for and is not begun is dropped, however slow the others are."""
    data, go_on = stream(bad=2), threading.Event()
    reader, asked = data._reader, itertools.count()
    read, reader.read = reader.read, lambda draw: (next(asked) < 60 or go_on.wait(60), read(draw))[1]

    def fails(stream):
        raise UserError("too many cannot be used")

    data._fill = fails
    with pytest.raises(UserError, match="cannot be used"):
        next(data)
    go_on.set()
    coming = [one.read for stream in data._streams for one in stream.coming]
    assert sum(read.cancelled() for read in coming) > len(coming) / 2


@pytest.mark.parametrize("seed", range(5))
def test_chance_alone_ends_no_run(seed):
    """One in twenty-five is bad, where one in twenty may be."""
    data = stream(bad=25, seed=seed)
    for _ in range(10):
        next(data)
    assert sum(counts.get("undecodable", 0) + counts.get("empty", 0) for counts in data.counts().values()) > 10


def test_what_fits_no_row_is_told_with_the_mend():
    with pytest.raises(UserError, match=r"does not fit: .*; set data.seq_len to at least"):
        next(stream(dataclasses.replace(DATA, seq_len=30)))

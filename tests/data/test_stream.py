"""Tests of the training stream: independence of hosts and workers, restoring, completeness, rejections."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import json
import threading
import time

import numpy as np
import pytest

from data_pipelines.examples import Rejection
from data_pipelines.rejection_log import RejectionLog
from data_pipelines.stream.mixture import normalise
from data_pipelines.stream.training_data import placed_examples
from data_pipelines.transforms.samples import SampleRef
from salmonn_jax.configs import get_preset
from salmonn_jax.configs.salmonn import STAGE2_MIXTURE
from salmonn_jax.errors import UserError
from salmonn_jax.prompts import TEXT_SLOT
from tests.data.streams import (
    DATA,
    MODEL,
    SHARES,
    SIZES,
    WINDOW,
    Tokenizer,
    equal,
    examples,
    joined,
    parts_of,
    refs_of,
    sample_reader,
    stream,
)  # fmt: skip


@pytest.mark.parametrize("hosts", [1, 2, 4, 8])
def test_hosts_read_parts_of_one_sequence(hosts):
    whole, parts = stream(), [stream(streams=streams) for streams in parts_of(hosts)]
    for _ in range(4):
        assert equal(next(whole), joined([next(part) for part in parts]))


def test_worker_processes_change_nothing():
    """Checks this with rejections, and from the state of another process."""
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


def test_reading_ahead_stays_within_the_budget_and_changes_nothing():
    """Counts the reads beyond the samples received: at most what two batches ahead and the budget allow."""
    reads, budget = [], 10 * 8 * 2 * WINDOW / 2**20
    frugal = dataclasses.replace(DATA, read_ahead_mb=1e-6)
    for data, read_ahead in ((dataclasses.replace(DATA, read_ahead_mb=budget), 7), (frugal, 1)):
        whole, counted = stream(), stream(data, on_read=reads.append)
        with contextlib.closing(counted):
            for _ in range(4):
                assert equal(next(whole), next(counted))
            settle(reads)
            received = sum(count["received"] for count in counted.counts().values())
            # Four batches were taken, and at most three more are made.
            assert received < len(reads) <= received + 3 * 60 + 8 * read_ahead
        reads.clear()


def example_of(segment) -> int:
    """The example of a segment: the first token of its answer says which."""
    return segment.tokens[segment.prompt_length] - 1003


def settle(reads: list) -> None:
    """Waits until reading has stopped."""
    before = -1
    while len(reads) != before:
        before = len(reads)
        time.sleep(0.2)


def test_a_state_that_was_set_is_the_state():
    """Checks that waiting samples, which are read again, stay in the state."""
    whole, again = stream(), stream(streams=range(4))
    for _ in range(3):
        next(whole)
    state = whole.get_state()
    again.set_state(state)
    assert again.get_state() == {number: state[number] for number in map(str, range(4))}


def test_mostly_bad_examples():
    """Rejects half of the samples, so that the window must be refilled several times in a step."""
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
    """Checks that a stream continues each source at its count, in the new shares."""
    samples = refs_of(SHARES, stream=3)
    before = list(itertools.islice(samples, 100))
    state = json.loads(json.dumps(samples.get_state()))
    shares = {"speech": 0.3, "events": 0.3, "text": 0.4}
    changed = refs_of(shares, stream=3)
    changed.set_state(state)
    after = list(itertools.islice(changed, 100))
    for name, share in shares.items():
        positions = [ref.position for ref, _ in before + after if ref.source == name]
        assert positions == list(range(3, 3 + 8 * len(positions), 8))
        assert abs(sum(ref.source == name for ref, _ in after) - 100 * share) <= 2


def test_a_source_that_is_mixed_in_no_longer_is_dropped():
    """Checks that waiting samples of a removed source are dropped from a restored state, and are not counted."""
    data, counts = stream(), collections.Counter()
    for _ in range(3):
        counts.update(source for source, _ in examples(next(data)))
    two = stream(dataclasses.replace(DATA, mixture={"speech": 0.5, "text": 0.5}))
    two.set_state(json.loads(json.dumps(data.get_state())))
    events = sorted(SIZES).index("events")
    placed = [source for _ in range(3) for source, _ in examples(next(two))]
    assert events not in placed
    assert two.counts()["events"] == data.counts()["events"]
    counts.update(placed)
    assert placed_examples(two.get_state()) == {name: counts[i] for i, name in enumerate(sorted(SIZES))}


def test_the_seed_decides_the_order():
    assert equal(next(stream(seed=3)), next(stream(seed=3)))
    assert examples(next(stream(seed=3))) != examples(next(stream(seed=4)))


@pytest.mark.parametrize("bad", [0, pytest.param(10, marks=pytest.mark.slow)])
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
    """Streams draw every position of a source once, and each epoch of positions is another order of its examples."""
    drawn = [itertools.islice(refs_of(SHARES, number), 400) for number in range(8)]
    positions = collections.defaultdict(list)
    for ref, _ in itertools.chain.from_iterable(zip(*drawn, strict=True)):
        positions[ref.source].append(ref.position)
    reader = sample_reader()
    for name, size in SIZES.items():
        assert set(range(2 * size)) <= set(positions[name]) and len(set(positions[name])) == len(positions[name])
        epochs = [[example_of(reader.read(SampleRef(name, e * size + i))) for i in range(size)] for e in range(3)]
        assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
        assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("shares", [SHARES, STAGE2_MIXTURE], ids=["three", "stage 2"])
def test_shares_in_a_stream_and_in_all(shares):
    """Checks 500 draws of 64 streams: a source is within 5 of its share in a stream, and within 20 in all streams."""
    shares = normalise(shares)
    names = sorted(shares)
    drawn = np.array([
        [names.index(ref.source) for ref, _ in itertools.islice(refs_of(shares, number, 64), 500)]
        for number in range(64)
    ])  # fmt: skip
    counts = np.eye(len(names), dtype=int)[drawn].cumsum(axis=1)
    expected = np.arange(1, 501)[:, None] * [shares[name] for name in names]
    assert np.abs(counts - expected).max() < 5
    assert np.abs(counts.sum(axis=0) - 64 * expected).max() < 20


def test_a_state_is_small():
    """Checks the limit of 4 KB per stream with the sixteen sources of stage 2, a window of 32 and large counts."""
    config = get_preset("salmonn_13b_stage2").recipe.data
    state = refs_of(normalise(config.mixture)).get_state()
    state["counts"] = dict.fromkeys(config.mixture, 10000000)
    whole = next(iter(stream().get_state().values())) | {"samples": state}
    whole["waiting"] = [["librispeech_phones", 640_000_000]] * config.lookahead
    whole["rejected"] = [[name, "undecodable", 1_000_000] for name in config.mixture]
    whole["placed"] = dict.fromkeys(config.mixture, 10000000)
    assert len(json.dumps(whole)) <= 4096


def test_shares_of_what_is_trained_on():
    data, counts = stream(), collections.Counter()
    for _ in range(30):
        counts.update(source for source, _ in examples(next(data)))
    total = counts.total()
    for number, name in enumerate(sorted(SIZES)):
        assert placed_examples(data.get_state())[name] == counts[number]
        # What waits in the windows, and one a stream.
        assert abs(counts[number] - total * SHARES[name]) <= 8 + 8 * 16 * SHARES[name]


def test_a_packed_row():
    batch, tokens = next(stream()), MODEL.num_audio_tokens
    assert (batch.segments.max(axis=1) > 1).any()
    heard = iter(range(48))
    for row in range(16):
        if row % 2 == 0:
            heard = iter(range(row * 3, row * 3 + 6))  # of the clips of its stream
        for number in range(1, batch.segments[row].max() + 1):
            (at,) = np.nonzero(batch.segments[row] == number)
            np.testing.assert_array_equal(at, np.arange(at[0], at[-1] + 1))
            np.testing.assert_array_equal(batch.positions[row, at], np.arange(len(at)))
            assert len(set(batch.source_index[row, at])) == 1
            assert batch.tokens[row, at[-1]] == Tokenizer.eos_token_id and batch.loss_mask[row, at[-1]]
            slots = batch.audio_slot[row, at]
            if sorted(SIZES)[batch.source_index[row, at[0]]] == "text":
                assert (slots == TEXT_SLOT).all()
            else:
                clip = next(heard)
                np.testing.assert_array_equal(slots[slots != TEXT_SLOT], clip * tokens + np.arange(tokens))
                (marker,) = batch.tokens[row, at[batch.loss_mask[row, at]]][:1] - 1003
                assert (batch.pcm[clip][: batch.pcm_length[clip]] == 1 + marker).all()
        assert (batch.source_index[row][batch.segments[row] == 0] == -1).all()


def test_padded_rows_hold_one_example_each():
    data = stream(dataclasses.replace(DATA, packing="pad", rows=40, clips=32, mixture=SHARES | {"text": 0.225}))
    rows = clips = 0
    for _ in range(10):
        batch = next(data)
        assert batch.segments.max() == 1
        rows, clips = rows + batch.segments.max(axis=1).sum(), clips + (batch.pcm_length > 0).sum()
    assert rows > 0.95 * 400 and clips > 0.95 * 320


def test_bad_examples_are_skipped_and_nothing_else_changes():
    """Every other sample is the same at its position, and is trained on."""
    clean, spoilt = sample_reader(), sample_reader(bad=10)
    for name, size in SIZES.items():
        for ref in (SampleRef(name, position) for position in range(2 * size)):
            one, other = clean.read(ref), spoilt.read(ref)
            if isinstance(other, Rejection):
                assert other.example % 10 == 1 == example_of(one) % 10
            else:
                assert one[:3] == other[:3] and equal(one.clips, other.clips)
    trained = {}
    for bad in (0, 10):
        data = stream(dataclasses.replace(DATA, max_bad_share=0.2), bad=bad)
        found = [example for _ in range(20) for example in examples(next(data))]
        trained[bad] = {example for source, example in found if source == 1}
    assert trained[0] - trained[10] == {i for i in range(SIZES["speech"]) if i % 10 == 1}


def test_bad_examples_are_counted_and_listed(tmp_path):
    log = RejectionLog(tmp_path / "rejected.jsonl")
    data = stream(dataclasses.replace(DATA, max_bad_share=0.2), bad=10, rejected=log.add)
    for _ in range(20):
        next(data)
    reader, expected = sample_reader(bad=10), {name: collections.Counter() for name in SIZES}
    for number, state in data.get_state().items():
        for name, received in state["samples"]["counts"].items():
            expected[name]["received"] += received
            for count in range(received):
                sample = reader.read(SampleRef(name, 8 * count + int(number)))
                expected[name].update([sample.reason] if isinstance(sample, Rejection) else [])
    assert data.counts() == {name: dict(counter) for name, counter in expected.items()}
    data.close()
    lines = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert {(line["source"], line["example"]) for line in lines} == {
        (name, i) for name, size in SIZES.items() for i in range(size) if i % 10 == 1
    }
    assert len(lines) == len({(line["source"], line["example"]) for line in lines})
    assert all(line["reason"] in ("undecodable", "empty") and "file" in line["detail"] for line in lines)
    before = (tmp_path / "rejected.jsonl").read_text()
    again = RejectionLog(tmp_path / "rejected.jsonl")
    next(stream(dataclasses.replace(DATA, max_bad_share=0.2), bad=10, rejected=again.add))
    assert (tmp_path / "rejected.jsonl").read_text() == before


def test_too_many_bad_examples_end_a_run_with_a_line():
    data = stream(bad=2)
    with pytest.raises(UserError, match=r"of \d+ examples cannot be used, more than data.max_bad_share=0.05; .*: file"):
        next(data)


def test_closing_drops_what_is_not_being_read():
    gate, reads = threading.Event(), []
    gate.set()
    data = stream(on_read=lambda index: (reads.append(index), gate.wait(60)))
    next(data)
    gate.clear()
    settle(reads)
    begun = len(reads)
    threading.Timer(0.3, gate.set).start()
    data.close()
    settle(reads)
    assert len(reads) == begun


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


def test_an_example_longer_than_the_context_is_rejected():
    """The row would have room for it."""
    short = dataclasses.replace(MODEL, llama=dataclasses.replace(MODEL.llama, max_position_embeddings=30))
    with pytest.raises(UserError, match=r"does not fit: .* but the context of the language model has 30"):
        next(stream(model=short))

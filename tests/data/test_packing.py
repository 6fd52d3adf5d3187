"""Tests of the packing algorithms: limits, order of waiting, and fill."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.packing import measure_packing
from data_pipelines.stream.packing import ExampleSize, StepCapacity, pack, pad


@pytest.mark.parametrize("packing", [pack, pad])
def test_rows_hold_what_they_can_and_nothing_twice(packing):
    random = np.random.default_rng(0)
    for _ in range(200):
        rows = int(random.integers(1, 5))
        capacity = StepCapacity(rows, 100, int(random.integers(0, 2 * rows + 1)))
        pending = [ExampleSize(int(random.integers(1, 101)), int(random.integers(0, 2))) for _ in range(12)]
        chosen = packing(pending, capacity)
        assert len(chosen) == capacity.rows
        placed = [i for row in chosen for i in row]
        assert len(placed) == len(set(placed))
        assert all(sum(pending[i].tokens for i in row) <= 100 for row in chosen)
        assert sum(pending[i].clips for i in placed) <= capacity.clips
        if packing is pad:
            assert all(len(row) <= 1 for row in chosen)


def test_the_fullest_row_is_found():
    """Completes the row of the example that has waited longest: of all pairs and triples only 30 + 45 fills the row."""
    pending = [
        ExampleSize(25, 1),
        ExampleSize(60, 1),
        ExampleSize(30, 1),
        ExampleSize(41, 1),
        ExampleSize(45, 1),
        ExampleSize(70, 1),
    ]
    assert pack(pending, StepCapacity(1, 100, 3)) == [[0, 2, 4]]


def test_clips_are_shared_over_rows():
    rows = pack([ExampleSize(40, 1)] * 8, StepCapacity(4, 100, 8))
    assert [len(row) for row in rows] == [2, 2, 2, 2]
    assert sum(len(row) for row in pack([ExampleSize(10, 1)] * 12, StepCapacity(4, 100, 8))) == 8


def test_text_takes_no_clip():
    pending = [ExampleSize(40, 0), ExampleSize(30, 1), ExampleSize(30, 0)]
    assert pack(pending, StepCapacity(1, 100, 1)) == [[0, 1, 2]]
    assert pack(pending, StepCapacity(1, 100, 0)) == [[0, 2]]


def test_an_example_of_several_clips_waits_until_they_fit():
    pending = [ExampleSize(50, 3), ExampleSize(50, 1), ExampleSize(50, 1)]
    assert pack(pending, StepCapacity(1, 100, 2)) == [[1, 2]]
    assert pack(pending, StepCapacity(1, 100, 4))[0][0] == 0
    assert pack([ExampleSize(50, 1), ExampleSize(90, 6)], StepCapacity(3, 100, 6)) == [[0], [], []]


def test_padded_rows_take_those_that_have_waited_longest():
    clip, text = ExampleSize(5, 1), ExampleSize(5, 0)
    assert pad([clip, text, clip, clip, text], StepCapacity(3, 9, 2)) == [[0], [1], [2]]
    assert pad([text, text, clip, clip], StepCapacity(3, 9, 2)) == [
        [0],
        [2],
        [3],
    ]  # the second text would waste a slot
    assert pad([text, text, clip], StepCapacity(3, 9, 2)) == [[0], [2], [1]]  # unless no other example waits
    assert pad([clip], StepCapacity(2, 9, 1)) == [[0], []]


def test_padded_rows_of_several_lengths_take_their_own_first():
    short, long = ExampleSize(5, 1), ExampleSize(9, 1)
    pending = [short, long, short, long]
    assert pad(pending, StepCapacity(2, 9, 2, shorter_seq_len=5)) == [[1], [3]]
    assert pad(pending, StepCapacity(3, 9, 3, shorter_seq_len=5)) == [[1], [3], [0]]
    assert pad(pending, StepCapacity(3, 5, 3)) == [[0], [2], []]


def test_stage_2_wastes_little():
    """The mixture of the paper in the layout of `salmonn_*_stage2`, whose lengths are simulated."""
    found = measure_packing(300, "packed")
    assert found.token_utilization > 0.93 and found.clip_utilization > 0.93
    assert found.max_wait_steps < 100
    alone = measure_packing(300, "packed, clips alone")
    assert alone.token_utilization > 0.93 and alone.clip_utilization > 0.93
    assert alone.tokens_per_example < 0.5 * alone.original_tokens_per_example
    bucketed = measure_packing(300, "padded, in buckets")
    assert bucketed.token_utilization > 0.8 and bucketed.clip_utilization > 0.93
    assert bucketed.max_wait_steps < 100

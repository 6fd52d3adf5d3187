"""Packing: nothing twice, nothing over the edge, nobody waits for ever, and little is wasted."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.packing import measured
from data_pipelines.stream.packing import Room, Size, pack, pad


@pytest.mark.parametrize("packing", [pack, pad])
def test_rows_hold_what_they_can_and_nothing_twice(packing):
    random = np.random.default_rng(0)
    for _ in range(200):
        rows = int(random.integers(1, 5))
        room = Room(rows, 100, int(random.integers(0, 2 * rows + 1)))
        window = [Size(int(random.integers(1, 101)), int(random.integers(0, 2))) for _ in range(12)]
        chosen = packing(window, room)
        assert len(chosen) == room.rows
        places = [i for row in chosen for i in row]
        assert len(places) == len(set(places))
        assert all(sum(window[i].tokens for i in row) <= 100 for row in chosen)
        assert sum(window[i].clips for i in places) <= room.clips
        if packing is pad:
            assert all(len(row) <= 1 for row in chosen)


def test_the_fullest_row_is_found():
    """Beside the one that has waited longest: of all pairs and triples only 30 + 45 fills the row."""
    window = [Size(25, 1), Size(60, 1), Size(30, 1), Size(41, 1), Size(45, 1), Size(70, 1)]
    assert pack(window, Room(1, 100, 3)) == [[0, 2, 4]]


def test_clips_are_shared_over_rows():
    rows = pack([Size(40, 1)] * 8, Room(4, 100, 8))
    assert [len(row) for row in rows] == [2, 2, 2, 2]
    assert sum(len(row) for row in pack([Size(10, 1)] * 12, Room(4, 100, 8))) == 8


def test_text_takes_no_clip():
    window = [Size(40, 0), Size(30, 1), Size(30, 0)]
    assert pack(window, Room(1, 100, 1)) == [[0, 1, 2]]
    assert pack(window, Room(1, 100, 0)) == [[0, 2]]


def test_an_example_of_several_clips_waits_until_they_fit():
    window = [Size(50, 3), Size(50, 1), Size(50, 1)]
    assert pack(window, Room(1, 100, 2)) == [[1, 2]]
    assert pack(window, Room(1, 100, 4))[0][0] == 0


def test_padded_rows_take_those_that_have_waited_longest():
    heard, read = Size(5, 1), Size(5, 0)
    assert pad([heard, read, heard, heard, read], Room(3, 9, 2)) == [[0], [1], [2]]
    assert pad([read, read, heard, heard], Room(3, 9, 2)) == [[0], [2], [3]]  # the second text would waste a slot
    assert pad([read, read, heard], Room(3, 9, 2)) == [[0], [2], [1]]  # unless nobody else is there
    assert pad([heard], Room(2, 9, 1)) == [[0], []]


def test_padded_rows_of_several_lengths_take_their_own_first():
    short, long = Size(5, 1), Size(9, 1)
    window = [short, long, short, long]
    assert pad(window, Room(2, 9, 2, shorter=5)) == [[1], [3]]
    assert pad(window, Room(3, 9, 3, shorter=5)) == [[1], [3], [0]]
    assert pad(window, Room(3, 5, 3)) == [[0], [2], []]


def test_stage_2_wastes_little():
    """The mixture of the paper in the layout of `salmonn_*_stage2`, whose lengths are simulated."""
    found = measured(300, "packed")
    assert found.tokens_filled > 0.93 and found.clips_filled > 0.93
    assert found.longest_wait < 100
    alone = measured(300, "packed, clips alone")
    assert alone.tokens_filled > 0.93 and alone.clips_filled > 0.93
    assert alone.tokens_an_example < 0.5 * alone.original_tokens_an_example
    bucketed = measured(300, "padded, in buckets")
    assert bucketed.tokens_filled > 0.8 and bucketed.clips_filled > 0.93
    assert bucketed.longest_wait < 100

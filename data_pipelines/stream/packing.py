"""Which of the examples that wait go into the rows of the next step, so that little of the rows and clips is wasted.

A stream has a few rows and clip slots of every step, and a window of examples that wait, the longest waiting first.
Shapes are static: what is left of a row is padding, and what is left of the clip slots is silence that was encoded for
nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

from salmonn_jax.config import DataConfig


class ExampleSize(NamedTuple):
    """What an example takes of a step."""

    tokens: int
    clips: int


class StepCapacity(NamedTuple):
    """What a stream has of a step."""

    rows: int
    seq_len: int  # tokens of a row
    clips: int  # slots of all its rows together
    shorter_seq_len: int = 0  # tokens of the next shorter rows that other steps have


def step_capacities(data: DataConfig) -> dict[str, StepCapacity]:
    """What a stream has of a step, by the length of its rows."""
    lengths = sorted(map(int, data.buckets or (data.seq_len,)))
    rows, clips = data.rows // data.streams, data.clips // data.streams
    return {str(long): StepCapacity(rows, long, clips, short) for short, long in itertools.pairwise([0, *lengths])}


def pack(pending: Sequence[ExampleSize], capacity: StepCapacity) -> list[list[int]]:
    """Several examples a row. Returns the places in the window of those in each row.

    Each row begins with the example that has waited longest, so that none waits for ever, and takes with it those that
    fill its tokens best, with about its share of the clips: of all that could, found by counting which numbers of
    tokens can be reached with how many clips.
    """
    left, clips, rows = list(range(len(pending))), capacity.clips, []
    for row in range(capacity.rows):
        share = -(-clips // (capacity.rows - row))
        most = clips if row == capacity.rows - 1 else min(clips, share + 1)
        first = next((i for i in left if pending[i].clips <= most), None)
        chosen = [] if first is None else _fill_row(pending, left, first, capacity.seq_len, share, most)
        rows.append(chosen)
        left = [i for i in left if i not in chosen]
        clips -= sum(pending[i].clips for i in chosen)
    return rows


def pad(pending: Sequence[ExampleSize], capacity: StepCapacity) -> list[list[int]]:
    """One example a row, those that have waited longest; with clips as far as there are slots.

    Where steps differ in the length of their rows, first come those for which shorter rows have no room: so none waits
    for ever. If they come more often than their steps, they fill the window and the shorter rows stay empty.
    """
    rows, clips = [], capacity.clips
    fitting = [i for i, size in enumerate(pending) if size.tokens <= capacity.seq_len]
    fitting.sort(key=lambda i: pending[i].tokens <= capacity.shorter_seq_len)
    # Of those without a clip no more than rows that cannot have one, as long as others wait.
    text = capacity.rows - capacity.clips
    late = []
    for i in fitting:
        size = pending[i]
        if len(rows) == capacity.rows:
            break
        if size.clips > clips:
            continue
        if size.clips == 0 and text <= 0:
            late.append([i])
            continue
        text -= size.clips == 0
        rows.append([i])
        clips -= size.clips
    rows += late[: capacity.rows - len(rows)]
    return rows + [[] for _ in range(capacity.rows - len(rows))]


PACKINGS: dict[str, Callable[[Sequence[ExampleSize], StepCapacity], list[list[int]]]] = {"pack": pack, "pad": pad}


def _fill_row(
    window: Sequence[ExampleSize], left: Sequence[int], first: int, seq_len: int, share: int, most: int
) -> list[int]:
    """The row that begins with `first`. Bit t of `reached[c]` says that t tokens can be reached with c clips."""
    begin = window[first]
    within = (1 << (seq_len + 1)) - 1
    reached = [0] * (most + 1)
    reached[begin.clips] = 1 << begin.tokens
    others, before = [i for i in left if i != first], []
    for i in others:
        before.append(reached)
        tokens, clips = window[i]
        moved = [0] * clips + [(bits << tokens) & within for bits in reached[: len(reached) - clips]]
        reached = [a | b for a, b in zip(reached, moved, strict=True)]

    clips = max(range(most + 1), key=lambda c: (reached[c].bit_length(), -abs(c - share)))
    tokens = reached[clips].bit_length() - 1
    chosen = [first]
    for i, bits in zip(reversed(others), reversed(before), strict=True):
        if bits[clips] >> tokens & 1:
            continue  # reached without it
        chosen.append(i)
        tokens -= window[i].tokens
        clips -= window[i].clips
    return [chosen[0], *reversed(chosen[1:])]

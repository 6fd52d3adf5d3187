"""Packing algorithms: they choose which of the waiting examples go into the rows of the next step.

A stream contributes a fixed number of rows and clip slots to every step, and chooses from a buffer of waiting examples,
ordered by waiting time. Shapes are static, so unused tokens are padding and unused clip slots are encoded silence.
`pack_dataset` uses this module.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

from salmonn_jax.config import DataConfig


class ExampleSize(NamedTuple):
    """Tokens and clip slots that an example needs."""

    tokens: int
    clips: int


class StepCapacity(NamedTuple):
    """Rows and clip slots that a stream contributes to a step."""

    rows: int
    seq_len: int  # tokens of a row
    clips: int  # clip slots, shared by all rows
    shorter_seq_len: int = 0  # tokens of a row in steps of the next shorter bucket


def step_capacities(data: DataConfig) -> dict[str, StepCapacity]:
    """Returns the capacity of a stream in a step, by the length of its rows."""
    lengths = sorted(map(int, data.buckets or (data.seq_len,)))
    rows, clips = data.rows // data.streams, data.clips // data.streams
    return {str(long): StepCapacity(rows, long, clips, short) for short, long in itertools.pairwise([0, *lengths])}


def pack(pending: Sequence[ExampleSize], capacity: StepCapacity) -> list[list[int]]:
    """Packs several examples into a row. Returns the indices in `pending` of the examples of each row.

    Each row starts with the example that has waited longest among those whose clips fit. A subset-sum search adds the
    waiting examples that fill the tokens of the row best and use as close as possible to an equal share of the free
    clip slots. A row is full when no further example fits its tokens and its limit of clips. An example with more clips
    than that limit fits only in the last row of a step, so it may wait until such examples fill the buffer.

    Args:
      pending: sizes of the waiting examples, the one that has waited longest first.
      capacity: rows, tokens and clip slots of the step.
    """
    remaining, free_clips, rows = list(range(len(pending))), capacity.clips, []
    for row in range(capacity.rows):
        share = -(-free_clips // (capacity.rows - row))
        max_clips = free_clips if row == capacity.rows - 1 else min(free_clips, share + 1)
        first = next((i for i in remaining if pending[i].clips <= max_clips), None)
        chosen = [] if first is None else _fill_row(pending, remaining, first, capacity.seq_len, share, max_clips)
        rows.append(chosen)
        remaining = [i for i in remaining if i not in chosen]
        free_clips -= sum(pending[i].clips for i in chosen)
    return rows


def pad(pending: Sequence[ExampleSize], capacity: StepCapacity) -> list[list[int]]:
    """Places one example in a row, in the order of waiting, as long as clip slots are free.

    If steps have rows of different lengths, examples that do not fit into shorter rows are placed first, so that they
    do not wait forever. If more long examples arrive than the steps with long rows can hold, they fill the lookahead
    buffer, and shorter steps leave rows empty.

    Args:
      pending: sizes of the waiting examples, the one that has waited longest first.
      capacity: rows, tokens and clip slots of the step.

    Returns:
      For each row a list with the index in `pending` of its example, or an empty list.
    """
    rows, free_clips = [], capacity.clips
    fitting = [i for i, size in enumerate(pending) if size.tokens <= capacity.seq_len]
    fitting.sort(key=lambda i: pending[i].tokens <= capacity.shorter_seq_len)
    # `capacity.rows - capacity.clips` rows are reserved for examples without audio. Further ones get the
    # rows that remain after all examples with audio.
    rows_without_clips = capacity.rows - capacity.clips
    deferred = []
    for i in fitting:
        size = pending[i]
        if len(rows) == capacity.rows:
            break
        if size.clips > free_clips:
            continue
        if size.clips == 0 and rows_without_clips <= 0:
            deferred.append([i])
            continue
        rows_without_clips -= size.clips == 0
        rows.append([i])
        free_clips -= size.clips
    rows += deferred[: capacity.rows - len(rows)]
    return rows + [[] for _ in range(capacity.rows - len(rows))]


PACKINGS: dict[str, Callable[[Sequence[ExampleSize], StepCapacity], list[list[int]]]] = {"pack": pack, "pad": pad}


def _fill_row(
    pending: Sequence[ExampleSize], remaining: Sequence[int], first: int, seq_len: int, share: int, max_clips: int
) -> list[int]:
    """Returns the fullest row that starts with `first`.

    Bit t of `reached[c]` is set if some of the examples have t tokens and c clips together.
    """
    first_size = pending[first]
    token_mask = (1 << (seq_len + 1)) - 1
    reached = [0] * (max_clips + 1)
    reached[first_size.clips] = 1 << first_size.tokens
    others, before = [i for i in remaining if i != first and pending[i].clips <= max_clips], []
    for i in others:
        before.append(reached)
        tokens, clips = pending[i]
        shifted = [0] * clips + [(bits << tokens) & token_mask for bits in reached[: len(reached) - clips]]
        reached = [a | b for a, b in zip(reached, shifted, strict=True)]

    clips = max(range(max_clips + 1), key=lambda c: (reached[c].bit_length(), -abs(c - share)))
    tokens = reached[clips].bit_length() - 1
    chosen = [first]
    for i, bits in zip(reversed(others), reversed(before), strict=True):
        if bits[clips] >> tokens & 1:
            continue  # the sum is reached without this example
        chosen.append(i)
        tokens -= pending[i].tokens
        clips -= pending[i].clips
    return [chosen[0], *reversed(chosen[1:])]

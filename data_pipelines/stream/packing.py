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
from salmonn_jax.errors import UserError


class Size(NamedTuple):
    """What an example takes of a step."""

    tokens: int
    clips: int


class Room(NamedTuple):
    """What a stream has of a step."""

    rows: int
    sequence: int  # tokens of a row
    clips: int  # slots of all its rows together
    shorter: int = 0  # tokens of the next shorter rows that other steps have


def rooms(data: DataConfig) -> dict[str, Room]:
    """What a stream has of a step, by the length of its rows."""
    lengths = sorted(map(int, data.buckets or (data.seq_len,)))
    rows, clips = data.rows // data.streams, data.clips // data.streams
    return {str(long): Room(rows, long, clips, short) for short, long in itertools.pairwise([0, *lengths])}


def placed_per_step(data: DataConfig) -> int:
    """Returns about the most samples that a stream places in a step; rows without clips may hold more."""
    return max(data.rows, data.clips) // data.streams


def check_sizes(data: DataConfig) -> None:
    """Raises UserError if rows, their lengths, clips and the window of samples do not go together."""
    if data.buckets:
        if data.packing != "pad":
            raise UserError("data.buckets are lengths of padded rows; set data.packing=pad, or leave them out")
        whole = all(length.isdecimal() and length == str(int(length)) != "0" for length in data.buckets)
        if not whole or max(map(int, data.buckets)) != data.seq_len:
            raise UserError(
                f"data.buckets has lengths {', '.join(data.buckets)}; they must be whole numbers above 0, and "
                f"the longest data.seq_len={data.seq_len}"
            )
        if not min(data.buckets.values()) > 0:
            raise UserError("a share in data.buckets is not above 0; leave that length out")
    for name, size in (("rows", data.rows), ("clips", data.clips)):
        if size % data.streams:
            raise UserError(f"data.{name}={size} does not divide over data.streams={data.streams}")
    if data.packing == "pad" and data.clips > data.rows:
        raise UserError(f"data.clips={data.clips} is more than data.rows={data.rows}; a row holds one clip at most")
    if data.lookahead < placed_per_step(data):
        raise UserError(
            f"data.lookahead={data.lookahead} is less than a stream places in a step; set it to {placed_per_step(data)}"
        )
    if not data.read_ahead_mb > 0:
        raise UserError(f"data.read_ahead_mb={data.read_ahead_mb:g} must be above 0")


def pack(window: Sequence[Size], room: Room) -> list[list[int]]:
    """Several examples a row. Returns the places in the window of those in each row.

    Each row begins with the example that has waited longest, so that none waits for ever, and takes with it those that
    fill its tokens best, with about its share of the clips: of all that could, found by counting which numbers of
    tokens can be reached with how many clips.
    """
    left, clips, rows = list(range(len(window))), room.clips, []
    for row in range(room.rows):
        share = -(-clips // (room.rows - row))
        most = clips if row == room.rows - 1 else min(clips, share + 1)
        first = next((i for i in left if window[i].clips <= most), None)
        chosen = [] if first is None else _fullest(window, left, first, room.sequence, share, most)
        rows.append(chosen)
        left = [i for i in left if i not in chosen]
        clips -= sum(window[i].clips for i in chosen)
    return rows


def pad(window: Sequence[Size], room: Room) -> list[list[int]]:
    """One example a row, those that have waited longest; with clips as far as there are slots.

    Where steps differ in the length of their rows, first come those for which shorter rows have no room: so none waits
    for ever. If they come more often than their steps, they fill the window and the shorter rows stay empty.
    """
    rows, clips = [], room.clips
    fitting = [i for i, size in enumerate(window) if size.tokens <= room.sequence]
    fitting.sort(key=lambda i: window[i].tokens <= room.shorter)
    # Of those without a clip no more than rows that cannot have one, as long as others wait.
    text = room.rows - room.clips
    late = []
    for i in fitting:
        size = window[i]
        if len(rows) == room.rows:
            break
        if size.clips > clips:
            continue
        if size.clips == 0 and text <= 0:
            late.append([i])
            continue
        text -= size.clips == 0
        rows.append([i])
        clips -= size.clips
    rows += late[: room.rows - len(rows)]
    return rows + [[] for _ in range(room.rows - len(rows))]


PACKINGS: dict[str, Callable[[Sequence[Size], Room], list[list[int]]]] = {"pack": pack, "pad": pad}


def _fullest(
    window: Sequence[Size], left: Sequence[int], first: int, sequence: int, share: int, most: int
) -> list[int]:
    """The row that begins with `first`. Bit t of `reached[c]` says that t tokens can be reached with c clips."""
    begin = window[first]
    within = (1 << (sequence + 1)) - 1
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

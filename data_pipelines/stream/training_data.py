"""The training stream: what every step of a run reads, a function of the seed and the step alone.

A fixed number of streams make a batch, each its own part of it. A stream draws from every source by the mixture, keeps
a window of examples that wait, and packs its rows from it. The processes of a job share the streams, so neither their
number nor that of the workers changes what a step sees; and a checkpoint holds which examples wait in each stream, from
which any other number of processes goes on at once.
"""

from __future__ import annotations

import collections
import concurrent.futures
import math
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

from data_pipelines.stream.draws import Draw, Reader, Rejected
from data_pipelines.stream.mixture import normalised
from data_pipelines.stream.packing import PACKINGS, Room, Size, rooms
from data_pipelines.stream.schedule import Mix, Orders
from salmonn_jax.batch import Batch, Segment, empty, lay, part_of
from salmonn_jax.config import DataConfig
from salmonn_jax.errors import UserError

BATCHES_AHEAD = 2
JUDGED = 200  # examples as of which the share of bad ones is judged
MOST_THREADS = 32
CHUNK = 4  # draws that a worker process is given at a time


class Coming(NamedTuple):
    """A draw that is being read, with others."""

    draw: Draw
    read: Future[list[Segment | Rejected]]
    place: int  # among what is read with it


class Stream:
    """One of the streams: its mix, and the examples that wait in it. What it does depends on nothing else.

    Args:
      number: of the stream.
      mix: of its sources.
      lengths: the mix of the lengths of the rows of its steps, the same in all streams.

    Attributes:
      window: what can be placed, the longest waiting first.
      coming: what was drawn after it and is being read.
    """

    def __init__(self, number: int, mix: Mix, lengths: Mix):
        self.number, self.mix, self.lengths = number, mix, lengths
        self.window: list[tuple[Draw, Segment]] = []
        self.coming: collections.deque[Coming] = collections.deque()
        self.rejected: collections.Counter[tuple[str, str]] = collections.Counter()  # by source and reason

    def draw(self) -> Draw:
        """The next of the mix."""
        return Draw(self.number, *self.mix.draw())

    def drop(self, places: Iterable[int]) -> None:
        """Takes what was placed out of the window."""
        gone = set(places)
        self.window = [entry for i, entry in enumerate(self.window) if i not in gone]

    def received(self) -> dict[str, int]:
        """How many examples of each source were drawn and are not coming any more."""
        coming = collections.Counter(one.draw.source for one in self.coming)
        return {source: count - coming[source] for source, count in self.mix.drawn.items()}

    def state(self) -> dict[str, Any]:
        """All that it is, as JSON. What is coming is not in it: it will be drawn again."""
        return {
            "mix": self.mix.state() | {"drawn": self.received()},
            "lengths": self.lengths.state(),
            "window": [[draw.source, draw.count] for draw, _ in self.window],
            "rejected": [[source, reason, count] for (source, reason), count in sorted(self.rejected.items())],
        }


class TrainingData:
    """An endless iterator of a process' parts of the batches, read ahead; with `get_state` and `set_state`.

    Args:
      reader: reads draws.
      data: the configuration.
      shares: of each source (see `mixture.shares`).
      streams: those this process reads, of `data.streams`; by default all.
      rejected: told of each example that cannot be used, when it is first met.

    Raises:
      UserError: the sizes of the configuration do not go together, or a share is too small to be mixed. And from
        `next`: more of the examples than `data.max_bad_share` cannot be used; then only `set_state` and
        `close` may follow.
    """

    def __init__(
        self,
        reader: Reader,
        data: DataConfig,
        shares: Mapping[str, float],
        *,
        streams: Sequence[int] | None = None,
        rejected: Callable[[Rejected], object] = lambda one: None,
    ):
        check_sizes(data)
        self.rejected, self.shares = rejected, shares
        self._reader, self._data = reader, data
        self._numbers = tuple(range(data.streams)) if streams is None else tuple(streams)
        self._orders, self._lengths = Orders(shares, data.streams, self._numbers), _lengths(data)
        self._rooms = rooms(data)
        self._pool = _pool(reader, data.num_workers)
        self._ahead = concurrent.futures.ThreadPoolExecutor(1)  # makes one batch after another
        self._made: collections.deque[Future] = collections.deque()
        self._streams = [self._stream(number) for number in self._numbers]
        self._state = self._snapshot()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        while len(self._made) < BATCHES_AHEAD:
            self._made.append(self._ahead.submit(self._make))
        try:
            batch, self._state = self._made.popleft().result()
        except Exception:
            self._stop()
            raise
        return batch

    def get_state(self) -> dict[str, Any]:
        """Where the streams stand after the last batch that was given, by number."""
        return self._state

    def set_state(self, states: Mapping[str, Any]) -> None:
        """Moves to where these states stand, which may hold more streams than this process reads.

        What waited is read again; where it cannot be used any more, it is counted.
        """
        self._stop()
        self._streams = [self._stream(number, states[str(number)]) for number in self._numbers]
        for stream in self._streams:
            while stream.coming:
                self._receive(stream)
        self._state = self._snapshot()

    def counts(self) -> dict[str, dict[str, int]]:
        """By source, of the streams of this process up to the last batch: `drawn`, and how many for each reason not."""
        counts: dict[str, collections.Counter] = {name: collections.Counter() for name in self.shares}
        for state in self._state.values():
            for source, drawn in state["mix"]["drawn"].items():
                counts.setdefault(source, collections.Counter())["drawn"] += drawn
            for source, reason, count in state["rejected"]:
                counts.setdefault(source, collections.Counter())[reason] += count
        return {source: dict(counter) for source, counter in counts.items()}

    def close(self) -> None:
        """Ends the reading ahead."""
        self._stop()
        self._ahead.shutdown(cancel_futures=True)
        self._pool.shutdown(cancel_futures=True)

    def _stop(self) -> None:
        """Drops what is made ahead, and what is read for it."""
        for future in self._made:
            future.cancel()
        concurrent.futures.wait(self._made)
        self._made.clear()
        for stream in self._streams:
            for coming in stream.coming:
                coming.read.cancel()

    def _make(self) -> tuple[Batch, dict[str, Any]]:
        """The next batch, and where the streams stand after it."""
        self._draw()
        for stream in self._streams:
            self._fill(stream)
        (room,) = {self._rooms[stream.lengths.draw()[0]] for stream in self._streams}  # one, of which each has as much
        chosen = [self._choose(stream, room) for stream in self._streams]
        state = self._snapshot()
        self._draw()  # to be read while this batch is laid out
        count, layout = len(self._streams), self._reader.sizes
        batch = empty(count * room.rows, room.sequence, count * room.clips, layout.window, layout.transcript)
        for i, (stream, rows) in enumerate(zip(self._streams, chosen, strict=True)):
            first = stream.number * room.clips
            lay(part_of(batch, i, count), rows, audio_tokens=layout.audio_tokens, first_clip=first)
        return batch, state

    def _choose(self, stream: Stream, room: Room) -> list[list[Segment]]:
        """Takes from the window of a stream what fills its rows."""
        sizes = [Size(len(segment.tokens), len(segment.clips)) for _, segment in stream.window]
        rows = PACKINGS[self._data.packing](sizes, room)
        taken = [[stream.window[place][1] for place in row] for row in rows]
        stream.drop(place for row in rows for place in row)
        return taken

    def _draw(self) -> None:
        """Draws for every window what it lacks, and what it will after the next step: so reading never pauses."""
        draws = []
        for stream in self._streams:
            waiting = len(stream.window) + len(stream.coming)
            missing = self._data.lookahead + _step(self._data) - waiting
            draws += [(stream, stream.draw()) for _ in range(missing)]
        self._read(draws)

    def _read(self, draws: Sequence[tuple[Stream, Draw]]) -> None:
        """Has draws read, which will come to their streams."""
        chunk, read = (CHUNK, _read_here) if self._data.num_workers else (1, self._reader.read_all)
        for start in range(0, len(draws), chunk):
            together = draws[start : start + chunk]
            future = self._pool.submit(read, [draw for _, draw in together])
            for place, (stream, draw) in enumerate(together):
                stream.coming.append(Coming(draw, future, place))

    def _fill(self, stream: Stream) -> None:
        """Waits until its window is full. What cannot be used is counted, and the next takes its place."""
        while len(stream.window) < self._data.lookahead:
            if not stream.coming:
                self._read([(stream, stream.draw())])
            found = self._receive(stream)
            if isinstance(found, Rejected):
                self._judge(found)

    def _receive(self, stream: Stream) -> Segment | Rejected:
        """Waits for the next that is coming, and puts it into the window, or counts why it cannot be used."""
        draw, read, place = stream.coming.popleft()
        found = read.result()[place]
        if isinstance(found, Rejected):
            stream.rejected[found.source, found.reason] += 1
            self.rejected(found)
        else:
            stream.window.append((draw, found))
        return found

    def _judge(self, last: Rejected) -> None:
        received = sum(sum(stream.received().values()) for stream in self._streams)
        bad = sum(stream.rejected.total() for stream in self._streams)
        expected = self._data.max_bad_share * max(received, JUDGED)
        if last.reason == "too long" and self._data.too_long == "error":
            raise UserError(
                f"example {last.index} of {last.source} is too long ({last.detail}), and data.too_long is error"
            )
        # Of a few, more may be bad by chance: by three standard deviations.
        if bad > expected + 3 * math.sqrt(expected):
            raise UserError(
                f"{bad} of {received} examples cannot be used, "
                f"more than data.max_bad_share={self._data.max_bad_share:g}; "
                f"the last is example {last.index} of {last.source}, {last.reason}: {last.detail}"
            )

    def _snapshot(self) -> dict[str, Any]:
        return {str(stream.number): stream.state() for stream in self._streams}

    def _stream(self, number: int, state: Mapping[str, Any] | None = None) -> Stream:
        """A stream at its beginning, or as it was: what waited in it is being read, and is coming again."""
        of_mix, of_lengths = (None, None) if state is None else (state["mix"], state.get("lengths"))
        stream = Stream(number, Mix(self._orders, number, of_mix), Mix(self._lengths, 0, of_lengths))
        if state is not None:
            stream.rejected.update({(source, reason): count for source, reason, count in state["rejected"]})
            waiting = (Draw(number, source, count) for source, count in state["window"])
            # Of a source that is mixed in no longer, nothing waits.
            self._read([(stream, draw) for draw in waiting if draw.source in self.shares])
        return stream


def check_sizes(data: DataConfig) -> None:
    """Raises UserError if rows, their lengths, clips and the window of examples do not go together."""
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
        _lengths(data)
    for name, size in (("rows", data.rows), ("clips", data.clips)):
        if size % data.streams:
            raise UserError(f"data.{name}={size} does not divide over data.streams={data.streams}")
    if data.packing == "pad" and data.clips > data.rows:
        raise UserError(f"data.clips={data.clips} is more than data.rows={data.rows}; a row holds one clip at most")
    least = _step(data)
    if data.lookahead < least:
        raise UserError(f"data.lookahead={data.lookahead} is less than a stream places in a step; set it to {least}")


def _lengths(data: DataConfig) -> Orders:
    """In which order steps have rows of which length; the same for all streams."""
    return Orders(normalised(data.buckets or {str(data.seq_len): 1.0}), 1, [0])


def _step(data: DataConfig) -> int:
    """About the most examples a stream places in a step; rows without clips may hold more."""
    return max(data.rows, data.clips) // data.streams


_reader: Reader  # of a worker process


def _pool(reader: Reader, workers: int) -> concurrent.futures.Executor:
    if not workers:
        # More threads than cores take the interpreter's lock from each other: 8 on two cores read a third less.
        return concurrent.futures.ThreadPoolExecutor(min(MOST_THREADS, cores()))
    # Not forked: this process has threads, and a fork may hang on a lock one of them holds.
    context = multiprocessing.get_context("spawn")
    return concurrent.futures.ProcessPoolExecutor(workers, context, _start_worker, (reader,))


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start_worker(reader: Reader) -> None:
    global _reader
    _reader = reader


def _read_here(draws: Sequence[Draw]) -> list[Segment | Rejected]:
    return _reader.read_all(draws)

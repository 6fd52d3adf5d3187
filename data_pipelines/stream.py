"""The training stream: what every step of a run reads, a function of the seed and the step alone.

A fixed number of streams make a batch, each its own part of it. A stream draws from every source by the mixture, keeps
a window of examples that wait, and packs its rows from it. The processes of a job share the streams, so neither their
number nor that of the workers changes what a step sees; and a checkpoint holds a few numbers a stream, from which any
other number of processes goes on at once.
"""

from __future__ import annotations

import collections
import concurrent.futures
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from data_pipelines.draws import Draw, Reader, Rejected
from data_pipelines.mixture import Mix, normalised
from data_pipelines.packing import PACKINGS, Room, Size, rooms
from salmonn_jax.batch import Batch, Segment, empty, lay, part_of
from salmonn_jax.config import DataConfig
from salmonn_jax.errors import UserError

BATCHES_AHEAD = 2
JUDGED = 200  # draws before the share of bad ones is judged
THREADS = 8


class Stream:
    """One of the streams: its mix, and the examples that wait in it. What it does depends on nothing else."""

    def __init__(self, number: int, shares: Mapping[str, float], lengths: Mapping[str, float]):
        self.number, self.mix = number, Mix(shares, number)
        self.lengths = Mix(lengths, 0)  # of the rows of its steps: the same in all streams
        self.window: list[tuple[Draw, Segment]] = []
        self.rejected: collections.Counter[tuple[str, str]] = collections.Counter()  # by source and reason

    def take(self, places: Iterable[int]) -> list[Segment]:
        return [self.window[i][1] for i in places]

    def drop(self, places: Iterable[int]) -> None:
        gone = set(places)
        self.window = [entry for i, entry in enumerate(self.window) if i not in gone]

    def state(self) -> dict[str, Any]:
        """All that it is, as JSON."""
        return {
            "mix": self.mix.state(),
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
      UserError: the sizes of the configuration do not go together. And from `next`: more of the examples than
        `data.bad_share` cannot be used.
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
        self._lengths = normalised(data.buckets or {str(data.sequence): 1.0})
        self._rooms = rooms(data)
        self._pool = _pool(reader, data.workers)
        self._ahead = concurrent.futures.ThreadPoolExecutor(1)  # makes one batch after another
        self._made: collections.deque[concurrent.futures.Future] = collections.deque()
        self._streams = [Stream(number, shares, self._lengths) for number in self._numbers]
        self._state = self._snapshot()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        while len(self._made) < BATCHES_AHEAD:
            self._made.append(self._ahead.submit(self._make))
        batch, self._state = self._made.popleft().result()
        return batch

    def get_state(self) -> dict[str, Any]:
        """Where the streams stand after the last batch that was given, by number."""
        return self._state

    def set_state(self, states: Mapping[str, Any]) -> None:
        """Moves to where these states stand, which may hold more streams than this process reads."""
        for future in self._made:
            future.cancel()
        concurrent.futures.wait(self._made)
        self._made.clear()
        self._streams = [self._restored(number, states[str(number)]) for number in self._numbers]
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
        self._ahead.shutdown(cancel_futures=True)
        self._pool.shutdown(cancel_futures=True)

    def _make(self) -> tuple[Batch, dict[str, Any]]:
        self._refill()
        (room,) = {self._rooms[stream.lengths.draw()[0]] for stream in self._streams}  # one, of which each has as much
        count, layout = len(self._streams), self._reader.sizes
        batch = empty(count * room.rows, room.sequence, count * room.clips, layout.window, layout.transcript)
        for i, stream in enumerate(self._streams):
            self._lay(part_of(batch, i, count), stream, room)
        return batch, self._snapshot()

    def _lay(self, part: Batch, stream: Stream, room: Room) -> None:
        """Moves what fills a stream's part of a batch from its window to there."""
        sizes = [Size(len(segment.tokens), len(segment.clips)) for _, segment in stream.window]
        rows = PACKINGS[self._data.packing](sizes, room)
        first = stream.number * room.clips
        lay(part, [stream.take(row) for row in rows], audio_tokens=self._reader.sizes.audio_tokens, first_clip=first)
        stream.drop(place for row in rows for place in row)

    def _refill(self) -> None:
        """Draws until every window is full. What cannot be used is counted, and the next is drawn instead."""
        while True:
            draws = []
            for stream in self._streams:
                missing = self._data.lookahead - len(stream.window)
                draws += [Draw(stream.number, *stream.mix.draw()) for _ in range(missing)]
            if not draws:
                return
            streams = {stream.number: stream for stream in self._streams}
            for draw, found in zip(draws, self._read(draws), strict=True):
                if isinstance(found, Rejected):
                    streams[draw.stream].rejected[found.source, found.reason] += 1
                    self.rejected(found)
                    self._judge(found)
                else:
                    streams[draw.stream].window.append((draw, found))

    def _read(self, draws: Sequence[Draw]) -> Iterator[Segment | Rejected]:
        if self._data.workers:
            return self._pool.map(_read_here, draws, chunksize=max(1, len(draws) // (4 * self._data.workers)))
        return self._pool.map(self._reader.read, draws)

    def _judge(self, last: Rejected) -> None:
        drawn = sum(sum(stream.mix.drawn.values()) for stream in self._streams)
        bad = sum(stream.rejected.total() for stream in self._streams)
        if last.reason == "too long" and self._data.too_long == "error":
            raise UserError(
                f"example {last.index} of {last.source} is too long ({last.detail}), and data.too_long is error"
            )
        if bad > self._data.bad_share * max(drawn, JUDGED):
            raise UserError(
                f"{bad} of {drawn} examples cannot be used, more than data.bad_share={self._data.bad_share:g}; "
                f"the last is example {last.index} of {last.source}, {last.reason}: {last.detail}"
            )

    def _snapshot(self) -> dict[str, Any]:
        return {str(stream.number): stream.state() for stream in self._streams}

    def _restored(self, number: int, state: Mapping[str, Any]) -> Stream:
        """A stream as it was: what waits in it is read again. Of a source that is mixed in no longer, nothing waits."""
        stream = Stream(number, self.shares, self._lengths)
        stream.mix = Mix(self.shares, number, state["mix"])
        stream.lengths = Mix(self._lengths, 0, state.get("lengths"))  # older states have none
        stream.rejected.update({(source, reason): count for source, reason, count in state["rejected"]})
        waiting = [Draw(number, source, count) for source, count in state["window"] if source in self.shares]
        read = zip(waiting, self._read(waiting), strict=True)
        stream.window = [(draw, found) for draw, found in read if not isinstance(found, Rejected)]
        return stream


def check_sizes(data: DataConfig) -> None:
    """Raises UserError if rows, their lengths, clips and the window of examples do not go together."""
    if data.buckets:
        if data.packing != "pad":
            raise UserError("data.buckets are lengths of padded rows; set data.packing=pad, or leave them out")
        whole = all(length.isdecimal() and length == str(int(length)) != "0" for length in data.buckets)
        if not whole or max(map(int, data.buckets)) != data.sequence:
            raise UserError(
                f"data.buckets has lengths {', '.join(data.buckets)}; they must be whole numbers above 0, and "
                f"the longest data.sequence={data.sequence}"
            )
        if not min(data.buckets.values()) > 0:
            raise UserError("a share in data.buckets is not above 0; leave that length out")
    for name, size in (("rows", data.rows), ("clips", data.clips)):
        if size % data.streams:
            raise UserError(f"data.{name}={size} does not divide over data.streams={data.streams}")
    if data.packing == "pad" and data.clips > data.rows:
        raise UserError(f"data.clips={data.clips} is more than data.rows={data.rows}; a row holds one clip at most")
    least = max(data.rows, data.clips) // data.streams
    if data.lookahead < least:
        raise UserError(f"data.lookahead={data.lookahead} is less than a stream places in a step; set it to {least}")


_reader: Reader  # of a worker process


def _pool(reader: Reader, workers: int) -> concurrent.futures.Executor:
    if not workers:
        return concurrent.futures.ThreadPoolExecutor(THREADS)
    # Not forked: this process has threads, and a fork may hang on a lock one of them holds.
    context = multiprocessing.get_context("spawn")
    return concurrent.futures.ProcessPoolExecutor(workers, context, _start_worker, (reader,))


def _start_worker(reader: Reader) -> None:
    global _reader
    _reader = reader


def _read_here(draw: Draw) -> Segment | Rejected:
    return _reader.read(draw)

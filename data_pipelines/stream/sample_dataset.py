"""The samples of one stream: drawn from the sources by weight, and read ahead in the reader pool of the host."""

from __future__ import annotations

import collections
import concurrent.futures
import multiprocessing
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import grain

from data_pipelines.examples import Rejection
from data_pipelines.stream.samples import SampleReader, SampleRef
from salmonn_jax.batch import Segment

MAX_THREADS = 32
CHUNK = 4  # samples that a worker process reads at a time
# Streams start at different places of the mixture, spread by the golden ratio, so that their rounding errors cancel.
GOLDEN_RATIO, NUM_OFFSETS = 0.6180339887498949, 1 << 20


class PendingSample(NamedTuple):
    """A sample that is being read, in a chunk with others."""

    ref: SampleRef
    chunk: concurrent.futures.Future[list[Segment | Rejection]]
    index: int  # in the chunk

    def result(self) -> Segment | Rejection:
        """Waits for the sample."""
        return self.chunk.result()[self.index]


class ReaderPool:
    """Threads or processes that read samples: one pool for all streams of a host.

    Args:
      reader: reads samples.
      num_workers: processes; 0 reads in threads, one a core.
    """

    def __init__(self, reader: SampleReader, num_workers: int):
        if num_workers:
            # Not forked: this process has threads, and a fork may hang on a lock that one of them holds.
            context = multiprocessing.get_context("spawn")
            self._executor = concurrent.futures.ProcessPoolExecutor(num_workers, context, _start_worker, (reader,))
            self._read_all, self.chunk = _read_in_worker, CHUNK
        else:
            # More threads than cores contend for the interpreter lock: 8 on two cores read a third less.
            self._executor = concurrent.futures.ThreadPoolExecutor(min(MAX_THREADS, available_cores()))
            self._read_all, self.chunk = reader.read_all, 1

    def read(self, refs: Sequence[SampleRef]) -> list[PendingSample]:
        """Starts reading samples. They are pending in the order of `refs`."""
        pending = []
        for start in range(0, len(refs), self.chunk):
            chunk = list(refs[start : start + self.chunk])
            future = self._executor.submit(self._read_all, chunk)
            pending += [PendingSample(ref, future, index) for index, ref in enumerate(chunk)]
        return pending

    def close(self) -> None:
        """Drops what is not being read yet."""
        self._executor.shutdown(wait=False, cancel_futures=True)


class SampleIterDataset(grain.IterDataset[tuple[SampleRef, Segment | Rejection]]):
    """The endless samples of one stream, rejections included, each with its reference.

    Stream `stream` of `num_streams` takes every `num_streams`-th position of a source, so that the streams together see
    each example once an epoch. Which source comes next is decided by grain's mix of the shares.

    Args:
      shares: of the samples, by source; they sum to 1.
      stream: the number of the stream.
      num_streams: how many streams there are on all hosts.
      pool: reads the samples.
      read_ahead: how many samples are read before they are needed.
    """

    def __init__(
        self, shares: Mapping[str, float], stream: int, num_streams: int, pool: ReaderPool, *, read_ahead: int
    ):
        super().__init__()
        self.shares, self.pool, self.stream, self.num_streams = dict(shares), pool, stream, num_streams
        self.read_ahead = read_ahead
        self.schedule = mixed_names(shares)
        self.offset = int(stream * GOLDEN_RATIO % 1 * NUM_OFFSETS)

    def __iter__(self) -> SampleIterator:
        return SampleIterator(self)


class SampleIterator(grain.DatasetIterator[tuple[SampleRef, Segment | Rejection]]):
    """See `SampleIterDataset`.

    The state counts the samples that were yielded of each source, and those since the shares were last changed. It does
    not hold what is being read ahead, which is drawn again.
    """

    def __init__(self, dataset: SampleIterDataset):
        super().__init__()
        self._dataset = dataset
        self._pending: collections.deque[PendingSample] = collections.deque()
        self._counts: collections.Counter[str] = collections.Counter()  # yielded, by source
        self._step = 0  # yielded since the shares were changed
        self._draw_counts, self._draw_step = self._counts.copy(), 0  # the same of what was drawn

    def __next__(self) -> tuple[SampleRef, Segment | Rejection]:
        dataset = self._dataset
        missing = dataset.read_ahead + 1 - len(self._pending)
        if missing >= dataset.pool.chunk or not self._pending:
            self._pending.extend(dataset.pool.read([self._draw() for _ in range(max(missing, 1))]))
        pending = self._pending.popleft()
        sample = pending.result()
        self._counts[pending.ref.source] += 1
        self._step += 1
        return pending.ref, sample

    def _draw(self) -> SampleRef:
        dataset = self._dataset
        source = dataset.schedule[dataset.offset + self._draw_step]
        position = self._draw_counts[source] * dataset.num_streams + dataset.stream
        self._draw_counts[source] += 1
        self._draw_step += 1
        return SampleRef(source, position)

    def get_state(self) -> dict[str, Any]:
        return {"shares": self._dataset.shares, "step": self._step, "counts": dict(self._counts)}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restores a state. If it was saved with other shares, these hold from here on; counts go on."""
        for pending in self._pending:
            pending.chunk.cancel()
        self._pending.clear()
        self._counts = collections.Counter(state["counts"])
        self._step = state["step"] if state["shares"] == self._dataset.shares else 0
        self._draw_counts, self._draw_step = self._counts.copy(), self._step


def mixed_names(shares: Mapping[str, float]) -> grain.MapDataset[str]:
    """Returns an endless dataset of names, each in its share: `grain.MapDataset.mix`, whose ratios are within 1 %."""
    names = sorted(shares)
    return grain.MapDataset.mix(
        [grain.MapDataset.source([name]).repeat() for name in names], [shares[name] for name in names]
    )


def available_cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_reader: SampleReader  # of a worker process


def _start_worker(reader: SampleReader) -> None:
    global _reader
    _reader = reader


def _read_in_worker(refs: Sequence[SampleRef]) -> list[Segment | Rejection]:
    return _reader.read_all(refs)

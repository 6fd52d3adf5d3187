"""grain dataset of the samples of one stream, drawn from the sources by weight and read ahead by the host's pool."""

from __future__ import annotations

import collections
import concurrent.futures
import multiprocessing
import os
import signal
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import grain

from data_pipelines.examples import Rejection
from data_pipelines.transforms.samples import SampleReader, SampleRef
from salmonn_jax.batch import Segment

MAX_THREADS = 32
CHUNK = 4  # number of samples that a worker process reads at a time
# Each stream starts at another offset of the mixing schedule, so that the rounding errors of the shares cancel between
# streams. Multiples of the golden ratio are spread evenly for any number of streams.
GOLDEN_RATIO, NUM_OFFSETS = 0.6180339887498949, 1 << 20


class PendingSample(NamedTuple):
    """A sample that is being read, together with the others of its chunk."""

    ref: SampleRef
    future: concurrent.futures.Future[list[Segment | Rejection]]
    index: int  # index of the sample in the chunk

    def result(self) -> Segment | Rejection:
        """Waits for the sample and returns it."""
        return self.future.result()[self.index]


class ReaderPool:
    """Threads or processes that read samples. All streams of a host share one pool.

    Args:
      reader: reads samples.
      num_workers: number of processes; 0 reads in threads, one per core but at most `MAX_THREADS`.
    """

    def __init__(self, reader: SampleReader, num_workers: int):
        if num_workers:
            # This process has threads, and a forked process may hang on a lock that one of them holds.
            context = multiprocessing.get_context("spawn")
            self._executor = concurrent.futures.ProcessPoolExecutor(num_workers, context, _start_worker, (reader,))
            self._read_all, self.chunk_size = _read_in_worker, CHUNK
        else:
            # More threads than cores contend for the interpreter lock: 8 on two cores read a third less.
            self._executor = concurrent.futures.ThreadPoolExecutor(min(MAX_THREADS, available_cores()))
            self._read_all, self.chunk_size = reader.read_all, 1

    def read(self, refs: Sequence[SampleRef]) -> list[PendingSample]:
        """Starts reading samples. Returns them as pending samples, in the order of `refs`."""
        pending = []
        for start in range(0, len(refs), self.chunk_size):
            chunk = list(refs[start : start + self.chunk_size])
            future = self._executor.submit(self._read_all, chunk)
            pending += [PendingSample(ref, future, index) for index, ref in enumerate(chunk)]
        return pending

    def close(self) -> None:
        """Cancels the reads that have not started."""
        self._executor.shutdown(wait=False, cancel_futures=True)


class SampleIterDataset(grain.IterDataset[tuple[SampleRef, Segment | Rejection]]):
    """grain dataset of the endless samples of one stream, each with its reference. It includes rejections.

    A stream takes every `num_streams`-th position of a source, so that all streams together visit each example once an
    epoch. `grain.MapDataset.mix` decides which source comes next.

    Samples are read by `ReaderPool` instead of grain's `ReadOptions` or `mp_prefetch`. Those give every iterator a pool
    and a buffer of its own, and a host has up to 64 streams. The state of `mp_prefetch` also depends on the number of
    its workers. The state of this dataset is independent of hosts and workers, and can be restored with other shares.

    Args:
      shares: share of the samples by source; they sum to 1.
      stream: index of the stream among the streams of all hosts.
      num_streams: number of streams on all hosts.
      pool: reads the samples.
      read_ahead: number of samples that are read before they are needed.
    """

    def __init__(
        self, shares: Mapping[str, float], stream: int, num_streams: int, pool: ReaderPool, *, read_ahead: int
    ):
        super().__init__()
        self.shares, self.pool, self.stream, self.num_streams = dict(shares), pool, stream, num_streams
        self.read_ahead = read_ahead
        self.schedule = mixing_schedule(shares)
        self.offset = int(stream * GOLDEN_RATIO % 1 * NUM_OFFSETS)

    def __iter__(self) -> SampleIterator:
        return SampleIterator(self)


class SampleIterator(grain.DatasetIterator[tuple[SampleRef, Segment | Rejection]]):
    """Iterator of `SampleIterDataset`.

    The state consists of the number of samples yielded per source and the number yielded since the shares last changed.
    Samples that are read ahead are not in it; a restored iterator draws them again.
    """

    def __init__(self, dataset: SampleIterDataset):
        super().__init__()
        self._dataset = dataset
        self._pending: collections.deque[PendingSample] = collections.deque()
        self._counts: collections.Counter[str] = collections.Counter()  # samples yielded, by source
        self._step = 0  # samples yielded since the shares last changed
        # `_counts` and `_step`, including samples that are drawn but not yet yielded
        self._draw_counts, self._draw_step = self._counts.copy(), 0

    def __next__(self) -> tuple[SampleRef, Segment | Rejection]:
        dataset = self._dataset
        missing = dataset.read_ahead + 1 - len(self._pending)
        if missing >= dataset.pool.chunk_size or not self._pending:
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
        """Restores a state. If the shares have changed, the mixing schedule starts again.

        Every source continues at its position.
        """
        for pending in self._pending:
            pending.future.cancel()
        self._pending.clear()
        self._counts = collections.Counter(state["counts"])
        self._step = state["step"] if state["shares"] == self._dataset.shares else 0
        self._draw_counts, self._draw_step = self._counts.copy(), self._step


def mixing_schedule(shares: Mapping[str, float]) -> grain.MapDataset[str]:
    """Returns an endless dataset of names in the given shares.

    `grain.MapDataset.mix` rounds shares to integer ratios, which changes a share by at most 1 % of itself.
    """
    names = sorted(shares)
    return grain.MapDataset.mix(
        [grain.MapDataset.source([name]).repeat() for name in names], [shares[name] for name in names]
    )


def available_cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_reader: SampleReader  # reader of this worker process


def _start_worker(reader: SampleReader) -> None:
    global _reader
    # Some schedulers send SIGTERM to all processes of a job. The main process then finishes its step and ends workers.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _reader = reader


def _read_in_worker(refs: Sequence[SampleRef]) -> list[Segment | Rejection]:
    return _reader.read_all(refs)

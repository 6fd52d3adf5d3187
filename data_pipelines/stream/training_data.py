"""Batches of a training run. The batch of a step depends on the seed and the step alone.

A batch consists of equal parts, one from each of `data.streams` streams. A stream draws samples from the sources by
weight, reads them ahead, drops rejections, and packs rows from a buffer of waiting samples. The processes of a job
divide the streams among them. So the number of processes and of workers does not change the batches, and any number of
processes that divides the streams can restore a checkpoint.
"""

from __future__ import annotations

import itertools
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grain

from data_pipelines.examples import Rejection
from data_pipelines.stream.pack_dataset import PackedRows, PackIterDataset
from data_pipelines.stream.rejections import RejectionMonitor
from data_pipelines.stream.sample_dataset import ReaderPool, SampleIterDataset
from data_pipelines.transforms.samples import Encoder, SampleReader
from salmonn_jax.batch import NO_FRAMES, Batch, batch_slice, empty_batch, fill_batch
from salmonn_jax.config import DataConfig

BATCHES_AHEAD = 2


class BatchIterDataset(grain.IterDataset[Batch]):
    """grain dataset of the batches of one host, made of the rows of its streams.

    Args:
      streams: streams of this host by index.
      reader: provides the sizes of a batch (`window_samples`, `num_audio_tokens`, `max_transcript_tokens`), and the
        store of encoder frames, if there is one.
    """

    def __init__(self, streams: Mapping[int, PackIterDataset], reader: SampleReader):
        super().__init__(list(streams.values()))
        self.streams, self.encoder = dict(streams), reader.encoder

    def __iter__(self) -> BatchIterator:
        return BatchIterator(self)


class BatchIterator(grain.DatasetIterator[Batch]):
    """Iterator of `BatchIterDataset`. Its state has one entry per stream, keyed by the index of the stream."""

    def __init__(self, dataset: BatchIterDataset):
        self._streams = {index: iter(stream) for index, stream in dataset.streams.items()}
        super().__init__(list(self._streams.values()))
        self._encoder = dataset.encoder

    def __next__(self) -> Batch:
        return join_streams({index: next(stream) for index, stream in self._streams.items()}, self._encoder)

    def get_state(self) -> dict[str, Any]:
        return {str(index): stream.get_state() for index, stream in self._streams.items()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restores the streams of this host. `state` may hold more streams."""
        for index, stream in self._streams.items():
            stream.set_state(state[str(index)])


def join_streams(packed: Mapping[int, PackedRows], encoder: Encoder) -> Batch:
    """Returns the part of a batch that consists of the rows of these streams.

    Args:
      packed: rows by index of the stream, of the same capacity.
      encoder: provides the sizes of a batch, and the store of encoder frames, if there is one.
    """
    (capacity,) = {packed_rows.capacity for packed_rows in packed.values()}
    config, store = encoder.config, encoder.frame_store
    batch = empty_batch(
        num_rows=len(packed) * capacity.rows,
        seq_len=capacity.seq_len,
        num_clips=len(packed) * capacity.clips,
        window_samples=config.window_samples,
        transcript_len=config.max_transcript_tokens,
        frames_shape=NO_FRAMES if store is None else store.frames_shape,
    )
    records = {
        index: [record for row in packed_rows.rows for segment in row for record in segment.frame_records]
        for index, packed_rows in packed.items()
    }
    # All streams at once, so that the store reads in parallel.
    frames = iter(() if store is None else store.read([x for of_stream in records.values() for x in of_stream]))
    for position, (index, packed_rows) in enumerate(packed.items()):
        fill_batch(
            batch_slice(batch, position, len(packed)),
            packed_rows.rows,
            num_audio_tokens=config.num_audio_tokens,
            clip_offset=index * capacity.clips,
            frames=list(itertools.islice(frames, len(records[index]))),
        )
    return batch


class TrainingData:
    """Endless iterator over the part of each batch that this process reads, with `get_state` and `set_state`.

    Args:
      reader: reads samples.
      data: the configuration.
      shares: share of the samples by source; they sum to 1 (see `mixture.source_shares`).
      streams: indices of the streams that this process reads; all `data.streams` by default.
      on_reject: called with each example that cannot be used, when it is read.

    Raises:
      UserError: `next` raises it if too many examples are rejected (see `RejectionMonitor.reject`). After that, only
        `set_state` and `close` may be called.
    """

    def __init__(
        self,
        reader: SampleReader,
        data: DataConfig,
        shares: Mapping[str, float],
        *,
        streams: Sequence[int] | None = None,
        on_reject: Callable[[Rejection], object] = lambda rejection: None,
    ):
        indices = tuple(range(data.streams)) if streams is None else tuple(streams)
        self.shares = shares
        self._monitor = RejectionMonitor(data)
        self.on_reject(on_reject)
        self._pool = ReaderPool(reader, data.num_workers)
        # Assumes one full encoder window per sample. At least one sample per stream is read ahead.
        budget = int(data.read_ahead_mb * 2**20) // (len(indices) * max(2 * reader.encoder.config.window_samples, 1))
        read_ahead = max(1, min(data.stream_examples_per_step + self._pool.chunk_size, budget))
        samples = {
            index: SampleIterDataset(shares, index, data.streams, self._pool, read_ahead=read_ahead)
            for index in indices
        }
        packed = {index: PackIterDataset(samples[index], data, self._monitor) for index in indices}
        batches = BatchIterDataset(packed, reader)
        self._iterator = iter(grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=BATCHES_AHEAD))
        self._close = weakref.finalize(self, _close, self._pool, self._iterator)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return next(self._iterator)

    def on_reject(self, callback: Callable[[Rejection], object]) -> None:
        """Sets the function that is called with each example that cannot be used."""
        self._monitor.on_reject = callback

    def get_state(self) -> dict[str, Any]:
        """Returns the state after the last batch, keyed by the index of the stream. All values are JSON values."""
        return self._iterator.get_state()

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restores a state. It may hold more streams than this process reads."""
        self._iterator.set_state(state)
        counts = self.counts().values()
        self._monitor.received = sum(count["received"] for count in counts)
        self._monitor.rejected = sum(sum(count.values()) - count["received"] for count in counts)

    def counts(self) -> dict[str, dict[str, int]]:
        """Returns sample counts by source, for the streams of this process up to the last batch.

        The count `received` includes rejected samples; the other counts are rejections by reason.
        """
        counts = {name: Counter({"received": 0}) for name in self.shares}
        for state in self.get_state().values():
            for source, received in state["samples"]["counts"].items():
                counts.setdefault(source, Counter())["received"] += received
            for source, reason, rejected in state["rejected"]:
                counts.setdefault(source, Counter())[reason] += rejected
        return {source: dict(counter) for source, counter in counts.items()}

    def close(self) -> None:
        """Stops reading ahead. Called automatically on garbage collection and at exit."""
        self._close()


def placed_examples(states: Mapping[str, Any]) -> dict[str, int]:
    """Returns how many examples of each source the batches had, in total over streams.

    Args:
      states: states of streams by index (see `TrainingData.get_state`).
    """
    return dict(sum((Counter(state.get("placed", {})) for state in states.values()), Counter()))


def _close(pool: ReaderPool, iterator: grain.DatasetIterator) -> None:
    pool.close()  # first, so that the iterator does not wait for reads that have not started
    iterator.close()

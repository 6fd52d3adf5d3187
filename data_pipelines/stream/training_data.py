"""The training stream: what each step of a run reads, a function of the seed and the step alone.

`data.streams` streams make a batch, each its own part of it. A stream draws samples from the sources by weight, reads
them ahead, drops those that cannot be used, and packs its rows from a window of samples that wait. The processes of a
job share the streams, so neither their number nor that of the workers changes what a step reads, and any other number
of processes can restore a checkpoint.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grain

from data_pipelines.examples import Rejection
from data_pipelines.stream.pack_dataset import PackIterDataset
from data_pipelines.stream.packing import check_sizes, placed_per_step
from data_pipelines.stream.rejections import RejectionMonitor
from data_pipelines.stream.sample_dataset import ReaderPool, SampleIterDataset
from data_pipelines.stream.samples import SampleReader
from salmonn_jax.batch import Batch, batch_slice, empty_batch, fill_batch
from salmonn_jax.config import DataConfig

BATCHES_AHEAD = 2


class BatchIterDataset(grain.IterDataset[Batch]):
    """The batches of a host: the rows of its streams, laid out.

    Args:
      streams: of this host, by number.
      reader: whose encoder says how segments are laid out.
    """

    def __init__(self, streams: Mapping[int, PackIterDataset], reader: SampleReader):
        super().__init__(list(streams.values()))
        self.streams, self.sizes = dict(streams), reader.encoder.sizes

    def __iter__(self) -> BatchIterator:
        return BatchIterator(self)


class BatchIterator(grain.DatasetIterator[Batch]):
    """See `BatchIterDataset`. The state has one entry a stream, by its number."""

    def __init__(self, dataset: BatchIterDataset):
        self._streams = {number: iter(stream) for number, stream in dataset.streams.items()}
        super().__init__(list(self._streams.values()))
        self._sizes = dataset.sizes

    def __next__(self) -> Batch:
        packed = {number: next(stream) for number, stream in self._streams.items()}
        (room,) = {one.room for one in packed.values()}  # the same for all streams of a step
        count, sizes = len(packed), self._sizes
        batch = empty_batch(
            count * room.rows, room.seq_len, count * room.clips, sizes.window_samples, sizes.max_transcript_tokens
        )
        for i, (number, one) in enumerate(packed.items()):
            part, first = batch_slice(batch, i, count), number * room.clips
            fill_batch(part, one.rows, num_audio_tokens=sizes.audio_tokens, clip_offset=first)
        return batch

    def get_state(self) -> dict[str, Any]:
        return {str(number): stream.get_state() for number, stream in self._streams.items()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restores the streams of this host; `state` may hold others too."""
        for number, stream in self._streams.items():
            stream.set_state(state[str(number)])


class TrainingData:
    """An endless iterator over a process' parts of the batches, with `get_state` and `set_state`.

    Args:
      reader: reads samples.
      data: the configuration.
      shares: of the samples, by source; they sum to 1 (see `mixture.shares`).
      streams: the numbers of those that this process reads, of `data.streams`; by default all.
      on_reject: called with each example that cannot be used, when it is met.

    Raises:
      UserError: the sizes of the configuration do not go together. And from `next`: more of the examples than
        `data.max_bad_share` cannot be used; then only `set_state` and `close` may follow.
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
        check_sizes(data)
        numbers = tuple(range(data.streams)) if streams is None else tuple(streams)
        self.shares = shares
        self._monitor = RejectionMonitor(data)
        self.on_reject(on_reject)
        self._pool = ReaderPool(reader, data.num_workers)
        # The longest that samples may be, so that a host never reads ahead more than the budget.
        budget = int(data.read_ahead_mb * 2**20) // (len(numbers) * max(2 * reader.encoder.sizes.window_samples, 1))
        read_ahead = max(1, min(placed_per_step(data) + self._pool.chunk, budget))
        samples = {
            number: SampleIterDataset(shares, number, data.streams, self._pool, read_ahead=read_ahead)
            for number in numbers
        }
        packed = {number: PackIterDataset(samples[number], data, self._monitor) for number in numbers}
        batches = BatchIterDataset(packed, reader)
        self._iterator = iter(grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=BATCHES_AHEAD))
        self._close = weakref.finalize(self, _close, self._pool, self._iterator)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return next(self._iterator)

    def on_reject(self, callback: Callable[[Rejection], object]) -> None:
        """Has `callback` called with each example that cannot be used, from here on."""
        self._monitor.on_reject = callback

    def get_state(self) -> dict[str, Any]:
        """Returns the state after the last batch, by stream number; JSON values."""
        return self._iterator.get_state()

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restores a state, which may hold more streams than this process reads."""
        self._iterator.set_state(state)
        counts = self.counts().values()
        self._monitor.received = sum(count["received"] for count in counts)
        self._monitor.rejected = sum(sum(count.values()) - count["received"] for count in counts)

    def counts(self) -> dict[str, dict[str, int]]:
        """Returns by source, for the streams of this process up to the last batch: `received`, and by reason how many
        of them were rejected."""
        counts = {name: Counter({"received": 0}) for name in self.shares}
        for state in self.get_state().values():
            for source, received in state["samples"]["counts"].items():
                counts.setdefault(source, Counter())["received"] += received
            for source, reason, rejected in state["rejected"]:
                counts.setdefault(source, Counter())[reason] += rejected
        return {source: dict(counter) for source, counter in counts.items()}

    def close(self) -> None:
        """Ends reading ahead. Also happens when nothing refers to the iterator any more, and at exit."""
        self._close()


def _close(pool: ReaderPool, iterator: grain.DatasetIterator) -> None:
    pool.close()  # first, so that the iterator does not wait for what is not being read yet
    iterator.close()

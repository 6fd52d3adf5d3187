"""Batches of held-out examples, for evaluations during training.

They have the format of training batches, with the longest rows. Examples are dealt to the streams in turn, and each
process packs those of its streams, so the batches do not depend on the number of processes.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator, Mapping, Sequence

from data_pipelines.examples import Rejection
from data_pipelines.stream.pack_dataset import PackedRows
from data_pipelines.stream.packing import PACKINGS, ExampleSize, step_capacities
from data_pipelines.stream.sample_dataset import PendingSample, ReaderPool
from data_pipelines.stream.training_data import join_streams
from data_pipelines.transforms.samples import SampleReader, SampleRef
from salmonn_jax.batch import Batch, Segment
from salmonn_jax.config import DataConfig
from salmonn_jax.errors import UserError

READ_AT_ONCE = 32  # samples that are in memory while the sizes of all examples are measured

RowRefs = list[list[SampleRef]]  # references of the examples of each row of a stream in a batch


class HeldOutData:
    """Held-out examples in batches. Each example is in one batch, and every iteration yields the same batches.

    All examples are read once at the start, to plan the batches. Their clips are not kept.

    Args:
      reader: reads the examples, without augmentation.
      sizes: number of examples by source, of which at most `data.eval_examples` are used.
      data: shape and packing of a batch.
      streams: indices of the streams that this process reads; all `data.streams` by default.

    Attributes:
      num_examples: examples of the streams of this process that are used, by source.
      rejections: those that cannot be used.
      num_batches: number of batches with examples of the streams of this process.
    """

    def __init__(
        self,
        reader: SampleReader,
        sizes: Mapping[str, int],
        data: DataConfig,
        *,
        streams: Sequence[int] | None = None,
    ):
        self._encoder, self._data = reader.encoder, data
        self._pool = ReaderPool(reader, 0)
        self._capacity = step_capacities(data)[str(data.seq_len)]
        self.num_examples: collections.Counter[str] = collections.Counter()
        self.rejections: list[Rejection] = []
        refs = [
            SampleRef(name, position)
            for position in range(data.eval_examples)
            for name in sorted(sizes)
            if position < sizes[name]
        ]
        indices = range(data.streams) if streams is None else streams
        self._batches = {index: self._plan(refs[index :: data.streams]) for index in indices}
        self.num_batches = max(map(len, self._batches.values()))

    def batches(self, num_batches: int) -> Iterator[Batch]:
        """Yields the part of each batch that this process reads. The next batch is read ahead.

        Args:
          num_batches: number of batches to yield; those after the attribute `num_batches` have only padding.

        Raises:
          UserError: an example that was read at the start cannot be read any more.
        """
        pending = self._start_reading(0)
        for number in range(num_batches):
            current, pending = pending, self._start_reading(number + 1)
            packed = {
                index: PackedRows(self._capacity, [[_segment(sample) for sample in row] for row in rows])
                for index, rows in current.items()
            }
            yield join_streams(packed, self._encoder)

    def close(self) -> None:
        """Cancels the reads that have not started."""
        self._pool.close()

    def _plan(self, refs: Sequence[SampleRef]) -> list[RowRefs]:
        """Returns the rows of each batch of a stream."""
        waiting = list(self._measure(refs))
        batches = []
        while waiting:
            candidates = waiting[: self._data.lookahead]
            rows = PACKINGS[self._data.packing]([size for _, size in candidates], self._capacity)
            batches.append([[candidates[index][0] for index in row] for row in rows])
            placed = {index for row in rows for index in row}
            waiting = [one for index, one in enumerate(waiting) if index not in placed]
        return batches

    def _measure(self, refs: Sequence[SampleRef]) -> Iterator[tuple[SampleRef, ExampleSize]]:
        """Yields the usable examples with their sizes, and counts all."""
        for start in range(0, len(refs), READ_AT_ONCE):
            for pending in self._pool.read(refs[start : start + READ_AT_ONCE]):
                sample = pending.result()
                if isinstance(sample, Rejection):
                    self.rejections.append(sample)
                else:
                    self.num_examples[pending.ref.source] += 1
                    yield pending.ref, ExampleSize(len(sample.tokens), len(sample.clips))

    def _start_reading(self, number: int) -> dict[int, list[list[PendingSample]]]:
        """Starts to read the rows of each stream in a batch. A stream without examples has empty rows."""
        pending = {}
        for index, batches in self._batches.items():
            rows = batches[number] if number < len(batches) else [[] for _ in range(self._capacity.rows)]
            pending[index] = [self._pool.read(row) for row in rows]
        return pending


def _segment(pending: PendingSample) -> Segment:
    sample = pending.result()
    if isinstance(sample, Rejection):
        raise UserError(
            f"held-out example {sample.example} of {sample.source} cannot be read any more ({sample.reason}: "
            f"{sample.detail}); restore it"
        )
    return sample

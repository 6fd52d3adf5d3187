"""The rows of one stream: samples that can be used wait in a window, from which each step packs its rows."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from typing import Any, NamedTuple

import grain

from data_pipelines.examples import Rejection
from data_pipelines.stream.mixture import normalise
from data_pipelines.stream.packing import PACKINGS, ExampleSize, StepCapacity, step_capacities
from data_pipelines.stream.rejections import RejectionMonitor
from data_pipelines.stream.sample_dataset import PendingSample, SampleIterDataset, mixed_names
from data_pipelines.stream.samples import SampleRef
from salmonn_jax.batch import Segment
from salmonn_jax.config import DataConfig


class PackedRows(NamedTuple):
    """What a stream contributes to a step."""

    room: StepCapacity
    rows: list[list[Segment]]


class PackIterDataset(grain.IterDataset[PackedRows]):
    """The rows of each step of one stream. Rejections are dropped and counted.

    grain's own packers fill 0.90 of the tokens and 0.91 of the clip slots of stage 2, and these 0.96 and 0.97
    (`python -m benchmarks.packing`).

    Args:
      samples: of the stream.
      data: says how many rows, tokens and clips a step has, and how many samples wait.
      monitor: is told of every sample.
    """

    def __init__(self, samples: SampleIterDataset, data: DataConfig, monitor: RejectionMonitor):
        super().__init__(samples)
        self.samples, self.data, self.monitor = samples, data, monitor
        self.rooms = step_capacities(data)
        self.seq_lens = mixed_names(normalise(data.buckets or {str(data.seq_len): 1.0}))  # by step

    def __iter__(self) -> PackIterator:
        return PackIterator(self)


class PackIterator(grain.DatasetIterator[PackedRows]):
    """See `PackIterDataset`. The state holds references of the samples that wait, which are read again."""

    def __init__(self, dataset: PackIterDataset):
        samples = iter(dataset.samples)
        super().__init__(samples)
        self._dataset, self._samples = dataset, samples
        self._step = 0
        self._waiting: list[tuple[SampleRef, Segment]] = []  # the one that has waited longest first
        self._restored: collections.deque[PendingSample] = collections.deque()  # waited when the state was saved
        self._rejected: collections.Counter[tuple[str, str]] = collections.Counter()  # by source and reason

    def __next__(self) -> PackedRows:
        self._fill_window()
        dataset = self._dataset
        room = dataset.rooms[dataset.seq_lens[self._step]]
        sizes = [ExampleSize(len(segment.tokens), len(segment.clips)) for _, segment in self._waiting]
        rows = PACKINGS[dataset.data.packing](sizes, room)
        packed = PackedRows(room, [[self._waiting[place][1] for place in row] for row in rows])
        placed = {place for row in rows for place in row}
        self._waiting = [waiting for place, waiting in enumerate(self._waiting) if place not in placed]
        self._step += 1
        return packed

    def _fill_window(self) -> None:
        while self._restored:
            pending = self._restored.popleft()
            self._receive(pending.ref, pending.result())
        while len(self._waiting) < self._dataset.data.lookahead:
            self._dataset.monitor.received += 1
            self._receive(*next(self._samples))

    def _receive(self, ref: SampleRef, sample: Segment | Rejection) -> None:
        if isinstance(sample, Rejection):
            self._rejected[sample.source, sample.reason] += 1
            self._dataset.monitor.reject(sample)
        else:
            self._waiting.append((ref, sample))

    def get_state(self) -> dict[str, Any]:
        waiting = [ref for ref, _ in self._waiting] + [pending.ref for pending in self._restored]
        return {
            "samples": self._samples.get_state(),
            "step": self._step,
            "waiting": [list(ref) for ref in waiting],
            "rejected": [[*key, count] for key, count in sorted(self._rejected.items())],
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restores a state, and starts to read what waited. Of a source that is no longer mixed in, nothing waits."""
        samples = self._dataset.samples
        self._samples.set_state(state["samples"])
        self._step = state["step"]
        self._waiting.clear()
        refs = [SampleRef(*ref) for ref in state["waiting"]]
        self._restored = collections.deque(samples.pool.read([ref for ref in refs if ref.source in samples.shares]))
        self._rejected = collections.Counter({(source, reason): n for source, reason, n in state["rejected"]})

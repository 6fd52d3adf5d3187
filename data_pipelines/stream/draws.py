"""Reading what was drawn: the n-th example of a source in a stream, in an order that the seed and n alone decide."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import grain
import numpy as np

from data_pipelines.examples import Example
from data_pipelines.sources.audio import AudioRules, fit_clip
from data_pipelines.sources.manifest_entries import BadExample
from data_pipelines.stream.encode import Layout, segment
from data_pipelines.stream.prompt_templates import Wordings
from salmonn_jax.batch import Segment
from salmonn_jax.tokenizer import Tokenizer


class Draw(NamedTuple):
    """Example number `count` of those that `stream` takes from `source`."""

    stream: int
    source: str
    count: int


class Rejected(NamedTuple):
    """An example that was drawn and cannot be used."""

    source: str
    index: int  # in the source
    reason: str  # of `BadExample`
    detail: str  # of it, too


@dataclasses.dataclass
class Reader:
    """Reads draws. Picklable, so that processes can share the work; what it gives is the same in any of them.

    A source is shuffled anew for every epoch, and dealt out to the streams one by one: together they see each example
    once an epoch, however small the source.
    """

    sources: Mapping[str, Sequence[Example]]
    tokenizer: Tokenizer
    wordings: Wordings
    sizes: Layout
    rules: AudioRules
    augmentation: Sequence[grain.transforms.RandomMap]
    streams: int
    seed: int

    def __post_init__(self):
        self._names = sorted(self.sources)
        # Seeded by the name, so that a source keeps its order when another one joins.
        self._orders = {
            name: grain.MapDataset.range(len(source)).seed(self._seed(name)).shuffle().repeat()
            for name, source in self.sources.items()
        }

    def read_all(self, draws: Sequence[Draw]) -> list[Segment | Rejected]:
        """`read` for each."""
        return [self.read(draw) for draw in draws]

    def read(self, draw: Draw) -> Segment | Rejected:
        """The example, laid out; or why it cannot be used."""
        place = draw.count * self.streams + draw.stream
        index = int(self._orders[draw.source][place])
        try:
            return self._segment(self.sources[draw.source][index], draw.source, place)
        except BadExample as bad:
            return Rejected(draw.source, index, bad.reason, bad.detail)

    def _segment(self, example: Example, source: str, place: int) -> Segment:
        random = np.random.default_rng([self._seed(source), place])
        wording = int(random.integers(2**31))
        if example.audio is not None:
            for transform in self.augmentation:
                example = transform.random_map(example, random)
            example = dataclasses.replace(example, audio=fit_clip(example.audio, self.rules))
        return segment(
            example,
            wording,
            source=self._names.index(source),
            tokenizer=self.tokenizer,
            wordings=self.wordings,
            sizes=self.sizes,
        )

    def _seed(self, name: str) -> int:
        return self.seed ^ zlib.crc32(name.encode())

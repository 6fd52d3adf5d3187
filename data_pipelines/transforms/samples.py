"""Samples of the sources: for each source an endless, shuffled grain dataset of encoded examples.

A sample is read by its position, in any thread or process, with the same result: the shuffled order and the random
numbers of a sample depend on the seed, the name of the source and the position alone. An example that cannot be used
becomes a `Rejection` instead of being filtered, so that the positions of the other samples do not change;
`stream.pack_dataset` drops it.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import grain
import numpy as np

from data_pipelines.encoder_cache.store import FrameStore
from data_pipelines.examples import BadExample, Example, Rejection
from data_pipelines.sources.audio import AudioRules, fit_clip
from data_pipelines.transforms.encode import EncodeConfig, encode_example
from data_pipelines.transforms.prompt_templates import PromptTemplates
from salmonn_jax.batch import Segment
from salmonn_jax.tokenizer import Tokenizer


class SampleRef(NamedTuple):
    """A sample before it is read: its source, and its position in the endless shuffled order of the source."""

    source: str
    position: int


class _Element(NamedTuple):
    """Element that the dataset of a source passes from one transformation to the next."""

    index: int  # index of the example in the source
    value: Example | Segment


@dataclasses.dataclass(frozen=True)
class _CheckedSource:
    """Data source for grain. It returns a `Rejection` for an example that cannot be read."""

    name: str
    examples: Sequence[Example]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> _Element | Rejection:
        try:
            return _Element(index, self.examples[index])
        except BadExample as bad:
            return Rejection.from_error(self.name, index, bad)


@dataclasses.dataclass(frozen=True)
class _RejectBadExamples(grain.transforms.RandomMap):
    """grain transform that applies another one and turns BadExample into a `Rejection`. Rejections are not changed."""

    name: str
    transform: grain.transforms.RandomMap

    def random_map(self, element: _Element | Rejection, rng: np.random.Generator) -> _Element | Rejection:
        if isinstance(element, Rejection):
            return element
        try:
            return element._replace(value=self.transform.random_map(element.value, rng))
        except BadExample as bad:
            return Rejection.from_error(self.name, element.index, bad)


@dataclasses.dataclass(frozen=True)
class _Augment(grain.transforms.RandomMap):
    """grain transform that applies the augmentations of clips. It does not change examples without audio."""

    transforms: Sequence[grain.transforms.RandomMap]

    def random_map(self, example: Example, rng: np.random.Generator) -> Example:
        if example.audio is not None:
            for transform in self.transforms:
                example = transform.random_map(example, rng)
        return example


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoder(grain.transforms.RandomMap):
    """grain transform from examples to segments. It fits the clip to `rules` and draws a prompt template at random.

    With a store of encoder frames, it adds the records of the clip's frames, which the batch reads later.
    """

    tokenizer: Tokenizer
    prompt_templates: PromptTemplates
    config: EncodeConfig
    rules: AudioRules
    source_index: int = 0  # stands for the source in a batch
    frame_store: FrameStore | None = None

    def random_map(self, example: Example, rng: np.random.Generator) -> Segment:
        if example.audio is not None:
            example = dataclasses.replace(example, audio=fit_clip(example.audio, self.rules))
        segment = encode_example(
            example,
            int(rng.integers(2**31)),
            source_index=self.source_index,
            tokenizer=self.tokenizer,
            prompt_templates=self.prompt_templates,
            config=self.config,
        )
        if self.frame_store is None:
            return segment
        return segment._replace(frame_records=self.frame_store.find_windows(segment.clips))


class SampleReader:
    """Reader of samples of all sources by reference. It can be pickled for worker processes.

    Args:
      sources: random-access sequences of examples, by name.
      encoder: encodes examples; its `source_index` is set for each source.
      augmentation: augmentations of clips, in the order in which they are applied.
      seed: decides the order of each source and the random numbers of each sample.
      source_names: names of the sources in the order of their index, if `sources` lacks some of them.
    """

    def __init__(
        self,
        sources: Mapping[str, Sequence[Example]],
        encoder: Encoder,
        augmentation: Sequence[grain.transforms.RandomMap] = (),
        *,
        seed: int,
        source_names: Sequence[str] | None = None,
    ):
        self.encoder = encoder
        source_names = sorted(sources) if source_names is None else source_names
        self._datasets = {
            name: grain.MapDataset.source(_CheckedSource(name, sources[name]))
            # Seeded by the name, so that a source keeps its order when another one joins.
            .seed((seed ^ zlib.crc32(name.encode())) % 2**32)
            .shuffle()
            .repeat()
            .random_map(_RejectBadExamples(name, _Augment(augmentation)))
            .random_map(_RejectBadExamples(name, dataclasses.replace(encoder, source_index=index)))
            for index, name in enumerate(source_names)
            if name in sources
        }

    def read(self, ref: SampleRef) -> Segment | Rejection:
        """Returns the sample at a reference, or why it cannot be used."""
        element = self._datasets[ref.source][ref.position]
        return element if isinstance(element, Rejection) else element.value

    def read_all(self, refs: Sequence[SampleRef]) -> list[Segment | Rejection]:
        """Returns the samples at the references, in their order."""
        return [self.read(ref) for ref in refs]

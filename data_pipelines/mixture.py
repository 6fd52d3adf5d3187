"""The training stream: sources dealt out to streams, shuffled, repeated, mixed by name, batched. numpy only.

Everything up to the last line is random access: batch number i is a function of the seed and i alone, whatever the
number of hosts and of reading processes, and a checkpoint of the stream is one number.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import grain
import numpy as np

from data_pipelines.rows import Layout, ToRow, to_batch
from salmonn_jax.batch import Batch
from salmonn_jax.config import DataConfig, ModelConfig
from salmonn_jax.errors import UserError
from salmonn_jax.tokenizer import Tokenizer

ENDLESS = 2**40  # batches: groups are zipped, and must be equally long for that
MORE = 2**50  # examples of a source in a stream: enough for those batches, and few enough for grain to count a mix


def layout(model: ModelConfig, data: DataConfig) -> Layout:
    """The sizes of rows and batches that a configuration asks for."""
    return Layout(
        template=model.prompt_template,
        audio_tokens=model.audio_tokens,
        window=model.audio.window_samples,
        sequence=data.sequence,
        answer=data.answer,
        transcript=data.transcript,
    )


def source_names(data: DataConfig) -> tuple[str, ...]:
    """The names that `Batch.source` counts through."""
    return tuple(sorted({*data.mixture, *data.text_mixture}))


def training_stream(
    read: Callable[[str], Sequence],
    tokenizer: Tokenizer,
    model: ModelConfig,
    data: DataConfig,
    *,
    seed: int,
    streams: Sequence[int] | None = None,
) -> grain.DatasetIterator:
    """An endless iterator of a host's parts of the `Batch`es, with `get_state` and `set_state`.

    Args:
      read: gives the training examples of a source by its name, as a random-access sequence.
      seed: decides the order.
      streams: those this host reads, of `data.streams`; by default all.

    Raises:
      UserError: the mixture is empty or does not go with the numbers of rows and clips.
    """
    _check(data)
    to_row = ToRow(tokenizer, layout(model, data), source_names(data))
    streams = range(data.streams) if streams is None else streams

    def mixed(weights: dict[str, float], size: int, stream: int) -> grain.MapDataset:
        parts = []
        for name in sorted(weights):
            # Seeded by the name, so that a source keeps its order when another one joins. Dealt out when shuffled and
            # repeated: so all streams together see every example once an epoch, however small the source.
            shuffled = grain.MapDataset.source(read(name)).seed(seed ^ zlib.crc32(name.encode())).shuffle().repeat()
            parts.append(shuffled.slice(slice(stream, MORE * data.streams, data.streams)))
        return (
            grain.MapDataset.mix(parts, [weights[name] for name in sorted(weights)])
            .map(to_row)
            .batch(size, batch_fn=list)
        )

    groups = []
    for stream in streams:
        if data.clips:
            groups.append(mixed(data.mixture, data.clips // data.streams, stream))
        if data.rows > data.clips:
            groups.append(mixed(data.text_mixture, (data.rows - data.clips) // data.streams, stream))
    batches = grain.experimental.ZipMapDataset([group.slice(slice(ENDLESS)) for group in groups]).map(
        Collate(to_row.layout, tuple(streams))
    )
    stream = batches.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4))
    if data.workers:
        stream = stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=data.workers, per_worker_buffer_size=2))
    return iter(stream)


class Collate(grain.transforms.Map):
    """Joins the groups of rows of one step, in the order of their streams, into those parts of a `Batch`."""

    def __init__(self, layout: Layout, streams: tuple[int, ...]):
        self.layout, self.streams = layout, streams

    def map(self, groups: Sequence[Sequence[Any]]):
        size = len(groups) // len(self.streams)
        of_streams = [list(itertools.chain(*groups[i : i + size])) for i in range(0, len(groups), size)]
        parts = [to_batch(rows, self.layout, part) for part, rows in zip(self.streams, of_streams, strict=True)]
        return Batch(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _check(data: DataConfig) -> None:
    if data.clips > data.rows:
        raise UserError(f"data.clips={data.clips} is more than data.rows={data.rows}; a row holds one clip at most")
    for name, size in (("rows", data.rows), ("clips", data.clips)):
        if size % data.streams:
            raise UserError(f"data.{name}={size} does not divide over data.streams={data.streams}")
    if data.clips and not data.mixture:
        raise UserError("data.mixture names no source; give it {name: share}")
    if data.rows > data.clips and not data.text_mixture:
        raise UserError(
            f"data.rows={data.rows} leaves {data.rows - data.clips} rows without a clip and data.text_mixture names "
            "no source for them"
        )
    for name, share in {**data.mixture, **data.text_mixture}.items():
        if share <= 0:
            raise UserError(
                f"the share of source {name!r} is {share}; it must be above 0 (leave the source out instead)"
            )

"""The training stream: sources sharded over hosts, shuffled, repeated, mixed by name, batched. numpy only.

Everything up to the last line is random access: batch number i is a function of the seed and i alone, whatever the
number of reading processes, and a checkpoint of the stream is one number.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import grain

from data_pipelines.rows import Layout, ToRow, to_batch
from salmonn_jax.config import DataConfig, ModelConfig
from salmonn_jax.errors import UserError
from salmonn_jax.tokenizer import Tokenizer

ENDLESS = 2**40  # batches; groups are zipped, and must be equally long for that


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
    host: int = 0,
    hosts: int = 1,
) -> grain.DatasetIterator:
    """An endless iterator of this host's `Batch`es, with `get_state` and `set_state`.

    Args:
      read: gives the training examples of a source by its name, as a random-access sequence.
      seed: decides the order.
      host, hosts: this host reads every `hosts`-th example of each source and makes its part of the rows.

    Raises:
      UserError: the mixture is empty or does not go with the numbers of rows and clips.
    """
    _check(data, hosts)
    to_row = ToRow(tokenizer, layout(model, data), source_names(data))

    def mixed(weights: dict[str, float], size: int) -> grain.MapDataset:
        parts = []
        for name in sorted(weights):
            shard = grain.MapDataset.source(read(name)).slice(slice(host, None, hosts))
            # Seeded by the name, so that a source keeps its order when another one joins.
            parts.append(shard.seed(seed ^ zlib.crc32(name.encode())).shuffle().repeat())
        return (
            grain.MapDataset.mix(parts, [weights[name] for name in sorted(weights)])
            .map(to_row)
            .batch(size, batch_fn=list)
        )

    groups = []
    if data.clips:
        groups.append(mixed(data.mixture, data.clips // hosts))
    if data.rows > data.clips:
        groups.append(mixed(data.text_mixture, (data.rows - data.clips) // hosts))
    batches = grain.experimental.ZipMapDataset([group.slice(slice(ENDLESS)) for group in groups]).map(
        Collate(to_row.layout)
    )
    stream = batches.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4))
    if data.workers:
        stream = stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=data.workers, per_worker_buffer_size=2))
    return iter(stream)


class Collate(grain.transforms.Map):
    """Joins the groups of rows of one step into a `Batch`."""

    def __init__(self, layout: Layout):
        self.layout = layout

    def map(self, groups: Sequence[Sequence[Any]]):
        return to_batch([row for group in groups for row in group], self.layout)


def _check(data: DataConfig, hosts: int) -> None:
    if data.clips > data.rows:
        raise UserError(f"data.clips={data.clips} is more than data.rows={data.rows}; a row holds one clip at most")
    for name, size in (("rows", data.rows), ("clips", data.clips)):
        if size % hosts:
            raise UserError(f"data.{name}={size} does not divide over {hosts} hosts")
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

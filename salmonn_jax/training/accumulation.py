"""Gradient accumulation: a batch is split into micro-batches, whose gradients are summed one after the other.

Memory of activations falls with the number of micro-batches. The sums equal those of the whole batch, because the loss
of a micro-batch is divided by the tokens of the whole batch (see `salmonn_jax.training.step.batch_loss`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from salmonn_jax import sharding
from salmonn_jax.batch import Batch


def sum_over_micro_batches(function: Callable[[Batch, Array], Any], micro_batches: Batch, key: Array) -> Any:
    """Returns the sum of the results of a function over micro-batches.

    Args:
      function: maps a micro-batch and a random key to a tree of arrays.
      micro_batches: batch with a leading axis of micro-batches, see `split_batch`.
      key: random key, from which each micro-batch gets its own.
    """
    keys = jax.random.split(key, len(micro_batches.tokens))
    first = jax.tree.map(lambda x: x[0], (micro_batches, keys))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function, *first))

    def add(total, inputs):
        return jax.tree.map(jnp.add, total, function(*inputs)), None

    return jax.lax.scan(add, zeros, (micro_batches, keys))[0]


def split_batch(batch: Batch, num_micro_batches: int, num_audio_tokens: int, mesh: Mesh) -> Batch:
    """Splits a batch into micro-batches along a new leading axis.

    Each data shard splits its own rows and clips into consecutive parts, so no row moves to another device. The number
    of streams is a multiple of the number of parts (see `sharding.check_batch`), so a part consists of whole streams,
    and the clips of its rows are in the same part.

    Args:
      batch: the global batch.
      num_micro_batches: number of micro-batches.
      num_audio_tokens: audio tokens per clip.
      mesh: device mesh.

    Returns:
      Batch of arrays [micro_batches, ...]. Entries of `audio_slot` refer to the clips of the
      micro-batch.
    """
    num_shards = sharding.num_data_shards(mesh)
    num_parts = num_shards * num_micro_batches
    num_clips = batch.pcm.shape[0]
    slots_per_part = num_clips // num_parts * num_audio_tokens

    def split(x: Array) -> Array:
        parts = x.reshape(num_shards, num_micro_batches, x.shape[0] // num_parts, *x.shape[1:])
        return jnp.moveaxis(parts, 1, 0)  # [micro_batches, shards, ...]

    micro_batch, shard = jnp.arange(num_micro_batches)[:, None], jnp.arange(num_shards)
    part, part_in_micro_batch = shard * num_micro_batches + micro_batch, shard
    skipped_slots = ((part - part_in_micro_batch) * slots_per_part)[..., None, None]
    parts = Batch(*map(split, batch))
    parts = parts._replace(
        audio_slot=jnp.where(parts.audio_slot < 0, parts.audio_slot, parts.audio_slot - skipped_slots)
    )
    shardings = sharding.batch_shardings(mesh, num_clips // num_micro_batches)
    return Batch(
        *(
            jax.lax.with_sharding_constraint(
                x.reshape(num_micro_batches, num_shards * x.shape[2], *x.shape[3:]),
                NamedSharding(mesh, PartitionSpec(None, *array_sharding.spec)),
            )
            for x, array_sharding in zip(parts, shardings, strict=True)
        )
    )

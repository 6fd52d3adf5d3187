"""Estimate of the memory that decoding needs, and the largest batch size that fits. Used by `salmonn_jax.api`."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from salmonn_jax.config import GenerationConfig
from salmonn_jax.errors import UserError
from salmonn_jax.models.llama import causal_mask
from salmonn_jax.models.salmonn import Salmonn

CPU_SHARE = 0.5  # share of the memory of a machine without accelerator that decoding may use
DEVICE_SHARE = 0.9  # share of an accelerator's memory; the rest is for the buffers that the estimate leaves out
GB = 1e9


def fitting_batch_size(
    model: Salmonn, config: GenerationConfig, *, seq_len: int, max_rows_per_shard: int, mesh: Mesh | None, limit: int
) -> int:
    """Returns the largest batch size that fits: a power of two of rows for each data shard.

    Args:
      model: the model, whose weights are counted too.
      config: settings of decoding.
      seq_len: tokens of a padded prompt.
      max_rows_per_shard: maximum number of rows of each data shard of the mesh.
      mesh: device mesh; None for one device.
      limit: bytes of one device, see `device_limit`.

    Raises:
      UserError: not even one row per data shard fits.
    """
    shards = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
    tensor = 1 if mesh is None else mesh.shape["tensor"]
    weights, row = weight_bytes(model), row_bytes(model, config, seq_len, tensor)
    rows = (limit - weights) // row
    if rows < 1:
        raise UserError(
            f"a prompt of {seq_len} tokens with {config.num_beams} beams and {config.max_new_tokens} new tokens needs "
            f"{row / GB:.1f} GB beside {weights / GB:.1f} GB of weights, and a device has {limit / GB:.1f} GB; "
            "use more devices (mesh), bfloat16, or lower num_beams or max_new_tokens"
        )
    return shards * min(2 ** math.floor(math.log2(rows)), max_rows_per_shard)


def device_limit(device: jax.Device) -> int:
    """Returns the bytes that decoding may use on a device.

    Devices without memory statistics, which are CPUs, share half of the memory of their machine.
    """
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return int(DEVICE_SHARE * stats["bytes_limit"])
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(CPU_SHARE * physical / jax.local_device_count())


def weight_bytes(model: Salmonn) -> int:
    """Returns the bytes of the weights on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(model)
    )


def row_bytes(model: Salmonn, config: GenerationConfig, seq_len: int, tensor: int) -> int:
    """Returns the bytes of one row on one device: its KV cache, and the activations of the largest phase.

    The phases are the encoders with one window, the prefill, and a step of all beams. Activations are those that the
    compiler has to keep without fusion.

    Args:
      model: the model.
      config: settings of decoding.
      seq_len: tokens of the padded prompt.
      tensor: devices over which the axis `tensor` splits the model.
    """
    llama, dtype = model.config.llama, model.dtype
    tokens = seq_len + config.num_beams * config.max_new_tokens
    cache_shards = tensor if llama.num_key_value_heads % tensor == 0 else 1
    cache = 2 * tokens * llama.num_hidden_layers * llama.num_key_value_heads * llama.head_size * dtype.itemsize
    phases = [_prefill_bytes(model, seq_len) // tensor, 4 * 6 * config.num_beams * llama.vocab_size]
    if model.config.qformer is not None:
        pcm = jax.ShapeDtypeStruct((1, model.config.audio.window_samples), jnp.int16)
        length = jax.ShapeDtypeStruct((1,), jnp.int32)
        phases.append(_activation_bytes(lambda m, *clip: m.encode_audio(*clip), model, pcm, length) // tensor)
    return cache // cache_shards + max(phases)


def _prefill_bytes(model: Salmonn, seq_len: int) -> int:
    """Returns the bytes of the activations of a prefill of one row."""

    def hidden_states(model, x, positions, segments):
        return model.llama(x, positions, causal_mask(segments), lora_scale=1.0)

    x = jax.ShapeDtypeStruct((1, seq_len, model.config.llama.hidden_size), model.dtype)
    integers = jax.ShapeDtypeStruct((1, seq_len), jnp.int32)
    return _activation_bytes(hidden_states, model, x, integers, integers)


def _activation_bytes(function: Callable, model: Salmonn, *inputs: jax.ShapeDtypeStruct) -> int:
    """Returns the largest number of bytes of values that a function keeps at a time, without its inputs."""
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), model)
    return _peak_bytes(jax.make_jaxpr(function)(shapes, *inputs).jaxpr)


def _peak_bytes(jaxpr: Any) -> int:
    """Returns the peak of the bytes of the values that a jaxpr computes, each of which lives until its last use."""
    last_use = {id(variable): index for index, equation in enumerate(jaxpr.eqns) for variable in equation.invars} | {
        id(variable): len(jaxpr.eqns) for variable in jaxpr.outvars
    }
    live, total, peak = {}, 0, 0
    for index, equation in enumerate(jaxpr.eqns):
        for variable in equation.outvars:
            live[id(variable)] = _bytes(variable)
            total += live[id(variable)]
        peak = max(peak, total + max(map(_peak_bytes, _inner_jaxprs(equation)), default=0))
        for variable in (*equation.invars, *equation.outvars):
            if last_use.get(id(variable), index) <= index:
                total -= live.pop(id(variable), 0)
    return peak


def _inner_jaxprs(equation: Any) -> list[Any]:
    """Returns the jaxprs of an equation, such as the body of a scan."""
    found = []
    for value in equation.params.values():
        for item in value if isinstance(value, tuple | list) else [value]:
            item = getattr(item, "jaxpr", item)
            if hasattr(item, "eqns"):
                found.append(item)
    return found


def _bytes(variable: Any) -> int:
    shape, dtype = getattr(variable.aval, "shape", ()), getattr(variable.aval, "dtype", None)
    return math.prod(shape) * getattr(dtype, "itemsize", 0)

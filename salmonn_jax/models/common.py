"""Layers that every model here is made of.

Modules are Flax NNX used as plain pytrees: parameters are `nnx.Param` leaves, nothing is mutated in a forward pass,
and only `jax.jit`, `jax.value_and_grad`, `jax.lax.scan` and `jax.checkpoint` are applied to them. Activations keep the
dtype they come in with; parameters are cast to it where they are used; normalisations and softmax are float32.

Axis letters, used in every docstring of `models/`:
  A clips, R rows of the language model, S tokens of a row, T encoder frames, W windows, Q queries, D width, H heads,
  K head width, F feed-forward width, V vocabulary, L layers, M feature bins, C slots of the KV cache.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

NORMAL_INIT = jax.nn.initializers.normal(0.02)
# 0.02 at BERT's width of 768, and as strong in narrower models, where 0.02 would drown the signal.
BERT_INIT = jax.nn.initializers.variance_scaling(0.02**2 * 768, "fan_in", "normal")
FAN_IN_INIT = jax.nn.initializers.variance_scaling(1.0, "fan_in", "normal")


class Linear(nnx.Module):
    """y = x @ kernel (+ bias), kernel float[D_in,D_out]."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        rngs: nnx.Rngs,
        use_bias: bool = True,
        kernel_init: Callable = FAN_IN_INIT,
    ):
        self.kernel = nnx.Param(kernel_init(rngs.params(), (in_features, out_features), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(out_features, jnp.float32)) if use_bias else None

    def __call__(self, x: Array) -> Array:
        y = x @ self.kernel[...].astype(x.dtype)
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


class LayerNorm(nnx.Module):
    """Layer normalisation over the last axis, computed in float32."""

    def __init__(self, num_features: int, *, epsilon: float = 1e-5):
        self.scale = nnx.Param(jnp.ones(num_features, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(num_features, jnp.float32))
        self.epsilon = epsilon

    def __call__(self, x: Array) -> Array:
        wide = x.astype(jnp.float32)
        centred = wide - wide.mean(axis=-1, keepdims=True)
        inverse = jax.lax.rsqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + self.epsilon)
        y = centred * inverse * self.scale[...].astype(jnp.float32) + self.bias[...].astype(jnp.float32)
        return y.astype(x.dtype)


class Conv1d(nnx.Module):
    """A 1-D convolution with bias over the time axis of float[A,T,D], kernel float[width,D_in,D_out]."""

    def __init__(self, in_features: int, out_features: int, *, kernel_size: int, stride: int, rngs: nnx.Rngs):
        self.kernel = nnx.Param(FAN_IN_INIT(rngs.params(), (kernel_size, in_features, out_features), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(out_features, jnp.float32))
        self.stride = stride

    def __call__(self, x: Array) -> Array:
        kernel = self.kernel[...].astype(x.dtype)
        pad = kernel.shape[0] // 2
        y = jax.lax.conv_general_dilated(
            x, kernel, (self.stride,), [(pad, pad)], dimension_numbers=("NWC", "WIO", "NWC")
        )
        return y + self.bias[...].astype(x.dtype)


def gelu(x: Array) -> Array:
    """GELU by the error function, which all three original encoders use (not the tanh approximation)."""
    return jax.nn.gelu(x, approximate=False)


def split_heads(x: Array, num_heads: int) -> Array:
    """float[...,H*K] -> float[...,H,K]."""
    return x.reshape(*x.shape[:-1], num_heads, -1)


def merge_heads(x: Array) -> Array:
    """float[...,H,K] -> float[...,H*K]."""
    return x.reshape(*x.shape[:-2], -1)


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Drops entries with probability `rate`; the identity when `key` is None, as in inference."""
    if key is None or rate == 0.0:
        return x
    return jnp.where(jax.random.bernoulli(key, 1.0 - rate, x.shape), x / (1.0 - rate), 0).astype(x.dtype)


def split_key(key: Array | None, count: int) -> list[Array | None]:
    """Splits a dropout key; None (no dropout) splits into Nones."""
    return [None] * count if key is None else list(jax.random.split(key, count))


def stack_layers(make_layer: Callable[[nnx.Rngs], nnx.Module], num_layers: int, rngs: nnx.Rngs) -> nnx.Module:
    """Builds `count` equal layers as one module whose every parameter has a leading layer axis L."""
    return nnx.vmap(make_layer)(rngs.fork(split=num_layers))


# What a layer keeps of its forward pass for the backward pass; the rest is computed again there. By name, with memory
# falling and work rising from first to last.
REMAT_POLICIES: dict[str, Callable | None] = {
    "none": None,  # keeps everything
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # keeps what the weights were multiplied with
    "full": jax.checkpoint_policies.nothing_saveable,  # keeps a layer's input alone
}

_recording: contextvars.ContextVar[dict[str, Array] | None] = contextvars.ContextVar("recording", default=None)


@contextlib.contextmanager
def record_hidden_states() -> Iterator[dict[str, Array]]:
    """While it lasts, `scan_layers` keeps what enters its layers and what leaves each: float[L+1,...] by name.

    For comparisons with other implementations. To be entered within a traced function, which returns the dictionary.
    """
    record: dict[str, Array] = {}
    token = _recording.set(record)
    try:
        yield record
    finally:
        _recording.reset(token)


def scan_layers(name: str, body: Callable, carry: Array, layers: nnx.Module, *xs, remat_policy: str = "none") -> tuple:
    """Runs `carry, y = body(carry, layer, *x)` through stacked layers, compiled once for all of them.

    `name` stands in profiles and in what `record_layers` keeps; `remat` is a name in `REMAT`.
    """
    record = _recording.get()
    if REMAT_POLICIES[remat_policy] is not None:
        # Within a scan nothing can be merged with what is computed again, so no barrier against that is needed.
        body = jax.checkpoint(body, policy=REMAT_POLICIES[remat_policy], prevent_cse=False)

    def step(carry, inputs):
        after, y = body(carry, *inputs)
        return after, (y, None if record is None else after)

    with jax.named_scope(name):
        last, (ys, outputs) = jax.lax.scan(step, carry, (layers, *xs))
    if record is not None:
        record[name] = jnp.concatenate([carry[None], outputs])
    return last, ys

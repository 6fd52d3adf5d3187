"""Layers and helpers shared by the models: linear, norm and convolution layers, dropout, stacked layers, remat.

Modules are Flax NNX modules used as plain pytrees. Parameters are `nnx.Param` leaves, forward passes mutate nothing,
and only `jax.jit`, `jax.value_and_grad`, `jax.lax.scan` and `jax.checkpoint` are applied to modules. Activations keep
the dtype of the input. Parameters are cast to it at their use. Norms and softmax are computed in float32.

The names of axes in annotations are explained in `salmonn_jax.axes`.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

# Sharding rules of the frozen weights of a component: (regular expression of the path inside the component, mesh axis
# of each dimension). `salmonn_jax.sharding` describes the axes.
ShardingRules = tuple[tuple[str, PartitionSpec], ...]

NORMAL_INIT = jax.nn.initializers.normal(0.02)
# Standard deviation 0.02 at BERT's hidden size of 768, scaled with the fan-in so that outputs have the same variance in
# narrower models.
BERT_INIT = jax.nn.initializers.variance_scaling(0.02**2 * 768, "fan_in", "normal")
FAN_IN_INIT = jax.nn.initializers.variance_scaling(1.0, "fan_in", "normal")


_MATMUL = "matmul"  # name of the outputs of `matmul`, by which the remat policy "dots" finds them


def matmul(x: Array, kernel: Array, output_dtype: str | None = None) -> Array:
    """Multiplies activations float[..., in_features] by a kernel, cast to the dtype of the activations.

    The gradient of the kernel is accumulated over all tokens, and over all devices, in float32. JAX's own derivative
    computes it in the dtype of the activations: each device would round its part to bfloat16 before the sum.

    Args:
      x: activations.
      kernel: parameter, usually float32.
      output_dtype: dtype of the result; by default that of the activations.
    """
    return checkpoint_name(_matmul(x, kernel, output_dtype), _MATMUL)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _matmul(x: Array, kernel: Array, output_dtype: str | None) -> Array:
    return jnp.matmul(x, kernel.astype(x.dtype), preferred_element_type=output_dtype)


def _matmul_forward(x: Array, kernel: Array, output_dtype: str | None) -> tuple[Array, tuple[Array, Array]]:
    return _matmul(x, kernel, output_dtype), (x, kernel)


def _matmul_backward(
    output_dtype: str | None, residuals: tuple[Array, Array], y_gradient: Array
) -> tuple[Array, Array]:
    del output_dtype
    x, kernel = residuals
    token_axes = tuple(range(x.ndim - 1))
    kernel_gradient = jax.lax.dot_general(
        x, y_gradient, ((token_axes, token_axes), ((), ())), preferred_element_type=jnp.float32
    )
    x_gradient = y_gradient @ kernel.astype(x.dtype).T
    return x_gradient.astype(x.dtype), kernel_gradient.astype(kernel.dtype)


_matmul.defvjp(_matmul_forward, _matmul_backward)


def cast_broadcast(param: Array, x: Array) -> Array:
    """Returns a parameter with the shape and dtype of activations `x`.

    The parameter is cast after it is broadcast, so that its gradient is summed over tokens and devices in float32.
    """
    return jnp.broadcast_to(param, x.shape).astype(x.dtype)


class Linear(nnx.Module):
    """Linear layer y = x @ kernel (+ bias), with kernel float[in_features, out_features]."""

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

    def __call__(self, x: Float[Array, "*batch in_features"]) -> Float[Array, "*batch out_features"]:
        y = matmul(x, self.kernel[...])
        return y if self.bias is None else y + cast_broadcast(self.bias[...], y)


class LayerNorm(nnx.Module):
    """Layer normalisation over the last axis, computed in float32."""

    def __init__(self, num_features: int, *, epsilon: float = 1e-5):
        self.scale = nnx.Param(jnp.ones(num_features, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(num_features, jnp.float32))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "*batch hidden"]) -> Float[Array, "*batch hidden"]:
        x32 = x.astype(jnp.float32)
        centred = x32 - x32.mean(axis=-1, keepdims=True)
        inverse = jax.lax.rsqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + self.epsilon)
        y = centred * inverse * self.scale[...].astype(jnp.float32) + self.bias[...].astype(jnp.float32)
        return y.astype(x.dtype)


class Conv1d(nnx.Module):
    """1-D convolution over time with bias and kernel float[kernel_size, in_features, out_features]."""

    def __init__(self, in_features: int, out_features: int, *, kernel_size: int, stride: int, rngs: nnx.Rngs):
        self.kernel = nnx.Param(FAN_IN_INIT(rngs.params(), (kernel_size, in_features, out_features), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(out_features, jnp.float32))
        self.stride = stride

    def __call__(self, x: Float[Array, "clips _ in_features"]) -> Float[Array, "clips _ out_features"]:
        kernel = self.kernel[...].astype(x.dtype)
        pad = kernel.shape[0] // 2
        y = jax.lax.conv_general_dilated(
            x, kernel, (self.stride,), [(pad, pad)], dimension_numbers=("NWC", "WIO", "NWC")
        )
        return y + cast_broadcast(self.bias[...], y)


def gelu(x: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Applies the exact GELU (error function, not the tanh approximation), as in Whisper, BEATs and the Q-Former."""
    return jax.nn.gelu(x, approximate=False)


def split_heads(x: Float[Array, "*batch hidden"], num_heads: int) -> Float[Array, "*batch heads head_size"]:
    """Splits the last axis into heads."""
    return x.reshape(*x.shape[:-1], num_heads, -1)


def merge_heads(x: Float[Array, "*batch heads head_size"]) -> Float[Array, "*batch hidden"]:
    """Merges heads into the last axis; the inverse of `split_heads`."""
    return x.reshape(*x.shape[:-2], -1)


def dropout(x: Float[Array, "*batch"], rate: float, key: Array | None) -> Float[Array, "*batch"]:
    """Sets entries to zero with probability `rate` and scales the rest by 1 / (1 - rate).

    Args:
      x: activations.
      rate: dropout probability.
      key: random key; None returns `x` unchanged, as in inference.
    """
    if key is None or rate == 0.0:
        return x
    return jnp.where(jax.random.bernoulli(key, 1.0 - rate, x.shape), x / (1.0 - rate), 0).astype(x.dtype)


def split_key(key: Array | None, count: int) -> list[Array | None]:
    """Splits a dropout key into `count` keys; None (no dropout) gives a list of Nones."""
    return [None] * count if key is None else list(jax.random.split(key, count))


def stack_layers(make_layer: Callable[[nnx.Rngs], nnx.Module], num_layers: int, rngs: nnx.Rngs) -> nnx.Module:
    """Builds `num_layers` equal layers as one module, whose parameters all have a leading axis of layers.

    Args:
      make_layer: builds one layer from its random keys.
      num_layers: number of layers.
      rngs: random keys, which are split over the layers.
    """
    return nnx.vmap(make_layer)(rngs.fork(split=num_layers))


# Rematerialisation policies by name: which activations of a layer are saved for the backward pass, where all others are
# recomputed. From first to last, memory falls and computation rises.
REMAT_POLICIES: dict[str, Callable | None] = {
    "none": None,  # saves all activations
    "dots": jax.checkpoint_policies.save_only_these_names(_MATMUL),  # saves outputs of products with weights
    "full": jax.checkpoint_policies.nothing_saveable,  # saves only the input of each layer
}

_recording: contextvars.ContextVar[dict[str, Array] | None] = contextvars.ContextVar("recording", default=None)


@contextlib.contextmanager
def record_hidden_states() -> Iterator[dict[str, Array]]:
    """Records the hidden states of all `scan_layers` calls in this context, for comparison with other implementations.

    It must be entered inside a traced function, which returns the yielded dictionary.

    Yields:
      A dictionary of arrays by the `name` of the call. Along the leading axis are the input of the first layer and the
      outputs of all layers.
    """
    record: dict[str, Array] = {}
    token = _recording.set(record)
    try:
        yield record
    finally:
        _recording.reset(token)


def scan_layers(name: str, body: Callable, carry: Array, layers: nnx.Module, *xs, remat_policy: str = "none") -> tuple:
    """Applies stacked layers one after the other with `jax.lax.scan`, so that the layer is compiled once.

    Args:
      name: name of the layers in profiles and in `record_hidden_states`.
      body: computes `carry, y = body(carry, layer, *x)` for one layer.
      carry: input of the first layer.
      layers: module with stacked parameters (see `stack_layers`).
      *xs: further inputs with a leading layer axis.
      remat_policy: name in `REMAT_POLICIES`.

    Returns:
      The carry after the last layer, and the `y` of all layers with a leading layer axis.
    """
    record = _recording.get()
    if REMAT_POLICIES[remat_policy] is not None:
        # A scan body cannot share subexpressions with its recomputation, so the barrier against CSE is not needed.
        body = jax.checkpoint(body, policy=REMAT_POLICIES[remat_policy], prevent_cse=False)

    def step(carry, inputs):
        new_carry, y = body(carry, *inputs)
        return new_carry, (y, None if record is None else new_carry)

    with jax.named_scope(name):
        last, (ys, outputs) = jax.lax.scan(step, carry, (layers, *xs))
    if record is not None:
        record[name] = jnp.concatenate([carry[None], outputs])
    return last, ys

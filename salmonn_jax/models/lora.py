"""Low-rank adapters (Hu et al. 2021; original: PEFT 0.3 `lora.Linear`)."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from salmonn_jax.config import LoraConfig
from salmonn_jax.models.common import FAN_IN_INIT, Linear, dropout

# torch's kaiming_uniform_(a=sqrt(5)), which PEFT draws A from
KAIMING_UNIFORM_INIT = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class LoraLinear(Linear):
    """y = x @ kernel + scale * dropout(x) @ lora_a @ lora_b, with lora_a float[D_in,r] and lora_b float[r,D_out].

    `scale` is an argument and not a property of the weights: it can be discounted while the program runs, and None
    leaves the branch out, so that the base model's outputs come back bit for bit.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        lora: LoraConfig,
        rngs: nnx.Rngs,
        kernel_init: Callable = FAN_IN_INIT,
    ):
        super().__init__(in_features, out_features, use_bias=False, rngs=rngs, kernel_init=kernel_init)
        self.lora_a = nnx.Param(KAIMING_UNIFORM_INIT(rngs.params(), (in_features, lora.rank), jnp.float32))
        self.lora_b = nnx.Param(jnp.zeros((lora.rank, out_features), jnp.float32))
        self.dropout_rate = lora.dropout

    def __call__(self, x: Array, lora_scale: Array | float | None, key: Array | None = None) -> Array:
        y = super().__call__(x)
        if lora_scale is None:
            return y
        low = dropout(x, self.dropout_rate, key) @ self.lora_a[...].astype(x.dtype)
        return y + (low @ self.lora_b[...].astype(x.dtype) * jnp.asarray(lora_scale, x.dtype))


class PlainLinear(Linear):
    """A projection without an adapter that takes, and ignores, the adapter's arguments."""

    def __init__(self, in_features: int, out_features: int, *, rngs: nnx.Rngs, kernel_init: Callable = FAN_IN_INIT):
        super().__init__(in_features, out_features, use_bias=False, rngs=rngs, kernel_init=kernel_init)

    def __call__(self, x: Array, lora_scale: Array | float | None, key: Array | None = None) -> Array:
        del lora_scale, key
        return super().__call__(x)


def make_projection(
    name: str, in_features: int, out_features: int, lora: LoraConfig, rngs: nnx.Rngs
) -> LoraLinear | PlainLinear:
    """The projection `name` of a layer, with an adapter if the configuration targets it."""
    if name in lora.target_modules:
        return LoraLinear(in_features, out_features, lora=lora, rngs=rngs)
    return PlainLinear(in_features, out_features, rngs=rngs)

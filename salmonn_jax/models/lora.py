"""Low-rank adapters (Hu et al. 2021; original: PEFT 0.3 `lora.Linear`)."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from salmonn_jax.config import LoraConfig
from salmonn_jax.models.common import ROOT, Linear, dropout

# torch's kaiming_uniform_(a=sqrt(5)), which PEFT draws A from
KAIMING = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class LoraLinear(Linear):
    """y = x @ kernel + scale * dropout(x) @ lora_a @ lora_b, with lora_a float[D_in,r] and lora_b float[r,D_out].

    `scale` is an argument and not a property of the weights: it can be discounted while the program runs, and None
    leaves the branch out, so that the base model's outputs come back bit for bit.
    """

    def __init__(self, inputs: int, outputs: int, *, lora: LoraConfig, rngs: nnx.Rngs, init: Callable = ROOT):
        super().__init__(inputs, outputs, use_bias=False, rngs=rngs, init=init)
        self.lora_a = nnx.Param(KAIMING(rngs.params(), (inputs, lora.rank), jnp.float32))
        self.lora_b = nnx.Param(jnp.zeros((lora.rank, outputs), jnp.float32))
        self.rate = lora.dropout

    def __call__(self, x: Array, scale: Array | float | None, key: Array | None = None) -> Array:
        y = super().__call__(x)
        if scale is None:
            return y
        low = dropout(x, self.rate, key) @ self.lora_a[...].astype(x.dtype)
        return y + (low @ self.lora_b[...].astype(x.dtype) * jnp.asarray(scale, x.dtype))


class PlainLinear(Linear):
    """A projection without an adapter that takes, and ignores, the adapter's arguments."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs, init: Callable = ROOT):
        super().__init__(inputs, outputs, use_bias=False, rngs=rngs, init=init)

    def __call__(self, x: Array, scale: Array | float | None, key: Array | None = None) -> Array:
        del scale, key
        return super().__call__(x)


def projection(name: str, inputs: int, outputs: int, lora: LoraConfig, rngs: nnx.Rngs) -> LoraLinear | PlainLinear:
    """The projection `name` of a layer, with an adapter if the configuration targets it."""
    if name in lora.target_modules:
        return LoraLinear(inputs, outputs, lora=lora, rngs=rngs)
    return PlainLinear(inputs, outputs, rngs=rngs)

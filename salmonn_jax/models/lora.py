"""Linear layers with low-rank adapters (Hu et al. 2021; original: PEFT 0.3 `lora.Linear`). The decoder uses them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from salmonn_jax.config import LlamaConfig, LoraConfig
from salmonn_jax.models.common import FAN_IN_INIT, Linear, ShardingRules, dropout, matmul

SHARDING_RULES: ShardingRules = ((r".*/lora_[ab]", PartitionSpec()),)  # too small to be split

# Factor of the adapters: a scalar, or one of each layer; None leaves the adapters out.
LoraScale = Float[Array, ""] | Float[Array, " layers"] | float | None

# torch's kaiming_uniform_(a=sqrt(5)), with which PEFT initialises A.
KAIMING_UNIFORM_INIT = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class AdapterUse(NamedTuple):
    """How the adapters of a layer are used in a call; None in its place leaves them out."""

    scale: Array | float  # scalar factor
    tokens: Array | None = None  # bool[rows, seq] tokens for which they are used; None for all


class LoraLinear(Linear):
    """Linear layer with an adapter: y = x @ kernel (+ bias) + scale * dropout(x) @ lora_a @ lora_b.

    `lora_a` is float[in_features, rank] and `lora_b` is float[rank, out_features]. The scale is an argument of the
    call, so it can be lowered at runtime. Without adapters the outputs are bit for bit those of the base model.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        lora: LoraConfig,
        rngs: nnx.Rngs,
        use_bias: bool = False,
        kernel_init: Callable = FAN_IN_INIT,
    ):
        super().__init__(in_features, out_features, use_bias=use_bias, rngs=rngs, kernel_init=kernel_init)
        self.lora_a = nnx.Param(KAIMING_UNIFORM_INIT(rngs.params(), (in_features, lora.rank), jnp.float32))
        self.lora_b = nnx.Param(jnp.zeros((lora.rank, out_features), jnp.float32))
        self.dropout_rate = lora.dropout

    def __call__(
        self,
        x: Float[Array, "*batch in_features"],
        adapters: AdapterUse | None,
        dropout_key: Array | None = None,
    ) -> Float[Array, "*batch out_features"]:
        """Applies the layer; `dropout_key` is the random key of dropout, None in inference."""
        y = super().__call__(x)
        if adapters is None:
            return y
        low_rank = matmul(dropout(x, self.dropout_rate, dropout_key), self.lora_a[...])
        adapted = y + matmul(low_rank, self.lora_b[...]) * jnp.asarray(adapters.scale, x.dtype)
        return adapted if adapters.tokens is None else jnp.where(adapters.tokens[..., None], adapted, y)


class PlainLinear(Linear):
    """Linear layer without an adapter, with the call signature of `LoraLinear`; the extra arguments are ignored."""

    def __call__(
        self,
        x: Float[Array, "*batch in_features"],
        adapters: AdapterUse | None,
        dropout_key: Array | None = None,
    ) -> Float[Array, "*batch out_features"]:
        del adapters, dropout_key
        return super().__call__(x)


def make_projection(
    name: str, in_features: int, out_features: int, *, lora: LoraConfig, rngs: nnx.Rngs, use_bias: bool
) -> LoraLinear | PlainLinear:
    """Builds a projection, with an adapter if it is one of the adapter configuration's target modules.

    Args:
      name: name of the projection, such as "q_proj".
      in_features: size of the input.
      out_features: size of the output.
      lora: configuration of the adapters.
      rngs: random keys for the initial weights.
      use_bias: whether the projection has a bias.
    """
    if name in lora.target_modules:
        return LoraLinear(in_features, out_features, lora=lora, rngs=rngs, use_bias=use_bias)
    return PlainLinear(in_features, out_features, rngs=rngs, use_bias=use_bias)


def lora_flops(config: LlamaConfig, lora_config: LoraConfig) -> int:
    """Returns the FLOPs of a forward pass of one token through the adapters of all layers."""
    d = config.hidden_size
    q_dim, kv_dim = config.num_attention_heads * config.head_size, config.num_key_value_heads * config.head_size
    sizes = {"q_proj": (d, q_dim), "k_proj": (d, kv_dim), "v_proj": (d, kv_dim), "o_proj": (q_dim, d)}
    sizes |= {
        "gate_proj": (d, config.intermediate_size),
        "up_proj": (d, config.intermediate_size),
        "down_proj": (config.intermediate_size, d),
    }
    return config.num_hidden_layers * sum(
        2 * lora_config.rank * sum(sizes[name]) for name in lora_config.target_modules
    )

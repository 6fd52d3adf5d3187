"""Decoder of LLaMA, Mistral, Qwen2 and Qwen3 with LoRA (Touvron et al. 2023; transformers' `modeling_llama`).

The decoder has rotary positions in the rotate-half layout, RMSNorm, SwiGLU and grouped-query attention; biases in the
attention's projections (Qwen2) and RMS norms of queries and keys (Qwen3) are options. Training, prefill and decoding
use the same layers and differ in the attention.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Float32, Int32

from salmonn_jax.config import LlamaConfig, LoraConfig
from salmonn_jax.models.common import (
    NORMAL_INIT,
    Linear,
    ShardingRules,
    cast_broadcast,
    matmul,
    merge_heads,
    scan_layers,
    split_heads,
    split_key,
    stack_layers,
)
from salmonn_jax.models.lora import AdapterUse, LoraScale, make_projection

# `tensor` splits attention heads, the feed-forward hidden size and the vocabulary, so that attention and feed-forward
# network need one all-reduce each.
SHARDING_RULES: ShardingRules = (
    (r"embedding", P("tensor", "fsdp")),
    (r"layers/(q|k|v|gate|up)_proj/kernel", P(None, "fsdp", "tensor")),
    (r"layers/(o|down)_proj/kernel", P(None, "tensor", "fsdp")),
    (r"layers/(q|k|v|gate|up)_proj/bias", P(None, "tensor")),
    (r"layers/(o|down)_proj/bias", P()),
    (r"lm_head/kernel", P("fsdp", "tensor")),
    (r"(layers/(attention|ffn|q|k)_)?norm/scale", P()),
)


class KeysAndValues(NamedTuple):
    """Keys, after the rotary embedding, and values of tokens in all layers. Heads are those of keys.

    As cache of decoding, the first entries are the prompt of the row, which its beams share. Token t of beam b is in
    entry `prompt tokens + t * beams + b`. Entries stay where they were written when beams are reordered; the mask of
    `Llama.decode` says which of them belong to a beam.
    """

    keys: Array  # float[layers, rows, heads, keys, head_size]
    values: Array  # float[layers, rows, heads, keys, head_size]


Attend = Callable[[Array, Array, Array], Array]  # attention of one layer: queries, keys and values to outputs


class RMSNorm(nnx.Module):
    """RMS normalisation x / rms(x) * scale over the last axis, with the division in float32."""

    def __init__(self, num_features: int, *, epsilon: float):
        self.scale = nnx.Param(jnp.ones(num_features, jnp.float32))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "*batch hidden"]) -> Float[Array, "*batch hidden"]:
        x32 = x.astype(jnp.float32)
        y = x32 * jax.lax.rsqrt(jnp.square(x32).mean(axis=-1, keepdims=True) + self.epsilon)
        # The original casts to the input's dtype before it multiplies by the scale.
        return y.astype(x.dtype) * cast_broadcast(self.scale[...], x)


class LlamaLayer(nnx.Module):
    """Pre-norm transformer layer with self-attention and a SwiGLU feed-forward network."""

    def __init__(self, config: LlamaConfig, lora: LoraConfig, rngs: nnx.Rngs):
        hidden_size, ffn_size, head_size = config.hidden_size, config.intermediate_size, config.head_size
        q_size, kv_size = config.num_attention_heads * head_size, config.num_key_value_heads * head_size
        projection = functools.partial(make_projection, lora=lora, rngs=rngs)
        norm = functools.partial(RMSNorm, epsilon=config.rms_norm_eps)
        qkv_bias, o_bias = config.attention_bias != "none", config.attention_bias == "qkvo"
        self.attention_norm = norm(hidden_size)
        self.q_proj = projection("q_proj", hidden_size, q_size, use_bias=qkv_bias)
        self.k_proj = projection("k_proj", hidden_size, kv_size, use_bias=qkv_bias)
        self.v_proj = projection("v_proj", hidden_size, kv_size, use_bias=qkv_bias)
        self.o_proj = projection("o_proj", q_size, hidden_size, use_bias=o_bias)
        self.q_norm = norm(head_size) if config.qk_norm else None
        self.k_norm = norm(head_size) if config.qk_norm else None
        self.ffn_norm = norm(hidden_size)
        self.gate_proj = projection("gate_proj", hidden_size, ffn_size, use_bias=config.mlp_bias)
        self.up_proj = projection("up_proj", hidden_size, ffn_size, use_bias=config.mlp_bias)
        self.down_proj = projection("down_proj", ffn_size, hidden_size, use_bias=config.mlp_bias)
        self.num_heads, self.num_kv_heads = config.num_attention_heads, config.num_key_value_heads

    def __call__(
        self,
        x: Float[Array, "rows seq hidden"],
        rotation: tuple[Float32[Array, "rows seq 1 head_size"], Float32[Array, "rows seq 1 head_size"]],
        attend: Attend,
        adapters: AdapterUse | None,
        dropout_key: Array | None = None,
    ) -> tuple[
        Float[Array, "rows seq hidden"],
        Float[Array, "rows seq heads head_size"],
        Float[Array, "rows seq heads head_size"],
    ]:
        """Applies the layer.

        Args:
          x: hidden states.
          rotation: cosines and sines of the rotary embedding.
          attend: attention of float[rows, seq, heads, head_size] queries, keys and values.
          adapters: how the adapters are used; None leaves them out.
          dropout_key: random key of LoRA dropout; None in inference.

        Returns:
          Hidden states, and the keys and values of the tokens.
        """
        q_key, k_key, v_key, o_key, gate_key, up_key, down_key = split_key(dropout_key, 7)
        y = self.attention_norm(x)
        q = split_heads(self.q_proj(y, adapters, q_key), self.num_heads)
        k = split_heads(self.k_proj(y, adapters, k_key), self.num_kv_heads)
        v = split_heads(self.v_proj(y, adapters, v_key), self.num_kv_heads)
        if self.q_norm is not None:  # over the features of each head
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = apply_rotary_embedding(q, *rotation), apply_rotary_embedding(k, *rotation)
        x = x + self.o_proj(merge_heads(attend(q, k, v)), adapters, o_key)
        y = self.ffn_norm(x)
        y = jax.nn.silu(self.gate_proj(y, adapters, gate_key)) * self.up_proj(y, adapters, up_key)
        return x + self.down_proj(y, adapters, down_key), k, v


class Llama(nnx.Module):
    """LLaMA decoder: `embed` maps tokens to embeddings, a call maps embeddings to hidden states, `logits` to logits."""

    def __init__(self, config: LlamaConfig, lora: LoraConfig, *, rngs: nnx.Rngs):
        self.embedding = nnx.Param(
            embedding_init(config.hidden_size)(rngs.params(), (config.vocab_size, config.hidden_size), jnp.float32)
        )
        self.layers = stack_layers(lambda rngs: LlamaLayer(config, lora, rngs), config.num_hidden_layers, rngs)
        self.norm = RMSNorm(config.hidden_size, epsilon=config.rms_norm_eps)
        make_lm_head = functools.partial(
            Linear, config.hidden_size, config.vocab_size, use_bias=False, rngs=rngs, kernel_init=NORMAL_INIT
        )
        self.lm_head = None if config.tie_word_embeddings else make_lm_head()
        self.config = config

    def embed(self, tokens: Int32[Array, "*batch"]) -> Float[Array, "*batch hidden"]:
        """Returns the embeddings of tokens, in the dtype of the parameters."""
        return self.embedding[...][tokens]

    def __call__(
        self,
        x: Float[Array, "rows seq hidden"],
        positions: Int32[Array, "rows seq"],
        mask: Bool[Array, "rows seq keys"],
        *,
        lora_scale: LoraScale,
        adapted: Bool[Array, "rows seq"] | None = None,
        dropout_key: Array | None = None,
        remat_policy: str = "none",
    ) -> Float[Array, "rows seq hidden"]:
        """Runs the layers and the final norm.

        Args:
          x: embeddings.
          positions: rotary positions.
          mask: tokens of the row that each token may attend to.
          lora_scale: factor of the adapters, a scalar or float32[layers]; None leaves the adapters out.
          adapted: tokens for which the adapters are used; None for all.
          dropout_key: random key of LoRA dropout in training; None in inference.
          remat_policy: name in `salmonn_jax.models.common.REMAT_POLICIES`.

        Returns:
          Hidden states.
        """
        rotation, attend = rotary_cos_sin(positions, self.config), _masked_attention(mask)
        layer_keys = None if dropout_key is None else jax.random.split(dropout_key, self.config.num_hidden_layers)

        use, layer_scales = _adapter_use(lora_scale, adapted)

        def body(x, layer, layer_key, layer_scale):
            return layer(x, rotation, attend, use(layer_scale), layer_key)[0], None

        x, _ = scan_layers("llama", body, x, self.layers, layer_keys, layer_scales, remat_policy=remat_policy)
        return self.norm(x)

    def prefill(
        self,
        x: Float[Array, "rows seq hidden"],
        positions: Int32[Array, "rows seq"],
        mask: Bool[Array, "rows seq keys"],
        *,
        lora_scale: LoraScale,
        num_free: int,
        adapted: Bool[Array, "rows seq"] | None = None,
    ) -> tuple[Float[Array, "rows seq hidden"], KeysAndValues]:
        """Runs the layers on prompts. Other arguments and hidden states are those of a call.

        Args:
          x: see `__call__`.
          positions: see `__call__`.
          mask: see `__call__`.
          lora_scale: see `__call__`.
          num_free: entries of the cache for decoded tokens.
          adapted: see `__call__`.

        Returns:
          Hidden states, and the cache: keys and values of the prompts, followed by zeros.
        """
        rotation, attend = rotary_cos_sin(positions, self.config), _masked_attention(mask)

        use, layer_scales = _adapter_use(lora_scale, adapted)

        def body(x, layer, layer_scale):
            x, keys, values = layer(x, rotation, attend, use(layer_scale))
            free = ((0, 0), (0, 0), (0, num_free), (0, 0))
            return x, KeysAndValues(*(jnp.pad(y.swapaxes(1, 2), free) for y in (keys, values)))

        x, cache = scan_layers("llama", body, x, self.layers, layer_scales)
        return self.norm(x), cache

    def decode(
        self,
        x: Float[Array, "rows beams hidden"],
        positions: Int32[Array, "rows beams"],
        cache: KeysAndValues,
        mask: Bool[Array, "rows beams keys"],
        *,
        lora_scale: LoraScale,
        adapted: Bool[Array, "rows beams"] | None = None,
    ) -> tuple[Float[Array, "rows beams hidden"], KeysAndValues]:
        """Runs the layers on the next token of every beam. A token also attends to itself.

        Args:
          x: embeddings.
          positions: rotary positions.
          cache: keys and values of earlier tokens.
          mask: entries of the cache that each beam may attend to.
          lora_scale: see `__call__`.
          adapted: beams for which the adapters are used; None for all.

        Returns:
          Hidden states, and the keys and values of these tokens: one for each beam.
        """
        rotation = rotary_cos_sin(positions, self.config)

        use, layer_scales = _adapter_use(lora_scale, adapted)

        def body(x, layer, past, layer_scale):
            attend = functools.partial(_cached_attention, past, mask)
            x, keys, values = layer(x, rotation, attend, use(layer_scale))
            return x, KeysAndValues(keys.swapaxes(1, 2), values.swapaxes(1, 2))

        x, new = scan_layers("llama", body, x, self.layers, cache, layer_scales)
        return self.norm(x), new

    def logits(self, hidden: Float[Array, "*batch hidden"]) -> Float32[Array, "*batch vocab"]:
        """Returns the logits of hidden states."""
        kernel = self.embedding[...].T if self.lm_head is None else self.lm_head.kernel[...]
        return matmul(hidden, kernel, "float32")


def _adapter_use(
    lora_scale: LoraScale, adapted: Array | None
) -> tuple[Callable[[Array | None], AdapterUse | None], Array | None]:
    """Divides a scale into what layers share and what each has.

    Returns:
      A function from the scale of one layer to how its adapters are used, and the scales by layer, None if layers share
      one.
    """
    if lora_scale is None:
        return lambda layer_scale: None, None
    if jnp.ndim(lora_scale) == 0:
        return lambda layer_scale: AdapterUse(lora_scale, adapted), None
    return lambda layer_scale: AdapterUse(layer_scale, adapted), lora_scale


def _masked_attention(mask: Bool[Array, "rows seq keys"]) -> Attend:
    """Returns the attention among the tokens of a call."""
    return lambda q, k, v: jax.nn.dot_product_attention(q, k, v, mask=mask[:, None])


def _cached_attention(
    past: KeysAndValues,
    mask: Bool[Array, "rows beams keys"],
    q: Float[Array, "rows beams heads head_size"],
    k: Float[Array, "rows beams kv_heads head_size"],
    v: Float[Array, "rows beams kv_heads head_size"],
) -> Float[Array, "rows beams heads head_size"]:
    """Attends to cached keys and values of one layer, and of each token to itself.

    Args:
      past: float[rows, kv_heads, keys, head_size] each.
      mask: cached keys that each query may attend to.
      q: queries.
      k: keys of the same tokens.
      v: values of the same tokens.
    """
    num_rows, num_beams, num_heads, head_size = q.shape
    q = q.reshape(num_rows, num_beams, k.shape[2], -1, head_size).transpose(0, 2, 1, 3, 4)  # heads that share a key
    k, v = (x.transpose(0, 2, 1, 3)[:, :, :, None] for x in (k, v))
    scores = jnp.einsum("rhbgd,rhkd->rhbgk", q, past.keys, preferred_element_type=jnp.float32) / head_size**0.5
    scores = jnp.where(mask[:, None, :, None], scores, -jnp.inf)
    own_score = (q.astype(jnp.float32) * k.astype(jnp.float32)).sum(axis=-1, keepdims=True) / head_size**0.5
    # One softmax over both, without joining them in memory.
    largest = jnp.maximum(scores.max(axis=-1, keepdims=True), own_score)
    weights, own_weight = jnp.exp(scores - largest), jnp.exp(own_score - largest)
    outputs = jnp.einsum("rhbgk,rhkd->rhbgd", weights.astype(q.dtype), past.values, preferred_element_type=jnp.float32)
    outputs = (outputs + own_weight * v.astype(jnp.float32)) / (weights.sum(axis=-1, keepdims=True) + own_weight)
    return outputs.astype(q.dtype).transpose(0, 2, 1, 3, 4).reshape(num_rows, num_beams, num_heads, head_size)


def log_probabilities(logits: Float32[Array, "*batch vocab"], pad_classes: int) -> Float32[Array, "*batch vocab"]:
    """Returns the log-softmax of the logits and `pad_classes` extra classes whose logit is zero."""
    total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    return logits - (jnp.logaddexp(total, jnp.log(float(pad_classes))) if pad_classes else total)


def embedding_init(hidden_size: int) -> Callable:
    """Returns an initialiser with standard deviation 0.02 at the 13B's hidden size.

    In narrower models the standard deviation is larger, so that embeddings have the same norm.
    """
    return jax.nn.initializers.normal(0.02 * (5120 / hidden_size) ** 0.5)


def rotary_cos_sin(
    positions: Int32[Array, "rows seq"], config: LlamaConfig
) -> tuple[Float32[Array, "rows seq 1 head_size"], Float32[Array, "rows seq 1 head_size"]]:
    """Returns the cosines and sines of rotary positions.

    The second half of the last axis repeats the first, as `apply_rotary_embedding` expects.
    """
    angles = positions[..., None].astype(jnp.float32) * rotary_inv_freq(config)
    angles = jnp.concatenate([angles, angles], axis=-1)[:, :, None, :]
    return jnp.cos(angles), jnp.sin(angles)


def rotary_inv_freq(config: LlamaConfig) -> Float32[np.ndarray, " half_head"]:
    """Returns the rotary frequencies in radians per position.

    With `rope_scaling`, low frequencies are divided by the factor, high frequencies stay unchanged, and frequencies in
    between are interpolated (transformers' `_compute_llama3_parameters`).
    """
    inv_freq = 1.0 / config.rope_theta ** (np.arange(0, config.head_size, 2, dtype=np.float32) / config.head_size)
    scaling = config.rope_scaling
    if scaling is not None:
        num_periods = scaling.original_max_position_embeddings * inv_freq / (2 * np.pi)
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        smooth_factor = np.clip((num_periods - low) / (high - low), 0.0, 1.0)
        inv_freq = inv_freq * (smooth_factor + (1.0 - smooth_factor) / scaling.factor)
    return inv_freq.astype(np.float32)


def apply_rotary_embedding(
    x: Float[Array, "rows seq heads head_size"],
    cosine: Float32[Array, "rows seq 1 head_size"],
    sine: Float32[Array, "rows seq 1 head_size"],
) -> Float[Array, "rows seq heads head_size"]:
    """Applies the rotary embedding, which rotates the entries of both halves as pairs (Hugging Face's layout).

    Args:
      x: queries or keys.
      cosine: from `rotary_cos_sin`.
      sine: from `rotary_cos_sin`.
    """
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated_half = jnp.concatenate([-second, first], axis=-1)
    return (x.astype(jnp.float32) * cosine + rotated_half * sine).astype(x.dtype)


def causal_mask(segments: Int32[Array, "rows seq"]) -> Bool[Array, "rows seq seq"]:
    """Returns the attention mask of segment numbers.

    A token attends to itself and to the earlier tokens of its segment. Segment 0 is padding.
    """
    position = jnp.arange(segments.shape[1])
    same_segment = (segments[:, :, None] == segments[:, None, :]) & (segments[:, None, :] > 0)
    return same_segment & (position[None, :] <= position[:, None])


def llama_layers_flops(config: LlamaConfig) -> int:
    """Returns the FLOPs of a forward pass of one token through the weights of all layers."""
    d = config.hidden_size
    q_dim, kv_dim = config.num_attention_heads * config.head_size, config.num_key_value_heads * config.head_size
    return config.num_hidden_layers * 2 * d * (2 * q_dim + 2 * kv_dim + 3 * config.intermediate_size)


def llama_attention_flops(config: LlamaConfig, seq_len: int) -> int:
    """Returns the FLOPs of a forward pass of one row's attention, including masked positions."""
    return config.num_hidden_layers * 4 * seq_len * seq_len * config.num_attention_heads * config.head_size

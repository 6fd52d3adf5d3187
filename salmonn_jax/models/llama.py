"""A LLaMA-family decoder (Touvron et al. 2023; original module: transformers' `modeling_llama`), with LoRA.

Rotate-half rotary positions, RMSNorm, SwiGLU, grouped-query attention. One forward pass serves training, prefill and
decoding: it takes embeddings, positions and an attention mask, and optionally a KV cache to write into.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from salmonn_jax.config import LlamaConfig, LoraConfig
from salmonn_jax.models.common import (
    NORMAL_INIT,
    Linear,
    merge_heads,
    scan_layers,
    split_heads,
    split_key,
    stack_layers,
)
from salmonn_jax.models.lora import make_projection


class KVCache(NamedTuple):
    """Keys (after rotation) and values of past tokens, float[L,R,C,H,K], and how many slots are written."""

    keys: Array
    values: Array
    length: Array  # int32 scalar


class RMSNorm(nnx.Module):
    """x / rms(x) * scale, in float32."""

    def __init__(self, num_features: int, *, epsilon: float):
        self.scale = nnx.Param(jnp.ones(num_features, jnp.float32))
        self.epsilon = epsilon

    def __call__(self, x: Array) -> Array:
        wide = x.astype(jnp.float32)
        y = wide * jax.lax.rsqrt(jnp.square(wide).mean(axis=-1, keepdims=True) + self.epsilon)
        # The original casts down before it multiplies by the weight.
        return y.astype(x.dtype) * self.scale[...].astype(x.dtype)


class LlamaLayer(nnx.Module):
    """Pre-norm attention and SwiGLU feed-forward."""

    def __init__(self, config: LlamaConfig, lora: LoraConfig, rngs: nnx.Rngs):
        width, head = config.hidden_size, config.head_size
        self.attention_norm = RMSNorm(width, epsilon=config.rms_norm_eps)
        self.q_proj = make_projection("q_proj", width, config.num_attention_heads * head, lora, rngs)
        self.k_proj = make_projection("k_proj", width, config.num_key_value_heads * head, lora, rngs)
        self.v_proj = make_projection("v_proj", width, config.num_key_value_heads * head, lora, rngs)
        self.o_proj = make_projection("o_proj", config.num_attention_heads * head, width, lora, rngs)
        self.ffn_norm = RMSNorm(width, epsilon=config.rms_norm_eps)
        self.gate_proj = make_projection("gate_proj", width, config.intermediate_size, lora, rngs)
        self.up_proj = make_projection("up_proj", width, config.intermediate_size, lora, rngs)
        self.down_proj = make_projection("down_proj", config.intermediate_size, width, lora, rngs)
        self.num_heads, self.num_kv_heads = config.num_attention_heads, config.num_key_value_heads

    def __call__(self, x, rotation, mask, lora_scale, past_key_values, cache_index, key):
        """float[R,S,D] -> (float[R,S,D], (keys, values) float[R,C,H,K]); `past` None attends to this call's tokens."""
        on_q, on_k, on_v, on_o, on_gate, on_up, on_down = split_key(key, 7)
        y = self.attention_norm(x)
        q = apply_rotary_embedding(split_heads(self.q_proj(y, lora_scale, on_q), self.num_heads), *rotation)
        k = apply_rotary_embedding(split_heads(self.k_proj(y, lora_scale, on_k), self.num_kv_heads), *rotation)
        v = split_heads(self.v_proj(y, lora_scale, on_v), self.num_kv_heads)
        if past_key_values is not None:
            k, v = (
                jax.lax.dynamic_update_slice_in_dim(old, new, cache_index, axis=1)
                for old, new in zip(past_key_values, (k, v), strict=True)
            )
        mixed = jax.nn.dot_product_attention(q, k, v, mask=mask[:, None])
        x = x + self.o_proj(merge_heads(mixed), lora_scale, on_o)
        y = self.ffn_norm(x)
        y = jax.nn.silu(self.gate_proj(y, lora_scale, on_gate)) * self.up_proj(y, lora_scale, on_up)
        return x + self.down_proj(y, lora_scale, on_down), (k, v)


class Llama(nnx.Module):
    """The decoder: `embed` tokens, call on embeddings, `logits` of hidden states."""

    def __init__(self, config: LlamaConfig, lora: LoraConfig, *, rngs: nnx.Rngs):
        self.embedding = nnx.Param(
            embedding_init(config.hidden_size)(rngs.params(), (config.vocab_size, config.hidden_size), jnp.float32)
        )
        self.layers = stack_layers(lambda rngs: LlamaLayer(config, lora, rngs), config.num_hidden_layers, rngs)
        self.norm = RMSNorm(config.hidden_size, epsilon=config.rms_norm_eps)
        head = functools.partial(
            Linear, config.hidden_size, config.vocab_size, use_bias=False, rngs=rngs, kernel_init=NORMAL_INIT
        )
        self.lm_head = None if config.tie_word_embeddings else head()
        self.config = config

    def embed(self, tokens: Array) -> Array:
        """int32[...] -> float[...,D] in the parameters' dtype."""
        return self.embedding[...][tokens]

    def __call__(
        self,
        x: Array,
        positions: Array,
        mask: Array,
        *,
        lora_scale: Array | float | None,
        cache: KVCache | None = None,
        key: Array | None = None,
        remat_policy: str = "none",
    ) -> tuple[Array, KVCache | None]:
        """Runs the layers and the final norm.

        Args:
          x: float[R,S,D] embeddings.
          positions: int32[R,S] rotary positions.
          mask: bool[R,S,C]; which keys each query sees. Without a cache C is S.
          lora_scale: multiplies every adapter; None leaves the adapters out.
          cache: keys and values are written at its `length`, and attended to under `mask`.
          key: for LoRA dropout, in training.
          remat: what the backward pass computes again, by its name in `salmonn_jax.models.common.REMAT`.

        Returns:
          float[R,S,D] hidden states, and the cache with S more slots written (None without one).
        """
        rotation = rotary_cos_sin(positions, self.config)
        start = None if cache is None else cache.length
        past = None if cache is None else (cache.keys, cache.values)
        keys = None if key is None else jax.random.split(key, self.config.num_hidden_layers)

        def body(x, layer, past, key):
            x, written = layer(x, rotation, mask, lora_scale, past, start, key)
            return x, None if past is None else written

        x, written = scan_layers("llama", body, x, self.layers, past, keys, remat_policy=remat_policy)
        cache = None if cache is None else KVCache(*written, cache.length + x.shape[1])
        return self.norm(x), cache

    def logits(self, hidden: Array) -> Array:
        """float[...,D] -> float32[...,V]."""
        kernel = self.embedding[...].T if self.lm_head is None else self.lm_head.kernel[...]
        return jnp.matmul(hidden, kernel.astype(hidden.dtype), preferred_element_type=jnp.float32)

    def empty_cache(self, num_rows: int, num_slots: int, dtype: jnp.dtype) -> KVCache:
        """A cache of zeros for `rows` sequences of at most `slots` tokens."""
        c = self.config
        shape = (c.num_hidden_layers, num_rows, num_slots, c.num_key_value_heads, c.head_size)
        return KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros((), jnp.int32))


def log_probabilities(logits: Array, pad_classes: int) -> Array:
    """Log-softmax of float32[...,V], in which so many further classes with a logit of zero take part."""
    total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    return logits - (jnp.logaddexp(total, jnp.log(float(pad_classes))) if pad_classes else total)


def embedding_init(hidden_size: int) -> Callable:
    """0.02 at the 13B's width, and vectors of the same length in narrower models."""
    return jax.nn.initializers.normal(0.02 * (5120 / hidden_size) ** 0.5)


def rotary_cos_sin(positions: Array, config: LlamaConfig) -> tuple[Array, Array]:
    """Cosines and sines float32[R,S,1,K] of int32[R,S] positions, halves repeated as `rotate` wants them."""
    angles = positions[..., None].astype(jnp.float32) * rotary_inv_freq(config)
    angles = jnp.concatenate([angles, angles], axis=-1)[:, :, None, :]
    return jnp.cos(angles), jnp.sin(angles)


def rotary_inv_freq(config: LlamaConfig) -> np.ndarray:
    """Radians per position, float32[K/2].

    With `rope_scaling`, rates whose wavelength is long in the original context are divided by the factor, those whose
    wavelength is short are kept, and those between are interpolated (transformers' `_compute_llama3_parameters`).
    """
    rates = 1.0 / config.rope_theta ** (np.arange(0, config.head_size, 2, dtype=np.float32) / config.head_size)
    scaling = config.rope_scaling
    if scaling is not None:
        turns = scaling.original_max_position_embeddings * rates / (2 * np.pi)
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
        rates = rates * (kept + (1.0 - kept) / scaling.factor)
    return rates.astype(np.float32)


def apply_rotary_embedding(x: Array, cosine: Array, sine: Array) -> Array:
    """Rotary embedding of float[R,S,H,K], pairing entry i with entry i + K/2 (Hugging Face's layout)."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([-second, first], axis=-1)
    return (x.astype(jnp.float32) * cosine + turned * sine).astype(x.dtype)


def causal_mask(segments: Array) -> Array:
    """bool[R,S,S]: a token sees the tokens before it (and itself) in its own segment; segment 0 is padding."""
    place = jnp.arange(segments.shape[1])
    same = (segments[:, :, None] == segments[:, None, :]) & (segments[:, None, :] > 0)
    return same & (place[None, :] <= place[:, None])

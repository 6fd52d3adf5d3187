"""The window-level Q-Former (Tang et al. 2024, section 3.1; original module: `models/Qformer.py`, from BLIP-2).

A BERT whose few queries read a window of encoder frames through cross-attention, the same for every window of the
clip. Neither queries nor frames have position embeddings, and nothing is masked: the order of the frames inside a
window is visible only through what the encoders made of them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from salmonn_jax.config import QFormerConfig
from salmonn_jax.models.common import (
    BERT_INIT,
    LayerNorm,
    Linear,
    dropout,
    gelu,
    merge_heads,
    scan_layers,
    split_heads,
    split_key,
    stack_layers,
)

LAYER_NORM_EPS = 1e-12  # BERT's, unlike the 1e-5 of the encoders


class BertAttention(nnx.Module):
    """Multi-head attention with its output projection, residual and (post-)norm."""

    def __init__(self, config: QFormerConfig, kv_hidden_size: int, rngs: nnx.Rngs):
        self.query = Linear(config.hidden_size, config.hidden_size, rngs=rngs, kernel_init=BERT_INIT)
        self.key = Linear(kv_hidden_size, config.hidden_size, rngs=rngs, kernel_init=BERT_INIT)
        self.value = Linear(kv_hidden_size, config.hidden_size, rngs=rngs, kernel_init=BERT_INIT)
        self.dense = Linear(config.hidden_size, config.hidden_size, rngs=rngs, kernel_init=BERT_INIT)
        self.norm = LayerNorm(config.hidden_size, epsilon=LAYER_NORM_EPS)
        self.num_heads = config.num_attention_heads
        self.dropout_rate = config.dropout

    def __call__(self, x: Array, keys: Array, values: Array, key: Array | None) -> Array:
        """Queries float[A,W,Q,D] over projected keys and values float[A,W,T,D] -> float[A,W,Q,D]."""
        on_weights, on_output = split_key(key, 2)
        q, k, v = (split_heads(y, self.num_heads) for y in (self.query(x), keys, values))
        scores = jnp.einsum("awqhk,awthk->awhqt", q, k, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(scores / q.shape[-1] ** 0.5).astype(x.dtype)
        mixed = jnp.einsum("awhqt,awthk->awqhk", dropout(weights, self.dropout_rate, on_weights), v)
        return self.norm(x + dropout(self.dense(merge_heads(mixed)), self.dropout_rate, on_output))


class BertLayer(nnx.Module):
    """Self-attention among the queries, cross-attention to the window, feed-forward; each with residual and norm."""

    def __init__(self, config: QFormerConfig, encoder_hidden_size: int, rngs: nnx.Rngs):
        self.attention = BertAttention(config, config.hidden_size, rngs)
        self.cross_attention = BertAttention(config, encoder_hidden_size, rngs)
        self.intermediate = Linear(config.hidden_size, config.intermediate_size, rngs=rngs, kernel_init=BERT_INIT)
        self.output = Linear(config.intermediate_size, config.hidden_size, rngs=rngs, kernel_init=BERT_INIT)
        self.norm = LayerNorm(config.hidden_size, epsilon=LAYER_NORM_EPS)
        self.config = config

    def __call__(self, x: Array, frames: Array, key: Array | None) -> Array:
        """Queries float[A,W,Q,D] and the clip's frames float[A,T,E] -> float[A,W,Q,D]."""
        on_self, on_cross, on_output = split_key(key, 3)
        x = self.attention(x, self.attention.key(x), self.attention.value(x), on_self)
        # Frames are projected once, before they are cut into windows, which may overlap.
        keys, values = (
            cut_windows(p(frames), self.config) for p in (self.cross_attention.key, self.cross_attention.value)
        )
        x = self.cross_attention(x, keys, values, on_cross)
        return self.norm(x + dropout(self.output(gelu(self.intermediate(x))), self.config.dropout, on_output))


class QFormer(nnx.Module):
    """float[A,T,E] encoder frames -> float[A,W*Q,D], window by window."""

    def __init__(self, config: QFormerConfig, *, encoder_hidden_size: int, rngs: nnx.Rngs):
        self.norm = LayerNorm(config.hidden_size, epsilon=LAYER_NORM_EPS)
        self.layers = stack_layers(
            lambda rngs: BertLayer(config, encoder_hidden_size, rngs), config.num_hidden_layers, rngs
        )
        self.config = config

    def __call__(self, queries: Array, frames: Array, key: Array | None = None) -> Array:
        """Reads `frames` with `queries` float[Q,D]; a dropout `key` is given in training only."""
        on_input, on_layers = split_key(key, 2)
        clips, windows = frames.shape[0], count_windows(frames.shape[1], self.config)
        x = dropout(self.norm(queries.astype(frames.dtype)), self.config.dropout, on_input)
        x = jnp.broadcast_to(x, (clips, windows, *x.shape))
        keys = None if on_layers is None else jax.random.split(on_layers, self.config.num_hidden_layers)
        x, _ = scan_layers("qformer", lambda x, layer, key: (layer(x, frames, key), None), x, self.layers, keys)
        return x.reshape(clips, windows * x.shape[2], -1)


def count_windows(num_frames: int, config: QFormerConfig) -> int:
    """Whole windows in so many frames; what is left at the end is not seen, as `F.unfold` leaves it."""
    return (num_frames - config.window_frames) // config.stride_frames + 1


def cut_windows(frames: Array, config: QFormerConfig) -> Array:
    """float[A,T,D] -> float[A,W,window,D], by strided slices: no gather, and no scatter in the backward pass."""
    size, stride = config.window_frames, config.stride_frames
    last = (count_windows(frames.shape[1], config) - 1) * stride + 1
    return jnp.stack([frames[:, i : i + last : stride] for i in range(size)], axis=2)

"""The window-level Q-Former (Tang et al. 2024, section 3.1; original module: `models/Qformer.py`, from BLIP-2).

The Q-Former is a BERT with a few learned queries, which read one window of encoder frames through cross-attention. All
windows of a clip use the same queries and weights. Queries and frames have no position embeddings and there is no
attention mask, so the order of the frames in a window is visible only in the encoders' features.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from salmonn_jax.config import QFormerConfig
from salmonn_jax.models.common import (
    BERT_INIT,
    LayerNorm,
    Linear,
    ShardingRules,
    dropout,
    gelu,
    merge_heads,
    scan_layers,
    split_heads,
    split_key,
    stack_layers,
)

LAYER_NORM_EPS = 1e-12  # as in BERT; the encoders use 1e-5
SHARDING_RULES: ShardingRules = ((r".*", PartitionSpec()),)  # too small to be split


class BertAttention(nnx.Module):
    """Multi-head attention with output projection, residual connection and post-norm."""

    def __init__(self, config: QFormerConfig, kv_hidden_size: int, rngs: nnx.Rngs):
        self.query = Linear(config.hidden_size, config.hidden_size, rngs=rngs, kernel_init=BERT_INIT)
        self.key = Linear(kv_hidden_size, config.hidden_size, rngs=rngs, kernel_init=BERT_INIT)
        self.value = Linear(kv_hidden_size, config.hidden_size, rngs=rngs, kernel_init=BERT_INIT)
        self.dense = Linear(config.hidden_size, config.hidden_size, rngs=rngs, kernel_init=BERT_INIT)
        self.norm = LayerNorm(config.hidden_size, epsilon=LAYER_NORM_EPS)
        self.num_heads = config.num_attention_heads
        self.dropout_rate = config.dropout

    def __call__(
        self,
        x: Float[Array, "clips windows queries hidden"],
        keys: Float[Array, "clips windows keys hidden"],
        values: Float[Array, "clips windows keys hidden"],
        dropout_key: Array | None,
    ) -> Float[Array, "clips windows queries hidden"]:
        """Applies attention.

        Args:
          x: hidden states of the queries.
          keys: projected keys.
          values: projected values.
          dropout_key: random key of dropout; None in inference.
        """
        weights_key, output_key = split_key(dropout_key, 2)
        q, k, v = (split_heads(y, self.num_heads) for y in (self.query(x), keys, values))
        scores = jnp.einsum("awqhk,awthk->awhqt", q, k, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(scores / q.shape[-1] ** 0.5).astype(x.dtype)
        attention_output = jnp.einsum("awhqt,awthk->awqhk", dropout(weights, self.dropout_rate, weights_key), v)
        return self.norm(x + dropout(self.dense(merge_heads(attention_output)), self.dropout_rate, output_key))


class BertLayer(nnx.Module):
    """BERT layer: self-attention of the queries, cross-attention to the window, and a feed-forward network."""

    def __init__(self, config: QFormerConfig, encoder_hidden_size: int, rngs: nnx.Rngs):
        self.attention = BertAttention(config, config.hidden_size, rngs)
        self.cross_attention = BertAttention(config, encoder_hidden_size, rngs)
        self.intermediate = Linear(config.hidden_size, config.intermediate_size, rngs=rngs, kernel_init=BERT_INIT)
        self.output = Linear(config.intermediate_size, config.hidden_size, rngs=rngs, kernel_init=BERT_INIT)
        self.norm = LayerNorm(config.hidden_size, epsilon=LAYER_NORM_EPS)
        self.config = config

    def __call__(
        self,
        x: Float[Array, "clips windows queries hidden"],
        frames: Float[Array, "clips frames in_features"],
        dropout_key: Array | None,
    ) -> Float[Array, "clips windows queries hidden"]:
        """Applies the layer.

        Args:
          x: hidden states of the queries.
          frames: encoder frames of the clips.
          dropout_key: random key of dropout; None in inference.
        """
        self_key, cross_key, output_key = split_key(dropout_key, 3)
        x = self.attention(x, self.attention.key(x), self.attention.value(x), self_key)
        # Windows may overlap, so each frame is projected once, before windows are cut.
        keys, values = (
            cut_windows(p(frames), self.config) for p in (self.cross_attention.key, self.cross_attention.value)
        )
        x = self.cross_attention(x, keys, values, cross_key)
        return self.norm(x + dropout(self.output(gelu(self.intermediate(x))), self.config.dropout, output_key))


class QFormer(nnx.Module):
    """Window-level Q-Former: maps encoder frames to hidden states of the queries of all windows."""

    def __init__(self, config: QFormerConfig, *, encoder_hidden_size: int, rngs: nnx.Rngs):
        self.norm = LayerNorm(config.hidden_size, epsilon=LAYER_NORM_EPS)
        self.layers = stack_layers(
            lambda rngs: BertLayer(config, encoder_hidden_size, rngs), config.num_hidden_layers, rngs
        )
        self.config = config

    def __call__(
        self,
        queries: Float[Array, "queries hidden"],
        frames: Float[Array, "clips frames in_features"],
        dropout_key: Array | None = None,
    ) -> Float[Array, "clips audio_tokens hidden"]:
        """Applies the Q-Former to all windows.

        Args:
          queries: learned queries.
          frames: encoder frames.
          dropout_key: random key of dropout; None in inference.

        Returns:
          The queries' hidden states, window by window.
        """
        input_key, layers_key = split_key(dropout_key, 2)
        num_clips, num_windows = frames.shape[0], count_windows(frames.shape[1], self.config)
        # Float32 up to the broadcast, so that the gradient of the queries is summed over clips in float32.
        x = dropout(self.norm(queries.astype(jnp.float32)), self.config.dropout, input_key)
        x = jnp.broadcast_to(x, (num_clips, num_windows, *x.shape)).astype(frames.dtype)
        layer_keys = None if layers_key is None else jax.random.split(layers_key, self.config.num_hidden_layers)
        x, _ = scan_layers(
            "qformer", lambda x, layer, layer_key: (layer(x, frames, layer_key), None), x, self.layers, layer_keys
        )
        return x.reshape(num_clips, num_windows * x.shape[2], -1)


def count_windows(num_frames: int, config: QFormerConfig) -> int:
    """Returns the number of whole windows in `num_frames` frames; remaining frames are dropped, as by `F.unfold`."""
    return (num_frames - config.window_frames) // config.stride_frames + 1


def cut_windows(
    frames: Float[Array, "clips frames hidden"], config: QFormerConfig
) -> Float[Array, "clips windows keys hidden"]:
    """Cuts frames into windows.

    Strided slices are used so that XLA needs no gather, and no scatter in the backward pass.
    """
    size, stride = config.window_frames, config.stride_frames
    stop = (count_windows(frames.shape[1], config) - 1) * stride + 1
    return jnp.stack([frames[:, i : i + stop : stride] for i in range(size)], axis=2)


def qformer_flops(config: QFormerConfig, num_frames: int, encoder_hidden_size: int) -> int:
    """Returns the FLOPs of a forward pass of one clip.

    Args:
      config: configuration of the Q-Former.
      num_frames: number of encoder frames T of the clip.
      encoder_hidden_size: size of an encoder frame E.
    """
    d, queries = config.hidden_size, config.num_speech_query_token
    tokens = count_windows(num_frames, config) * queries
    self_attention = 8 * tokens * d * d + 4 * tokens * queries * d
    frame_projections = 4 * num_frames * encoder_hidden_size * d
    cross_attention = 4 * tokens * d * d + frame_projections + 4 * tokens * config.window_frames * d
    layer = self_attention + cross_attention + 4 * tokens * d * config.intermediate_size
    return config.num_hidden_layers * layer

"""Whisper's audio encoder (Radford et al. 2022; original module: `whisper.model.AudioEncoder`).

There is no attention mask. The encoder attends to the silence that pads a clip, and the released SALMONN was trained
that way.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from salmonn_jax.config import WhisperConfig
from salmonn_jax.models.common import (
    Conv1d,
    LayerNorm,
    Linear,
    cast_broadcast,
    gelu,
    merge_heads,
    scan_layers,
    split_heads,
    stack_layers,
)


class WhisperLayer(nnx.Module):
    """Pre-norm transformer layer. The key projection has no bias."""

    def __init__(self, config: WhisperConfig, rngs: nnx.Rngs):
        hidden_size = config.d_model
        self.attention_norm = LayerNorm(hidden_size)
        self.q_proj = Linear(hidden_size, hidden_size, rngs=rngs)
        self.k_proj = Linear(hidden_size, hidden_size, use_bias=False, rngs=rngs)
        self.v_proj = Linear(hidden_size, hidden_size, rngs=rngs)
        self.out_proj = Linear(hidden_size, hidden_size, rngs=rngs)
        self.ffn_norm = LayerNorm(hidden_size)
        self.fc1 = Linear(hidden_size, config.encoder_ffn_dim, rngs=rngs)
        self.fc2 = Linear(config.encoder_ffn_dim, hidden_size, rngs=rngs)
        self.num_heads = config.encoder_attention_heads

    def __call__(self, x: Array) -> Array:
        y = self.attention_norm(x)
        q, k, v = (split_heads(p(y), self.num_heads) for p in (self.q_proj, self.k_proj, self.v_proj))
        x = x + self.out_proj(merge_heads(jax.nn.dot_product_attention(q, k, v)))
        return x + self.fc2(gelu(self.fc1(self.ffn_norm(x))))


class WhisperEncoder(nnx.Module):
    """Whisper encoder: maps a log-mel spectrogram float[A,2T,M] to float[A,T,D], at 50 frames a second."""

    def __init__(self, config: WhisperConfig, *, num_frames: int, rngs: nnx.Rngs):
        self.conv1 = Conv1d(config.num_mel_bins, config.d_model, kernel_size=3, stride=1, rngs=rngs)
        self.conv2 = Conv1d(config.d_model, config.d_model, kernel_size=3, stride=2, rngs=rngs)
        self.positions = nnx.Param(jnp.asarray(sinusoids(num_frames, config.d_model)))
        self.layers = stack_layers(lambda rngs: WhisperLayer(config, rngs), config.encoder_layers, rngs)
        self.norm = LayerNorm(config.d_model)

    def __call__(self, log_mel: Array) -> Array:
        x = gelu(self.conv2(gelu(self.conv1(log_mel))))
        x = x + cast_broadcast(self.positions[...], x)
        x, _ = scan_layers("whisper", lambda x, layer: (layer(x), None), x, self.layers)
        return self.norm(x)


def sinusoids(length: int, channels: int) -> np.ndarray:
    """Returns Whisper's position embeddings float32[T,D]: sines, then cosines, with time scales from 1 to 10,000.

    `length` is T and `channels` is D. The time scales form a geometric series.
    """
    rates = np.exp(-np.log(10_000.0) / (channels // 2 - 1) * np.arange(channels // 2))
    angles = np.arange(length)[:, None] * rates
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)

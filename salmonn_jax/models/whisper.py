"""Whisper's audio encoder (Radford et al. 2022; original module: `whisper.model.AudioEncoder`).

Nothing is masked: the silence that pads a clip is attended to, and the released SALMONN was trained so.
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
    gelu,
    merge_heads,
    scan_layers,
    split_heads,
    stack_layers,
)


class WhisperLayer(nnx.Module):
    """A pre-norm transformer layer. Whisper's key projection has no bias."""

    def __init__(self, config: WhisperConfig, rngs: nnx.Rngs):
        width = config.d_model
        self.attention_norm = LayerNorm(width)
        self.q_proj = Linear(width, width, rngs=rngs)
        self.k_proj = Linear(width, width, use_bias=False, rngs=rngs)
        self.v_proj = Linear(width, width, rngs=rngs)
        self.out_proj = Linear(width, width, rngs=rngs)
        self.ffn_norm = LayerNorm(width)
        self.fc1 = Linear(width, config.encoder_ffn_dim, rngs=rngs)
        self.fc2 = Linear(config.encoder_ffn_dim, width, rngs=rngs)
        self.num_heads = config.encoder_attention_heads

    def __call__(self, x: Array) -> Array:
        y = self.attention_norm(x)
        q, k, v = (split_heads(p(y), self.num_heads) for p in (self.q_proj, self.k_proj, self.v_proj))
        x = x + self.out_proj(merge_heads(jax.nn.dot_product_attention(q, k, v)))
        return x + self.fc2(gelu(self.fc1(self.ffn_norm(x))))


class WhisperEncoder(nnx.Module):
    """float[A,2T,M] log-mel -> float[A,T,D], 50 frames a second."""

    def __init__(self, config: WhisperConfig, *, num_frames: int, rngs: nnx.Rngs):
        self.conv1 = Conv1d(config.num_mel_bins, config.d_model, kernel_size=3, stride=1, rngs=rngs)
        self.conv2 = Conv1d(config.d_model, config.d_model, kernel_size=3, stride=2, rngs=rngs)
        self.positions = nnx.Param(jnp.asarray(sinusoids(num_frames, config.d_model)))
        self.layers = stack_layers(lambda rngs: WhisperLayer(config, rngs), config.encoder_layers, rngs)
        self.norm = LayerNorm(config.d_model)

    def __call__(self, log_mel: Array) -> Array:
        x = gelu(self.conv2(gelu(self.conv1(log_mel))))
        x = x + self.positions[...].astype(x.dtype)
        x, _ = scan_layers("whisper", lambda x, layer: (layer(x), None), x, self.layers)
        return self.norm(x)


def sinusoids(length: int, channels: int) -> np.ndarray:
    """Whisper's position table float32[T,D]: sines then cosines, time scales geometric from 1 to 10,000."""
    rates = np.exp(-np.log(10_000.0) / (channels // 2 - 1) * np.arange(channels // 2))
    angles = np.arange(length)[:, None] * rates
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)

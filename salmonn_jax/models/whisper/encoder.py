"""Whisper's audio encoder (Radford et al. 2022; original module: `whisper.model.AudioEncoder`).

There is no attention mask. The encoder attends to the silence that pads a clip, and the released SALMONN was trained
that way.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int16, Int32

from salmonn_jax.audio.features import FRAME_LENGTH, log_mel_spectrogram
from salmonn_jax.config import HOP_LENGTH, AudioConfig, WhisperConfig
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
from salmonn_jax.models.encoder import Encoder, EncoderFlops, EncoderOutput


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

    def __call__(self, x: Float[Array, "clips frames hidden"]) -> Float[Array, "clips frames hidden"]:
        y = self.attention_norm(x)
        q, k, v = (split_heads(p(y), self.num_heads) for p in (self.q_proj, self.k_proj, self.v_proj))
        x = x + self.out_proj(merge_heads(jax.nn.dot_product_attention(q, k, v)))
        return x + self.fc2(gelu(self.fc1(self.ffn_norm(x))))


class WhisperEncoder(Encoder):
    """Whisper encoder. All frames of the window exist, because the original encodes its padding too."""

    norm_name = "ln_speech"
    sharding_rules = (
        (r"layers/\w+/kernel", P(None, "fsdp", None)),
        (r"layers/\w+/(bias|scale)", P()),
        (r"conv[12]/(kernel|bias)|positions|norm/(scale|bias)", P()),
    )

    def __init__(self, config: WhisperConfig, audio: AudioConfig, *, rngs: nnx.Rngs):
        self.conv1 = Conv1d(config.num_mel_bins, config.d_model, kernel_size=3, stride=1, rngs=rngs)
        self.conv2 = Conv1d(config.d_model, config.d_model, kernel_size=3, stride=2, rngs=rngs)
        self.positions = nnx.Param(jnp.asarray(sinusoids(audio.num_frames, config.d_model)))
        self.layers = stack_layers(lambda rngs: WhisperLayer(config, rngs), config.encoder_layers, rngs)
        self.norm = LayerNorm(config.d_model)
        self.num_mel_bins = config.num_mel_bins

    def __call__(
        self,
        pcm: Int16[Array, "clips samples"],
        pcm_length: Int32[Array, " clips"],
        padded_length: Int32[Array, " clips"],
        dtype: DTypeLike,
    ) -> EncoderOutput:
        """Encodes clips (see `Encoder`). The lengths are not used."""
        return EncoderOutput(self.encode_log_mel(log_mel_spectrogram(pcm, self.num_mel_bins).astype(dtype)))

    def encode_log_mel(self, log_mel: Float[Array, "clips feature_frames mels"]) -> Float[Array, "clips frames hidden"]:
        """Encodes a log-mel spectrogram, with one frame for two of its frames."""
        x = gelu(self.conv2(gelu(self.conv1(log_mel))))
        x = x + cast_broadcast(self.positions[...], x)
        x, _ = scan_layers("whisper", lambda x, layer: (layer(x), None), x, self.layers)
        return self.norm(x)

    @staticmethod
    def flops(config: WhisperConfig, audio: AudioConfig) -> EncoderFlops:
        """Returns the FLOPs of a clip (see `Encoder`)."""
        t, d = audio.num_frames, config.d_model
        mel_filters = 2 * (audio.window_samples // HOP_LENGTH) * (FRAME_LENGTH // 2 + 1) * config.num_mel_bins
        convolutions = 2 * (2 * t) * 3 * config.num_mel_bins * d + 2 * t * 3 * d * d
        layer = 2 * t * d * (4 * d + 2 * config.encoder_ffn_dim) + 4 * t * t * d
        return EncoderFlops(mel_filters, convolutions + config.encoder_layers * layer)


def sinusoids(length: int, channels: int) -> Float32[np.ndarray, "frames hidden"]:
    """Returns Whisper's position embeddings: sines, then cosines, with time scales from 1 to 10,000.

    `length` is the number of frames and `channels` the hidden size. The time scales form a geometric series.
    """
    rates = np.exp(-np.log(10_000.0) / (channels // 2 - 1) * np.arange(channels // 2))
    angles = np.arange(length)[:, None] * rates
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)

"""A small encoder for tests: a strided convolution over raw PCM."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from salmonn_jax.models.strided.config import StridedConfig

from salmonn_jax.config import AudioConfig
from salmonn_jax.models.common import Linear, gelu
from salmonn_jax.models.encoder import Encoder, EncoderFlops, EncoderOutput


class StridedEncoder(Encoder):
    """Encoder whose frames each read `stride` samples. Frames that begin in the clip exist."""

    norm_name = "ln_strided"
    sharding_rules = ((r"projection/kernel", P("fsdp", None)), (r"projection/bias", P()))

    def __init__(self, config: StridedConfig, audio: AudioConfig, *, rngs: nnx.Rngs):
        self.projection = Linear(config.stride, config.hidden_size, rngs=rngs)
        self.stride = config.stride

    def __call__(self, pcm: Array, pcm_length: Array, padded_length: Array, dtype: DTypeLike) -> EncoderOutput:
        """Encodes clips (see `Encoder`)."""
        samples = pcm.reshape(len(pcm), -1, self.stride).astype(dtype) / 32768
        starts = jnp.arange(samples.shape[1]) * self.stride
        return EncoderOutput(gelu(self.projection(samples)), starts < pcm_length[:, None])

    @staticmethod
    def flops(config: StridedConfig, audio: AudioConfig) -> EncoderFlops:
        """Returns the FLOPs of a clip (see `Encoder`)."""
        return EncoderFlops(0, 2 * audio.window_samples * config.hidden_size)

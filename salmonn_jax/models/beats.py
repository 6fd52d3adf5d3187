"""BEATs, the encoder of non-speech audio (Chen et al. 2022; original module: `BEATs.BEATs` of microsoft/unilm).

Post-norm transformer with DeepNorm residuals and a gated relative position bias, over 16 x 16 patches of a Kaldi
filter bank. Tokens are laid out time-major: token i is frequency band i % 8 of time step i // 8, so eight tokens of
one 160 ms column follow each other on what SALMONN then treats as the time axis.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from salmonn_jax.audio import num_fbank_frames
from salmonn_jax.config import BeatsConfig
from salmonn_jax.models.common import (
    FAN_IN_INIT,
    NORMAL_INIT,
    LayerNorm,
    Linear,
    gelu,
    merge_heads,
    scan_layers,
    split_heads,
    stack_layers,
)

NUM_GATE_OUTPUTS = 8  # outputs of the gate's projection: two gates, each the sum of four


class PositionalConv(nnx.Module):
    """Grouped, weight-normalised convolution over time whose output is added to its input.

    The norm is taken per kernel tap, over input and output channels (`weight_norm(dim=2)` in the original).
    """

    def __init__(self, config: BeatsConfig, rngs: nnx.Rngs):
        shape = (config.conv_pos, config.encoder_embed_dim // config.conv_pos_groups, config.encoder_embed_dim)
        direction = FAN_IN_INIT(rngs.params(), shape, jnp.float32)
        self.direction = nnx.Param(direction)
        self.magnitude = nnx.Param(jnp.sqrt(jnp.square(direction).sum(axis=(1, 2))))
        self.bias = nnx.Param(jnp.zeros(config.encoder_embed_dim, jnp.float32))
        self.groups = config.conv_pos_groups

    def __call__(self, x: Array) -> Array:
        """float[A,T,D] -> float[A,T,D]; an even kernel gives one frame too many, and the last is dropped."""
        direction = self.direction[...].astype(jnp.float32)
        norm = jnp.sqrt(jnp.square(direction).sum(axis=(1, 2)))
        kernel = direction * (self.magnitude[...].astype(jnp.float32) / norm)[:, None, None]
        pad = kernel.shape[0] // 2
        y = jax.lax.conv_general_dilated(
            x,
            kernel.astype(x.dtype),
            (1,),
            [(pad, pad - 1 + kernel.shape[0] % 2)],
            dimension_numbers=("NWC", "WIO", "NWC"),
            feature_group_count=self.groups,
        )
        return gelu(y + self.bias[...].astype(x.dtype))


class BeatsLayer(nnx.Module):
    """A post-norm layer with DeepNorm: residuals are multiplied by `alpha` before each norm."""

    def __init__(self, config: BeatsConfig, rngs: nnx.Rngs):
        width = config.encoder_embed_dim
        self.q_proj = Linear(width, width, rngs=rngs)
        self.k_proj = Linear(width, width, rngs=rngs)
        self.v_proj = Linear(width, width, rngs=rngs)
        self.out_proj = Linear(width, width, rngs=rngs)
        self.gate = Linear(width // config.encoder_attention_heads, NUM_GATE_OUTPUTS, rngs=rngs)
        self.gate_scale = nnx.Param(jnp.ones(config.encoder_attention_heads, jnp.float32))
        self.attention_norm = LayerNorm(width)
        self.fc1 = Linear(width, config.encoder_ffn_embed_dim, rngs=rngs)
        self.fc2 = Linear(config.encoder_ffn_embed_dim, width, rngs=rngs)
        self.ffn_norm = LayerNorm(width)
        self.num_heads = config.encoder_attention_heads
        self.alpha = (2.0 * config.encoder_layers) ** 0.25

    def __call__(self, x: Array, bias: Array, valid: Array) -> Array:
        x = self.attention_norm(x * self.alpha + self._attend(x, bias, valid))
        return self.ffn_norm(x * self.alpha + self.fc2(gelu(self.fc1(x))))

    def _attend(self, x: Array, bias: Array, valid: Array) -> Array:
        """Self-attention of float[A,T,D] with `bias` float32[H,T,T], over the keys that are `valid` bool[A,T].

        The original divides the logits by 32 and multiplies them back around a shift by the row's maximum, to stay in
        float16's range; softmax in float32 needs no such trick and gives the same.
        """
        q, k, v = (split_heads(p(x), self.num_heads) for p in (self.q_proj, self.k_proj, self.v_proj))
        gates = self.gate(q).astype(jnp.float32)
        a, b = jnp.moveaxis(jax.nn.sigmoid(gates.reshape(*gates.shape[:-1], 2, NUM_GATE_OUTPUTS // 2).sum(-1)), -1, 0)
        factor = a * (b * self.gate_scale[...].astype(jnp.float32) - 1.0) + 2.0  # [A,T,H]
        gated = jnp.swapaxes(factor, 1, 2)[..., None] * bias
        mixed = jax.nn.dot_product_attention(q, k, v, bias=gated.astype(x.dtype), mask=valid[:, None, None, :])
        return self.out_proj(merge_heads(mixed))


class Beats(nnx.Module):
    """float[A,frames,128] filter bank -> float[A,T,D] with T = frames // 16 * 8."""

    def __init__(self, config: BeatsConfig, *, rngs: nnx.Rngs):
        self.patch_kernel = nnx.Param(
            NORMAL_INIT(rngs.params(), (config.input_patch_size**2, config.embed_dim), jnp.float32)
        )
        self.patch_norm = LayerNorm(config.embed_dim)
        self.patch_proj = Linear(config.embed_dim, config.encoder_embed_dim, rngs=rngs)
        self.positional_conv = PositionalConv(config, rngs)
        self.norm = LayerNorm(config.encoder_embed_dim)
        self.relative_bias = nnx.Param(
            NORMAL_INIT(rngs.params(), (config.num_buckets, config.encoder_attention_heads), jnp.float32)
        )
        self.layers = stack_layers(lambda rngs: BeatsLayer(config, rngs), config.encoder_layers, rngs)
        self.config = config

    def __call__(self, fbank: Array, valid: Array) -> Array:
        """Encodes; `valid` bool[A,T] marks the tokens that may be attended to (see `token_masks`)."""
        x = self.patch_proj(self.patch_norm(self._patches(fbank) @ self.patch_kernel[...].astype(fbank.dtype)))
        x = jnp.where(valid[..., None], x, 0)
        x = self.norm(x + self.positional_conv(x))
        bias = self._position_bias(x.shape[1])
        x, _ = scan_layers("beats", lambda x, layer: (layer(x, bias, valid), None), x, self.layers)
        return x

    def _patches(self, fbank: Array) -> Array:
        """float[A,frames,M] -> float[A,T,patch*patch]: what a convolution with stride = kernel sees."""
        p = self.config.input_patch_size
        clips, frames, mels = fbank.shape
        steps, bands = frames // p, mels // p
        x = fbank[:, : steps * p].reshape(clips, steps, p, bands, p)
        return x.swapaxes(2, 3).reshape(clips, steps * bands, p * p)

    def _position_bias(self, num_tokens: int) -> Array:
        """The bias by distance, before the gates: float32[H,T,T] (query, key)."""
        distances = np.arange(-(num_tokens - 1), num_tokens)
        buckets = relative_position_buckets(distances, self.config.num_buckets, self.config.max_distance)
        by_distance = self.relative_bias[...].astype(jnp.float32)[buckets]  # [2T-1,H]
        place = jnp.arange(num_tokens)
        return jnp.moveaxis(by_distance[place[None, :] - place[:, None] + num_tokens - 1], -1, 0)


def relative_position_buckets(distances: np.ndarray, num_buckets: int, max_distance: int) -> np.ndarray:
    """T5's bidirectional buckets int32[...] of key minus query position: half per sign, half of those exact."""
    half, exact = num_buckets // 2, num_buckets // 4
    size = np.abs(distances)
    far = np.log(np.maximum(size, 1).astype(np.float32) / exact) / np.log(max_distance / exact) * (half - exact)
    within = np.where(size < exact, size, np.minimum(exact + far.astype(np.int32), half - 1))
    return (np.where(distances > 0, half, 0) + within).astype(np.int32)


def token_masks(pcm_length: Array, padded_length: Array, num_tokens: int, config: BeatsConfig) -> tuple[Array, Array]:
    """Which of `tokens` BEATs tokens exist, and which may be attended to: two bool[A,T].

    The original pads a clip of `length` int32[A] samples to `padded` (its batch's longest), computes tokens for all of
    it, and masks by dropping the remainder when samples are folded to frames and frames to tokens. A clip on its own
    has padded == length, and then both masks are equal. Original: `BEATs.forward_padding_mask`.
    """
    frames = num_fbank_frames(padded_length)
    existing = frames // config.input_patch_size * (config.num_mel_bins // config.input_patch_size)
    index = jnp.arange(num_tokens)
    samples_per_frame = padded_length // frames
    frames_per_token = frames // existing
    start = index * (frames_per_token * samples_per_frame)[:, None]
    exists = index < existing[:, None]
    return exists, exists & (start < pcm_length[:, None])

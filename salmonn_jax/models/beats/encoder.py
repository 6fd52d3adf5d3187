"""BEATs, the encoder of non-speech audio (Chen et al. 2022; original module: `BEATs.BEATs` of microsoft/unilm).

BEATs is a post-norm transformer with DeepNorm residuals and a gated relative position bias, over 16 x 16 patches of a
Kaldi filter bank. Tokens are ordered by time first: token i is frequency band i % 8 of time step i // 8. The eight
tokens of one time step (160 ms) are therefore neighbours on the axis that SALMONN treats as time.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Float32, Int16, Int32

from salmonn_jax.audio.features import KALDI_FFT, fbank, num_fbank_frames
from salmonn_jax.config import AudioConfig, BeatsConfig
from salmonn_jax.models.common import (
    FAN_IN_INIT,
    NORMAL_INIT,
    LayerNorm,
    Linear,
    cast_broadcast,
    gelu,
    matmul,
    merge_heads,
    scan_layers,
    split_heads,
    stack_layers,
)
from salmonn_jax.models.encoder import Encoder, EncoderFlops, EncoderOutput

NUM_GATE_OUTPUTS = 8  # outputs of the gate's projection: two gates, each the sum of four outputs


class PositionalConv(nnx.Module):
    """Convolutional position embedding: a grouped, weight-normalised convolution over time, followed by GELU.

    `Beats` adds its output to its input. The norm of the kernel is computed per tap, over input and output channels
    (`weight_norm(dim=2)` in the original).
    """

    def __init__(self, config: BeatsConfig, rngs: nnx.Rngs):
        shape = (config.conv_pos, config.encoder_embed_dim // config.conv_pos_groups, config.encoder_embed_dim)
        direction = FAN_IN_INIT(rngs.params(), shape, jnp.float32)
        self.direction = nnx.Param(direction)
        self.magnitude = nnx.Param(jnp.sqrt(jnp.square(direction).sum(axis=(1, 2))))
        self.bias = nnx.Param(jnp.zeros(config.encoder_embed_dim, jnp.float32))
        self.groups = config.conv_pos_groups

    def __call__(self, x: Float[Array, "clips frames hidden"]) -> Float[Array, "clips frames hidden"]:
        """Convolves over the frames. The padding is one shorter at the end if the kernel size is even.

        The original pads both ends equally and drops the last frame, which gives the same output.
        """
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
        return gelu(y + cast_broadcast(self.bias[...], y))


class BeatsLayer(nnx.Module):
    """Post-norm transformer layer with DeepNorm: residuals are multiplied by `alpha` before each norm."""

    def __init__(self, config: BeatsConfig, rngs: nnx.Rngs):
        hidden_size = config.encoder_embed_dim
        self.q_proj = Linear(hidden_size, hidden_size, rngs=rngs)
        self.k_proj = Linear(hidden_size, hidden_size, rngs=rngs)
        self.v_proj = Linear(hidden_size, hidden_size, rngs=rngs)
        self.out_proj = Linear(hidden_size, hidden_size, rngs=rngs)
        self.gate = Linear(hidden_size // config.encoder_attention_heads, NUM_GATE_OUTPUTS, rngs=rngs)
        self.gate_scale = nnx.Param(jnp.ones(config.encoder_attention_heads, jnp.float32))
        self.attention_norm = LayerNorm(hidden_size)
        self.fc1 = Linear(hidden_size, config.encoder_ffn_embed_dim, rngs=rngs)
        self.fc2 = Linear(config.encoder_ffn_embed_dim, hidden_size, rngs=rngs)
        self.ffn_norm = LayerNorm(hidden_size)
        self.num_heads = config.encoder_attention_heads
        self.alpha = (2.0 * config.encoder_layers) ** 0.25

    def __call__(
        self,
        x: Float[Array, "clips frames hidden"],
        bias: Float32[Array, "heads frames frames"],
        valid: Bool[Array, "clips frames"],
    ) -> Float[Array, "clips frames hidden"]:
        """Applies the layer; `bias` and `valid` are those of `_attend`."""
        x = self.attention_norm(x * self.alpha + self._attend(x, bias, valid))
        return self.ffn_norm(x * self.alpha + self.fc2(gelu(self.fc1(x))))

    def _attend(
        self,
        x: Float[Array, "clips frames hidden"],
        bias: Float32[Array, "heads frames frames"],
        valid: Bool[Array, "clips frames"],
    ) -> Float[Array, "clips frames hidden"]:
        """Applies self-attention with the gated position bias.

        The original divides the logits by 32, subtracts the maximum of the row and multiplies by 32 again, to stay in
        the range of float16. The softmax here is float32, so this is not needed and the result is the same.

        Args:
          x: hidden states.
          bias: relative position bias before the gates, by head, query and key.
          valid: keys that may be attended to.
        """
        q, k, v = (split_heads(p(x), self.num_heads) for p in (self.q_proj, self.k_proj, self.v_proj))
        gates = self.gate(q).astype(jnp.float32)
        a, b = jnp.moveaxis(jax.nn.sigmoid(gates.reshape(*gates.shape[:-1], 2, NUM_GATE_OUTPUTS // 2).sum(-1)), -1, 0)
        gate = a * (b * self.gate_scale[...].astype(jnp.float32) - 1.0) + 2.0  # [clips, frames, heads]
        gated_bias = jnp.swapaxes(gate, 1, 2)[..., None] * bias
        attention_output = jax.nn.dot_product_attention(
            q, k, v, bias=gated_bias.astype(x.dtype), mask=valid[:, None, None, :]
        )
        return self.out_proj(merge_heads(attention_output))


class Beats(Encoder):
    """BEATs encoder. Its frames are the tokens; those of the clip with its padding in the original exist."""

    norm_name = "ln_audio"
    sharding_rules = (
        (r"layers/\w+/kernel", P(None, "fsdp", None)),
        (r"layers/(\w+/(bias|scale)|gate_scale)", P()),
        (r"patch_kernel|patch_proj/(kernel|bias)|relative_bias|positional_conv/\w+|(patch_)?norm/(scale|bias)", P()),
    )

    def __init__(self, config: BeatsConfig, audio: AudioConfig, *, rngs: nnx.Rngs):
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

    def __call__(
        self,
        pcm: Int16[Array, "clips samples"],
        pcm_length: Int32[Array, " clips"],
        padded_length: Int32[Array, " clips"],
        dtype: DTypeLike,
    ) -> EncoderOutput:
        """Encodes clips (see `Encoder`)."""
        filter_bank = fbank(pcm, self.config.num_mel_bins)
        num_tokens = count_tokens(filter_bank.shape[1], self.config)
        exists, valid = token_masks(pcm_length, padded_length, num_tokens, self.config)
        return EncoderOutput(self.encode_filter_bank(filter_bank.astype(dtype), valid), exists)

    def encode_filter_bank(
        self, filter_bank: Float[Array, "clips feature_frames mels"], valid: Bool[Array, "clips frames"]
    ) -> Float[Array, "clips frames hidden"]:
        """Encodes a filter bank; `valid` masks attention keys (see `token_masks`)."""
        x = self.patch_proj(self.patch_norm(matmul(self._patches(filter_bank), self.patch_kernel[...])))
        x = jnp.where(valid[..., None], x, 0)
        x = self.norm(x + self.positional_conv(x))
        bias = self._position_bias(x.shape[1])
        x, _ = scan_layers("beats", lambda x, layer: (layer(x, bias, valid), None), x, self.layers)
        return x

    @staticmethod
    def flops(config: BeatsConfig, audio: AudioConfig) -> EncoderFlops:
        """Returns the FLOPs of a clip (see `Encoder`)."""
        frames = num_fbank_frames(audio.window_samples)
        mel_filters = 2 * frames * (KALDI_FFT // 2 + 1) * config.num_mel_bins
        t, d = count_tokens(frames, config), config.encoder_embed_dim
        patches = 2 * t * (config.input_patch_size**2 * config.embed_dim + config.embed_dim * d)
        positions = 2 * t * config.conv_pos * (d // config.conv_pos_groups) * d
        gates = 2 * t * d * NUM_GATE_OUTPUTS
        layer = 2 * t * d * (4 * d + 2 * config.encoder_ffn_embed_dim) + 4 * t * t * d + gates
        return EncoderFlops(mel_filters, patches + positions + config.encoder_layers * layer)

    def _patches(
        self, filter_bank: Float[Array, "clips feature_frames mels"]
    ) -> Float[Array, "clips frames in_features"]:
        """Cuts a filter bank into patches, one for each token.

        The original applies a convolution with stride = kernel size, which is a matmul of these patches.
        """
        p = self.config.input_patch_size
        clips, frames, mels = filter_bank.shape
        steps, bands = frames // p, mels // p
        x = filter_bank[:, : steps * p].reshape(clips, steps, p, bands, p)
        return x.swapaxes(2, 3).reshape(clips, steps * bands, p * p)

    def _position_bias(self, num_tokens: int) -> Float32[Array, "heads frames frames"]:
        """Returns the relative position bias before the gates, indexed by head, query and key."""
        distances = np.arange(-(num_tokens - 1), num_tokens)
        buckets = relative_position_buckets(distances, self.config.num_buckets, self.config.max_distance)
        by_distance = self.relative_bias[...].astype(jnp.float32)[buckets]  # [distances, heads]
        position = jnp.arange(num_tokens)
        return jnp.moveaxis(by_distance[position[None, :] - position[:, None] + num_tokens - 1], -1, 0)


def count_tokens(num_frames: Array | int, config: BeatsConfig) -> Array | int:
    """Returns the number of tokens of `num_frames` frames of the filter bank: 8 for 16 frames."""
    return num_frames // config.input_patch_size * (config.num_mel_bins // config.input_patch_size)


def relative_position_buckets(distances: np.ndarray, num_buckets: int, max_distance: int) -> np.ndarray:
    """Returns T5's bidirectional buckets of relative positions (Raffel et al. 2020).

    Half of the buckets are for positive distances and half for the others. Half of the buckets of each sign hold one
    distance each; the rest grow logarithmically up to `max_distance`.

    Args:
      distances: int[...] position of the key minus position of the query, in tokens.
      num_buckets: number of buckets.
      max_distance: in tokens; positions at this distance or farther share the last bucket.

    Returns:
      int32[...] bucket indices.
    """
    half, exact = num_buckets // 2, num_buckets // 4
    size = np.abs(distances)
    far = np.log(np.maximum(size, 1).astype(np.float32) / exact) / np.log(max_distance / exact) * (half - exact)
    within = np.where(size < exact, size, np.minimum(exact + far.astype(np.int32), half - 1))
    return (np.where(distances > 0, half, 0) + within).astype(np.int32)


def token_masks(
    pcm_length: Int32[Array, " clips"], padded_length: Int32[Array, " clips"], num_tokens: int, config: BeatsConfig
) -> tuple[Bool[Array, "clips frames"], Bool[Array, "clips frames"]]:
    """Returns masks of the BEATs tokens that the original computes, and of those that it attends to.

    The original pads each clip to the longest of its batch, computes tokens for the padded clip, and masks tokens that
    begin in the padding (`BEATs.forward_padding_mask`). It drops remainders when it folds the mask of samples to frames
    and the mask of frames to tokens. For a single clip, `padded_length` equals `pcm_length` and both masks are equal.

    Args:
      pcm_length: samples of each clip.
      padded_length: samples of each clip after the original's padding.
      num_tokens: number of BEATs tokens of the whole window.
      config: configuration of BEATs.

    Returns:
      Two masks: tokens that exist, and tokens that may be attended to.
    """
    frames = num_fbank_frames(padded_length)
    existing = count_tokens(frames, config)
    index = jnp.arange(num_tokens)
    samples_per_frame = padded_length // frames
    frames_per_token = frames // existing
    start = index * (frames_per_token * samples_per_frame)[:, None]
    exists = index < existing[:, None]
    return exists, exists & (start < pcm_length[:, None])

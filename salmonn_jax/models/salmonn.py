"""SALMONN (Tang et al. 2024, figure 1; original module: `models/salmonn.py`).

Whisper and BEATs side by side, their frames normalised, zero-padded to one length and concatenated; the window-level
Q-Former; a projection into the language model's embedding space; and the splice of those audio tokens into the prompt.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax import Array

from salmonn_jax import audio
from salmonn_jax.batch import Batch
from salmonn_jax.config import ModelConfig
from salmonn_jax.models.beats import Beats, token_masks
from salmonn_jax.models.common import NORMAL_INIT, LayerNorm, Linear, split_key
from salmonn_jax.models.llama import Llama, causal_mask, log_probabilities
from salmonn_jax.models.qformer import QFormer
from salmonn_jax.models.whisper import WhisperEncoder


class EncoderOutput(NamedTuple):
    """What the frozen encoders make of clips, before anything trainable; None for one the model has not."""

    whisper: Array | None  # float[A,T,D_whisper]
    beats: Array | None  # float[A,T_beats,D_beats]
    beats_mask: Array | None  # bool[A,T_beats]; BEATs makes tokens only for the clip, Whisper for the whole window


class Salmonn(nnx.Module):
    """The whole model, or the parts its configuration has. Methods are pure: arrays in, arrays out."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        c = config
        self.whisper = c.whisper and WhisperEncoder(c.whisper, num_frames=c.audio.whisper_frames, rngs=rngs)
        self.beats = c.beats and Beats(c.beats, rngs=rngs)
        if c.qformer:
            self.ln_speech = LayerNorm(c.whisper.d_model)
            self.ln_audio = c.beats and LayerNorm(c.beats.encoder_embed_dim)
            self.query_tokens = nnx.Param(
                NORMAL_INIT(rngs.params(), (c.qformer.num_speech_query_token, c.qformer.hidden_size), jnp.float32)
            )
            memory = c.whisper.d_model + (c.beats.encoder_embed_dim if c.beats else 0)
            self.qformer = QFormer(c.qformer, encoder_hidden_size=memory, rngs=rngs)
            self.projection = Linear(c.qformer.hidden_size, c.llama.hidden_size, rngs=rngs)
        self.llama = c.llama and Llama(c.llama, c.lora, rngs=rngs)
        self.config = config

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of activations."""
        return jnp.dtype(self.config.activation_dtype)

    def run_encoders(self, pcm: Array, pcm_length: Array, padded_length: Array | None = None) -> EncoderOutput:
        """Runs the two encoders.

        Args:
          pcm: int16[A,N], zero-padded to the window.
          length: int32[A] samples of each clip.
          padded: int32[A] samples to which the original would have padded the clip for BEATs, in a batch; by default
            each clip is heard as if alone. Tokens of what BEATs then would not have seen are zero.
        """
        minimum = self.config.audio.minimum_samples
        pcm_length = jnp.maximum(pcm_length, minimum)
        padded_length = pcm_length if padded_length is None else jnp.maximum(padded_length, minimum)
        speech = self.whisper and self.whisper(
            audio.log_mel_spectrogram(pcm, self.config.whisper.num_mel_bins).astype(self.dtype)
        )
        if self.beats is None:
            return EncoderOutput(speech, None, None)
        fbank = audio.fbank(pcm, self.config.beats.num_mel_bins)
        tokens = (
            fbank.shape[1]
            // self.config.beats.input_patch_size
            * (self.config.beats.num_mel_bins // self.config.beats.input_patch_size)
        )
        exists, valid = token_masks(pcm_length, padded_length, tokens, self.config.beats)
        return EncoderOutput(speech, self.beats(fbank.astype(self.dtype), valid), exists)

    def concat_encoder_frames(self, encoder_output: EncoderOutput) -> Array:
        """What the Q-Former reads: both encoders' frames, normalised, of one length and side by side, float[A,T,E]."""
        heard = self.ln_speech(encoder_output.whisper)
        if encoder_output.beats is None:
            return heard
        sound = jnp.where(encoder_output.beats_mask[..., None], self.ln_audio(encoder_output.beats), 0)
        return jnp.concatenate([heard, _pad_or_trim(sound, heard.shape[1])], axis=-1)

    def compute_audio_tokens(self, encoder_output: EncoderOutput, key: Array | None = None) -> Array:
        """From the encoders' frames to the language model's embedding space: float[A,W*Q,D]."""
        return self.projection(self.qformer(self.query_tokens[...], self.concat_encoder_frames(encoder_output), key))

    def encode_audio(
        self, pcm: Array, pcm_length: Array, padded_length: Array | None = None, key: Array | None = None
    ) -> Array:
        """int16[A,N] clips of int32[A] samples -> float[A,W*Q,D] audio tokens. No clips, no work."""
        if pcm.shape[0] == 0:
            return jnp.zeros((0, self.config.num_audio_tokens, self.config.llama.hidden_size), self.dtype)
        return self.compute_audio_tokens(self.run_encoders(pcm, pcm_length, padded_length), key)

    def merge_audio_tokens(self, tokens: Array, audio_slot: Array, audio_tokens: Array, num_shards: int = 1) -> Array:
        """Embeds int32[R,S] tokens and puts audio tokens where `audio_slot` names one: float[R,S,D].

        `shards` is the number of equal parts into which rows and clips are cut over devices (see `Batch`): looking up
        within a part keeps the lookup on the device that holds it.
        """
        text = self.llama.embed(tokens).astype(self.dtype)
        if audio_tokens.shape[0] == 0:
            return text
        table = audio_tokens.reshape(num_shards, -1, audio_tokens.shape[-1])
        first = jnp.arange(num_shards)[:, None] * table.shape[1]
        local = jnp.maximum(audio_slot.reshape(num_shards, -1) - first, 0)
        found = jnp.take_along_axis(table, local[..., None], axis=1).reshape(text.shape)
        return jnp.where((audio_slot >= 0)[..., None], found.astype(text.dtype), text)

    def __call__(
        self,
        batch: Batch,
        *,
        lora_scale: Array | float | None,
        padded_length: Array | None = None,
        num_shards: int = 1,
        key: Array | None = None,
        remat_policy: str = "none",
    ) -> tuple[Array, Array]:
        """Teacher-forced forward pass of a batch.

        Returns:
          float32[R,S,V] logits (entry s predicts token s + 1), and the float[A,W*Q,D] audio tokens.
        """
        on_qformer, on_llama = split_key(key, 2)
        audio_tokens = self.encode_audio(batch.pcm, batch.pcm_length, padded_length, on_qformer)
        x = self.merge_audio_tokens(batch.tokens, batch.audio_slot, audio_tokens, num_shards)
        mask = causal_mask(batch.segments)
        hidden, _ = self.llama(x, batch.positions, mask, lora_scale=lora_scale, key=on_llama, remat_policy=remat_policy)
        return self.llama.logits(hidden), audio_tokens


def answer_losses(logits: Array, batch: Batch, pad_classes: int = 0) -> tuple[Array, Array]:
    """Cross-entropy of each token that is to be predicted, float32[R,S-1], and which tokens those are, bool[R,S-1].

    `pad_classes` is the configuration's (see `ModelConfig`).
    """
    targets, counted = batch.tokens[:, 1:], batch.loss_mask[:, 1:]
    log_probability = log_probabilities(logits[:, :-1], pad_classes)
    losses = -jnp.take_along_axis(log_probability, targets[..., None], axis=-1)[..., 0]
    return jnp.where(counted, losses, 0.0), counted


def _pad_or_trim(x: Array, num_frames: int) -> Array:
    """Zero-pads float[A,T,D] at the end to `frames`, or cuts it."""
    return jnp.pad(x[:, :num_frames], ((0, 0), (0, max(0, num_frames - x.shape[1])), (0, 0)))

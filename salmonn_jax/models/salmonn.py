"""The SALMONN model and its loss (Tang et al. 2024, figure 1; original module: `models/salmonn.py`).

Whisper and BEATs encode the audio. Their frames are normalised, zero-padded to the same length and concatenated. The
window-level Q-Former turns them into audio tokens, a linear projection maps these to the embedding size of the
language model, and they replace embeddings of the prompt.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax import Array

from salmonn_jax.audio import features
from salmonn_jax.batch import Batch
from salmonn_jax.config import ModelConfig
from salmonn_jax.models.beats.encoder import Beats, token_masks
from salmonn_jax.models.common import NORMAL_INIT, LayerNorm, Linear, split_key
from salmonn_jax.models.llama import Llama, causal_mask, log_probabilities
from salmonn_jax.models.qformer import QFormer
from salmonn_jax.models.whisper.encoder import WhisperEncoder


class EncoderOutput(NamedTuple):
    """Outputs of the encoders; None for an encoder that the model does not have."""

    whisper: Array | None  # float[A,T,D_whisper]
    beats: Array | None  # float[A,T_beats,D_beats]
    beats_mask: Array | None  # bool[A,T_beats]: True for the tokens of the padded clip, without the rest of the window


class Salmonn(nnx.Module):
    """SALMONN, or the components of it that the configuration has. All methods are pure functions of arrays."""

    def __init__(self, config: ModelConfig, *, dtype: str = "float32", rngs: nnx.Rngs):
        """Creates random float32 parameters. `dtype` is that of activations."""
        whisper, beats, qformer, llama = config.whisper, config.beats, config.qformer, config.llama
        self.whisper = whisper and WhisperEncoder(whisper, num_frames=config.audio.whisper_frames, rngs=rngs)
        self.beats = beats and Beats(beats, rngs=rngs)
        if qformer:
            self.ln_speech = LayerNorm(whisper.d_model)
            self.ln_audio = beats and LayerNorm(beats.encoder_embed_dim)
            self.query_tokens = nnx.Param(
                NORMAL_INIT(rngs.params(), (qformer.num_speech_query_token, qformer.hidden_size), jnp.float32)
            )
            encoder_hidden_size = whisper.d_model + (beats.encoder_embed_dim if beats else 0)
            self.qformer = QFormer(qformer, encoder_hidden_size=encoder_hidden_size, rngs=rngs)
            self.projection = Linear(qformer.hidden_size, llama.hidden_size, rngs=rngs)
        self.llama = llama and Llama(llama, config.lora, rngs=rngs)
        self.config, self.dtype = config, jnp.dtype(dtype)

    def run_encoders(self, pcm: Array, pcm_length: Array, padded_length: Array | None = None) -> EncoderOutput:
        """Runs the encoders.

        Args:
          pcm: int16[A,N], zero-padded to the window.
          pcm_length: int32[A] samples of each clip.
          padded_length: int32[A] samples to which the original pads each clip for BEATs, which is the longest clip of
            its batch. By default the clip's own length.
        """
        minimum = self.config.audio.minimum_samples
        pcm_length = jnp.maximum(pcm_length, minimum)
        padded_length = pcm_length if padded_length is None else jnp.maximum(padded_length, minimum)
        speech = self.whisper and self.whisper(
            features.log_mel_spectrogram(pcm, self.config.whisper.num_mel_bins).astype(self.dtype)
        )
        if self.beats is None:
            return EncoderOutput(speech, None, None)
        fbank = features.fbank(pcm, self.config.beats.num_mel_bins)
        tokens = (
            fbank.shape[1]
            // self.config.beats.input_patch_size
            * (self.config.beats.num_mel_bins // self.config.beats.input_patch_size)
        )
        exists, valid = token_masks(pcm_length, padded_length, tokens, self.config.beats)
        return EncoderOutput(speech, self.beats(fbank.astype(self.dtype), valid), exists)

    def concat_encoder_frames(self, encoder_output: EncoderOutput) -> Array:
        """Returns the input of the Q-Former, float[A,T,E]: the normalised frames of both encoders, concatenated."""
        speech = self.ln_speech(encoder_output.whisper)
        if encoder_output.beats is None:
            return speech
        sound = jnp.where(encoder_output.beats_mask[..., None], self.ln_audio(encoder_output.beats), 0)
        return jnp.concatenate([speech, _pad_or_trim(sound, speech.shape[1])], axis=-1)

    def compute_audio_tokens(self, encoder_output: EncoderOutput, dropout_key: Array | None = None) -> Array:
        """Returns the audio tokens float[A,W*Q,D], which have the embedding size of the language model."""
        frames = self.concat_encoder_frames(encoder_output)
        return self.projection(self.qformer(self.query_tokens[...], frames, dropout_key))

    def encode_audio(
        self, pcm: Array, pcm_length: Array, padded_length: Array | None = None, dropout_key: Array | None = None
    ) -> Array:
        """Encodes clips as audio tokens. A batch without clips skips the encoders.

        Args:
          pcm: int16[A,N], zero-padded to the window.
          pcm_length: int32[A] samples of each clip.
          padded_length: see `run_encoders`.
          dropout_key: random key of the Q-Former's dropout; None in inference.

        Returns:
          float[A,W*Q,D] audio tokens.
        """
        if pcm.shape[0] == 0:
            return jnp.zeros((0, self.config.num_audio_tokens, self.config.llama.hidden_size), self.dtype)
        return self.compute_audio_tokens(self.run_encoders(pcm, pcm_length, padded_length), dropout_key)

    def merge_audio_tokens(self, tokens: Array, audio_slot: Array, audio_tokens: Array, num_shards: int = 1) -> Array:
        """Embeds tokens and replaces the embeddings at audio slots by audio tokens.

        Args:
          tokens: int32[R,S].
          audio_slot: int32[R,S] index of the audio token at each position; `TEXT_SLOT` (-1) at text.
          audio_tokens: float[A,W*Q,D].
          num_shards: number of data shards into which rows and clips are split (see `Batch`). Each shard looks up its
            own audio tokens only, so the lookup needs no communication between devices.

        Returns:
          float[R,S,D] embeddings.
        """
        text = self.llama.embed(tokens).astype(self.dtype)
        if audio_tokens.shape[0] == 0:
            return text
        table = audio_tokens.reshape(num_shards, -1, audio_tokens.shape[-1])
        shard_offset = jnp.arange(num_shards)[:, None] * table.shape[1]
        local_slot = jnp.maximum(audio_slot.reshape(num_shards, -1) - shard_offset, 0)
        audio_embeddings = jnp.take_along_axis(table, local_slot[..., None], axis=1).reshape(text.shape)
        return jnp.where((audio_slot >= 0)[..., None], audio_embeddings.astype(text.dtype), text)

    def __call__(
        self,
        batch: Batch,
        *,
        lora_scale: Array | float | None,
        padded_length: Array | None = None,
        num_shards: int = 1,
        dropout_key: Array | None = None,
        remat_policy: str = "none",
    ) -> tuple[Array, Array]:
        """Runs the teacher-forced forward pass of a batch.

        Args:
          batch: see `Batch`.
          lora_scale: factor of the adapters; None leaves the adapters out.
          padded_length: see `run_encoders`.
          num_shards: see `merge_audio_tokens`.
          dropout_key: random key of dropout; None in inference.
          remat_policy: name in `salmonn_jax.models.common.REMAT_POLICIES`, for the language model's layers.

        Returns:
          float32[R,S,V] logits (entry s predicts token s + 1), and the float[A,W*Q,D] audio tokens.
        """
        qformer_key, llama_key = split_key(dropout_key, 2)
        audio_tokens = self.encode_audio(batch.pcm, batch.pcm_length, padded_length, qformer_key)
        x = self.merge_audio_tokens(batch.tokens, batch.audio_slot, audio_tokens, num_shards)
        mask = causal_mask(batch.segments)
        hidden, _ = self.llama(
            x, batch.positions, mask, lora_scale=lora_scale, dropout_key=llama_key, remat_policy=remat_policy
        )
        return self.llama.logits(hidden), audio_tokens


def answer_losses(logits: Array, batch: Batch, pad_classes: int = 0) -> tuple[Array, Array]:
    """Computes the cross-entropy of the answer tokens.

    Args:
      logits: float32[R,S,V].
      batch: the batch that the logits belong to.
      pad_classes: see `ModelConfig`.

    Returns:
      float32[R,S-1] losses, zero at other tokens, and bool[R,S-1] mask of the answer tokens.
    """
    targets, target_mask = batch.tokens[:, 1:], batch.loss_mask[:, 1:]
    log_probability = log_probabilities(logits[:, :-1], pad_classes)
    losses = -jnp.take_along_axis(log_probability, targets[..., None], axis=-1)[..., 0]
    return jnp.where(target_mask, losses, 0.0), target_mask


def _pad_or_trim(x: Array, num_frames: int) -> Array:
    """Pads float[A,T,D] with zeros at the end to `num_frames` frames, or cuts it."""
    return jnp.pad(x[:, :num_frames], ((0, 0), (0, max(0, num_frames - x.shape[1])), (0, 0)))

"""CTC loss on audio tokens, an addition to the original for training from random weights. The training step uses it."""

from __future__ import annotations

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Float32, Int32

from salmonn_jax.config import HOP_LENGTH, ModelConfig


def batch_num_valid_audio_tokens(
    model_config: ModelConfig, pcm_length: Int32[Array, " clips"]
) -> Int32[Array, " clips"]:
    """Returns how many audio tokens of each clip the language model reads.

    Args:
      model_config: configuration of the model.
      pcm_length: samples of each clip.
    """
    samples_per_frame = 2 * HOP_LENGTH
    tokens_by_frames = [
        model_config.num_valid_audio_tokens(num_frames * samples_per_frame)
        for num_frames in range(model_config.audio.num_frames + 1)
    ]
    return jnp.asarray(tokens_by_frames, jnp.int32)[-(-pcm_length // samples_per_frame)]


def ctc_losses(
    embedding: Float[Array, "vocab hidden"],
    audio_tokens: Float[Array, "clips audio_tokens hidden"],
    num_valid_tokens: Int32[Array, " clips"],
    transcript: Int32[Array, "clips transcript"],
    blank_id: int,
) -> Float32[Array, " clips"]:
    """Computes CTC losses on the audio tokens, with the language model's token embeddings as output projection.

    The loss moves audio tokens close to the embeddings of the spoken words. A model with random initial weights
    otherwise learns this very slowly. The original has pretrained components and does not use this loss.

    Args:
      embedding: token embeddings.
      audio_tokens: audio tokens of the clips.
      num_valid_tokens: audio tokens of each clip that the language model reads; the others are masked.
      transcript: token ids, -1 for padding.
      blank_id: token id of CTC's blank.

    Returns:
      The loss of each clip; 0 for clips that do not count (see `ctc_token_counts`).
    """
    logits = audio_tokens.astype(jnp.float32) @ embedding.astype(jnp.float32).T
    is_padding = transcript < 0
    logit_paddings = (jnp.arange(logits.shape[1]) >= num_valid_tokens[:, None]).astype(jnp.float32)
    losses = optax.ctc_loss(
        logits, logit_paddings, jnp.maximum(transcript, 0), is_padding.astype(jnp.float32), blank_id=blank_id
    )
    return jnp.where(ctc_token_counts(num_valid_tokens, transcript) > 0, losses, 0)


def ctc_token_counts(
    num_valid_tokens: Int32[Array, " clips"], transcript: Int32[Array, "clips transcript"]
) -> Int32[Array, " clips"]:
    """Returns the number of transcript tokens of each clip that the CTC loss counts.

    Clips with fewer audio tokens than their transcript needs do not count.

    Args:
      num_valid_tokens: audio tokens of each clip that the language model reads.
      transcript: token ids, -1 for padding.
    """
    is_padding = transcript < 0
    num_transcript_tokens = (~is_padding).sum(axis=1)
    # An alignment needs one audio token per transcript token, and one for the blank between two equal tokens.
    repeats = ((transcript[:, 1:] == transcript[:, :-1]) & ~is_padding[:, 1:]).sum(axis=1)
    return jnp.where(num_transcript_tokens + repeats <= num_valid_tokens, num_transcript_tokens, 0)

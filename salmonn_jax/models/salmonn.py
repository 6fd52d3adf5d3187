"""The SALMONN model and its loss (Tang et al. 2024, figure 1; original module: `models/salmonn.py`).

The encoders, Whisper and BEATs in the original, encode the audio. Their frames are normalised, zero-padded to the same
length and concatenated. The window-level Q-Former turns them into audio tokens, a linear projection maps these to the
embedding size of the language model, and they replace embeddings of the prompt.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Float32, Int16, Int32

from salmonn_jax.batch import Batch
from salmonn_jax.config import ModelConfig
from salmonn_jax.models import llama, lora, qformer
from salmonn_jax.models.common import NORMAL_INIT, LayerNorm, Linear, ShardingRules, split_key
from salmonn_jax.models.encoder import EncoderOutput, encoder_classes
from salmonn_jax.models.llama import Llama, causal_mask, log_probabilities
from salmonn_jax.models.lora import LoraScale
from salmonn_jax.models.qformer import QFormer

# Regular expression of the layer norms of the encoders' frames, such as "ln_speech|ln_audio".
ENCODER_NORMS = "|".join(encoder.norm_name for encoder in encoder_classes().values())


def _inside(component: str, rules: ShardingRules) -> ShardingRules:
    """Returns the sharding rules of a component for whole paths."""
    return tuple((f"{component}/(?:{pattern})", spec) for pattern, spec in rules)


SHARDING_RULES: ShardingRules = (
    *(rule for name, encoder in encoder_classes().items() for rule in _inside(name, encoder.sharding_rules)),
    (f"query_tokens|({ENCODER_NORMS})/(scale|bias)|projection/(kernel|bias)", PartitionSpec()),  # too small to be split
    *_inside("qformer", qformer.SHARDING_RULES),
    *_inside("llama", llama.SHARDING_RULES + lora.SHARDING_RULES),
)


class Salmonn(nnx.Module):
    """SALMONN, or the components of it that the configuration has. All methods are pure functions of arrays."""

    def __init__(self, config: ModelConfig, *, dtype: str = "float32", rngs: nnx.Rngs):
        """Creates random float32 parameters. `dtype` is that of activations."""
        # The names of attributes are the first parts of parameter paths.
        for name, encoder_config in config.encoders.items():
            setattr(self, name, encoder_classes()[name](encoder_config, config.audio, rngs=rngs))
        if config.qformer:
            for name, encoder_config in config.encoders.items():
                setattr(self, encoder_classes()[name].norm_name, LayerNorm(encoder_config.output_size))
            query_shape = (config.qformer.num_speech_query_token, config.qformer.hidden_size)
            self.query_tokens = nnx.Param(NORMAL_INIT(rngs.params(), query_shape, jnp.float32))
            self.qformer = QFormer(config.qformer, encoder_hidden_size=config.encoder_hidden_size, rngs=rngs)
            self.projection = Linear(config.qformer.hidden_size, config.llama.hidden_size, rngs=rngs)
        self.llama = config.llama and Llama(config.llama, config.lora, rngs=rngs)
        self.config, self.dtype = config, jnp.dtype(dtype)

    def run_encoders(
        self,
        pcm: Int16[Array, "clips samples"],
        pcm_length: Int32[Array, " clips"],
        padded_length: Int32[Array, " clips"] | None = None,
    ) -> dict[str, EncoderOutput]:
        """Runs the encoders.

        Args:
          pcm: clips, zero-padded to the window.
          pcm_length: samples of each clip.
          padded_length: samples to which the original pads each clip for BEATs, which is the longest clip of
            its batch. By default the clip's own length.

        Returns:
          The output of each encoder by name.
        """
        minimum = self.config.audio.minimum_samples
        pcm_length = jnp.maximum(pcm_length, minimum)
        padded_length = pcm_length if padded_length is None else jnp.maximum(padded_length, minimum)
        return {name: getattr(self, name)(pcm, pcm_length, padded_length, self.dtype) for name in self.config.encoders}

    def concat_encoder_frames(self, encoder_outputs: dict[str, EncoderOutput]) -> Float[Array, "clips frames hidden"]:
        """Returns the input of the Q-Former: the normalised frames of all encoders, concatenated."""
        normalised = []
        for name in self.config.encoders:
            frames, exists = encoder_outputs[name]
            frames = getattr(self, encoder_classes()[name].norm_name)(frames)
            frames = frames if exists is None else jnp.where(exists[..., None], frames, 0)
            normalised.append(_pad_or_trim(frames, self.config.audio.num_frames))
        return jnp.concatenate(normalised, axis=-1)

    def join_frames(self, encoder_outputs: dict[str, EncoderOutput]) -> Float[Array, "clips frames hidden"]:
        """Returns the frames of all encoders before they are normalised, concatenated, as `Batch.frames` holds them.

        Frames that do not exist are zero.
        """
        joined = []
        for frames, exists in (encoder_outputs[name] for name in self.config.encoders):
            frames = frames if exists is None else jnp.where(exists[..., None], frames, 0)
            joined.append(_pad_or_trim(frames, self.config.audio.num_frames))
        return jnp.concatenate(joined, axis=-1)

    def split_frames(self, frames: Float[Array, "clips frames hidden"]) -> dict[str, EncoderOutput]:
        """Returns the output of each encoder by name, the inverse of `join_frames`.

        A frame whose values are all zero does not exist.
        """
        sizes = [encoder_config.output_size for encoder_config in self.config.encoders.values()]
        parts = jnp.split(frames.astype(self.dtype), np.cumsum(sizes[:-1]), axis=-1)
        return {
            name: EncoderOutput(part, (part != 0).any(axis=-1))
            for name, part in zip(self.config.encoders, parts, strict=True)
        }

    def compute_audio_tokens(
        self, encoder_outputs: dict[str, EncoderOutput], dropout_key: Array | None = None
    ) -> Float[Array, "clips audio_tokens hidden"]:
        """Returns the audio tokens, which have the embedding size of the language model."""
        frames = self.concat_encoder_frames(encoder_outputs)
        return self.projection(self.qformer(self.query_tokens[...], frames, dropout_key))

    def encode_audio(
        self,
        pcm: Int16[Array, "clips samples"],
        pcm_length: Int32[Array, " clips"],
        padded_length: Int32[Array, " clips"] | None = None,
        dropout_key: Array | None = None,
    ) -> Float[Array, "clips audio_tokens hidden"]:
        """Encodes clips as audio tokens. A batch without clips skips the encoders.

        Args:
          pcm: clips, zero-padded to the window.
          pcm_length: samples of each clip.
          padded_length: see `run_encoders`.
          dropout_key: random key of the Q-Former's dropout; None in inference.
        """
        if pcm.shape[0] == 0:
            return jnp.zeros((0, self.config.num_audio_tokens, self.config.llama.hidden_size), self.dtype)
        return self.compute_audio_tokens(self.run_encoders(pcm, pcm_length, padded_length), dropout_key)

    def merge_audio_tokens(
        self,
        tokens: Int32[Array, "rows seq"],
        audio_slot: Int32[Array, "rows seq"],
        audio_tokens: Float[Array, "clips audio_tokens hidden"],
        num_shards: int = 1,
    ) -> Float[Array, "rows seq hidden"]:
        """Embeds tokens and replaces the embeddings at audio slots by audio tokens.

        Args:
          tokens: tokens of the rows.
          audio_slot: index of the audio token at each position; `TEXT_SLOT` (-1) at text.
          audio_tokens: audio tokens of the clips.
          num_shards: number of data shards into which rows and clips are split (see `Batch`). Each shard looks up its
            own audio tokens only, so the lookup needs no communication between devices.
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
        lora_scale: LoraScale,
        text_only_off: bool = False,
        padded_length: Int32[Array, " clips"] | None = None,
        num_shards: int = 1,
        dropout_key: Array | None = None,
        remat_policy: str = "none",
    ) -> tuple[Float32[Array, "rows seq vocab"], Float[Array, "clips audio_tokens hidden"]]:
        """Runs the teacher-forced forward pass of a batch.

        Args:
          batch: see `Batch`. If it has frames, the encoders do not run.
          lora_scale: factor of the adapters, a scalar or float32[layers]; None leaves the adapters out.
          text_only_off: whether segments without audio do not use the adapters.
          padded_length: see `run_encoders`.
          num_shards: see `merge_audio_tokens`.
          dropout_key: random key of dropout; None in inference.
          remat_policy: name in `salmonn_jax.models.common.REMAT_POLICIES`, for the language model's layers.

        Returns:
          Logits, of which each entry predicts the next token, and the audio tokens.
        """
        qformer_key, llama_key = split_key(dropout_key, 2)
        if batch.frames.size:
            if padded_length is not None:
                raise ValueError("padded_length has no effect on a batch with frames")
            audio_tokens = self.compute_audio_tokens(self.split_frames(batch.frames), qformer_key)
        else:
            audio_tokens = self.encode_audio(batch.pcm, batch.pcm_length, padded_length, qformer_key)
        x = self.merge_audio_tokens(batch.tokens, batch.audio_slot, audio_tokens, num_shards)
        mask = causal_mask(batch.segments)
        hidden = self.llama(
            x,
            batch.positions,
            mask,
            lora_scale=lora_scale,
            adapted=_has_audio(batch) if text_only_off else None,
            dropout_key=llama_key,
            remat_policy=remat_policy,
        )
        return self.llama.logits(hidden), audio_tokens


def answer_losses(
    logits: Float32[Array, "rows seq vocab"], batch: Batch, pad_classes: int = 0
) -> tuple[Float32[Array, "rows targets"], Bool[Array, "rows targets"]]:
    """Computes the cross-entropy of the answer tokens.

    Args:
      logits: logits of all tokens.
      batch: the batch that the logits belong to.
      pad_classes: see `ModelConfig`.

    Returns:
      Losses, zero at other tokens, and a mask of the answer tokens. The first token of a row is no target.
    """
    targets, target_mask = batch.tokens[:, 1:], batch.loss_mask[:, 1:]
    log_probability = log_probabilities(logits[:, :-1], pad_classes)
    losses = -jnp.take_along_axis(log_probability, targets[..., None], axis=-1)[..., 0]
    return jnp.where(target_mask, losses, 0.0), target_mask


def _has_audio(batch: Batch) -> Bool[Array, "rows seq"]:
    """Returns which tokens belong to a segment with audio."""
    same_segment = batch.segments[:, :, None] == batch.segments[:, None, :]
    return (same_segment & (batch.audio_slot >= 0)[:, None, :]).any(axis=-1)


def _pad_or_trim(x: Float[Array, "clips _ hidden"], num_frames: int) -> Float[Array, "clips frames hidden"]:
    """Pads encoder frames with zeros at the end to `num_frames` frames, or cuts them."""
    return jnp.pad(x[:, :num_frames], ((0, 0), (0, max(0, num_frames - x.shape[1])), (0, 0)))

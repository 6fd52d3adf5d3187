"""One training step: loss, gradient with respect to what is trained, update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh

from salmonn_jax import sharding
from salmonn_jax.batch import Batch
from salmonn_jax.config import HOP_LENGTH, SAMPLE_RATE, ModelConfig, RunConfig
from salmonn_jax.models.parameters import ModelStructure, Params, trainable_paths
from salmonn_jax.models.salmonn import answer_losses
from salmonn_jax.training.optimizer import learning_rate_schedule, make_optimizer


class TrainState(NamedTuple):
    """What training changes, and all that a checkpoint must hold beside the place in the data."""

    step: Array  # int32 scalar: steps done
    trainable: Params
    opt_state: Any


def init_train_state(config: RunConfig, trainable: Params) -> TrainState:
    """The state before the first step. Traceable."""
    optimizer = make_optimizer(config.optimizer, config.num_train_steps).init(trainable)
    return TrainState(jnp.zeros((), jnp.int32), trainable, optimizer)


def batch_loss(
    config: RunConfig,
    structure: ModelStructure,
    trainable: Params,
    frozen: Params,
    batch: Batch,
    num_shards: int,
    key: Array | None,
) -> tuple[Array, dict[str, Array]]:
    """The loss of a batch: mean over all its answer tokens (as the original), plus the CTC loss if it is weighed in.

    Returns:
      The float32 scalar, and the float32 scalars `loss` (of the answers alone), `accuracy` (of teacher-forced
      answer tokens) and, where configured, `ctc`.
    """
    model = structure.merge(trainable, frozen)
    logits, audio_tokens = model(
        batch, lora_scale=config.model.lora.scale, num_shards=num_shards, key=key, remat_policy=config.remat_policy
    )
    losses, counted = answer_losses(logits, batch, config.model.pad_classes)
    total = jnp.maximum(counted.sum(), 1)
    right = (logits[:, :-1].argmax(-1) == batch.tokens[:, 1:]) & counted
    metrics = {"loss": losses.sum() / total, "accuracy": right.sum() / total}
    if not config.ctc_weight:
        return metrics["loss"], metrics
    read = num_valid_audio_tokens(config.model, batch.pcm_length)
    metrics["ctc"] = ctc_loss(model.llama.embedding[...], audio_tokens, read, batch.transcript, config.ctc_blank)
    return metrics["loss"] + config.ctc_weight * metrics["ctc"], metrics


def num_valid_audio_tokens(model_config: ModelConfig, pcm_length: Array) -> Array:
    """int32[A]: how many audio tokens the language model reads of clips of int32[A] samples."""
    frame = 2 * HOP_LENGTH
    by_frames = [
        model_config.num_valid_audio_tokens(frames * frame) for frames in range(model_config.audio.whisper_frames + 1)
    ]
    return jnp.asarray(by_frames, jnp.int32)[-(-pcm_length // frame)]


def ctc_loss(embedding: Array, audio_tokens: Array, num_valid_tokens: Array, transcript: Array, blank_id: int) -> Array:
    """CTC on the audio tokens (mean over transcribed tokens), read off with the language model's word embeddings.

    It teaches audio tokens to lie where the words they stand for lie, which a model that starts from random weights
    otherwise takes very long to find. Not part of the original, whose parts are pretrained. Clips without a
    transcript, or with one too long for their audio tokens, do not count.

    Args:
      embedding: float[V,D]; audio_tokens: float[A,T,D]; transcript: int32[A,U], -1 for padding.
      read: int32[A] how many of the audio tokens of a clip the language model reads; words are sought in these.
      blank: the token that stands for no word.
    """
    logits = audio_tokens.astype(jnp.float32) @ embedding.astype(jnp.float32).T
    absent = transcript < 0
    unread = (jnp.arange(logits.shape[1]) >= num_valid_tokens[:, None]).astype(jnp.float32)
    losses = optax.ctc_loss(logits, unread, jnp.maximum(transcript, 0), absent.astype(jnp.float32), blank_id=blank_id)
    words = (~absent).sum(axis=1)
    # A token for each word and a blank between equal ones: a clip with fewer audio tokens than that has no alignment.
    repeats = ((transcript[:, 1:] == transcript[:, :-1]) & ~absent[:, 1:]).sum(axis=1)
    counted = (words > 0) & (words + repeats <= num_valid_tokens)
    return jnp.where(counted, losses, 0).sum() / jnp.maximum(jnp.where(counted, words, 0).sum(), 1)


def make_train_step(config: RunConfig, structure: ModelStructure, mesh: Mesh) -> Callable:
    """Compiles `(state, frozen, batch) -> (state, metrics)`; `state` is donated, frozen weights lie as their rules say.

    Metrics are float32 scalars: those of `batch_loss`, `gradient_norm`, `learning_rate`, and how many `examples` and
    `audio_seconds` the batch holds.
    """
    optimizer = make_optimizer(config.optimizer, config.num_train_steps)
    schedule = learning_rate_schedule(config.optimizer, config.num_train_steps)
    shards = sharding.num_data_shards(mesh)
    everywhere, split = sharding.replicated(mesh), sharding.batch_shardings(mesh, config.data.clips)
    chosen = trainable_paths(structure.shapes, config.trainable)
    placement = sharding.Placement(mesh)
    parts = {p: placement(p, leaf).sharding for p, leaf in structure.shapes.items() if p not in chosen}

    def train_step(state: TrainState, frozen: Params, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)

        def loss(trainable):
            return batch_loss(config, structure, trainable, frozen, batch, shards, key)

        # With respect to the trainable parameters only: no gradient, and no memory, for the frozen ones.
        (_, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(state.trainable)
        updates, optimizer_state = optimizer.update(gradient, state.opt_state, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        metrics |= {"gradient_norm": optax.global_norm(gradient), "learning_rate": schedule(state.step)}
        metrics["examples"] = batch.segments.max(axis=1).sum().astype(jnp.float32)
        metrics["audio_seconds"] = batch.pcm_length.astype(jnp.float32).sum() / SAMPLE_RATE
        return TrainState(state.step + 1, trainable, optimizer_state), metrics

    return jax.jit(
        train_step,
        in_shardings=(everywhere, parts, split),
        out_shardings=(everywhere, everywhere),
        donate_argnums=0,
    )

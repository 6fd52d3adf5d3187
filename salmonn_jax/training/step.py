"""The training step: loss, gradient with respect to the trainable parameters, and optimiser update.

The training loop and `launch.plan` compile it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float32, Int32, Shaped

from salmonn_jax import sharding
from salmonn_jax.batch import Batch
from salmonn_jax.config import SAMPLE_RATE, ModelConfig, Recipe
from salmonn_jax.models import parameters
from salmonn_jax.models.lora import LoraScale
from salmonn_jax.models.parameters import ModelStructure, Params, trainable_paths
from salmonn_jax.models.salmonn import answer_losses
from salmonn_jax.training.accumulation import split_batch, sum_over_micro_batches
from salmonn_jax.training.ctc import batch_num_valid_audio_tokens, ctc_losses, ctc_token_counts
from salmonn_jax.training.optimizer import make_optimizer


class TrainState(NamedTuple):
    """State of training, which a checkpoint stores together with the state of the data."""

    step: Array  # int32 scalar: number of finished steps
    trainable: Params  # float32
    opt_state: Any  # optax state


def init_train_state(recipe: Recipe, trainable: Params) -> TrainState:
    """Returns the state before the first step. It can be traced by JAX."""
    return TrainState(jnp.zeros((), jnp.int32), trainable, make_optimizer(recipe).init(trainable))


class SourceSums(NamedTuple):
    """Sums over the answer tokens of each source, float32[sources], in the order of `DataConfig.source_names`."""

    loss: Array
    correct: Array  # teacher-forced tokens that the model predicts right
    targets: Array  # answer tokens


class LossTotals(NamedTuple):
    """Numbers of tokens by which the summed losses of a batch are divided, as int32 scalars of at least 1."""

    targets: Array  # answer tokens
    transcript_tokens: Array  # tokens of the transcripts that the CTC loss counts


def loss_totals(recipe: Recipe, model_config: ModelConfig, batch: Batch) -> LossTotals:
    """Returns the totals of a batch."""
    targets = jnp.maximum(batch.loss_mask[:, 1:].sum(), 1)
    if not recipe.ctc_weight:
        return LossTotals(targets, jnp.ones((), jnp.int32))
    num_valid = batch_num_valid_audio_tokens(model_config, batch.pcm_length)
    return LossTotals(targets, jnp.maximum(ctc_token_counts(num_valid, batch.transcript).sum(), 1))


def batch_loss(
    recipe: Recipe,
    structure: ModelStructure,
    trainable: Params,
    frozen: Params,
    batch: Batch,
    num_shards: int,
    dropout_key: Array | None,
    totals: LossTotals | None = None,
    lora_scale: LoraScale | Literal["model"] = "model",
) -> tuple[Array, dict[str, Any]]:
    """Computes the loss of a batch: the mean over all answer tokens, as in the original, plus the weighted CTC loss.

    Args:
      recipe: recipe of the run.
      structure: structure of the model.
      trainable: trainable parameters by path.
      frozen: frozen parameters by path.
      batch: the global batch, or a micro-batch of it.
      num_shards: number of data shards.
      dropout_key: random key of dropout; None turns dropout off.
      totals: totals of the global batch, so that the results of its micro-batches can be summed. By default those of
        `batch`.
      lora_scale: factor of the adapters, a scalar or float32[layers]; None leaves them out, "model" is that of the
        model.

    Returns:
      The loss as a float32 scalar, and a dictionary: the float32 scalars `loss` (without CTC), `accuracy` of the
      teacher-forced answer tokens, and `ctc` if `recipe.ctc_weight` is not 0, and the `SourceSums` as `source_sums`.
    """
    model = structure.merge(trainable, frozen)
    logits, audio_tokens = model(
        batch,
        lora_scale=structure.config.lora.scale if isinstance(lora_scale, str) else lora_scale,
        num_shards=num_shards,
        dropout_key=dropout_key,
        remat_policy=recipe.remat_policy,
    )
    losses, target_mask = answer_losses(logits, batch, structure.config.pad_classes)
    totals = loss_totals(recipe, structure.config, batch) if totals is None else totals
    correct = (logits[:, :-1].argmax(-1) == batch.tokens[:, 1:]) & target_mask
    metrics: dict[str, Any] = {"loss": losses.sum() / totals.targets, "accuracy": correct.sum() / totals.targets}
    num_sources, source_index = len(recipe.data.source_names), batch.source_index[:, 1:]
    metrics["source_sums"] = SourceSums(
        *(sum_by_source(values, source_index, num_sources) for values in (losses, correct, target_mask))
    )
    if not recipe.ctc_weight:
        return metrics["loss"], metrics
    num_valid = batch_num_valid_audio_tokens(structure.config, batch.pcm_length)
    clip_losses = ctc_losses(model.llama.embedding[...], audio_tokens, num_valid, batch.transcript, recipe.ctc_blank)
    metrics["ctc"] = clip_losses.sum() / totals.transcript_tokens
    return metrics["loss"] + recipe.ctc_weight * metrics["ctc"], metrics


def sum_by_source(
    values: Shaped[Array, "rows _"], source_index: Int32[Array, "rows _"], num_sources: int
) -> Float32[Array, " sources"]:
    """Returns the sum of the values of each source.

    A comparison with each index needs no scatter, and on a mesh the only collective is the sum of short vectors.

    Args:
      values: numbers or truth values of tokens.
      source_index: index of the source of each token; -1 belongs to none.
      num_sources: number of sources.
    """
    is_source = source_index[..., None] == jnp.arange(num_sources)
    return jnp.where(is_source, values[..., None].astype(jnp.float32), 0).sum((0, 1))


def batch_counts(batch: Batch, num_sources: int) -> dict[str, Array]:
    """Returns how much a batch has of what is counted per second or per source.

    Args:
      batch: the global batch.
      num_sources: number of sources.

    Returns:
      The float32 scalars `clips`, `audio_seconds` and `tokens` (without padding), and `source_examples`, the examples
      of each source as float32[sources].
    """
    is_token = batch.segments > 0
    return {
        "clips": (batch.pcm_length > 0).sum(dtype=jnp.float32),
        "audio_seconds": batch.pcm_length.sum(dtype=jnp.float32) / SAMPLE_RATE,
        "tokens": is_token.sum(dtype=jnp.float32),
        "source_examples": sum_by_source(is_token & (batch.positions == 0), batch.source_index, num_sources),
    }


def gradient_norms(gradient: Params) -> dict[str, Array]:
    """Returns the norm of the whole gradient and of that of each trained module, as float32 scalars by metric name."""
    norms = {"gradient_norm": optax.global_norm(gradient)}
    for module, paths in parameters.trainable_modules(gradient, parameters.MODULES).items():
        if paths:
            norms[f"gradient_norm/{module}"] = optax.global_norm([gradient[path] for path in paths])
    return norms


def frozen_shardings(recipe: Recipe, structure: ModelStructure, mesh: Mesh) -> dict[str, NamedSharding]:
    """Returns the shardings of the frozen parameters, those of `salmonn_jax.sharding.FROZEN_RULES`.

    Args:
      recipe: recipe of the run.
      structure: structure of the model.
      mesh: device mesh.
    """
    trainable_set = trainable_paths(structure.shapes, recipe.trainable)
    placement = sharding.Placement(mesh)
    return {
        path: placement(path, leaf).sharding for path, leaf in structure.shapes.items() if path not in trainable_set
    }


def make_train_step(recipe: Recipe, structure: ModelStructure, mesh: Mesh) -> Callable:
    """Returns the jitted training step `(state, frozen, batch) -> (state, metrics)`.

    `state` is donated. Metrics are those of `batch_loss`, `batch_counts` and `gradient_norms`, and the `learning_rate`.
    `salmonn_jax.training.telemetry` names and divides them.

    Args:
      recipe: recipe of the run.
      structure: structure of the model.
      mesh: device mesh.
    """
    optimizer, schedule = make_optimizer(recipe), recipe.lr_schedule.create(recipe.num_train_steps)
    num_shards, num_micro_batches = sharding.num_data_shards(mesh), recipe.gradient_accumulation_steps
    replicated, batch_shardings = sharding.replicated(mesh), sharding.batch_shardings(mesh, recipe.data.clips)

    def train_step(state: TrainState, frozen: Params, batch: Batch) -> tuple[TrainState, dict[str, Any]]:
        dropout_key = jax.random.fold_in(jax.random.key(recipe.seed), state.step)

        totals = loss_totals(recipe, structure.config, batch)

        def metrics_and_gradient(batch: Batch, dropout_key: Array) -> tuple[dict[str, Any], Params]:
            def loss(trainable: Params) -> tuple[Array, dict[str, Any]]:
                return batch_loss(recipe, structure, trainable, frozen, batch, num_shards, dropout_key, totals)

            # Only trainable parameters are differentiated, so frozen ones need no memory for gradients.
            (_, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(state.trainable)
            return metrics, gradient

        if num_micro_batches == 1:
            metrics, gradient = metrics_and_gradient(batch, dropout_key)
        else:
            micro_batches = split_batch(batch, num_micro_batches, structure.config.num_audio_tokens, mesh)
            metrics, gradient = sum_over_micro_batches(metrics_and_gradient, micro_batches, dropout_key)
        updates, optimizer_state = optimizer.update(gradient, state.opt_state, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        metrics |= batch_counts(batch, len(recipe.data.source_names)) | gradient_norms(gradient)
        metrics["learning_rate"] = schedule(state.step)
        return TrainState(state.step + 1, trainable, optimizer_state), metrics

    return jax.jit(
        train_step,
        in_shardings=(replicated, frozen_shardings(recipe, structure, mesh), batch_shardings),
        out_shardings=(replicated, replicated),
        donate_argnums=0,
    )

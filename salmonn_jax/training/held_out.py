"""Evaluation on held-out examples between training steps: loss and token accuracy, in total and by source.

It uses the weights of the training state where they are, on the mesh of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from salmonn_jax import distributed, sharding
from salmonn_jax.batch import Batch
from salmonn_jax.config import Recipe
from salmonn_jax.distributed import Watchdog
from salmonn_jax.errors import UserError
from salmonn_jax.models.parameters import ModelStructure, Params
from salmonn_jax.preemption import StopRequest
from salmonn_jax.training.accumulation import split_batch, sum_over_micro_batches
from salmonn_jax.training.ctc import batch_num_valid_audio_tokens, ctc_token_counts
from salmonn_jax.training.step import LossTotals, SourceSums, batch_loss, frozen_shardings
from salmonn_jax.training.telemetry import source_means


class HeldOutBatches(Protocol):
    """Held-out examples of a process, implemented by `data_pipelines.stream.held_out.HeldOutData`."""

    num_batches: int  # with examples of this process
    num_examples: Mapping[str, int]  # examples of this process that are used, by source
    rejections: Sequence[Any]  # examples of this process that cannot be used

    def batches(self, num_batches: int) -> Iterator[Batch]:
        """Yields the part of each batch that this process reads, with batches of padding at the end."""
        ...


class EvalSums(NamedTuple):
    """Sums over the tokens of a batch."""

    by_source: SourceSums
    ctc: Array  # float32 scalar: CTC losses; 0 without the CTC loss
    transcript_tokens: Array  # float32 scalar: tokens that the CTC loss counts


def make_eval_step(recipe: Recipe, structure: ModelStructure, mesh: Mesh) -> Callable[..., EvalSums]:
    """Returns the jitted evaluation step `(trainable, frozen, batch, lora_scale) -> EvalSums`.

    It takes the arrays of the training step and donates none. Dropout is off. `lora_scale` is a float32 scalar or
    float32[layers]; None leaves the adapters out.

    Args:
      recipe: recipe of the run. The batch is split into the micro-batches of training.
      structure: structure of the model.
      mesh: device mesh.
    """
    num_shards, num_micro_batches = sharding.num_data_shards(mesh), recipe.gradient_accumulation_steps
    no_division = LossTotals(jnp.ones((), jnp.int32), jnp.ones((), jnp.int32))

    def eval_step(trainable: Params, frozen: Params, batch: Batch, lora_scale: Array | None) -> EvalSums:
        def sums(batch: Batch, key: Array) -> EvalSums:
            del key
            _, metrics = batch_loss(
                recipe, structure, trainable, frozen, batch, num_shards, None, no_division, lora_scale
            )
            if not recipe.ctc_weight:
                return EvalSums(metrics["source_sums"], jnp.zeros(()), jnp.zeros(()))
            num_valid = batch_num_valid_audio_tokens(structure.config, batch.pcm_length)
            counts = ctc_token_counts(num_valid, batch.transcript)
            return EvalSums(metrics["source_sums"], metrics["ctc"], counts.sum(dtype=jnp.float32))

        key = jax.random.key(0)
        if num_micro_batches == 1:
            return sums(batch, key)
        return sum_over_micro_batches(
            sums, split_batch(batch, num_micro_batches, structure.config.num_audio_tokens, mesh), key
        )

    replicated = sharding.replicated(mesh)
    return jax.jit(
        eval_step,
        in_shardings=(
            replicated,
            frozen_shardings(recipe, structure, mesh),
            sharding.batch_shardings(mesh, recipe.data.clips),
            replicated,
        ),
        out_shardings=replicated,
    )


def check_held_out(recipe: Recipe, data: HeldOutBatches) -> str:
    """Returns one line with the number of held-out examples of each source. Every process calls it.

    Args:
      recipe: recipe of the run.
      data: held-out examples of this process.

    Raises:
      UserError: no example can be used, or none of the source of `recipe.keep_best`.
    """
    names, split = recipe.data.source_names, recipe.data.eval_split
    counts = distributed.sum_over_processes(np.array([data.num_examples.get(name, 0) for name in names], np.int32))
    by_source = dict(zip(names, counts.tolist(), strict=True))
    rejected = int(distributed.sum_over_processes(np.array(len(data.rejections), np.int32)))
    missing = [name for name, count in by_source.items() if not count]
    if len(missing) == len(names):
        raise UserError(
            f"none of the {rejected} examples in the split data.eval_split={split} can be used{_first_reason(data)}; "
            "correct them or set eval_every=0"
        )
    best_source = recipe.keep_best.split("/", 2)[2:]
    if best_source and best_source[0] in missing:
        raise UserError(
            f"keep_best={recipe.keep_best}: {best_source[0]} has no example in the split data.eval_split={split}; "
            "choose another metric"
        )
    line = f"held-out examples (split {split}): "
    line += ", ".join(f"{name} {count}" for name, count in by_source.items() if count)
    line += f"; none of {', '.join(missing)}" if missing else ""
    return line + (f"; {rejected} cannot be used{_first_reason(data)}" if rejected else "")


def _first_reason(data: HeldOutBatches) -> str:
    """Returns why an example of this process cannot be used, in brackets; "" if all can."""
    if not data.rejections:
        return ""
    first = data.rejections[0]
    return f" (example {first.example} of {first.source}: {first.reason}, {first.detail})"


class HeldOutEvaluation:
    """Evaluation of a run on its held-out examples, every `recipe.eval_every` steps and after the last step.

    Every process creates it.

    Args:
      recipe: recipe of the run.
      structure: structure of the model.
      mesh: device mesh.
      data: held-out examples of this process, see `check_held_out`.

    Attributes:
      mesh: device mesh.
    """

    def __init__(self, recipe: Recipe, structure: ModelStructure, mesh: Mesh, data: HeldOutBatches):
        self._recipe, self.mesh, self._data = recipe, mesh, data
        self._lora_scale = structure.config.lora.scale
        self._eval_step = make_eval_step(recipe, structure, mesh)
        self._num_batches = distributed.max_over_processes(data.num_batches)

    def is_due(self, step: int) -> bool:
        """Returns whether to evaluate after `step` steps."""
        return step > 0 and (step % self._recipe.eval_every == 0 or step == self._recipe.num_train_steps)

    def run(
        self,
        trainable: Params,
        frozen: Params,
        *,
        watchdog: Watchdog,
        stop_request: StopRequest,
        lora_multiplier: float | tuple[float, ...] | None = None,
    ) -> dict[str, float] | None:
        """Evaluates a model. Every process calls it and gets the same values.

        Args:
          trainable: trainable parameters by path.
          frozen: frozen parameters by path.
          watchdog: gets a heartbeat for each finished batch.
          stop_request: an immediate one ends the evaluation.
          lora_multiplier: factor of the adapters' scale, or one of each layer; 0 leaves the adapters out. By default
            that of the recipe.

        Returns:
          Values by metric name (see `Recipe.eval_metrics`); None if a stop was requested. Means are over all tokens.
          A source without answer tokens has no value.
        """
        with jax.transfer_guard_host_to_device("allow"):
            multiplier = np.array(self._recipe.eval_lora_multiplier if lora_multiplier is None else lora_multiplier)
            scale = np.float32(self._lora_scale * multiplier) if multiplier.any() else None
            totals, pending = None, None
            for local_batch in self._data.batches(self._num_batches):
                if stop_request.is_immediate:
                    return None
                batch = sharding.make_global_batch(local_batch, self.mesh, self._recipe.data.streams)
                sums = self._eval_step(trainable, frozen, batch, scale)
                # Waits for the batch before, so that the device always has one in its queue, but not more.
                totals, pending = _add(totals, pending), sums
                watchdog.heartbeat()
            return _mean_values(self._recipe, _add(totals, pending))


def _add(totals: EvalSums | None, sums: EvalSums | None) -> EvalSums | None:
    """Returns totals in float64 to which the sums of a batch are added; None stands for nothing."""
    if sums is None:
        return totals
    sums = jax.tree.map(lambda x: np.asarray(x, np.float64), jax.device_get(sums))
    return sums if totals is None else jax.tree.map(np.add, totals, sums)


def _mean_values(recipe: Recipe, totals: EvalSums) -> dict[str, float]:
    """Returns the means over all tokens by metric name."""
    by_source = totals.by_source
    num_targets = by_source.targets.sum()
    values = {"loss": by_source.loss.sum() / num_targets, "accuracy": by_source.correct.sum() / num_targets}
    if totals.transcript_tokens:
        values["ctc"] = totals.ctc / totals.transcript_tokens
    values |= source_means(recipe.data.source_names, by_source)
    return {f"eval/{name}": float(value) for name, value in values.items()}

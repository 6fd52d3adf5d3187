"""AdamW with the original's schedule and its rule for weight decay (original: `optims.py`, `runner.py`)."""

from __future__ import annotations

import jax.numpy as jnp
import optax

from salmonn_jax.config import OptimizerConfig
from salmonn_jax.models.parameters import Params

# The original decays tensors of two or more dimensions whose name has neither "bias" nor "ln". Layers are stacked
# here, so that dimensions say nothing; these last parts of a path are what is left undecayed there.
NO_WEIGHT_DECAY = ("bias", "scale", "gate_scale", "magnitude", "relative_bias")


def learning_rate_schedule(config: OptimizerConfig, num_train_steps: int) -> optax.Schedule:
    """Linear warm-up from `start` to `peak`, then a cosine to `end` over all steps.

    The cosine runs over the global step, and the warm-up is not subtracted from it, as in the original.
    """

    def schedule(step):
        warm = config.init_lr + (config.peak_lr - config.init_lr) * step / max(config.warmup_steps, 1)
        cosine = 0.5 * (1 + jnp.cos(jnp.pi * step / num_train_steps))
        return jnp.where(step < config.warmup_steps, warm, config.end_lr + (config.peak_lr - config.end_lr) * cosine)

    return schedule


def weight_decay_mask(params: Params) -> dict[str, bool]:
    """Which parameters weight decay applies to, by path."""
    return {path: path.rsplit("/", 1)[-1] not in NO_WEIGHT_DECAY for path in params}


def make_optimizer(config: OptimizerConfig, num_train_steps: int) -> optax.GradientTransformation:
    """The optimiser of the trainable parameters. It never sees the frozen ones."""
    adamw = optax.adamw(
        learning_rate_schedule(config, num_train_steps),
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=weight_decay_mask,
    )
    return adamw if config.clip_norm is None else optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)

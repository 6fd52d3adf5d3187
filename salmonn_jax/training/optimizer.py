"""AdamW with the original's learning rate schedule and weight decay mask (original: `optims.py`, `runner.py`)."""

from __future__ import annotations

import jax.numpy as jnp
import optax

from salmonn_jax.config import OptimizerConfig
from salmonn_jax.models.parameters import Params

# Last components of the paths of parameters without weight decay. The original decays tensors with two or more
# dimensions whose name contains neither "bias" nor "ln". Layers are stacked here, so the number of dimensions cannot
# decide; these names select the same parameters, except BEATs' `gate_scale` and `magnitude`: the original, which never
# trains BEATs, would decay them.
NO_WEIGHT_DECAY = ("bias", "scale", "gate_scale", "magnitude", "relative_bias")


def learning_rate_schedule(config: OptimizerConfig, num_train_steps: int) -> optax.Schedule:
    """Returns a schedule with linear warm-up from `init_lr` to `peak_lr` and cosine decay to `end_lr`.

    As in the original, the cosine is a function of the global step, from which the warm-up is not subtracted.
    """

    def schedule(step):
        warmup = config.init_lr + (config.peak_lr - config.init_lr) * step / max(config.warmup_steps, 1)
        cosine = 0.5 * (1 + jnp.cos(jnp.pi * step / num_train_steps))
        return jnp.where(step < config.warmup_steps, warmup, config.end_lr + (config.peak_lr - config.end_lr) * cosine)

    return schedule


def weight_decay_mask(params: Params) -> dict[str, bool]:
    """Returns for each path whether weight decay applies to the parameter."""
    return {path: path.rsplit("/", 1)[-1] not in NO_WEIGHT_DECAY for path in params}


def make_optimizer(config: OptimizerConfig, num_train_steps: int) -> optax.GradientTransformation:
    """Returns the optimiser, which is applied to the trainable parameters only."""
    adamw = optax.adamw(
        learning_rate_schedule(config, num_train_steps),
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=weight_decay_mask,
    )
    return adamw if config.clip_norm is None else optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)

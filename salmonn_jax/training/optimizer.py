"""The optimiser of a recipe, with the original's weight decay mask (original: `optims.py`, `runner.py`)."""

from __future__ import annotations

import optax

from salmonn_jax.config import Recipe
from salmonn_jax.models.parameters import Params

# Last components of the paths of parameters without weight decay. The original decays tensors with two or more
# dimensions whose name contains neither "bias" nor "ln". Layers are stacked here, so the number of dimensions cannot
# decide; these names select the same parameters, except BEATs' `gate_scale` and `magnitude`: the original, which never
# trains BEATs, would decay them.
NO_WEIGHT_DECAY = ("bias", "scale", "gate_scale", "magnitude", "relative_bias")


def weight_decay_mask(params: Params) -> dict[str, bool]:
    """Returns for each path whether weight decay applies to the parameter."""
    return {path: path.rsplit("/", 1)[-1] not in NO_WEIGHT_DECAY for path in params}


def make_optimizer(recipe: Recipe) -> optax.GradientTransformation:
    """Returns the optimiser, which is applied to the trainable parameters only."""
    return recipe.optimizer.create(recipe.lr_schedule.create(recipe.num_train_steps), weight_decay_mask)

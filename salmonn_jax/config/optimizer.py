"""Optimisers and learning rate schedules of a recipe, as configurations that create their optax object.

To add one, write a class here whose `name` is its own, and add it to `Optimizer` or `Schedule`. On the command line,
`optimizer.name=lion` chooses another one, whose fields then have their defaults. optax is imported where it is used, so
that reading a configuration stays fast.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat
from pydantic.dataclasses import dataclass

from salmonn_jax.config.model import Probability
from salmonn_jax.config.typed import STRICT, NonNegativeInt

if TYPE_CHECKING:
    import optax

_WEIGHT_DECAY = "not applied to biases and norms, see `salmonn_jax.training.optimizer`"
_CLIP_NORM = "maximum global norm of the gradient; None does not clip, as in the original"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AdamW:
    """AdamW (Loshchilov and Hutter 2019), the optimiser of the original."""

    name: Literal["adamw"] = Field("adamw", description="which optimiser")
    b1: Probability = Field(0.9, description="decay rate of Adam's first moment")
    b2: Probability = Field(0.999, description="decay rate of Adam's second moment")
    eps: PositiveFloat = Field(1e-8, description="epsilon of Adam")
    weight_decay: NonNegativeFloat = Field(0.05, description=_WEIGHT_DECAY)
    clip_norm: PositiveFloat | None = Field(None, description=_CLIP_NORM)

    def create(self, learning_rate: optax.Schedule, decay_mask: Callable[[Any], Any]) -> optax.GradientTransformation:
        """Returns the optimiser.

        Args:
          learning_rate: learning rate by step.
          decay_mask: returns for a tree of parameters which of them weight decay applies to.
        """
        import optax

        options = {"b1": self.b1, "b2": self.b2, "eps": self.eps, "weight_decay": self.weight_decay}
        return _clipped(self.clip_norm, optax.adamw(learning_rate, **options, mask=decay_mask))


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Lion:
    """Lion (Chen et al. 2023), which keeps one moment. Its learning rate is 3 to 10 times smaller than AdamW's."""

    name: Literal["lion"] = Field("lion", description="which optimiser")
    b1: Probability = Field(0.9, description="weight of the moment in the update")
    b2: Probability = Field(0.99, description="decay rate of the moment")
    weight_decay: NonNegativeFloat = Field(0.5, description=_WEIGHT_DECAY)
    clip_norm: PositiveFloat | None = Field(None, description=_CLIP_NORM)

    def create(self, learning_rate: optax.Schedule, decay_mask: Callable[[Any], Any]) -> optax.GradientTransformation:
        """Returns the optimiser. The arguments are those of `AdamW.create`."""
        import optax

        options = {"b1": self.b1, "b2": self.b2, "weight_decay": self.weight_decay}
        return _clipped(self.clip_norm, optax.lion(learning_rate, **options, mask=decay_mask))


@dataclass(frozen=True, kw_only=True, config=STRICT)
class WarmupCosine:
    """Linear warm-up and cosine decay, as the original's `LinearWarmupCosineLRScheduler`."""

    name: Literal["warmup_cosine"] = Field("warmup_cosine", description="which schedule")
    peak_lr: PositiveFloat = Field(
        3e-5, description="learning rate that the warm-up approaches and from which the cosine starts at step 0"
    )
    init_lr: NonNegativeFloat = Field(1e-6, description="learning rate at step 0")
    end_lr: NonNegativeFloat = Field(1e-5, description="learning rate at the last step")
    warmup_steps: NonNegativeInt = Field(3000, description="steps of the warm-up")

    def create(self, num_train_steps: int) -> optax.Schedule:
        """Returns the learning rate as a function of the step.

        As in the original, the cosine is a function of the global step, from which the warm-up is not subtracted.
        """
        import jax.numpy as jnp

        def schedule(step):
            warmup = _warmup(step, self.init_lr, self.peak_lr, self.warmup_steps)
            cosine = 0.5 * (1 + jnp.cos(jnp.pi * step / num_train_steps))
            decay = self.end_lr + (self.peak_lr - self.end_lr) * cosine
            return jnp.where(step < self.warmup_steps, warmup, decay)

        return schedule


@dataclass(frozen=True, kw_only=True, config=STRICT)
class WarmupConstant:
    """Linear warm-up to a constant learning rate."""

    name: Literal["warmup_constant"] = Field("warmup_constant", description="which schedule")
    peak_lr: PositiveFloat = Field(3e-5, description="learning rate after the warm-up")
    init_lr: NonNegativeFloat = Field(1e-6, description="learning rate at step 0, if there is a warm-up")
    warmup_steps: NonNegativeInt = Field(3000, description="steps of the warm-up")

    def create(self, num_train_steps: int) -> optax.Schedule:
        """Returns the learning rate as a function of the step."""
        import jax.numpy as jnp

        del num_train_steps
        return lambda step: jnp.where(
            step < self.warmup_steps, _warmup(step, self.init_lr, self.peak_lr, self.warmup_steps), self.peak_lr
        )


Optimizer = AdamW | Lion
Schedule = WarmupCosine | WarmupConstant


def _warmup(step: Any, init_lr: float, peak_lr: float, warmup_steps: int) -> Any:
    """Returns the learning rate at a step of the warm-up."""
    return init_lr + (peak_lr - init_lr) * step / max(warmup_steps, 1)


def _clipped(clip_norm: float | None, optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Returns the optimiser, with the gradient clipped to a global norm unless that is None."""
    import optax

    return optimizer if clip_norm is None else optax.chain(optax.clip_by_global_norm(clip_norm), optimizer)

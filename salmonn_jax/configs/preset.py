"""`Preset`: a recipe and the model that it trains."""

from __future__ import annotations

import dataclasses

from salmonn_jax.config import ModelConfig, Recipe


@dataclasses.dataclass(frozen=True)
class Preset:
    """A named training run: its recipe and its model. Only `launch` takes a preset; everything below takes its parts.

    Attributes:
      name: name of the run, which also labels the progress bar.
      recipe: how the model is trained.
      model: configuration of the model; None for a recipe that needs `--model`.
    """

    name: str
    recipe: Recipe
    model: ModelConfig | None = None

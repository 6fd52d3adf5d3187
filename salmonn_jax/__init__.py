"""SALMONN, an audio language model, in JAX.

    model = salmonn_jax.load("runs/quickstart/mini_stage3")
    model.generate("clip.wav", "What sound is this?")[0].text

Names are imported on first use, so that configurations and scoring can be imported without JAX.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from salmonn_jax.api import Generation, Model, load
    from salmonn_jax.config import ModelConfig, Recipe
    from salmonn_jax.errors import RunError, UserError

__version__ = "0.1.0"

_MODULES = {
    "Generation": "salmonn_jax.api",
    "Model": "salmonn_jax.api",
    "ModelConfig": "salmonn_jax.config",
    "Recipe": "salmonn_jax.config",
    "RunError": "salmonn_jax.errors",
    "UserError": "salmonn_jax.errors",
    "load": "salmonn_jax.api",
}

__all__ = ["Generation", "Model", "ModelConfig", "Recipe", "RunError", "UserError", "load"]


def __getattr__(name: str) -> Any:
    """Imports a public name on first use."""
    if name not in _MODULES:
        raise AttributeError(f"module 'salmonn_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    """Returns the public names, for completion in a shell."""
    return [*globals(), *_MODULES]

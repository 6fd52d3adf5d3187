"""SALMONN in JAX."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`salmonn_jax.load`, imported when first asked for: configuration and scoring need no JAX."""
    if name == "load":
        from salmonn_jax.api import load

        return load
    raise AttributeError(f"module 'salmonn_jax' has no attribute {name!r}")

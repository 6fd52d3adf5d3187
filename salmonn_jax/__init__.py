"""SALMONN, an audio language model, in JAX. The public interface is `salmonn_jax.load`."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Imports `salmonn_jax.load` on first use, so that configuration and scoring can be imported without JAX."""
    if name == "load":
        from salmonn_jax.api import load

        return load
    raise AttributeError(f"module 'salmonn_jax' has no attribute {name!r}")

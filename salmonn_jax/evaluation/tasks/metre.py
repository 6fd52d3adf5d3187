"""Metre of a tune, in the mini-corpus."""

from __future__ import annotations

from salmonn_jax.evaluation.metrics import accuracy
from salmonn_jax.evaluation.protocol import Protocol, Task

TASK = Task("metre", "Metre of a tune", (Protocol("metre@1", (accuracy(),)),))

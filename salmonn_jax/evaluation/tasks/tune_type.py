"""Type of a tune, in the mini-corpus."""

from __future__ import annotations

from salmonn_jax.evaluation.metrics import accuracy
from salmonn_jax.evaluation.protocol import Protocol, Task

TASK = Task("tune_type", "Type of a tune", (Protocol("tune-type@1", (accuracy(),)),))

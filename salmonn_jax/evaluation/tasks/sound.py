"""Sound recognition, in the mini-corpus."""

from __future__ import annotations

from salmonn_jax.evaluation.metrics import accuracy
from salmonn_jax.evaluation.protocol import Protocol, Task

TASK = Task("sound", "Sound recognition", (Protocol("sound@1", (accuracy(),)),))

"""Speech translation, in the mini-corpus."""

from __future__ import annotations

from salmonn_jax.evaluation.metrics import wer
from salmonn_jax.evaluation.protocol import Protocol, Task

TASK = Task("translate", "Speech translation", (Protocol("translate@1", (wer(),)),))

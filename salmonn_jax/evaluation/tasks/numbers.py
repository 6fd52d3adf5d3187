"""Transcription of spoken numbers, in the mini-corpus."""

from __future__ import annotations

from salmonn_jax.evaluation.metrics import wer
from salmonn_jax.evaluation.protocol import Protocol, Task

TASK = Task("numbers", "Transcription of spoken numbers", (Protocol("numbers@1", (wer(),)),))

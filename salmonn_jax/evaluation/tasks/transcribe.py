"""Speech transcription, in the mini-corpus."""

from __future__ import annotations

from salmonn_jax.evaluation.metrics import wer
from salmonn_jax.evaluation.protocol import Protocol, Task

TASK = Task("transcribe", "Speech transcription", (Protocol("transcribe@1", (wer(),)),))

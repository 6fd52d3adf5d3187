"""Translation of spoken numbers into English, in the mini-corpus."""

from __future__ import annotations

from salmonn_jax.evaluation.metrics import wer
from salmonn_jax.evaluation.protocol import Protocol, Task

TASK = Task(
    "numbers_to_english", "Translation of spoken numbers into English", (Protocol("numbers-to-english@1", (wer(),)),)
)

"""Answers to spoken questions (task SQQA of the paper)."""

from __future__ import annotations

from salmonn_jax.evaluation.metrics import contains_accuracy
from salmonn_jax.evaluation.metrics.words import following_rate
from salmonn_jax.evaluation.protocol import Protocol, Task
from salmonn_jax.evaluation.text.following import NOT_TRANSCRIPT

SPOKEN_QUESTION = Protocol("spoken-question@1", (contains_accuracy(), following_rate(NOT_TRANSCRIPT)))

TASK = Task("speech_query", "Spoken question answering", (SPOKEN_QUESTION,), is_open=True)

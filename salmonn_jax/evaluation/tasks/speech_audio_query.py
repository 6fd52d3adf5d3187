"""Answers to spoken questions about the sounds around the speaker."""

from __future__ import annotations

from salmonn_jax.evaluation.protocol import Task
from salmonn_jax.evaluation.tasks.speech_query import SPOKEN_QUESTION

TASK = Task("speech_audio_query", "Spoken question about sounds", (SPOKEN_QUESTION,), is_open=True)

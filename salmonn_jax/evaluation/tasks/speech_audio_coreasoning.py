"""Spoken questions answered from sounds (task SAC of the paper)."""

from __future__ import annotations

from salmonn_jax.evaluation.protocol import Task
from salmonn_jax.evaluation.tasks.speech_query import SPOKEN_QUESTION

TASK = Task("speech_audio_coreasoning", "Speech-audio co-reasoning", (SPOKEN_QUESTION,), is_open=True)

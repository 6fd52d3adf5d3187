"""Slot filling (task SF of the paper)."""

from __future__ import annotations

from salmonn_jax.evaluation.protocol import Task
from salmonn_jax.evaluation.tasks.speech_query import SPOKEN_QUESTION

TASK = Task("slot_filling", "Slot filling", (SPOKEN_QUESTION,), is_open=True)

"""Captions of sounds under the second set of prompts."""

from __future__ import annotations

from salmonn_jax.evaluation.protocol import Task
from salmonn_jax.evaluation.tasks.audiocaption import CAPTION

TASK = Task("audiocaption_v2", "Audio captioning, second prompts", (CAPTION,))

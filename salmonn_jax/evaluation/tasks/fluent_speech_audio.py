"""Descriptions of speech and sounds in one sentence."""

from __future__ import annotations

from salmonn_jax.evaluation.protocol import Task
from salmonn_jax.evaluation.tasks.audio_speech_description import DESCRIPTION

TASK = Task("fluent_speech_audio", "Speech and sounds in one sentence", (DESCRIPTION,))

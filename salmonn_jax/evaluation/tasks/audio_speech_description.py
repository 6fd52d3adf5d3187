"""Descriptions of speech and of the sounds behind it."""

from __future__ import annotations

from salmonn_jax.evaluation.metrics import bleu, rouge_l
from salmonn_jax.evaluation.protocol import Protocol, Task

DESCRIPTION = Protocol("description@1", (rouge_l(), bleu("13a")), "en")

TASK = Task("audio_speech_description", "Description of speech and sounds", (DESCRIPTION,))

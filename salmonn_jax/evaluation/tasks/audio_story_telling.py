"""Stories about sounds (task Story of the paper)."""

from __future__ import annotations

from salmonn_jax.evaluation.metrics import diversity
from salmonn_jax.evaluation.metrics.words import following_rate
from salmonn_jax.evaluation.protocol import Protocol, Task
from salmonn_jax.evaluation.text.following import STORY

TASK = Task("audio_story_telling", "Audio storytelling", (Protocol("story@1", (diversity(), following_rate(STORY))),))

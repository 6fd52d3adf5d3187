"""Descriptions of music (task MC of the paper)."""

from __future__ import annotations

from salmonn_jax.evaluation.metrics import bleu, rouge_l
from salmonn_jax.evaluation.protocol import Protocol, Task

TASK = Task("music_description", "Music captioning", (Protocol("music-caption@1", (bleu("13a"), rouge_l()), "en"),))

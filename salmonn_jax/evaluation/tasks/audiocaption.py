"""Captions of sounds (task AAC of the paper)."""

from __future__ import annotations

from salmonn_jax.evaluation.metrics import cider, meteor, rouge_l, spice, spider
from salmonn_jax.evaluation.protocol import Protocol, Task

CAPTION = Protocol("caption@1", (meteor(), cider(), spice(), spider(), rouge_l()), "en")

TASK = Task("audiocaption", "Audio captioning", (CAPTION,))

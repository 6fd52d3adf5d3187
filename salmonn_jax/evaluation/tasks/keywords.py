"""Keywords of a speech (task KE of the paper)."""

from __future__ import annotations

from salmonn_jax.evaluation.metrics import keyword_accuracy
from salmonn_jax.evaluation.protocol import Protocol, Task

TASK = Task("keywords", "Keyword extraction", (Protocol("keywords@1", (keyword_accuracy(),), "en"),))

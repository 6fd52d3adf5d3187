"""Questions whose answer must be inferred from a recording."""

from __future__ import annotations

from salmonn_jax.evaluation.protocol import Task
from salmonn_jax.evaluation.tasks.qa import QUESTION

TASK = Task("inference_QA", "Inference from a recording", (QUESTION,), is_open=True)

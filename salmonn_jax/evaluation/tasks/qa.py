"""Questions about a recording. The reference must occur in the answer, or the answer must name its choice."""

from __future__ import annotations

from salmonn_jax.evaluation.metrics import contains_accuracy, rouge_l
from salmonn_jax.evaluation.protocol import Protocol, Task

QUESTION = Protocol("qa@1", (contains_accuracy(), rouge_l()))

TASK = Task("QA", "Question about a recording", (QUESTION,), is_open=True)

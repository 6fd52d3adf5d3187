"""Text questions without audio."""

from __future__ import annotations

from salmonn_jax.evaluation.metrics import accuracy, contains_accuracy
from salmonn_jax.evaluation.protocol import Protocol, Task

TASK = Task(
    "text",
    "Text question without audio",
    (Protocol("text@1", (accuracy(),)), Protocol("text-contains@1", (contains_accuracy(),))),
    is_open=True,
)

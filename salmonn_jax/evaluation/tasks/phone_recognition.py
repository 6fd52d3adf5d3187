"""Phone recognition (task PR of the paper)."""

from __future__ import annotations

from salmonn_jax.evaluation.metrics import per
from salmonn_jax.evaluation.protocol import Protocol, Task

TASK = Task("phone_recognition", "Phone recognition", (Protocol("phones@1", (per(),)),))

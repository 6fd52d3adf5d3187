"""Whether two utterances have one speaker (task SV of the paper)."""

from __future__ import annotations

from salmonn_jax.evaluation.metrics import yes_no_accuracy
from salmonn_jax.evaluation.protocol import Protocol, Task

TASK = Task(
    "speaker_verification",
    "Speaker verification",
    (Protocol("same-speaker@1", (yes_no_accuracy(), yes_no_accuracy("balanced_accuracy")), "en"),),
)

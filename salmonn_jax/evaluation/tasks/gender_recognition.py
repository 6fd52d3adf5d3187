"""Gender of a speaker."""

from __future__ import annotations

from salmonn_jax.evaluation.metrics.answers import label_accuracy
from salmonn_jax.evaluation.protocol import Protocol, Task

LABELS = {
    "male": ("man", "boy", "gentleman", "masculine", "males", "men"),
    "female": ("woman", "girl", "lady", "feminine", "females", "women"),
}
GENDER = Protocol("gender@1", (label_accuracy(LABELS), label_accuracy(LABELS, "balanced_accuracy")), "en")

TASK = Task("gender_recognition", "Gender recognition", (GENDER,))

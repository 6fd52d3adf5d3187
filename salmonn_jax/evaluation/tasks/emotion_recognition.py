"""Emotion of a speaker (task ER of the paper): the four classes of IEMOCAP."""

from __future__ import annotations

from salmonn_jax.evaluation.metrics.answers import label_accuracy
from salmonn_jax.evaluation.protocol import Protocol, Task

# Excitement counts as happiness, as in the usual four classes of IEMOCAP.
LABELS = {
    "angry": ("anger", "mad", "furious", "annoyed"),
    "happy": ("happiness", "excited", "excitement", "joy", "joyful", "cheerful"),
    "sad": ("sadness", "sorrow", "sorrowful", "unhappy", "depressed"),
    "neutral": ("neutrality", "calm"),
}

TASK = Task(
    "emotion_recognition",
    "Emotion recognition",
    (Protocol("emotion@1", (label_accuracy(LABELS), label_accuracy(LABELS, "balanced_accuracy")), "en"),),
)

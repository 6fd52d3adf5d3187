"""Translation of English speech into German (a task of the paper)."""

from __future__ import annotations

from salmonn_jax.evaluation.metrics import bleu
from salmonn_jax.evaluation.protocol import Protocol, Task

TASK = Task(
    "translation_en2de",
    "Speech translation, English to German",
    (Protocol("translation-de@1", (bleu("13a"),), "de"),),
)

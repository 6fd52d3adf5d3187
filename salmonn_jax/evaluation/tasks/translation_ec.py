"""Translation of English speech into Chinese (a task of the paper)."""

from __future__ import annotations

from salmonn_jax.evaluation.metrics import bleu
from salmonn_jax.evaluation.protocol import Protocol, Task

# CoVoST 2 (arXiv 2007.10310) scores this language by characters.
TASK = Task(
    "translation_ec",
    "Speech translation, English to Chinese",
    (Protocol("translation-zh@1", (bleu("zh"), bleu("char")), "zh"),),
)

"""Translation of English speech into Japanese (a task of the paper)."""

from __future__ import annotations

from salmonn_jax.evaluation.metrics import bleu
from salmonn_jax.evaluation.protocol import Protocol, Task

# CoVoST 2 (arXiv 2007.10310) scores this language by characters.
TASK = Task(
    "translation_en2ja",
    "Speech translation, English to Japanese",
    (Protocol("translation-ja@1", (bleu("ja-mecab"), bleu("char")), "ja"),),
)

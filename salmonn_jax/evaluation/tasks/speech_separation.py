"""Recognition of overlapped speech (task OSR of the paper): one line per speaker."""

from __future__ import annotations

from salmonn_jax.evaluation.metrics import permutation_invariant_wer
from salmonn_jax.evaluation.protocol import Protocol, Task

TASK = Task(
    "speech_separation",
    "Overlapped speech recognition",
    (
        Protocol("overlapped-en@1", (permutation_invariant_wer("whisper-english-folded"),), "en"),
        Protocol("overlapped-plain@1", (permutation_invariant_wer("plain"),)),
    ),
)

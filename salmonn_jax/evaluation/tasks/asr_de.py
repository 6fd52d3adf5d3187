"""German speech recognition."""

from __future__ import annotations

from salmonn_jax.evaluation.metrics import wer
from salmonn_jax.evaluation.protocol import Protocol, Task

TASK = Task(
    "asr_de",
    "Speech recognition, German",
    (Protocol("asr-de@1", (wer("whisper-basic-folded"),), "de"), Protocol("asr-de-plain@1", (wer("plain"),))),
)

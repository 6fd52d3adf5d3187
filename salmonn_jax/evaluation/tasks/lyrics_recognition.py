"""Words of a song."""

from __future__ import annotations

from salmonn_jax.evaluation.metrics import wer
from salmonn_jax.evaluation.protocol import Protocol, Task

TASK = Task(
    "lyrics_recognition",
    "Lyrics recognition",
    (
        Protocol("lyrics-en@1", (wer("whisper-english-folded"),), "en"),
        Protocol("lyrics-plain@1", (wer("plain"),)),
    ),
)

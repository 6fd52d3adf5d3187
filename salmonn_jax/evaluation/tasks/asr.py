"""English speech recognition (task ASR of the paper)."""

from __future__ import annotations

from salmonn_jax.evaluation.metrics import wer
from salmonn_jax.evaluation.protocol import Protocol, Task

TASK = Task(
    "asr",
    "Speech recognition, English",
    (
        # Whisper's rules; characters that are written for an apostrophe count as one.
        Protocol("asr-en@1", (wer("whisper-english-folded"),), "en"),
        Protocol("asr-en-whisper@1", (wer("whisper-english"),), "en"),
        Protocol("asr-en-open-asr@1", (wer("open-asr"),), "en"),
        Protocol("asr-en-open-asr-merged@1", (wer("open-asr", merge_compounds=True),), "en"),
        Protocol("asr-en-plain@1", (wer("plain"),)),
    ),
)

"""Transcript of a conversation with speaker labels such as "Speaker 1:"."""

from __future__ import annotations

from salmonn_jax.evaluation.metrics import permutation_invariant_wer
from salmonn_jax.evaluation.protocol import Protocol, Task

TASK = Task(
    "speaker_diarization_asr",
    "Transcript of a conversation",
    (
        Protocol("conversation-en@1", (permutation_invariant_wer("whisper-english-folded", by_speaker=True),), "en"),
        Protocol("conversation-plain@1", (permutation_invariant_wer("plain", by_speaker=True),)),
    ),
)

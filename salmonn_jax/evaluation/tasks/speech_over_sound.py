"""Speech over a sound, in the mini-corpus: the transcript and the name of the sound, joined by " over "."""

from __future__ import annotations

from salmonn_jax.evaluation.metrics import accuracy, wer
from salmonn_jax.evaluation.protocol import Protocol, Task
from salmonn_jax.evaluation.text.normalizers import normalize_plain

SEPARATOR = " over "  # between the transcript and the name of the sound


def words_before_over(text: str) -> str:
    """Returns the transcript of an answer, or the full text if it has no separator."""
    text = normalize_plain(text)
    return text.rpartition(SEPARATOR)[0] if SEPARATOR in text else text


def name_after_over(text: str) -> str:
    """Returns the name of the sound of an answer, or "", which matches no reference."""
    text = normalize_plain(text)
    return text.rpartition(SEPARATOR)[2] if SEPARATOR in text else ""


_METRICS = (
    wer(extract=words_before_over, title="word error rate of the speech, lower is better"),
    accuracy(extract=name_after_over, title="correct names of the sound, higher is better"),
)
TASK = Task("speech_over_sound", "Speech over a sound", (Protocol("speech-over-sound@1", _METRICS),))

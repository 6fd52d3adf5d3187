"""Chinese speech recognition."""

from __future__ import annotations

from salmonn_jax.evaluation.metrics import cer
from salmonn_jax.evaluation.protocol import Protocol, Task

TASK = Task(
    "asr_zh",
    "Speech recognition, Chinese",
    (Protocol("asr-zh@1", (cer("chinese"),), "zh"), Protocol("asr-zh-plain@1", (cer("plain"),))),
)

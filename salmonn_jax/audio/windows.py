"""Policies for clips that are longer than the encoder window. The data pipelines and decoding use them.

| policy | clip of 95 s, window of 30 s |
|---|---|
| "error" | raises AudioError |
| "truncate" | the model gets the first 30 s, as in the original |
| "chunk" | the model gets 4 windows, whose audio tokens follow each other in one prompt |
| "chunk_answers" | the model answers each of the 4 windows on its own; decoding only |
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from salmonn_jax.audio.files import AudioError
from salmonn_jax.config import SAMPLE_RATE
from salmonn_jax.errors import check_choice

TooLong = Literal["error", "truncate", "chunk"]
DecodingTooLong = Literal["error", "truncate", "chunk", "chunk_answers"]

# Policies that keep the whole clip.
_WHOLE = ("chunk", "chunk_answers")


def apply_too_long(
    pcm: np.ndarray, window_samples: int, too_long: DecodingTooLong, *, name: str, fix: str = ""
) -> np.ndarray:
    """Returns the part of a clip that is used. A clip that fits into the window is returned unchanged.

    Args:
      pcm: int16[samples] at 16 kHz.
      window_samples: length of the encoder window in samples.
      too_long: policy for a clip that is longer.
      name: name of the clip, for the error message.
      fix: what the user can do, for the error message; "" if the caller says it.

    Raises:
      AudioError: the clip is too long and the policy is "error".
      UserError: the policy is unknown.
    """
    check_choice("too_long", too_long, DecodingTooLong)
    if len(pcm) <= window_samples or too_long in _WHOLE:
        return pcm
    if too_long == "truncate":
        return pcm[:window_samples]
    seconds, window = format_seconds(len(pcm), window_samples), window_samples / SAMPLE_RATE
    raise AudioError("too long", f"{name} is {seconds} s, the window {window:g} s{fix and '; '}{fix}")


def split_windows(pcm: np.ndarray, window_samples: int) -> list[np.ndarray]:
    """Cuts int16[samples] into consecutive encoder windows of `window_samples` samples. The last may be shorter."""
    return [pcm[start : start + window_samples] for start in range(0, len(pcm), window_samples)]


def format_seconds(num_samples: int, window_samples: int) -> str:
    """Formats the length of a clip in seconds. A length near that of the window gets more digits."""
    digits = 1 if abs(num_samples - window_samples) > SAMPLE_RATE // 10 else 4
    return f"{num_samples / SAMPLE_RATE:.{digits}f}"

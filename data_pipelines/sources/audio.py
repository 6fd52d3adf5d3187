"""Reading of clips. `read_clip` converts files to one channel at 16 kHz, joins them, and applies `AudioRules`."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Sequence
from typing import Literal

import numpy as np

from data_pipelines.examples import BadExample
from data_pipelines.sources.manifest_entry import GAP_SAMPLES, AudioSpan
from salmonn_jax import paths
from salmonn_jax.audio.files import AudioError, Channels, load_audio
from salmonn_jax.audio.windows import TooLong, apply_too_long
from salmonn_jax.config import SAMPLE_RATE
from salmonn_jax.errors import AudioWarning, UserError

RETRY_DELAYS = (1.0, 10.0)  # seconds before the second and the third attempt to read a URL
PipelineTooLong = TooLong | Literal["drop"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AudioRules:
    """Rules by which clips are read.

    Attributes:
      channels: "first" takes the first channel, as the original does; "mean" takes the mean of all channels.
      minimum_seconds: shorter clips are padded with silence at the end.
      maximum_seconds: length of an encoder window.
      too_long: treatment of clips longer than `maximum_seconds`, see `salmonn_jax.audio.windows`. "chunk" keeps the
        whole clip; "drop" rejects the example; "error" rejects the example and ends the run.
      silence: a clip is rejected as silent if no sample has an absolute value above this one (full scale is 32767).
    """

    channels: Channels = "first"
    minimum_seconds: float = 1.0
    maximum_seconds: float = 30.0
    too_long: PipelineTooLong = "error"
    silence: int = 0


def read_clip(spans: Sequence[AudioSpan], rules: AudioRules) -> np.ndarray:
    """Reads the spans of a clip and joins them with `GAP_SAMPLES` zero samples in between.

    Args:
      spans: files or parts of files, in order.
      rules: rules by which the clip is read.

    Returns:
      int16[samples] at 16 kHz.

    Raises:
      BadExample: the clip cannot be used.
    """
    parts, warned = [], []
    for span in spans:
        try:
            parts.append(
                load_audio(
                    _path_or_bytes(span.path),
                    start_seconds=span.start,
                    end_seconds=span.end,
                    channels=rules.channels,
                    on_warning=warned.append,
                )
            )
        except AudioError as error:
            # load_audio gets the content of a URL as bytes, so its message does not name the URL.
            detail = str(error) if "://" not in span.path else f"{span.path}: {error}"
            raise BadExample(error.reason, detail) from None
    gap = np.zeros(GAP_SAMPLES, np.int16)
    joined = [x for part in parts for x in (gap, part)][1:]
    if len(warned) == len(spans):
        raise BadExample("silent", warned[0])
    for line in warned:
        warnings.warn(line, AudioWarning, stacklevel=2)
    return fit_clip(np.concatenate(joined), rules)


def fit_clip(pcm: np.ndarray, rules: AudioRules) -> np.ndarray:
    """Truncates or pads int16[samples] according to the rules. Raises BadExample if the clip cannot be used."""
    max_samples = round(rules.maximum_seconds * SAMPLE_RATE)
    too_long = "error" if rules.too_long == "drop" else rules.too_long
    try:
        fitted = apply_too_long(pcm, max_samples, too_long, name="the clip")
    except AudioError as error:
        raise BadExample(error.reason, str(error)) from None
    if len(fitted) < len(pcm):  # the message is constant, so it is shown once
        warnings.warn(
            f"clips are cut to the window of {rules.maximum_seconds:g} s, because too_long is truncate",
            AudioWarning,
            stacklevel=2,
        )
    pcm = fitted
    if not len(pcm) or max(int(pcm.max()), -int(pcm.min())) <= rules.silence:
        raise BadExample("silent", f"no sample exceeds {rules.silence}")
    missing = round(rules.minimum_seconds * SAMPLE_RATE) - len(pcm)
    return np.pad(pcm, (0, missing)) if missing > 0 else pcm


def _path_or_bytes(path: str) -> str | bytes:
    """Returns a local path unchanged, and the content of a URL as bytes. Retries after network errors."""
    if "://" not in path:
        return path
    try:
        for delay in RETRY_DELAYS:
            try:
                return paths.read_bytes(path)
            except FileNotFoundError:
                raise
            except OSError:
                time.sleep(delay)
        return paths.read_bytes(path)
    except (FileNotFoundError, ValueError, UserError) as error:
        raise BadExample("missing", f"{path}: {error}") from None
    except OSError as error:
        raise BadExample("unreachable", f"{path}: {error}") from None

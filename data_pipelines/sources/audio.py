"""Reading of clips. `read_clip` converts files to one channel at 16 kHz, joins them, and applies `AudioRules`."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Literal

import fsspec
import numpy as np

from data_pipelines.examples import BadExample
from data_pipelines.sources.manifest_entry import GAP_SAMPLES, AudioSpan
from salmonn_jax.audio.files import AudioError, Channels, load_audio
from salmonn_jax.config import SAMPLE_RATE

RETRY_DELAYS = (1.0, 10.0)  # seconds before the second and the third attempt to read a URL
TooLong = Literal["truncate", "chunk", "drop", "error"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AudioRules:
    """Rules by which clips are read.

    Attributes:
      channels: "first" takes the first channel, as the original does; "mean" takes the mean of all channels.
      minimum_seconds: shorter clips are padded with silence at the end.
      maximum_seconds: length of an encoder window.
      too_long: treatment of clips longer than `maximum_seconds`. "truncate" keeps the beginning, as the original does;
        "chunk" keeps the whole clip, which fills several consecutive encoder windows of one prompt; "drop" rejects the
        example; "error" rejects the example and ends the run.
      silence: a clip is rejected as silent if no sample has an absolute value above this one (full scale is 32767).
    """

    channels: Channels = "first"
    minimum_seconds: float = 1.0
    maximum_seconds: float = 30.0
    too_long: TooLong = "truncate"
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
    parts = []
    for span in spans:
        try:
            parts.append(
                load_audio(
                    _path_or_bytes(span.path),
                    start_seconds=span.start,
                    end_seconds=span.end,
                    channels=rules.channels,
                )
            )
        except AudioError as error:
            # load_audio gets the content of a URL as bytes, so its message does not name the URL.
            detail = str(error) if "://" not in span.path else f"{span.path}: {error}"
            raise BadExample(error.reason, detail) from None
    gap = np.zeros(GAP_SAMPLES, np.int16)
    joined = [x for part in parts for x in (gap, part)][1:]
    return fit_clip(np.concatenate(joined), rules)


def fit_clip(pcm: np.ndarray, rules: AudioRules) -> np.ndarray:
    """Truncates or pads int16[samples] according to the rules. Raises BadExample if the clip cannot be used."""
    max_samples = round(rules.maximum_seconds * SAMPLE_RATE)
    if len(pcm) > max_samples and rules.too_long != "chunk":
        if rules.too_long != "truncate":
            raise BadExample("too long", f"{len(pcm) / SAMPLE_RATE:.1f} s, the maximum is {rules.maximum_seconds:g} s")
        pcm = pcm[:max_samples]
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
                return _fetched(path)
            except FileNotFoundError:
                raise
            except OSError:
                time.sleep(delay)
        return _fetched(path)
    except (FileNotFoundError, ValueError, ImportError) as error:
        raise BadExample("missing", f"{path}: {error}") from None
    except OSError as error:
        raise BadExample("unreachable", f"{path}: {error}") from None


def _fetched(url: str) -> bytes:
    with fsspec.open(url, "rb") as file:
        return file.read()

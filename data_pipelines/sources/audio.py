"""What clips are made to be before they are examples: joined, one channel, 16 kHz, not too long, nor silent."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Literal

import fsspec
import numpy as np

from data_pipelines.examples import BadExample
from data_pipelines.sources.manifest_entry import GAP_SAMPLES, AudioSpan
from salmonn_jax.audio_files import AudioError, Channels, load_audio
from salmonn_jax.config import SAMPLE_RATE

RETRY_DELAYS = (1.0, 10.0)  # seconds to wait before a URL is tried again
TooLong = Literal["truncate", "chunk", "drop", "error"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AudioRules:
    """How clips are read.

    Attributes:
      channels: "first", as the original takes it, or the "mean" of all.
      minimum_seconds: shorter clips get silence behind them.
      maximum_seconds: what the encoders hear at a time.
      too_long: what becomes of longer clips: "truncate" keeps the beginning, as the original does; "chunk" hears the
        clip in as many windows as it takes, one after another in one prompt; "drop" skips the example, counted;
        "error" does too and the run ends with it.
      silence: clips whose loudest sample is at most this (of 32767) are skipped as silent.
    """

    channels: Channels = "first"
    minimum_seconds: float = 1.0
    maximum_seconds: float = 30.0
    too_long: TooLong = "truncate"
    silence: int = 0


def read_clip(spans: Sequence[AudioSpan], rules: AudioRules) -> np.ndarray:
    """Reads and joins the pieces of a clip: int16[samples] at 16 kHz. Raises BadExample if it cannot be used."""
    parts = []
    for piece in spans:
        try:
            parts.append(
                load_audio(
                    _path_or_bytes(piece.path),
                    start_seconds=piece.start,
                    end_seconds=piece.end,
                    channels=rules.channels,
                )
            )
        except AudioError as error:
            # Of what came by a URL, only the bytes were named.
            detail = str(error) if "://" not in piece.path else f"{piece.path}: {error}"
            raise BadExample(error.reason, detail) from None
    gap = np.zeros(GAP_SAMPLES, np.int16)
    joined = [x for part in parts for x in (gap, part)][1:]
    return fit_clip(np.concatenate(joined), rules)


def fit_clip(pcm: np.ndarray, rules: AudioRules) -> np.ndarray:
    """Applies the rules to int16[samples]. Raises BadExample if the clip cannot be used."""
    longest = round(rules.maximum_seconds * SAMPLE_RATE)
    if len(pcm) > longest and rules.too_long != "chunk":
        if rules.too_long != "truncate":
            raise BadExample("too long", f"{len(pcm) / SAMPLE_RATE:.1f} s, of at most {rules.maximum_seconds:g} s")
        pcm = pcm[:longest]
    if not len(pcm) or max(int(pcm.max()), -int(pcm.min())) <= rules.silence:
        raise BadExample("silent", f"no sample is above {rules.silence}")
    missing = round(rules.minimum_seconds * SAMPLE_RATE) - len(pcm)
    return np.pad(pcm, (0, missing)) if missing > 0 else pcm


def _path_or_bytes(path: str) -> str | bytes:
    """A local path as it is; what a URL names, as bytes. A network that fails is tried again."""
    if "://" not in path:
        return path
    try:
        for wait in RETRY_DELAYS:
            try:
                return _fetched(path)
            except FileNotFoundError:
                raise
            except OSError:
                time.sleep(wait)
        return _fetched(path)
    except (FileNotFoundError, ValueError, ImportError) as error:
        raise BadExample("missing", f"{path}: {error}") from None
    except OSError as error:
        raise BadExample("unreachable", f"{path}: {error}") from None


def _fetched(url: str) -> bytes:
    with fsspec.open(url, "rb") as file:
        return file.read()

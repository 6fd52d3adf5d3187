"""Decoding of audio files, uploads and arrays to mono 16-bit samples at 16 kHz, the input format of the model.

Data pipelines, evaluation and the Python API use `load_audio`.
"""

from __future__ import annotations

import functools
import io
import os
import warnings
from collections.abc import Callable
from typing import Literal

import librosa
import numpy as np
import soundfile

from salmonn_jax.audio.decoding import decode_file
from salmonn_jax.audio.limits import check_sample_rate, sample_range
from salmonn_jax.config import SAMPLE_RATE
from salmonn_jax.errors import AudioError, AudioWarning, UserError, check_choice
from salmonn_jax.paths import check_file_location, read_bytes

# Factor between float samples in [-1, 1) and int16 samples. A power of two makes int16 -> float -> int16 exact.
_FULL_SCALE = 32768.0

# A channel is silent if no sample exceeds -80 dB of full scale, and it is heard if one exceeds -60 dB.
_SILENT_PEAK, _HEARD_PEAK = 1e-4, 1e-3

# Largest absolute value of float samples. Lossy codecs and mixing exceed 1 slightly, which is clipped, as by every
# decoder. Larger values mean another scale, for example that of 16-bit integers.
_MAX_FLOAT = 2.0

# Largest number of seconds by which a segment may exceed the audio. Times in manifests are often rounded.
_MAX_OVERSHOOT = 0.5

AudioSource = str | os.PathLike | bytes | tuple[np.ndarray, int]
Channels = Literal["first", "mean"]


_warn = functools.partial(warnings.warn, category=AudioWarning, stacklevel=3)


def load_audio(
    source: AudioSource,
    *,
    start_seconds: float = 0.0,
    end_seconds: float | None = None,
    channels: Channels = "first",
    on_warning: Callable[[str], object] = _warn,
) -> np.ndarray:
    """Decodes audio, reduces it to one channel and resamples it with soxr.

    The audio is neither cut nor padded. 16-bit audio at 16 kHz is returned bit for bit.

    Args:
      source: path, URL or contents of a file, or a pair of samples and their rate in Hz. Samples have the shape
        [samples] or [samples, channels] and are int8, int16, int32 or uint8, or floats in -1 to 1.
      start_seconds: start of the segment to read.
      end_seconds: end of the segment to read; None reads to the end of the audio.
      channels: "first" uses the first channel, as the original SALMONN, and "mean" the mean of all channels.
      on_warning: called with one line if the result is silent and a channel of the audio is not. By default the line
        is an `AudioWarning`.

    Returns:
      int16[samples] at 16 kHz, at least one sample.

    Raises:
      AudioError: the file is missing, empty, cut or damaged, or cannot be decoded; the audio ends more than 0.5 s
        before `end_seconds`; the sample rate is not 1,000 to 768,000 Hz; or there are no samples, samples that are
        not finite, or floats above 2, which have another scale than -1 to 1.
      UserError: the value of `channels` is unknown.
    """
    check_choice("channels", channels, Channels)
    if isinstance(source, tuple):
        name, (samples, rate) = "the audio", source
        samples = np.asarray(samples)
        check_sample_rate(rate, name)
        samples = samples[slice(*sample_range(start_seconds, end_seconds, rate))]
    else:
        name = "the audio" if isinstance(source, bytes) else os.fspath(source)
        samples, rate = decode_file(_fetch(source), name, start_seconds, end_seconds)
    if samples.size == 0:
        raise AudioError("empty", f"{name} has no samples{f' from {start_seconds:g} s on' if start_seconds else ''}")
    found_end = start_seconds + len(samples) / rate
    if end_seconds is not None and end_seconds - found_end > _MAX_OVERSHOOT:
        raise AudioError(
            "incomplete", f"{name} ends at {found_end:.1f} s, before the end of the segment, {end_seconds:g} s"
        )
    pcm = _to_pcm(samples[:, 0] if samples.ndim > 1 and channels == "first" else samples, rate, name)
    if samples.ndim > 1 and samples.shape[1] > 1 and _peak(pcm) <= _SILENT_PEAK:
        loudest = max(range(samples.shape[1]), key=lambda channel: _peak(samples[:, channel]))
        if _peak(samples[:, loudest]) > _HEARD_PEAK:
            silent, other = ("first channel", "mean") if channels == "first" else ("mean of the channels", "first")
            on_warning(
                f"the {silent} of {name} is silent, channel {loudest + 1} of {samples.shape[1]} is not; "
                f"channels={other} (--channels {other}) may hear it"
            )
    return pcm


def _fetch(source: str | os.PathLike | bytes) -> str | os.PathLike | bytes:
    """Returns the content of a file at a URL, and other sources unchanged."""
    if isinstance(source, bytes) or ":/" not in os.fspath(source):
        return source
    try:
        location = check_file_location(source)
        return read_bytes(location) if "://" in location else location
    except (OSError, ValueError, UserError) as error:
        raise AudioError("missing", f"no audio file {os.fspath(source)}: {error}") from None


def encode_flac(samples: np.ndarray) -> bytes:
    """Encodes int16[samples] at 16 kHz, one channel, as a FLAC file of 16 bits. The encoding is lossless."""
    file = io.BytesIO()
    soundfile.write(file, samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def float_to_pcm(samples: np.ndarray) -> np.ndarray:
    """Converts float[samples] in -1 to 1 to int16[samples]; values outside this range are clipped."""
    return np.clip(np.round(samples * _FULL_SCALE), -_FULL_SCALE, _FULL_SCALE - 1).astype(np.int16)


def pcm_to_float(samples: np.ndarray) -> np.ndarray:
    """Converts int16[samples] to float32[samples] in -1 to 1."""
    return samples.astype(np.float32) / np.float32(_FULL_SCALE)


def _to_pcm(samples: np.ndarray, rate: int, name: str) -> np.ndarray:
    """Converts samples [samples] or [samples, channels] to int16[samples] at 16 kHz, as the mean of the channels."""
    if samples.ndim > 1 and samples.shape[1] == 1:
        samples = samples[:, 0]
    if samples.ndim == 1 and samples.dtype == np.int16 and rate == SAMPLE_RATE:
        return np.ascontiguousarray(samples)
    samples = _as_float32(samples, name)
    return float_to_pcm(_resample(samples if samples.ndim == 1 else samples.mean(axis=1), rate))


def _peak(samples: np.ndarray) -> float:
    """Returns the largest absolute value of samples of any type, relative to full scale; NaN is ignored."""
    if samples.dtype == np.uint8:
        return float(np.abs(samples.astype(np.int16) - 128).max()) / 128
    full_scale = -float(np.iinfo(samples.dtype).min) if np.issubdtype(samples.dtype, np.integer) else 1.0
    return float(np.nanmax(np.abs(samples.astype(np.float64)), initial=0)) / full_scale


def _as_float32(samples: np.ndarray, name: str) -> np.ndarray:
    if np.issubdtype(samples.dtype, np.floating):
        if not np.all(np.isfinite(samples)):
            raise AudioError("not finite", f"{name} has samples that are not finite numbers")
        peak = np.abs(samples).max(initial=0)
        if peak > _MAX_FLOAT:
            raise AudioError(
                "out of range", f"{name} has float samples up to {peak:g}; scale them to -1 to 1, or store integers"
            )
        return samples.astype(np.float32)
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128) / 128
    if samples.dtype not in (np.int8, np.int16, np.int32):  # no audio fills the range of int64
        raise AudioError(
            "undecodable",
            f"{name} has samples of type {samples.dtype}; they must be int8, int16, int32, uint8 or floats",
        )
    return (samples / -float(np.iinfo(samples.dtype).min)).astype(np.float32)


def _resample(samples: np.ndarray, rate: int) -> np.ndarray:
    if rate == SAMPLE_RATE:
        return samples
    return librosa.resample(samples, orig_sr=rate, target_sr=SAMPLE_RATE, res_type="soxr_hq")

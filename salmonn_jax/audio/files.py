"""Decoding of audio files, uploads and arrays to mono 16-bit samples at 16 kHz, the input format of the model.

Data pipelines, evaluation and the Python API use `load_audio`.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import os
import pathlib
import warnings
from collections.abc import Callable
from typing import Literal

import librosa
import miniaudio
import numpy as np
import soundfile

from salmonn_jax.config import SAMPLE_RATE
from salmonn_jax.errors import AudioWarning, UserError, check_choice

# Factor between float samples in [-1, 1) and int16 samples. A power of two makes int16 -> float -> int16 exact.
_FULL_SCALE = 32768.0

# A channel is silent if no sample exceeds -80 dB of full scale, and it is heard if one exceeds -60 dB.
_SILENT_PEAK, _HEARD_PEAK = 1e-4, 1e-3

# Formats without a header, which are recognised by file name only. libsndfile takes some of them for broken MP3.
_HEADERLESS = (".g722", ".gsm")

AudioSource = str | os.PathLike | bytes | tuple[np.ndarray, int]
Channels = Literal["first", "mean"]


class AudioError(UserError):
    """Audio that cannot be used.

    Attributes:
      reason: one of "missing", "undecodable", "empty", "not finite" and "too long".
    """

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


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
      source: path of a file, contents of a file, or a pair of samples and their rate in Hz. Samples have the shape
        [samples] or [samples, channels] and are integers of any width or floats in -1 to 1.
      start_seconds: start of the segment to read.
      end_seconds: end of the segment to read; None reads to the end of the audio.
      channels: "first" uses the first channel, as the original SALMONN, and "mean" the mean of all channels.
      on_warning: called with one line if the result is silent and a channel of the audio is not. By default the line
        is an `AudioWarning`.

    Returns:
      int16[samples] at 16 kHz, at least one sample.

    Raises:
      AudioError: the file is missing, is empty or cannot be decoded; or the audio has no samples or samples that are
        not finite.
      UserError: the value of `channels` is unknown.
    """
    check_choice("channels", channels, Channels)
    if isinstance(source, tuple):
        name, (samples, rate) = "the audio", source
        samples = np.asarray(samples)
        samples = samples[slice(*_sample_range(start_seconds, end_seconds, rate))]
    else:
        name = "the audio" if isinstance(source, bytes) else os.fspath(source)
        samples, rate = _decode(source, name, start_seconds, end_seconds)
    if rate <= 0:
        raise AudioError("undecodable", f"{name} has a sample rate of {rate} Hz; it must be > 0")
    if samples.size == 0:
        raise AudioError("empty", f"{name} has no samples{f' from {start_seconds:g} s on' if start_seconds else ''}")
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


def encode_flac(samples: np.ndarray) -> bytes:
    """Encodes int16[samples] at 16 kHz, one channel, as a FLAC file of 16 bits. The encoding is lossless."""
    file = io.BytesIO()
    soundfile.write(file, samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def decode_flac(data: bytes) -> tuple[np.ndarray, int] | None:
    """Decodes a 16-bit FLAC file with miniaudio.

    It takes two thirds of the time of libsndfile and releases the GIL, so threads decode in parallel.

    Returns:
      int16[samples, channels] and the rate in Hz; None for other formats and for damaged files.
    """
    # The STREAMINFO block comes first: 20 bits of sample rate, 3 bits of channels, 5 bits of bits per sample.
    if len(data) < 42 or (data[20] & 1) << 4 | data[21] >> 4 != 16 - 1:
        return None
    try:
        info = miniaudio.flac_get_info(data)
        samples = np.frombuffer(miniaudio.flac_read_s16(data).samples, np.int16).reshape(-1, info.nchannels)
    except (miniaudio.DecodeError, ZeroDivisionError):  # ZeroDivisionError: the rate is 0
        return None
    # miniaudio skips damaged frames without an error.
    return (samples, info.sample_rate) if 0 < len(samples) == info.num_frames else None


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
        return samples.astype(np.float32)
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128) / 128
    if not np.issubdtype(samples.dtype, np.signedinteger):
        raise AudioError(
            "undecodable", f"{name} has samples of type {samples.dtype}; they must be signed integers, uint8 or floats"
        )
    return (samples / -float(np.iinfo(samples.dtype).min)).astype(np.float32)


def _resample(samples: np.ndarray, rate: int) -> np.ndarray:
    if rate == SAMPLE_RATE:
        return samples
    return librosa.resample(samples, orig_sr=rate, target_sr=SAMPLE_RATE, res_type="soxr_hq")


def _sample_range(start: float, end: float | None, rate: int) -> tuple[int, int | None]:
    """Converts seconds to sample indices."""
    return round(start * rate), None if end is None else round(end * rate)


def _decode(source: str | os.PathLike | bytes, name: str, start: float, end: float | None) -> tuple[np.ndarray, int]:
    """Decodes a file, returning samples [samples, channels] in the codec's own dtype and the rate in Hz.

    Args:
      source: path or contents of the file.
      name: name of the file in error messages.
      start: start of the segment to read, in seconds.
      end: end of the segment in seconds; None reads to the end.
    """
    if isinstance(source, bytes):
        size, file_or_buffer = len(source), io.BytesIO(source)
    else:
        path = pathlib.Path(source)
        try:
            if not path.is_file():
                raise AudioError("missing", f"no audio file {name}")
        except OSError as error:  # a path that is too long, or a folder that may not be read
            shown = name if len(name) < 200 else f"{name[:197]}..."
            hint = "; are audio and answer swapped?" if error.errno == errno.ENAMETOOLONG else ""
            raise AudioError("missing", f"no audio file {shown}: {error.strerror}{hint}") from None
        size, file_or_buffer = path.stat().st_size, path
    if size == 0:
        raise AudioError("empty", f"{name} is empty")
    if isinstance(file_or_buffer, pathlib.Path) and file_or_buffer.suffix.lower() in _HEADERLESS:
        return _decode_with_av(source, name, start, end)
    if start == 0 and end is None:
        decoded = decode_flac(_read_flac(source))
        if decoded is not None:
            return decoded
    try:
        with soundfile.SoundFile(file_or_buffer) as file:
            is_pcm16 = file.subtype == "PCM_16"
            first, last = _sample_range(start, end, file.samplerate)
            file.seek(min(first, file.frames))
            frames = -1 if last is None else max(0, min(last, file.frames) - file.tell())
            return file.read(frames, dtype="int16" if is_pcm16 else "float32", always_2d=True), file.samplerate
    except (soundfile.LibsndfileError, TypeError, ValueError):  # soundfile misreads some bytes as a stream
        return _decode_with_av(source, name, start, end)


def _read_flac(source: str | os.PathLike | bytes) -> bytes:
    """Returns the contents of a FLAC file.

    It returns b"" for other files, and for files that cannot be read: a later decoder reports the error.
    """
    data = source if isinstance(source, bytes) else b""
    if not data and os.fspath(source).lower().endswith(".flac"):
        with contextlib.suppress(OSError):
            data = pathlib.Path(source).read_bytes()
    return data if data.startswith(b"fLaC") else b""


def _decode_with_av(
    source: str | os.PathLike | bytes, name: str, start: float, end: float | None
) -> tuple[np.ndarray, int]:
    """Decodes with PyAV what libsndfile cannot read, such as G.722, AAC or the sound track of a video.

    Arguments and results are those of `_decode`.
    """
    try:
        import av
    except ImportError:
        raise AudioError(
            "undecodable",
            f"{name} cannot be decoded; for more audio formats: pip install 'salmonn-jax[minicorpus]'",
        ) from None
    try:
        with av.open(io.BytesIO(source) if isinstance(source, bytes) else os.fspath(source)) as container:
            if not container.streams.audio:
                raise AudioError("undecodable", f"{name} has no sound track")
            rate = container.streams.audio[0].rate
            frames = []  # arrays [samples, channels]
            for frame in container.decode(audio=0):
                # The array is [channels, samples] of a planar frame; a packed one interleaves its channels in one row.
                rows = frame.to_ndarray()
                frames.append(rows.T if frame.format.is_planar else rows.reshape(-1, frame.layout.nb_channels))
    except (av.FFmpegError, ValueError) as error:
        raise AudioError("undecodable", f"{name} is not audio that can be decoded: {_first_line(error)}") from None
    num_channels = min((frame.shape[1] for frame in frames), default=1)  # it may change within a file
    samples = np.concatenate([frame[:, :num_channels] for frame in frames] or [np.zeros((0, 1), np.int16)])
    return samples[slice(*_sample_range(start, end, rate))], rate


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__

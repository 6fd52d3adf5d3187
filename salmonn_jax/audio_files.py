"""Any audio file, upload or array to what the model hears: 16-bit samples at 16 kHz, one channel."""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
from typing import Literal

import librosa
import miniaudio
import numpy as np
import soundfile

from salmonn_jax.config import SAMPLE_RATE
from salmonn_jax.errors import UserError

# What an int16 sample of full scale is worth; 2**15, so that int16 -> float -> int16 is exact.
_FULL_SCALE = 32768.0

# Known by their names only; libsndfile takes some of them for broken MP3.
_HEADERLESS = (".g722", ".gsm")

AudioSource = str | os.PathLike | bytes | tuple[np.ndarray, int]
Channels = Literal["first", "mean"]


class AudioError(UserError):
    """Audio that cannot be used.

    Attributes:
      reason: in one or two words: "missing", "undecodable", "empty" or "not finite".
    """

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


def load_audio(
    source: AudioSource, *, start_seconds: float = 0.0, end_seconds: float | None = None, channels: Channels = "first"
) -> np.ndarray:
    """Decodes audio, makes it one channel and resamples it with soxr.

    Neither cut nor padded. 16-bit audio at 16 kHz comes back bit for bit.

    Args:
      source: the path of a file; the bytes of one; or samples with their rate in Hz, as [samples] or
        [samples, channels], integers of any width or floats in -1 to 1.
      start, end: seconds between which it is read; None reads to the end.
      channels: "first", as the original SALMONN takes it, or the "mean" of all.

    Returns:
      int16[samples] at 16 kHz, at least one sample.

    Raises:
      AudioError: the file is missing, empty, or no audio that can be decoded; there are no samples; a sample is not a
        number.
    """
    if isinstance(source, tuple):
        name, (samples, rate) = "the audio", source
        samples = np.asarray(samples)
        samples = samples[slice(*_sample_range(start_seconds, end_seconds, rate))]
    else:
        name = "the audio" if isinstance(source, bytes) else os.fspath(source)
        samples, rate = _decode(source, name, start_seconds, end_seconds)
    if rate <= 0:
        raise AudioError("undecodable", f"{name} has a sample rate of {rate} Hz")
    if samples.size == 0:
        raise AudioError("empty", f"{name} holds no samples{f' from {start_seconds:g} s on' if start_seconds else ''}")
    if samples.ndim > 1 and (channels == "first" or samples.shape[1] == 1):
        samples = samples[:, 0]
    if samples.ndim == 1 and samples.dtype == np.int16 and rate == SAMPLE_RATE:
        return np.ascontiguousarray(samples)
    samples = _as_float32(samples, name)
    return float_to_pcm(_resample(samples if samples.ndim == 1 else samples.mean(axis=1), rate))


def encode_flac(samples: np.ndarray) -> bytes:
    """Encodes int16[samples] at 16 kHz, one channel, as a FLAC file of 16 bits. The encoding is lossless."""
    file = io.BytesIO()
    soundfile.write(file, samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def decode_flac(data: bytes) -> tuple[np.ndarray, int] | None:
    """int16[samples, channels] of a FLAC file of 16 bits, and its rate in Hz. None for any other, and for a broken one.

    Takes two thirds of the time that libsndfile does, and lets go of the interpreter's lock, so threads work at once.
    """
    # STREAMINFO comes first: 20 bits of rate, 3 of channels, 5 of bits a sample.
    if len(data) < 42 or (data[20] & 1) << 4 | data[21] >> 4 != 16 - 1:
        return None
    try:
        info = miniaudio.flac_get_info(data)
        samples = np.frombuffer(miniaudio.flac_read_s16(data).samples, np.int16).reshape(-1, info.nchannels)
    except (miniaudio.DecodeError, ZeroDivisionError):  # the latter for a rate of 0
        return None
    # Frames that are broken are left out without a word.
    return (samples, info.sample_rate) if 0 < len(samples) == info.num_frames else None


def float_to_pcm(samples: np.ndarray) -> np.ndarray:
    """float[samples] in -1 to 1 -> int16[samples]; what is louder is clipped."""
    return np.clip(np.round(samples * _FULL_SCALE), -_FULL_SCALE, _FULL_SCALE - 1).astype(np.int16)


def pcm_to_float(samples: np.ndarray) -> np.ndarray:
    """int16[samples] -> float32[samples] in -1 to 1."""
    return samples.astype(np.float32) / np.float32(_FULL_SCALE)


def _as_float32(samples: np.ndarray, name: str) -> np.ndarray:
    if np.issubdtype(samples.dtype, np.floating):
        if not np.all(np.isfinite(samples)):
            raise AudioError("not finite", f"{name} holds samples that are not finite numbers")
        return samples.astype(np.float32)
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128) / 128
    if not np.issubdtype(samples.dtype, np.signedinteger):
        raise AudioError("undecodable", f"{name} holds samples of type {samples.dtype}; give integers or floats")
    return (samples / -float(np.iinfo(samples.dtype).min)).astype(np.float32)


def _resample(samples: np.ndarray, rate: int) -> np.ndarray:
    if rate == SAMPLE_RATE:
        return samples
    return librosa.resample(samples, orig_sr=rate, target_sr=SAMPLE_RATE, res_type="soxr_hq")


def _sample_range(start: float, end: float | None, rate: int) -> tuple[int, int | None]:
    """Seconds as samples."""
    return round(start * rate), None if end is None else round(end * rate)


def _decode(source: str | os.PathLike | bytes, name: str, start: float, end: float | None) -> tuple[np.ndarray, int]:
    """Returns [samples, channels] of the type the codec gives, and the rate."""
    if isinstance(source, bytes):
        size, opened = len(source), io.BytesIO(source)
    else:
        path = pathlib.Path(source)
        if not path.is_file():
            raise AudioError("missing", f"no audio file {name}")
        size, opened = path.stat().st_size, path
    if size == 0:
        raise AudioError("empty", f"{name} is empty")
    if isinstance(opened, pathlib.Path) and opened.suffix.lower() in _HEADERLESS:
        return _decode_with_av(source, name, start, end)
    if start == 0 and end is None:
        found = decode_flac(_read_flac(source))
        if found is not None:
            return found
    try:
        with soundfile.SoundFile(opened) as file:
            exact = file.subtype == "PCM_16"
            first, last = _sample_range(start, end, file.samplerate)
            file.seek(min(first, file.frames))
            frames = -1 if last is None else max(0, min(last, file.frames) - file.tell())
            return file.read(frames, dtype="int16" if exact else "float32", always_2d=True), file.samplerate
    except (soundfile.LibsndfileError, TypeError, ValueError):  # the others: it takes noise for a stream
        return _decode_with_av(source, name, start, end)


def _read_flac(source: str | os.PathLike | bytes) -> bytes:
    """The bytes of a FLAC file; of any other, and of one that cannot be read, which others will tell, none."""
    data = source if isinstance(source, bytes) else b""
    if not data and os.fspath(source).lower().endswith(".flac"):
        with contextlib.suppress(OSError):
            data = pathlib.Path(source).read_bytes()
    return data if data.startswith(b"fLaC") else b""


def _decode_with_av(
    source: str | os.PathLike | bytes, name: str, start: float, end: float | None
) -> tuple[np.ndarray, int]:
    """For what libsndfile cannot read, such as G.722, AAC or the sound of a video."""
    try:
        import av
    except ImportError:
        raise AudioError(
            "undecodable",
            f"{name} cannot be decoded; if it is audio, more formats come with: pip install 'salmonn-jax[minicorpus]'",
        ) from None
    try:
        with av.open(io.BytesIO(source) if isinstance(source, bytes) else os.fspath(source)) as container:
            if not container.streams.audio:
                raise AudioError("undecodable", f"{name} has no sound track")
            rate = container.streams.audio[0].rate
            first = []  # channel, of each frame; a packed frame has its channels in turns
            for frame in container.decode(audio=0):
                row = frame.to_ndarray()[0]
                first.append(row if frame.format.is_planar else row[:: frame.layout.nb_channels])
    except (av.FFmpegError, ValueError) as error:
        raise AudioError("undecodable", f"{name} is not audio that can be decoded: {_first_line(error)}") from None
    samples = np.concatenate(first)[:, None] if first else np.zeros((0, 1), np.int16)
    return samples[slice(*_sample_range(start, end, rate))], rate


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__

"""Any audio file, upload or array to what the model hears: 16-bit samples at 16 kHz, one channel."""

from __future__ import annotations

import io
import os
import pathlib

import librosa
import numpy as np
import soundfile

from salmonn_jax.config import SAMPLE_RATE
from salmonn_jax.errors import UserError

# What an int16 sample of full scale is worth; 2**15, so that int16 -> float -> int16 is exact.
_FULL_SCALE = 32768.0

# Known by their names only; libsndfile takes some of them for broken MP3.
_HEADERLESS = (".g722", ".gsm")

Source = str | os.PathLike | bytes | tuple[np.ndarray, int]


def load_audio(source: Source) -> np.ndarray:
    """Decodes audio, takes the first channel (as the original SALMONN does) and resamples it.

    Neither cut nor padded. 16-bit audio at 16 kHz comes back bit for bit.

    Args:
      source: the path of a file; the bytes of one; or samples with their rate in Hz, as [samples] or
        [samples, channels], integers of any width or floats in -1 to 1.

    Returns:
      int16[samples] at 16 kHz, at least one sample.

    Raises:
      UserError: the file is missing, empty, or no audio that can be decoded; there are no samples; a sample is not a
        number.
    """
    if isinstance(source, tuple):
        name, (samples, rate) = "the audio", source
        samples = np.asarray(samples)
    else:
        name = "the audio" if isinstance(source, bytes) else os.fspath(source)
        samples, rate = _decode(source, name)
    if samples.ndim > 1:
        samples = samples[:, 0]
    if samples.size == 0:
        raise UserError(f"{name} holds no samples")
    if rate <= 0:
        raise UserError(f"{name} has a sample rate of {rate} Hz")
    if samples.dtype == np.int16 and rate == SAMPLE_RATE:
        return np.ascontiguousarray(samples)
    return to_pcm(_resample(_to_float(samples, name), rate))


def to_pcm(samples: np.ndarray) -> np.ndarray:
    """float[samples] in -1 to 1 -> int16[samples]; what is louder is clipped."""
    return np.clip(np.round(samples * _FULL_SCALE), -_FULL_SCALE, _FULL_SCALE - 1).astype(np.int16)


def to_float(samples: np.ndarray) -> np.ndarray:
    """int16[samples] -> float32[samples] in -1 to 1."""
    return samples.astype(np.float32) / np.float32(_FULL_SCALE)


def _to_float(samples: np.ndarray, name: str) -> np.ndarray:
    if np.issubdtype(samples.dtype, np.floating):
        if not np.all(np.isfinite(samples)):
            raise UserError(f"{name} holds samples that are not finite numbers")
        return samples.astype(np.float32)
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128) / 128
    if not np.issubdtype(samples.dtype, np.signedinteger):
        raise UserError(f"{name} holds samples of type {samples.dtype}; give integers or floats")
    return (samples / -float(np.iinfo(samples.dtype).min)).astype(np.float32)


def _resample(samples: np.ndarray, rate: int) -> np.ndarray:
    if rate == SAMPLE_RATE:
        return samples
    return librosa.resample(samples, orig_sr=rate, target_sr=SAMPLE_RATE, res_type="soxr_hq")


def _decode(source: str | os.PathLike | bytes, name: str) -> tuple[np.ndarray, int]:
    """Returns [samples, channels] of the type the codec gives, and the rate."""
    if isinstance(source, bytes):
        size, opened = len(source), io.BytesIO(source)
    else:
        path = pathlib.Path(source)
        if not path.is_file():
            raise UserError(f"no audio file {name}")
        size, opened = path.stat().st_size, path
    if size == 0:
        raise UserError(f"{name} is empty")
    if isinstance(opened, pathlib.Path) and opened.suffix.lower() in _HEADERLESS:
        return _decode_with_av(source, name)
    try:
        with soundfile.SoundFile(opened) as file:
            exact = file.subtype == "PCM_16"
            return file.read(dtype="int16" if exact else "float32", always_2d=True), file.samplerate
    except (soundfile.LibsndfileError, TypeError, ValueError):  # the others: it takes noise for a stream
        return _decode_with_av(source, name)


def _decode_with_av(source: str | os.PathLike | bytes, name: str) -> tuple[np.ndarray, int]:
    """For what libsndfile cannot read, such as G.722, AAC or the sound of a video."""
    try:
        import av
    except ImportError:
        raise UserError(
            f"{name} cannot be decoded; if it is audio, more formats come with: pip install 'salmonn-jax[minicorpus]'"
        ) from None
    try:
        with av.open(io.BytesIO(source) if isinstance(source, bytes) else os.fspath(source)) as container:
            if not container.streams.audio:
                raise UserError(f"{name} has no sound track")
            rate = container.streams.audio[0].rate
            first = []  # channel, of each frame; a packed frame has its channels in turns
            for frame in container.decode(audio=0):
                row = frame.to_ndarray()[0]
                first.append(row if frame.format.is_planar else row[:: frame.layout.nb_channels])
    except (av.FFmpegError, ValueError) as error:
        raise UserError(f"{name} is not audio that can be decoded: {_first_line(error)}") from None
    return np.concatenate(first)[:, None] if first else np.zeros((0, 1), np.int16), rate


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__

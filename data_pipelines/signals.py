"""Signal processing on clips, for augmentation and for the mini-corpus.

Audio is float32[samples] in -1 to 1 at 16 kHz, one channel.
"""

from __future__ import annotations

import numpy as np
import soxr

from salmonn_jax.config import SAMPLE_RATE

_FRAME_SAMPLES = SAMPLE_RATE // 50  # 20 ms


def num_samples(seconds: float) -> int:
    """Converts seconds to a number of samples."""
    return round(seconds * SAMPLE_RATE)


def rms(audio: np.ndarray) -> float:
    """Returns the root mean square of the samples; 0 if there are none."""
    return float(np.sqrt(np.mean(np.square(audio)))) if len(audio) else 0.0


def active_rms(audio: np.ndarray) -> float:
    """Returns the root mean square of the active parts: the 20 ms frames within 20 dB of the loudest frame."""
    power = _frame_power(audio)
    return float(np.sqrt(power[power >= 0.01 * power.max()].mean()))


def trim(audio: np.ndarray, *, below: float = 0.03) -> np.ndarray:
    """Removes silence from both ends, except for a margin of one frame.

    A 20 ms frame is silent if its RMS is at most `below` times that of the loudest frame.
    """
    frame_rms = np.sqrt(_frame_power(audio))
    (active,) = np.nonzero(frame_rms > below * frame_rms.max())
    if not len(active):
        return audio
    return audio[max(0, active[0] - 1) * _FRAME_SAMPLES : (active[-1] + 2) * _FRAME_SAMPLES]


def change_speed(audio: np.ndarray, factor: float) -> np.ndarray:
    """Resamples the clip so that it plays faster, and higher in pitch, by `factor`."""
    return soxr.resample(audio, SAMPLE_RATE * factor, SAMPLE_RATE, quality="MQ").astype(np.float32)


def set_loudness(audio: np.ndarray, decibels: float) -> np.ndarray:
    """Scales the clip to an active RMS of `decibels` dB of full scale, or less if its peaks would clip."""
    level = max(active_rms(audio), 1e-6)
    scale = min(10 ** (decibels / 20) / level, 0.99 / max(float(np.abs(audio).max()), 1e-6))
    return (audio * np.float32(scale)).astype(np.float32)


def white_noise(length: int, rng: np.random.Generator) -> np.ndarray:
    """Returns white noise with an RMS of 1, float32[length]."""
    return rng.standard_normal(length, dtype=np.float32)


def add_noise(audio: np.ndarray, rng: np.random.Generator, snr_db: float) -> np.ndarray:
    """Adds white noise to a clip.

    Args:
      audio: the clip.
      rng: source of the noise.
      snr_db: active RMS of the clip over the RMS of the noise, in dB.
    """
    level = active_rms(audio) * 10 ** (-snr_db / 20)
    return audio + white_noise(len(audio), rng) * np.float32(level)


def pad(audio: np.ndarray, before: int, length: int) -> np.ndarray:
    """Adds silence at both ends of a clip.

    Args:
      audio: the clip.
      before: number of zero samples in front of the clip.
      length: number of samples of the result. A longer result is not cut.
    """
    return np.pad(audio, (before, max(0, length - before - len(audio))))


def fade(audio: np.ndarray, seconds: float = 0.01) -> np.ndarray:
    """Fades the clip in and out, to avoid clicks at cuts."""
    count = min(num_samples(seconds), len(audio) // 2)
    ramp = np.linspace(0, 1, count, dtype=np.float32)
    audio = audio.copy()
    audio[:count] *= ramp
    audio[len(audio) - count :] *= ramp[::-1]
    return audio


def repeat_to(audio: np.ndarray, length: int, gap: int) -> np.ndarray:
    """Repeats a clip up to a given length.

    Args:
      audio: the clip.
      length: number of samples of the result.
      gap: number of zero samples between repetitions.
    """
    period = pad(audio, 0, len(audio) + gap)
    return np.tile(period, -(-length // len(period)))[:length]


def _frame_power(audio: np.ndarray) -> np.ndarray:
    """Returns the mean square of each 20 ms frame. The last frame may be shorter."""
    starts = np.arange(0, max(len(audio), 1), _FRAME_SAMPLES)
    sums = np.add.reduceat(np.square(audio, dtype=np.float64), starts) if len(audio) else np.zeros(1)
    return sums / np.diff(np.append(starts, max(len(audio), 1)))

"""Small pieces of signal work on clips. float32[samples] in -1 to 1 at 16 kHz, unless it says otherwise."""

from __future__ import annotations

import numpy as np
import soxr

from salmonn_jax.config import SAMPLE_RATE

_FRAME = SAMPLE_RATE // 50


def num_samples(seconds: float) -> int:
    """Seconds in samples."""
    return round(seconds * SAMPLE_RATE)


def rms(audio: np.ndarray) -> float:
    """The root of the mean square; 0 for no samples."""
    return float(np.sqrt(np.mean(np.square(audio)))) if len(audio) else 0.0


def active_rms(audio: np.ndarray) -> float:
    """The loudness of the parts that sound: the root of the mean square over frames within 20 dB of the loudest."""
    power = _frame_power(audio)
    return float(np.sqrt(power[power >= 0.01 * power.max()].mean()))


def trim(audio: np.ndarray, *, below: float = 0.03) -> np.ndarray:
    """Cuts silence from both ends: 20 ms frames fainter than `below` times the loudest, less one frame's margin."""
    loud = np.sqrt(_frame_power(audio))
    (found,) = np.nonzero(loud > below * loud.max())
    if not len(found):
        return audio
    return audio[max(0, found[0] - 1) * _FRAME : (found[-1] + 2) * _FRAME]


def change_speed(audio: np.ndarray, factor: float) -> np.ndarray:
    """Plays faster (and higher) by `factor`."""
    return soxr.resample(audio, SAMPLE_RATE * factor, SAMPLE_RATE, quality="MQ").astype(np.float32)


def set_loudness(audio: np.ndarray, decibels: float) -> np.ndarray:
    """Scales to an active loudness in dB of full scale, or as near as the peaks allow."""
    level = max(active_rms(audio), 1e-6)
    scale = min(10 ** (decibels / 20) / level, 0.99 / max(float(np.abs(audio).max()), 1e-6))
    return (audio * np.float32(scale)).astype(np.float32)


def white_noise(length: int, rng: np.random.Generator) -> np.ndarray:
    """Returns white noise with an RMS of 1, float32[length]."""
    return rng.standard_normal(length, dtype=np.float32)


def add_noise(audio: np.ndarray, rng: np.random.Generator, snr_db: float) -> np.ndarray:
    """Adds white noise that many dB below the active loudness."""
    level = active_rms(audio) * 10 ** (-snr_db / 20)
    return audio + white_noise(len(audio), rng) * np.float32(level)


def pad(audio: np.ndarray, before: int, length: int) -> np.ndarray:
    """Puts silence of `before` samples in front, then silence behind up to `length`; what is longer stays."""
    return np.pad(audio, (before, max(0, length - before - len(audio))))


def fade(audio: np.ndarray, seconds: float = 0.01) -> np.ndarray:
    """Fades both ends, so that a cut does not click."""
    count = min(num_samples(seconds), len(audio) // 2)
    ramp = np.linspace(0, 1, count, dtype=np.float32)
    audio = audio.copy()
    audio[:count] *= ramp
    audio[len(audio) - count :] *= ramp[::-1]
    return audio


def repeat_to(audio: np.ndarray, length: int, gap: int) -> np.ndarray:
    """Repeats a sound, with `gap` samples of silence between, to `length` samples."""
    once = pad(audio, 0, len(audio) + gap)
    return np.tile(once, -(-length // len(once)))[:length]


def _frame_power(audio: np.ndarray) -> np.ndarray:
    """The mean square of 20 ms frames; the last one may be shorter."""
    starts = np.arange(0, max(len(audio), 1), _FRAME)
    sums = np.add.reduceat(np.square(audio, dtype=np.float64), starts) if len(audio) else np.zeros(1)
    return sums / np.diff(np.append(starts, max(len(audio), 1)))

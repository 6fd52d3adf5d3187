"""Small pieces of signal work on clips. float32[samples] in -1 to 1 at 16 kHz, unless it says otherwise."""

from __future__ import annotations

import numpy as np
import soxr

from salmonn_jax.config import SAMPLE_RATE

_FRAME = SAMPLE_RATE // 50


def samples(seconds: float) -> int:
    """Seconds in samples."""
    return round(seconds * SAMPLE_RATE)


def rms(x: np.ndarray) -> float:
    """The root of the mean square; 0 for no samples."""
    return float(np.sqrt(np.mean(np.square(x)))) if len(x) else 0.0


def active_rms(x: np.ndarray) -> float:
    """The loudness of the parts that sound: the root of the mean square over frames within 20 dB of the loudest."""
    power = _frame_power(x)
    return float(np.sqrt(power[power >= 0.01 * power.max()].mean()))


def trim(x: np.ndarray, *, below: float = 0.03) -> np.ndarray:
    """Cuts silence from both ends: 20 ms frames fainter than `below` times the loudest, less one frame's margin."""
    loud = np.sqrt(_frame_power(x))
    (found,) = np.nonzero(loud > below * loud.max())
    if not len(found):
        return x
    return x[max(0, found[0] - 1) * _FRAME : (found[-1] + 2) * _FRAME]


def change_speed(x: np.ndarray, factor: float) -> np.ndarray:
    """Plays faster (and higher) by `factor`."""
    return soxr.resample(x, SAMPLE_RATE * factor, SAMPLE_RATE, quality="MQ").astype(np.float32)


def set_loudness(x: np.ndarray, decibels: float) -> np.ndarray:
    """Scales to an active loudness in dB of full scale, or as near as the peaks allow."""
    level = max(active_rms(x), 1e-6)
    scale = min(10 ** (decibels / 20) / level, 0.99 / max(float(np.abs(x).max()), 1e-6))
    return (x * np.float32(scale)).astype(np.float32)


def add_noise(x: np.ndarray, rng: np.random.Generator, decibels_below: float) -> np.ndarray:
    """Adds white noise that many dB below the active loudness."""
    level = active_rms(x) * 10 ** (-decibels_below / 20)
    return x + rng.standard_normal(len(x), dtype=np.float32) * np.float32(level)


def pad(x: np.ndarray, before: int, length: int) -> np.ndarray:
    """Puts silence of `before` samples in front, then silence behind up to `length`; what is longer stays."""
    return np.pad(x, (before, max(0, length - before - len(x))))


def fade(x: np.ndarray, seconds: float = 0.01) -> np.ndarray:
    """Fades both ends, so that a cut does not click."""
    count = min(samples(seconds), len(x) // 2)
    ramp = np.linspace(0, 1, count, dtype=np.float32)
    x = x.copy()
    x[:count] *= ramp
    x[len(x) - count :] *= ramp[::-1]
    return x


def repeat_to(x: np.ndarray, length: int, gap: int) -> np.ndarray:
    """Repeats a sound, with `gap` samples of silence between, to `length` samples."""
    once = pad(x, 0, len(x) + gap)
    return np.tile(once, -(-length // len(once)))[:length]


def _frame_power(x: np.ndarray) -> np.ndarray:
    """The mean square of 20 ms frames; the last one may be shorter."""
    starts = np.arange(0, max(len(x), 1), _FRAME)
    sums = np.add.reduceat(np.square(x, dtype=np.float64), starts) if len(x) else np.zeros(1)
    return sums / np.diff(np.append(starts, max(len(x), 1)))

"""Augmentation of clips, as grain transforms: speed, loudness, noise. Off unless the configuration asks for it."""

from __future__ import annotations

import dataclasses

import grain
import numpy as np
import soxr

from data_pipelines.examples import Example
from salmonn_jax.audio_files import to_float, to_pcm
from salmonn_jax.config import SAMPLE_RATE, DataConfig


@dataclasses.dataclass(frozen=True)
class Speed(grain.transforms.RandomMap):
    """Plays a clip faster and higher, or slower and lower, by up to `most` (0.1: 0.9 to 1.1 times)."""

    most: float

    def random_map(self, example: Example, rng: np.random.Generator) -> Example:
        rate = SAMPLE_RATE * rng.uniform(1 - self.most, 1 + self.most)
        return _with(example, soxr.resample(to_float(example.audio), rate, SAMPLE_RATE, quality="MQ"))


@dataclasses.dataclass(frozen=True)
class Gain(grain.transforms.RandomMap):
    """Makes a clip louder or softer by up to `most` dB; what is louder than full scale is clipped."""

    most: float

    def random_map(self, example: Example, rng: np.random.Generator) -> Example:
        return _with(example, to_float(example.audio) * 10 ** (rng.uniform(-self.most, self.most) / 20))


@dataclasses.dataclass(frozen=True)
class Noise(grain.transforms.RandomMap):
    """Adds white noise, 10 to 30 dB below the clip, to a `share` of the clips."""

    share: float

    def random_map(self, example: Example, rng: np.random.Generator) -> Example:
        if rng.uniform() >= self.share:
            return example
        samples = to_float(example.audio)
        loudness = np.sqrt(np.mean(np.square(samples))) * 10 ** (-rng.uniform(10, 30) / 20)
        return _with(example, samples + loudness * rng.standard_normal(len(samples), dtype=np.float32))


def augmentation(data: DataConfig) -> tuple[grain.transforms.RandomMap, ...]:
    """What a configuration asks for, in the order in which it is applied."""
    wanted = (Speed, data.speed), (Gain, data.gain), (Noise, data.noise)
    return tuple(make(amount) for make, amount in wanted if amount)


def _with(example: Example, samples: np.ndarray) -> Example:
    return dataclasses.replace(example, audio=to_pcm(samples))

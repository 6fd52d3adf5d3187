"""Augmentation of clips with speed, gain and noise, as grain transforms. Off by default; `SampleReader` applies it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import grain
import numpy as np

from data_pipelines import signals
from data_pipelines.examples import BadExample, Example
from salmonn_jax.audio.files import float_to_pcm, pcm_to_float
from salmonn_jax.config import DataConfig
from salmonn_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class SpeedPerturbation(grain.transforms.RandomMap):
    """grain transform that changes speed and pitch by a random factor of 1 - `max_change` to 1 + `max_change`."""

    max_change: float

    def random_map(self, example: Example, rng: np.random.Generator) -> Example:
        factor = rng.uniform(1 - self.max_change, 1 + self.max_change)
        return _replace_audio(example, signals.change_speed(pcm_to_float(example.audio), factor))


@dataclasses.dataclass(frozen=True)
class Gain(grain.transforms.RandomMap):
    """grain transform that changes the level by a random gain of -`max_db` to `max_db` dB.

    Samples beyond full scale are clipped.
    """

    max_db: float

    def random_map(self, example: Example, rng: np.random.Generator) -> Example:
        return _replace_audio(
            example, pcm_to_float(example.audio) * 10 ** (rng.uniform(-self.max_db, self.max_db) / 20)
        )


@dataclasses.dataclass(frozen=True)
class AddNoise(grain.transforms.RandomMap):
    """grain transform that adds noise with an RMS 10 to 30 dB below that of the clip.

    `random_map` raises BadExample if the chosen recording cannot be used.

    Attributes:
      probability: probability that a clip gets noise.
      recordings: examples with audio from which the noise is cut; without them the noise is white.
    """

    probability: float
    recordings: Sequence[Example] = ()

    def random_map(self, example: Example, rng: np.random.Generator) -> Example:
        if rng.uniform() >= self.probability:
            return example
        samples = pcm_to_float(example.audio)
        target_rms = signals.rms(samples) * 10 ** (-rng.uniform(10, 30) / 20)
        noise = self._cut_recording(len(samples), rng) if self.recordings else signals.white_noise(len(samples), rng)
        # If the noise is cut from a pause of a recording, it is silent and must not be amplified without limit.
        return _replace_audio(example, samples + noise * (target_rms / max(signals.rms(noise), 1e-9)))

    def _cut_recording(self, length: int, rng: np.random.Generator) -> np.ndarray:
        """Returns `length` samples of a random recording from a random position, wrapping around at its end."""
        index = int(rng.integers(len(self.recordings)))
        try:
            audio = self.recordings[index].audio
        except BadExample as bad:
            raise BadExample("noise", f"recording {index}, {bad.reason}: {bad.detail}") from None
        if audio is None:
            raise BadExample("noise", f"recording {index} has no audio")
        start = int(rng.integers(len(audio)))
        return pcm_to_float(np.take(audio, np.arange(start, start + length), mode="wrap"))


def augmentations(
    data: DataConfig, recordings: Sequence[Example] | None = None
) -> tuple[grain.transforms.RandomMap, ...]:
    """Returns the augmentations of a configuration, in the order in which they are applied.

    Args:
      data: the configuration.
      recordings: examples of `data.noise_source`; None without a noise source.

    Raises:
      UserError: there is a noise source, and it is empty or `data.noise` is 0.
    """
    if recordings is not None and not data.noise:
        raise UserError("data.noise_source has no effect with data.noise=0; set data.noise to the share of noisy clips")
    if recordings is not None and not len(recordings):
        raise UserError(
            f"data.noise_source={data.noise_source}: the source has no recordings; choose another one, or none"
        )
    transforms = (
        (data.speed, SpeedPerturbation(data.speed)),
        (data.gain, Gain(data.gain)),
        (data.noise, AddNoise(data.noise, recordings or ())),
    )
    return tuple(transform for amount, transform in transforms if amount)


def _replace_audio(example: Example, samples: np.ndarray) -> Example:
    return dataclasses.replace(example, audio=float_to_pcm(samples))

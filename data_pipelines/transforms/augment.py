"""Augmentation of clips, as grain transforms: speed, loudness, noise. Off unless the configuration asks for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import grain
import numpy as np

from data_pipelines import signals
from data_pipelines.examples import BadExample, Example
from salmonn_jax.audio_files import float_to_pcm, pcm_to_float
from salmonn_jax.config import DataConfig
from salmonn_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class SpeedPerturbation(grain.transforms.RandomMap):
    """Plays a clip faster and higher, or slower and lower, by up to `most` (0.1: 0.9 to 1.1 times)."""

    max_change: float

    def random_map(self, example: Example, rng: np.random.Generator) -> Example:
        factor = rng.uniform(1 - self.max_change, 1 + self.max_change)
        return _with(example, signals.change_speed(pcm_to_float(example.audio), factor))


@dataclasses.dataclass(frozen=True)
class Gain(grain.transforms.RandomMap):
    """Makes a clip louder or softer by up to `most` dB; what is louder than full scale is clipped."""

    max_db: float

    def random_map(self, example: Example, rng: np.random.Generator) -> Example:
        return _with(example, pcm_to_float(example.audio) * 10 ** (rng.uniform(-self.max_db, self.max_db) / 20))


@dataclasses.dataclass(frozen=True)
class AddNoise(grain.transforms.RandomMap):
    """Adds noise, 10 to 30 dB below the clip, to a `share` of the clips: cut from `recordings`, or white without any.

    Raises BadExample from `random_map` if the recording that was drawn cannot be used.
    """

    probability: float
    recordings: Sequence[Example] = ()

    def random_map(self, example: Example, rng: np.random.Generator) -> Example:
        if rng.uniform() >= self.probability:
            return example
        samples = pcm_to_float(example.audio)
        loudness = signals.rms(samples) * 10 ** (-rng.uniform(10, 30) / 20)
        noise = self._recorded(len(samples), rng) if self.recordings else signals.white_noise(len(samples), rng)
        # A cut from a pause of a recording is silent, and stays so.
        return _with(example, samples + noise * (loudness / max(signals.rms(noise), 1e-9)))

    def _recorded(self, length: int, rng: np.random.Generator) -> np.ndarray:
        """A cut of a recording, which begins anywhere and starts over where the recording ends."""
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
    """What a configuration asks for, in the order in which it is applied.

    Args:
      data: the configuration.
      recordings: of `data.noise_source`, if it names one.

    Raises:
      UserError: there are no recordings, or they would never be heard.
    """
    if recordings is not None and not data.noise:
        raise UserError("data.noise_source is never heard with data.noise=0; set the share of clips that get noise")
    if recordings is not None and not len(recordings):
        raise UserError(f"data.noise_source={data.noise_source} has no recordings; name another source, or none")
    wanted = (
        (data.speed, SpeedPerturbation(data.speed)),
        (data.gain, Gain(data.gain)),
        (data.noise, AddNoise(data.noise, recordings or ())),
    )
    return tuple(transform for amount, transform in wanted if amount)


def _with(example: Example, samples: np.ndarray) -> Example:
    return dataclasses.replace(example, audio=float_to_pcm(samples))

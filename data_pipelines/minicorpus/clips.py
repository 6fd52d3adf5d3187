"""Common parts of the sources of the mini-corpus: sizes, seeds, prompts, and augmentation of clips."""

from __future__ import annotations

import functools
import pathlib
import zlib
from typing import NamedTuple

import numpy as np

from data_pipelines import signals
from data_pipelines.examples import Example
from data_pipelines.minicorpus.recordings import MAX_CLIP_SECONDS
from data_pipelines.transforms.prompt_templates import PromptTemplates
from salmonn_jax.audio.files import float_to_pcm

VERSION = "1.2.0"  # version of the generator; a corpus of another version is rebuilt
SEED = 1
SHORTEST_SECONDS = 0.3
# Filler in text-only examples. It stands for an audio token without a new word, like the blank of CTC.
FILLER = "…"

# Number of examples by source, split and task. A source without enough recordings has fewer.
SIZES = {
    "numbers": {
        "train": {"numbers": 2700, "numbers_to_english": 900},
        "test": {"numbers": 150, "numbers_to_english": 50},
        "unheard": {"numbers": 60},
    },
    "prompts": {
        "train": {"transcribe": 900, "translate": 300},
        "test": {"transcribe": 60, "translate": 20},
        "unheard": {"transcribe": 40},
    },
    "sounds": {"train": {"sound": 1400}, "test": {"sound": 132}, "unheard": {"sound": 40}},
    "music": {
        "train": {"instrument": 960, "metre": 320, "tune_type": 320},
        "test": {"instrument": 132, "metre": 40, "tune_type": 40},
        "unheard": {"instrument": 36},
    },
    "speech_over_sound": {"train": {"speech_over_sound": 900}, "test": {"speech_over_sound": 100}},
    # Mostly numbers, because learning to repeat several words in order takes the longest.
    "reading": {
        "train": {
            "numbers": 12000,
            "numbers_to_english": 2200,
            "speech_over_sound": 1800,
            "sound": 500,
            "instrument": 500,
            "transcribe": 500,
        },
        "test": {
            "numbers": 20,
            "numbers_to_english": 6,
            "speech_over_sound": 10,
            "sound": 6,
            "instrument": 4,
            "transcribe": 4,
        },
    },
}

# Notes for reports on what each split holds out from training, by the origin of the recordings.
_SPEECH_NOTES = (
    "numbers, test: digit strings that are not in training (one in ten of those with two digits or more), spoken by "
    "the voices of training. unheard: other voices.",
    "prompts, test: phrases that are not in training in any language, spoken by the voices of training. unheard: other "
    "voices and other phrases.",
    "speech_over_sound, test: the held-out digit strings of numbers, over new cuts of the sounds of training.",
)
NOTES = {
    "recorded": (
        *_SPEECH_NOTES,
        "sounds, test: new cuts of the recordings of training. unheard: other recordings of the same classes.",
        "music, test: tunes that are not in training, rendered with the instruments of training. unheard: recordings "
        "of real instruments.",
    ),
    "synthesised": (
        "There are no recordings, because there was no apt: eSpeak NG speaks, and the sounds are synthesised.",
        *_SPEECH_NOTES,
        "sounds, test: new cuts of the sounds of training. unheard: other sounds of the same classes.",
        "music, test: tunes that are not in training, rendered with the instruments of training.",
    ),
}


class GeneratedExample(NamedTuple):
    """An example with the names of the voice and the recordings it was made from, for the statistics."""

    example: Example
    voice: str
    recordings: tuple[str, ...]


class ExampleKey(NamedTuple):
    """Key of a generated example. It determines the id and the random numbers of the example."""

    source: str
    split: str
    task: str
    index: int

    @property
    def rng(self) -> np.random.Generator:
        """Returns a new random generator that depends only on this key."""
        return np.random.default_rng([SEED, zlib.crc32(f"{self.source}/{self.split}/{self.task}".encode()), self.index])

    def make_example(self, audio: np.ndarray | None, prompt: str, answer: str, transcript: str) -> Example:
        """Returns the example with this key.

        Args:
          audio: int16[samples] at 16 kHz, or None for a text-only example.
          prompt: complete prompt.
          answer: text that the model should generate.
          transcript: words spoken in the clip, or "".
        """
        return Example(
            id=f"{self.source}-{self.split}-{self.task}-{self.index:04}",
            audio=audio,
            prompt=prompt,
            answer=answer,
            task=self.task,
            source=self.source,
            transcript=transcript,
        )


@functools.cache
def prompt_templates() -> PromptTemplates:
    """Returns the prompt templates of the tasks of the mini-corpus."""
    return PromptTemplates.load(str(pathlib.Path(__file__).with_name("prompt_templates.json")))


def make_prompt(task: str, split: str, rng: np.random.Generator) -> str:
    """Returns a prompt about a clip.

    Args:
      task: name of the task.
      split: "train" for a random template of the task; other splits get its first template.
      rng: source of the random numbers.
    """
    templates = prompt_templates()
    index = int(rng.integers(len(templates.by_task[task]))) if split == "train" else 0
    return templates.render(task, "", index, has_audio=True)


def augment_clip(audio: np.ndarray, rng: np.random.Generator, *, max_silence_seconds: float = 0.2) -> np.ndarray:
    """Gives a clip a random loudness, random silence at both ends, and faint noise.

    Args:
      audio: float32[samples] at 16 kHz, at most `MAX_CLIP_SECONDS` long.
      rng: source of the random numbers.
      max_silence_seconds: maximum silence before and after the clip. It is reduced if the clip would get too long.

    Returns:
      int16[samples] at 16 kHz, `SHORTEST_SECONDS` to `MAX_CLIP_SECONDS` long.
    """
    max_samples, min_samples = signals.num_samples(MAX_CLIP_SECONDS), signals.num_samples(SHORTEST_SECONDS)
    audio = signals.set_loudness(audio, rng.uniform(-26, -17))
    before = min(signals.num_samples(rng.uniform(0, max_silence_seconds)), max_samples - len(audio))
    after = min(signals.num_samples(rng.uniform(0, max_silence_seconds)), max_samples - len(audio) - before)
    audio = signals.pad(audio, before, max(before + len(audio) + after, min_samples))
    return float_to_pcm(signals.add_noise(audio, rng, rng.uniform(25, 45)))


def perturb_speed(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Plays a clip up to 8 % faster or slower."""
    return signals.change_speed(audio, rng.uniform(0.92, 1.08))

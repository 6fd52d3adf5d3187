"""What the sources of the mini-corpus share: sizes, seeds, wordings, and the making of one clip."""

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
from salmonn_jax.audio_files import float_to_pcm

VERSION = "1.2.0"  # of the recipe; a corpus of another version is built anew
SEED = 1
SHORTEST_SECONDS = 0.3
# Stands for "nothing new here" among the words of a text-only example, as blanks do among audio tokens.
FILLER = "…"

# How many examples of each task. What a source cannot make so many of is as many as there are.
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
    # Mostly numbers: repeating several words in their order is what takes long to learn.
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

# What each split does not share with training, for reports, by the origin of the recordings.
_SPEECH_NOTES = (
    "numbers, test: strings of digits never trained on (one in ten, from two digits on), said by known voices. "
    "unheard: other voices.",
    "prompts, test: phrases never trained on, in any language, said by the voices of training. unheard: other voices, "
    "other phrases.",
    "speech_over_sound, test: the strings of digits that numbers holds out, over the sounds of training cut afresh.",
)
NOTES = {
    "recorded": (
        *_SPEECH_NOTES,
        "sounds, test: the recordings of training, cut and changed afresh. unheard: other recordings of the same "
        "classes.",
        "music, test: tunes never trained on, rendered with the instruments of training. unheard: recordings of real "
        "instruments.",
    ),
    "synthesised": (
        "Nothing here was recorded, as there was no apt: eSpeak NG speaks, and the sounds are computed.",
        *_SPEECH_NOTES,
        "sounds, test: the sounds of training, cut and changed afresh. unheard: others of the same names.",
        "music, test: tunes never trained on, rendered with the instruments of training.",
    ),
}


class GeneratedExample(NamedTuple):
    """An example, and what it was made of: names for the statistics."""

    example: Example
    voice: str
    recordings: tuple[str, ...]


class ExampleKey(NamedTuple):
    """Which example is being made."""

    source: str
    split: str
    task: str
    index: int

    @property
    def rng(self) -> np.random.Generator:
        """A generator of its own for every example: one cannot disturb another."""
        return np.random.default_rng([SEED, zlib.crc32(f"{self.source}/{self.split}/{self.task}".encode()), self.index])

    def make_example(self, audio: np.ndarray | None, prompt: str, answer: str, transcript: str) -> Example:
        """The example at this place."""
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
    """Returns a prompt about a clip: from a random template in training, from the first one in other splits."""
    templates = prompt_templates()
    index = int(rng.integers(len(templates.by_task[task]))) if split == "train" else 0
    return templates.render(task, "", index, has_audio=True)


def augment_clip(audio: np.ndarray, rng: np.random.Generator, *, max_silence_seconds: float = 0.2) -> np.ndarray:
    """Gives a clip a loudness, a beginning and a faint noise of its own.

    Args:
      audio: float32[samples], at most `CLIP_SECONDS` long.
      latest: seconds of silence before it, at most; less where the clip would get too long.

    Returns:
      int16[samples], from `SHORTEST_SECONDS` to `CLIP_SECONDS` long.
    """
    longest, shortest = signals.num_samples(MAX_CLIP_SECONDS), signals.num_samples(SHORTEST_SECONDS)
    audio = signals.set_loudness(audio, rng.uniform(-26, -17))
    before = min(signals.num_samples(rng.uniform(0, max_silence_seconds)), longest - len(audio))
    after = min(signals.num_samples(rng.uniform(0, max_silence_seconds)), longest - len(audio) - before)
    audio = signals.pad(audio, before, max(before + len(audio) + after, shortest))
    return float_to_pcm(signals.add_noise(audio, rng, rng.uniform(25, 45)))


def perturb_speed(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Plays it up to 8 % faster or slower."""
    return signals.change_speed(audio, rng.uniform(0.92, 1.08))

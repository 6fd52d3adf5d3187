"""A corpus of pure tones, made in memory: what the `debug` configuration reads, on any machine and at once."""

from __future__ import annotations

import pathlib

import numpy as np

from data_pipelines.examples import Example
from data_pipelines.sentencepiece_training import train_bpe
from data_pipelines.transforms.prompt_templates import SPEECH_TAG
from salmonn_jax.config import SAMPLE_RATE
from salmonn_jax.errors import unknown_name
from salmonn_jax.prompts import AUDIO_PLACEHOLDER

SOURCES = ("tones", "words")  # the second is text only
TONES = {"low": 220.0, "middle": 660.0, "high": 1980.0}
SIZES = {"train": 60, "test": 12}
NOTES = ("Test tones are of the three kinds heard in training, with another phase and loudness.",)
PROMPT = "Which tone is this?"


class ToneSource:
    """Random access to the examples of one split of one source. Example i is a function of i alone."""

    def __init__(self, source: str, split: str):
        if source not in SOURCES:
            raise unknown_name("source of the tones", source, SOURCES)
        self._source, self._split = source, split

    def __len__(self) -> int:
        return SIZES[self._split]

    def __getitem__(self, i: int) -> Example:
        if not 0 <= i < len(self):
            raise IndexError(i)
        random = np.random.default_rng([i, list(SIZES).index(self._split)])
        name = list(TONES)[i % len(TONES)]
        audio = _tone(TONES[name], random) if self._source == "tones" else None
        prompt = f"{SPEECH_TAG} {PROMPT}"
        return Example(
            id=f"{self._source}-{self._split}-{i}",
            audio=audio,
            # The text-only source has the name of the tone where the clip would be.
            prompt=prompt if audio is not None else prompt.replace(AUDIO_PLACEHOLDER, name),
            answer=name,
            task="sound",
            source=self._source,
            transcript=name,
        )


def train_tokenizer(data_dir: pathlib.Path) -> None:
    """Writes the tokenizer, if it is not there."""
    path = data_dir / "tokenizer.model"
    if path.exists():
        return
    prompt = f"USER: {SPEECH_TAG} {PROMPT}\nASSISTANT: "
    text = [prompt.replace(AUDIO_PLACEHOLDER, name) + name for name in TONES]
    train_bpe(text, path, 64, hard_vocab_limit=False)


def _tone(hertz: float, random: np.random.Generator) -> np.ndarray:
    """int16[samples] of half a second to one second."""
    time = np.arange(int(random.uniform(0.5, 1.0) * SAMPLE_RATE)) / SAMPLE_RATE
    wave = np.sin(2 * np.pi * (hertz * time + random.uniform()))
    return (wave * random.uniform(3_000, 20_000)).astype(np.int16)

"""Corpus of pure tones, generated in memory. The `debug` configuration uses it, because it needs no files."""

from __future__ import annotations

import numpy as np

from data_pipelines.examples import Example
from data_pipelines.sentencepiece_training import train_bpe
from data_pipelines.transforms.prompt_templates import SPEECH_TAG
from salmonn_jax.config import SAMPLE_RATE
from salmonn_jax.errors import unknown_name
from salmonn_jax.paths import Path
from salmonn_jax.prompts import AUDIO_PLACEHOLDER

SOURCES = ("tones", "words")  # "words" is text only
TONES = {"low": 220.0, "middle": 660.0, "high": 1980.0}
SIZES = {"train": 60, "test": 12}
NOTES = ("Test tones have the three frequencies of training, with another phase and loudness.",)
PROMPT = "Which tone is this?"


class ToneSource:
    """Random-access sequence of the examples of one split of one source. An example depends only on its index."""

    def __init__(self, source: str, split: str):
        if source not in SOURCES:
            raise unknown_name("source of the tones", source, SOURCES)
        self._source, self._split = source, split

    def __len__(self) -> int:
        return SIZES[self._split]

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(index)
        rng = np.random.default_rng([index, list(SIZES).index(self._split)])
        name = list(TONES)[index % len(TONES)]
        audio = _tone(TONES[name], rng) if self._source == "tones" else None
        prompt = f"{SPEECH_TAG} {PROMPT}"
        return Example(
            id=f"{self._source}-{self._split}-{index}",
            audio=audio,
            # The text-only source has the name of the tone in place of the clip.
            prompt=prompt if audio is not None else prompt.replace(AUDIO_PLACEHOLDER, name),
            answer=name,
            task="sound",
            source=self._source,
            transcript=name,
        )


def train_tokenizer(data_dir: Path) -> None:
    """Trains the tokenizer of the corpus and writes it to `data_dir`, unless it exists."""
    path = data_dir / "tokenizer.model"
    if path.exists():
        return
    prompt = f"USER: {SPEECH_TAG} {PROMPT}\nASSISTANT: "
    text = [prompt.replace(AUDIO_PLACEHOLDER, name) + name for name in TONES]
    train_bpe(text, path, 64, hard_vocab_limit=False)


def _tone(hertz: float, rng: np.random.Generator) -> np.ndarray:
    """Returns a tone of 0.5 to 1 second with a random phase and loudness, int16[samples] at 16 kHz."""
    time = np.arange(int(rng.uniform(0.5, 1.0) * SAMPLE_RATE)) / SAMPLE_RATE
    wave = np.sin(2 * np.pi * (hertz * time + rng.uniform()))
    return (wave * rng.uniform(3_000, 20_000)).astype(np.int16)

"""Text that stands where audio tokens will stand, so that a language model learns to read them before it can hear.

    <Speech>…… seven… two…</Speech> Write down what is said.   ->   seven two

Audio tokens of a model trained with CTC say one word over several tokens and nothing in between. So words are written
once or several times in a row for one word, and a word that is really said twice has a filler in between.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from data_pipelines.minicorpus import labels, speech
from data_pipelines.minicorpus.clips import FILLER, ExampleKey, GeneratedExample, make_prompt
from data_pipelines.minicorpus.recordings import Recordings
from salmonn_jax.prompts import AUDIO_PLACEHOLDER

_LONGEST_PHRASE = 12  # characters: with its fillers a phrase grows to several times its tokens
_LENGTHS = (0.14, 0.2, 0.22, 0.22, 0.22)


def reading(recordings: Recordings, split: str, sizes: Mapping[str, int]) -> Iterator[GeneratedExample]:
    """Text-only examples of the tasks that the other sources ask about clips."""
    phrases = sorted(
        {
            p.text
            for p in recordings.phrases
            if p.in_training and len(p.text) <= _LONGEST_PHRASE and speech.is_test_phrase(p.id) == (split == "test")
        }
    )
    for task, count in sizes.items():
        for index in range(count):
            place = ExampleKey("reading", split, task, index)
            rng = place.rng
            read, answer = _text(recordings, split, task, phrases, rng)
            imitation = imitate_audio_tokens(read, rng)
            prompt = make_prompt(task, split, rng).replace(AUDIO_PLACEHOLDER, imitation)
            yield GeneratedExample(place.make_example(None, prompt, answer, ""), "", ())


def imitate_audio_tokens(words: list[str], rng: np.random.Generator) -> str:
    """Writes words as audio tokens would say them. Every word stands after a space, and is so one piece.

    Some texts are dense and some sparse, as clips are.
    """
    most_fillers, twice = rng.choice([0, 0, 1, 2, 3]), rng.choice([0.0, 0.3])
    text, last = "", None
    for word in words:
        fillers = int(rng.integers(most_fillers + 1))
        text += FILLER * max(fillers, int(word == last))
        text += f" {word}" * (1 + int(rng.random() < twice))
        last = word
    return text + FILLER * int(rng.integers(most_fillers + 1))


def _text(
    recordings: Recordings, split: str, task: str, phrases: list[str], rng: np.random.Generator
) -> tuple[list[str], str]:
    """Returns the words that audio tokens would say, and the answer."""
    if task == "transcribe":
        phrase = phrases[rng.integers(len(phrases))]
        return phrase.split(), phrase
    if task in ("sound", "instrument"):
        names = sorted(recordings.sounds if task == "sound" else labels.INSTRUMENTS)
        name = names[rng.integers(len(names))]
        return [name], name
    language = labels.LANGUAGES[rng.integers(len(labels.LANGUAGES))]
    lengths = speech.LENGTHS_OVER_SOUND if task == "speech_over_sound" else _LENGTHS
    digits = speech.draw_digits(rng, split, language, lengths, range(10))
    said = speech.digits_to_words(language, digits)
    if task == "numbers":
        return said.split(), said
    if task == "numbers_to_english":
        return said.split(), speech.digits_to_words("en", digits)
    names = sorted(recordings.sounds)
    name = names[rng.integers(len(names))]
    # The name of the sound may be heard anywhere among the words: it is there all the time.
    read = said.split()
    read.insert(int(rng.integers(len(read) + 1)), name)
    return read, f"{said} over {name}"

"""Generator of the text-only source `reading`, in which text imitates audio tokens.

A language model trained on it learns the tasks before it gets audio tokens:

    <Speech>…… seven… two…</Speech> Write down what is said.   ->   seven two

Audio tokens of a model trained with CTC repeat a word over several tokens, with blanks between words. The text does the
same: a word stands once or several times in a row, and a word that is spoken twice has a filler in between.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from data_pipelines.minicorpus import labels, speech
from data_pipelines.minicorpus.clips import FILLER, ExampleKey, GeneratedExample, make_prompt
from data_pipelines.minicorpus.recordings import Recordings
from salmonn_jax.prompts import AUDIO_PLACEHOLDER

_MAX_PHRASE_CHARS = 12  # the fillers multiply the tokens of a phrase
_LENGTHS = (0.14, 0.2, 0.22, 0.22, 0.22)  # probabilities of strings of 1, 2, ... digits


def reading(recordings: Recordings, split: str, sizes: Mapping[str, int]) -> Iterator[GeneratedExample]:
    """Generates text-only examples of the tasks of the other sources.

    Args:
      recordings: the recordings; only their texts are used.
      split: "train" or "test".
      sizes: number of examples by task.
    """
    phrases = sorted(
        {
            p.text
            for p in recordings.phrases
            if p.in_training and len(p.text) <= _MAX_PHRASE_CHARS and speech.is_test_phrase(p.id) == (split == "test")
        }
    )
    for task, count in sizes.items():
        for index in range(count):
            key = ExampleKey("reading", split, task, index)
            rng = key.rng
            words, answer = _text(recordings, split, task, phrases, rng)
            imitation = imitate_audio_tokens(words, rng)
            prompt = make_prompt(task, split, rng).replace(AUDIO_PLACEHOLDER, imitation)
            yield GeneratedExample(key.make_example(None, prompt, answer, ""), "", ())


def imitate_audio_tokens(words: list[str], rng: np.random.Generator) -> str:
    """Returns a text that imitates the audio tokens of spoken words.

    Each word follows a space, so that the tokenizer does not split it. The number of fillers and repetitions varies
    from text to text, as the speed of speech does.
    """
    max_fillers, repeat_probability = rng.choice([0, 0, 1, 2, 3]), rng.choice([0.0, 0.3])
    text, last = "", None
    for word in words:
        fillers = int(rng.integers(max_fillers + 1))
        text += FILLER * max(fillers, int(word == last))
        text += f" {word}" * (1 + int(rng.random() < repeat_probability))
        last = word
    return text + FILLER * int(rng.integers(max_fillers + 1))


def _text(
    recordings: Recordings, split: str, task: str, phrases: list[str], rng: np.random.Generator
) -> tuple[list[str], str]:
    """Returns the words that the audio tokens would contain, and the answer."""
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
    spoken = speech.digits_to_words(language, digits)
    if task == "numbers":
        return spoken.split(), spoken
    if task == "numbers_to_english":
        return spoken.split(), speech.digits_to_words("en", digits)
    names = sorted(recordings.sounds)
    name = names[rng.integers(len(names))]
    # The sound lasts as long as the speech, so its name may be at any position among the words.
    words = spoken.split()
    words.insert(int(rng.integers(len(words) + 1)), name)
    return words, f"{spoken} over {name}"

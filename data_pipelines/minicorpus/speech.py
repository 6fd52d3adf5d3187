"""Generators of clips with speech: the sources `numbers`, `prompts` and `speech_over_sound`."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from data_pipelines import signals
from data_pipelines.minicorpus import labels
from data_pipelines.minicorpus.clips import ExampleKey, GeneratedExample, augment_clip, make_prompt, perturb_speed
from data_pipelines.minicorpus.nonspeech import recordings_of_split
from data_pipelines.minicorpus.recordings import MAX_CLIP_SECONDS, Phrase, Recordings, Voice
from salmonn_jax.audio.files import pcm_to_float

# Probabilities of strings of 1, 2, ... digits, by split. Training has more short strings, which are easier to learn.
_LENGTHS = {
    "train": (0.18, 0.22, 0.2, 0.2, 0.2),
    "test": (0, 0.06, 0.14, 0.4, 0.4),
    "unheard": (0, 0.25, 0.35, 0.25, 0.15),
}
LENGTHS_OVER_SOUND = (0, 0.5, 0.5)  # the same for the source `speech_over_sound`


class SpokenNumber(NamedTuple):
    """A spoken digit string: language, digits, name of the voice, and float32[samples] at 16 kHz."""

    language: str
    digits: tuple[int, ...]
    voice: str
    audio: np.ndarray


def is_test_number(number_words: str) -> bool:
    """Returns whether a digit string, in words, is in the test split: one in ten strings of two digits or more."""
    return " " in number_words and zlib.crc32(number_words.encode()) % 10 == 0


def digits_to_words(language: str, digits: tuple[int, ...]) -> str:
    """Returns the words of the digits in a language."""
    return " ".join(labels.DIGITS[language][digit] for digit in digits)


def draw_digits(
    rng: np.random.Generator, split: str, language: str, lengths: tuple[float, ...], available
) -> tuple[int, ...]:
    """Draws a random digit string that belongs to a split.

    Args:
      rng: source of the random numbers.
      split: "train", "test" or "unheard".
      language: language of the words that decide about the split.
      lengths: probabilities of the lengths 1, 2, ...; they need not sum to 1.
      available: digits that may occur.
    """
    available = sorted(available)
    while True:
        # The length is drawn again in each attempt, because no string of one digit is in the test split.
        size = 1 + rng.choice(len(lengths), p=np.array(lengths) / sum(lengths))
        digits = tuple(int(available[i]) for i in rng.integers(len(available), size=size))
        if split == "unheard" or is_test_number(digits_to_words(language, digits)) == (split == "test"):
            return digits


def numbers(recordings: Recordings, split: str, sizes: Mapping[str, int]) -> Iterator[GeneratedExample]:
    """Generates the examples of the source `numbers`: spoken digit strings, to be transcribed or translated to English.

    Args:
      recordings: the recordings.
      split: "train", "test" or "unheard".
      sizes: number of examples by task.
    """
    seen = set()
    for task, count in sizes.items():
        for index in range(count):
            key = ExampleKey("numbers", split, task, index)
            rng = key.rng
            number = _speak_number(recordings, split, rng, _LENGTHS[split], seen if split == "test" else set())
            spoken = digits_to_words(number.language, number.digits)
            seen.add(spoken)
            answer = spoken if task == "numbers" else digits_to_words("en", number.digits)
            example = key.make_example(augment_clip(number.audio, rng), make_prompt(task, split, rng), answer, spoken)
            yield GeneratedExample(example, number.voice, _digit_names(number))


def speech_over_sound(recordings: Recordings, split: str, sizes: Mapping[str, int]) -> Iterator[GeneratedExample]:
    """Generates the examples of the source `speech_over_sound`: digit strings over a sound that is 3 to 10 dB softer.

    Args:
      recordings: the recordings.
      split: "train" or "test".
      sizes: number of examples by task.
    """
    names = sorted(recordings.sounds)
    for task, count in sizes.items():
        for index in range(count):
            key = ExampleKey("speech_over_sound", split, task, index)
            rng = key.rng
            number = _speak_number(recordings, split, rng, LENGTHS_OVER_SOUND, set())
            name = names[index % len(names)]
            sounds_of_class = recordings_of_split(recordings.sounds[name], split)
            sound_recording = sounds_of_class[rng.integers(len(sounds_of_class))]
            # The sound starts before the speech and ends after it, by up to 0.5 s in all.
            spare_samples = min(signals.num_samples(0.5), signals.num_samples(MAX_CLIP_SECONDS) - len(number.audio))
            total = len(number.audio) + spare_samples
            speech = signals.pad(number.audio, int(rng.integers(spare_samples + 1)), total)
            sound = perturb_speed(pcm_to_float(sound_recording.audio), rng)
            if len(sound) > total:
                start = rng.integers(len(sound) - total + 1)
                sound = sound[start : start + total]
            sound = signals.repeat_to(signals.fade(sound), total, signals.num_samples(0.15))
            level = 10 ** (-rng.uniform(3, 10) / 20) * signals.active_rms(speech) / max(signals.active_rms(sound), 1e-4)
            spoken = digits_to_words(number.language, number.digits)
            example = key.make_example(
                augment_clip(speech + np.float32(level) * sound, rng, max_silence_seconds=0.0),
                make_prompt(task, split, rng),
                f"{spoken} over {name}",
                spoken,
            )
            yield GeneratedExample(example, number.voice, (*_digit_names(number), sound_recording.name))


def prompts(recordings: Recordings, split: str, sizes: Mapping[str, int]) -> Iterator[GeneratedExample]:
    """Generates the examples of the source `prompts`: telephone phrases, to be transcribed or translated to English.

    A phrase is in the same split in all languages.

    Args:
      recordings: the recordings.
      split: "train", "test" or "unheard".
      sizes: maximum number of examples by task.
    """
    for task, count in sizes.items():
        candidates = [phrase for phrase in recordings.phrases if _fits(phrase, split, task)]
        # The order is pseudo-random, so that the first `count` phrases are of all languages.
        candidates.sort(key=lambda phrase: zlib.crc32(f"{task} {phrase.id} {phrase.voice}".encode()))
        for index, phrase in enumerate(candidates[:count]):
            key = ExampleKey("prompts", split, task, index)
            rng = key.rng
            audio = perturb_speed(pcm_to_float(phrase.audio), rng)[: signals.num_samples(MAX_CLIP_SECONDS)]
            answer = phrase.text if task == "transcribe" else phrase.english
            example = key.make_example(augment_clip(audio, rng), make_prompt(task, split, rng), answer, phrase.text)
            yield GeneratedExample(example, phrase.voice, (f"{phrase.voice} {phrase.id}",))


def is_test_phrase(phrase_id: str) -> bool:
    """Returns whether a phrase is in the test split, in all languages: one in twelve."""
    return zlib.crc32(phrase_id.encode()) % 12 == 0


def _fits(phrase: Phrase, split: str, task: str) -> bool:
    if phrase.in_training != (split != "unheard") or (
        phrase.in_training and is_test_phrase(phrase.id) != (split == "test")
    ):
        return False
    return task == "transcribe" or (phrase.language != "en" and bool(phrase.english))


def _speak_number(
    recordings: Recordings, split: str, rng: np.random.Generator, lengths: tuple[float, ...], seen: set
) -> SpokenNumber:
    """Draws a digit string that is not in `seen`, and speaks it in at most `MAX_CLIP_SECONDS`."""
    in_training = split != "unheard"
    voices = sorted(name for name, voice in recordings.voices.items() if voice.in_training == in_training)
    # Languages are drawn first, so that a language with many voices is not more frequent.
    languages = sorted({recordings.voices[name].language for name in voices})
    while True:
        language = languages[rng.integers(len(languages))]
        voices_of_language = [name for name in voices if recordings.voices[name].language == language]
        name = voices_of_language[rng.integers(len(voices_of_language))]
        voice = recordings.voices[name]
        digits = draw_digits(rng, split, language, lengths, voice.digits)
        audio = _concatenate_digits(voice, digits, rng)
        if audio is not None and digits_to_words(language, digits) not in seen:
            return SpokenNumber(language, digits, name, audio)


def _concatenate_digits(voice: Voice, digits: tuple[int, ...], rng: np.random.Generator) -> np.ndarray | None:
    """Concatenates the recorded digits at one random speed, with random gaps. Returns None if they are too long."""
    factor = rng.uniform(0.92, 1.08)
    parts = [signals.change_speed(pcm_to_float(voice.digits[digit]), factor) for digit in digits]
    spare_samples = signals.num_samples(MAX_CLIP_SECONDS) - sum(map(len, parts))
    if spare_samples < signals.num_samples(0.03) * (len(digits) - 1):
        return None
    gaps = rng.uniform(0.03, 0.2, size=len(digits) - 1)
    gaps *= min(1, spare_samples / signals.num_samples(1) / max(gaps.sum(), 1e-9))
    joined = [parts[0]]
    for gap, part in zip(gaps, parts[1:], strict=True):
        joined += [np.zeros(int(gap * signals.num_samples(1)), np.float32), part]
    return np.concatenate(joined)


def _digit_names(number: SpokenNumber) -> tuple[str, ...]:
    return tuple(f"{number.voice} digits/{digit}" for digit in sorted(set(number.digits)))

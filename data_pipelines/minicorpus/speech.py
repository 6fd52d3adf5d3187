"""Clips of speech: numbers said digit by digit, telephone prompts, and numbers over a sound."""

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
from salmonn_jax.audio_files import pcm_to_float

# The chance of a string of 1, 2, ... digits. Training has its share of short ones, to begin with.
_LENGTHS = {
    "train": (0.18, 0.22, 0.2, 0.2, 0.2),
    "test": (0, 0.06, 0.14, 0.4, 0.4),
    "unheard": (0, 0.25, 0.35, 0.25, 0.15),
}
LENGTHS_OVER_SOUND = (0, 0.5, 0.5)


class SpokenNumber(NamedTuple):
    """A number, said: its digits, who says it, and float32[samples]."""

    language: str
    digits: tuple[int, ...]
    voice: str
    audio: np.ndarray


def is_test_number(number_words: str) -> bool:
    """Whether these digits, in words, are kept for the test: one string in ten of those of two digits or more."""
    return " " in number_words and zlib.crc32(number_words.encode()) % 10 == 0


def digits_to_words(language: str, digits: tuple[int, ...]) -> str:
    """The digits in words of a language."""
    return " ".join(labels.DIGITS[language][digit] for digit in digits)


def draw_digits(
    rng: np.random.Generator, split: str, language: str, lengths: tuple[float, ...], known
) -> tuple[int, ...]:
    """Draws a string of the digits `known` that belongs to the split, its length by the chances `lengths`."""
    known = sorted(known)
    while True:
        # Drawn anew with the digits: no string of one digit is the test's.
        size = 1 + rng.choice(len(lengths), p=np.array(lengths) / sum(lengths))
        digits = tuple(int(known[i]) for i in rng.integers(len(known), size=size))
        if split == "unheard" or is_test_number(digits_to_words(language, digits)) == (split == "test"):
            return digits


def numbers(recordings: Recordings, split: str, sizes: Mapping[str, int]) -> Iterator[GeneratedExample]:
    """Numbers, to be written down as said or in English."""
    seen = set()
    for task, count in sizes.items():
        for index in range(count):
            place = ExampleKey("numbers", split, task, index)
            rng = place.rng
            said = _speak_number(recordings, split, rng, _LENGTHS[split], seen if split == "test" else set())
            spoken = digits_to_words(said.language, said.digits)
            seen.add(spoken)
            answer = spoken if task == "numbers" else digits_to_words("en", said.digits)
            example = place.make_example(augment_clip(said.audio, rng), make_prompt(task, split, rng), answer, spoken)
            yield GeneratedExample(example, said.voice, _digit_names(said))


def speech_over_sound(recordings: Recordings, split: str, sizes: Mapping[str, int]) -> Iterator[GeneratedExample]:
    """Numbers said while a sound goes on behind, 3 to 10 dB fainter."""
    names = sorted(recordings.sounds)
    for task, count in sizes.items():
        for index in range(count):
            place = ExampleKey("speech_over_sound", split, task, index)
            rng = place.rng
            said = _speak_number(recordings, split, rng, LENGTHS_OVER_SOUND, set())
            name = names[index % len(names)]
            files = recordings_of_split(recordings.sounds[name], split)
            file = files[rng.integers(len(files))]
            # The sound goes on for a moment before and after the words.
            room = min(signals.num_samples(0.5), signals.num_samples(MAX_CLIP_SECONDS) - len(said.audio))
            total = len(said.audio) + room
            speech = signals.pad(said.audio, int(rng.integers(room + 1)), total)
            sound = perturb_speed(pcm_to_float(file.audio), rng)
            if len(sound) > total:
                start = rng.integers(len(sound) - total + 1)
                sound = sound[start : start + total]
            sound = signals.repeat_to(signals.fade(sound), total, signals.num_samples(0.15))
            level = 10 ** (-rng.uniform(3, 10) / 20) * signals.active_rms(speech) / max(signals.active_rms(sound), 1e-4)
            spoken = digits_to_words(said.language, said.digits)
            example = place.make_example(
                augment_clip(speech + np.float32(level) * sound, rng, max_silence_seconds=0.0),
                make_prompt(task, split, rng),
                f"{spoken} over {name}",
                spoken,
            )
            yield GeneratedExample(example, said.voice, (*_digit_names(said), file.name))


def prompts(recordings: Recordings, split: str, sizes: Mapping[str, int]) -> Iterator[GeneratedExample]:
    """Telephone prompts, to be transcribed or put into English. Split by prompt over all languages."""
    for task, count in sizes.items():
        fitting = [prompt for prompt in recordings.phrases if _fits(prompt, split, task)]
        # An order of its own for each task, and so a choice of all languages where not all are asked for.
        fitting.sort(key=lambda prompt: zlib.crc32(f"{task} {prompt.id} {prompt.voice}".encode()))
        for index, prompt in enumerate(fitting[:count]):
            place = ExampleKey("prompts", split, task, index)
            rng = place.rng
            audio = perturb_speed(pcm_to_float(prompt.audio), rng)[: signals.num_samples(MAX_CLIP_SECONDS)]
            answer = prompt.text if task == "transcribe" else prompt.english
            example = place.make_example(augment_clip(audio, rng), make_prompt(task, split, rng), answer, prompt.text)
            yield GeneratedExample(example, prompt.voice, (f"{prompt.voice} {prompt.id}",))


def is_test_phrase(prompt_id: str) -> bool:
    """Whether a prompt is kept for the test, in all languages: one in twelve."""
    return zlib.crc32(prompt_id.encode()) % 12 == 0


def _fits(prompt: Phrase, split: str, task: str) -> bool:
    if prompt.in_training != (split != "unheard") or (
        prompt.in_training and is_test_phrase(prompt.id) != (split == "test")
    ):
        return False
    return task == "transcribe" or (prompt.language != "en" and bool(prompt.english))


def _speak_number(
    recordings: Recordings, split: str, rng: np.random.Generator, lengths: tuple[float, ...], seen: set
) -> SpokenNumber:
    """Draws a number not in `seen` and says it, in at most `CLIP_SECONDS`."""
    heard = split != "unheard"
    voices = sorted(name for name, voice in recordings.voices.items() if voice.in_training == heard)
    # Languages are drawn first, so that one with many voices is not heard more often.
    languages = sorted({recordings.voices[name].language for name in voices})
    while True:
        language = languages[rng.integers(len(languages))]
        own = [name for name in voices if recordings.voices[name].language == language]
        name = own[rng.integers(len(own))]
        voice = recordings.voices[name]
        digits = draw_digits(rng, split, language, lengths, voice.digits)
        audio = _concatenate_digits(voice, digits, rng)
        if audio is not None and digits_to_words(language, digits) not in seen:
            return SpokenNumber(language, digits, name, audio)


def _concatenate_digits(voice: Voice, digits: tuple[int, ...], rng: np.random.Generator) -> np.ndarray | None:
    """Puts the recorded digits in a row, all at one speed; None if that takes too long."""
    factor = rng.uniform(0.92, 1.08)
    parts = [signals.change_speed(pcm_to_float(voice.digits[digit]), factor) for digit in digits]
    room = signals.num_samples(MAX_CLIP_SECONDS) - sum(map(len, parts))
    if room < signals.num_samples(0.03) * (len(digits) - 1):
        return None
    gaps = rng.uniform(0.03, 0.2, size=len(digits) - 1)
    gaps *= min(1, room / signals.num_samples(1) / max(gaps.sum(), 1e-9))
    joined = [parts[0]]
    for gap, part in zip(gaps, parts[1:], strict=True):
        joined += [np.zeros(int(gap * signals.num_samples(1)), np.float32), part]
    return np.concatenate(joined)


def _digit_names(said: SpokenNumber) -> tuple[str, ...]:
    return tuple(f"{said.voice} digits/{digit}" for digit in sorted(set(said.digits)))

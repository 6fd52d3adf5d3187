"""Generators of clips without speech: the sources `sounds` and `music`."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from data_pipelines import signals
from data_pipelines.minicorpus import labels, tunes
from data_pipelines.minicorpus.clips import ExampleKey, GeneratedExample, augment_clip, make_prompt, perturb_speed
from data_pipelines.minicorpus.recordings import MAX_CLIP_SECONDS, Recording, Recordings
from salmonn_jax.audio.files import pcm_to_float
from salmonn_jax.errors import UserError


def recordings_of_split(recordings: Sequence[Recording], split: str) -> Sequence[Recording]:
    """Returns the recordings of a sound class that a split may use. The last of several is for `unheard` only."""
    if split == "unheard":
        return recordings[-1:] if len(recordings) > 1 else ()
    return recordings[:-1] if len(recordings) > 1 else recordings


def sounds(recordings: Recordings, split: str, sizes: Mapping[str, int]) -> Iterator[GeneratedExample]:
    """Generates the examples of the source `sounds`, which ask for the class of a sound.

    The test split has new cuts of the recordings of training; `unheard` has other recordings.

    Args:
      recordings: the recordings.
      split: "train", "test" or "unheard".
      sizes: number of examples by task.
    """
    names = [name for name in sorted(recordings.sounds) if recordings_of_split(recordings.sounds[name], split)]
    for task, count in sizes.items():
        for index in range(count if names else 0):
            key = ExampleKey("sounds", split, task, index)
            rng = key.rng
            name = names[index % len(names)]
            candidates = recordings_of_split(recordings.sounds[name], split)
            recording = candidates[rng.integers(len(candidates))]
            audio = augment_clip(
                _excerpt(perturb_speed(pcm_to_float(recording.audio), rng), rng), rng, max_silence_seconds=0.6
            )
            yield GeneratedExample(
                key.make_example(audio, make_prompt(task, split, rng), name, ""), "", (recording.name,)
            )


def music(
    recordings: Recordings, split: str, sizes: Mapping[str, int], modules: pathlib.Path
) -> Iterator[GeneratedExample]:
    """Generates the examples of the source `music`: rendered tunes, or recorded instruments in `unheard`.

    Args:
      recordings: the recordings.
      split: "train", "test" or "unheard".
      sizes: number of examples by task.
      modules: folder with the module of the synthesiser (see `tunes.Player`).
    """
    if split == "unheard":
        yield from _recorded(recordings, sizes)
        return
    player = tunes.Player(recordings.soundfont, modules)
    tunes_of_split = [tune for tune in recordings.tunes if tunes.is_test_tune(tune.title) == (split == "test")]
    for task, count in sizes.items():
        tunes_by_answer = _tunes_by_answer(tunes_of_split, task)
        for index in range(count if tunes_by_answer else 0):
            key = ExampleKey("music", split, task, index)
            rng = key.rng
            # Cycles through the answers, so that all are equally frequent.
            answer, candidates = tunes_by_answer[index % len(tunes_by_answer)]
            tune, notes = _draw_tune(candidates, rng)
            instrument = (
                answer if task == "instrument" else sorted(labels.INSTRUMENTS)[rng.integers(len(labels.INSTRUMENTS))]
            )
            if task == "instrument":
                start = int(rng.integers(max(1, len(notes) - 12)))
                notes = tuple(note._replace(start=note.start - notes[start].start) for note in notes[start:])
            seconds = rng.uniform(3.0, MAX_CLIP_SECONDS)
            audio = player.play(notes, instrument, seconds=seconds, notes_per_second=rng.uniform(3.5, 6))
            example = key.make_example(
                augment_clip(signals.fade(audio), rng, max_silence_seconds=0.1),
                make_prompt(task, split, rng),
                answer,
                "",
            )
            yield GeneratedExample(example, "", (tune.title,))


def _recorded(recordings: Recordings, sizes: Mapping[str, int]) -> Iterator[GeneratedExample]:
    names = sorted(recordings.instruments)
    for task, count in sizes.items():
        for index in range(count if names else 0):
            key = ExampleKey("music", "unheard", task, index)
            rng = key.rng
            name = names[index % len(names)]
            candidates = recordings.instruments[name]
            recording = candidates[rng.integers(len(candidates))]
            audio = augment_clip(_excerpt(pcm_to_float(recording.audio), rng), rng, max_silence_seconds=0.1)
            yield GeneratedExample(
                key.make_example(audio, make_prompt(task, "unheard", rng), name, ""), "", (recording.name,)
            )


def _tunes_by_answer(candidates: Sequence[tunes.Tune], task: str) -> list[tuple[str, list[tunes.Tune]]]:
    """Returns the tunes that have an answer for the task, by answer, in alphabetical order of the answers."""
    if task == "instrument":
        return [(name, list(candidates)) for name in sorted(labels.INSTRUMENTS)] if candidates else []
    answers = [tune.metre if task == "metre" else tune.type for tune in candidates]
    return [
        (answer, [tune for tune, tune_answer in zip(candidates, answers, strict=True) if tune_answer == answer])
        for answer in sorted(set(answers) - {""})
    ]


def _draw_tune(candidates: Sequence[tunes.Tune], rng: np.random.Generator) -> tuple[tunes.Tune, tuple[tunes.Note, ...]]:
    """Draws a random tune that the parser can read and that has at least 16 notes. Returns the tune and its notes."""
    for _ in range(100):
        tune = candidates[rng.integers(len(candidates))]
        notes = tunes.parse_notes(tune.abc)
        if len(notes) >= 16:
            return tune, notes
    raise UserError("the tunes of music21 cannot be read; install the version of symusic that setup.cfg requires")


def _excerpt(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Cuts a random excerpt of 1.5 to 3.4 seconds, which is not silent, from longer audio."""
    length = signals.num_samples(rng.uniform(1.5, 3.4))
    if len(audio) <= length:
        return audio
    total_rms = signals.rms(audio)
    for _ in range(20):
        start = rng.integers(len(audio) - length + 1)
        cut = audio[start : start + length]
        if signals.rms(cut) > 0.5 * total_rms:
            break
    return signals.fade(cut)

"""Clips without words: sounds to be named, and music."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from data_pipelines.minicorpus import labels, signals, tunes
from data_pipelines.minicorpus.clips import Clip, Place, finish, own_speed, question
from data_pipelines.minicorpus.recordings import CLIP_SECONDS, Recording, Recordings
from salmonn_jax.audio_files import to_float
from salmonn_jax.errors import UserError


def split_files(files: Sequence[Recording], split: str) -> Sequence[Recording]:
    """The recordings of a class that a split may use: the last of several is never heard in training or test."""
    if split == "unheard":
        return files[-1:] if len(files) > 1 else ()
    return files[:-1] if len(files) > 1 else files


def sounds(recordings: Recordings, split: str, sizes: Mapping[str, int]) -> Iterator[Clip]:
    """Sounds to be named. The test is the recordings of training, cut and changed afresh; `unheard` is others."""
    names = [name for name in sorted(recordings.sounds) if split_files(recordings.sounds[name], split)]
    for task, count in sizes.items():
        for index in range(count if names else 0):
            place = Place("sounds", split, task, index)
            rng = place.rng
            name = names[index % len(names)]
            files = split_files(recordings.sounds[name], split)
            file = files[rng.integers(len(files))]
            audio = finish(_excerpt(own_speed(to_float(file.audio), rng), rng), rng, latest=0.6)
            yield Clip(place.example(audio, question(task, split, rng), name, ""), "", (file.name,))


def music(recordings: Recordings, split: str, sizes: Mapping[str, int], modules: pathlib.Path) -> Iterator[Clip]:
    """Tunes, rendered; in `unheard`, instruments recorded.

    Args:
      modules: where the player's module is (see `tunes.Player`).
    """
    if split == "unheard":
        yield from _recorded(recordings, sizes)
        return
    player = tunes.Player(recordings.soundfont, modules)
    books = [tune for tune in recordings.tunes if tunes.is_test(tune.title) == (split == "test")]
    for task, count in sizes.items():
        # A round of one tune for each answer, so that answers come equally often.
        shelves = _shelves(books, task)
        for index in range(count if shelves else 0):
            place = Place("music", split, task, index)
            rng = place.rng
            answer, shelf = shelves[index % len(shelves)]
            tune, notes = _readable(shelf, rng)
            instrument = (
                answer if task == "instrument" else sorted(labels.INSTRUMENTS)[rng.integers(len(labels.INSTRUMENTS))]
            )
            if task == "instrument":
                start = int(rng.integers(max(1, len(notes) - 12)))
                notes = tuple(note._replace(start=note.start - notes[start].start) for note in notes[start:])
            seconds = rng.uniform(3.0, CLIP_SECONDS)
            audio = player.play(notes, instrument, seconds=seconds, notes_a_second=rng.uniform(3.5, 6))
            example = place.example(
                finish(signals.fade(audio), rng, latest=0.1), question(task, split, rng), answer, ""
            )
            yield Clip(example, "", (tune.title,))


def _recorded(recordings: Recordings, sizes: Mapping[str, int]) -> Iterator[Clip]:
    names = sorted(recordings.instruments)
    for task, count in sizes.items():
        for index in range(count if names else 0):
            place = Place("music", "unheard", task, index)
            rng = place.rng
            name = names[index % len(names)]
            files = recordings.instruments[name]
            file = files[rng.integers(len(files))]
            audio = finish(_excerpt(to_float(file.audio), rng), rng, latest=0.1)
            yield Clip(place.example(audio, question(task, "unheard", rng), name, ""), "", (file.name,))


def _shelves(books: Sequence[tunes.Tune], task: str) -> list[tuple[str, list[tunes.Tune]]]:
    """The tunes that can be asked about, by answer, in order of answer."""
    if task == "instrument":
        return [(name, list(books)) for name in sorted(labels.INSTRUMENTS)] if books else []
    answers = [tune.metre if task == "metre" else tune.type for tune in books]
    return [
        (answer, [tune for tune, own in zip(books, answers, strict=True) if own == answer])
        for answer in sorted(set(answers) - {""})
    ]


def _readable(shelf: Sequence[tunes.Tune], rng: np.random.Generator) -> tuple[tunes.Tune, tuple[tunes.Note, ...]]:
    """Draws a tune that the parser can read and that is long enough."""
    for _ in range(100):
        tune = shelf[rng.integers(len(shelf))]
        notes = tunes.notes(tune.abc)
        if len(notes) >= 16:
            return tune, notes
    raise UserError("the tunes of music21 cannot be read; is symusic as new as setup.cfg asks for?")


def _excerpt(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Cuts 1.5 to 3.4 seconds out of what is longer, not from a silent part."""
    length = signals.samples(rng.uniform(1.5, 3.4))
    if len(audio) <= length:
        return audio
    whole = signals.rms(audio)
    for _ in range(20):
        start = rng.integers(len(audio) - length + 1)
        cut = audio[start : start + length]
        if signals.rms(cut) > 0.5 * whole:
            break
    return signals.fade(cut)

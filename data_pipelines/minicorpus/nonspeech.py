"""Clips without words: sounds to be named, and music."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from data_pipelines import signals
from data_pipelines.minicorpus import labels, tunes
from data_pipelines.minicorpus.clips import ExampleKey, GeneratedExample, augment_clip, make_prompt, perturb_speed
from data_pipelines.minicorpus.recordings import MAX_CLIP_SECONDS, Recording, Recordings
from salmonn_jax.audio_files import pcm_to_float
from salmonn_jax.errors import UserError


def recordings_of_split(recordings: Sequence[Recording], split: str) -> Sequence[Recording]:
    """The recordings of a class that a split may use: the last of several is never heard in training or test."""
    if split == "unheard":
        return recordings[-1:] if len(recordings) > 1 else ()
    return recordings[:-1] if len(recordings) > 1 else recordings


def sounds(recordings: Recordings, split: str, sizes: Mapping[str, int]) -> Iterator[GeneratedExample]:
    """Sounds to be named. The test is the recordings of training, cut and changed afresh; `unheard` is others."""
    names = [name for name in sorted(recordings.sounds) if recordings_of_split(recordings.sounds[name], split)]
    for task, count in sizes.items():
        for index in range(count if names else 0):
            place = ExampleKey("sounds", split, task, index)
            rng = place.rng
            name = names[index % len(names)]
            files = recordings_of_split(recordings.sounds[name], split)
            file = files[rng.integers(len(files))]
            audio = augment_clip(
                _excerpt(perturb_speed(pcm_to_float(file.audio), rng), rng), rng, max_silence_seconds=0.6
            )
            yield GeneratedExample(place.make_example(audio, make_prompt(task, split, rng), name, ""), "", (file.name,))


def music(
    recordings: Recordings, split: str, sizes: Mapping[str, int], modules: pathlib.Path
) -> Iterator[GeneratedExample]:
    """Tunes, rendered; in `unheard`, instruments recorded.

    Args:
      modules: where the player's module is (see `tunes.Player`).
    """
    if split == "unheard":
        yield from _recorded(recordings, sizes)
        return
    player = tunes.Player(recordings.soundfont, modules)
    books = [tune for tune in recordings.tunes if tunes.is_test_tune(tune.title) == (split == "test")]
    for task, count in sizes.items():
        # A round of one tune for each answer, so that answers come equally often.
        shelves = _tunes_by_answer(books, task)
        for index in range(count if shelves else 0):
            place = ExampleKey("music", split, task, index)
            rng = place.rng
            answer, shelf = shelves[index % len(shelves)]
            tune, notes = _draw_tune(shelf, rng)
            instrument = (
                answer if task == "instrument" else sorted(labels.INSTRUMENTS)[rng.integers(len(labels.INSTRUMENTS))]
            )
            if task == "instrument":
                start = int(rng.integers(max(1, len(notes) - 12)))
                notes = tuple(note._replace(start=note.start - notes[start].start) for note in notes[start:])
            seconds = rng.uniform(3.0, MAX_CLIP_SECONDS)
            audio = player.play(notes, instrument, seconds=seconds, notes_per_second=rng.uniform(3.5, 6))
            example = place.make_example(
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
            place = ExampleKey("music", "unheard", task, index)
            rng = place.rng
            name = names[index % len(names)]
            files = recordings.instruments[name]
            file = files[rng.integers(len(files))]
            audio = augment_clip(_excerpt(pcm_to_float(file.audio), rng), rng, max_silence_seconds=0.1)
            yield GeneratedExample(
                place.make_example(audio, make_prompt(task, "unheard", rng), name, ""), "", (file.name,)
            )


def _tunes_by_answer(candidates: Sequence[tunes.Tune], task: str) -> list[tuple[str, list[tunes.Tune]]]:
    """The tunes that can be asked about, by answer, in order of answer."""
    if task == "instrument":
        return [(name, list(candidates)) for name in sorted(labels.INSTRUMENTS)] if candidates else []
    answers = [tune.metre if task == "metre" else tune.type for tune in candidates]
    return [
        (answer, [tune for tune, own in zip(candidates, answers, strict=True) if own == answer])
        for answer in sorted(set(answers) - {""})
    ]


def _draw_tune(candidates: Sequence[tunes.Tune], rng: np.random.Generator) -> tuple[tunes.Tune, tuple[tunes.Note, ...]]:
    """Draws a tune that the parser can read and that is long enough."""
    for _ in range(100):
        tune = candidates[rng.integers(len(candidates))]
        notes = tunes.parse_notes(tune.abc)
        if len(notes) >= 16:
            return tune, notes
    raise UserError("the tunes of music21 cannot be read; is symusic as new as setup.cfg asks for?")


def _excerpt(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Cuts 1.5 to 3.4 seconds out of what is longer, not from a silent part."""
    length = signals.num_samples(rng.uniform(1.5, 3.4))
    if len(audio) <= length:
        return audio
    whole = signals.rms(audio)
    for _ in range(20):
        start = rng.integers(len(audio) - length + 1)
        cut = audio[start : start + length]
        if signals.rms(cut) > 0.5 * whole:
            break
    return signals.fade(cut)

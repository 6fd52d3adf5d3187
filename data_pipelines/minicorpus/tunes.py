"""Folk tunes: parsing of ABC notation, and rendering with a General MIDI soundfont."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import pathlib
import re
import sys
import unicodedata
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from data_pipelines import signals
from data_pipelines.minicorpus import labels
from salmonn_jax.config import SAMPLE_RATE

_MAX_LINES = 12  # lines of notes of a tune; enough for the longest clip


class Tune(NamedTuple):
    """A tune. `metre` and `type` are "" if the .abc file does not give them, or gives rare or contradictory values."""

    title: str  # normalised, because the same tune is in several .abc files
    metre: str
    type: str
    abc: str


class Note(NamedTuple):
    """A note. Times are in quarter notes from the beginning of the tune."""

    start: float
    duration: float
    pitch: int
    velocity: int


def read_tunes(folder: pathlib.Path) -> list[Tune]:
    """Reads the tunes of the `.abc` files below `folder`, one for each normalised title, ordered by title."""
    tunes: dict[str, Tune] = {}
    for path in sorted(folder.rglob("*.abc")):
        text = path.read_text(encoding="utf-8", errors="replace")
        for abc in re.split(r"(?m)^(?=X:)", text)[1:]:
            tune = parse_tune(abc)
            if tune.title and tune.title not in tunes:
                tunes[tune.title] = tune
    return [tunes[title] for title in sorted(tunes)]


def parse_tune(abc: str) -> Tune:
    """Parses the fields of one tune in ABC notation."""
    fields: dict[str, str] = {}
    num_note_lines = 0
    kept_lines = []
    for line in abc.splitlines():
        field = re.match(r"([A-Za-z]):\s*(.*?)\s*$", line)
        if field:
            fields.setdefault(field[1], field[2])
        elif line.strip():
            num_note_lines += 1
        # Lines with w: or W: are lyrics, lines with % are instructions for typesetting.
        if num_note_lines <= _MAX_LINES and not line.startswith(("w:", "W:", "%")):
            kept_lines.append(line)
    signature = fields.get("M", "")
    title = fields.get("T", "")
    return Tune(
        normalise_title(title), labels.METRES.get(signature, ""), _type(fields, title, signature), "\n".join(kept_lines)
    )


def normalise_title(title: str) -> str:
    """Returns a title in lower case with letters and digits only, without articles and the part after a dash."""
    title = unicodedata.normalize("NFKD", title.partition(" -- ")[0].lower())
    words = re.findall(r"[a-z0-9]+", "".join(c for c in title if not unicodedata.combining(c)).replace("'", ""))
    return " ".join(word for word in words if word not in ("the", "a", "an"))


def is_test_tune(title: str) -> bool:
    """Returns whether a tune is in the test split: one title in eight."""
    return zlib.crc32(title.encode()) % 8 == 0


@functools.lru_cache(maxsize=4096)
def parse_notes(abc: str) -> tuple[Note, ...]:
    """Parses the notes of a tune, with the accents of its metre. The first note is at time 0.

    Returns no notes if the parser cannot read the tune.
    """
    import symusic

    with _quiet():  # the parser prints warnings about many .abc files
        try:
            score = symusic.Score.from_abc(abc)
        except (RuntimeError, ValueError):
            return ()
    tracks = [track for track in score.tracks if len(track.notes)]
    if not tracks:
        return ()
    notes = sorted(tracks[0].notes, key=lambda note: (note.time, note.pitch))
    first, quarter = notes[0].time, score.tpq
    return tuple(Note((n.time - first) / quarter, n.duration / quarter, n.pitch, n.velocity) for n in notes)


class Player:
    """Synthesiser of notes with the instruments of `labels.INSTRUMENTS`.

    Args:
      soundfont: content of an sf2 file.
      modules: folder from which tinysoundfont is imported if it is not installed.
    """

    def __init__(self, soundfont: bytes, modules: pathlib.Path):
        try:
            tinysoundfont = importlib.import_module("tinysoundfont")
        except ImportError:
            sys.path.append(str(modules))
            tinysoundfont = importlib.import_module("tinysoundfont")
        self._synth = tinysoundfont.Synth(samplerate=SAMPLE_RATE)
        self._font = self._synth.sfload(soundfont)

    def play(self, notes: tuple[Note, ...], instrument: str, *, seconds: float, notes_per_second: float) -> np.ndarray:
        """Renders the beginning of a tune.

        Args:
          notes: notes of the tune.
          instrument: key of `labels.INSTRUMENTS`. The tune is transposed by octaves into the range of the instrument.
          seconds: length of the result.
          notes_per_second: mean number of notes per second. It determines the tempo, because many tunes have none.

        Returns:
          float32[samples] at 16 kHz, `seconds` long.
        """
        properties = labels.INSTRUMENTS[instrument]
        steps = np.diff([note.start for note in notes])
        quarter = 1 / (notes_per_second * steps[steps > 0].mean())
        shift = 12 * round((properties.centre - np.mean([note.pitch for note in notes])) / 12)
        self._synth.sounds_off(0)
        self._synth.program_select(0, self._font, 0, properties.program)
        events = []
        for note in notes:
            start = signals.num_samples(note.start * quarter)
            end = signals.num_samples((note.start + 0.95 * note.duration) * quarter)
            key = int(np.clip(note.pitch + shift, 0, 127))
            events += [(start, 1, key, note.velocity), (max(end, start + 1), 0, key, 0)]
        total, position, out = signals.num_samples(seconds), 0, []
        for time, on, key, velocity in sorted(events):
            if time >= total:
                break
            if time > position:
                out.append(self._generate(time - position))
                position = time
            if on:
                self._synth.noteon(0, key, velocity)
            else:
                self._synth.noteoff(0, key)
        out.append(self._generate(total - position))
        self._synth.sounds_off(0)
        return np.concatenate(out)

    def _generate(self, count: int) -> np.ndarray:
        stereo = np.frombuffer(self._synth.generate(count), np.float32).reshape(-1, 2)
        return stereo.mean(axis=1, dtype=np.float32)


def _type(fields: dict[str, str], title: str, signature: str) -> str:
    """Returns the type of a tune, or "" if the R: field contradicts the title or the metre."""
    name = labels.TUNE_TYPES.get(fields.get("R", "").lower(), "")
    in_title = {labels.TUNE_TYPES[word] for word in re.findall(r"[a-z]+", title.lower()) if word in labels.TUNE_TYPES}
    fitting = {"jig": ("6/8",), "slip jig": ("9/8",)}.get(name, ("C|", "C", "2/4", "4/4", "2/2"))
    return name if signature in fitting and in_title <= {name, name.removeprefix("slip ")} else ""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Discards the output of native code to stdout and stderr."""
    saved = [os.dup(1), os.dup(2)]
    with open(os.devnull, "w") as null:
        os.dup2(null.fileno(), 1)
        os.dup2(null.fileno(), 2)
    try:
        yield
    finally:
        for number, descriptor in enumerate(saved, start=1):
            os.dup2(descriptor, number)
            os.close(descriptor)

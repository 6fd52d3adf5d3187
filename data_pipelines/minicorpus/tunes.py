"""Folk tunes: read from ABC text, played by a General MIDI soundfont."""

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

_LINES = 12  # of a tune's notes that are read: more than any clip holds


class Tune(NamedTuple):
    """One tune. `metre` and `type` are "" where the book does not say, or says something rare."""

    title: str  # normalised: the same tune stands in several books
    metre: str
    type: str
    abc: str


class Note(NamedTuple):
    """A note; times in quarters from the beginning of the tune."""

    start: float
    duration: float
    pitch: int
    velocity: int


def read_tunes(folder: pathlib.Path) -> list[Tune]:
    """Reads all tunes of the `.abc` files below `folder`, one per normalised title, in order of title."""
    tunes: dict[str, Tune] = {}
    for book in sorted(folder.rglob("*.abc")):
        text = book.read_text(encoding="utf-8", errors="replace")
        for part in re.split(r"(?m)^(?=X:)", text)[1:]:
            tune = parse_tune(part)
            if tune.title and tune.title not in tunes:
                tunes[tune.title] = tune
    return [tunes[title] for title in sorted(tunes)]


def parse_tune(abc: str) -> Tune:
    """Reads the fields of one ABC tune."""
    fields: dict[str, str] = {}
    notes = 0
    kept = []
    for line in abc.splitlines():
        field = re.match(r"([A-Za-z]):\s*(.*?)\s*$", line)
        if field:
            fields.setdefault(field[1], field[2])
        elif line.strip():
            notes += 1
        # Words of songs (w:, W:) are no notes; a % line gives orders to a printer.
        if notes <= _LINES and not line.startswith(("w:", "W:", "%")):
            kept.append(line)
    signature = fields.get("M", "")
    title = fields.get("T", "")
    return Tune(
        normalise_title(title), labels.METRES.get(signature, ""), _type(fields, title, signature), "\n".join(kept)
    )


def normalise_title(title: str) -> str:
    """Lower case, letters and digits only, without articles and without what comes after a dash."""
    title = unicodedata.normalize("NFKD", title.partition(" -- ")[0].lower())
    words = re.findall(r"[a-z0-9]+", "".join(c for c in title if not unicodedata.combining(c)).replace("'", ""))
    return " ".join(word for word in words if word not in ("the", "a", "an"))


def is_test_tune(title: str) -> bool:
    """Whether a tune is kept for the test: one title in eight."""
    return zlib.crc32(title.encode()) % 8 == 0


@functools.lru_cache(maxsize=4096)
def parse_notes(abc: str) -> tuple[Note, ...]:
    """The notes of a tune, the first at time 0, with the accents of its metre; none if it cannot be read."""
    import symusic

    with _quiet():  # the parser prints what it thinks of old books
        try:
            score = symusic.Score.from_abc(abc)
        except (RuntimeError, ValueError):
            return ()
    tracks = [track for track in score.tracks if len(track.notes)]
    if not tracks:
        return ()
    found = sorted(tracks[0].notes, key=lambda note: (note.time, note.pitch))
    first, quarter = found[0].time, score.tpq
    return tuple(Note((n.time - first) / quarter, n.duration / quarter, n.pitch, n.velocity) for n in found)


class Player:
    """Plays notes with the instruments of `labels.INSTRUMENTS`.

    Args:
      soundfont: the bytes of an sf2 file.
      modules: a folder to import tinysoundfont from where it is not installed.
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
          tune: its notes.
          instrument: a name of `labels.INSTRUMENTS`; the tune is moved by octaves into its range.
          seconds: the length of the result.
          notes_a_second: the mean number of notes; decides the tempo, since many tunes give none.

        Returns:
          float32[seconds * 16,000].
        """
        kind = labels.INSTRUMENTS[instrument]
        steps = np.diff([note.start for note in notes])
        quarter = 1 / (notes_per_second * steps[steps > 0].mean())
        shift = 12 * round((kind.centre - np.mean([note.pitch for note in notes])) / 12)
        self._synth.sounds_off(0)
        self._synth.program_select(0, self._font, 0, kind.program)
        events = []
        for note in notes:
            start = signals.num_samples(note.start * quarter)
            end = signals.num_samples((note.start + 0.95 * note.duration) * quarter)
            key = int(np.clip(note.pitch + shift, 0, 127))
            events += [(start, 1, key, note.velocity), (max(end, start + 1), 0, key, 0)]
        total, at, out = signals.num_samples(seconds), 0, []
        for time, on, key, velocity in sorted(events):
            if time >= total:
                break
            if time > at:
                out.append(self._sound(time - at))
                at = time
            if on:
                self._synth.noteon(0, key, velocity)
            else:
                self._synth.noteoff(0, key)
        out.append(self._sound(total - at))
        self._synth.sounds_off(0)
        return np.concatenate(out)

    def _sound(self, count: int) -> np.ndarray:
        stereo = np.frombuffer(self._synth.generate(count), np.float32).reshape(-1, 2)
        return stereo.mean(axis=1, dtype=np.float32)


def _type(fields: dict[str, str], title: str, signature: str) -> str:
    """The type of a tune, where the book's label goes with its title and its metre."""
    name = labels.TUNE_TYPES.get(fields.get("R", "").lower(), "")
    in_title = {labels.TUNE_TYPES[word] for word in re.findall(r"[a-z]+", title.lower()) if word in labels.TUNE_TYPES}
    fitting = {"jig": ("6/8",), "slip jig": ("9/8",)}.get(name, ("C|", "C", "2/4", "4/4", "2/2"))
    return name if signature in fitting and in_title <= {name, name.removeprefix("slip ")} else ""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Sends what native code prints nowhere."""
    saved = [os.dup(1), os.dup(2)]
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        for number, descriptor in enumerate(saved, start=1):
            os.dup2(descriptor, number)
            os.close(descriptor)

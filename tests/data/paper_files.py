"""Helpers for tests of the paper's corpora: files in the layout of a distribution, and expected entries."""

from __future__ import annotations

import json

import numpy as np
import soundfile

from data_pipelines.sources import paper
from data_pipelines.sources.manifest_entry import AudioSpan, ManifestEntry


def write(folder, name, text):
    """Writes a text file, or a JSON file if `text` is not a string."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if isinstance(text, str) else json.dumps(text), encoding="utf-8")


def write_tone(folder, name, seconds, hertz=440.0):
    """Writes a tone as an audio file and returns it as int16[samples]."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(round(16_000 * seconds)) / 16_000
    samples = (8_000 * np.sin(2 * np.pi * hertz * time)).astype(np.int16)
    soundfile.write(folder / name, samples, 16_000)
    return samples


def read(name, folder, split="train"):
    """Returns the entries of a corpus, and checks that a second reading gives the same entries."""
    entries = list(paper.read(name, folder, split))
    entries_again = list(paper.read(name, folder, split))
    assert [str(entry) for entry in entries] == [str(entry) for entry in entries_again]
    return entries


def audio_entry(id, path, answer, task="audiocaption"):
    """Returns an entry with one audio file and no transcript."""
    return ManifestEntry(id=id, audio=(AudioSpan(path),), answer=answer, task=task)


def speech_entry(id, path, words, answer=None, task="asr"):
    """Returns an entry with one audio file and a transcript, which is also the default answer."""
    return ManifestEntry(
        id=id, audio=(AudioSpan(path),), answer=words if answer is None else answer, task=task, transcript=words
    )

"""GigaSpeech: segments of long recordings.

A folder looks so:

    GigaSpeech.json
    audio/podcast/P0000/POD0000000001.opus
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

from data_pipelines.sources.manifest_entries import Entry, Piece
from data_pipelines.sources.paper.corpus import Entries, PaperCorpus
from data_pipelines.sources.paper.files import array, entries, need, sentence

WHERE = (
    "GigaSpeech is given out on request at github.com/SpeechColab/GigaSpeech (for non-commercial research); name the "
    "folder that holds GigaSpeech.json and audio/"
)

# The paper trains on M, 1000 hours, first; its second stage takes 200 thousand of these segments, not known which.
_SUBSETS = {"train": "{M}", "dev": "{DEV}", "test": "{TEST}"}

_PUNCTUATION = {"<COMMA>", "<PERIOD>", "<QUESTIONMARK>", "<EXCLAMATIONPOINT>"}
_NOT_SPEECH = {"<SIL>", "<MUSIC>", "<NOISE>", "<OTHER>"}  # the whole text of a segment in which nobody speaks


def _segments(path: pathlib.Path, subset: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for recording in array(path, "audios", ("path", "segments"), WHERE):
        for segment in recording["segments"]:
            if subset in segment.get("subsets", ()) and segment.get("text_tn") not in _NOT_SPEECH:
                yield recording["path"], segment


def _segment(row: tuple[str, dict[str, Any]]) -> Entry:
    path, segment = row
    words = sentence(" ".join(word for word in segment["text_tn"].split() if word not in _PUNCTUATION))
    piece = Piece(path, float(segment["begin_time"]), float(segment["end_time"]))
    return Entry(id=segment["sid"], audio=(piece,), answer=words, task="asr", transcript=words)


def _asr(folder: pathlib.Path, split: str) -> Entries:
    """Transcripts without punctuation, as in the original's annotations."""
    return entries(_segment, _segments(need(folder, "GigaSpeech.json", WHERE), _SUBSETS[split]))


CORPORA = (
    PaperCorpus(
        name="gigaspeech",
        task="asr",
        read=_asr,
        splits=tuple(_SUBSETS),
        hours=1000,
        samples=910_000,
        where=WHERE,
    ),
)

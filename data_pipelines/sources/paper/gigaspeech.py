"""Reader of GigaSpeech: segments of long recordings.

Layout of the folder:

    GigaSpeech.json
    audio/podcast/P0000/POD0000000001.opus
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

from data_pipelines.sources.manifest_entry import AudioSpan, ManifestEntry
from data_pipelines.sources.paper.corpus import ManifestEntries, PaperCorpus
from data_pipelines.sources.paper.readers import parse_rows, read_json_array, require_path, sentence_case

DOWNLOAD_HINT = (
    "GigaSpeech is given out on request at github.com/SpeechColab/GigaSpeech (for non-commercial research); set "
    "--folder to the folder that contains GigaSpeech.json and audio/"
)

# Stage 1 of the paper trains on subset M (1000 hours). Stage 2 uses an unpublished selection of 200,000 segments.
_SUBSETS = {"train": "{M}", "dev": "{DEV}", "test": "{TEST}"}

_PUNCTUATION = {"<COMMA>", "<PERIOD>", "<QUESTIONMARK>", "<EXCLAMATIONPOINT>"}
_NOT_SPEECH = {"<SIL>", "<MUSIC>", "<NOISE>", "<OTHER>"}  # text of a segment without speech


def _segments(path: pathlib.Path, subset: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for recording in read_json_array(path, "audios", ("path", "segments"), DOWNLOAD_HINT):
        for segment in recording["segments"]:
            if subset in segment.get("subsets", ()) and segment.get("text_tn") not in _NOT_SPEECH:
                yield recording["path"], segment


def _parse_segment(row: tuple[str, dict[str, Any]]) -> ManifestEntry:
    path, segment = row
    words = sentence_case(" ".join(word for word in segment["text_tn"].split() if word not in _PUNCTUATION))
    span = AudioSpan(path, float(segment["begin_time"]), float(segment["end_time"]))
    return ManifestEntry(id=segment["sid"], audio=(span,), answer=words, task="asr", transcript=words)


def _asr(folder: pathlib.Path, split: str) -> ManifestEntries:
    """Reads transcripts without punctuation, as in the original's annotations."""
    return parse_rows(
        _parse_segment, _segments(require_path(folder, "GigaSpeech.json", DOWNLOAD_HINT), _SUBSETS[split])
    )


CORPORA = (
    PaperCorpus(
        name="gigaspeech",
        task="asr",
        read=_asr,
        splits=tuple(_SUBSETS),
        hours=1000,
        samples=910_000,
        download_hint=DOWNLOAD_HINT,
    ),
)

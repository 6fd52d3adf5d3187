"""Reader of the question-answer annotations of SALMONN's authors, about speech, sounds and music.

Layout of the folder:

    salmonn_stage2_data.json
    LibriSpeech/ WavCaps/ AudioCaps/ MusicNet/ MillionSongDatasetSpotify/      audio, with the paths of the annotations
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Iterator
from typing import Any

from data_pipelines.sources.manifest_entry import entry_from_annotation
from data_pipelines.sources.paper.corpus import ManifestEntries, PaperCorpus
from data_pipelines.sources.paper.readers import parse_rows, read_json_array, require_path

_FILE = "salmonn_stage2_data.json"
DOWNLOAD_HINT = (
    "the annotations are linked from the README of github.com/bytedance/SALMONN, branch salmonn (no licence of "
    "their own is stated); set --folder to the folder that contains salmonn_stage2_data.json and, beside it, "
)


def _questions(corpus: str, folder: pathlib.Path, split: str) -> ManifestEntries:
    """Reads the questions about one corpus. Removes the part of the annotated paths before the name of the corpus."""
    file = require_path(folder, _FILE, DOWNLOAD_HINT + corpus)

    def lines() -> Iterator[tuple[int, dict[str, Any]]]:
        for number, line in enumerate(read_json_array(file, "annotation", (), DOWNLOAD_HINT + corpus)):
            parts = str(line.get("path")).split("/")
            if corpus in parts and str(line.get("task")).endswith("QA"):
                yield number, line | {"path": "/".join(parts[parts.index(corpus) :])}

    return parse_rows(lambda row: entry_from_annotation(row[1], row[0]), lines())


def _corpus(name: str, folder: str, hours: int, samples: int) -> PaperCorpus:
    read = functools.partial(_questions, folder)
    return PaperCorpus(
        name=name,
        task="QA",
        read=read,
        splits=("train",),
        hours=hours,
        samples=samples,
        download_hint=DOWNLOAD_HINT + folder,
    )


CORPORA = (
    _corpus("librispeech_qa", "LibriSpeech", 960, 280_000),
    _corpus("wavcaps_qa", "WavCaps", 760, 270_000),
    _corpus("audiocaps_qa", "AudioCaps", 130, 48_000),
    _corpus("musicnet_qa", "MusicNet", 3, 400),
    _corpus("millionsong_qa", "MillionSongDatasetSpotify", 400, 48_000),
)

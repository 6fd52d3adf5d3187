"""Reader of IEMOCAP: emotions of acted utterances.

Layout of the folder:

    Session1/dialog/EmoEvaluation/Ses01F_impro01.txt
    Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F000.wav
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterator

from data_pipelines.sources.manifest_entry import AudioSpan, ManifestEntry
from data_pipelines.sources.paper.corpus import ManifestEntries, PaperCorpus
from data_pipelines.sources.paper.readers import parse_rows, require_path

DOWNLOAD_HINT = (
    "IEMOCAP is given out on request at sail.usc.edu/iemocap (for research); set --folder to IEMOCAP_full_release, "
    "the folder that contains Session1 to Session5"
)

_SESSIONS = {"train": (1, 2, 3, 4), "test": (5,)}  # each session has different actors, so the test voices are new

# The usual four classes. Excitement counts as happiness; other emotions are left out.
_EMOTIONS = {"ang": "Angry", "hap": "Happy", "exc": "Happy", "sad": "Sad", "neu": "Neutral"}

_TURN = re.compile(r"\[[\d.]+ - [\d.]+\]\s+(\w+)\s+(\w+)\s")  # [start - end], name, emotion that the raters agreed on


def _emotions(folder: pathlib.Path, split: str) -> ManifestEntries:
    """Reads the emotion of each utterance, in one word."""
    sessions = [f"Session{number}" for number in _SESSIONS[split]]
    ratings = {session: require_path(folder, f"{session}/dialog/EmoEvaluation", DOWNLOAD_HINT) for session in sessions}

    def turns() -> Iterator[tuple[str, str, str]]:
        for session, rated in ratings.items():
            for file in sorted(rated.glob("Ses*.txt")):
                for name, emotion in _TURN.findall(file.read_text("latin-1")):
                    if emotion in _EMOTIONS:
                        yield f"{session}/sentences/wav/{file.stem}/{name}.wav", name, emotion

    def parse_row(row: tuple[str, str, str]) -> ManifestEntry:
        path, name, emotion = row
        return ManifestEntry(id=name, audio=(AudioSpan(path),), answer=_EMOTIONS[emotion], task="emotion_recognition")

    return parse_rows(parse_row, turns())


CORPORA = (
    PaperCorpus(
        name="iemocap",
        task="emotion_recognition",
        read=_emotions,
        splits=tuple(_SESSIONS),
        hours=5,
        samples=4_000,
        download_hint=DOWNLOAD_HINT,
    ),
)

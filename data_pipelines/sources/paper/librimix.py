"""Libri2Mix: two readers of LibriSpeech at once.

A folder looks so:

    Libri2Mix/wav16k/max/metadata/mixture_train-100_mix_clean.csv
    Libri2Mix/wav16k/max/train-100/mix_clean/103-1240-0000_1034-121119-0001.wav
    LibriSpeech/train-clean-100/...
"""

from __future__ import annotations

import itertools
import pathlib

from data_pipelines.sources.manifest_entry import AudioSpan, ManifestEntry
from data_pipelines.sources.paper import librispeech
from data_pipelines.sources.paper.corpus import ManifestEntries, PaperCorpus
from data_pipelines.sources.paper.readers import parse_rows, read_csv_rows, require_path, sentence_case

DOWNLOAD_HINT = (
    "Libri2Mix is made of LibriSpeech (CC BY 4.0) with generate_librimix.sh of github.com/JorisCos/LibriMix (MIT); "
    "name the folder it was given, which holds LibriSpeech/ and Libri2Mix/"
)

# A part, and the subset of LibriSpeech it is mixed of. In mode "max" both are heard to their end, as the words need.
_LIBRISPEECH_SUBSETS = {
    "train": {"train-100": "train-clean-100", "train-360": "train-clean-360"},
    "dev": {"dev": "dev-clean"},
    "test": {"test": "test-clean"},
}
_MODE = "Libri2Mix/wav16k/max"


def _overlapped(folder: pathlib.Path, split: str) -> ManifestEntries:
    """What each says, on a line of its own, in the order of the mixture's name: both begin at once."""
    parts = _LIBRISPEECH_SUBSETS[split]
    files = {
        part: require_path(folder, f"{_MODE}/metadata/mixture_{part}_mix_clean.csv", DOWNLOAD_HINT) for part in parts
    }
    spoken = librispeech.utterances(require_path(folder, "LibriSpeech", DOWNLOAD_HINT), list(parts.values()))
    words = {utterance.id: sentence_case(utterance.words) for utterance in spoken}

    def make(row: tuple[str, dict[str, str]]) -> ManifestEntry:
        part, mixture = row
        name = mixture["mixture_ID"]
        answer = "\n".join(words[utterance] for utterance in name.split("_"))
        path = f"{_MODE}/{part}/mix_clean/{name}.wav"  # the table has the paths of the machine that mixed
        return ManifestEntry(id=name, audio=(AudioSpan(path),), answer=answer, task="speech_separation")

    tables = (
        zip(itertools.repeat(part), read_csv_rows(file, ("mixture_ID",), DOWNLOAD_HINT)) for part, file in files.items()
    )
    return parse_rows(make, itertools.chain.from_iterable(tables))


CORPORA = (
    PaperCorpus(
        name="librimix",
        task="speech_separation",
        read=_overlapped,
        splits=tuple(_LIBRISPEECH_SUBSETS),
        hours=260,
        samples=64_000,
        download_hint=DOWNLOAD_HINT,
    ),
)

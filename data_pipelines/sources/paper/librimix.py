"""Reader of Libri2Mix: mixtures of two utterances of LibriSpeech.

Layout of the folder:

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
    "set --folder to the output folder of the script, which contains LibriSpeech/ and Libri2Mix/"
)

# Subsets of Libri2Mix and the subsets of LibriSpeech they are mixed from.
_LIBRISPEECH_SUBSETS = {
    "train": {"train-100": "train-clean-100", "train-360": "train-clean-360"},
    "dev": {"dev": "dev-clean"},
    "test": {"test": "test-clean"},
}
_MODE = "Libri2Mix/wav16k/max"  # in mode "max" the mixture is as long as the longer utterance


def _overlapped(folder: pathlib.Path, split: str) -> ManifestEntries:
    """Reads the transcripts of both utterances, one per line, in the order of the mixture's name."""
    subsets = _LIBRISPEECH_SUBSETS[split]
    files = {
        subset: require_path(folder, f"{_MODE}/metadata/mixture_{subset}_mix_clean.csv", DOWNLOAD_HINT)
        for subset in subsets
    }
    spoken = librispeech.utterances(require_path(folder, "LibriSpeech", DOWNLOAD_HINT), list(subsets.values()))
    words = {utterance.id: sentence_case(utterance.words) for utterance in spoken}

    def parse_row(row: tuple[str, dict[str, str]]) -> ManifestEntry:
        subset, mixture = row
        name = mixture["mixture_ID"]
        answer = "\n".join(words[utterance] for utterance in name.split("_"))
        path = f"{_MODE}/{subset}/mix_clean/{name}.wav"  # the table has paths of another machine
        return ManifestEntry(id=name, audio=(AudioSpan(path),), answer=answer, task="speech_separation")

    tables = (
        zip(itertools.repeat(subset), read_csv_rows(file, ("mixture_ID",), DOWNLOAD_HINT))
        for subset, file in files.items()
    )
    return parse_rows(parse_row, itertools.chain.from_iterable(tables))


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

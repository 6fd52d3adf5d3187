"""Reader of LibriSpeech: transcripts, phones, and the gender of the speakers.

Layout of the folder:

    LibriSpeech/SPEAKERS.TXT
    LibriSpeech/train-clean-100/103/1240/103-1240.trans.txt, 103-1240-0000.flac, 103-1240-0000.TextGrid
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from data_pipelines.sources.manifest_entry import AudioSpan, ManifestEntry
from data_pipelines.sources.paper.corpus import ManifestEntries, PaperCorpus
from data_pipelines.sources.paper.readers import NOT_UTF8, parse_rows, require_path, sentence_case
from salmonn_jax.errors import UserError

DOWNLOAD_HINT = (
    "LibriSpeech is at openslr.org/12 (CC BY 4.0); set --folder to the folder that contains SPEAKERS.TXT and the "
    "subsets, such as train-clean-100/"
)
_ALIGNMENTS_HINT = (
    "merge the TextGrid archive of github.com/CorentinJ/librispeech-alignments (Montreal Forced Aligner) into "
    "LibriSpeech, which is at openslr.org/12 (CC BY 4.0)"
)

_TRAIN = ("train-clean-100", "train-clean-360", "train-other-500")
_HELD_OUT = ("dev_clean", "dev_other", "test_clean", "test_other")

_GENDERS = {"F": "Female", "M": "Male"}
_SILENCES = {"", "sil", "sp"}
_UNKNOWN = "spn"  # label of a word that the aligner did not know


class Utterance(NamedTuple):
    """A line of a transcript file. `path` is the path of the FLAC file, relative to the corpus."""

    id: str
    path: str
    words: str


def utterances(folder: pathlib.Path, subsets: Sequence[str]) -> Iterator[Utterance]:
    """Returns an iterator over the utterances of subsets, in the order of speaker, chapter and number.

    Raises:
      UserError: a subset is missing.
    """
    return _utterances(folder, [require_path(folder, subset, DOWNLOAD_HINT) for subset in subsets])


def _utterances(folder: pathlib.Path, subsets: Sequence[pathlib.Path]) -> Iterator[Utterance]:
    for subset in subsets:
        for file in sorted(subset.glob("*/*/*.trans.txt")):
            chapter = file.parent.relative_to(folder).as_posix()
            for line in file.read_text("utf-8", NOT_UTF8).splitlines():
                name, _, words = line.partition(" ")
                if name:
                    yield Utterance(name, f"{chapter}/{name}.flac", words)


def _subsets(split: str) -> Sequence[str]:
    return _TRAIN if split == "train" else (split.replace("_", "-"),)


def _transcribed(utterance: Utterance) -> ManifestEntry:
    return _entry(utterance, "asr", sentence_case(utterance.words))


def _entry(utterance: Utterance, task: str, answer: str) -> ManifestEntry:
    words = sentence_case(utterance.words)
    return ManifestEntry(
        id=utterance.id, audio=(AudioSpan(utterance.path),), answer=answer, task=task, transcript=words
    )


def _asr(folder: pathlib.Path, split: str) -> ManifestEntries:
    """Reads the transcripts. The split "train" has all 960 hours."""
    return parse_rows(_transcribed, utterances(folder, _subsets(split)))


def _gender(folder: pathlib.Path, split: str) -> ManifestEntries:
    """Reads the gender of the speakers from SPEAKERS.TXT. The split "train" is train-clean-100, as in the paper."""
    lines = require_path(folder, "SPEAKERS.TXT", DOWNLOAD_HINT).read_text("utf-8", NOT_UTF8).splitlines()
    fields = [line.split("|") for line in lines if "|" in line and not line.startswith(";")]
    genders = {speaker.strip(): _GENDERS[sex.strip()] for speaker, sex, *_ in fields if sex.strip() in _GENDERS}

    def parse_row(utterance: Utterance) -> ManifestEntry:
        return _entry(utterance, "gender_recognition", genders[utterance.id.split("-")[0]])

    return parse_rows(parse_row, utterances(folder, _subsets(split)[:1]))


def _phones(folder: pathlib.Path, split: str) -> ManifestEntries:
    """Reads the phones of the Montreal Forced Aligner, with stress marks and without silences.

    Leaves out utterances without an alignment, and utterances with a word that the aligner did not know.
    """
    all_utterances = utterances(folder, _subsets(split))
    for subset in _subsets(split):
        if next((folder / subset).glob("*/*/*.TextGrid"), None) is None:
            raise UserError(f"{folder / subset} has no .TextGrid files; {_ALIGNMENTS_HINT}")

    def aligned() -> Iterator[tuple[Utterance, list[str]]]:
        for utterance in all_utterances:
            grid = (folder / utterance.path).with_suffix(".TextGrid")
            phones = read_phones(grid.read_text("utf-8", NOT_UTF8)) if grid.exists() else None
            if phones is not None:
                yield utterance, phones

    return parse_rows(lambda row: _entry(row[0], "phone_recognition", " ".join(row[1])), aligned())


def read_phones(grid: str) -> list[str] | None:
    """Returns the phones of a TextGrid in long format; None if there is no phone tier or it has an unknown word."""
    tiers = [tier for tier in re.split(r"item \[\d+\]:", grid) if re.search(r'name = "phones"', tier)]
    labels = re.findall(r'text = "([^"]*)"', tiers[0]) if tiers else [_UNKNOWN]
    return None if _UNKNOWN in labels else [label for label in labels if label not in _SILENCES]


CORPORA = (
    PaperCorpus(
        name="librispeech",
        task="asr",
        read=_asr,
        splits=("train", *_HELD_OUT),
        hours=960,
        samples=280_000,
        download_hint=DOWNLOAD_HINT,
    ),
    PaperCorpus(
        name="librispeech_phones",
        task="phone_recognition",
        read=_phones,
        splits=("train", *_HELD_OUT),
        hours=960,
        samples=280_000,
        download_hint=_ALIGNMENTS_HINT,
    ),
    PaperCorpus(
        name="librispeech_gender",
        task="gender_recognition",
        read=_gender,
        splits=("train", *_HELD_OUT),
        hours=100,
        samples=28_000,
        download_hint=DOWNLOAD_HINT,
    ),
)

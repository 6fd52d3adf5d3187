"""Captions of sounds and of music: WavCaps, AudioCaps, Clotho and MusicCaps.

The folders look so:

    WavCaps/json_files/SoundBible/sb_final.json     WavCaps/SoundBible/2218.flac
    AudioCaps/train.csv                             AudioCaps/train/r1nicOVtvkQ.wav
    Clotho/clotho_captions_development.csv          Clotho/development/Crowd.wav
    MusicCaps/musiccaps-public.csv                  MusicCaps/-0Gj8-vB1q4.wav
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from data_pipelines.sources.manifest_entries import Entry, Piece
from data_pipelines.sources.paper.corpus import Entries, PaperCorpus
from data_pipelines.sources.paper.files import array, entries, need, recordings, table

WAVCAPS = (
    "WavCaps is at huggingface.co/datasets/cvssp/WavCaps (academic use only); name the folder that holds json_files/ "
    "and, with the archives unpacked without their paths, AudioSet_SL/, BBC_Sound_Effects/, FreeSound/, SoundBible/"
)
AUDIOCAPS = (
    "the captions of AudioCaps are in dataset/ of github.com/cdjkim/audiocaps (academic use only), its clips on "
    "YouTube; name the folder that holds train.csv, val.csv, test.csv and the clips in train/, val/, test/"
)
CLOTHO = (
    "Clotho 2 is at zenodo.org/records/4783391 (captions for non-commercial use, clips under licences of their own); "
    "name the folder that holds clotho_captions_development.csv and development/"
)
MUSICCAPS = (
    "the captions of MusicCaps are at huggingface.co/datasets/google/MusicCaps (CC BY-SA 4.0), its clips on YouTube; "
    "name the folder that holds musiccaps-public.csv and the clips, each named by its ytid"
)

_LONGEST = 180.0  # seconds; the paper leaves longer clips of WavCaps out, for a caption may tell of any part of them
_BLACKLIST = "json_files/blacklist/blacklist_exclude_test_ac.json"
_WAVCAPS = {
    "AudioSet_SL": ("as_final.json", "AudioSet"),
    "BBC_Sound_Effects": ("bbc_final.json", ""),
    "FreeSound": ("fsd_final.json", "FreeSound"),
    "SoundBible": ("sb_final.json", ""),
}
_AUDIOCAPS = {"train": "train", "dev": "val", "test": "test"}
_CLOTHO = {"train": "development", "dev": "validation", "test": "evaluation"}


def _wavcaps(folder: pathlib.Path, split: str) -> Entries:
    """One caption a clip. Left out are long clips, and the test clips of AudioCaps and Clotho, by WavCaps' own list."""
    files = {source: need(folder, f"json_files/{source}/{name}", WAVCAPS) for source, (name, _) in _WAVCAPS.items()}
    tested = json.loads(need(folder, _BLACKLIST, WAVCAPS).read_text("utf-8"))

    def clips() -> Iterator[tuple[str, dict[str, Any]]]:
        for source, file in files.items():
            left_out = {str(name) for name in tested.get(_WAVCAPS[source][1], ())}
            for clip in array(file, "data", ("id", "caption", "duration"), WAVCAPS):
                if float(clip["duration"]) <= _LONGEST and str(clip["id"]) not in left_out:
                    yield source, clip

    def make(row: tuple[str, dict[str, Any]]) -> Entry:
        source, clip = row
        name = f"{source}/{str(clip['id']).removesuffix('.wav')}"  # ids of AudioSet end in it; all files are FLAC
        return _captioned(name, f"{name}.flac", clip["caption"])

    return entries(make, clips())


def _audiocaps(folder: pathlib.Path, split: str) -> Entries:
    """One caption a training clip, five a clip of the other splits, each an entry of its own.

    A clip is named by its youtube_id, by Y and youtube_id (as in PANNs), or by the audiocap_id of the caption.
    """
    part = _AUDIOCAPS[split]
    file = need(folder, f"{part}.csv", AUDIOCAPS)
    found = recordings(need(folder, part, AUDIOCAPS))

    def make(row: dict[str, str]) -> Entry:
        video, caption = row["youtube_id"], row["audiocap_id"]
        return _captioned(caption, f"{part}/{_named(found, (video, f'Y{video}', caption))}", row["caption"])

    return entries(make, table(file, ("audiocap_id", "youtube_id", "caption"), AUDIOCAPS))


def _clotho(folder: pathlib.Path, split: str) -> Entries:
    """Five captions a clip, each an entry of its own."""
    part = _CLOTHO[split]
    columns = [f"caption_{number}" for number in range(1, 6)]
    rows = table(need(folder, f"clotho_captions_{part}.csv", CLOTHO), ("file_name", *columns), CLOTHO)

    def make(row: tuple[dict[str, str], str]) -> Entry:
        clip, column = row
        return _captioned(f"{clip['file_name']}#{column}", f"{part}/{clip['file_name']}", clip[column])

    return entries(make, ((row, column) for row in rows for column in columns))


def _musiccaps(folder: pathlib.Path, split: str) -> Entries:
    """Clips from the evaluation part of AudioSet are the test split, the others the training split."""
    columns = ("ytid", "caption", "is_audioset_eval")
    rows = table(need(folder, "musiccaps-public.csv", MUSICCAPS), columns, MUSICCAPS)
    found = recordings(folder)

    def make(row: dict[str, str]) -> Entry:
        return _captioned(row["ytid"], _named(found, (row["ytid"],)), row["caption"], "music_description")

    return entries(make, (row for row in rows if (row["is_audioset_eval"] == "True") == (split == "test")))


def _captioned(name: str, path: str, caption: str, task: str = "audiocaption") -> Entry:
    return Entry(id=name, audio=(Piece(path),), answer=caption.strip(), task=task)


def _named(found: dict[str, str], stems: Sequence[str]) -> str:
    """The file of the first of these names that there is. Where there is none, one that will be counted as missing."""
    return next((found[stem] for stem in stems if stem in found), f"{stems[0]}.wav")


CORPORA = (
    PaperCorpus(
        name="wavcaps",
        task="audiocaption",
        read=_wavcaps,
        splits=("train",),
        hours=2800,
        samples=370_000,
        where=WAVCAPS,
    ),
    PaperCorpus(
        name="audiocaps",
        task="audiocaption",
        read=_audiocaps,
        splits=tuple(_AUDIOCAPS),
        hours=130,
        samples=48_000,
        where=AUDIOCAPS,
    ),
    PaperCorpus(
        name="clotho",
        task="audiocaption",
        read=_clotho,
        splits=tuple(_CLOTHO),
        hours=24,
        samples=4_000,
        where=CLOTHO,
    ),
    PaperCorpus(
        name="musiccaps",
        task="music_description",
        read=_musiccaps,
        splits=("train", "test"),
        hours=14,
        samples=3_000,
        where=MUSICCAPS,
    ),
)

"""Readers of captions of sounds and music: WavCaps, AudioCaps, Clotho and MusicCaps.

Layout of the folders:

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

from data_pipelines.sources.manifest_entry import AudioSpan, ManifestEntry
from data_pipelines.sources.paper.corpus import ManifestEntries, PaperCorpus
from data_pipelines.sources.paper.readers import (
    audio_files_by_stem,
    parse_rows,
    read_csv_rows,
    read_json_array,
    require_path,
)

WAVCAPS_DOWNLOAD = (
    "WavCaps is at huggingface.co/datasets/cvssp/WavCaps (academic use only); set --folder to the folder that "
    "contains json_files/ and, with the archives unpacked without their paths, AudioSet_SL/, BBC_Sound_Effects/, "
    "FreeSound/, SoundBible/"
)
AUDIOCAPS_DOWNLOAD = (
    "the captions of AudioCaps are in dataset/ of github.com/cdjkim/audiocaps (academic use only), its clips on "
    "YouTube; set --folder to the folder that contains train.csv, val.csv, test.csv, and the clips in train/, val/ and "
    "test/"
)
CLOTHO_DOWNLOAD = (
    "Clotho 2 is at zenodo.org/records/4783391 (captions for non-commercial use, clips under licences of their own); "
    "set --folder to the folder that contains clotho_captions_development.csv and development/"
)
MUSICCAPS_DOWNLOAD = (
    "the captions of MusicCaps are at huggingface.co/datasets/google/MusicCaps (CC BY-SA 4.0), its clips on YouTube; "
    "set --folder to the folder that contains musiccaps-public.csv and the clips, each named by its ytid"
)

_MAX_SECONDS = 180.0  # the paper leaves out longer clips of WavCaps
_BLACKLIST = "json_files/blacklist/blacklist_exclude_test_ac.json"
_WAVCAPS_SUBSETS = {
    "AudioSet_SL": ("as_final.json", "AudioSet"),
    "BBC_Sound_Effects": ("bbc_final.json", ""),
    "FreeSound": ("fsd_final.json", "FreeSound"),
    "SoundBible": ("sb_final.json", ""),
}
_AUDIOCAPS_SPLITS = {"train": "train", "dev": "val", "test": "test"}
_CLOTHO_SPLITS = {"train": "development", "dev": "validation", "test": "evaluation"}


def _wavcaps(folder: pathlib.Path, split: str) -> ManifestEntries:
    """Reads one caption per clip.

    Leaves out long clips, and the clips on WavCaps' list of the test clips of AudioCaps and Clotho.
    """
    files = {
        source: require_path(folder, f"json_files/{source}/{name}", WAVCAPS_DOWNLOAD)
        for source, (name, _) in _WAVCAPS_SUBSETS.items()
    }
    test_clips = json.loads(require_path(folder, _BLACKLIST, WAVCAPS_DOWNLOAD).read_text("utf-8"))

    def clips() -> Iterator[tuple[str, dict[str, Any]]]:
        for source, file in files.items():
            excluded = {str(name) for name in test_clips.get(_WAVCAPS_SUBSETS[source][1], ())}
            for clip in read_json_array(file, "data", ("id", "caption", "duration"), WAVCAPS_DOWNLOAD):
                if float(clip["duration"]) <= _MAX_SECONDS and str(clip["id"]) not in excluded:
                    yield source, clip

    def parse_row(row: tuple[str, dict[str, Any]]) -> ManifestEntry:
        source, clip = row
        name = f"{source}/{str(clip['id']).removesuffix('.wav')}"  # ids of AudioSet end in .wav, but all files are FLAC
        return _caption_entry(name, f"{name}.flac", clip["caption"])

    return parse_rows(parse_row, clips())


def _audiocaps(folder: pathlib.Path, split: str) -> ManifestEntries:
    """Reads one entry per caption: one for each training clip, five for each clip of the other splits.

    The file name of a clip is its youtube_id, "Y" + youtube_id (as in PANNs), or the audiocap_id of the caption.
    """
    official_split = _AUDIOCAPS_SPLITS[split]
    file = require_path(folder, f"{official_split}.csv", AUDIOCAPS_DOWNLOAD)
    files_by_stem = audio_files_by_stem(require_path(folder, official_split, AUDIOCAPS_DOWNLOAD))

    def parse_row(row: dict[str, str]) -> ManifestEntry:
        video, caption = row["youtube_id"], row["audiocap_id"]
        return _caption_entry(
            caption, f"{official_split}/{_find_file(files_by_stem, (video, f'Y{video}', caption))}", row["caption"]
        )

    return parse_rows(parse_row, read_csv_rows(file, ("audiocap_id", "youtube_id", "caption"), AUDIOCAPS_DOWNLOAD))


def _clotho(folder: pathlib.Path, split: str) -> ManifestEntries:
    """Reads one entry per caption, five for each clip."""
    official_split = _CLOTHO_SPLITS[split]
    columns = [f"caption_{number}" for number in range(1, 6)]
    rows = read_csv_rows(
        require_path(folder, f"clotho_captions_{official_split}.csv", CLOTHO_DOWNLOAD),
        ("file_name", *columns),
        CLOTHO_DOWNLOAD,
    )

    def parse_row(row: tuple[dict[str, str], str]) -> ManifestEntry:
        clip, column = row
        return _caption_entry(f"{clip['file_name']}#{column}", f"{official_split}/{clip['file_name']}", clip[column])

    return parse_rows(parse_row, ((row, column) for row in rows for column in columns))


def _musiccaps(folder: pathlib.Path, split: str) -> ManifestEntries:
    """Reads one caption per clip. Clips of AudioSet's evaluation split are the test split."""
    columns = ("ytid", "caption", "is_audioset_eval")
    rows = read_csv_rows(require_path(folder, "musiccaps-public.csv", MUSICCAPS_DOWNLOAD), columns, MUSICCAPS_DOWNLOAD)
    files_by_stem = audio_files_by_stem(folder)

    def parse_row(row: dict[str, str]) -> ManifestEntry:
        return _caption_entry(
            row["ytid"], _find_file(files_by_stem, (row["ytid"],)), row["caption"], "music_description"
        )

    return parse_rows(parse_row, (row for row in rows if (row["is_audioset_eval"] == "True") == (split == "test")))


def _caption_entry(name: str, path: str, caption: str, task: str = "audiocaption") -> ManifestEntry:
    return ManifestEntry(id=name, audio=(AudioSpan(path),), answer=caption.strip(), task=task)


def _find_file(files_by_stem: dict[str, str], stems: Sequence[str]) -> str:
    """Returns the file of the first stem that exists. If none exists, returns a path that is rejected as missing."""
    return next((files_by_stem[stem] for stem in stems if stem in files_by_stem), f"{stems[0]}.wav")


CORPORA = (
    PaperCorpus(
        name="wavcaps",
        task="audiocaption",
        read=_wavcaps,
        splits=("train",),
        hours=2800,
        samples=370_000,
        download_hint=WAVCAPS_DOWNLOAD,
    ),
    PaperCorpus(
        name="audiocaps",
        task="audiocaption",
        read=_audiocaps,
        splits=tuple(_AUDIOCAPS_SPLITS),
        hours=130,
        samples=48_000,
        download_hint=AUDIOCAPS_DOWNLOAD,
    ),
    PaperCorpus(
        name="clotho",
        task="audiocaption",
        read=_clotho,
        splits=tuple(_CLOTHO_SPLITS),
        hours=24,
        samples=4_000,
        download_hint=CLOTHO_DOWNLOAD,
    ),
    PaperCorpus(
        name="musiccaps",
        task="music_description",
        read=_musiccaps,
        splits=("train", "test"),
        hours=14,
        samples=3_000,
        download_hint=MUSICCAPS_DOWNLOAD,
    ),
)

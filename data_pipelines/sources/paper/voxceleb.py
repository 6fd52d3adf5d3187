"""VoxCeleb1: whether two utterances are by one person.

A folder looks so:

    dev/wav/id10001/1zcIwhmdeo4/00001.wav
    test/wav/id10270/5r0dWxy17C8/00001.wav
    veri_test.txt
"""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

from data_pipelines.sources.manifest_entry import AudioSpan, ManifestEntry
from data_pipelines.sources.paper.corpus import ManifestEntries, PaperCorpus
from data_pipelines.sources.paper.readers import parse_rows, require_path
from salmonn_jax.errors import UserError

DOWNLOAD_HINT = (
    "VoxCeleb1 is given out on request at robots.ox.ac.uk/~vgg/data/voxceleb (CC BY 4.0 for its annotations, the "
    "speech is from YouTube); name the folder that holds dev/wav/, test/wav/ and veri_test.txt"
)

Item = TypeVar("Item")


class _Pair(NamedTuple):
    same: bool
    first: str
    second: str


def _verification(folder: pathlib.Path, split: str) -> ManifestEntries:
    """Yes or No. Two utterances are played one after the other.

    The test split is the trials that VoxCeleb1 itself lists. For training, each utterance is followed once by another
    of the same speaker, from another video where there is one, and once by one of another speaker.
    """
    if split == "test":
        return parse_rows(_trial, require_path(folder, "veri_test.txt", DOWNLOAD_HINT).read_text("utf-8").splitlines())
    speakers = [
        speaker for speaker in map(_videos, _folders(require_path(folder, "dev/wav", DOWNLOAD_HINT))) if speaker
    ]
    if len(speakers) < 2:
        raise UserError(f"{folder / 'dev/wav'} holds {len(speakers)} speaker(s), and pairs take two; {DOWNLOAD_HINT}")
    return parse_rows(_judged, _pairs(speakers))


def _judged(pair: _Pair) -> ManifestEntry:
    return ManifestEntry(
        id=f"{pair.first}+{pair.second}",
        audio=(AudioSpan(pair.first), AudioSpan(pair.second)),
        answer="Yes" if pair.same else "No",
        task="speaker_verification",
    )


def _trial(line: str) -> ManifestEntry:
    same, first, second = line.split()
    return _judged(_Pair(same == "1", f"test/wav/{first}", f"test/wav/{second}"))


def _folders(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir())


def _videos(speaker: pathlib.Path) -> list[list[str]]:
    """The utterances of a speaker, by video."""
    videos = [sorted(video.glob("*.wav")) for video in _folders(speaker)]
    return [[f"dev/wav/{speaker.name}/{path.parent.name}/{path.name}" for path in video] for video in videos if video]


def _pairs(speakers: Sequence[list[list[str]]]) -> Iterator[_Pair]:
    for s, videos in enumerate(speakers):
        for v, video in enumerate(videos):
            if len(videos) == len(video) == 1:
                continue  # all there is of the speaker: with no pair of one kind, none of the other either
            for u, first in enumerate(video):
                if len(videos) > 1:
                    same = _any(_other(videos, v, f"video {first}"), f"same {first}")
                else:
                    same = _other(video, u, f"same {first}")
                other = _any(_other(speakers, s, f"speaker {first}"), f"speaker's video {first}")
                yield _Pair(True, first, same)
                yield _Pair(False, first, _any(other, f"other {first}"))


def _any(items: Sequence[Item], seed: str) -> Item:
    """One of the items. The seed alone decides which, so that a folder has the same pairs on every machine."""
    drawn = hashlib.blake2b(seed.encode(), digest_size=8).digest()
    return items[int.from_bytes(drawn, "big") % len(items)]


def _other(items: Sequence[Item], index: int, seed: str) -> Item:
    """One of the items, but not that at `index`."""
    return items[(index + _any(range(1, len(items)), seed)) % len(items)]


CORPORA = (
    PaperCorpus(
        name="voxceleb1",
        task="speaker_verification",
        read=_verification,
        splits=("train", "test"),
        hours=1200,
        samples=520_000,
        download_hint=DOWNLOAD_HINT,
    ),
)

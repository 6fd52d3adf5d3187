"""Reader of VoxCeleb1: pairs of utterances of the same speaker or of two speakers.

Layout of the folder:

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
from data_pipelines.sources.paper.readers import NOT_UTF8, parse_rows, require_path
from salmonn_jax.errors import UserError

DOWNLOAD_HINT = (
    "VoxCeleb1 is given out on request at robots.ox.ac.uk/~vgg/data/voxceleb (CC BY 4.0 for its annotations, the "
    "speech is from YouTube); set --folder to the folder that contains dev/wav/, test/wav/ and veri_test.txt"
)

Item = TypeVar("Item")


class _Pair(NamedTuple):
    same: bool
    first: str
    second: str


def _verification(folder: pathlib.Path, split: str) -> ManifestEntries:
    """Reads pairs of utterances, which are joined to one clip, with the answer Yes or No.

    The test split has the trials of VoxCeleb1. The training split has two pairs for each utterance: one with another
    utterance of the same speaker, from another video if possible, and one with an utterance of another speaker.
    """
    if split == "test":
        file = require_path(folder, "veri_test.txt", DOWNLOAD_HINT)
        return parse_rows(_parse_trial, file.read_text("utf-8", NOT_UTF8).splitlines())
    speakers = [
        speaker for speaker in map(_videos, _folders(require_path(folder, "dev/wav", DOWNLOAD_HINT))) if speaker
    ]
    if len(speakers) < 2:
        raise UserError(
            f"{folder / 'dev/wav'} has {len(speakers)} speaker(s), but pairs need at least two; {DOWNLOAD_HINT}"
        )
    return parse_rows(_pair_entry, _pairs(speakers))


def _pair_entry(pair: _Pair) -> ManifestEntry:
    return ManifestEntry(
        id=f"{pair.first}+{pair.second}",
        audio=(AudioSpan(pair.first), AudioSpan(pair.second)),
        answer="Yes" if pair.same else "No",
        task="speaker_verification",
    )


def _parse_trial(line: str) -> ManifestEntry:
    same, first, second = line.split()
    return _pair_entry(_Pair(same == "1", f"test/wav/{first}", f"test/wav/{second}"))


def _folders(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir())


def _videos(speaker: pathlib.Path) -> list[list[str]]:
    """Returns the paths of the utterances of a speaker, one list per video."""
    videos = [sorted(video.glob("*.wav")) for video in _folders(speaker)]
    return [[f"dev/wav/{speaker.name}/{path.parent.name}/{path.name}" for path in video] for video in videos if video]


def _pairs(speakers: Sequence[list[list[str]]]) -> Iterator[_Pair]:
    for speaker_index, videos in enumerate(speakers):
        for video_index, video in enumerate(videos):
            if len(videos) == len(video) == 1:
                continue  # the only utterance of the speaker; skipped, so that both kinds of pairs are equally frequent
            for utterance_index, first in enumerate(video):
                if len(videos) > 1:
                    same = _choose(_choose_other(videos, video_index, f"video {first}"), f"same {first}")
                else:
                    same = _choose_other(video, utterance_index, f"same {first}")
                other = _choose(_choose_other(speakers, speaker_index, f"speaker {first}"), f"speaker's video {first}")
                yield _Pair(True, first, same)
                yield _Pair(False, first, _choose(other, f"other {first}"))


def _choose(items: Sequence[Item], seed: str) -> Item:
    """Returns an item that depends on the seed only, so that a folder gives the same pairs on every machine."""
    digest = hashlib.blake2b(seed.encode(), digest_size=8).digest()
    return items[int.from_bytes(digest, "big") % len(items)]


def _choose_other(items: Sequence[Item], index: int, seed: str) -> Item:
    """Returns an item other than the one at `index`."""
    return items[(index + _choose(range(1, len(items)), seed)) % len(items)]


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

"""`Utterance`: a recording with its transcript, and the rules by which utterances are split."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import zlib

from data_pipelines.minicorpus.recordings import clean_text

MAX_CHARS = 80  # of a text; longer ones are rare in recordings of a few seconds
TEST_GROUPS = 12  # one group of utterances in this many is the test split


@dataclasses.dataclass(frozen=True, kw_only=True)
class Utterance:
    """A recording of one voice, with its texts as the files of the package have them.

    Attributes:
      id: identifier, unique within the source.
      path: audio file.
      language: language that is spoken.
      voice: name of the voice.
      unheard: whether the voice is held out from training.
      text: words that are spoken.
      english: the same in English; "" if unknown.
      group: utterances of the same group are in the same split, because their texts belong together: translations of a
        prompt, or lines of a scene.
    """

    id: str
    path: pathlib.Path
    language: str
    voice: str
    unheard: bool
    text: str
    english: str
    group: str

    @property
    def split(self) -> str:
        """Returns "unheard" for a voice that is held out, else "test" for one group in `TEST_GROUPS`, else "train"."""
        if self.unheard:
            return "unheard"
        return "test" if is_test_group(self.group) else "train"


def is_test_group(group: str) -> bool:
    """Returns whether the utterances of a group are not in training: one group in `TEST_GROUPS`."""
    return zlib.crc32(group.encode()) % TEST_GROUPS == 0


def answer_text(text: str) -> str:
    """Returns a text in lower case without punctuation; "" if it is not an answer: it has digits or is too long."""
    cleaned = clean_text(text)
    return "" if re.search(r"\d", cleaned) or len(cleaned) > MAX_CHARS else cleaned

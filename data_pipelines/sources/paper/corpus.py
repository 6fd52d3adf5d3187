"""What is known of a corpus before it is read."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterator

from data_pipelines.examples import BadExample
from data_pipelines.sources.manifest_entry import ManifestEntry

# A line that makes no entry stands for itself as the reason why, so that it is counted and the others are read.
ManifestEntries = Iterator[ManifestEntry | BadExample]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PaperCorpus:
    """One corpus, read for one task; the tasks are mixed separately.

    Attributes:
      name: what it is called on the command line.
      task: the task of its entries; annotations of questions may also hold inference_QA and gender_QA.
      read: (folder, split) -> its entries, in the same order each time, paths of audio relative to the folder.
      splits: what `read` takes.
      hours, samples: the size of the training split in the paper, rounded as there.
      where: where it comes from and on what terms; ends the message when something is missing.
    """

    name: str
    task: str
    read: Callable[[pathlib.Path, str], ManifestEntries]
    splits: tuple[str, ...]
    hours: int
    samples: int
    download_hint: str

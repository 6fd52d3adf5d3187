"""Description of a corpus of the paper. Each reader module has one `PaperCorpus` for each corpus and task."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterator

from data_pipelines.examples import BadExample
from data_pipelines.sources.manifest_entry import ManifestEntry

# A row that cannot be converted is yielded as a BadExample. A generator that raised it would end.
ManifestEntries = Iterator[ManifestEntry | BadExample]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PaperCorpus:
    """A corpus, read for one task. A corpus with several tasks has one `PaperCorpus` for each.

    Attributes:
      name: name on the command line.
      task: task of the entries. Annotations of questions may also have the tasks inference_QA and gender_QA.
      read: (folder, split) -> entries, always in the same order, with audio paths relative to the folder.
      splits: names of the splits.
      hours: hours of the training split according to the paper.
      samples: number of training samples according to the paper.
      download_hint: origin and licence of the corpus, which error messages about missing files end with.
    """

    name: str
    task: str
    read: Callable[[pathlib.Path, str], ManifestEntries]
    splits: tuple[str, ...]
    hours: int
    samples: int
    download_hint: str

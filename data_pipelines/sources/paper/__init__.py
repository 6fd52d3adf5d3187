"""Readers of the corpora of the SALMONN paper. `launch.prepare corpus` uses them.

    for entry in paper.read("librispeech", pathlib.Path("LibriSpeech"), "train"): ...

Each reader takes the folder in which the corpus is distributed. It downloads nothing and opens no audio; a missing clip
is rejected when the clip is read.
"""

from __future__ import annotations

import pathlib

from data_pipelines.sources.paper import (
    captions,
    covost,
    gigaspeech,
    iemocap,
    librimix,
    librispeech,
    salmonn_qa,
    voxceleb,
)
from data_pipelines.sources.paper.corpus import ManifestEntries, PaperCorpus
from salmonn_jax.errors import UserError, unknown_name

__all__ = ["PAPER_CORPORA", "PaperCorpus", "read"]

_MODULES = (librispeech, gigaspeech, captions, covost, iemocap, librimix, voxceleb, salmonn_qa)
PAPER_CORPORA = {corpus.name: corpus for module in _MODULES for corpus in module.CORPORA}


def read(name: str, folder: pathlib.Path, split: str) -> ManifestEntries:
    """Reads the manifest entries of a corpus. Their order is the same in every call.

    Args:
      name: name of the corpus, a key of `PAPER_CORPORA`.
      folder: folder of the corpus.
      split: a split of the corpus.

    Returns:
      An iterator over entries, whose audio paths are relative to `folder`. A row that cannot be converted is a
        BadExample in place of an entry. An answer is empty if the corpus has none.

    Raises:
      UserError: the corpus or split is unknown, or the folder does not have the expected files. Errors in the content
        of the files are raised during iteration.
    """
    if name not in PAPER_CORPORA:
        raise unknown_name("corpus of the paper", name, PAPER_CORPORA)
    corpus = PAPER_CORPORA[name]
    if split not in corpus.splits:
        raise unknown_name(f"split of {name}", split, corpus.splits)
    if not folder.is_dir():
        raise UserError(f"the folder {folder} is missing; {corpus.download_hint}")
    return corpus.read(folder, split)

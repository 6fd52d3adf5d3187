"""The corpora SALMONN was trained on, read from the folders in which they are distributed.

    for entry in paper.read("librispeech", pathlib.Path("LibriSpeech"), "train"): ...

Nothing is downloaded, and no audio is opened: a clip that is not there is counted when it is read.
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
    """The entries of a corpus: the same folder gives the same entries in the same order.

    Args:
      name: one of `PAPER_CORPORA`.
      folder: where the corpus lies; paths of audio are relative to it.
      split: one of its splits.

    Returns:
      Entries, and in the place of a line that makes none the BadExample that says why. Answers may be empty, where the
        corpus has none.

    Raises:
      UserError: there is no such corpus or split, or the folder has not its layout. What the files hold is only seen
        while iterating.
    """
    if name not in PAPER_CORPORA:
        raise unknown_name("corpus of the paper", name, PAPER_CORPORA)
    corpus = PAPER_CORPORA[name]
    if split not in corpus.splits:
        raise unknown_name(f"split of {name}", split, corpus.splits)
    if not folder.is_dir():
        raise UserError(f"the folder {folder} is missing; {corpus.download_hint}")
    return corpus.read(folder, split)

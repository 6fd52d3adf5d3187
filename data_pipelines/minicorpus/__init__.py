"""Small corpus of real recordings, built locally in about two minutes. The quickstart trains on it.

    python -m launch.prepare minicorpus

It has speech in five languages, sounds, music and text. The recordings come from Debian packages; on machines without
apt, a synthesiser replaces them. `prepare` builds the corpus and its tokenizer, `open_source` reads it.
"""

from __future__ import annotations

from data_pipelines.minicorpus.build import check_ready, notes, prepare, source_folder, sources_with_audio
from data_pipelines.minicorpus.clips import FILLER, SIZES
from data_pipelines.minicorpus.recordings import MAX_CLIP_SECONDS
from data_pipelines.sources.prepared import PreparedSource, open_split, split_names
from salmonn_jax.errors import unknown_name
from salmonn_jax.paths import Path

__all__ = ["FILLER", "MAX_CLIP_SECONDS", "SOURCES", "notes", "open_source", "prepare", "sources_with_audio", "splits"]

SOURCES = tuple(SIZES)


def open_source(data_dir: Path, source: str, split: str) -> PreparedSource:
    """Opens a split of a source as a random-access sequence of examples, which can be pickled.

    Args:
      data_dir: directory in which `prepare` built the corpus.
      source: one of `SOURCES`.
      split: "train", "test" or, if the source has it, "unheard".

    Raises:
      UserError: there is no finished corpus, or it does not have the source or split.
    """
    _check_source(data_dir, source)
    return open_split(source_folder(data_dir, source), source, split)


def splits(data_dir: Path, source: str) -> list[str]:
    """Returns the names of the splits of a source.

    Args:
      data_dir: directory in which `prepare` built the corpus.
      source: one of `SOURCES`.

    Raises:
      UserError: there is no finished corpus, or it does not have the source.
    """
    _check_source(data_dir, source)
    return split_names(source_folder(data_dir, source))


def _check_source(data_dir: Path, source: str) -> None:
    if source not in SOURCES:
        raise unknown_name("source of the mini-corpus", source, SOURCES)
    check_ready(data_dir)

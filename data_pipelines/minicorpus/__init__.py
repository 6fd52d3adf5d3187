"""A small corpus of real recordings, built on this machine in about two minutes: the quickstart's data.

    python -m launch.prepare minicorpus

Speech in five languages, sounds, music and text, from recordings that Debian packages carry (speech from a synthesiser
where there is no apt). `prepare` builds it, `read` reads it; the cache also holds the tokenizer it is read with.
"""

from __future__ import annotations

import pathlib

from data_pipelines.minicorpus.build import check_ready, notes, prepare, source_folder, sources_with_audio
from data_pipelines.minicorpus.clips import FILLER, SIZES
from data_pipelines.minicorpus.recordings import MAX_CLIP_SECONDS
from data_pipelines.sources.prepared import PreparedSource, open_split
from salmonn_jax.errors import unknown_name

__all__ = ["FILLER", "MAX_CLIP_SECONDS", "SOURCES", "notes", "open_source", "prepare", "sources_with_audio"]

SOURCES = tuple(SIZES)


def open_source(data_dir: pathlib.Path, source: str, split: str) -> PreparedSource:
    """Opens a split of a source: a sequence of `data_pipelines.examples.Example`, picklable.

    Args:
      cache: where `prepare` built the corpus.
      source: one of `SOURCES`.
      split: "train", "test" or, where the source has it, "unheard".

    Raises:
      UserError: the corpus is not there, or has no such source or split.
    """
    if source not in SOURCES:
        raise unknown_name("source of the mini-corpus", source, SOURCES)
    check_ready(data_dir)
    return open_split(source_folder(data_dir, source), source, split)

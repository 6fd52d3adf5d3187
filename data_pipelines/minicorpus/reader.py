"""Reads the mini-corpus back."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import SupportsIndex

from data_pipelines.examples import Example
from data_pipelines.minicorpus.signals import from_flac
from salmonn_jax.errors import UserError


class Clips:
    """The examples of one split of one source: a random-access sequence.

    The order is that of the files, which is shuffled. Picklable; every process opens the files for itself, when it
    first reads.

    Args:
      folder: a finished configuration of the builder.
      source: goes into the examples.
      split: one the folder holds.
    """

    def __init__(self, folder: pathlib.Path, source: str, split: str):
        self._folder, self._source, self._split = folder, source, split
        self._records = None

    def __len__(self) -> int:
        return len(self._opened())

    def __getitem__(self, index: SupportsIndex) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(index)  # which also ends a loop over the clips
        record = self._opened()[index]
        audio = record["audio"]
        return Example(audio=from_flac(audio) if audio else None, source=self._source, **_texts(record))

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_records": None}

    def __repr__(self) -> str:
        return f"Clips({str(self._folder)!r}, {self._source!r}, {self._split!r})"

    def without_audio(self) -> list[Example]:
        """All examples, their audio not decoded but left out: fast, for what only wants the text."""
        records = self._opened()
        return [Example(audio=None, source=self._source, **_texts(records[i])) for i in range(len(records))]

    def _opened(self):
        if self._records is None:
            import tensorflow_datasets as tfds  # slow to import

            self._records = tfds.builder_from_directory(str(self._folder)).as_data_source(self._split)
        return self._records


def splits(folder: pathlib.Path) -> list[str]:
    """The splits that a finished configuration holds."""
    import tensorflow_datasets as tfds

    return list(tfds.builder_from_directory(str(folder)).info.splits)


def open_split(folder: pathlib.Path, source: str, split: str) -> Clips:
    """Opens a split.

    Raises:
      UserError: the source has no such split.
    """
    known = splits(folder)
    if split not in known:
        raise UserError(f"the source {source!r} has no split {split!r}; it has: {', '.join(known)}")
    return Clips(folder, source, split)


def _texts(record: Mapping) -> dict[str, str]:
    return {name: record[name].decode() for name in ("id", "prompt", "answer", "task", "transcript")}

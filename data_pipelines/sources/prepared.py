"""Reads a prepared data set: TFDS metadata beside ArrayRecord files, as random access to examples."""

from __future__ import annotations

import os
from typing import SupportsIndex

from data_pipelines.examples import Example
from data_pipelines.sources.records import from_record
from salmonn_jax.errors import UserError


class PreparedSource:
    """The examples of one split of a data set: a random-access sequence, in the order of the files.

    Picklable; every process opens the files for itself, when it first reads.

    Args:
      folder: a finished data set: a local folder, which a mounted bucket is too, or a gs:// URL, which array_record
        opens itself where TFDS finds gcsfs for its metadata. array_record opens no other URLs.
      source: goes into the examples.
      split: one the folder holds.
    """

    def __init__(self, folder: str | os.PathLike, source: str, split: str):
        self._folder, self._source, self._split = os.fspath(folder), source, split
        self._records = None

    def __len__(self) -> int:
        return len(self._opened())

    def __getitem__(self, index: SupportsIndex) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(index)  # which also ends a loop over the examples
        return from_record(self._opened()[index], self._source)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_records": None}

    def __repr__(self) -> str:
        return f"PreparedSource({self._folder!r}, {self._source!r}, {self._split!r})"

    def examples_without_audio(self) -> list[Example]:
        """All examples, their audio not decoded but left out: fast, for what only wants the text."""
        records = self._opened()
        return [from_record(records[i], self._source, decode_audio=False) for i in range(len(records))]

    def _opened(self):
        if self._records is None:
            import tensorflow_datasets as tfds  # slow to import

            builder = tfds.builder_from_directory(self._folder)
            raw = tfds.decode.DeserializeMethod.RAW_BYTES
            self._records = builder.as_data_source(self._split, deserialize_method=raw)
        return self._records


def split_names(folder: str | os.PathLike) -> list[str]:
    """The splits that a finished data set holds. Raises UserError where there is none."""
    import tensorflow_datasets as tfds

    try:
        return list(tfds.builder_from_directory(os.fspath(folder)).info.splits)
    except tfds.core.dataset_info.DatasetInfoFileError:
        raise UserError(f"no data set in {folder}; make one with: python -m launch.prepare manifest") from None


def open_split(folder: str | os.PathLike, source: str, split: str) -> PreparedSource:
    """Opens a split.

    Raises:
      UserError: there is no data set, or it has no such split.
    """
    known = split_names(folder)
    if split not in known:
        raise UserError(f"the source {source!r} has no split {split!r}; it has: {', '.join(known)}")
    return PreparedSource(folder, source, split)

"""Random access to the examples of a prepared data set, which consists of TFDS metadata and ArrayRecord files."""

from __future__ import annotations

import os
from typing import SupportsIndex

from data_pipelines.examples import Example
from data_pipelines.sources.records import from_record
from salmonn_jax.errors import UserError
from salmonn_jax.paths import as_path, is_url


class PreparedSource:
    """Random-access sequence of the examples of one split, in the order of the files.

    It can be pickled. Each process opens the files at its first read.

    Args:
      folder: folder of a finished data set: a local path (for example of a mounted bucket) or a gs:// URL.
        array_record opens no other URLs.
      source: name of the source, for the examples.
      split: a split of the data set.
    """

    def __init__(self, folder: str | os.PathLike, source: str, split: str):
        self._folder, self._source, self._split = os.fspath(folder), source, split
        self._records = None

    def __len__(self) -> int:
        return len(self._opened())

    def __getitem__(self, index: SupportsIndex) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(index)  # Python's iteration over a sequence ends at an IndexError
        return from_record(self._opened()[index], self._source)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_records": None}

    def __repr__(self) -> str:
        return f"PreparedSource({self._folder!r}, {self._source!r}, {self._split!r})"

    def read_record(self, index: int) -> bytes:
        """Returns a record as it is stored (see `data_pipelines.sources.records`)."""
        return self._opened()[index]

    def read_texts(self) -> list[Example]:
        """Returns all examples with `audio=None`. This is fast, because no audio is decoded."""
        return [from_record(self.read_record(i), self._source, decode_audio=False) for i in range(len(self))]

    def _opened(self):
        if self._records is None:
            import tensorflow_datasets as tfds  # slow to import

            builder = tfds.builder_from_directory(str(as_path(self._folder)))
            raw = tfds.decode.DeserializeMethod.RAW_BYTES
            self._records = builder.as_data_source(self._split, deserialize_method=raw)
        return self._records


def split_names(folder: str | os.PathLike) -> list[str]:
    """Returns the names of the splits of a finished data set. Raises UserError if there is no data set."""
    import tensorflow_datasets as tfds

    try:
        return list(tfds.builder_from_directory(str(as_path(folder))).info.splits)
    except tfds.core.dataset_info.DatasetInfoFileError:
        raise UserError(f"no data set in {folder}; make one with: python -m launch.prepare manifest") from None


def open_split(folder: str | os.PathLike, source: str, split: str) -> PreparedSource:
    """Opens one split of a prepared data set.

    Args:
      folder: folder of the data set (see `PreparedSource`).
      source: name of the source, for the examples.
      split: name of the split.

    Raises:
      UserError: there is no data set, or it does not have this split.
    """
    if is_url(as_path(folder)) and not os.fspath(folder).startswith("gs://"):
        raise UserError(f"{folder}: array_record reads only local files and gs://; copy the data set there")
    known = split_names(folder)
    if split not in known:
        raise UserError(f"the source {source!r} has no split {split!r}; it has: {', '.join(known)}")
    return PreparedSource(folder, source, split)

"""Data sets as rows whose texts, hashes of audio and samples are read separately. `EvaluationRows` joins several.

An evaluation reads all texts first, then hashes the stored bytes of all clips, and decodes a clip only shortly before
the model gets it.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import os
import threading
from collections.abc import Sequence
from typing import Protocol

import fsspec
import numpy as np

from data_pipelines.examples import BadExample, Example
from data_pipelines.sources.manifest import ManifestSource, to_example
from data_pipelines.sources.manifest_entry import AudioSpan
from data_pipelines.sources.prepared import PreparedSource
from data_pipelines.sources.records import from_record, stored_audio
from salmonn_jax import paths
from salmonn_jax.errors import UserError

_BLOCK_BYTES = 1 << 20
_MAX_CACHED_HASHES = 4096  # files whose hash is kept, for manifests with many segments of the same file


class RowSource(Protocol):
    """Rows of one split of one data set."""

    def __len__(self) -> int: ...

    def read_texts(self, index: int) -> tuple[Example, bool]:
        """Returns a row without its clip, and whether it has one. Raises BadExample if the row cannot be used."""
        ...

    def describe(self, index: int) -> str:
        """Returns the place of a row, for messages, such as "line 3 of test.jsonl"."""
        ...

    def spans(self, index: int) -> Sequence[AudioSpan] | None:
        """Returns the parts of files that are the clip of a row; None if clips are not in files of their own."""
        ...

    def hash_audio(self, index: int) -> str:
        """Returns a hash of the stored bytes of the clip of a row. Raises BadExample if they cannot be read."""
        ...

    def read_audio(self, index: int) -> np.ndarray:
        """Decodes the clip of a row to int16[samples] at 16 kHz. Raises BadExample if it cannot be used."""
        ...


def open_rows(examples: Sequence[Example], description: str) -> RowSource:
    """Returns the rows of a random-access sequence of examples.

    Args:
      examples: sequence that a corpus opens.
      description: name of the data set, for messages.
    """
    if isinstance(examples, ManifestSource):
        return _ManifestRows(examples)
    if isinstance(examples, PreparedSource):
        return _PreparedRows(examples, description)
    return _ExampleRows(examples, description)


class _ManifestRows:
    """Rows of a manifest or of an annotation file of the original. Its clips are in files."""

    def __init__(self, source: ManifestSource):
        self._source, self._file_hashes = source, _FileHashes()

    def __len__(self) -> int:
        return len(self._source)

    def read_texts(self, index: int) -> tuple[Example, bool]:
        entry = self._source.manifest[index]
        return to_example(entry, "", None), bool(entry.audio)

    def describe(self, index: int) -> str:
        return self._source.manifest.describe_line(index)

    def spans(self, index: int) -> Sequence[AudioSpan] | None:
        return self._source.manifest[index].audio

    def hash_audio(self, index: int) -> str:
        digest = hashlib.sha256()
        for span in self._source.manifest[index].audio:
            digest.update(f"{self._file_hashes.get(span)} {span.start!r} {span.end!r}\n".encode())
        return digest.hexdigest()

    def read_audio(self, index: int) -> np.ndarray:
        return self._source.read_audio(self._source.manifest[index])


class _PreparedRows:
    """Rows of a prepared data set. Its clips are in its records."""

    def __init__(self, source: PreparedSource, description: str):
        self._source, self._description = source, description

    def __len__(self) -> int:
        return len(self._source)

    def read_texts(self, index: int) -> tuple[Example, bool]:
        record = self._source.read_record(index)
        return from_record(record, "", decode_audio=False), bool(stored_audio(record))

    def describe(self, index: int) -> str:
        return f"record {index} of {self._description}"

    def spans(self, index: int) -> Sequence[AudioSpan] | None:
        return None

    def hash_audio(self, index: int) -> str:
        return hashlib.sha256(stored_audio(self._source.read_record(index))).hexdigest()

    def read_audio(self, index: int) -> np.ndarray:
        return self._source[index].audio


class _ExampleRows:
    """Rows of a sequence that returns only whole examples. Every access reads the clip."""

    def __init__(self, examples: Sequence[Example], description: str):
        self._examples, self._description = examples, description

    def __len__(self) -> int:
        return len(self._examples)

    def read_texts(self, index: int) -> tuple[Example, bool]:
        example = self._examples[index]
        return dataclasses.replace(example, audio=None), example.audio is not None

    def describe(self, index: int) -> str:
        return f"example {index} of {self._description}"

    def spans(self, index: int) -> Sequence[AudioSpan] | None:
        return None

    def hash_audio(self, index: int) -> str:
        return hashlib.sha256(self._examples[index].audio.astype("<i2").tobytes()).hexdigest()

    def read_audio(self, index: int) -> np.ndarray:
        return self._examples[index].audio


class _FileHashes:
    """Hashes of the contents of audio files. Those of the latest files are kept; several threads may share it."""

    def __init__(self):
        self._hashes: collections.OrderedDict[str, str] = collections.OrderedDict()
        self._lock = threading.Lock()

    def get(self, span: AudioSpan) -> str:
        """Returns the hex SHA-256 of the file of a span, in blocks. Raises BadExample if it cannot be read."""
        with self._lock:
            if span.path in self._hashes:
                return self._hashes[span.path]
        digest = _hash_file(span.path)
        with self._lock:
            self._hashes[span.path] = digest
            if len(self._hashes) > _MAX_CACHED_HASHES:
                self._hashes.popitem(last=False)
        return digest


def _hash_file(path: str) -> str:
    digest = hashlib.sha256()
    try:
        location = paths.check_file_location(path)
        with fsspec.open(location, "rb") if "://" in location else open(location, "rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
    except (FileNotFoundError, UserError) as error:
        raise BadExample("missing", f"{path}: {_first_line(error)}") from None
    except (OSError, ValueError) as error:
        raise BadExample("unreadable", f"{path}: {_first_line(error)}") from None
    except Exception as error:  # each client of a bucket raises exceptions of its own
        if not paths.is_client_error(error):
            raise
        raise BadExample("unreachable", f"{path}: {_first_line(error)}") from None
    return digest.hexdigest()


def find_missing(path: str) -> str:
    """Returns the path of a file that does not exist, with the reason if its URL cannot be opened; "" if it exists.

    Files at URLs outside buckets are taken to exist.
    """
    try:
        location = paths.check_file_location(path)
        if "://" not in location:
            return "" if os.path.isfile(location) else path
        is_in_bucket = location.startswith(("gs://", "gcs://", "s3://"))
        return path if is_in_bucket and not paths.as_path(location).exists() else ""
    except UserError as error:
        return str(error)
    except (OSError, ValueError):
        return path


def _first_line(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]

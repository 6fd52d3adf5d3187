"""Manifests: our JSON lines, or the original's annotation JSON, as random access to entries and to examples."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Callable
from typing import Any, SupportsIndex

import numpy as np

from data_pipelines.examples import TEXT_FIELDS, BadExample, Example
from data_pipelines.files import read_file
from data_pipelines.sources.audio import AudioRules, read_clip
from data_pipelines.sources.manifest_entry import ManifestEntry, entry_from_annotation, entry_from_json
from salmonn_jax.errors import UserError


class Manifest:
    """The entries of a manifest: a random-access sequence. A line that is wrong raises BadExample when it is read.

    Lines are kept as they are and read one by one, so millions of them take the memory of the file.

    Args:
      location: path or URL. `.jsonl` holds our lines (see `entries.from_json`), `.json` the original's annotations.
        Relative paths of audio in it are relative to where it lies.

    Raises:
      UserError: it is not there, or not JSON.
    """

    def __init__(self, location: str):
        self.location = location
        data = read_file(location, "the manifest")
        self._parse: Callable[[Any, int], ManifestEntry] = entry_from_json
        if location.endswith(".json"):
            self._parse, data = entry_from_annotation, _as_lines(location, data)
        self._data = data
        ends = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n"))
        if data and not data.endswith(b"\n"):
            ends = np.append(ends, len(data))
        starts = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends
        full = np.array([bool(data[a:b].strip()) for a, b in zip(starts, ends, strict=True)], bool)
        self._spans = np.stack([starts, ends], axis=1)[full] if len(ends) else np.zeros((0, 2), np.int64)

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index: SupportsIndex) -> ManifestEntry:
        start, end = self._spans[index]
        try:
            line = json.loads(self._data[start:end])
        except ValueError as error:
            raise BadExample("wrong line", f"line {int(index) + 1} of {self.location}: {error}") from None
        entry = self._parse(line, int(index))
        folder = posixpath.dirname(self.location)
        pieces = (p._replace(path=_beside(folder, p.path)) for p in entry.audio)
        return ManifestEntry(**{**entry.__dict__, "audio": tuple(pieces)})


class ManifestSource:
    """The examples of a manifest: a random-access sequence, whose items are read and decoded when asked for.

    An example that cannot be used raises BadExample.
    """

    def __init__(self, location: str, name: str, rules: AudioRules):
        self._manifest, self._name, self._rules = Manifest(location), name, rules

    def __len__(self) -> int:
        return len(self._manifest)

    def __getitem__(self, index: SupportsIndex) -> Example:
        entry = self._manifest[index]
        return to_example(entry, self._name, read_clip(entry.audio, self._rules) if entry.audio else None)


def to_example(entry: ManifestEntry, source: str, audio: np.ndarray | None) -> Example:
    """The example an entry describes, with its clip."""
    return Example(audio=audio, source=source, **{name: getattr(entry, name) for name in TEXT_FIELDS})


def _as_lines(location: str, data: bytes) -> bytes:
    """The list of annotations as lines of JSON."""
    try:
        annotations = json.loads(data)
        lines = annotations["annotation"]
    except (ValueError, TypeError, KeyError):
        raise UserError(
            f'{location} is not an annotation file of the original, {{"annotation": [...]}}; lines of JSON are .jsonl'
        ) from None
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def _beside(folder: str, path: str) -> str:
    return path if not folder or "://" in path or path.startswith("/") else f"{folder}/{path}"

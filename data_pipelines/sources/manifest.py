"""Manifests as random-access sequences of entries and of examples.

A manifest is a file of JSON lines, or an annotation file of the original SALMONN.
"""

from __future__ import annotations

import dataclasses
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
    """Random-access sequence of the entries of a manifest. Reading an invalid line raises BadExample.

    The lines stay unparsed in memory until they are read, so a manifest takes as much memory as its file.

    Args:
      location: path or URL. A `.jsonl` file holds JSON lines (see `manifest_entry.entry_from_json`), a `.json` file the
        annotations of the original. Relative audio paths are relative to the folder of the manifest.

    Raises:
      UserError: the file cannot be read, or is not an annotation file.
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
        not_blank = np.array([bool(data[a:b].strip()) for a, b in zip(starts, ends, strict=True)], bool)
        self._line_spans = np.stack([starts, ends], axis=1)[not_blank] if len(ends) else np.zeros((0, 2), np.int64)

    def __len__(self) -> int:
        return len(self._line_spans)

    def __getitem__(self, index: SupportsIndex) -> ManifestEntry:
        start, end = self._line_spans[index]
        try:
            line = json.loads(self._data[start:end])
        except ValueError as error:
            raise BadExample("invalid", f"line {int(index) + 1} of {self.location}: {error}") from None
        entry = self._parse(line, int(index))
        folder = posixpath.dirname(self.location)
        spans = (span._replace(path=_resolve(folder, span.path)) for span in entry.audio)
        return dataclasses.replace(entry, audio=tuple(spans))


class ManifestSource:
    """Random-access sequence of the examples of a manifest. Audio is decoded when an example is accessed.

    Accessing an example that cannot be used raises BadExample.

    Args:
      location: path or URL of the manifest.
      source: name of the source, for the examples.
      rules: rules by which clips are read.
    """

    def __init__(self, location: str, source: str, rules: AudioRules):
        self._manifest, self._source, self._rules = Manifest(location), source, rules

    def __len__(self) -> int:
        return len(self._manifest)

    def __getitem__(self, index: SupportsIndex) -> Example:
        entry = self._manifest[index]
        return to_example(entry, self._source, read_clip(entry.audio, self._rules) if entry.audio else None)


def to_example(entry: ManifestEntry, source: str, audio: np.ndarray | None) -> Example:
    """Returns the example of a manifest entry.

    Args:
      entry: the manifest entry.
      source: name of the source.
      audio: int16[samples] at 16 kHz, or None for a text-only example.
    """
    return Example(audio=audio, source=source, **{name: getattr(entry, name) for name in TEXT_FIELDS})


def _as_lines(location: str, data: bytes) -> bytes:
    """Converts an annotation file of the original to JSON lines."""
    try:
        annotations = json.loads(data)
        lines = annotations["annotation"]
    except (ValueError, TypeError, KeyError):
        raise UserError(
            f'{location} is not an annotation file of the original, {{"annotation": [...]}}; if it contains JSON '
            "lines, rename it to *.jsonl"
        ) from None
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def _resolve(folder: str, path: str) -> str:
    """Joins a relative path to the folder of the manifest; returns absolute paths and URLs unchanged."""
    return path if not folder or "://" in path or path.startswith("/") else f"{folder}/{path}"

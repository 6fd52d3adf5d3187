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

from data_pipelines.examples import LIST_FIELDS, TEXT_FIELDS, BadExample, Example
from data_pipelines.files import describe_wrong_byte, read_utf8_file
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
      UserError: the file cannot be read, is not UTF-8, or is not an annotation file.
    """

    def __init__(self, location: str):
        self.location = location
        data = read_utf8_file(location, "the manifest")
        self._parse: Callable[[Any, int], ManifestEntry] = entry_from_json
        self._line_name = "line"
        if location.endswith(".json"):
            self._parse, self._line_name, data = entry_from_annotation, "annotation", _as_lines(location, data)
        self._data = data
        ends = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n"))
        if data and not data.endswith(b"\n"):
            ends = np.append(ends, len(data))
        starts = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends
        not_blank = np.array([bool(data[a:b].strip()) for a, b in zip(starts, ends, strict=True)], bool)
        self._line_spans = np.stack([starts, ends], axis=1)[not_blank] if len(ends) else np.zeros((0, 2), np.int64)
        self._line_numbers = np.flatnonzero(not_blank) + 1  # blank lines are counted

    def __len__(self) -> int:
        return len(self._line_spans)

    def __getitem__(self, index: SupportsIndex) -> ManifestEntry:
        start, end = self._line_spans[index]
        try:
            entry = self._parse(_parse_json(self._data[start:end]), int(index))
        except BadExample as error:
            raise BadExample(error.reason, f"{self.describe_line(index)}: {error.detail}") from None
        folder = posixpath.dirname(self.location)
        spans = (span._replace(path=_resolve(folder, span.path)) for span in entry.audio)
        return dataclasses.replace(entry, audio=tuple(spans))

    def describe_line(self, index: SupportsIndex) -> str:
        """Returns the place of an entry in its file, for messages. Blank lines are counted."""
        return f"{self._line_name} {self._line_numbers[index]} of {self.location}"


class ManifestSource:
    """Random-access sequence of the examples of a manifest. Audio is decoded when an example is accessed.

    Accessing an example that cannot be used raises BadExample.

    Args:
      location: path or URL of the manifest.
      source: name of the source, for the examples.
      rules: rules by which clips are read.
    """

    def __init__(self, location: str, source: str, rules: AudioRules):
        self.manifest, self._source, self._rules = Manifest(location), source, rules

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, index: SupportsIndex) -> Example:
        entry = self.manifest[index]
        return to_example(entry, self._source, self.read_audio(entry))

    def read_audio(self, entry: ManifestEntry) -> np.ndarray | None:
        """Reads the clip of an entry as int16[samples] at 16 kHz; None for a text-only entry. Raises BadExample."""
        return read_clip(entry.audio, self._rules) if entry.audio else None


def to_example(entry: ManifestEntry, source: str, audio: np.ndarray | None) -> Example:
    """Returns the example of a manifest entry.

    Args:
      entry: the manifest entry.
      source: name of the source.
      audio: int16[samples] at 16 kHz, or None for a text-only example.
    """
    fields = {name: getattr(entry, name) for name in (*TEXT_FIELDS, *LIST_FIELDS, "group")}
    return Example(audio=audio, source=source, **fields)


def _as_lines(location: str, data: bytes) -> bytes:
    """Converts an annotation file of the original to JSON lines."""
    try:
        annotations = json.loads(data.decode())
    except UnicodeDecodeError as error:
        raise UserError(
            f"{location} is not UTF-8 ({describe_wrong_byte(error)}): convert it, or save it as UTF-8"
        ) from None
    except (ValueError, RecursionError):
        annotations = None
    lines = annotations.get("annotation") if isinstance(annotations, dict) else None
    if not isinstance(lines, list):
        raise UserError(
            f'{location} is not an annotation file of the original, {{"annotation": [...]}}; if it contains JSON '
            "lines, rename it to *.jsonl"
        )
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def _parse_json(line: bytes) -> Any:
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise BadExample("invalid", f"not UTF-8 ({describe_wrong_byte(error)}); save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise BadExample("invalid", f"not JSON: {error.msg} (column {error.colno})") from None
    except (ValueError, RecursionError) as error:  # a number of more than 4300 digits, or nested too deeply
        raise BadExample("invalid", f"not JSON: {error}") from None


def _resolve(folder: str, path: str) -> str:
    """Joins a relative path to the folder of the manifest; returns absolute paths and URLs unchanged."""
    return path if not folder or "://" in path or path.startswith("/") else f"{folder}/{path}"

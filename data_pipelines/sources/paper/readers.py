"""Helpers of the corpus readers: required files, CSV and JSON files read row by row, conversion of rows to entries."""

from __future__ import annotations

import csv
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from data_pipelines.examples import BadExample
from data_pipelines.sources.manifest_entry import ManifestEntry
from data_pipelines.sources.paper.corpus import ManifestEntries
from salmonn_jax.errors import UserError

Row = TypeVar("Row")

# Tab-separated files of Common Voice and CoVoST have no quotes; a backslash escapes a character.
TSV: Mapping[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE, "escapechar": "\\"}

# Bytes that are not UTF-8 become surrogates, for which `ManifestEntry` rejects the row. Other rows are not affected.
NOT_UTF8 = "surrogateescape"

_CHUNK = 1 << 20  # characters
_SEPARATOR = re.compile(r"[\s,]*")
_AUDIO = {".wav", ".flac", ".mp3", ".ogg", ".opus"}  # common formats that libsndfile decodes


def require_path(folder: pathlib.Path, name: str, download_hint: str) -> pathlib.Path:
    """Returns the path of a required file or folder.

    Args:
      folder: folder of the corpus.
      name: path relative to `folder`.
      download_hint: end of the error message.

    Raises:
      UserError: the path does not exist.
    """
    path = folder / name
    if not path.exists():
        raise UserError(f"{path} is missing; {download_hint}")
    return path


def read_csv_rows(
    path: pathlib.Path, columns: Iterable[str], download_hint: str, **dialect: Any
) -> Iterator[dict[str, str]]:
    """Yields the rows of a CSV file.

    Args:
      path: path of the file.
      columns: names of the required columns.
      download_hint: end of the error message.
      dialect: options of `csv.DictReader`.

    Raises:
      UserError: a column is missing.
    """
    with open(path, encoding="utf-8-sig", errors=NOT_UTF8, newline="") as file:
        rows = csv.DictReader(file, **dialect)
        missing = sorted(set(columns) - set(rows.fieldnames or ()))
        if missing:
            raise UserError(f"{path} has no column {missing[0]!r}; {download_hint}")
        yield from rows


def read_json_array(
    path: pathlib.Path, key: str, fields: Iterable[str], download_hint: str
) -> Iterator[dict[str, Any]]:
    """Yields the objects of the list under `key` of a JSON file without loading the whole file.

    Some of these files have several gigabytes.

    Args:
      path: path of the file.
      key: key of the list.
      fields: names of the required fields of each object.
      download_hint: end of the error messages.

    Raises:
      UserError: the file has no such list, an item is not an object with these fields, or the file is truncated.
    """
    fields, decoder, num_items = set(fields), json.JSONDecoder(), 0
    with open(path, encoding="utf-8-sig", errors=NOT_UTF8) as file:
        text = file.read(_CHUNK)
        head = re.search(rf'"{re.escape(key)}"\s*:\s*\[', text)
        if head is None:
            raise UserError(f"{path} has no list {key!r}; {download_hint}")
        position = head.end()
        while True:
            position = _SEPARATOR.match(text, position).end()
            if text.startswith("]", position):
                return
            try:
                item, position = decoder.raw_decode(text, position)
            except ValueError:
                # The item is not complete. Doubling the text keeps the total work linear in the size of the item.
                more = file.read(max(_CHUNK, len(text) - position))
                if not more:
                    raise UserError(
                        f"{path} is truncated or not JSON after {num_items} items; {download_hint}"
                    ) from None
                text, position = text[position:] + more, 0
                continue
            if not isinstance(item, dict) or not fields <= item.keys():
                raise UserError(
                    f"item {num_items} of {key!r} in {path} lacks one of the fields {sorted(fields)}; {download_hint}"
                )
            yield item
            num_items += 1


def audio_files_by_stem(folder: pathlib.Path) -> dict[str, str]:
    """Returns the names of the audio files of a folder, by name without extension."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries)
    return {pathlib.PurePath(name).stem: name for name in names if pathlib.PurePath(name).suffix.lower() in _AUDIO}


def parse_rows(parse_row: Callable[[Row], ManifestEntry], rows: Iterable[Row]) -> ManifestEntries:
    """Yields `parse_row(row)` of each row, or a BadExample if the row cannot be converted."""
    for number, row in enumerate(rows):
        try:
            entry: ManifestEntry | BadExample = parse_row(row)
        except (AttributeError, BadExample, LookupError, TypeError, ValueError) as error:
            entry = BadExample("invalid", f"row {number}, {str(row)[:200]}: {error!r}")
        yield entry


def sentence_case(words: str) -> str:
    """Converts upper-case words to the case of the original's annotations: only the first letter is a capital."""
    return " ".join(words.split()).capitalize()

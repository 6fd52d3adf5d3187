"""What the readers share: files that must be there, tables and JSON read row by row, rows made into entries."""

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

# Tab-separated files of Common Voice and CoVoST quote nothing; a backslash escapes.
TSV: Mapping[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE, "escapechar": "\\"}

_CHUNK = 1 << 20  # characters
_BETWEEN = re.compile(r"[\s,]*")
_AUDIO = {".wav", ".flac", ".mp3", ".ogg", ".opus"}  # what libsndfile decodes and people store


def require_path(folder: pathlib.Path, name: str, download_hint: str) -> pathlib.Path:
    """The file or folder `name` in `folder`. Raises UserError, which says where it comes from, if it is not there."""
    path = folder / name
    if not path.exists():
        raise UserError(f"{path} is missing; {download_hint}")
    return path


def read_csv_rows(
    path: pathlib.Path, columns: Iterable[str], download_hint: str, **dialect: Any
) -> Iterator[dict[str, str]]:
    """The rows of a CSV file, one at a time. Raises UserError if a column is missing."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file, **dialect)
        missing = sorted(set(columns) - set(rows.fieldnames or ()))
        if missing:
            raise UserError(f"{path} has no column {missing[0]!r}; {download_hint}")
        yield from rows


def read_json_array(
    path: pathlib.Path, key: str, fields: Iterable[str], download_hint: str
) -> Iterator[dict[str, Any]]:
    """The objects of the list under `key` of a JSON file, one at a time, for some of these files hold gigabytes.

    Raises:
      UserError: there is no such list, an item is no object with these fields, or the file breaks off.
    """
    fields, decoder, number = set(fields), json.JSONDecoder(), 0
    with open(path, encoding="utf-8") as file:
        text = file.read(_CHUNK)
        head = re.search(rf'"{re.escape(key)}"\s*:\s*\[', text)
        if head is None:
            raise UserError(f"{path} has no list {key!r}; {download_hint}")
        at = head.end()
        while True:
            at = _BETWEEN.match(text, at).end()
            if text.startswith("]", at):
                return
            try:
                item, at = decoder.raw_decode(text, at)
            except ValueError:
                # The item goes on beyond what was read. Reading as much again keeps the work linear in its size.
                more = file.read(max(_CHUNK, len(text) - at))
                if not more:
                    raise UserError(f"{path} breaks off or is not JSON after {number} items; {download_hint}") from None
                text, at = text[at:] + more, 0
                continue
            if not isinstance(item, dict) or not fields <= item.keys():
                raise UserError(
                    f"item {number} of {key!r} in {path} has not the fields {sorted(fields)}; {download_hint}"
                )
            yield item
            number += 1


def audio_files_by_stem(folder: pathlib.Path) -> dict[str, str]:
    """The audio files of a folder: file name without its ending -> file name."""
    with os.scandir(folder) as found:
        names = sorted(file.name for file in found)
    return {pathlib.PurePath(name).stem: name for name in names if pathlib.PurePath(name).suffix.lower() in _AUDIO}


def parse_rows(parse_row: Callable[[Row], ManifestEntry], rows: Iterable[Row]) -> ManifestEntries:
    """`make` of each row, or the BadExample that says why it makes none."""
    for number, row in enumerate(rows):
        try:
            entry: ManifestEntry | BadExample = parse_row(row)
        except (AttributeError, BadExample, LookupError, TypeError, ValueError) as error:
            entry = BadExample("wrong line", f"row {number}, {str(row)[:200]}: {error!r}")
        yield entry


def sentence_case(words: str) -> str:
    """Upper-case words as the original's annotations have them: only the first letter is a capital."""
    return " ".join(words.split()).capitalize()

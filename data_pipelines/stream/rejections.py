"""The list of examples that could not be used: one JSON line each, once."""

from __future__ import annotations

import json
import pathlib

from data_pipelines.stream.draws import Rejected


class Quarantine:
    """Appends to a file, which is made with the first line. A run that goes on lists nothing again."""

    def __init__(self, path: pathlib.Path):
        self._path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self._known = {(line["source"], line["index"], line["reason"]) for line in map(json.loads, lines)}

    def add(self, one: Rejected) -> None:
        key = one.source, one.index, one.reason
        if key not in self._known:
            self._known.add(key)
            with self._path.open("a") as file:
                file.write(json.dumps(one._asdict()) + "\n")

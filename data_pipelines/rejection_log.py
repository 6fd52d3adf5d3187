"""Log of the rejections of a run, as JSON lines. `launch.train` uses it."""

from __future__ import annotations

import json
import pathlib

from data_pipelines.examples import Rejection


class RejectionLog:
    """JSON-lines file of rejections. Each is listed once, also if the run is restarted."""

    def __init__(self, path: pathlib.Path):
        self._path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self._known = {(line["source"], line["example"], line["reason"]) for line in map(json.loads, lines)}

    def add(self, rejection: Rejection) -> None:
        """Appends a rejection if the file does not hold it. The first rejection creates the file."""
        key = rejection.source, rejection.example, rejection.reason
        if key not in self._known:
            self._known.add(key)
            with self._path.open("a") as file:
                file.write(json.dumps(rejection._asdict()) + "\n")

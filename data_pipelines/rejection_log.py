"""Log of the rejections of a run, as JSON lines. `launch.train` uses it."""

from __future__ import annotations

import json

from data_pipelines.examples import Rejection
from salmonn_jax.files import GrowingFile, open_growing
from salmonn_jax.paths import Path


class RejectionLog:
    """JSON-lines file of rejections. Each is listed once, also if the run is restarted."""

    def __init__(self, path: Path):
        self._path = path
        content = path.read_bytes() if path.exists() else b""
        content = content[: content.rfind(b"\n") + 1]  # a killed run may have left an incomplete last line
        lines = map(json.loads, content.splitlines())
        self._known = {(line["source"], line["example"], line["reason"]) for line in lines}
        self._num_bytes = len(content)
        self._file: GrowingFile | None = None

    def add(self, rejection: Rejection) -> None:
        """Appends a rejection if the file does not hold it. The first rejection creates the file."""
        key = rejection.source, rejection.example, rejection.reason
        if key not in self._known:
            self._known.add(key)
            if self._file is None:
                self._file = open_growing(self._path, self._num_bytes)
            self._file.write(json.dumps(rejection._asdict()).encode() + b"\n")

    def close(self) -> None:
        """Closes the file, if there is one."""
        if self._file is not None:
            self._file.close()

"""Folders on a local disk or in a bucket, with atomic writes. Preparation keeps all its files in one."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator

from salmonn_jax import paths
from salmonn_jax.files import atomic_write


@dataclasses.dataclass(frozen=True)
class Folder:
    """Folder whose files are accessed by name. It can be pickled.

    Args:
      location: local path, or URL of a bucket.
    """

    location: str

    def __str__(self) -> str:
        return self.location

    def read(self, name: str) -> bytes | None:
        """Returns the content of a file, or None if it does not exist."""
        try:
            return self._path(name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        """Writes a file atomically. An existing file is replaced."""
        with self.atomic_path(name) as path:
            path.write_bytes(data)

    @contextlib.contextmanager
    def atomic_path(self, name: str) -> Iterator[pathlib.Path]:
        """Yields a temporary local path that becomes the file `name` on success.

        Processes may write the same file at the same time, as workers of a cluster do. The last write is kept.
        """
        with atomic_write(self._path(name)) as unfinished:
            yield unfinished

    def size(self, name: str) -> int | None:
        """Returns the size of a file in bytes, or None if it does not exist."""
        path = self._path(name)
        return paths.size(path) if path.exists() else None

    def list_names(self, prefix: str) -> list[str]:
        """Returns the names of the files that start with `prefix`."""
        return [path.name for path in self._path("").iterdir() if path.name.startswith(prefix)]

    def remove(self, name: str) -> None:
        """Deletes a file, or a folder with its content, if it exists."""
        filesystem, path = paths.filesystem(self._path(name))
        if filesystem.exists(path):
            filesystem.rm(path, recursive=True)

    def _path(self, name: str) -> paths.Path:
        return paths.as_path(self.location) / name

"""Folders on a local disk or in a bucket, with atomic writes. Preparation keeps all its files in one."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import tempfile
from collections.abc import Iterator

import fsspec
from fsspec.implementations.local import LocalFileSystem

from salmonn_jax.files import atomic_write


@dataclasses.dataclass(frozen=True)
class Folder:
    """Folder whose files are accessed by name. It can be pickled.

    Args:
      location: local path, or URL that fsspec writes to.
    """

    location: str

    def __str__(self) -> str:
        return self.location

    def read(self, name: str) -> bytes | None:
        """Returns the content of a file, or None if it does not exist."""
        filesystem, path = self._path(name)
        try:
            return filesystem.cat_file(path)
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
        filesystem, path = self._path(name)
        if isinstance(filesystem, LocalFileSystem):
            with atomic_write(pathlib.Path(path)) as unfinished:
                yield unfinished
        else:
            filesystem.makedirs(filesystem._parent(path), exist_ok=True)
            with tempfile.TemporaryDirectory() as temporary:
                yield pathlib.Path(temporary) / "file"
                filesystem.put_file(f"{temporary}/file", path)

    def size(self, name: str) -> int | None:
        """Returns the size of a file in bytes, or None if it does not exist."""
        filesystem, path = self._path(name)
        return filesystem.size(path) if filesystem.exists(path) else None

    def list_names(self, prefix: str) -> list[str]:
        """Returns the names of the files that start with `prefix`."""
        filesystem, root = self._path("")
        filesystem.invalidate_cache()  # other processes write here, too
        names = (path.rstrip("/").rsplit("/", 1)[-1] for path in filesystem.ls(root, detail=False))
        return [name for name in names if name.startswith(prefix)]

    def remove(self, name: str) -> None:
        """Deletes a file, or a folder with its content, if it exists."""
        filesystem, path = self._path(name)
        if filesystem.exists(path):
            filesystem.rm(path, recursive=True)

    def _path(self, name: str):
        return fsspec.url_to_fs(f"{self.location.rstrip('/')}/{name}")

"""A folder, here or in a bucket, whose files are there whole or not at all."""

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
    """A place for files, by their names in it. Picklable.

    Args:
      location: a local path, or any URL that fsspec writes to.
    """

    location: str

    def __str__(self) -> str:
        return self.location

    def read(self, name: str) -> bytes | None:
        """What a file holds; None where there is none."""
        files, path = self._path(name)
        try:
            return files.cat_file(path)
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        """Writes a file, over one that is there."""
        with self.atomic_path(name) as path:
            path.write_bytes(data)

    @contextlib.contextmanager
    def atomic_path(self, name: str) -> Iterator[pathlib.Path]:
        """A local path to write to, which becomes the file `name` when all went well.

        Two that write the same file at a time, as workers of a cluster may, do not meet: the last one stays.
        """
        files, path = self._path(name)
        if isinstance(files, LocalFileSystem):
            with atomic_write(pathlib.Path(path)) as unfinished:
                yield unfinished
        else:
            files.makedirs(files._parent(path), exist_ok=True)
            with tempfile.TemporaryDirectory() as temporary:
                yield pathlib.Path(temporary) / "file"
                files.put_file(f"{temporary}/file", path)

    def size(self, name: str) -> int | None:
        """The bytes of a file; None where there is none."""
        files, path = self._path(name)
        return files.size(path) if files.exists(path) else None

    def list_names(self, prefix: str) -> list[str]:
        """The names of files that begin so."""
        files, root = self._path("")
        files.invalidate_cache()  # others write here too
        found = (path.rstrip("/").rsplit("/", 1)[-1] for path in files.ls(root, detail=False))
        return [name for name in found if name.startswith(prefix)]

    def remove(self, name: str) -> None:
        """Removes a file, or a folder with all that is in it, if it is there."""
        files, path = self._path(name)
        if files.exists(path):
            files.rm(path, recursive=True)

    def _path(self, name: str):
        return fsspec.url_to_fs(f"{self.location.rstrip('/')}/{name}")

"""Atomic output of files and directories, files that grow, and the refusal of git-lfs pointers.

Outputs in a bucket are written on the local disk first and uploaded when they are complete, because a bucket can
neither rename directories nor append to files. Each object appears when its upload is complete.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from typing import Protocol

from salmonn_jax import paths
from salmonn_jax.errors import UserError, convert_disk_errors
from salmonn_jax.paths import Path

UPLOAD_SECONDS = 60.0  # minimum time between two uploads of a file that grows
BATCH_UPLOAD_SECONDS = 20.0  # minimum time between two objects of a file of batches
UPLOAD_SHARE = 0.05  # maximum share of the time that these uploads take


def refuse_existing(output: Path) -> None:
    """Raises UserError if `output` already exists and is not an empty directory."""
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise UserError(f"{output} already exists; choose another path with --output")


@contextlib.contextmanager
def atomic_output(output: Path) -> Iterator[pathlib.Path]:
    """Yields a temporary local path that becomes `output` on success and is deleted on failure.

    The caller writes a file or a directory at the temporary path. A killed process leaves `OUTPUT.unfinished`, which
    the next attempt deletes. For a bucket, the temporary path is in the directory for temporary files (`TMPDIR`), which
    needs space for the whole output; `config.json` is uploaded last.

    Raises:
      UserError: `output` already exists and is not an empty directory.
      OSError: the disk is full or fails.
    """
    refuse_existing(output)
    if paths.is_url(output):
        with _uploaded_on_success(output) as unfinished:
            yield unfinished
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = output.with_name(output.name + ".unfinished")
    _remove(unfinished)
    with _renamed_on_success(unfinished, output):
        yield unfinished


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[pathlib.Path]:
    """Yields a temporary local path whose file replaces `path` on success and is deleted on failure.

    Each call has a temporary path of its own, so processes that write the same file at the same time do not interfere:
    the last one wins. The temporary path is beside `path`, where a killed process leaves `PATH.RANDOM.unfinished`; for
    a bucket it is in the directory for temporary files.

    Raises:
      OSError: the disk is full or fails.
    """
    if paths.is_url(path):
        with _uploaded_on_success(path) as unfinished:
            yield unfinished
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{uuid.uuid4().hex}.unfinished")
    with _renamed_on_success(unfinished, path):
        yield unfinished


def copy_file(source: Path, target: Path) -> None:
    """Copies a file. Each of the two paths may be in a bucket."""
    target.write_bytes(source.read_bytes())


class GrowingFile(Protocol):
    """File to which lines or records are appended."""

    def write(self, data: bytes) -> None:
        """Appends `data` and passes it to the operating system; for a bucket, uploads the file if that is due."""

    def flush(self) -> None:
        """Makes all data permanent."""

    def close(self) -> None:
        """Makes all data permanent and closes the file."""


def open_growing(path: Path, keep_bytes: int = 0) -> GrowingFile:
    """Opens a file for appending and creates it if it does not exist.

    Args:
      path: the file. In a bucket it is uploaded as a whole, at most every `UPLOAD_SECONDS`, and by `flush` and `close`:
        what a killed process wrote since the last upload is lost.
      keep_bytes: number of bytes of an existing file that are kept.
    """
    return (_UploadedFile if paths.is_url(path) else _LocalFile)(path, keep_bytes)


class _LocalFile:
    """File on a local disk to which data is appended."""

    def __init__(self, path: Path, keep_bytes: int):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")
        self._file.truncate(keep_bytes)

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._file.flush()

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class BatchFile(Protocol):
    """File to which batches of lines are appended. A batch is never written in part, except by a kill."""

    def write_batch(self, data: bytes) -> None:
        """Appends `data` and makes it permanent; in a bucket, at most every `BATCH_UPLOAD_SECONDS`."""

    def close(self) -> None:
        """Makes all data permanent and closes the file."""


def open_batches(path: Path, keep_bytes: int = 0) -> BatchFile:
    """Opens a file to which batches of lines are appended.

    Args:
      path: the file, which is created if it does not exist. In a bucket the batches become numbered objects beside it,
        `STEM-START-000000.SUFFIX` and so on, each of which appears when its upload is complete. START is random, so
        that two jobs never write the same object.
      keep_bytes: number of bytes of an existing local file that are kept.
    """
    return _NumberedObjects(path) if paths.is_url(path) else _SyncedFile(path, keep_bytes)


class _SyncedFile:
    """File on a local disk. Every batch is on the disk before `write_batch` returns."""

    def __init__(self, path: Path, keep_bytes: int):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")
        self._file.truncate(keep_bytes)

    def write_batch(self, data: bytes) -> None:
        self._file.write(data)
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class _NumberedObjects:
    """Numbered objects in a bucket, each with the batches since the one before."""

    def __init__(self, path: Path):
        self._path, self._waiting, self._next_upload = path, bytearray(), 0.0
        self._start, self._number = uuid.uuid4().hex[:8], 0

    def write_batch(self, data: bytes) -> None:
        self._waiting += data
        if time.monotonic() >= self._next_upload:
            self._upload()

    def close(self) -> None:
        self._upload()

    def _upload(self) -> None:
        if self._waiting:
            name = f"{self._path.stem}-{self._start}-{self._number:06}{self._path.suffix}"
            self._path.with_name(name).write_bytes(bytes(self._waiting))
            self._number, self._waiting = self._number + 1, bytearray()
        self._next_upload = time.monotonic() + BATCH_UPLOAD_SECONDS


class _UploadedFile:
    """File in a bucket to which data is appended. It is kept in memory and uploaded as a whole."""

    def __init__(self, path: Path, keep_bytes: int):
        self._path, self._content = path, bytearray(path.read_bytes()[:keep_bytes] if keep_bytes else b"")
        self._next_upload = 0.0
        self.flush()

    def write(self, data: bytes) -> None:
        self._content += data
        self._is_uploaded = False
        if time.monotonic() >= self._next_upload:
            self.flush()

    def flush(self) -> None:
        start = time.monotonic()
        self._path.write_bytes(bytes(self._content))
        end = time.monotonic()
        self._is_uploaded, self._next_upload = True, end + max(UPLOAD_SECONDS, (end - start) / UPLOAD_SHARE)

    def close(self) -> None:
        if not self._is_uploaded:
            self.flush()


@contextlib.contextmanager
def _uploaded_on_success(output: Path) -> Iterator[pathlib.Path]:
    """Yields a temporary local path and uploads the file or directory there. A failed upload is deleted."""
    with tempfile.TemporaryDirectory() as directory:
        unfinished = pathlib.Path(directory) / output.name
        with convert_disk_errors(unfinished):
            yield unfinished
        if unfinished.is_dir():
            _upload_directory(unfinished, output)
        else:
            output.parent.mkdir(parents=True, exist_ok=True)
            filesystem, name = paths.filesystem(output)
            filesystem.put_file(str(unfinished), name)


def _upload_directory(source: pathlib.Path, output: Path) -> None:
    """Uploads the files of a directory, `config.json` last; deletes them if an upload fails."""
    filesystem, root = paths.filesystem(output)
    files = [file.relative_to(source).as_posix() for file in sorted(source.rglob("*")) if file.is_file()]
    last = [name for name in files if name == "config.json"]
    try:
        for names in ([name for name in files if name not in last], last):
            if names:
                filesystem.put([f"{source}/{name}" for name in names], [f"{root}/{name}" for name in names])
    except BaseException:
        with contextlib.suppress(Exception):  # the first error is reported
            filesystem.rm(root, recursive=True)
        raise


@contextlib.contextmanager
def _renamed_on_success(unfinished: pathlib.Path, output: pathlib.Path) -> Iterator[None]:
    """Renames `unfinished` to `output` when the block succeeds; deletes it when the block fails."""
    try:
        with convert_disk_errors(output):
            yield
        os.replace(unfinished, output)
    except BaseException:
        _remove(unfinished)
        raise


def _remove(path: pathlib.Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def refuse_lfs_pointer(path: Path) -> None:
    """Raises UserError if a file is a git-lfs pointer, which a clone without git-lfs has in place of a large file."""
    if path.is_file():
        with path.open("rb") as file:
            if file.read(43) == b"version https://git-lfs.github.com/spec/v1\n":
                raise UserError(f"{path} is a git-lfs pointer, not the file; run `git lfs pull` where it was cloned")

"""Atomic output of files and directories, for all writers, and the refusal of git-lfs pointers, for all readers."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterator

from salmonn_jax.errors import UserError, convert_disk_errors


@contextlib.contextmanager
def atomic_output(output: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary path that is renamed to `output` on success and deleted on failure.

    The caller writes a file or a directory at the temporary path. A killed process leaves `OUTPUT.unfinished`, which
    the next attempt deletes.

    Raises:
      UserError: `output` already exists and is not an empty directory.
      OSError: the disk is full or fails.
    """
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise UserError(f"{output} already exists; choose another path with --output")
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = output.with_name(output.name + ".unfinished")
    _remove(unfinished)
    with _renamed_on_success(unfinished, output):
        yield unfinished


@contextlib.contextmanager
def atomic_write(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary path beside `path` that replaces `path` on success and is deleted on failure.

    Each call has a temporary path of its own, so processes that write the same file at the same time do not interfere:
    the last one wins. A killed process leaves `PATH.RANDOM.unfinished`.

    Raises:
      OSError: the disk is full or fails.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{uuid.uuid4().hex}.unfinished")
    with _renamed_on_success(unfinished, path):
        yield unfinished


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


def refuse_lfs_pointer(path: pathlib.Path) -> None:
    """Raises UserError if a file is a git-lfs pointer, which a clone without git-lfs has in place of a large file."""
    if path.is_file():
        with path.open("rb") as file:
            if file.read(43) == b"version https://git-lfs.github.com/spec/v1\n":
                raise UserError(f"{path} is a git-lfs pointer, not the file; run `git lfs pull` where it was cloned")

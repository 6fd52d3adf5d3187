"""Lock on the output directory of an evaluation, so that two jobs do not write to it at the same time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
from collections.abc import Iterator

from salmonn_jax import distributed, paths
from salmonn_jax.errors import UserError
from salmonn_jax.paths import Path

LOCK_FILE = "lock"
_FREE, _LOCKED, _NOT_WRITABLE = range(3)


@contextlib.contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Locks a directory for this job while the block runs, and creates it if it does not exist.

    Every process of the job calls it, and process 0 holds the lock. The operating system releases it when the process
    ends, also by SIGKILL. A bucket has no locks: there the files of two jobs have different names (see
    `salmonn_jax.files.open_batches`).

    Raises:
      UserError: another job holds the lock, or the directory cannot be written to.
    """
    if paths.is_url(directory):
        yield
        return
    with contextlib.ExitStack() as stack:
        state, detail = _FREE, ""
        if distributed.is_main_process():
            try:
                state = _FREE if stack.enter_context(_lock(pathlib.Path(directory) / LOCK_FILE)) else _LOCKED
            except OSError as error:
                state, detail = _NOT_WRITABLE, f": {error.strerror or error}"
        state = distributed.broadcast_from_main(state)
        if state == _LOCKED:
            raise UserError(f"another job writes to {directory}; wait for its end, or choose another --output")
        if state == _NOT_WRITABLE:
            raise UserError(f"{directory} cannot be written to{detail}; choose another --output")
        yield


@contextlib.contextmanager
def _lock(path: pathlib.Path) -> Iterator[bool]:
    """Creates a file, locks it, deletes it at the end, and yields whether it could be locked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            yield False
            return
        except BaseException:
            os.close(descriptor)
            raise
        if os.fstat(descriptor).st_nlink:
            break
        os.close(descriptor)  # the job that held the lock deleted the file in between; another may create it anew
    try:
        yield True
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)

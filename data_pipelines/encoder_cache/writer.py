"""Writing of the shards of a store of encoder frames (see `store`)."""

from __future__ import annotations

import contextlib
import os
import time
import uuid

import numpy as np
from array_record.python import array_record_module

from data_pipelines.encoder_cache.store import SHARD_SUFFIX, FrameStore, convert_write_errors
from salmonn_jax.errors import RunError
from salmonn_jax.files import atomic_write
from salmonn_jax.paths import Path

ABANDONED_SECONDS = 24 * 3600.0  # an unfinished shard of this age was left by a killed process
SHARD_BYTES, SHARD_SECONDS = 256 << 20, 120.0  # a shard is finished at this size, and this time after its first window
# Not TFDS's writer, which compresses: frames become 7 % smaller (float32), and writing takes three times as long.
_OPTIONS = "group_size:1,uncompressed"


class FrameWriter:
    """Writer of new shards of a store. A context manager, which finishes the last shard, also after an error.

    A killed process loses the windows of the shard that it is writing.

    Args:
      store: the store, which reads the new shards when it is opened again.
    """

    def __init__(self, store: FrameStore):
        self._store = store
        self._shard = contextlib.ExitStack()
        self._writer = None

    def __enter__(self) -> FrameWriter:
        _remove_abandoned(self._store.location)
        return self

    def __exit__(self, *error: object) -> None:
        self._finish_shard()

    def add(self, key: bytes, frames: np.ndarray) -> None:
        """Adds the frames of a window.

        Args:
          key: see `store.window_key`.
          frames: float[frames, hidden] in the dtype of the store.
        """
        if self._writer is None:
            path = self._store.location / f"{self._store.shard_prefix}{uuid.uuid4().hex}{SHARD_SUFFIX}"
            with convert_write_errors(self._store.location):
                unfinished = self._shard.enter_context(atomic_write(path))
                self._writer = array_record_module.ArrayRecordWriter(os.fspath(unfinished), _OPTIONS)
            self._keys, self._shard_bytes, self._shard_start = [], 0, time.monotonic()
        with convert_write_errors(self._store.location, RunError):
            self._writer.write(frames.tobytes())
        self._keys.append(key)
        self._shard_bytes += frames.nbytes
        if self._shard_bytes >= SHARD_BYTES or time.monotonic() >= self._shard_start + SHARD_SECONDS:
            self._finish_shard()

    def _finish_shard(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            # Gives the shard its name, or deletes it if these writes fail.
            with convert_write_errors(self._store.location, RunError), self._shard.pop_all():
                writer.write(b"".join(self._keys))
                writer.close()


def _remove_abandoned(location: Path) -> None:
    """Deletes the unfinished shards of killed processes. (Those of a bucket are not in it.)"""
    for path in location.glob(f"*{SHARD_SUFFIX}.*.unfinished"):
        with contextlib.suppress(OSError):  # another process may have deleted it, or the store can only be read
            if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                path.unlink()

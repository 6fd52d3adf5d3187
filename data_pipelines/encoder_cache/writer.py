"""Writing of the shards of a store of encoder frames (see `store`)."""

from __future__ import annotations

import contextlib
import os
import time
import uuid

import numpy as np
from array_record.python import array_record_module

from data_pipelines.encoder_cache.store import SHARD_PREFIX, SHARD_SUFFIX, convert_write_errors
from salmonn_jax.files import atomic_write
from salmonn_jax.paths import Path

SHARD_BYTES, SHARD_SECONDS = 256 << 20, 120.0  # a shard is finished at this size, and this time after its first window
# Not TFDS's writer, which compresses: frames become 7 % smaller (float32), and writing takes three times as long.
_OPTIONS = "group_size:1,uncompressed"


class FrameWriter:
    """Writer of new shards of a store. A context manager, which finishes the last shard, also after an error.

    A killed process loses the windows of the shard that it is writing.

    Args:
      location: directory or URL of the store.

    Attributes:
      num_windows: number of windows added.
      num_bytes: bytes of their frames.
    """

    def __init__(self, location: Path):
        self._location = location
        self._shard = contextlib.ExitStack()
        self._writer = None
        self.num_windows = self.num_bytes = 0

    def __enter__(self) -> FrameWriter:
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
            path = self._location / f"{SHARD_PREFIX}{uuid.uuid4().hex}{SHARD_SUFFIX}"
            with convert_write_errors(self._location):
                unfinished = self._shard.enter_context(atomic_write(path))
                self._writer = array_record_module.ArrayRecordWriter(os.fspath(unfinished), _OPTIONS)
            self._keys, self._shard_bytes, self._shard_start = [], 0, time.monotonic()
        self._writer.write(frames.tobytes())
        self._keys.append(key)
        self._shard_bytes += frames.nbytes
        self.num_windows, self.num_bytes = self.num_windows + 1, self.num_bytes + frames.nbytes
        if self._shard_bytes >= SHARD_BYTES or time.monotonic() >= self._shard_start + SHARD_SECONDS:
            self._finish_shard()

    def _finish_shard(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            with self._shard.pop_all():  # gives the shard its name, or deletes it if these writes fail
                writer.write(b"".join(self._keys))
                writer.close()

"""Reading of a store of encoder frames, which `data.encoder_cache` names.

    encoders.json                      what the frames depend on: encoders, weights, audio, dtype; written once
    frames-HASH-RANDOM.array_record    shard: a record with the frames of each encoder window, then one with their keys
    complete/HASH.json                 a source whose windows are all in the store (see `windows`)

A key is a hash of the samples of an encoder window. The name of a shard has a hash of `encoders.json`, so that frames
of other encoders are never read. Shards are never changed and appear when they are whole, so that several processes and
runs can add to a store while others read it.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import hashlib
import itertools
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from array_record.python import array_record_data_source, array_record_module

from data_pipelines.examples import BadExample
from salmonn_jax import config, paths
from salmonn_jax.batch import FramesShape
from salmonn_jax.errors import AudioWarning, RunError, UserError
from salmonn_jax.files import atomic_write
from salmonn_jax.paths import Path

DESCRIPTION, SHARD_SUFFIX = "encoders.json", ".array_record"
KEY_BYTES = 16
_OPENING_THREADS = 32  # they wait for the storage most of the time


def window_key(window: np.ndarray) -> bytes:
    """Returns the key of an encoder window, int16[samples]: the first 16 bytes of the SHA-256 of its samples."""
    return hashlib.sha256(np.ascontiguousarray(window, "<i2").data).digest()[:KEY_BYTES]


def check_description(location: Path, description: dict[str, Any]) -> None:
    """Writes the description of a new store, or compares it with that of an existing one.

    Args:
      location: directory or URL of the store.
      description: JSON values of all that the frames depend on besides the samples.

    Raises:
      UserError: the store holds other frames, or something else.
    """
    if paths.is_url(location) and not os.fspath(location).startswith("gs://"):
        raise UserError(f"data.encoder_cache={location}: array_record opens only local files and gs://; choose one")
    path = location / DESCRIPTION
    if not path.is_file():
        if location.exists() and any(location.iterdir()):
            raise UserError(f"data.encoder_cache={location} holds something else; choose another directory")
        with convert_write_errors(location), atomic_write(path) as unfinished:
            unfinished.write_text(json.dumps(description, indent=1) + "\n")
        return
    difference = config.first_difference(_read_json(path), description)
    if difference:
        raise UserError(
            f"data.encoder_cache={location} holds frames of another encoder or in another form: {difference}; choose "
            "another directory"
        )


@contextlib.contextmanager
def convert_write_errors(location: Path, error_class: type[Exception] = UserError) -> Iterator[None]:
    """Converts errors of writing to a store, such as a missing permission or a full disk, to `error_class`."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # array_record raises RuntimeError
        raise error_class(
            f"data.encoder_cache={location} lacks encoder windows of the data and cannot be written to ({error}); "
            "choose another directory"
        ) from None


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError:
        raise UserError(f"{path} is not JSON; delete it, if the store is no longer needed with all its files") from None


class _Shard(NamedTuple):
    """A shard that can be read."""

    path: str
    keys: np.ndarray  # uint64[windows, 2]
    size: int  # bytes of the file


class FrameStore:
    """The frames in a store at the time it is opened, read by the key of their window. It can be pickled.

    The index in memory takes 20 bytes per window. A shard that cannot be read is left out, with a warning.

    Args:
      location: directory or URL of the store. array_record opens local files and gs://.
      description: see `check_description`.
      frames_shape: shape and dtype of the frames of a window, padded to the length of the window.

    Attributes:
      shard_prefix: start of the names of its shards.
      size: bytes of all shards.
    """

    def __init__(self, location: Path, description: dict[str, Any], frames_shape: FramesShape):
        self.location, self.frames_shape = location, frames_shape
        digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()
        self.shard_prefix = f"frames-{digest[:16]}-"
        shards = _open_shards(location, self.shard_prefix)
        self.size = sum(shard.size for shard in shards)
        # A range after the path makes array_record skip the last record, and counting the records again.
        self._records = (
            array_record_data_source.ArrayRecordDataSource([f"{s.path}[0:{len(s.keys)}]" for s in shards])
            if shards
            else ()
        )
        self._shard_paths = [shard.path for shard in shards]
        self._shard_ends = list(itertools.accumulate(len(shard.keys) for shard in shards))
        keys = np.concatenate([np.empty((0, 2), np.uint64), *(shard.keys for shard in shards)])
        order = np.lexsort((keys[:, 1], keys[:, 0]))
        self._high, self._low, self._positions = keys[order, 0], keys[order, 1], order.astype(np.int32)

    def __len__(self) -> int:
        return len(self._positions)

    @property
    def index_bytes(self) -> int:
        """Returns the size of the index in memory."""
        return self._high.nbytes + self._low.nbytes + self._positions.nbytes

    def find(self, key: bytes) -> int | None:
        """Returns the record of a window with this key; None if the store does not have it."""
        high, low = np.frombuffer(key, np.uint64)
        for index in range(int(np.searchsorted(self._high, high)), len(self._high)):
            if self._high[index] != high:
                break
            if self._low[index] == low:
                return int(self._positions[index])
        return None

    def find_windows(self, windows: Sequence[np.ndarray]) -> tuple[int, ...]:
        """Returns the records of encoder windows, int16[samples] each.

        Raises:
          BadExample: the store does not have a window.
        """
        records = tuple(self.find(window_key(window)) for window in windows)
        if None in records:
            raise BadExample(
                "not in the encoder cache",
                f"encoder window {records.index(None)}; the data have changed since {self.location} was filled: start "
                "the run again",
            )
        return records

    def read(self, records: Sequence[int]) -> list[np.ndarray]:
        """Returns float[frames, hidden] for each record, in their order. Shards are read in parallel.

        Raises:
          RunError: a shard is damaged.
        """
        if not records:
            return []
        try:
            contents = self._records.__getitems__(records)
            return [np.frombuffer(x, self.frames_shape.dtype).reshape(-1, self.frames_shape.hidden) for x in contents]
        except (RuntimeError, ValueError) as error:
            reason = str(error)
        shards = {self._shard_paths[int(np.searchsorted(self._shard_ends, r, "right"))] for r in records}
        raise RunError(
            f"the encoder cache is damaged ({reason.splitlines()[0][:120]}); delete {self._damaged(shards)} and run "
            "the command again, which encodes its windows anew"
        )

    def _damaged(self, shards: set[str]) -> str:
        """Returns the path of the first damaged shard."""
        for path in sorted(shards):
            try:
                collections.deque(array_record_data_source.ArrayRecordDataSource([path]), maxlen=0)
            except (RuntimeError, ValueError):
                return path
        return " or ".join(sorted(shards))


def _open_shards(location: Path, prefix: str) -> list[_Shard]:
    """Returns the shards of a store, in the order of their names, and warns about those that cannot be read."""
    names = sorted(p.name for p in location.iterdir() if p.name.startswith(prefix) and p.suffix == SHARD_SUFFIX)
    with concurrent.futures.ThreadPoolExecutor(_OPENING_THREADS) as pool:
        return [shard for shard in pool.map(lambda name: _open_shard(location / name), names) if shard is not None]


def _open_shard(path: Path) -> _Shard | None:
    """Reads the keys of a shard. Returns None, after a warning, if that fails."""
    try:
        reader = array_record_module.ArrayRecordReader(os.fspath(path), "readahead_buffer_size:0,max_parallelism:0")
        num_records = reader.num_records()
        if not num_records:  # array_record raises no error for a file that is cut
            raise ValueError("it is cut")
        keys = np.frombuffer(reader.read([num_records - 1])[0], np.uint64).reshape(-1, 2)
        reader.close()
        if len(keys) != num_records - 1:
            raise ValueError(f"it has {len(keys)} keys and {num_records} records")
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0][:120]
        line = f"{path} cannot be used ({reason}), so its windows are encoded anew; delete it if it is damaged"
        warnings.warn(line, AudioWarning, stacklevel=2)
        return None
    return _Shard(os.fspath(path), keys, paths.size(path))

"""Encoder windows of the sources of a run, and which of them a store of encoder frames lacks."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np

from data_pipelines.encoder_cache.store import FrameStore, window_key
from data_pipelines.examples import BadExample, Example
from data_pipelines.sources.audio import AudioRules, fit_clip
from data_pipelines.stream.sample_dataset import available_cores
from salmonn_jax.audio.windows import split_windows
from salmonn_jax.files import atomic_write

COMPLETE = "complete"  # folder of the sources whose windows are all in the store
CHECKED_EXAMPLES = 16  # examples of such a source that are read again at the start of a run
_READ_AHEAD = 32  # examples per process


class KeyedWindow(NamedTuple):
    """An encoder window and its key."""

    key: bytes
    samples: np.ndarray  # int16[samples]


@dataclasses.dataclass(frozen=True)
class SourceWindows:
    """Random-access sequence of the encoder windows of each example of a source, cut as in training.

    An example that training rejects for its audio, or for more windows than `max_windows`, has none.

    Attributes:
      name: name of the source.
      split: split of the source.
      examples: the examples.
      rules: rules by which clips are read.
      window_samples: samples of an encoder window.
      max_windows: maximum number of encoder windows of an example.
    """

    name: str
    split: str
    examples: Sequence[Example]
    rules: AudioRules
    window_samples: int
    max_windows: int

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> tuple[KeyedWindow, ...]:
        try:
            audio = self.examples[index].audio
            windows = [] if audio is None else split_windows(fit_clip(audio, self.rules), self.window_samples)
        except BadExample:
            return ()
        if len(windows) > self.max_windows:
            return ()
        return tuple(KeyedWindow(window_key(window), window) for window in windows)

    def read(self, shard: tuple[int, int]) -> Iterator[tuple[KeyedWindow, ...]]:
        """Yields the windows of every example of a share of the source, read ahead by threads.

        Args:
          shard: (process index, number of processes).
        """
        share = grain.MapDataset.source(self)[shard[0] :: shard[1]]
        options = grain.ReadOptions(num_threads=available_cores(), prefetch_buffer_size=_READ_AHEAD)
        yield from share.to_iter_dataset(options)


class CompleteSources:
    """Record of the sources whose windows are all in a store, so that a run need not read all clips to know it.

    Args:
      store: the store.
      data: JSON values that tell data sets apart, such as their directory.
    """

    def __init__(self, store: FrameStore, data: Mapping[str, Any]):
        self._store, self._data = store, data

    def num_windows(self, source: SourceWindows) -> int | None:
        """Returns the number of windows of a source that is complete; None if it has to be read to know.

        It has to be read if the store has lost windows since it was complete, if the number of examples has changed,
        or if a window of `CHECKED_EXAMPLES` examples is missing.
        """
        path = self._path(source)
        if not path.is_file():
            return None
        record = json.loads(path.read_text())
        if len(self._store) < record["stored"]:
            return None
        indices = np.linspace(0, len(source) - 1, min(CHECKED_EXAMPLES, len(source))).astype(int)
        found = (self._store.find(window.key) for index in indices for window in source[int(index)])
        return None if any(record is None for record in found) else record["windows"]

    def add(self, source: SourceWindows, num_windows: int) -> None:
        """Records that all windows of a source are in the store.

        Args:
          source: the source.
          num_windows: number of its windows.
        """
        record = self._identity(source) | {"windows": num_windows, "stored": len(self._store)}
        # In a store that can only be read, the next run reads the source again.
        with contextlib.suppress(PermissionError), atomic_write(self._path(source)) as unfinished:
            unfinished.write_text(json.dumps(record, indent=1) + "\n")

    def _path(self, source: SourceWindows):
        name = hashlib.sha256(json.dumps(self._identity(source), sort_keys=True).encode()).hexdigest()[:32]
        return self._store.location / COMPLETE / f"{name}.json"

    def _identity(self, source: SourceWindows) -> dict[str, Any]:
        return {
            **self._data,
            "source": source.name,
            "split": source.split,
            "examples": len(source),
            "rules": dataclasses.asdict(source.rules),
            "window_samples": source.window_samples,
            "max_windows": source.max_windows,
        }

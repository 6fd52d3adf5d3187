"""The predictions that an evaluation makes, their keys and their order.

The order depends on the rows and the settings alone, so any number of processes divides the same list.
"""

from __future__ import annotations

import concurrent.futures
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from tqdm import tqdm

from salmonn_jax.errors import AudioError
from salmonn_jax.evaluation.predictions import Condition, prediction_key

HASH_THREADS = 32  # they wait for the storage most of the time
_HASH_BYTES, _HASH_BLOCK = 32, 256
_UNREADABLE, _TEXT_ONLY, _HASHED = 1, 2, 3  # last byte of an entry of the table of hashes; 0 if another process has it


class Rows(Protocol):
    """Rows to evaluate, such as `data_pipelines.evaluation.rows.EvaluationRows`. Several threads read them."""

    def __len__(self) -> int: ...

    def fields(self, index: int) -> dict[str, Any]:
        """Returns the fields `ROW_FIELDS` of the prediction of a row (see `salmonn_jax.evaluation.predictions`)."""
        ...

    def has_audio(self, index: int) -> bool:
        """Returns whether a row has a clip."""
        ...

    def hash_audio(self, index: int) -> str:
        """Returns the hex SHA-256 of the content of the clip of a row. Raises AudioError if it cannot be read."""
        ...

    def read_audio(self, index: int) -> np.ndarray:
        """Returns the clip of a row as int16[samples] at 16 kHz. Raises AudioError if it cannot be used."""
        ...


class Item(NamedTuple):
    """Prediction to make.

    Attributes:
      bucket: size of the prompt (see `plan_predictions`).
      key: key of the prediction.
      index: index of the row.
      condition: see `Prediction`.
      group: number of the data set and task of the row.
      clip: number of the content of the clip; text-only rows share a number.
    """

    bucket: int
    key: str
    index: int
    condition: Condition
    group: int
    clip: int


def hash_clips(rows: Rows, shard: tuple[int, int]) -> np.ndarray:
    """Hashes the clips of one share of the rows. A clip that cannot be read gets a fixed value.

    Args:
      rows: all rows.
      shard: (process index, number of processes). A process hashes a contiguous share, because neighbouring rows may be
        in the same file.

    Returns:
      uint8[rows, 33]: the table of hashes, with zeros for the rows of other processes. The tables of all processes add
      up to the table for `plan_predictions`.
    """
    table = np.zeros((len(rows), _HASH_BYTES + 1), np.uint8)
    own = np.array_split(np.arange(len(rows)), shard[1])[shard[0]]

    def hash_row(index: int) -> None:
        if not rows.has_audio(index):
            table[index, -1] = _TEXT_ONLY
            return
        try:
            table[index, :-1] = np.frombuffer(bytes.fromhex(rows.hash_audio(index)), np.uint8)
            table[index, -1] = _HASHED
        except AudioError:
            table[index, -1] = _UNREADABLE

    with (
        concurrent.futures.ThreadPoolExecutor(HASH_THREADS) as pool,
        tqdm(total=len(own), desc="hashing clips", unit="clip", leave=False) as progress,
    ):
        for block in _slices(own.tolist(), _HASH_BLOCK):  # `map` would queue all rows at once
            progress.update(len(list(pool.map(hash_row, block))))
    return table


def plan_predictions(
    rows: Rows,
    audio_hashes: np.ndarray,
    *,
    conditions: Sequence[Condition],
    settings: Mapping[str, Any],
    bucket: Callable[[str, bool], int],
) -> list[Item]:
    """Returns all predictions of an evaluation, whether they exist or not, in the order in which they are made.

    Args:
      rows: all rows.
      audio_hashes: table of hashes of all rows (see `hash_clips`).
      conditions: conditions under which each row with a clip is predicted. A text-only row has only the first.
      settings: see `prediction_key`.
      bucket: returns the size of a prompt, by which predictions are grouped, from its text and whether it has a clip.
    """
    groups: dict[tuple[str, ...], int] = {}
    clips: dict[str, int] = {}
    items = []
    for index in range(len(rows)):
        row, audio_hash = rows.fields(index), audio_hashes[index].tobytes().hex()
        has_audio = audio_hashes[index, -1] != _TEXT_ONLY
        size = bucket(row["prompt"], has_audio)
        group = groups.setdefault((row["source"], row["split"], row["task"], row["metric"]), len(groups))
        for condition in conditions if has_audio else conditions[:1]:
            key = prediction_key(row, condition=condition, audio_hash=audio_hash, settings=settings)
            clip = clips.setdefault(audio_hash, len(clips))
            items.append(Item(size, key, index, condition, group, clip))
    return sorted(items)


def own_batches(
    items: Sequence[Item], batch_size: int, shard: tuple[int, int], *, first: int = 0
) -> list[Sequence[Item]]:
    """Divides predictions into batches of one bucket, and returns those of one process.

    Args:
      items: predictions, sorted.
      batch_size: largest number of predictions of a batch.
      shard: (process index, number of processes). Process `i` of `n` makes the batches `i`, `i + n`, `i + 2n`, ...
      first: number of predictions of the process that come from different groups in turn and are made first.
    """
    batches = [batch for group in _by_bucket(items) for batch in _slices(group, batch_size)]
    own = [item for batch in batches[shard[0] :: shard[1]] for item in batch]
    chosen = _one_of_each_group(own, first)
    rest = [item for item in own if item not in set(chosen)]
    return [
        batch for part in (sorted(chosen), rest) for group in _by_bucket(part) for batch in _slices(group, batch_size)
    ]


def _slices(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Yields consecutive slices of up to `size` items."""
    return (items[start : start + size] for start in range(0, len(items), size))


def _by_bucket(items: Sequence[Item]) -> Iterator[list[Item]]:
    return (list(group) for _, group in itertools.groupby(items, key=lambda item: item.bucket))


def _one_of_each_group(items: Sequence[Item], count: int) -> list[Item]:
    """Returns up to `count` predictions with the condition "audio", of different groups and buckets in turn."""
    by_group: dict[tuple[int, int], list[Item]] = {}
    for item in items:
        if item.condition == "audio":
            by_group.setdefault((item.group, item.bucket), []).append(item)
    turns = itertools.zip_longest(*(group[:count] for _, group in sorted(by_group.items())))
    return [item for turn in turns for item in turn if item is not None][:count]

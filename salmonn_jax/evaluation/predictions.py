"""Prediction records and the append-only JSON-lines files that store them.

`predict` writes these files; `tasks` and `report` read the records, any number of times. Each line has a key, which is
a hash of everything the answer depends on. A restarted evaluation therefore generates only the missing answers, and
never reuses an answer of other weights or other decoding settings.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Literal, Self, get_args

import numpy as np

from salmonn_jax.errors import UserError
from salmonn_jax.files import open_growing
from salmonn_jax.paths import Path, PathLike, as_path

Condition = Literal["audio", "silence"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """Answer of the model to one example under one condition.

    Attributes:
      key: hash from `prediction_key`.
      id: id of the example, unique within its source.
      task: a name in `salmonn_jax.evaluation.tasks.TASKS`.
      source: name of the data set.
      split: name of the split, such as "test" or "unheard".
      condition: "audio" if the model got the clip, "silence" if it got zeros instead of the clip.
      prompt: prompt of the example.
      reference: reference answer.
      prediction: answer of the model.
      finish_reason: why decoding stopped, as reported by the decoder.
      audio_seconds: length of the clip in seconds; 0 for a text-only example.
      too_long: what happens to clips longer than the encoder window (see `salmonn_jax.audio.windows`).
      windows: start and end in seconds of each encoder window that the model got; empty for a text-only example.

    Raises:
      ValueError: a field has the wrong type, or `condition` is unknown.
    """

    key: str
    id: str
    task: str
    source: str
    split: str
    condition: Condition
    prompt: str
    reference: str
    prediction: str
    finish_reason: str
    audio_seconds: float
    too_long: str
    windows: Sequence[Sequence[float]]

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            expected = {"audio_seconds": (int, float), "windows": (list, tuple)}.get(field.name, str)
            if not isinstance(value, expected):
                raise ValueError(f"{field.name}={value!r}: must be of type {field.type}")
        if self.condition not in get_args(Condition):
            raise ValueError(f"condition={self.condition!r}: must be one of {get_args(Condition)}")


def prediction_key(
    *,
    id: str,
    task: str,
    source: str,
    split: str,
    condition: Condition,
    prompt: str,
    reference: str,
    audio: np.ndarray | None,
    generation_config: Mapping[str, object],
    weights_fingerprint: str,
) -> str:
    """Returns the hex SHA-256 of everything that an answer and its score depend on.

    Args:
      id: as in `Prediction`; so are `task`, `source`, `split`, `condition`, `prompt` and `reference`.
      audio: clip of the example, int16[samples]; None for a text-only example.
      generation_config: decoding settings as plain JSON values. Their order does not matter.
      weights_fingerprint: fingerprint of the model's weights.

    Raises:
      ValueError: `audio` is not int16.
    """
    if audio is not None and audio.dtype != np.int16:
        raise ValueError(f"audio.dtype={audio.dtype}: must be int16")
    key_fields = {
        "row": [source, split, task, id, prompt, reference],
        "condition": condition,
        "audio": None if audio is None else hashlib.sha256(audio.astype("<i2").tobytes()).hexdigest(),
        "generation_config": dict(generation_config),
        "weights_fingerprint": weights_fingerprint,
    }
    canonical = json.dumps(key_fields, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


class PredictionLog:
    """Append-only prediction file of one process, used as a context manager or closed with `close`.

    Opening creates a missing file. If a kill cut the last line short, opening removes that line from the file. Its key
    is then missing from `completed_keys()`, so the example is answered again.

    Args:
      path: the file to append to.
      other_paths: prediction files of other processes. Their predictions count as completed.

    Raises:
      UserError: a complete line is not a prediction, or a file holds a prediction twice.
    """

    def __init__(self, path: PathLike, other_paths: Iterable[Path] = ()) -> None:
        self.path = as_path(path)
        complete_lines = _complete_lines(self.path.read_bytes()) if self.path.exists() else b""
        self._completed_keys = {prediction.key for prediction in _parse(self.path, complete_lines)}
        for other_path in other_paths:
            self._completed_keys |= {prediction.key for prediction in read_predictions(other_path)}
        self._file = open_growing(self.path, len(complete_lines))

    def completed_keys(self) -> set[str]:
        """Returns a copy of the keys of all predictions in this file and in the other files."""
        return set(self._completed_keys)

    def append(self, prediction: Prediction) -> None:
        """Appends one line (see `salmonn_jax.files.GrowingFile.write`).

        Raises:
          ValueError: this file or another one already holds a prediction with this key.
        """
        if prediction.key in self._completed_keys:
            raise ValueError(f"the prediction of {prediction.id!r} with key {prediction.key} is already completed")
        line = json.dumps(dataclasses.asdict(prediction), ensure_ascii=False, allow_nan=False)
        self._file.write(line.encode() + b"\n")
        self._completed_keys.add(prediction.key)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exc_type: type | None, exc_value: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()


def read_predictions(path: PathLike) -> list[Prediction]:
    """Returns the predictions of a file in the order of its lines.

    An incomplete last line is ignored. The file is not changed.

    Raises:
      UserError: the file does not exist, a complete line is not a prediction, or the file holds a prediction twice.
    """
    path = as_path(path)
    if not path.is_file():
        raise UserError(f"no prediction file {path}; run the evaluation first")
    return list(_parse(path, _complete_lines(path.read_bytes())))


def find_prediction_files(directory: Path) -> list[Path]:
    """Returns the prediction files in a directory, one per process."""
    return sorted(directory.glob("predictions*.jsonl"))


def prediction_path(directory: Path, process_index: int) -> Path:
    """Returns the path of the prediction file of one process."""
    return directory / (f"predictions-{process_index}.jsonl" if process_index else "predictions.jsonl")


def _complete_lines(content: bytes) -> bytes:
    """Returns the content up to its last newline.

    Every line is written together with its newline, so the rest comes from a write that a kill interrupted.
    """
    return content[: content.rfind(b"\n") + 1]


def _parse(path: Path, content: bytes) -> Iterator[Prediction]:
    """Yields the predictions in `content`; raises UserError with `path` and the line number for a wrong line."""
    line_of_key: dict[str, int] = {}
    # Bytes are split at newlines only; a str would also be split at characters such as U+2028, which a text may hold.
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            prediction = Prediction(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}:{number} is not a prediction ({error}); delete that line") from None
        first_line = line_of_key.setdefault(prediction.key, number)
        if first_line != number:
            raise UserError(f"{path}:{number} repeats the prediction of line {first_line}; delete one of the two")
        yield prediction
